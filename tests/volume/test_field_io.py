from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from known_fields import bump, centred, on_grid, swirl, turn
from sagittal.core.errors import FormatError, GeometryError, InputError
from sagittal.volume import (
    DisplacementField,
    Volume,
    field_from_sitk,
    field_to_sitk,
    from_sitk,
    read_field,
    to_sitk,
    write_field,
)

AXES = {
    "plain": np.eye(3),
    "flipped": np.diag([-1.0, -1.0, 1.0]),
    "oblique": turn(0.5, 0.3),
    "left-handed": turn(0.5, 0.3) @ np.diag([1.0, -1, 1]),
}


def head() -> Volume:
    grid = centred((24, 22, 20), (2, 2.2, 2.4), turn(-0.2, 0.1))
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    x, y, z = np.moveaxis(grid.index_to_world(index), -1, 0)
    return Volume(100 * np.exp(-((x - 5) ** 2 + (y / 1.3) ** 2 + (z + 4) ** 2) / 200) + x, grid)


def by_sitk(image: Volume, moved: Any, field: DisplacementField) -> Volume:
    """The image as SimpleITK warps it by a displacement image."""
    sitk = pytest.importorskip("SimpleITK")
    transform = sitk.DisplacementFieldTransform(sitk.Cast(moved, sitk.sitkVectorFloat64))
    like = to_sitk(Volume(np.zeros(field.shape), field.geometry))
    return from_sitk(sitk.Resample(to_sitk(image), like, transform, sitk.sitkLinear, 0.0))


@pytest.mark.parametrize("name", AXES)
def test_simpleitk_warps_the_same(name: str) -> None:
    field = on_grid(swirl, centred((15, 13, 11), (1.5, 2, 2.5), AXES[name]))
    found, theirs = field.warp(head()), by_sitk(head(), field_to_sitk(field), field)
    assert found.array.std() > 5
    assert np.abs(found.array - theirs.array)[found.array != 0].max() < 1e-6


@pytest.mark.parametrize("name", AXES)
def test_simpleitk_reads_the_file_and_warps_the_same(name: str, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    field = on_grid(swirl, centred((15, 13, 11), (1.5, 2, 2.5), AXES[name]))
    path = write_field(field, tmp_path / "field.nii.gz")
    theirs = by_sitk(head(), sitk.ReadImage(str(path)), field)
    assert np.abs(field.warp(head()).array - theirs.array).max() < 1e-3  # the affine is float32


@pytest.mark.parametrize("name", AXES)
def test_a_file_that_simpleitk_wrote_is_read(name: str, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    field = on_grid(swirl, centred((15, 13, 11), (1.5, 2, 2.5), AXES[name]))
    sitk.WriteImage(field_to_sitk(field), str(tmp_path / "field.nii.gz"))
    found = read_field(tmp_path / "field.nii.gz")
    assert np.allclose(found.vectors, field.vectors, atol=1e-6)
    assert np.allclose(found.geometry.affine, field.geometry.affine, atol=1e-4)


def test_a_field_comes_back_as_it_was(tmp_path: Path) -> None:
    field = on_grid(swirl, centred((5, 4, 1), (1.5, 2, 2.5), AXES["left-handed"]))
    for kind in (np.float32, np.float64):
        same = DisplacementField(field.vectors.astype(kind), field.geometry)
        found = read_field(write_field(same, tmp_path / "field.nii"))
        assert found.vectors.dtype == kind
        assert np.array_equal(found.vectors, same.vectors)
        assert np.allclose(found.geometry.affine, field.geometry.affine, atol=1e-6)
    back = field_from_sitk(field_to_sitk(field))
    assert np.array_equal(back.vectors, field.vectors)
    assert np.allclose(back.geometry.affine, field.geometry.affine)


def rewritten(path: Path, array: Any, intent: int) -> Path:
    nibabel: Any = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(array, np.diag([2.0, 2, 2, 1]))
    image.header["intent_code"] = intent
    nibabel.save(image, path)
    return path


def test_the_intent_tells_the_signs(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    array = np.zeros((4, 4, 4, 1, 3), dtype=np.float32)
    array[..., :] = [1, 2, 3]
    for intent, wanted in ((1006, [1, 2, 3]), (1007, [-1, -2, 3])):
        path = rewritten(tmp_path / f"{intent}.nii", array, intent)
        assert read_field(path).vectors[:, 0, 0, 0].tolist() == wanted
        theirs = np.array(sitk.ReadImage(str(path)).GetPixel(0, 0, 0)) * [-1, -1, 1]
        assert theirs.tolist() == wanted


def test_files_that_are_no_fields_are_refused(tmp_path: Path) -> None:
    plain = np.zeros((4, 4, 4, 1, 3), dtype=np.float32)
    with pytest.raises(FormatError, match="intent code 0"):
        read_field(rewritten(tmp_path / "a.nii", plain, 0))
    with pytest.raises(FormatError, match=r"\(4, 4, 4, 1, 2\)"):
        read_field(rewritten(tmp_path / "b.nii", plain[..., :2], 1007))
    with pytest.raises(FormatError, match="not 5-D"):
        read_field(rewritten(tmp_path / "c.nii", plain[:, :, :, 0], 1007))
    plain[1, 1, 1] = np.nan
    with pytest.raises(FormatError, match="not finite"):
        read_field(rewritten(tmp_path / "d.nii", plain, 1007))
    with pytest.raises(InputError, match="NIfTI file name"):
        write_field(DisplacementField.identity(head().geometry), tmp_path / "field.mha")


def test_a_sheared_grid_has_no_place_in_itk() -> None:
    axes = np.eye(3) + np.array([[0, 0, 0.2], [0, 0, 0], [0, 0, 0]])
    sheared = DisplacementField.identity(centred((4, 4, 4), (1, 1, 1), axes / np.linalg.norm(axes, axis=0)))
    with pytest.raises(GeometryError, match="perpendicular"):
        field_to_sitk(sheared)


def test_simpleitks_own_jacobian_is_wrong_on_a_flipped_grid() -> None:
    """Why this project computes its own: the filter takes steps along the grid for steps in space."""
    sitk = pytest.importorskip("SimpleITK")
    smooth, error = bump(4, (10, 10, 10), 7), {}
    for name in ("plain", "flipped"):
        grid = centred((21, 21, 21), (1, 1, 1), np.diag([-1.0, -1, 1]) @ AXES[name])  # ITK's x and y
        field = on_grid(smooth, grid)
        theirs = from_sitk(sitk.DisplacementFieldJacobianDeterminant(field_to_sitk(field)))
        error[name] = float(np.abs(theirs.array - field.determinant)[1:-1, 1:-1, 1:-1].max())
    assert error["plain"] < 1e-5
    assert error["flipped"] > 0.3
