"""Heads registered to an atlas from the command line: one, and many."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_phantom import head, head_labels, upright
from known_fields import bump
from sagittal.case.store import CaseStore
from sagittal.volume import Volume, read_field, write_nifti
from sagittal.workflow import artifacts

pytest.importorskip("torch")
pytest.importorskip("scipy")

SAGITTAL = str(Path(sys.executable).parent / "sagittal")


def sagittal(*arguments: object) -> tuple[int, str, str]:
    done = subprocess.run([SAGITTAL, *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas with labels, and three simulated subjects of it."""
    folder = tmp_path_factory.mktemp("atlas")
    grid = upright(6.0)
    write_nifti(head(grid), folder / "atlas.nii.gz")
    write_nifti(head_labels(grid), folder / "labels.nii.gz")
    (folder / "subjects").mkdir()
    for seed in range(3):
        warp = bump(8.0, [70, 75, 65], seed=seed)
        write_nifti(head(grid, warp, noise=3, seed=seed), folder / "subjects" / f"s{seed}.nii.gz")
    for sidecar in folder.rglob("*.json"):
        sidecar.unlink()
    return folder


def test_a_batch_of_subjects_is_registered_to_an_atlas(folder: Path, tmp_path: Path) -> None:
    arguments = ("--steps", "atlas,report", "--model", "none", "--workers", 1, "--store", tmp_path / "store")
    atlas = ("--atlas", folder / "atlas.nii.gz", "--atlas-labels", folder / "labels.nii.gz")
    code, out, error = sagittal("batch", folder / "subjects", *arguments, *atlas, "--json")
    assert code == 0, error
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert (result["done"], result["failed"]) == (3, 0)
    with CaseStore(tmp_path / "store", read_only=True) as store:
        for one in result["cases"]:
            case = store.case(one["case"])
            codes = [finding.content.code for finding in case.standing("atlas.")]
            assert codes == ["atlas.registration", "atlas.volume-change", *["atlas.label"] * 3]
            artifact = case.latest("atlas-labels")
            assert artifact is not None
            labels = artifacts.load(store.objects, artifact)
            assert isinstance(labels, Volume)
            warp = bump(8.0, [70, 75, 65], seed=int(one["source"][1]))
            truth = head_labels(labels.geometry, warp).array
            assert np.mean(labels.array == truth) > 0.9
    code, out, error = sagittal("batch", folder / "subjects", *arguments, *atlas, "--json")
    again = json.loads(out.splitlines()[-1])
    assert [one["case"] for one in again["cases"]] == [one["case"] for one in result["cases"]]


def test_a_run_registers_its_head_and_writes_the_map(folder: Path, tmp_path: Path) -> None:
    code, out, error = sagittal(
        *("run", "--t1", folder / "subjects" / "s0.nii.gz", "--model", "none", "--json"),
        *("--atlas", folder / "atlas.nii.gz", "--atlas-labels", folder / "labels.nii.gz"),
        *("--store", tmp_path / "store", "--out", tmp_path / "out"),
    )
    assert code == 0, error
    assert json.loads(out.splitlines()[-1])["report"]
    assert read_field(tmp_path / "out" / "nifti" / "to-atlas.nii.gz").folds == 0
    assert (tmp_path / "out" / "dicom" / "t1-registration" / "deformable.dcm").is_file()
    page = (tmp_path / "out" / "report.html").read_text()
    section = page[page.index('aria-labelledby="atlas"') :]
    assert "Labels of the atlas" in section
    assert "label 3</span>" in section
    assert "no change over time and no disease" in section


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("batch", "SUBJECTS", "--steps", "tissue,report", "--atlas", "ATLAS"), "no step registers"),
        (("batch", "SUBJECTS", "--steps", "atlas", "--atlas", "nowhere.nii.gz"), "there is no such file"),
        (("batch", "SUBJECTS", "--steps", "atlas", "--atlas-labels", "ATLAS"), "labels belong to an atlas"),
        (("run", "--ct", "ATLAS", "--out", "out", "--atlas", "ATLAS"), "no head to register"),
    ],
)
def test_what_cannot_be_registered_is_refused_before_anything_runs(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    places = {"SUBJECTS": folder / "subjects", "ATLAS": folder / "atlas.nii.gz", "out": tmp_path / "out"}
    code, _, error = sagittal(
        *(places.get(one, one) for one in arguments), "--store", tmp_path / "s", "--model", "none"
    )
    assert code != 0
    assert said in error
    assert not (tmp_path / "s").exists()
