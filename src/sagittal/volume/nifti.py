"""NIfTI images, with a JSON sidecar that carries what the format cannot."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import FormatError, InputError
from sagittal.core.files import staging_folder, storage_errors, write_text
from sagittal.volume._nifti_file import NiftiData, read_file, write_file
from sagittal.volume._support import GIB, NonFinite, replace_nonfinite
from sagittal.volume.geometry import Geometry
from sagittal.volume.volume import Volume

__all__ = ["read_nifti", "write_nifti"]

_KEY = "sagittal"
_LARGEST_SIDECAR = 1 << 24
_DTYPES = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)))
_DTYPES += ("float16", "float32", "float64")
_FLOAT32_STEP = 1e-6


def read_nifti(
    path: str | os.PathLike[str],
    *,
    unit: str | None = None,
    max_bytes: int = 8 * GIB,
    nonfinite: NonFinite = "refuse",
    allow_unplaced: bool = False,
) -> Volume:
    """Read a three-dimensional NIfTI-1 or NIfTI-2 image, plain or gzipped.

    A trailing axis of length 1 is dropped. Slope and intercept are applied (exactly for whole
    numbers, else in float32 or float64). Lengths in metres or microns become mm. The sform places the
    image; the qform only where there is no sform. A sidecar ``NAME.json`` written by
    :func:`write_nifti` brings back dtype, float64 affine, unit, variance, probabilities and facts; a
    JSON file of another tool is left alone.

    Args:
        path: The file. Its content decides, not its name.
        unit: Unit of the voxels; without it the sidecar's, and "1" where there is none.
        max_bytes: Bound on the unpacked size that is read, for each file.
        nonfinite: "refuse", or a number to put in the place of NaN and infinity.
        allow_unplaced: Accept an image without sform and qform: spacing from the header, position
            made up (centred on the origin), and ``facts["unplaced"]`` set.

    Raises:
        FormatError: The file is empty, truncated or damaged, is not NIfTI, promises or delivers more
            than ``max_bytes``, is not 3-D, holds complex numbers or colours, has voxels that are not
            finite, or does not belong to its sidecar.
        GeometryError: There is no position in space, or the affine is singular.
        MissingDependencyError: nibabel is not installed.
    """
    path = Path(path)
    data = read_file(path, max_bytes=max_bytes, allow_unplaced=allow_unplaced)
    sidecar = _read_sidecar(path)
    if sidecar is not None:
        volume = _restored(path, data, sidecar, max_bytes)
        return volume if unit is None else volume.replace(unit=unit)
    array, replaced = replace_nonfinite(data.array, nonfinite, path)
    facts: dict[str, Any] = {}
    if replaced:
        facts["nonfinite_replaced"] = replaced
    if not data.placed:
        facts["unplaced"] = True
    array.setflags(write=False)
    return Volume(array, data.geometry, unit="1" if unit is None else unit, facts=facts)


def write_nifti(volume: Volume, path: str | os.PathLike[str], *, sidecar: bool = True) -> list[Path]:
    """Write a volume as NIfTI with a sidecar; :func:`read_nifti` gives back an equal volume.

    Beside ``NAME.nii.gz`` (or ``NAME.nii``) stand ``NAME.json``, and where the volume has them
    ``NAME_variance.nii.gz`` and ``NAME_probabilities.nii.gz`` (4-D, classes last). All are written under
    other names first, so a full disk leaves what was there. The sidecar holds a hash of the content, so
    files that do not belong together, as after a power cut or an edit with another tool, are refused on
    reading. Other keys of an existing ``NAME.json`` are kept.

    Args:
        volume: What to write.
        path: The image's file.
        sidecar: Without one the image stands alone: for another program to edit and save again.

    Returns:
        The paths written, the image first.

    Raises:
        InputError: The name does not end in .nii or .nii.gz, or ``NAME.json`` is not a JSON object.
        StorageError: The folder cannot be written.
        MissingDependencyError: nibabel is not installed.
    """
    path = Path(path)
    stem = _stem(path)
    if stem is None:
        raise InputError("not a NIfTI file name", source=path, value=path.suffix, expected=".nii or .nii.gz")
    if not sidecar:
        write_file(path, volume.array, volume.geometry)
        return [path]
    other_keys, old = _existing_keys(path.with_name(f"{stem}.json"))
    parts = {"variance": volume.variance, "probabilities": volume.probabilities}
    record: dict[str, Any] = {
        "version": 1,
        "unit": volume.unit,
        "dtype": volume.array.dtype.name,
        "geometry": volume.geometry.to_json(),
        "facts": dict(volume.facts),
        "content_hash": volume.content_hash,
    }
    if volume.variance is not None:
        record["variance"] = {"dtype": volume.variance.dtype.name}
    if volume.probabilities is not None:
        record["probabilities"] = {"dtype": volume.probabilities.dtype.name, "classes": list(volume.classes)}
    text = json.dumps({**other_keys, _KEY: record}, indent=2, ensure_ascii=False, allow_nan=False)
    names = [path.name, f"{stem}.json"]
    with staging_folder(path) as folder:
        write_file(folder / path.name, volume.array, volume.geometry)
        write_text(folder / f"{stem}.json", text + "\n")
        for name, values in parts.items():
            part = f"{stem}_{name}.nii.gz"
            if values is not None:
                write_file(folder / part, values, volume.geometry)
                names.append(part)
            elif name in old:
                path.with_name(part).unlink(missing_ok=True)
        for name in reversed(names):  # the image last: with it, the set is whole
            (folder / name).replace(path.with_name(name))
    return [path.with_name(name) for name in names]


def _stem(path: Path) -> str | None:
    for ending in (".nii.gz", ".nii"):
        if path.name.endswith(ending) and path.name != ending:
            return path.name.removesuffix(ending)
    return None


def _existing_keys(sidecar: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    if not sidecar.exists():
        return {}, {}
    try:
        content = json.loads(sidecar.read_text("utf-8"))
    except ValueError as error:
        raise InputError(
            f"the sidecar is not JSON and would be overwritten ({error})",
            source=sidecar,
            expected="another name",
        ) from error
    if not isinstance(content, dict):
        raise InputError("the sidecar is not a JSON object", source=sidecar, value=type(content).__name__)
    ours = content.pop(_KEY, {})
    return content, ours if isinstance(ours, dict) else {}


def _read_sidecar(path: Path) -> Mapping[str, Any] | None:
    stem = _stem(path)
    sidecar = path.with_name(f"{stem}.json")
    if stem is None or not sidecar.is_file():
        return None
    with storage_errors(sidecar), sidecar.open("rb") as stream:
        content = stream.read(_LARGEST_SIDECAR + 1)
    if len(content) > _LARGEST_SIDECAR:
        raise FormatError("the sidecar is too large", source=sidecar, expected=f"{_LARGEST_SIDECAR} bytes")
    try:
        values = json.loads(content)
    except ValueError as error:
        raise FormatError(f"the sidecar is not JSON ({error})", source=sidecar) from error
    ours = values.get(_KEY) if isinstance(values, dict) else None
    if ours is None:
        return None
    if not isinstance(ours, dict) or ours.get("version") != 1:
        found = ours.get("version") if isinstance(ours, dict) else type(ours).__name__
        raise FormatError("the sidecar has an unknown version", source=sidecar, value=found, expected="1")
    return ours


def _restored(path: Path, data: NiftiData, sidecar: Mapping[str, Any], max_bytes: int) -> Volume:
    stem = _stem(path)
    stale = FormatError(
        "the image and its sidecar do not belong together",
        source=path,
        value=f"{stem}.json of another content",
        expected="the pair as it was written; to read the image alone, move the sidecar away",
    )
    try:
        geometry = Geometry.from_json(sidecar["geometry"])
        array = _cast(data.array, sidecar["dtype"])
        expected_hash = sidecar["content_hash"]
        parts: dict[str, Any] = {}
        for name in ("variance", "probabilities"):
            if name in sidecar:
                file = path.with_name(f"{stem}_{name}.nii.gz")
                if not file.is_file():
                    raise FormatError(
                        f"the sidecar names a {name} file that is not there", source=path, value=file.name
                    )
                ndim = 3 if name == "variance" else 4
                part = read_file(file, max_bytes=max_bytes, ndim=ndim, allow_unplaced=True)
                parts[name] = _cast(part.array, sidecar[name]["dtype"])
        if "probabilities" in sidecar:
            parts["classes"] = tuple(sidecar["probabilities"]["classes"])
        if not _same_place(data.geometry, geometry):
            raise stale
        volume = Volume(array, geometry, unit=sidecar["unit"], facts=sidecar["facts"], **parts)
    except (KeyError, TypeError, OverflowError) as error:
        raise FormatError(f"the sidecar is damaged ({error!r})", source=path, value=f"{stem}.json") from error
    except FormatError:
        raise
    except InputError as error:
        raise stale from error
    if volume.content_hash != expected_hash:
        raise stale
    return volume


def _same_place(stored: Geometry, exact: Geometry) -> bool:
    """Tell whether the file's affine is the sidecar's, rounded to float32."""
    scale = np.maximum(np.abs(exact.affine), np.abs(exact.affine).max() * 1e-3)
    close = np.abs(stored.affine - exact.affine) <= _FLOAT32_STEP * scale
    return stored.shape == exact.shape and bool(np.all(close))


def _cast(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    if dtype not in _DTYPES:  # numpy reads far more into a text: shapes, fields, objects
        raise TypeError(f"no dtype of a volume: {str(dtype)[:40]}")
    result = array.astype(np.dtype(dtype), copy=False)
    result.setflags(write=False)
    return result
