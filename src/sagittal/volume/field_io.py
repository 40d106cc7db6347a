"""Displacement fields as NIfTI files and SimpleITK images, with the signs that others expect.

The trap: NIfTI counts space in RAS+, ITK in LPS+ (x to the patient's left, y to the back). A NIfTI file of
vectors that ITK, ANTs or Greedy writes has the affine of the first and the components of the second, and
says so with its intent VECTOR (1007). The intent DISPVECT (1006) means components in RAS+, as the standard
has it; ITK has known that since 5.3 and turns them on reading, older versions take them as they are.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import FormatError, GeometryError, InputError
from sagittal.core.optional import optional_import
from sagittal.volume._nifti_file import read_file, write_file
from sagittal.volume._support import GIB, replace_nonfinite
from sagittal.volume.fields import DisplacementField
from sagittal.volume.geometry import Geometry

__all__ = ["field_from_sitk", "field_to_sitk", "read_field", "read_vectors", "write_field", "write_vectors"]

_LPS = np.array([-1.0, -1.0, 1.0])
_DISPVECT, _VECTOR = 1006, 1007


def write_field(field: DisplacementField, path: str | os.PathLike[str]) -> Path:
    """Write a displacement field as NIfTI in the way that ITK, ANTs and Greedy read.

    See :func:`write_vectors`.
    """
    return write_vectors(field.vectors, field.geometry, path)


def read_field(path: str | os.PathLike[str], *, max_bytes: int = 8 * GIB) -> DisplacementField:
    """Read a displacement field that this project, ITK, ANTs or Greedy has written.

    See :func:`read_vectors`.
    """
    return DisplacementField(*read_vectors(path, max_bytes=max_bytes))


def write_vectors(vectors: NDArray[Any], geometry: Geometry, path: str | os.PathLike[str]) -> Path:
    """Write vectors as a five-axis NIfTI file of intent VECTOR, components in LPS+, whole or not at all.

    The affine is rounded to float32, as the format does.

    Args:
        vectors: float32 or float64 of shape (3, i, j, k), RAS+.
        geometry: Where they lie.
        path: Ends in .nii or .nii.gz.

    Raises:
        InputError: Another ending.
        GeometryError: A shape that is not the geometry's.
        StorageError: The folder cannot be written.
        MissingDependencyError: nibabel is not installed.
    """
    path = Path(path)
    if vectors.shape != (3, *geometry.shape):
        raise GeometryError(
            "vectors do not have the grid's shape", value=vectors.shape, expected=f"(3, {geometry.shape})"
        )
    turned = vectors * _LPS.astype(vectors.dtype).reshape(3, 1, 1, 1) + 0  # -0 becomes 0
    write_file(path, np.moveaxis(turned, 0, -1)[:, :, :, None, :], geometry, _VECTOR)
    return path


def read_vectors(path: str | os.PathLike[str], *, max_bytes: int = 8 * GIB) -> tuple[NDArray[Any], Geometry]:
    """Read a five-axis NIfTI file of vectors: intent VECTOR in LPS+, or DISPVECT in RAS+.

    Args:
        path: The file.
        max_bytes: Bound on the unpacked size.

    Returns:
        Vectors in RAS+, shape (3, i, j, k), and where they lie.

    Raises:
        FormatError: Damaged, not five axes with three components last, another intent, values that are not
            finite.
        GeometryError: No position in space.
        MissingDependencyError: nibabel is not installed.
    """
    path = Path(path)
    data = read_file(path, max_bytes=max_bytes, ndim=5)
    if data.array.shape[3:] != (1, 3):
        raise FormatError(
            "not a field of vectors in space",
            source=path,
            value=f"shape {data.array.shape}",
            expected="(i, j, k, 1, 3)",
        )
    if data.intent not in (_DISPVECT, _VECTOR):
        raise FormatError(
            "the file does not say that it holds vectors, nor by that whose x and y they have",
            source=path,
            value=f"intent code {data.intent}",
            expected="1007 (VECTOR, components in LPS) or 1006 (DISPVECT, in RAS)",
        )
    vectors, _ = replace_nonfinite(np.moveaxis(data.array[:, :, :, 0], -1, 0), "refuse", path)
    if vectors.dtype not in (np.float32, np.float64):
        vectors = vectors.astype(np.float64)
    if data.intent == _VECTOR:
        vectors = vectors * _LPS.astype(vectors.dtype).reshape(3, 1, 1, 1) + 0
    return vectors, data.geometry


def field_to_sitk(field: DisplacementField) -> Any:
    """Return a SimpleITK image of float64 vectors, as ``SimpleITK.DisplacementFieldTransform`` takes it.

    Raises:
        GeometryError: A sheared grid, which ITK has no directions for.
        MissingDependencyError: SimpleITK is not installed.
    """
    sitk = optional_import("SimpleITK")
    axes = field.geometry.direction
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-6):
        raise GeometryError(
            "the grid's axes are not perpendicular", value=axes.tolist(), expected="a field on another grid"
        )
    turned = field.vectors.astype(np.float64) * _LPS.reshape(3, 1, 1, 1)
    image = sitk.GetImageFromArray(np.ascontiguousarray(turned.transpose(3, 2, 1, 0)), isVector=True)
    image.SetSpacing(field.geometry.spacing)
    image.SetOrigin((_LPS * field.geometry.origin).tolist())
    image.SetDirection((_LPS[:, None] * axes).ravel().tolist())
    return image


def field_from_sitk(image: Any, *, source: object = None) -> DisplacementField:
    """Return a SimpleITK image of three-component vectors as a field.

    Args:
        image: Three axes; from a transform, what its ``GetDisplacementField`` gives.
        source: Named in errors.

    Raises:
        FormatError: Not three axes and components.
        InputError: Vectors that are not finite.
    """
    sitk = optional_import("SimpleITK")
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 3:
        raise FormatError(
            "not a field of vectors in space",
            source=source,
            value=f"{image.GetDimension()} axes, {image.GetNumberOfComponentsPerPixel()} components",
            expected="3 of both",
        )
    vectors = sitk.GetArrayFromImage(image).transpose(3, 2, 1, 0)
    affine = np.eye(4)
    direction = np.array(image.GetDirection(), dtype=np.float64).reshape(3, 3)
    affine[:3, :3] = _LPS[:, None] * direction * np.array(image.GetSpacing())
    affine[:3, 3] = _LPS * np.array(image.GetOrigin())
    i, j, k = image.GetSize()
    if vectors.dtype.kind != "f":
        raise InputError("vectors are not floats", source=source, value=vectors.dtype)
    return DisplacementField(
        vectors * _LPS.astype(vectors.dtype).reshape(3, 1, 1, 1) + 0, Geometry((i, j, k), affine)
    )
