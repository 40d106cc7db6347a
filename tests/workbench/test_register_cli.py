from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from known_fields import bump, centred, on_grid, turn
from sagittal.volume import DisplacementField, Geometry, Volume, read_field, read_nifti, write_nifti
from sagittal.volume.field_maps import inside, places
from sagittal.workbench.cli import app

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("one_thread")

GRID = centred((30, 28, 10), (2, 2, 6), np.diag([-1.0, 1, 1]))


def sagittal(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["register", *(str(argument) for argument in arguments)])


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A moving image, a fixed image of one slab in two shades, and labels of the moving one."""
    index = np.stack(np.meshgrid(*map(np.arange, GRID.shape), indexing="ij"), -1)
    x, y, z = np.moveaxis(GRID.index_to_world(index), -1, 0)
    body = (np.abs(x) < 20) & (np.abs(y) < 18) & (np.abs(z) < 20)
    shade = 100 * body + 60 * (body & (np.hypot(x - 4, y) < 9)) + 5 * np.sin(x / 3) * np.cos(y / 4) * body
    fixed = Volume(shade.astype(np.float32), GRID)
    smooth = bump(12, (30, 28, 30), 3)
    warp = on_grid(smooth, GRID).exponentiate()
    paths = tmp_path / "moving.nii.gz", tmp_path / "fixed.nii.gz", tmp_path / "labels.nii.gz"
    write_nifti(warp.warp(fixed), paths[0])
    write_nifti(fixed, paths[1])
    write_nifti(warp.warp(fixed.with_array((shade > 130).astype(np.uint8)), "label"), paths[2])
    return paths


def dice(a: Any, b: Any) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def test_an_image_and_its_labels_are_brought_over(images: Any, tmp_path: Path) -> None:
    moving, fixed, labels = images
    out, told_in = tmp_path / "out", tmp_path / "told.json"
    result = sagittal(moving, fixed, "--labels", labels, "--out", out, "--json", told_in)
    assert result.exit_code == 0, result.output
    told = json.loads(told_in.read_text())
    assert told["folds"] == 0
    assert told["problems"] == []
    error = read_nifti(out / "error.nii.gz")
    assert error.unit == "mm"
    assert told["expected_error_mm"] == pytest.approx(float(np.median(error.array)))
    wanted, before = read_nifti(fixed).array, read_nifti(moving).array
    warped, carried = read_nifti(out / "warped.nii.gz").array, read_nifti(out / "labels.nii.gz").array
    assert np.abs(warped - wanted).mean() < 0.5 * np.abs(before - wanted).mean()
    start = dice(read_nifti(labels).array > 0, wanted > 130)
    assert dice(carried > 0, wanted > 130) > max(0.9, start)
    field, inverse = read_field(out / "field.nii.gz"), read_field(out / "inverse.nii.gz")
    lands = inside(places(field.vectors, GRID.affine, inverse.geometry.affine), inverse.geometry.shape)
    missed = inverse.compose(field).magnitude[lands].mean()
    assert missed < 0.2
    assert told["inverse_consistency_mm"] == pytest.approx(missed, rel=1e-3)
    assert np.allclose(read_nifti(out / "log_jacobian.nii.gz").array, field.log_jacobian().array, atol=1e-4)


def test_an_affine_map_alone_is_affine(images: Any, tmp_path: Path) -> None:
    result = sagittal(*images[:2], "--method", "affine", "--out", tmp_path, "--json", "-")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    field = read_field(tmp_path / "field.nii.gz")
    plain = DisplacementField.from_affine(told["affine"], GRID)
    assert np.allclose(field.vectors, plain.vectors, atol=1e-3)


def test_what_cannot_be_registered_is_refused(images: Any, tmp_path: Path) -> None:
    moving, fixed, _ = images
    out = tmp_path / "out"
    for given, said in (
        (("--measure", "likeness"), "no such similarity"),
        (("--method", "magic"), "no such method"),
    ):
        result = sagittal(moving, fixed, *given, "--out", out)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
        assert not out.exists()


def bad_files(folder: Path, moving: Path) -> None:
    """Files that no registration can use, each wrong in a way of its own."""
    nibabel = pytest.importorskip("nibabel")
    values = read_nifti(moving).array.astype(np.float32)
    holed = values.copy()
    holed[3, 4, 5] = np.nan
    away = GRID.affine.copy()
    away[:3, 3] += 900
    ones = np.ones(GRID.shape, np.uint8)
    for name, array, affine in (
        ("holed", holed, GRID.affine),
        ("no-voxels", values[:0], GRID.affine),
        ("constant", np.full(GRID.shape, 7, np.float32), GRID.affine),
        ("slice", values[:, :, 4:5], GRID.affine),
        ("four", np.stack([values, values], -1), GRID.affine),
        ("away", ones, away),
        ("nothing", 0 * ones, GRID.affine),
        ("flat", ones[:, :, :1], GRID.affine),
        ("parts", np.full(GRID.shape, 0.5, np.float32), GRID.affine),
    ):
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / f"{name}.nii.gz")
    (folder / "empty.nii.gz").touch()
    (folder / "text.nii.gz").write_text("not an image")
    (folder / "cut.nii.gz").write_bytes(moving.read_bytes()[:-200])


IMAGES_REFUSED = [
    ("none", ["there is no such file"]),
    ("empty", ["the file is empty", "0 bytes", "NIfTI"]),
    ("text", ["the format is not supported", "not an image", "NIfTI"]),
    ("cut", ["truncated", "a complete file"]),
    ("no-voxels", ["the dimensions are impossible", "0, 28, 10", "positive"]),
    ("holed", ["voxels are not finite", "1 of 8400", "nan at (3, 4, 5)"]),
    ("constant", ["the image is constant", "7.0", "a contrast"]),
    ("four", ["the image is not 3-D", "(30, 28, 10, 2)", "3 axes"]),
]
MASKS_REFUSED = [
    ("none", ["there is no such file"]),
    ("holed", ["voxels are not finite", "nan at (3, 4, 5)"]),
    ("nothing", ["leaves nothing of the image", "0 voxels above 0", "1 or more"]),
    ("away", ["leaves nothing of the image", "8400 voxels above 0", "origin=(", "1 or more"]),
    ("flat", ["not as many dimensions as its image", "(30, 28, 1)", "(30, 28, 10)"]),
]


@pytest.mark.parametrize(("wrong", "said"), IMAGES_REFUSED, ids=[name for name, _ in IMAGES_REFUSED])
def test_an_image_that_is_refused_is_named(images: Any, tmp_path: Path, wrong: str, said: Any) -> None:
    bad_files(tmp_path, images[0])
    bad, out = tmp_path / f"{wrong}.nii.gz", tmp_path / "out"
    for part, given in (("moving", (bad, images[1])), ("fixed", (images[0], bad))):
        result = sagittal(*given, "--method", "affine", "--out", out)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith(f"sagittal: {part} image {bad}: ")
        assert all(each in result.stderr for each in said), result.stderr
        assert not out.exists()


@pytest.mark.parametrize(("wrong", "said"), MASKS_REFUSED, ids=[name for name, _ in MASKS_REFUSED])
def test_a_mask_that_is_refused_is_named(images: Any, tmp_path: Path, wrong: str, said: Any) -> None:
    bad_files(tmp_path, images[0])
    bad, out = tmp_path / f"{wrong}.nii.gz", tmp_path / "out"
    for part in ("moving", "fixed"):
        result = sagittal(*images[:2], f"--{part}-mask", bad, "--method", "affine", "--out", out)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith(f"sagittal: {part} mask {bad}: ")
        assert all(each in result.stderr for each in said), result.stderr
        assert not out.exists()


def test_images_that_do_not_fit_are_both_named(images: Any, tmp_path: Path) -> None:
    bad_files(tmp_path, images[0])
    bad = tmp_path / "slice.nii.gz"
    result = sagittal(bad, images[1], "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert f"fixed image {images[1]}, moving image {bad}: the images do not have as many" in result.stderr
    assert "got (30, 28, 10) and (30, 28, 1); expected two slices, or two volumes" in result.stderr


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("parts", ["labels are not whole numbers", "0.5"]),
        ("away", ["the map leads nowhere into the image", "overlap"]),
        ("holed", ["voxels are not finite"]),
    ],
)
def test_labels_that_are_refused_are_named(images: Any, tmp_path: Path, wrong: str, said: Any) -> None:
    bad_files(tmp_path, images[0])
    bad, out = tmp_path / f"{wrong}.nii.gz", tmp_path / "out"
    result = sagittal(*images[:2], "--labels", bad, "--method", "affine", "--out", out)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"sagittal: labels {bad}: ")
    assert all(each in result.stderr for each in said), result.stderr
    assert not out.exists()


def test_whole_labels_may_be_stored_as_floats(images: Any, tmp_path: Path) -> None:
    moving, fixed, labels = images
    floats = tmp_path / "floats.nii.gz"
    write_nifti(Volume(read_nifti(labels).array.astype(np.float32) * 7, GRID), floats)
    out = tmp_path / "out"
    result = sagittal(moving, fixed, "--method", "affine", "--labels", floats, "--out", out)
    assert result.exit_code == 0, result.output
    assert set(np.unique(read_nifti(out / "labels.nii.gz").array)) == {0, 7}


def test_an_image_far_away_on_a_left_handed_oblique_thick_grid_is_found(images: Any, tmp_path: Path) -> None:
    fixed = read_nifti(images[1])
    sight = centred((34, 40, 6), (1.7, 1.5, 15), turn(0.2, 0.1) @ np.diag([-1.0, 1, 1]))
    seen = DisplacementField.identity(sight).warp(fixed)
    away = sight.affine.copy()
    away[:3, 3] += [700, -400, 1500]
    far = tmp_path / "far.nii.gz"
    write_nifti(Volume(seen.array, Geometry(sight.shape, away)), far)
    out = tmp_path / "out"
    result = sagittal(far, images[1], "--finest", 4, "--out", out, "--json", "-")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["folds"] == 0
    middle = np.array(told["affine"]) @ [4, 0, 0, 1]
    assert np.abs(middle[:3] - [704, -400, 1500]).max() < 4


def test_what_does_not_belong_together_is_said(images: Any, tmp_path: Path) -> None:
    noise = tmp_path / "noise.nii.gz"
    write_nifti(Volume(np.random.default_rng(0).normal(size=GRID.shape).astype(np.float32), GRID), noise)
    result = sagittal(noise, images[1], "--out", tmp_path / "out", "--json", "-")
    if result.exit_code == 0:
        assert json.loads(result.stdout.splitlines()[-1])["problems"]
    else:
        assert "do not overlap" in result.stderr
