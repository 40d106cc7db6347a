"""Scans as files: a numpy .npz of plain arrays and one header of JSON, nothing pickled."""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import FormatError, GeometryError, InputError, SagittalError
from sagittal.core.files import atomic_path, storage_errors
from sagittal.core.memory import require_memory
from sagittal.reconstruction.geometry import geometry_from_json, geometry_to_json
from sagittal.reconstruction.scan import OnMissing, Scan, broken_rays
from sagittal.volume import Geometry, Volume

__all__ = ["StoredScan", "read_scan", "write_scan"]

_FORMAT, _VERSIONS = "sagittal-ct-scan", (1, 2)  # 2: photons or missing rays have an array of their own
_FIELDS = {"format", "version", "geometry", "photons", "electronic", "starved", "grid", "truth_unit"}
_LARGEST_HEADER = 1 << 24
_GIB = 1 << 30


@dataclass(frozen=True)
class StoredScan:
    """What a scan file holds.

    Attributes:
        scan: The scan.
        grid: Where an image is to lie, when the file says so.
        truth: The volume that the scan was simulated from, when it was.
    """

    scan: Scan
    grid: Geometry | None = None
    truth: Volume | None = None


def write_scan(stored: StoredScan, path: str | os.PathLike[str]) -> Path:
    """Write a scan to a file, whole or not at all; :func:`read_scan` gives back an equal one.

    Raises:
        StorageError: The disk is full, read-only or forbidden.
    """
    scan, truth = stored.scan, stored.truth
    arrays: dict[str, Any] = {}
    if isinstance(scan.photons, np.ndarray):
        arrays["photons"] = scan.photons
    elif scan.missing is not None:
        arrays["missing"] = scan.missing.astype(np.uint8)
    grid = truth.geometry if truth is not None else stored.grid
    header = {
        "format": _FORMAT,
        "version": _VERSIONS[1 if arrays else 0],
        "geometry": geometry_to_json(scan.geometry),
        "photons": None if "photons" in arrays else scan.photons,
        "electronic": scan.electronic,
        "starved": scan.starved,
        "grid": None if grid is None else grid.to_json(),
        "truth_unit": None if truth is None else truth.unit,
    }
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    arrays["sinogram"] = scan.sinogram
    if truth is not None:
        arrays["truth"] = truth.array
    with atomic_path(Path(path)) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)
    return Path(path)


def read_scan(
    path: str | os.PathLike[str], *, missing: OnMissing = "refuse", max_bytes: int = 8 * _GIB
) -> StoredScan:
    """Read a scan that :func:`write_scan` wrote. Nothing in the file is executed.

    Args:
        path: The file.
        missing: Whether line integrals that cannot have been measured
            (:func:`~sagittal.reconstruction.scan.broken_rays`) are refused, or marked as missing.
        max_bytes: Bound on the unpacked size.

    Raises:
        InputError: There is no such file, or what it holds cannot be a scan; or does not fit into memory.
        FormatError: It is no .npz, is damaged, lacks a field, or is larger than ``max_bytes`` when unpacked.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("there is no such file", source=path, expected="a scan, .npz")
    try:
        with storage_errors(path), zipfile.ZipFile(path) as archive:
            return _stored(archive, missing, max_bytes)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise FormatError(f"this is no whole .npz file ({error})", source=path, expected="a scan") from error
    except SagittalError as error:
        if error.source == str(path):
            raise
        where = f"{path}: {error.source}" if error.source else path
        raise type(error)(error.problem, source=where, value=error.value, expected=error.expected) from error


def _stored(archive: zipfile.ZipFile, on_missing: OnMissing, max_bytes: int) -> StoredScan:
    size = sum(member.file_size for member in archive.infolist())
    if size > max_bytes:
        raise FormatError(
            "the scan is too large", value=f"{size} bytes unpacked", expected=f"{max_bytes} at most"
        )
    require_memory(2 * size, "the scan")  # as it is unpacked, and as it is kept
    names = archive.namelist()
    header = _header(_array(archive, "header", _LARGEST_HEADER))
    geometry = geometry_from_json(header["geometry"])
    sinogram = _array(archive, "sinogram", max_bytes)
    if sinogram.shape != geometry.shape:
        raise GeometryError(
            "the line integrals have another shape than the geometry",
            source="sinogram",
            value=sinogram.shape,
            expected=f"{geometry.shape}: views, rows, bins",
        )
    missing = _array(archive, "missing", max_bytes) != 0 if "missing.npy" in names else None
    if on_missing == "mark":
        broken = broken_rays(sinogram)
        missing = broken if missing is None else missing | broken
    scan = Scan(
        sinogram,
        geometry,
        photons=_array(archive, "photons", max_bytes) if "photons.npy" in names else header["photons"],
        electronic=header["electronic"],
        starved=_count(header["starved"]),
        missing=missing,
    )
    grid = None if header["grid"] is None else Geometry.from_json(header["grid"])
    if "truth.npy" not in names:
        return StoredScan(scan, grid)
    if grid is None or not isinstance(header["truth_unit"], str):
        raise FormatError("the truth has no grid or unit", source="truth")
    return StoredScan(
        scan, grid, Volume(_array(archive, "truth", max_bytes), grid, unit=header["truth_unit"])
    )


def _header(array: NDArray[Any]) -> dict[str, Any]:
    try:
        header = json.loads(array.astype(np.uint8, casting="safe").tobytes().decode())
    except (TypeError, ValueError) as error:
        raise FormatError("the header is no JSON", source="header") from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        found = header.get("format") if isinstance(header, dict) else type(header).__name__
        raise FormatError("the header is of no scan", source="header", value=found, expected=_FORMAT)
    if header.get("version") not in _VERSIONS:
        raise FormatError(
            "the scan is of another version",
            source="header",
            value=header.get("version"),
            expected=" or ".join(map(str, _VERSIONS)),
        )
    if missing := sorted(_FIELDS - set(header)):
        raise FormatError("the header lacks a field", source="header", value=missing)
    if not isinstance(header["geometry"], dict) or not isinstance(header["grid"], dict | None):
        raise FormatError("the geometry or the grid is no mapping", source="header")
    return header


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise FormatError("starved rays are no count", source="header", value=value)
    return value


def _array(archive: zipfile.ZipFile, name: str, max_bytes: int) -> NDArray[Any]:
    """Return an array whose header promises no more than the file holds."""
    member = f"{name}.npy"
    if member not in archive.namelist():
        raise FormatError("the scan lacks a field", value=name, expected=f"{name} in the .npz")
    with archive.open(member) as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise FormatError("a field is too large", source=name, value=f"more than {max_bytes} bytes")
    bytes_ = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(bytes_)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(bytes_)
    except ValueError as error:
        raise FormatError(f"a field is no array ({error})", source=name) from error
    if dtype.hasobject or dtype.kind not in "iuf":
        raise FormatError("a field holds no numbers", source=name, value=dtype)
    rest = len(content) - bytes_.tell()
    if math.prod(shape) * dtype.itemsize != rest:
        raise FormatError("a field is cut short", source=name, value=f"{rest} bytes for {shape} of {dtype}")
    array = np.frombuffer(content, dtype, offset=bytes_.tell())
    return array.reshape(shape, order="F" if fortran else "C")
