"""SimpleITK images, and the NRRD and MetaImage files that SimpleITK reads and writes."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.core.errors import FormatError, GeometryError, InputError, StorageError
from sagittal.core.files import staging_folder, storage_errors
from sagittal.core.optional import optional_import
from sagittal.volume._itk_header import checked_header
from sagittal.volume._support import GIB, NonFinite, existing_file, replace_nonfinite
from sagittal.volume.geometry import Geometry
from sagittal.volume.volume import Volume

__all__ = ["from_sitk", "read_itk", "to_sitk", "write_itk"]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_IO = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO"}
_PIXEL_BYTES = {
    "8-bit": 1,
    "16-bit": 2,
    "32-bit": 4,
    "64-bit": 8,
}


def to_sitk(volume: Volume) -> Any:
    """Return the voxels as a SimpleITK image of the same place in space (LPS, as ITK counts).

    Bool becomes uint8 and float16 becomes float32, which ITK lacks. Variance, probabilities, unit and
    facts stay behind.

    Raises:
        MissingDependencyError: SimpleITK is not installed.
    """
    sitk = optional_import("SimpleITK")
    array = volume.array
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(volume.geometry.spacing)
    image.SetOrigin((_LPS_TO_RAS @ volume.geometry.origin).tolist())
    image.SetDirection((_LPS_TO_RAS @ volume.geometry.direction).ravel().tolist())
    return image


def from_sitk(
    image: Any, *, unit: str = "1", nonfinite: NonFinite = "refuse", source: object = None
) -> Volume:
    """Return a SimpleITK image as a volume; voxels are exact, the affine to a few float64 roundings.

    Args:
        image: A scalar image of three axes, or of four where the last has length 1.
        unit: Unit of the voxels, which ITK does not know.
        nonfinite: "refuse", or a number to put in the place of NaN and infinity.
        source: Named in errors.

    Raises:
        FormatError: A vector or complex image, another number of axes, voxels that are not finite.
        GeometryError: The directions are singular.
    """
    sitk = optional_import("SimpleITK")
    size = image.GetSize()
    _check_pixels(image.GetNumberOfComponentsPerPixel(), image.GetPixelIDTypeAsString(), size, source)
    count = image.GetDimension()
    array = sitk.GetArrayFromImage(image).reshape(tuple(reversed(size[:3]))).transpose(2, 1, 0)
    array, replaced = replace_nonfinite(array, nonfinite, source)
    direction = np.array(image.GetDirection(), dtype=np.float64).reshape(count, count)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS @ direction * np.array(image.GetSpacing()[:3])
    affine[:3, 3] = _LPS_TO_RAS @ np.array(image.GetOrigin()[:3])
    try:
        geometry = Geometry((size[0], size[1], size[2]), affine)
    except GeometryError as error:
        raise GeometryError(
            error.problem, source=source, value=error.value, expected=error.expected
        ) from error
    return Volume(array, geometry, unit=unit, facts={"nonfinite_replaced": replaced} if replaced else {})


def read_itk(
    path: str | os.PathLike[str],
    *,
    unit: str = "1",
    max_bytes: int = 8 * GIB,
    nonfinite: NonFinite = "refuse",
    allow_unplaced: bool = False,
) -> Volume:
    """Read an NRRD or MetaImage file with its data inside (``.nrrd``, ``.mha``; the content decides).

    Args:
        path: The file.
        unit: Unit of the voxels.
        max_bytes: Bound on the unpacked size.
        nonfinite: "refuse", or a number to put in the place of NaN and infinity.
        allow_unplaced: Accept a header without directions or positions: spacing 1 mm or the header's,
            the first voxel at the origin, and ``facts["unplaced"]`` set.

    Raises:
        FormatError: Empty, damaged or truncated; neither NRRD nor MetaImage; a header that no writer
            writes; data in another file; vector or complex pixels; not 3-D; too large; voxels that are
            not finite.
        GeometryError: No position in space, or singular directions.
        MissingDependencyError: SimpleITK is not installed.
    """
    sitk = optional_import("SimpleITK")
    path = existing_file(Path(path))
    with storage_errors(path):
        name, placed = checked_header(path, max_bytes)
    if not placed and not allow_unplaced:
        raise GeometryError(
            "the image has no position in space",
            source=path,
            value="a header without directions",
            expected="directions in the header, or allow_unplaced=True",
        )
    reader = sitk.ImageFileReader()
    reader.SetImageIO(name)
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    except RuntimeError as error:
        raise FormatError(f"the header is damaged ({_reason(error)})", source=path) from error
    _check_pixels(reader.GetNumberOfComponents(), kind, size, path)
    promised = math.prod(size) * next((bytes_ for word, bytes_ in _PIXEL_BYTES.items() if word in kind), 8)
    if promised > max_bytes:
        raise FormatError(
            "the header promises more data than allowed",
            source=path,
            value=f"size {size}, {promised} bytes",
            expected=f"at most max_bytes={max_bytes}",
        )
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise FormatError(
            f"the voxel data are truncated or damaged ({_reason(error)})", source=path
        ) from error
    volume = from_sitk(image, unit=unit, nonfinite=nonfinite, source=path)
    return volume if placed else volume.replace(facts={**volume.facts, "unplaced": True})


def write_itk(volume: Volume, path: str | os.PathLike[str]) -> Path:
    """Write the voxels as ``.nrrd`` or ``.mha`` (compressed), whole or not at all.

    Variance, probabilities, unit and facts are not written: these formats have no place for them that
    other programs read. Use :func:`sagittal.volume.write_nifti` to keep them.

    Raises:
        InputError: Another ending.
        StorageError: The folder cannot be written.
        MissingDependencyError: SimpleITK is not installed.
    """
    sitk = optional_import("SimpleITK")
    path = Path(path)
    if path.suffix not in _IO:
        raise InputError(
            "not an NRRD or MetaImage name", source=path, value=path.suffix, expected=".nrrd or .mha"
        )
    image = to_sitk(volume)
    # ITK chooses the format by the ending, so the temporary file keeps its name in a folder of its own.
    with staging_folder(path) as folder:
        try:
            sitk.WriteImage(image, str(folder / path.name), useCompression=True, imageIO=_IO[path.suffix])
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise StorageError(f"the image could not be written ({reason})", source=path) from error
        (folder / path.name).replace(path)
    return path


def _check_pixels(components: int, kind: str, size: tuple[int, ...], source: object) -> None:
    if components != 1 or "vector" in kind or "complex" in kind:
        raise FormatError(
            "pixels are not single real numbers",
            source=source,
            value=f"{kind}, {components} components",
            expected="a scalar image",
        )
    if len(size) < 3 or math.prod(size[3:]) != 1:
        raise FormatError(
            "the image is not 3-D", source=source, value=f"size {tuple(size)}", expected="3 axes"
        )


def _reason(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
