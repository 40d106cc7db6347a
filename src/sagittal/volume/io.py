"""Read a volume without knowing its format."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from pathlib import Path

from sagittal.core.errors import FormatError
from sagittal.core.files import storage_errors
from sagittal.volume._support import GIB, NonFinite, existing_file
from sagittal.volume.dicom_read import read_dicom
from sagittal.volume.itk import read_itk
from sagittal.volume.nifti import read_nifti
from sagittal.volume.volume import Volume

__all__ = ["image_format", "read_volume"]

_SUPPORTED = "NIfTI (.nii, .nii.gz), DICOM (file or folder), NRRD, MetaImage (.mha)"
_KNOWN_OTHERS = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"CDF", "a NetCDF (MINC-1) file"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"\0\0\x01\xba", "an MPEG film"),
)


def read_volume(
    path: str | os.PathLike[str],
    *,
    unit: str | None = None,
    max_bytes: int = 8 * GIB,
    nonfinite: NonFinite = "refuse",
    allow_unplaced: bool = False,
    allow_tilt: bool = False,
    series_uid: str | None = None,
) -> Volume:
    """Read an image file, or a folder of DICOM slices; the content decides on the format, not the name.

    Args:
        path: A file or a folder.
        unit: Unit of the voxels, in the place of the one the file states.
        max_bytes: Bound on the unpacked size.
        nonfinite: "refuse", or a number to put in the place of NaN and infinity (NIfTI, NRRD, MetaImage).
        allow_unplaced: Accept an image without a position in space (NIfTI, NRRD, MetaImage).
        allow_tilt: Accept a DICOM series with a tilted gantry as a sheared grid.
        series_uid: DICOM series to pick.

    Raises:
        FormatError: The content is of no supported format, or damaged; see the reader of each format.
        InputError: There is no such file.
        GeometryError: Positions in space are missing, contradictory or impossible.
        MissingDependencyError: The library that reads the format is not installed.
    """
    path = Path(path)
    kind = "DICOM" if path.is_dir() else image_format(path)
    if kind == "DICOM":
        volume = read_dicom(path, series_uid=series_uid, allow_tilt=allow_tilt, max_bytes=max_bytes)
        return volume if unit is None else volume.replace(unit=unit)
    if kind == "NIfTI":
        return read_nifti(
            path, unit=unit, max_bytes=max_bytes, nonfinite=nonfinite, allow_unplaced=allow_unplaced
        )
    return read_itk(
        path,
        unit="1" if unit is None else unit,
        max_bytes=max_bytes,
        nonfinite=nonfinite,
        allow_unplaced=allow_unplaced,
    )


def image_format(path: str | os.PathLike[str]) -> str:
    """Return "NIfTI", "DICOM", "NRRD" or "MetaImage" from the first bytes of a file.

    Raises:
        FormatError: The file is empty or starts like none of them; the message says what was found.
        InputError: There is no such file.
    """
    path = existing_file(Path(path))
    with storage_errors(path), path.open("rb") as stream:
        start = stream.read(1024)
    if not start:
        raise FormatError("the file is empty", source=path, value="0 bytes", expected=_SUPPORTED)
    packed = start.startswith(b"\x1f\x8b")
    if packed:
        try:
            with gzip.open(path) as inner:
                start = inner.read(1024)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FormatError(f"the gzip stream is truncated or damaged ({error})", source=path) from error
    # The magic is looked at before the length field: text may start with any four bytes.
    if start[344:347] in (b"n+1", b"ni1") or start[4:7] in (b"n+2", b"ni2"):
        return "NIfTI"
    if not packed:
        if start[128:132] == b"DICM":
            return "DICOM"
        if start.startswith(b"NRRD000"):
            return "NRRD"
        if re.match(rb"\s*(ObjectType|NDims|Comment)\s*=", start):
            return "MetaImage"
    raise FormatError(
        "the format is not supported", source=path, value=_found(start, packed), expected=_SUPPORTED
    )


def _found(start: bytes, packed: bool) -> str:
    named = next((name for magic, name in _KNOWN_OTHERS if start.startswith(magic)), None)
    if named is None and int.from_bytes(start[:4], "little") == 348:
        named = "an Analyze 7.5 header, which does not say left from right"
    text = named or f"first bytes {start[:16]!r}"
    return f"gzip of {text}" if packed else text
