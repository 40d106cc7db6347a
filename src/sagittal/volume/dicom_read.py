"""DICOM images: one slice, a series of slices, or an enhanced multi-frame file, as one volume."""

from __future__ import annotations

import io
import math
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import FormatError, GeometryError, InputError, MissingDependencyError, SagittalError
from sagittal.core.files import storage_errors
from sagittal.core.optional import optional_import
from sagittal.volume._dicom_codestream import require_coded_size
from sagittal.volume._dicom_facts import acquisition_facts, unit_of
from sagittal.volume._dicom_frames import Frame, frames_of, is_image
from sagittal.volume._dicom_stack import stack
from sagittal.volume._dicom_values import attribute, integer, quiet_pydicom, text
from sagittal.volume._support import GIB, existing_file, rescale_frames
from sagittal.volume.volume import Volume

__all__ = ["is_dicom_file", "read_dicom"]

_SLICE_SUFFIXES = ("", ".dcm", ".dicom", ".ima")
_PADDING_HU = -1024.0
_DEFLATED = "1.2.840.10008.1.2.1.99"
_HEADER_ROOM = 1 << 24  # beside the pixels, in a data set that is unpacked whole
_LONGEST_REASON = 200
_MOST_SERIES = 20
_ENCAPSULATED_HINT = "pip install sagittal[imaging] (pylibjpeg with pylibjpeg-openjpeg, or python-gdcm)"


def read_dicom(
    path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    series_uid: str | None = None,
    allow_tilt: bool = False,
    padding: float | None = None,
    max_bytes: int = 8 * GIB,
) -> Volume:
    """Read a DICOM image or series as a volume of shape (columns, rows, slices).

    Slices are ordered by their position along the normal of the plane (row x column direction), not
    by file name or instance number. Rescale slope and intercept are applied to each slice; the
    result is integer where that is exact, else float32 or float64. The unit is "HU" for CT. Values of
    MONOCHROME1 images are not inverted. Facts hold no name, identifier, date or UID, and neither do messages;
    pydicom's own warnings and log lines, which quote values, are kept back while it reads.

    Args:
        path: A file, a folder (searched with its sub-folders), or a list of files. In a folder, files
            that are not DICOM and do not look like slices are left out, and so are DICOM objects
            without pixels; ``facts`` count both.
        series_uid: Series Instance UID to pick where the files hold several.
        allow_tilt: Accept slices stacked at a slant to their normal, as from a tilted CT gantry. The
            grid is then sheared, and every voxel lies where it was measured.
        padding: Value for pixels marked as padding (never measured). By default -1024 in CT; other
            modalities keep what is stored. ``facts["padding_voxels"]`` counts them.
        max_bytes: Bound on the size of the unpacked pixels.

    Raises:
        InputError: No such file, no image found, several series, or slices of different patients.
        FormatError: Not DICOM, truncated, a missing or malformed attribute, colour, a lookup table,
            a multi-frame object of another kind, pixel data that cannot be decoded.
        GeometryError: Missing, duplicate, uneven or slanted slices; slices that differ in size,
            spacing or orientation.
        MissingDependencyError: pydicom, or the decoder of a compressed transfer syntax, is missing.
    """
    optional_import("pydicom")
    with quiet_pydicom():
        return _volume(path, series_uid, allow_tilt, padding, max_bytes)


def _volume(
    path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    series_uid: str | None,
    allow_tilt: bool,
    padding: float | None,
    max_bytes: int,
) -> Volume:
    files, source, ignored = _files(path)
    headers: list[tuple[Path, Any]] = []
    without_pixels = 0
    for file in files:
        dataset = _read(file, header_only=True, max_bytes=max_bytes)
        if is_image(dataset, file):
            if "Rows" not in dataset:
                raise FormatError(
                    "a required attribute is missing", source=file, value="Rows", expected="a whole file"
                )
            headers.append((file, dataset))
        elif len(files) == 1:
            raise FormatError(
                "the DICOM object holds no image", source=file, value=_object_name(dataset, file)
            )
        else:
            without_pixels += 1
    headers = _one_series(headers, source, series_uid)
    frames = [frame for file, dataset in headers for frame in frames_of(dataset, file)]
    _bound(headers, source, max_bytes)
    order, geometry, angle = stack(frames, source, allow_tilt)
    stored, padded = _pixels(headers, frames, max_bytes)
    ordered = stored[order]
    ordered.setflags(write=False)
    scaling = [frames[index].scaling for index in order]
    array = np.transpose(rescale_frames(ordered, scaling, axis=0), (2, 1, 0))
    unit = unit_of(headers[0][1], headers[0][0])
    facts = acquisition_facts([dataset for _, dataset in headers])
    count = int(np.count_nonzero(padded))
    if count:
        facts["padding_voxels"] = count
        fill = _PADDING_HU if padding is None and unit == "HU" else padding
        if fill is not None:
            array = _filled(array, np.transpose(padded[order], (2, 1, 0)), fill)
    if angle:
        facts["stacking_angle_deg"] = round(angle, 4)
    for key, number in (("files_ignored", ignored), ("objects_without_pixels", without_pixels)):
        if number:
            facts[key] = number
    return Volume(array, geometry, unit=unit, facts=facts)


def is_dicom_file(path: Path) -> bool:
    """Tell whether the file starts as DICOM does: a preamble of 128 bytes, then DICM."""
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _files(path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[list[Path], object, int]:
    if not isinstance(path, str | os.PathLike):
        files = [existing_file(Path(one)) for one in path]
        if not files:
            raise InputError("the list of DICOM files is empty")
        return files, files[0] if len(files) == 1 else files[0].parent, 0
    folder = Path(path)
    if not folder.is_dir():
        return [existing_file(folder)], folder, 0
    files, ignored = [], 0
    with storage_errors(folder):
        for file in sorted(folder.rglob("*")):
            if not file.is_file() or file.name.startswith(".") or file.name.upper() == "DICOMDIR":
                continue
            if is_dicom_file(file) or _looks_like_slice(file):
                files.append(file)
            else:
                ignored += 1
    if not files:
        raise InputError("the folder holds no DICOM file", source=folder, value=f"{ignored} other files")
    return files, folder, ignored


def _looks_like_slice(file: Path) -> bool:
    """A damaged slice must not pass for a file of another kind: it would be left out silently."""
    suffix = file.suffix.lower()
    return suffix in _SLICE_SUFFIXES or suffix[1:].isdigit()


def _read(file: Path, header_only: bool, max_bytes: int) -> Any:
    pydicom = optional_import("pydicom")
    if file.stat().st_size == 0:
        raise FormatError("the file is empty", source=file, value="0 bytes", expected="a DICOM image")
    if not is_dicom_file(file):
        with file.open("rb") as stream:
            start = stream.read(16)
        raise FormatError(
            "not a DICOM file", source=file, value=f"first bytes {start!r}", expected="DICM at byte 128"
        )
    try:
        meta = pydicom.filereader.read_file_meta_info(file)
        deflated = str(meta.get("TransferSyntaxUID")) == _DEFLATED
        content = _inflated(pydicom, file, meta, max_bytes) if deflated else file
        dataset = pydicom.dcmread(content, stop_before_pixels=header_only)
        if deflated:
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    except SagittalError:
        raise
    except Exception as error:  # arbitrary bytes make pydicom raise almost anything, and quote them
        raise FormatError(
            "the DICOM file is damaged or truncated", source=file, value=type(error).__name__
        ) from None
    if "SOPClassUID" not in dataset and "MediaStorageSOPClassUID" not in dataset.file_meta:
        raise FormatError(
            "the DICOM file is truncated", source=file, value="no SOPClassUID", expected="a whole file"
        )
    if "TransferSyntaxUID" not in dataset.file_meta:
        raise FormatError("a required attribute is missing", source=file, value="TransferSyntaxUID")
    syntax = attribute(dataset.file_meta, "TransferSyntaxUID", file)
    if not isinstance(syntax, pydicom.uid.UID) or not syntax.is_valid:
        raise FormatError("the attribute TransferSyntaxUID is malformed", source=file, expected="one UID")
    return dataset


def _inflated(pydicom: Any, file: Path, meta: Any, max_bytes: int) -> io.BytesIO:
    """Unpack a deflated data set with a bound, which pydicom has not, and head it as one that never was."""
    start = 144 + integer(meta, "FileMetaInformationGroupLength", file)
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    limit = max_bytes + _HEADER_ROOM
    unpacked = unpacker.decompress(file.read_bytes()[start:], limit)
    if not unpacker.eof:
        full = len(unpacked) >= limit
        raise FormatError(
            "the deflated data set unpacks to more than allowed" if full else "the data set is truncated",
            source=file,
            value=f"{len(unpacked)} bytes",
            expected=f"at most max_bytes={max_bytes}" if full else "the end of the deflated stream",
        )
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    result = io.BytesIO()
    result.write(bytes(128) + b"DICM")
    pydicom.filewriter.write_file_meta_info(result, meta, enforce_standard=False)
    result.write(unpacked)
    result.seek(0)
    return result


def _object_name(dataset: Any, file: Path) -> str:
    uid = attribute(dataset, "SOPClassUID", file) or attribute(
        dataset.file_meta, "MediaStorageSOPClassUID", file
    )
    return str(getattr(uid, "name", "an object of a malformed class"))[:_LONGEST_REASON]


def _one_series(
    headers: list[tuple[Path, Any]], source: object, series_uid: str | None
) -> list[tuple[Path, Any]]:
    series: dict[str, int] = {}
    for file, dataset in headers:
        uid = text(dataset, "SeriesInstanceUID", file)
        series[uid] = series.get(uid, 0) + 1
    listed = ", ".join(
        f"{_shown(uid)} ({count} files)" for uid, count in sorted(series.items())[:_MOST_SERIES]
    )
    if series_uid is not None:
        headers = [pair for pair in headers if text(pair[1], "SeriesInstanceUID", pair[0]) == series_uid]
        if not headers:
            raise InputError(
                "no image of the series asked for",
                source=source,
                value=series_uid,
                expected=f"one of {listed}",
            )
    if not headers:
        raise InputError("there is no DICOM image", source=source)
    first_file, first = headers[0]
    for file, dataset in headers[1:]:
        # The identifiers themselves stay out of the message: messages end up in logs.
        if str(attribute(dataset, "PatientID", file)) != str(attribute(first, "PatientID", first_file)):
            raise InputError(
                "patient identifiers differ",
                source=source,
                value=f"files {first_file.name} and {file.name}",
                expected="slices of one patient",
            )
    if series_uid is None and len(series) > 1:
        raise InputError(
            "several series are mixed",
            source=source,
            value=listed,
            expected="one series, or series_uid= to pick one",
        )
    for name in ("Modality", "FrameOfReferenceUID", "RescaleType", "Units", "PhotometricInterpretation"):
        for file, dataset in headers[1:]:
            lost = name == "PhotometricInterpretation" and name not in dataset  # named as missing later
            if not lost and text(dataset, name, file) != text(first, name, first_file):
                raise GeometryError(
                    f"the slices differ in {name}",
                    source=source,
                    value=f"files {first_file.name} and {file.name}",
                )
    return headers


def _shown(uid: str) -> str:
    return uid if re.fullmatch(r"[0-9.]+", uid) else "(malformed)" if uid else "(none)"


def _bound(headers: Sequence[tuple[Path, Any]], source: object, max_bytes: int) -> None:
    size = 0
    for file, dataset in headers:
        names = {"NumberOfFrames": 1, "Rows": 1, "Columns": 1, "BitsAllocated": 64}
        size += math.prod(integer(dataset, name, file, default) for name, default in names.items()) // 8
    if size > max_bytes:
        raise FormatError(
            "the headers promise more pixels than allowed",
            source=source,
            value=f"{size} bytes",
            expected=f"at most max_bytes={max_bytes}",
        )


def _pixels(
    headers: Sequence[tuple[Path, Any]], frames: Sequence[Frame], max_bytes: int
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return stored values and the padding mask, both of shape (frames, rows, columns)."""
    stored: list[NDArray[Any]] = []
    padded: list[NDArray[np.bool_]] = []
    for file, _ in headers:
        dataset = _read(file, header_only=False, max_bytes=max_bytes)
        pixels = _decoded(dataset, file)
        pixels = pixels.reshape((-1, *pixels.shape[-2:]))
        stored.append(pixels)
        padded.append(_padding_mask(dataset, pixels, file))
    result = np.concatenate(stored)
    if result.shape != (len(frames), *frames[0].size):
        raise FormatError(
            "the pixel data do not have the size the header gives",
            source=frames[0].source,
            value=result.shape,
            expected=f"{(len(frames), *frames[0].size)}",
        )
    return result, np.concatenate(padded)


def _decoded(dataset: Any, file: Path) -> NDArray[Any]:
    syntax = dataset.file_meta.TransferSyntaxUID
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise FormatError(
            "the pixel data are missing: the file is truncated", source=file, value="no PixelData"
        )
    try:
        decoder = optional_import("pydicom.pixels").get_decoder(syntax)
    except NotImplementedError as error:
        raise FormatError(
            "the transfer syntax is not supported", source=file, value=f"{syntax.name} ({syntax})"
        ) from error
    if not decoder.is_available:
        raise MissingDependencyError(
            "no decoder for the transfer syntax is installed",
            source=file,
            value=f"{syntax.name} ({syntax})",
            expected=_ENCAPSULATED_HINT,
        )
    if syntax.is_encapsulated:
        require_coded_size(dataset, file)
    try:
        return np.asarray(dataset.pixel_array)
    except SagittalError:
        raise
    except Exception as error:  # each codec raises its own kinds
        reason = str(error).splitlines()[0][:_LONGEST_REASON] if str(error) else type(error).__name__
        raise FormatError(
            f"the pixel data are truncated or damaged ({reason})",
            source=file,
            value=f"transfer syntax {syntax.name}",
        ) from error


def _padding_mask(dataset: Any, pixels: NDArray[Any], file: Path) -> NDArray[np.bool_]:
    if attribute(dataset, "PixelPaddingValue", file) is None:
        return np.zeros(pixels.shape, dtype=np.bool_)
    one = _as_stored(dataset, "PixelPaddingValue", file)
    limited = attribute(dataset, "PixelPaddingRangeLimit", file) is not None
    other = _as_stored(dataset, "PixelPaddingRangeLimit", file) if limited else one
    mask: NDArray[np.bool_] = (pixels >= min(one, other)) & (pixels <= max(one, other))
    return mask


def _as_stored(dataset: Any, name: str, file: Path) -> int:
    """Read a padding value as signed where pixels are signed: some writers give it the other way."""
    number = integer(dataset, name, file)
    bits = integer(dataset, "BitsAllocated", file, 64)
    if integer(dataset, "PixelRepresentation", file, 0) == 1 and number >= 1 << (bits - 1):
        return number - (1 << bits)
    return number


def _filled(array: NDArray[Any], mask: NDArray[np.bool_], fill: float) -> NDArray[Any]:
    dtype = array.dtype
    if dtype.kind in "iu":
        exact = float(fill).is_integer() and np.iinfo(dtype).min <= fill <= np.iinfo(dtype).max
        dtype = dtype if exact else np.dtype(np.int32 if float(fill).is_integer() else np.float32)
    filled = array.astype(dtype)
    filled[mask] = fill
    filled.setflags(write=False)
    return filled
