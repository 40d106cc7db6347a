"""A case's head registered to an atlas: what is kept, what is said, and what is refused."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlas_phantom import head, head_labels, oblique, upright
from known_fields import bump, on_grid
from sagittal.case.store import CaseStore
from sagittal.core.errors import AssetError, FormatError, GeometryError, InputError
from sagittal.volume import Volume, write_nifti
from sagittal.workflow import artifacts
from sagittal.workflow.export import export_case
from sagittal.workflow.map_files import file_fields
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.replay import replay
from sagittal.workflow.runner import Runner
from sagittal.workflow.steps import DraftReport, ReadImage, RegisterToAtlas
from sagittal.workflow.steps.registration import to_atlas

pytest.importorskip("torch")
pytest.importorskip("scipy")

WARP = bump(14.0, [70, 75, 65], seed=4)


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas")
    write_nifti(head(upright()), folder / "atlas.nii.gz")
    write_nifti(head_labels(upright()), folder / "labels.nii.gz")
    return folder


@pytest.fixture(scope="module")
def step(atlas: Path) -> RegisterToAtlas:
    found = to_atlas(str(atlas / "atlas.nii.gz"), str(atlas / "labels.nii.gz"))
    return replace(found, spacing_mm=5.0)


def begun(runner: Runner, image: Volume, folder: Path) -> str:
    case_id = runner.store.create_case("head")
    write_nifti(image, folder / "head.nii.gz")
    runner.receive(case_id, "t1.files", [folder / "head.nii.gz"])
    runner.run(case_id, ReadImage(role="t1", title="T1 image"))
    return case_id


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    store = CaseStore(tmp_path_factory.mktemp("registered") / "store")
    return Runner(store=store, shelf=ModelShelf(offline=True), seed=7)


@pytest.fixture(scope="module")
def case_id(runner: Runner, step: RegisterToAtlas, tmp_path_factory: pytest.TempPathFactory) -> str:
    image = head(oblique(), WARP, noise=3.0, seed=1)
    case_id = begun(runner, image, tmp_path_factory.mktemp("image"))
    runner.run(case_id, step)
    return case_id


def value(runner: Runner, case_id: str, role: str) -> object:
    artifact = runner.store.case(case_id).latest(role)
    assert artifact is not None
    return artifacts.load(runner.store.objects, artifact)


def test_the_map_is_the_one_that_made_the_case(runner: Runner, case_id: str) -> None:
    fields = file_fields(value(runner, case_id, "atlas-map.files"))  # type: ignore[arg-type]
    found = fields["to-atlas.nii"]
    inside = head_labels(found.geometry, WARP).array > 0
    truth = on_grid(WARP, found.geometry).vectors
    apart = np.linalg.norm(found.vectors - truth, axis=0)[inside]
    still = np.linalg.norm(truth, axis=0)[inside]
    assert np.median(apart) < 0.5 * np.median(still)
    both = fields["from-atlas.nii"].compose(found).magnitude[inside]
    assert both.mean() < 0.5


def test_labels_come_with_probabilities_on_the_grid_of_the_map(runner: Runner, case_id: str) -> None:
    labels = value(runner, case_id, "atlas-labels")
    change = value(runner, case_id, "atlas-volume-change")
    assert isinstance(labels, Volume)
    assert isinstance(change, Volume)
    assert labels.geometry == change.geometry
    assert labels.classes == ("label 1", "label 2", "label 3")
    assert labels.probabilities is not None
    truth = head_labels(labels.geometry, WARP).array
    assert (labels.array == truth).mean() > 0.93
    assert (head_labels(labels.geometry).array == truth).mean() < (labels.array == truth).mean()


def test_volume_change_says_where_the_case_is_larger(runner: Runner, case_id: str) -> None:
    change = value(runner, case_id, "atlas-volume-change")
    assert isinstance(change, Volume)
    truth = -on_grid(WARP, change.geometry).log_jacobian().array
    inside = head_labels(change.geometry, WARP).array > 0
    assert np.corrcoef(change.array[inside], truth[inside])[0, 1] > 0.6


def test_the_record_says_what_the_atlas_was(runner: Runner, case_id: str, step: RegisterToAtlas) -> None:
    run = next(run for run in runner.store.case(case_id).runs if run.step == "register-to-atlas")
    assert set(run.models.values()) == set(step.sha256.values())
    assert set(run.models) == {step.atlas, step.labels}
    assert run.parameters["spacing_mm"] == 5.0
    assert run.inputs[0].role == "t1"
    said = value(runner, case_id, "atlas-registration")
    assert isinstance(said, dict)
    assert said["problems"] == []
    assert said["atlas"] == "an atlas of the user's"
    assert said["inverse_consistency_mm"] < 0.5


def test_findings_say_what_was_carried_over(runner: Runner, case_id: str) -> None:
    found = runner.store.case(case_id).standing("atlas.")
    codes = [finding.content.code for finding in found]
    assert codes == ["atlas.registration", "atlas.volume-change", *["atlas.label"] * 3]
    truth = head_labels(upright(2.0), WARP)
    for number, finding in enumerate(found[2:], start=1):
        wanted = np.count_nonzero(truth.array == number) * truth.geometry.voxel_volume_ml
        said = float(finding.content.statement.split(": ")[1].split(" ml")[0])
        assert said == pytest.approx(wanted, rel=0.1)
        assert "not measured on the image" in finding.content.caution


def test_the_report_has_a_section_for_it(runner: Runner, case_id: str) -> None:
    runner.run(case_id, DraftReport(model=""))
    report = value(runner, case_id, "report")
    assert isinstance(report, dict)
    assert "Against the atlas" in [section["title"] for section in report["sections"]]


def test_replay_gives_the_same_bits(runner: Runner, case_id: str) -> None:
    runs = replay(runner.store, case_id, shelf=ModelShelf(offline=True))
    assert not [run.differences for run in runs if run.differences]


def test_a_failed_registration_is_said_and_carries_nothing(
    runner: Runner, step: RegisterToAtlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sagittal.registration import Registration

    case_id = begun(runner, head(oblique(6.0)), tmp_path)
    monkeypatch.setattr(Registration, "problems", ("12 voxels fold",))
    runner.run(case_id, replace(step, spacing_mm=8.0))
    (finding,) = runner.store.case(case_id).standing("atlas.")
    assert finding.content.code == "atlas.failed"
    assert "12 voxels fold" in finding.content.statement
    assert "Nothing was carried over" in finding.content.caution
    labels, change = value(runner, case_id, "atlas-labels"), value(runner, case_id, "atlas-volume-change")
    assert isinstance(labels, Volume)
    assert isinstance(change, Volume)
    assert labels.probabilities is not None
    assert not labels.array.any()
    assert not labels.probabilities.any()
    assert labels.facts["failed"] == change.facts["failed"] == ["12 voxels fold"]


def abdomen() -> Volume:
    """Three pipes in a box of fat, and no head; CT numbers."""
    grid = upright(5.0)
    index = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in grid.shape], indexing="ij"))
    body = np.where((np.abs(index[0]) < 0.95) & (np.abs(index[1]) < 0.5), 40.0, -1000.0)
    for x, y, r, hu in ((0.5, 0.2, 0.2, 130.0), (-0.5, 0.1, 0.3, 60.0), (0.0, -0.35, 0.15, 700.0)):
        body[(np.hypot(index[0] - x - 0.2 * index[2], index[1] - y) < r) & (index[2] * y < 0.1)] = hu
    return Volume(body.astype(np.float32), grid, unit="HU")


def test_another_anatomy_is_flagged_and_carries_nothing(
    runner: Runner, step: RegisterToAtlas, tmp_path: Path
) -> None:
    case_id = begun(runner, abdomen(), tmp_path)
    runner.run(case_id, step)
    runner.run(case_id, DraftReport(model=""))
    (finding,) = runner.store.case(case_id).standing("atlas.")
    assert finding.content.code == "atlas.failed"
    labels = value(runner, case_id, "atlas-labels")
    assert isinstance(labels, Volume)
    assert not labels.array.any()
    exported = export_case(runner.store, case_id, tmp_path / "out")
    page = exported.report.read_text()
    assert "failed its own checks" in page
    assert "Nothing was carried over" in page
    assert not list(exported.folder.rglob("t1-registration"))
    assert not list(exported.folder.rglob("to-atlas*"))


def test_an_image_that_nothing_of_can_be_matched_is_refused_in_words(
    runner: Runner, step: RegisterToAtlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sagittal.registration

    def runs_away(*_: object, **__: object) -> None:
        raise GeometryError("the affine is singular")

    monkeypatch.setattr(sagittal.registration, "register", runs_away)
    case_id = begun(runner, head(oblique(6.0)), tmp_path)
    with pytest.raises(InputError, match="could be brought to the atlas.*what the atlas shows"):
        runner.run(case_id, step)


def test_a_case_without_a_head_is_refused(runner: Runner, step: RegisterToAtlas) -> None:
    case_id = runner.store.create_case("empty")
    with pytest.raises(InputError, match="no such input yet.*t1"):
        runner.run(case_id, step)


def test_an_atlas_that_is_not_there_is_refused(runner: Runner, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        to_atlas(str(tmp_path / "none.nii.gz"))
    case_id = begun(runner, head(oblique(6.0)), tmp_path)
    with pytest.raises(InputError, match="there is no such file"):
        runner.run(case_id, RegisterToAtlas(atlas=str(tmp_path / "none.nii.gz"), maps={}))


def test_an_asset_that_cannot_be_had_is_named(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sagittal.core.assets import PackageMember

    case_id = begun(runner, head(oblique(6.0)), tmp_path)
    monkeypatch.setenv("SAGITTAL_CACHE", str(tmp_path / "no-cache"))
    monkeypatch.setattr(PackageMember, "installed", lambda _: None)
    with pytest.raises(AssetError, match="mni152-t1"):
        runner.run(case_id, RegisterToAtlas())


def test_an_atlas_that_was_changed_or_damaged_is_refused(runner: Runner, tmp_path: Path) -> None:
    case_id = begun(runner, head(oblique(6.0)), tmp_path)
    path = tmp_path / "own.nii.gz"
    write_nifti(head(upright(6.0)), path)
    step = to_atlas(str(path))
    write_nifti(head(upright(8.0)), path)
    with pytest.raises(InputError, match="not the one that was asked for"):
        runner.run(case_id, step)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:5000]))
    with pytest.raises(FormatError):
        runner.run(case_id, to_atlas(str(path)))


def test_labels_of_another_grid_are_refused(runner: Runner, atlas: Path, tmp_path: Path) -> None:
    case_id = begun(runner, head(oblique(6.0)), tmp_path)
    write_nifti(head_labels(upright(6.0)), tmp_path / "labels.nii.gz")
    with pytest.raises(GeometryError, match="the atlas's labels"):
        runner.run(case_id, to_atlas(str(atlas / "atlas.nii.gz"), str(tmp_path / "labels.nii.gz")))


def test_a_slice_is_no_atlas_of_a_head(runner: Runner, tmp_path: Path) -> None:
    case_id = begun(runner, head(oblique(6.0)), tmp_path)
    whole = head(upright(6.0))
    flat = Volume(whole.array[:, :, 8:9], replace(whole.geometry, shape=(*whole.shape[:2], 1)))
    write_nifti(flat, tmp_path / "slice.nii.gz")
    with pytest.raises(GeometryError, match="as many dimensions"):
        runner.run(case_id, to_atlas(str(tmp_path / "slice.nii.gz")))
