"""Bring a volume onto another grid, into another axis order, or to a part of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import
from sagittal.volume.geometry import Geometry
from sagittal.volume.volume import Volume

__all__ = ["Interpolation", "carried", "crop", "crop_to_content", "reorient", "resample"]

Interpolation = Literal["nearest", "linear", "cubic"]
_ORDERS = {"nearest": 0, "linear": 1, "cubic": 3}
_AIR_HU = -1024.0
_EDGE = 1e-6  # in voxels: a position rounded out of the grid is still in it
_SUM_TOLERANCE = 1e-3
_AXES = {"L": (0, -1), "R": (0, 1), "P": (1, -1), "A": (1, 1), "I": (2, -1), "S": (2, 1)}


def resample(
    volume: Volume,
    geometry: Geometry,
    interpolation: Interpolation = "linear",
    *,
    outside: float | None = None,
) -> Volume:
    """Interpolate a volume at the voxel centres of another grid; both are placed by their affines.

    Nothing is smoothed beforehand: a much coarser grid shows aliasing. A target voxel is outside when
    its centre lies beyond the outer faces of the source's voxels.

    Doubt is carried along. Variance is interpolated linearly (for "nearest": copied), which is its
    exact value when neighbouring errors are fully correlated and an upper bound when they are not
    [inference]; outside, where nothing is known, it is the largest of the source. Probabilities are
    interpolated linearly (for "nearest": copied), and sum to one wherever those of the source did;
    outside all are 0.

    Args:
        volume: The source.
        geometry: The target grid.
        interpolation: "nearest" keeps the dtype and every value (for labels); "linear" and "cubic"
            (cubic B-spline, which can overshoot) give float32, or float64 for 32- and 64-bit integers
            and float64.
        outside: Value of voxels outside; by default -1024 in HU, else 0.

    Raises:
        InputError: Another interpolation, or a value for outside that the dtype cannot hold.
        MissingDependencyError: scipy is not installed.
    """
    if interpolation not in _ORDERS:
        raise InputError("unknown interpolation", value=interpolation, expected="nearest, linear or cubic")
    ndimage = optional_import("scipy.ndimage")
    index_map = np.linalg.inv(volume.geometry.affine) @ geometry.affine

    def sampled(values: NDArray[Any], order: int) -> NDArray[Any]:
        if order == 0:
            return _nearest(values, index_map, geometry.shape)
        result: NDArray[Any] = ndimage.affine_transform(
            values.astype(np.float64),
            index_map[:3, :3],
            offset=index_map[:3, 3],
            output_shape=geometry.shape,
            order=order,
            mode="nearest",
        )
        return result

    inside = _inside(index_map, volume.shape, geometry.shape)
    return carried(volume, geometry, sampled, inside, _ORDERS[interpolation], outside)


def carried(
    volume: Volume,
    geometry: Geometry,
    sampled: Callable[[NDArray[Any], int], NDArray[Any]],
    inside: NDArray[np.bool_],
    order: int,
    outside: float | None,
) -> Volume:
    """Bring voxels, variance and probabilities onto another grid, as :func:`resample` says.

    Args:
        volume: The source.
        geometry: The target grid.
        sampled: Interpolates values of the source's grid on the target's, at an order of 0, 1 or 3.
        inside: Which target voxels lie in the source.
        order: That of the voxels.
        outside: Value of voxels outside; by default -1024 in HU, else 0.

    Raises:
        InputError: A value for outside that the dtype cannot hold.
    """
    fill = (_AIR_HU if volume.unit == "HU" else 0.0) if outside is None else float(outside)
    source = volume.array
    dtype = source.dtype if order == 0 else _float_for(source.dtype)
    if not np.isfinite(fill) or (not inside.all() and dtype.kind in "biu" and not _holds(dtype, fill)):
        raise InputError(
            "the voxels cannot hold the value for outside", value=fill, expected=f"a {dtype} number"
        )
    array = sampled(source, order).astype(dtype)
    if not inside.all():
        array[~inside] = fill
    variance = None
    if volume.variance is not None:
        old = volume.variance
        variance = np.maximum(sampled(old, min(order, 1)), 0)
        variance = variance.astype(old.dtype if old.dtype.kind == "f" else np.float64)
        variance[~inside] = old.max()
    probabilities = None
    if volume.probabilities is not None:
        probabilities = _probabilities(volume.probabilities, inside, min(order, 1), sampled)
    return volume.replace(array=array, geometry=geometry, variance=variance, probabilities=probabilities)


def reorient(volume: Volume, axis_codes: str | Sequence[str] = "RAS") -> Volume:
    """Reorder and flip the index axes so that they point as named; no voxel is interpolated or moved.

    Args:
        volume: Any volume; an oblique one keeps its obliqueness.
        axis_codes: Three letters, such as "RAS" or "LPS", one of each pair L/R, P/A, I/S.

    Raises:
        InputError: Letters that do not name three axes.
    """
    letters = [str(letter).upper() for letter in axis_codes]
    if len(letters) != 3 or sorted(_AXES[x][0] for x in letters if x in _AXES) != [0, 1, 2]:
        raise InputError("not the names of three axes", value="".join(letters), expected="such as RAS or LPS")
    now = volume.geometry.orientation
    order = [next(axis for axis in range(3) if now[axis][0] == _AXES[letter][0]) for letter in letters]
    flips = [now[axis][1] != _AXES[letter][1] for axis, letter in zip(order, letters, strict=True)]
    step = tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)
    start = np.zeros(3)
    affine = np.eye(4)
    for place, (axis, flip) in enumerate(zip(order, flips, strict=True)):
        affine[:3, place] = volume.geometry.affine[:3, axis] * (-1 if flip else 1)
        start[axis] = volume.shape[axis] - 1 if flip else 0
    affine[:3, 3] = volume.geometry.index_to_world(start)
    shape = volume.shape[order[0]], volume.shape[order[1]], volume.shape[order[2]]

    def turned(values: NDArray[Any]) -> NDArray[Any]:
        rest = tuple(range(3, values.ndim))
        return np.transpose(values, (*order, *rest))[step]

    return _each(volume, Geometry(shape, affine), turned)


def crop(volume: Volume, slices: Sequence[slice]) -> Volume:
    """Cut out ``array[slices]``; every voxel stays at its place in space.

    Raises:
        GeometryError: Not three slices, a step other than 1, or an empty crop.
    """
    geometry = volume.geometry.cropped(slices)
    return _each(volume, geometry, lambda values: values[tuple(slices)])


def crop_to_content(volume: Volume, margin_mm: float = 0.0, *, threshold: float | None = None) -> Volume:
    """Cut out the smallest box that holds every voxel above a threshold, with a margin around it.

    Args:
        volume: The image.
        margin_mm: Width kept around the content on each side, rounded up to whole voxels; it ends at
            the edge of the image.
        threshold: Content is what lies above it; by default the smallest value of the image.

    Raises:
        InputError: No voxel lies above the threshold, or a negative margin.
    """
    if not (np.isfinite(margin_mm) and margin_mm >= 0):
        raise InputError("a margin cannot be negative", value=margin_mm, expected="0 mm or more")
    lowest = volume.array.min() if threshold is None else threshold
    content = volume.array > lowest
    if not content.any():
        raise InputError("the image has no content", value=f"no voxel above {lowest}")
    slices = []
    for axis, (count, spacing) in enumerate(zip(volume.shape, volume.geometry.spacing, strict=True)):
        rest = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(content.any(axis=rest))
        margin = int(np.ceil(margin_mm / spacing - 1e-9))
        slices.append(slice(max(0, int(found[0]) - margin), min(count, int(found[-1]) + 1 + margin)))
    return crop(volume, slices)


def _each(volume: Volume, geometry: Geometry, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Volume:
    return volume.replace(
        array=change(volume.array),
        geometry=geometry,
        variance=None if volume.variance is None else change(volume.variance),
        probabilities=None if volume.probabilities is None else change(volume.probabilities),
    )


def _inside(
    index_map: NDArray[np.float64], source: tuple[int, ...], target: tuple[int, ...]
) -> NDArray[np.bool_]:
    axes = np.ogrid[: target[0], : target[1], : target[2]]
    inside = np.ones(target, dtype=np.bool_)
    for row, count in zip(index_map[:3], source, strict=True):
        place = row[0] * axes[0] + row[1] * axes[1] + row[2] * axes[2] + row[3]
        inside &= (place >= -0.5 - _EDGE) & (place <= count - 0.5 + _EDGE)
    return inside


def _probabilities(
    source: NDArray[Any],
    inside: NDArray[np.bool_],
    order: int,
    sampled: Callable[[NDArray[Any], int], NDArray[Any]],
) -> NDArray[Any]:
    classes = [sampled(source[..., c].astype(np.float64), order) for c in range(source.shape[-1])]
    result = np.clip(np.stack(classes, axis=-1), 0, 1)
    if order > 0:
        complete = np.abs(source.sum(axis=-1, dtype=np.float64) - 1) <= _SUM_TOLERANCE
        normalise = sampled(complete.astype(np.float64), order) > 1 - 1e-9
        total = result.sum(axis=-1, keepdims=True)
        np.divide(result, total, out=result, where=(normalise[..., None] & (total > 0)))
    result[~inside] = 0
    rounded: NDArray[Any] = result.astype(source.dtype)
    return rounded


def _nearest(
    values: NDArray[Any], index_map: NDArray[np.float64], shape: tuple[int, int, int]
) -> NDArray[Any]:
    """Copy the nearest voxel, plane by plane; exact for every dtype."""
    result = np.empty(shape, dtype=values.dtype)
    i, j = np.ogrid[: shape[0], : shape[1]]
    for k in range(shape[2]):
        places = []
        for row, count in zip(index_map[:3], values.shape, strict=True):
            place = np.rint(row[0] * i + row[1] * j + (row[2] * k + row[3]))
            places.append(np.clip(place, 0, count - 1).astype(np.intp))
        result[:, :, k] = values[tuple(places)]
    return result


def _float_for(dtype: np.dtype[Any]) -> np.dtype[Any]:
    narrow = dtype.itemsize <= 2 or dtype == np.float32
    return np.dtype(np.float32 if narrow else np.float64)


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    if dtype.kind == "b":
        return value in (0.0, 1.0)
    limits = np.iinfo(dtype)
    return value.is_integer() and limits.min <= value <= limits.max
