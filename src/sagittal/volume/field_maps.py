"""Maps made of displacement fields: sample, compose, exponentiate; in numpy and in torch.

Every function takes numpy arrays or torch tensors and returns the same kind; with tensors, gradients flow
through it. A field has shape (..., 3, i, j, k), mm in RAS+; it moves x to x + displacement(x). Beyond the
outermost voxels a field goes on with the value at the face; ITK takes it for 0 there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sagittal.core.errors import InputError
from sagittal.core.native import load_extension, thread_count, vector_kernels
from sagittal.core.optional import optional_import
from sagittal.volume.field_calculus import Array, combine, components, like, namespace

__all__ = ["compose", "exponentiate", "inside", "most_common", "nearest", "places", "sample", "squarings_for"]

_native = load_extension()

_EDGE = 1e-6  # in voxels: a position rounded out of the grid is still in it
_STEP = 0.25  # of a voxel: the largest displacement of the first step of an exponential


def places(displacement: Array, affine: ArrayLike, source_affine: ArrayLike | None = None) -> Array:
    """Return where each voxel is moved to, as voxel indices of a grid.

    Args:
        displacement: Shape (..., 3, i, j, k), mm in RAS+, on the grid of ``affine``.
        affine: (4, 4), where the field lies.
        source_affine: (4, 4), the grid whose indices are asked for; by default the field's own.

    Returns:
        Fractional indices, shape (..., 3, i, j, k).
    """
    own = np.asarray(affine, dtype=np.float64)
    source = own if source_affine is None else np.asarray(source_affine, dtype=np.float64)
    to_index = np.linalg.inv(source)
    index_map = np.eye(4) if source_affine is None else to_index @ own
    moved = components(displacement)
    axes = []
    for axis, count in enumerate(displacement.shape[-3:]):
        shape = [1, 1, 1]
        shape[axis] = count
        axes.append(like(np.arange(count, dtype=np.float64).reshape(shape), displacement))
    found = []
    for row in range(3):
        start = combine(index_map[row, :3], axes) + float(index_map[row, 3])
        found.append(start + combine(to_index[row, :3], moved))
    return namespace(displacement).stack(found, -4)


def inside(index: Array, shape: tuple[int, ...]) -> Array:
    """Tell which indices lie within the outer faces of a grid's voxels.

    Args:
        index: Fractional indices, shape (..., 3, i, j, k).
        shape: The grid's.

    Returns:
        Booleans of shape (..., i, j, k).
    """
    i, j, k = (
        (place >= -0.5 - _EDGE) & (place <= count - 0.5 + _EDGE)
        for place, count in zip(components(index), shape[-3:], strict=True)
    )
    return i & j & k


def sample(values: Array, index: Array, order: int = 1) -> Array:
    """Interpolate values at fractional indices; beyond the grid, the value at its face.

    Args:
        values: Shape (..., i, j, k), with as many leading axes as wanted; the two kinds agree in numpy and
            torch to rounding.
        index: Shape (3, i', j', k'), or (..., 3, i', j', k') with one set of indices for each entry of the
            leading axes of ``values`` but its last.
        order: 1 for linear, 3 for a cubic B-spline; torch has 1 only, and gradients reach both arguments.

    Returns:
        Shape (..., i', j', k').

    Raises:
        InputError: Another order, or shapes that do not belong together.
        MissingDependencyError: scipy or torch is not installed.
    """
    numpy_values = isinstance(values, np.ndarray)
    if order not in ((1, 3) if numpy_values else (1,)):
        raise InputError("no such interpolation", source="order", value=order, expected="1, or 3 in numpy")
    if index.shape[-4] != 3 or tuple(index.shape[:-4]) not in ((), tuple(values.shape[:-4])):
        raise InputError(
            "indices do not belong to the values",
            value=f"{tuple(index.shape)} for {tuple(values.shape)}",
            expected="(3, i, j, k), or with the leading axes of the values",
        )
    return _sample_numpy(values, index, order) if numpy_values else _sample_torch(values, index)


def compose(outer: Array, inner: Array, affine: ArrayLike, outer_affine: ArrayLike | None = None) -> Array:
    """Return the displacement of x -> outer(inner(x)), on the grid of ``inner``.

    Args:
        outer: Shape (..., 3, i', j', k'), mm in RAS+.
        inner: Shape (..., 3, i, j, k), mm in RAS+; it is applied first.
        affine: (4, 4), where ``inner`` lies.
        outer_affine: (4, 4), where ``outer`` lies; by default the same.

    Returns:
        Shape (..., 3, i, j, k).
    """
    return inner + sample(outer, places(inner, affine, outer_affine))


def exponentiate(velocity: Array, affine: ArrayLike, squarings: int | None = None) -> Array:
    """Return the displacement reached at time 1 in a velocity that does not change, by scaling and squaring.

    The inverse map is the exponential of the negative velocity. Source: Arsigny, Commowick, Pennec, Ayache
    2006, "A Log-Euclidean framework for statistics on diffeomorphisms"; the first step is a midpoint rule
    [inference], several times closer than the velocity itself.

    Args:
        velocity: Shape (..., 3, i, j, k), mm in RAS+ per unit of time.
        affine: (4, 4), where it lies.
        squarings: How many times the map is composed with itself; by default as many as make the first
            step smaller than a quarter of a voxel.

    Returns:
        Shape (..., 3, i, j, k).

    Raises:
        InputError: A negative number of squarings.
    """
    if squarings is None:
        squarings = squarings_for(velocity, affine)
    if squarings < 0:
        raise InputError(
            "not a number of squarings", source="squarings", value=squarings, expected="0 or more"
        )
    step = velocity * 0.5**squarings
    moved = sample(step, places(0.5 * step, affine))  # the midpoint rule: an error of third order, not second
    for _ in range(squarings):
        moved = compose(moved, moved, affine)
    return moved


def squarings_for(velocity: Array, affine: ArrayLike) -> int:
    """Return how often a velocity is to be halved until nothing moves further than a quarter of a voxel."""
    to_index = np.linalg.inv(np.asarray(affine, dtype=np.float64)[:3, :3])
    library = namespace(velocity)
    still = velocity if library is np else velocity.detach()
    parts = components(still)
    largest = max(float(library.abs(combine(row, parts)).max()) for row in to_index)
    if not math.isfinite(largest):
        raise InputError("the velocity is not finite", value=largest, expected="finite numbers")
    return max(0, math.ceil(math.log2(largest / _STEP))) if largest > 0 else 0


def _sample_numpy(values: NDArray[Any], index: NDArray[Any], order: int) -> NDArray[Any]:
    narrow = values.dtype == np.float32 or (values.dtype.kind in "biu" and values.dtype.itemsize <= 2)
    dtype = np.dtype(np.float32 if narrow else np.float64)
    result = np.empty((*values.shape[:-3], *index.shape[-3:]), dtype=dtype)
    quick = _native and order == 1 and dtype == np.float32 and index.dtype in (np.float32, np.float64)
    ndimage = None if quick and values.size else optional_import("scipy.ndimage")
    for place in np.ndindex(*values.shape[:-3]):
        own = index if index.ndim == 4 else index[place[:-1]]
        if ndimage is None:
            part, flat = (
                np.ascontiguousarray(values[place], np.float32),
                np.ascontiguousarray(own).reshape(3, -1),
            )
            _native.interpolate(vector_kernels()[-1], thread_count(), part, flat, result[place].reshape(-1))
            continue
        ndimage.map_coordinates(
            values[place].astype(dtype, copy=False), own, output=result[place], order=order, mode="nearest"
        )
    return result


def _sample_torch(values: Array, index: Array) -> Array:
    functional = optional_import("torch.nn.functional", "language")
    torch = namespace(values)
    shape = values.shape[-3:]
    batch = values.reshape(1, -1, *shape) if index.ndim == 4 else values.reshape(-1, values.shape[-4], *shape)
    places = index.reshape(-1, *index.shape[-4:])
    # grid_sample counts from -1 at the first voxel's centre to 1 at the last one's, last axis first.
    wide = [axis for axis, count in enumerate(shape) if count > 1]
    wide = wide if len(wide) == 2 else [0, 1, 2]  # in a slice, four neighbours say what eight would
    scaled = [
        places[:, axis] * (2 / (shape[axis] - 1)) - 1 if shape[axis] > 1 else places[:, axis] * 0
        for axis in wide
    ]
    grid = torch.stack(scaled[::-1], -1)
    if len(wide) == 2:
        batch, grid = batch.reshape(*batch.shape[:2], *(shape[axis] for axis in wide)), grid.flatten(2, 3)
    found = functional.grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return found.reshape(*values.shape[:-3], *index.shape[-3:])


def nearest(values: NDArray[Any], index: NDArray[Any]) -> NDArray[Any]:
    """Copy the nearest voxel, in its own dtype; beyond the grid, the one at its face.

    Args:
        values: Shape (i, j, k), any dtype.
        index: Fractional indices, shape (3, i', j', k').

    Returns:
        Shape (i', j', k').
    """
    places = (
        np.clip(np.rint(place), 0, count - 1).astype(np.intp)
        for place, count in zip(index, values.shape, strict=True)
    )
    found: NDArray[Any] = values[tuple(places)]
    return found


def most_common(labels: NDArray[Any], index: NDArray[Any]) -> NDArray[Any]:
    """Return the label with the largest share of the eight voxels around, each weighed as linearly.

    The edge between two labels is as smooth as the linear interpolation of either one's mask, cut at one
    half. Where shares are equal, the corner with the lower indices wins.

    Args:
        labels: Shape (i, j, k), any dtype.
        index: Fractional indices, shape (3, i', j', k').

    Returns:
        Shape (i', j', k').
    """
    below = np.floor(index)
    corners: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for corner in np.ndindex(2, 2, 2):
        weight = np.ones(index.shape[1:], dtype=np.float32)
        for axis, step in enumerate(corner):
            part = index[axis] - below[axis]
            weight *= (part if step else 1 - part).astype(np.float32)
        step_to = np.asarray(corner, dtype=below.dtype).reshape(3, 1, 1, 1)
        corners.append((nearest(labels, below + step_to), weight))
    best = corners[0][0].copy()
    largest = np.zeros(best.shape, dtype=np.float32)
    for label, _ in corners:
        share = sum((other == label) * weight for other, weight in corners)
        better = share > largest + 1e-6
        best[better] = label[better]
        largest = np.where(better, share, largest)
    return best
