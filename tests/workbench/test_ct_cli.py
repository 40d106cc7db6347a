from __future__ import annotations

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
    ],
)
def test_what_cannot_be_reconstructed_is_refused(
    scan: Path, arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = sagittal("ct", "reconstruct", scan, *arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "x.nii.gz").exists()


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
