"""A slice of the evidence on registration comes out again, and its page says what the file says."""

from __future__ import annotations

import importlib
import io
import json
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import AssetError
from sagittal.registration.filters import gaussian
from sagittal.volume import DisplacementField, Geometry, Volume

for package in ("PIL", "SimpleITK", "torch", "scipy", "sklearn"):
    pytest.importorskip(package)

EVIDENCE = Path(__file__).parents[2] / "evidence"


@pytest.fixture(autouse=True)
def _beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EVIDENCE))


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def pair() -> Any:
    """A synthetic head of 3 mm and itself, warped by a known map."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EVIDENCE))
        shape = (48, 56, 44)
        grid = Geometry(shape, np.array([[-3.0, 0, 0, 70], [0, 3, 0, -80], [0, 0, 3, -60], [0, 0, 0, 1]]))
        random = np.random.default_rng(0)
        detail = gaussian(random.normal(size=shape), (2, 2, 2))
        index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
        round_ = np.linalg.norm((index / (np.array(shape) - 1) - 0.5), axis=-1) < 0.38
        image = gaussian(100 * round_ * (2 + detail / detail.std()).clip(0), (0.7, 0.7, 0.7))
        labels = Volume((round_ * (1 + (detail > 0))).astype(np.uint8), grid)
        original = Volume(image.astype(np.float32), grid)
        return script("registration_data").known_pair(
            original, labels, strength="small", seed=5, spacing_mm=4.0
        )


def test_the_truth_leads_from_the_fixed_image_to_the_moving_one(pair: Any) -> None:
    def unlike(field: DisplacementField) -> float:
        return float(np.corrcoef(field.warp(pair.moving).array[pair.mask], pair.fixed.array[pair.mask])[0, 1])

    turned = DisplacementField(-pair.truth.vectors, pair.truth.geometry)
    assert pair.truth.folds == 0
    assert unlike(pair.truth) > unlike(DisplacementField.identity(pair.truth.geometry)) > unlike(turned)
    measured = script("registration").measured
    right, wrong = (measured(pair, field, None) for field in (pair.truth, turned))
    assert right["tre_mm"] == 0
    assert wrong["tre_mm"] == pytest.approx(2 * right["tre_before_mm"], rel=1e-3)
    assert right["dice_mean"] > max(0.8, wrong["dice_mean"])


def test_every_method_that_is_installed_comes_nearer_to_the_truth(pair: Any) -> None:
    run = script("registration")
    methods, _ = run.installed(run.SETTINGS)
    found: dict[str, Any] = {}

    def tasks(place: Any) -> None:
        for name in methods:
            found[name] = place.run(name, run.SETTINGS[name][0])

    run.at_work(pair, tasks)
    assert found["diffeomorphic"]["cpu_seconds"] > 0
    assert found["diffeomorphic"]["inverse_consistency_mm"] < 0.2
    for name in set(found) - {"identity"}:
        assert found[name]["tre_mm"] < found["identity"]["tre_mm"], name
    assert found["diffeomorphic"]["tre_mm"] < 0.5 * found["affine"]["tre_mm"]


def test_rows_that_are_there_are_kept_and_may_be_made_again(
    pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = script("registration")
    monkeypatch.setattr(run, "template", lambda: (None, None))
    monkeypatch.setattr(run, "originals", lambda colin, heads: {"Colin27": (None, None)})
    monkeypatch.setattr(run, "known_pair", lambda *images, **how: pair)
    monkeypatch.setattr(run, "STRENGTHS", {"small": 2.5})
    monkeypatch.setattr(run, "TUNING", (("small", 9),))
    out = tmp_path / "out.json"
    arguments = ["--only", "known-fields", "--methods", "identity;affine", "--json", str(out)]
    run.main(arguments)
    kept = json.loads(out.read_text())
    assert {row["method"] for row in kept["rows"]} == {"identity", "affine"}
    broken = json.loads(out.read_text())
    for row in broken["rows"]:
        row["tre_mm"] = -1
    out.write_text(json.dumps(broken))
    run.main(arguments)
    assert all(row["tre_mm"] == -1 for row in json.loads(out.read_text())["rows"])
    run.main([*arguments, "--again"])
    assert all(row["tre_mm"] > 0 for row in json.loads(out.read_text())["rows"])


def test_a_person_chooses_the_settings_of_the_other_by_overlap(
    pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = script("registration")
    monkeypatch.setattr(run, "originals", lambda colin, heads: {})
    monkeypatch.setattr(run, "person_mni", lambda sdist, spacing_mm: pair)
    monkeypatch.setattr(run, "colin_mni", lambda colin, spacing_mm: pair)
    still, moves = {"iterations": [0]}, {"iterations": [9]}
    monkeypatch.setattr(run, "SETTINGS", {"diffeomorphic": [still]})
    monkeypatch.setattr(run, "FINER", {"diffeomorphic": [moves, still]})
    out = tmp_path / "out.json"
    run.main(["--only", "colin27-mni", "--colin", "x", "--person", "y", "--json", str(out)])
    kept = json.loads(out.read_text())
    (tuned,), (row,) = kept["tuning_others"], kept["rows"]
    assert tuned["options"] == [still, moves, still]
    assert tuned["best"] == 1
    assert tuned["dice_mean"][1][0] > tuned["dice_mean"][0][0]
    assert (row["options"], row["set"]) == (moves, "colin27-mni")


def ball(middle: tuple[float, float, float], radii: tuple[float, float, float], count: int) -> Any:
    """Return points and triangles of an ellipsoid, about evenly spread."""
    spatial = pytest.importorskip("scipy.spatial")
    turn = np.pi * (1 + 5**0.5) * np.arange(count)
    height = 1 - (2 * np.arange(count) + 1) / count
    wide = np.sqrt(1 - height**2)
    unit = np.stack([wide * np.cos(turn), wide * np.sin(turn), height], axis=1)
    return (unit * radii + middle).astype(np.float32), spatial.ConvexHull(unit).simplices.astype(np.int32)


def test_a_surface_is_filled() -> None:
    person = script("registration_person")
    grid = Geometry(
        (30, 36, 28), np.array([[0, -1.5, 0, 24], [1.2, 0, 0, -18], [0, 0, 2, -30], [0, 0, 0, 1]])
    )
    radii = (20.0, 11.0, 17.0)
    points, triangles = ball((-2.3, 1.1, -1.7), radii, 4000)
    found = person.filled(points, triangles, grid)
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    far = np.linalg.norm((grid.index_to_world(index) - (-2.3, 1.1, -1.7)) / radii, axis=-1)
    assert found.sum() * 1.5 * 1.2 * 2 == pytest.approx(4 / 3 * np.pi * np.prod(radii), rel=0.01)
    assert (found[far < 0.8] == 1).all()
    assert (found[far > 1.2] == 0).all()


def test_a_person_comes_with_grey_and_white_matter_and_without_a_skull(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    person, data = script("registration_person"), script("registration_data")
    try:
        original, _ = data.template()
    except AssetError as error:
        pytest.skip(str(error))
    grid = data.coarsened(original.geometry, 4.0)
    brain = data.on_grid(original.array.astype(np.float32), original.geometry, grid)
    away = np.array([30.0, -20.0, 10.0])  # the person lies elsewhere
    affine = grid.affine.copy()
    affine[:3, 3] += away
    near = gaussian((brain > 0).astype(np.float32), (2, 2, 2))
    skull = 250 * ((near > 0.02) & (near < 0.08))
    files = {"anatomicals/raw.nii.gz": nibabel.Nifti1Image(brain + skull, affine)}
    for half, side in (("lh", -1), ("rh", 1)):
        for kind, size in (("pia", 1.0), ("wm", 0.7)):
            middle = np.array([34.0 * side, -18.0, 16.0]) + away
            radii = (33.0 * size, 70.0 * size, 45.0 * size)
            arrays = [
                nibabel.gifti.GiftiDataArray(each, intent=intent)
                for each, intent in zip(
                    ball(tuple(middle), radii, 6000),
                    ("NIFTI_INTENT_POINTSET", "NIFTI_INTENT_TRIANGLE"),
                    strict=True,
                )
            ]
            files[f"surfaces/{kind}_{half}.gii"] = nibabel.GiftiImage(darrays=arrays)
    with tarfile.open(tmp_path / "pycortex.tar.gz", "w:gz") as archive:
        for name, image in files.items():
            nibabel.save(image, tmp_path / Path(name).name)
            archive.add(tmp_path / Path(name).name, f"pycortex/filestore/db/S1/{name}")
    pair = person.person_mni(tmp_path / "pycortex.tar.gz", 4.0)
    wanted, own = pair.labels
    assert set(np.unique(own.array)) == set(np.unique(wanted.array)) == {0, 2, 3}
    halves = 2 * 4 / 3 * np.pi * 33 * 70 * 45 / 4**3
    assert (own.array > 0).sum() == pytest.approx(halves, rel=0.05)
    assert (own.array == 3).sum() == pytest.approx(0.7**3 * halves, rel=0.05)
    assert (pair.moving.array > 0).sum() == pytest.approx((brain > 25).sum(), rel=0.1)
    assert pair.moving.array.max() < 250
    still = DisplacementField.from_affine(
        np.array([[1, 0, 0, away[0]], [0, 1, 0, away[1]], [0, 0, 1, away[2]], [0, 0, 0, 1.0]]),
        pair.fixed.geometry,
    )
    brought = still.warp(pair.moving).array[pair.mask]
    assert np.corrcoef(brought, pair.fixed.array[pair.mask])[0, 1] > 0.95


def test_labels_count_where_the_mask_says(pair: Any) -> None:
    dice = script("registration").dice
    grid = pair.labels[0].geometry
    a = np.zeros(grid.shape, np.uint8)
    a[:10], a[10:] = 1, 2
    b = np.where(np.arange(grid.shape[0])[:, None, None] < 5, a, 3).astype(np.uint8)
    everywhere = np.ones(grid.shape, bool)
    wanted = (2 * 5 / (10 + 5) + 0) / 2
    assert dice(Volume(a, grid), Volume(b, grid), everywhere) == pytest.approx(wanted)
    some = everywhere & (np.arange(grid.shape[0])[:, None, None] < 5)
    assert dice(Volume(a, grid), Volume(b, grid), some) == 1


def test_the_page_is_made_from_the_results() -> None:
    made = script("registration_page").page()
    assert (EVIDENCE.parent / "docs" / "registration.md").read_text(encoding="utf-8") == made


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    module = script("registration_page")
    assert module.page(tmp_path / "none.json").count(module.MISSING) == 16


def test_targets_are_set_beside_the_best_rival() -> None:
    module = script("registration_page")
    common = {"set": "known-fields", "image": "x", "strength": "small", "seed": 1, "folds": 0}
    common |= {"inverse_consistency_mm": 0.01, "dice_mean": None, "threads": 1}
    rows = [
        {**common, "method": "diffeomorphic", "tre_mm": 0.3, "cpu_seconds": 2.0},
        {**common, "method": "near", "tre_mm": 0.2, "cpu_seconds": 8.0},
        {**common, "method": "far", "tre_mm": 2.0, "cpu_seconds": 1.0},
        {**common, "method": "identity", "tre_mm": 0.1, "cpu_seconds": 0.0},
    ]
    said = module.targets({"rows": rows})
    assert "| median error, of that of the best other | 1.00 | 1.50 (near) |" in said
    assert "| processor time, of the same | 0.50 | 0.25 |" in said


def test_the_expected_error_is_set_beside_the_true_one(pair: Any) -> None:
    confidence = script("registration").confidence
    random = np.random.default_rng(1)
    off = random.normal(size=pair.truth.vectors.shape)
    field = DisplacementField(pair.truth.vectors + off, pair.truth.geometry)
    true = np.linalg.norm(off, axis=0)
    right = confidence(pair, field, (0.6 * true).astype(np.float32))
    for where in ("flat", "textured"):
        assert right[where]["rank"] == pytest.approx(1, abs=1e-3)
        assert right[where]["ratio"] == pytest.approx(0.6, abs=1e-3)
        assert (right[where]["below"], right[where]["below_twice"]) == (0, 1)


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the script of the other pairs, with a cohort of small heads."""
    more = script("registration_more")
    monkeypatch.setattr(more, "COHORT_MM", 8.0)
    monkeypatch.setattr(more, "FLAT_MM", 4.0)
    try:
        more.cohort.template(8.0)
    except AssetError as error:
        pytest.skip(str(error))
    return more


@pytest.mark.parametrize("flat", [False, True])
def test_the_truth_of_the_cohort_leads_from_one_head_to_the_other(heads: ModuleType, flat: bool) -> None:
    pair = heads.cohort_pair(7, flat=flat)
    measured = script("registration").measured
    turned = DisplacementField(-pair.truth.vectors, pair.truth.geometry)
    still = DisplacementField.identity(pair.truth.geometry)
    right, wrong, none = (measured(pair, field, None)["dice_mean"] for field in (pair.truth, turned, still))
    assert right > none > wrong
    assert (np.ptp(pair.truth.vectors[2]) == 0) == flat


def archive_of_slices(path: Path) -> Path:
    """Write six pictures as antspyx's archive holds them: rings that differ."""
    from PIL import Image

    rows, columns = np.mgrid[:64, :64]
    with tarfile.open(path, "w:gz") as archive:
        for number, name in enumerate(("r16", "r27", "r30", "r62", "r64", "r85")):
            far = np.hypot((rows - 32) / 26, (columns - 32) / (20 + number))
            picture = np.select([far < 0.4, far < 0.7, far < 1], [220, 140, 60])
            stream = io.BytesIO()
            Image.fromarray(picture.astype(np.uint8)).save(stream, "png")
            member = tarfile.TarInfo(f"antspyx/data/{name}slice.jpg")
            member.size = len(stream.getvalue())
            archive.addfile(member, io.BytesIO(stream.getvalue()))
    return path


def test_slices_are_registered_by_every_method_that_is_installed(tmp_path: Path) -> None:
    more, run = script("registration_more"), script("registration")
    images = more.slices(archive_of_slices(tmp_path / "antspyx.tar.gz"))
    assert len(more.slice_pairs()) == 15
    pair = more.slice_pair(images, "r16", "r85")
    assert set(np.unique(pair.labels[0].array)) == {0, 1, 2, 3}
    methods, _ = run.installed(run.SETTINGS)
    found: dict[str, Any] = {}

    def tasks(place: Any) -> None:
        for name in methods:
            found[name] = place.run(name, run.SETTINGS[name][0])

    run.at_work(pair, tasks)
    assert found["diffeomorphic"]["dice_mean"] > max(0.9, found["identity"]["dice_mean"])
    for name in set(found) - {"identity"}:
        assert found[name]["dice_mean"] > found["identity"]["dice_mean"], name
