from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from known_fields import bump, centred, on_grid, turn
from sagittal.volume import (
    DisplacementField,
    Geometry,
    Volume,
    read_field,
    read_nifti,
    write_field,
    write_nifti,
    write_vectors,
)
from sagittal.workbench.cli import app

LEFT_HANDED = turn(0.5, 0.3) @ np.diag([-1.0, 1, 1])
GRID = centred((20, 18, 12), (1, 1, 10), LEFT_HANDED)


def sagittal(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["field", *(str(argument) for argument in arguments)])


def told(*arguments: object) -> Any:
    result = sagittal(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def refused(*arguments: object) -> str:
    result = sagittal(*arguments)
    assert result.exit_code == 2, result.output
    return str(result.stderr)


def smooth(seed: int, grid: Geometry = GRID) -> DisplacementField:
    half = (np.array(grid.shape) - 1) / 2 * grid.spacing
    one = bump(1.5, np.maximum(half, 0.5), seed)
    return on_grid(lambda p: one(p @ grid.direction) @ grid.direction.T, grid)


@pytest.fixture
def field(tmp_path: Path) -> Path:
    return write_field(smooth(0), tmp_path / "field.nii.gz")


def test_a_field_is_taken_apart_and_put_together(field: Path, tmp_path: Path) -> None:
    parts = tmp_path / "jacobian.nii.gz", tmp_path / "curl.nii.gz"
    grown = told("jacobian", field, "--out", parts[0])
    told("curl", field, "--out", parts[1])
    assert grown["folds"] == 0
    assert grown["jacobian_min"] < 0.8
    found = told("construct", "--jacobian", parts[0], "--curl", parts[1], "--out", tmp_path / "again.nii.gz")
    assert found["stopped"] == "converged"
    again = read_field(tmp_path / "again.nii.gz")
    assert np.abs(again.vectors - smooth(0).vectors).max() < 0.01


def test_the_logarithm_is_that_of_the_determinant(field: Path, tmp_path: Path) -> None:
    told("jacobian", field, "--out", tmp_path / "a.nii.gz")
    told("jacobian", field, "--log", "--out", tmp_path / "b.nii.gz")
    plain, log = read_nifti(tmp_path / "a.nii.gz"), read_nifti(tmp_path / "b.nii.gz")
    assert np.allclose(np.log(plain.array), log.array)


def test_an_inverse_leads_back(field: Path, tmp_path: Path) -> None:
    out = tmp_path / "inverse.nii.gz"
    assert told("invert", field, "--out", out)["failed"] == 0
    both = told("compose", field, out, "--out", tmp_path / "both.nii.gz")
    assert both["max_mm"] < 0.01
    assert told("measure", out)["mean_mm"] > 0.1


def test_where_there_is_no_inverse_is_written(tmp_path: Path) -> None:
    grid = Geometry.from_spacing((21, 6, 6))
    vectors = np.zeros((3, *grid.shape))
    vectors[0, 10] = -4
    path = write_field(DisplacementField(vectors, grid), tmp_path / "folded.nii.gz")
    result = sagittal("invert", path, "--out", tmp_path / "out.nii", "--failed", tmp_path / "failed.nii.gz")
    assert result.exit_code == 0
    assert "may have no inverse" in result.stderr
    failed = read_nifti(tmp_path / "failed.nii.gz").array
    assert (failed[6:9] == 1).all()
    assert (failed[14:] == 0).all()


def test_an_image_is_warped(field: Path, tmp_path: Path) -> None:
    write_nifti(Volume(np.full(GRID.shape, 7, np.uint8), GRID), tmp_path / "labels.nii.gz")
    out = tmp_path / "warped.nii.gz"
    told("warp", tmp_path / "labels.nii.gz", field, "--interpolation", "label", "--out", out)
    assert read_nifti(out).array[10, 9, 6] == 7
    assert "unknown interpolation" in refused(
        "warp", tmp_path / "labels.nii.gz", field, "--interpolation", "quintic", "--out", out
    )


def test_fields_are_averaged(tmp_path: Path) -> None:
    paths = [write_field(smooth(n), tmp_path / f"{n}.nii.gz") for n in range(3)]
    found = told("average", *paths, "--out", tmp_path / "mean.nii.gz")
    wanted = np.mean([smooth(n).determinant for n in range(3)], axis=0)
    assert found["folds"] == 0
    assert np.abs(read_field(tmp_path / "mean.nii.gz").determinant - wanted).mean() < 2e-3


def test_a_slice_and_a_volume_do_not_go_together(field: Path, tmp_path: Path) -> None:
    grid = centred((20, 18, 1), (1, 1, 10), LEFT_HANDED)
    flat = write_field(DisplacementField.identity(grid), tmp_path / "flat.nii.gz")
    assert "out of the slice" in refused("compose", flat, field, "--out", tmp_path / "o.nii.gz")
    assert "different shapes" in refused("average", field, flat, "--out", tmp_path / "o.nii.gz")
    told("jacobian", field, "--out", tmp_path / "j.nii.gz")
    told("curl", flat, "--out", tmp_path / "c.nii.gz")
    asked = ("construct", "--jacobian", tmp_path / "j.nii.gz", "--curl", tmp_path / "c.nii.gz")
    assert "different shapes" in refused(*asked, "--out", tmp_path / "o.nii.gz")
    assert not (tmp_path / "o.nii.gz").exists()


def test_what_is_no_field_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image.nii.gz"
    write_nifti(Volume(np.ones(GRID.shape), GRID), image)
    out = tmp_path / "o.nii.gz"
    assert "not 5-D" in refused("jacobian", image, "--out", out)
    assert "no such file" in refused("curl", tmp_path / "none.nii", "--out", out)
    vectors = np.zeros((3, *GRID.shape))
    vectors[0, 3, 3, 3] = np.nan
    write_vectors(vectors, GRID, tmp_path / "nan.nii.gz")
    assert "not finite" in refused("invert", tmp_path / "nan.nii.gz", "--out", out)
    negative = Volume(np.full(GRID.shape, -1.0), GRID)
    write_nifti(negative, tmp_path / "negative.nii.gz")
    assert "not positive" in refused("construct", "--jacobian", tmp_path / "negative.nii.gz", "--out", out)
    assert not out.exists()
