from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from sagittal.case.store import CaseStore
from sagittal.reconstruction import read_scan
from sagittal.volume import Geometry, Volume, read_nifti, write_nifti
from sagittal.volume.standard_phantoms import smooth_regions
from sagittal.workbench.cli import app

GRID = Geometry.from_spacing((40, 40, 2), (6, 6, 6), (-117, -117, 0))


def sagittal(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def last_line(result: Any) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    image = tmp_path / "image.nii.gz"
    write_nifti(smooth_regions().rasterise(GRID), image)
    path = tmp_path / "scan.npz"
    how = ("--views", 24, "--photons", "2e4", "--slice", 1)
    told = last_line(sagittal("ct", "simulate", "--volume", image, *how, "--out", path, "--json"))
    assert told["geometry"] == "fan"
    assert told["shape"][:2] == [24, 1]
    return path


def test_a_scan_is_reconstructed_with_its_variance(scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nii.gz"
    told = last_line(
        sagittal("ct", "reconstruct", scan, "--method", "fbp", "--variance", "--out", out, "--json")
    )
    assert told["truncated"] == 0
    image = read_nifti(out)
    assert image.unit == "HU"
    assert image.variance is not None
    assert image.shape == (40, 40, 1)
    assert abs(float(np.median(image.array[18:22, 26:29]))) < 300


@pytest.mark.parametrize("method", ["sirt", "tv"])
def test_torch_projects_where_it_is_asked_to(scan: Path, tmp_path: Path, method: str) -> None:
    pytest.importorskip("torch")
    images = []
    for device in ([], ["--device", "cpu"]):
        out = tmp_path / f"{len(images)}.nii.gz"
        how = ("--method", method, "--iterations", 4, *device, "--out", out)
        last_line(sagittal("ct", "reconstruct", scan, *how, "--json"))
        images.append(read_nifti(out).array)
    assert np.abs(images[0] - images[1]).max() < 0.5
    assert not np.array_equal(*images)


def test_the_variance_of_total_variation_says_what_it_is_made_of(scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nii.gz"
    how = ("--iterations", 5, "--variance", "--doubt", "bootstrap", "--draws", 3)
    told = last_line(sagittal("ct", "reconstruct", scan, "--method", "tv", *how, "--out", out, "--json"))
    assert told["doubt"]["kind"] == "bootstrap"
    assert told["doubt"]["draws"] == 3
    assert read_nifti(out).variance is not None


def test_options_reach_the_method(scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nii.gz"
    common = ("ct", "reconstruct", scan, "--out", out, "--json")
    assert last_line(sagittal(*common, "--method", "sirt", "--iterations", 3))["iterations"] == 3
    found = last_line(
        sagittal(
            *common, "--method", "edge-preserving-tv", "--delta", 50, "--roughness", 9, "--iterations", 4
        )
    )
    assert found["iterations"] <= 4
    assert read_nifti(out).facts["roughness"] == 9


def test_rays_are_corrected_for_edges_where_the_method_can(scan: Path, tmp_path: Path) -> None:
    images = []
    for number, more in enumerate(([], ["--edge-gradient"])):
        out = tmp_path / f"{number}.nii.gz"
        common = ("ct", "reconstruct", scan, "--out", out, "--iterations", 4)
        assert sagittal(*common, *more).exit_code == 0
        images.append(read_nifti(out).array)
    assert 0 < np.abs(images[1] - images[0]).mean() < 20
    out = tmp_path / "none.nii.gz"
    done = sagittal("ct", "reconstruct", scan, "--out", out, "--method", "sirt", "--edge-gradient")
    assert done.exit_code == 2
    assert "the method has no such option" in done.stderr
    assert not out.exists()


def test_methods_are_compared(scan: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out, figure = tmp_path / "out.json", tmp_path / "out.png"
    done = sagittal("ct", "compare", scan, "--methods", "fbp,tv", "--json", out, "--figure", figure)
    assert done.exit_code == 0, done.output
    rows = json.loads(out.read_text())["rows"]
    assert [row["method"] for row in rows] == ["fbp", "tv"]
    assert set(rows[0]) >= {"rmse", "ssim", "edge_rmse", "flat_noise", "seconds"}
    assert rows[1]["rmse"] < rows[0]["rmse"]
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_an_image_becomes_part_of_a_case(scan: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with CaseStore(store) as cases:
        case_id = cases.create_case("phantom")
    told = last_line(
        sagittal("ct", "reconstruct", scan, "--method", "fbp", "--case", case_id, "--store", store, "--json")
    )
    with CaseStore(store, read_only=True) as cases:
        case = cases.case(case_id)
    assert told["run"] == case.runs[-1].number
    assert [run.step for run in case.runs] == ["receive", "reconstruct-ct"]
    assert case.latest("ct") is not None
    finding = case.standing("simulated-ct.reconstruction")[0].content
    assert finding.statement.startswith("CT reconstructed by fbp from 24 fan-beam views")
    assert "simulated" in finding.caution


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "magic", "--out", "x.nii.gz"), "there is no such method; got magic"),
        (("--variance", "--doubt", "none", "--out", "x.nii.gz"), "there is no such doubt; got none"),
        (("--method", "fbp"), "--out: the image has nowhere to go"),
        (("--out", "x.txt"), "--out: the name has another ending; got x.txt; expected .nii or .nii.gz"),
        (("--out", "."), "--out: this is a folder; got ."),
        (("--out", "file/x.nii.gz"), "--out: it would lie in a file; got file/x.nii.gz"),
        (("--out", "x.nii.gz", "--unseen", "u.npz"), "--unseen: the name has another ending; got u.npz"),
        (("--doubt", "bootstrap", "--out", "x.nii.gz"), "--doubt: no variance is asked for"),
        (("--draws", 5, "--out", "x.nii.gz"), "--draws: no variance is asked for"),
        (
            ("--method", "fbp", "--roughness", 3, "--out", "x.nii.gz"),
            "fbp: the method has no such option; got roughness; expected window, cutoff, truncation",
        ),
        (("--iterations", 0, "--out", "x.nii.gz"), "iterations: there are no iterations; got 0"),
    ],
)
def test_what_cannot_be_reconstructed_is_refused(
    scan: Path, arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    there = sorted(tmp_path.iterdir())
    done = sagittal("ct", "reconstruct", scan, *arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--photons", "1e30"), "photons: more photons would be counted than can be drawn; got 1e+30"),
        (("--photons", "nan"), "photons: photons must be a positive number; got nan; expected what a bin"),
        (("--electronic", "-1"), "electronic: the noise must be a number of 0 or more; got -1.0; expected"),
        (("--geometry", "spiral"), "geometry: there is no such geometry; got spiral"),
        (("--views", "0"), "views: there are no views; got 0; expected 1 or more"),
        (("--views", "1000000000"), "views: there are too many views; got 1000000000; expected 1000000 at"),
        (("--out", "."), "--out: this is a folder; got ."),
    ],
)
def test_a_scan_that_cannot_be_made_is_refused_and_nothing_is_written(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_nifti(smooth_regions().rasterise(GRID), tmp_path / "image.nii.gz")
    there = sorted(tmp_path.iterdir())
    out = () if "--out" in arguments else ("--out", "s.npz")
    done = sagittal("ct", "simulate", "--volume", "image.nii.gz", "--slice", 0, *arguments, *out)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert sorted(tmp_path.iterdir()) == there


def test_a_place_where_one_may_not_look_is_told_before_anything_is_computed(
    scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("sagittal.reconstruction.reconstruct", None)
    monkeypatch.setattr(Path, "is_dir", forbidden)
    done = sagittal("ct", "reconstruct", scan, "--out", scan.parent / "closed" / "x.nii.gz")
    assert done.exit_code == 2
    assert "x.nii.gz" in "".join(done.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", ","), "--methods: there is nothing to compare; got ,; expected fbp, sirt"),
        (("--methods", "fbp,best"), "--methods: there is no such method; got best; expected fbp, sirt"),
        (("--methods", "fbp", "--json", "."), "--json: this is a folder; got ."),
        (("--methods", "fbp", "--figure", "."), "--figure: this is a folder; got ."),
    ],
)
def test_what_cannot_be_compared_is_refused(
    scan: Path, arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = sorted(tmp_path.iterdir())
    done = sagittal("ct", "compare", scan, *arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert sorted(tmp_path.iterdir()) == there


def test_a_slice_that_there_is_not_and_a_bad_scan_are_refused(tmp_path: Path) -> None:
    image = tmp_path / "image.nii.gz"
    write_nifti(smooth_regions().rasterise(GRID), image)
    done = sagittal("ct", "simulate", "--volume", image, "--slice", 2, "--out", tmp_path / "s.npz")
    assert done.exit_code == 2
    assert "--slice: there is no such slice; got 2; expected 0 to 1" in done.output
    bad = tmp_path / "bad.npz"
    bad.write_text("no scan")
    done = sagittal("ct", "compare", bad)
    assert done.exit_code == 2
    assert "no whole .npz file" in done.output


def test_a_tilted_slice_is_scanned_in_its_own_plane(tmp_path: Path) -> None:
    upright = smooth_regions().rasterise(Geometry.from_spacing((40, 40, 1), (6, 6, 6), (-117, -117, 0)))
    turn = np.eye(4)
    turn[1:3, 1:3] = [[0.96, -0.28], [0.28, 0.96]]
    tilted = Geometry(upright.shape, turn @ upright.geometry.affine)
    for name, image in (("upright", upright), ("tilted", upright.replace(geometry=tilted))):
        write_nifti(image, tmp_path / f"{name}.nii.gz")
        done = sagittal(
            "ct", "simulate", "--volume", tmp_path / f"{name}.nii.gz", "--out", tmp_path / f"{name}.npz"
        )
        assert done.exit_code == 0, done.output
        assert ("tilted: it is scanned in its own plane" in done.output) == (name == "tilted")
    rays = [read_scan(tmp_path / f"{name}.npz").scan.sinogram for name in ("upright", "tilted")]
    assert np.array_equal(*rays)


def test_what_lies_below_air_is_scanned_as_air(tmp_path: Path) -> None:
    image = smooth_regions().rasterise(GRID)
    padded = image.array.copy()
    padded[:2] = -3024
    write_nifti(image.replace(array=padded), tmp_path / "image.nii.gz")
    done = sagittal("ct", "simulate", "--volume", tmp_path / "image.nii.gz", "--out", tmp_path / "scan.npz")
    assert done.exit_code == 0, done.output
    truth = read_scan(tmp_path / "scan.npz").truth
    assert truth is not None
    assert truth.array.min() == -1000


def test_an_image_without_a_unit_or_air_is_no_ct(tmp_path: Path) -> None:
    write_nifti(Volume(np.ones(GRID.shape, np.float32), GRID), tmp_path / "t1.nii.gz")
    done = sagittal("ct", "simulate", "--volume", tmp_path / "t1.nii.gz", "--out", tmp_path / "scan.npz")
    assert done.exit_code == 2
    assert "does not look like CT; got nothing below 0; expected HU" in done.output
    assert not (tmp_path / "scan.npz").exists()


def spoilt(path: Path, *, header: Any = None, **arrays: Any) -> Path:
    """Write a scan file again with other arrays, and with another header."""
    with np.load(path) as stored:
        members = {name: stored[name] for name in stored.files}
    if header is not None:
        told = json.loads(members["header"].tobytes())
        header(told)
        members["header"] = np.frombuffer(json.dumps(told).encode(), np.uint8)
    members |= {name: change(members[name]) for name, change in arrays.items()}
    np.savez(path, **members)
    return path


def with_nan(rays: Any) -> Any:
    rays = rays.copy()
    rays[3, 0, 5:9] = np.nan
    rays[7] = 0.25
    return rays


def reconstructed(scan: Path, *more: object) -> Any:
    return sagittal("ct", "reconstruct", scan, "--method", "fbp", "--out", scan.parent / "out.nii.gz", *more)


def test_rays_that_were_not_measured_are_left_out_and_counted(scan: Path) -> None:
    bins = read_scan(scan).scan.geometry.bins
    done = reconstructed(spoilt(scan, sinogram=with_nan))
    assert done.exit_code == 0, done.output
    assert f"{4 + bins} rays were not measured, 1 whole view among them: they are left out" in done.output
    told = last_line(reconstructed(scan, "--json"))
    assert (told["missing_rays"], told["missing_views"]) == (4 + bins, 1)


def test_a_case_keeps_how_many_rays_were_missing(scan: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with CaseStore(store) as cases:
        case_id = cases.create_case("phantom")
    last_line(reconstructed(spoilt(scan, sinogram=with_nan), "--case", case_id, "--store", store, "--json"))
    with CaseStore(store, read_only=True) as cases:
        case = cases.case(case_id)
    codes = ("simulated-ct.reconstruction", "image.reconstruction")
    finding = next(f.content for code in codes for f in case.standing(code))
    assert finding.details["missing_rays"] > 4
    assert "rays were not measured." in finding.caution


def test_what_is_not_seen_from_every_side_is_told_and_written(scan: Path) -> None:
    def narrower(header: Any) -> None:
        header["geometry"]["bins"] -= 30

    mask = scan.parent / "unseen.nii.gz"
    done = reconstructed(
        spoilt(scan, header=narrower, sinogram=lambda rays: rays[..., 15:-15]), "--unseen", mask, "--variance"
    )
    assert done.exit_code == 0, done.output
    assert "the object reaches beyond the detector in 58% of the views; 49% of the voxels" in done.output
    hidden = read_nifti(mask).array
    image = read_nifti(scan.parent / "out.nii.gz")
    assert hidden[20, 20, 0] == 0
    assert hidden[0, 0, 0] == 1
    assert image.variance is not None
    assert image.variance[hidden > 0].min() >= 1000**2
    assert image.variance[20, 20, 0] < 1000**2


def test_a_mask_of_nothing_is_written_where_all_is_seen(scan: Path) -> None:
    mask = scan.parent / "unseen.nii.gz"
    assert last_line(reconstructed(scan, "--unseen", mask, "--json"))["unseen"] == 0
    assert read_nifti(mask).array.max() == 0


def test_a_gantry_that_turns_the_other_way_is_told(scan: Path) -> None:
    def backwards(header: Any) -> None:
        header["geometry"]["angles"] = [-angle for angle in header["geometry"]["angles"]]

    assert "turned the other way" not in reconstructed(scan).output
    assert (
        "agree far better if the gantry turned the other way"
        in reconstructed(spoilt(scan, header=backwards)).output
    )


def degrees(header: Any) -> None:
    header["geometry"]["angles"] = np.rad2deg(header["geometry"]["angles"]).tolist()


def one_angle(header: Any) -> None:
    header["geometry"]["angles"] = [1.0] * len(header["geometry"]["angles"])


def no_photons(header: Any) -> None:
    header["photons"] = 0


def two_slices(header: Any) -> None:
    header["grid"]["shape"][2] = 2


def tilted(header: Any) -> None:
    header["grid"]["affine"][2][0] = 0.5


def near_source(header: Any) -> None:
    header["geometry"] |= {"source_distance": 150.0, "bin_width": 1.0}


def short_turn(header: Any) -> None:
    header["geometry"]["angles"] = (np.asarray(header["geometry"]["angles"]) / 4).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"header": degrees}, "the view angles look like degrees; got 0 to 345; expected radians"),
        ({"header": one_angle}, "the gantry does not turn: all views have one angle"),
        ({"header": short_turn}, "the views cover too little of a turn; got 90 degrees"),
        ({"header": no_photons}, "photons must be a positive number; got 0"),
        ({"sinogram": lambda rays: rays[:-1]}, "have another shape than the geometry; got (23, 1,"),
        ({"sinogram": lambda rays: rays * np.nan}, "no ray was measured"),
        ({"sinogram": lambda rays: rays.astype(complex)}, "a field holds no numbers; got complex"),
        ({"header": two_slices}, "do not have the grid's shape"),
        ({"header": tilted}, "the grid's slices do not lie across the scanner's axis"),
        ({"header": near_source}, "the source turns through the image"),
    ],
)
def test_a_scan_that_cannot_be_is_refused(scan: Path, change: dict[str, Any], message: str) -> None:
    done = reconstructed(spoilt(scan, **change))
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.output.split())
    assert not (scan.parent / "out.nii.gz").exists()


def test_a_scan_file_that_is_cut_off_is_refused(scan: Path) -> None:
    scan.write_bytes(scan.read_bytes()[:-300])
    done = reconstructed(scan)
    assert done.exit_code == 2
    assert "this is no whole .npz file" in " ".join(done.output.split())


def test_a_scan_larger_than_the_memory_is_refused_with_the_estimate(
    scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 3 * sum(array.nbytes for array in np.load(scan).values())
    monkeypatch.setattr("sagittal.core.memory.available_memory", lambda: size)
    done = reconstructed(scan)
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    assert "the reconstruction by fbp does not fit into memory; got about" in said
    assert "coarser grid" in said
    assert not (scan.parent / "out.nii.gz").exists()


def test_a_helix_is_not_for_fbp(tmp_path: Path) -> None:
    image, path = tmp_path / "image.nii.gz", tmp_path / "scan.npz"
    write_nifti(smooth_regions().rasterise(GRID), image)
    last_line(
        sagittal(
            "ct", "simulate", "--volume", image, "--geometry", "cone", "--views", 8, "--out", path, "--json"
        )
    )

    def helix(header: Any) -> None:
        header["geometry"]["pitch"] = 5.0

    done = reconstructed(spoilt(path, header=helix))
    assert done.exit_code == 2
    assert "fdk is for circular cone beams; got helix" in " ".join(done.output.split())


def test_an_image_in_another_unit_is_not_scanned(tmp_path: Path) -> None:
    image = tmp_path / "pet.nii.gz"
    write_nifti(Volume(np.ones(GRID.shape, np.float32), GRID, unit="SUV"), image)
    done = sagittal("ct", "simulate", "--volume", image, "--out", tmp_path / "scan.npz")
    assert done.exit_code == 2
    assert "the voxels are no attenuation; got SUV" in " ".join(done.output.split())


@pytest.mark.parametrize("photons", ["0", "-3"])
def test_a_scan_without_photons_is_not_simulated(tmp_path: Path, photons: str) -> None:
    image = tmp_path / "image.nii.gz"
    write_nifti(smooth_regions().rasterise(GRID), image)
    how = ("--slice", 0, "--photons", photons)
    done = sagittal("ct", "simulate", "--volume", image, *how, "--out", tmp_path / "scan.npz")
    assert done.exit_code == 2
    assert "photons must be a positive number" in " ".join(done.output.split())
