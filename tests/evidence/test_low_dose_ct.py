"""A slice of the evidence on low dose comes out again, and its page says what the file says."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sagittal.reconstruction.methods import reconstruct
from sagittal.reconstruction.scan import Scan
from sagittal.reconstruction.simulate import fitted_geometry
from sagittal.volume import Geometry, Volume
from sagittal.volume.phantoms import Body, Phantom

pytest.importorskip("scipy")

EVIDENCE = Path(__file__).parents[2] / "evidence"
FINE = {"roughness": 24.0}


@pytest.fixture(autouse=True)
def _beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EVIDENCE))


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the script with few settings, for small images."""
    settings = {
        "fbp": [{"window": "ram-lak"}, {"window": "hann"}],
        "tv": [{"roughness": 6.0}, FINE],
        "edge-preserving-tv": [{"roughness": 16.0}, {"roughness": 64.0}],
    }
    module = script("low_dose_ct")
    for each in (module, script("low_dose_methods")):
        monkeypatch.setattr(each, "METHODS", settings)
    monkeypatch.setattr(
        script("low_dose_rivals"), "missing", lambda: {"astra": "", "skimage": "", "svmbir": ""}
    )
    return module


def run(module: ModuleType, path: Path, *more: str) -> dict[str, Any]:
    module.main(["--json", str(path), "--size", "48", "--cells", "40:1e5", "--seeds", "2", *more])
    kept: dict[str, Any] = json.loads(path.read_text())
    return kept


def test_methods_come_in_the_order_that_was_measured(few: ModuleType, tmp_path: Path) -> None:
    kept = run(few, tmp_path / "a.json", "--only", "phantoms")
    errors = {row["method"]: max(row["rmse"]) for row in kept["rows"] if row["image"] == "smooth regions"}
    least = {row["method"]: min(row["rmse"]) for row in kept["rows"] if row["image"] == "smooth regions"}
    assert errors["tv"] < least["fbp"]
    assert errors["edge-preserving-tv"] < least["tv"]
    assert {len(row["rmse"]) for row in kept["rows"]} == {2}
    assert {row["data"] for row in kept["rows"]} == {"analytic phantom"}


def test_rows_once_made_are_kept_and_others_added(few: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    first = run(few, path, "--only", "phantoms", "--methods", "fbp")
    first["rows"][0]["seconds"] = -1.0
    path.write_text(json.dumps(first))
    second = run(few, path, "--only", "phantoms", "--methods", "fbp;tv")
    assert second["rows"][0]["seconds"] == -1.0
    assert [row["method"] for row in second["tuning"]] == ["fbp", "tv"]
    again = run(few, path, "--only", "phantoms", "--methods", "fbp", "--again")
    assert all(row["seconds"] >= 0 for row in again["rows"])


def test_settings_are_chosen_on_images_that_do_not_judge() -> None:
    data = script("low_dose_data")
    real, _ = data.real_slices()
    for subjects in (data.phantoms(), real):
        names = data.split(subjects)
        assert not set(names["tune"]) & set(names["judge"])
    assert len({len(settings) for settings in script("low_dose_methods").METHODS.values()}) == 1


def test_a_slice_is_scanned_whole_and_judged_on_its_means() -> None:
    data = script("low_dose_data")
    array = np.zeros((64, 64))
    array[20:24, 32:36] = np.arange(16).reshape(4, 4) * 10
    subject = data.of_slice("a", array, 2.0)
    grid = subject.grid(16)
    truth = subject.truth(grid)
    assert truth.array[5, 8, 0] == 75
    assert truth.array[0, 0, 0] == -1000  # outside the circle
    geometry = fitted_geometry(grid, "parallel", 4)
    mass = subject.exact(geometry).sum(axis=2) * geometry.bin_width
    area = np.sum(truth.array.astype(float) / 1000 + 1) * 0.02 * grid.spacing[0] ** 2
    np.testing.assert_allclose(mass, area, rtol=2e-3)


def test_other_files_than_were_measured_are_refused(tmp_path: Path) -> None:
    data = script("low_dose_data")
    path = tmp_path / "Cranium.inv3"
    content = bytes(16)
    with gzip.open(path, "wb") as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo("a/matrix.dat")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(ValueError, match="not the one"):
        data.real_slices(cranium=path)


def test_what_is_not_given_is_noted() -> None:
    _, notes = script("low_dose_data").real_slices()
    assert any("--cranium" in note for note in notes)
    assert any("--chest" in note for note in notes)


def on_grid(phantom: Phantom, size: int = 128) -> tuple[Volume, Geometry]:
    subject = script("low_dose_data").of_phantom(phantom, 160.0)
    grid = subject.grid(size)
    return subject.truth(grid), grid


def test_modules_measure_what_a_blur_takes_away() -> None:
    from scipy.ndimage import gaussian_filter

    data, measures = script("low_dose_data"), script("low_dose_measures")

    def blurred(volume: Volume) -> Volume:
        return volume.with_array(gaussian_filter(volume.array, (2, 2, 0)))

    truth, _ = on_grid(data.edge_module())
    sharp, soft = measures.width([truth], 100.0), measures.width([blurred(truth)], 100.0)
    assert sharp < 2.0
    assert soft == pytest.approx(np.hypot(sharp, 2 * 1.25 * 2.563), rel=0.1)
    truth, _ = on_grid(data.lines())
    assert set(measures.bars([truth], truth).values()) == {1.0}
    assert measures.bars([blurred(truth)], truth)["0.3 lp/mm"] < 0.2
    truth, _ = on_grid(data.spots())
    assert measures.discs([truth, truth], truth)["20 HU 6 mm"] == [1.0, 0.0]
    assert measures.discs([blurred(truth)], truth)["20 HU 4 mm"][0] < 0.6


@pytest.mark.parametrize(
    ("name", "options", "ours"),
    [
        ("astra-fbp", {"FilterType": "ram-lak"}, ("fbp", {"window": "ram-lak"})),
        ("astra-sirt", {"iterations": 60}, ("sirt", {"iterations": 60})),
        ("skimage-iradon", {"filter_name": "ramp"}, ("fbp", {"window": "ram-lak"})),
        ("svmbir", {"snr_db": 40.0}, None),
    ],
)
def test_rivals_see_the_geometry_that_ours_sees(
    name: str, options: dict[str, Any], ours: tuple[str, dict[str, Any]] | None
) -> None:
    rivals = script("low_dose_rivals")
    if name.partition("-")[0] in rivals.missing():
        pytest.skip("not installed")
    inf = np.inf
    bodies = (
        Body(half_sizes=(70, 50, inf), density=1.0),
        Body(centre=(30, 10, 0), half_sizes=(10, 5, inf), turn=0.5, density=1.0),
    )
    subject = script("low_dose_data").of_phantom(Phantom(name="a", bodies=bodies), 160.0)
    grid = subject.grid(64)
    geometry = fitted_geometry(grid, "parallel", 90)
    scan = Scan(subject.exact(geometry).astype(np.float32), geometry, 1e6)
    truth = subject.truth(grid).array

    def error(image: Volume, turned: Any) -> float:
        return float(np.sqrt(np.mean((image.array - turned) ** 2)))

    image = rivals.rival(name, scan, grid, 1, options)
    for turned in (truth[::-1], truth[:, ::-1], truth[::-1, ::-1], truth.swapaxes(0, 1)):
        assert error(image, truth) < 0.7 * error(image, turned)
    if ours is not None:
        assert error(image, truth) < 1.15 * error(reconstruct(scan, grid, ours[0], **ours[1]).volume, truth)


def test_the_page_is_made_from_the_results() -> None:
    made = script("low_dose_page").page()
    assert (EVIDENCE.parent / "docs" / "low-dose-ct.md").read_text(encoding="utf-8") == made


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    module = script("low_dose_page")
    assert module.page(tmp_path / "none.json").count(module.MISSING) == 12


def test_the_speed_that_was_measured_is_told_beside_what_was_wanted(tmp_path: Path) -> None:
    """Of our kernels the last, which is the fastest."""
    module = script("ct_speed_page")
    row = {"geometry": "parallel", "size": 8, "shape": [60, 1, 12], "threads": 1, "forward_ms": 2.0}
    rows = [
        row | {"name": name, "back_ms": back, "ratio_to_astra": astra, "ratio_to_skimage": other}
        for name, back, astra, other in (
            ("generic", 9.0, 0.9, 0.5),
            ("avx2", 4.0, 0.26, None),
            ("astra_line", 9.5, 1.0, 0.6),
        )
    ]
    machine = {"processor": "P", "processors": 2}
    (tmp_path / "ct_projectors.json").write_text(json.dumps({"rows": rows, "machine": machine}))
    wanted = {"name": "edge-preserving-tv", "beside_threads": 2, "ms": 1500.0, "ratio_to_astra": 1.2}
    (tmp_path / "ct_methods.json").write_text(
        json.dumps({"rows": [wanted, wanted | {"name": "astra sirt, line, 100"}]})
    )
    text = module.section(tmp_path)
    assert "| parallel, avx2 | 1 | 2.0 | 4.0 | 0.260 (at most 0.25) | - |" in text
    assert "| edge-preserving-tv | 2 | 1.50 | 1.200 (at most 1) |" in text
    assert "generic" not in text
    assert "sirt, line" not in text
    assert module.section(tmp_path / "none").count("Not measured yet") == 3


def test_the_memory_that_was_measured_is_told_and_judged(tmp_path: Path) -> None:
    module, path = script("ct_memory_page"), tmp_path / "memory.json"
    row = {"kind": "cone", "size": 8, "slices": 4, "views": 30, "threads": 2, "sinogram_in_volumes": 0.3}
    rows = [
        row | {"method": "tv", "copies_of_volume": 4.0},
        row | {"method": "directional-tv", "copies_of_volume": 4.001, "finer": True},
    ]
    path.write_text(json.dumps({"rows": rows}))
    text = module.section(path)
    assert "| cone, 30 views | 8 x 8 x 4 | tv | 4.00 | 0.30 | yes |" in text
    assert "| cone, 30 views, finer voxels | 8 x 8 x 4 | directional-tv | 4.00 | 0.30 | no |" in text
    assert "2 threads" in text
    assert "Not measured yet" in module.section(tmp_path / "none.json")


def row(image: str, method: str, errors: list[float], data: str = "analytic phantom") -> dict[str, Any]:
    measured = {"rmse": errors, "ssim": [0.9], "edge_rmse": None, "flat_noise": [3.0], "seconds": 1.0}
    return {"data": data, "image": image, "views": 60, "photons": 1e5, "method": method, **measured}


def test_ratios_are_paired_by_noise_and_kinds_of_data_are_apart() -> None:
    module = script("low_dose_page")
    kept = {
        "rows": [
            row("a", "tv", [10.0, 20.0, 40.0]),
            row("a", "edge-preserving-tv", [5.0, 10.0, 20.0]),
            row("b", "tv", [10.0, 20.0, 40.0]),
            row("b", "edge-preserving-tv", [20.0, 40.0, 80.0]),
            row("c", "tv", [1.0], "real slice"),
        ]
    }
    found = module.ratios(module.at(kept, "analytic phantom", (60, 1e5)), "edge-preserving-tv", "tv")
    assert found == pytest.approx([1.0, 1.0, 1.0])
    text = module.of_kind(kept, "analytic phantom")
    assert "RMSE, c" not in text
    assert "| analytic phantom | a | no | tv | 0.6 | 0.50 (0.50 to 0.50) | yes |" in module.targets(kept)
    assert "| analytic phantom | b | no | tv | 0.6 | 2.00 (2.00 to 2.00) | no |" in module.targets(kept)
