"""One NIfTI file on disk: a header that is not trusted and data that are read with a bound."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import FormatError, GeometryError, InputError
from sagittal.core.files import atomic_path, storage_errors
from sagittal.core.optional import optional_import
from sagittal.volume._support import existing_file, rescale_frames
from sagittal.volume.geometry import Geometry

__all__ = ["NiftiData", "read_file", "write_file"]

_HEADER_SIZES = {348: (b"n+1\0", "Nifti1Header"), 540: (b"n+2\0\r\n\x1a\n", "Nifti2Header")}
_MM_PER_UNIT = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
_DEFLATE_LIMIT = 1040  # deflate cannot expand a byte into more than about 1032
_CHUNK = 1 << 24
_TRAILING = 1 << 20  # padding that may follow the voxels
_LARGEST_NIFTI1_AXIS = 32767


@dataclass(frozen=True)
class NiftiData:
    """The content of one file: rescaled values (3-D, or more where asked for), grid and intent."""

    array: NDArray[Any]
    geometry: Geometry
    placed: bool
    intent: int = 0


def read_file(path: Path, *, max_bytes: int, ndim: int = 3, allow_unplaced: bool = False) -> NiftiData:
    """Read and check one ``.nii`` or ``.nii.gz`` file, whatever its name.

    Raises:
        FormatError: See :func:`sagittal.volume.nifti.read_nifti`.
        GeometryError: The position in space is missing or impossible.
    """
    nibabel = optional_import("nibabel")
    with storage_errors(path), existing_file(path).open("rb") as raw, _damage_named(path):
        size = path.stat().st_size
        if size == 0:
            raise FormatError("the file is empty", source=path, value="0 bytes", expected="a NIfTI image")
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
        header, offset = _read_header(nibabel, stream, path)
        dtype, shape = _promised(header, path, ndim)
        count = math.prod(shape)
        promised = count * dtype.itemsize
        if offset + promised > max_bytes:
            raise FormatError(
                "the header promises more data than allowed",
                source=path,
                value=f"shape {shape}, {promised} bytes",
                expected=f"at most max_bytes={max_bytes}",
            )
        if offset + promised > size * (_DEFLATE_LIMIT if packed else 1):
            raise FormatError(
                "the voxel data are truncated",
                source=path,
                value=f"a file of {size} bytes",
                expected=f"{offset + promised} bytes for shape {shape}",
            )
        values = np.empty(count, dtype=dtype)
        _fill(stream, offset, values, path)
    values.setflags(write=False)
    array = values.reshape(shape[:ndim], order="F")
    geometry, placed = _geometry(header, array.shape[:3], path, allow_unplaced)
    scaling = _scaling(header, path)
    if scaling is not None:
        array = rescale_frames(array, [scaling] * array.shape[-1])
    return NiftiData(array, geometry, placed, int(header["intent_code"]))


def write_file(path: Path, array: NDArray[Any], geometry: Geometry, intent: int = 0) -> None:
    """Write values of shape (i, j, k), (i, j, k, c) or (i, j, k, 1, c) as a NIfTI file, whole or not at all.

    The same content gives the same bytes. Float16 is stored as float32 and bool as uint8, which the
    format lacks. The affine is stored as the format allows: float32 in NIfTI-1.
    """
    nibabel = optional_import("nibabel")
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError("not a NIfTI file name", source=path, value=path.suffix, expected=".nii or .nii.gz")
    replaced: dict[str, np.dtype[Any]] = {"bool": np.dtype(np.uint8), "float16": np.dtype(np.float32)}
    stored = replaced.get(array.dtype.name, array.dtype)
    kind = nibabel.Nifti1Image if max(array.shape) <= _LARGEST_NIFTI1_AXIS else nibabel.Nifti2Image
    image = kind(array.astype(stored, copy=False), None, dtype=stored)
    image.header.set_xyzt_units("mm")
    image.header["intent_code"] = intent
    image.set_sform(geometry.affine, code="scanner")
    axes = geometry.direction
    if np.allclose(axes.T @ axes, np.eye(3), atol=1e-9):  # a qform cannot hold a sheared grid
        image.set_qform(geometry.affine, code="scanner")
    with atomic_path(path) as temporary, temporary.open("wb") as raw:
        if path.name.endswith(".gz"):
            with gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=4, mtime=0) as stream:
                image.to_file_map({"image": nibabel.FileHolder(fileobj=stream)})
        else:
            image.to_file_map({"image": nibabel.FileHolder(fileobj=raw)})


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except EOFError as error:
        raise FormatError("the gzip stream is truncated", source=path, expected="a complete file") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise FormatError(f"the gzip stream is damaged ({error})", source=path) from error


def _read_header(nibabel: Any, stream: BinaryIO, path: Path) -> tuple[Any, int]:
    start = stream.read(4)
    size = int.from_bytes(start, "little"), int.from_bytes(start, "big")
    known = next((number for number in size if number in _HEADER_SIZES), None)
    if known is None:
        raise FormatError(
            "not a NIfTI image", source=path, value=f"first bytes {start!r}", expected="NIfTI-1 or -2"
        )
    magic, kind = _HEADER_SIZES[known]
    block = start + stream.read(known - 4)
    if len(block) < known:
        raise FormatError(
            "the header is truncated", source=path, value=f"{len(block)} bytes", expected=f"{known}"
        )
    found = block[344:348] if known == 348 else block[4:12]
    if found != magic:
        two_files = found in (b"ni1\0", b"ni2\0\r\n\x1a\n")
        problem = "a NIfTI pair of .hdr and .img is not supported" if two_files else "not a NIfTI image"
        raise FormatError(
            problem, source=path, value=f"magic {found!r}", expected=f"a single file, {magic!r}"
        )
    order = "<" if size[0] == known else ">"
    header = getattr(nibabel, kind)(block, endianness=order, check=False)
    offset = float(header["vox_offset"])
    if not math.isfinite(offset) or not offset.is_integer() or offset < known + 4:
        raise FormatError(
            "the data offset is impossible", source=path, value=offset, expected=f">= {known + 4}"
        )
    _skip(stream, int(offset) - known, path)
    return header, int(offset)


def _promised(header: Any, path: Path, ndim: int) -> tuple[np.dtype[Any], tuple[int, ...]]:
    dims = [int(number) for number in header["dim"]]
    if not 1 <= dims[0] <= 7 or min(dims[1 : dims[0] + 1]) < 1:
        raise FormatError(
            "the dimensions are impossible", source=path, value=dims, expected="1 to 7 positive counts"
        )
    shape = tuple(dims[1 : dims[0] + 1])
    code = int(header["datatype"])
    try:
        dtype = np.dtype(header.get_data_dtype())
    except Exception as error:  # nibabel raises its own kind, which is not there when it is not installed
        raise FormatError("the data type is unknown", source=path, value=f"datatype code {code}") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        named = {"c": "complex numbers", "V": "colours"}.get(dtype.kind, "this data type")
        raise FormatError(
            f"{named} cannot be read as a volume",
            source=path,
            value=f"{dtype} (datatype code {code})",
            expected="real numbers of 1 to 8 bytes",
        )
    if len(shape) < ndim or math.prod(shape[ndim:]) != 1:
        raise FormatError(
            f"the image is not {ndim}-D", source=path, value=f"shape {shape}", expected=f"{ndim} axes"
        )
    return dtype, shape


def _skip(stream: BinaryIO, count: int, path: Path) -> None:
    while count > 0:
        piece = stream.read(min(count, _CHUNK))
        if not piece:
            raise FormatError(
                "the file ends before its voxel data", source=path, value=f"{count} bytes missing"
            )
        count -= len(piece)


def _fill(stream: BinaryIO, offset: int, values: NDArray[Any], path: Path) -> None:
    space = values.view(np.uint8).data
    done = 0
    while done < len(space):
        got = cast(io.BufferedIOBase, stream).readinto(space[done : done + _CHUNK])
        if not got:
            raise FormatError(
                "the voxel data are truncated",
                source=path,
                value=f"{done} bytes of voxels after offset {offset}",
                expected=f"{len(space)}",
            )
        done += got
    # Reading on to the end checks the gzip checksum; a bound keeps a bomb from being unpacked.
    if len(stream.read(_TRAILING + 1)) > _TRAILING:
        raise FormatError(
            "the file delivers more data than its header promises",
            source=path,
            value=f"over {_TRAILING} bytes beyond",
            expected=f"{len(space)} bytes of voxels",
        )


def _scaling(header: Any, path: Path) -> tuple[float, float] | None:
    try:
        slope, intercept = header.get_slope_inter()
    except Exception as error:  # a slope that counts, with an intercept that is not a finite number
        raise FormatError(
            "the intercept is not finite",
            source=path,
            value=f"scl_inter {header['scl_inter']}",
            expected="a number",
        ) from error
    return None if slope is None else (float(slope), float(intercept or 0.0))


def _geometry(header: Any, shape: tuple[int, ...], path: Path, allow_unplaced: bool) -> tuple[Geometry, bool]:
    code = int(header["xyzt_units"]) & 7
    try:
        scale = _MM_PER_UNIT[str(header.get_xyzt_units()[0])]
    except KeyError as error:
        raise FormatError(
            "the unit of length is unknown", source=path, value=f"xyzt_units code {code}"
        ) from error
    placed = True
    try:
        if int(header["sform_code"]) > 0:
            affine = np.array(header.get_sform(), dtype=np.float64)
        elif int(header["qform_code"]) > 0:
            affine = np.array(header.get_qform(), dtype=np.float64)
        else:
            placed = False
            affine = np.array(header.get_base_affine(), dtype=np.float64)
    except Exception as error:  # a quaternion longer than 1, a negative pixdim
        raise GeometryError(f"the qform is impossible ({error})", source=path) from error
    if not placed and not allow_unplaced:
        raise GeometryError(
            "the image has no position in space",
            source=path,
            value="sform_code 0 and qform_code 0",
            expected="one of them set, or allow_unplaced=True",
        )
    affine[:3] *= scale
    try:
        return Geometry((shape[0], shape[1], shape[2]), affine), placed
    except GeometryError as error:
        raise GeometryError(error.problem, source=path, value=error.value, expected=error.expected) from error
