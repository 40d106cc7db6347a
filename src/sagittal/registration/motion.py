"""What moves images in a registration: exponentials of velocities, images brought along, what pushes them.

Arrays are numpy's; those of float32 go to the extension where it is there, others to the reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.registration import native
from sagittal.volume import Geometry
from sagittal.volume.field_calculus import combine, gradient
from sagittal.volume.field_maps import exponentiate, inside, places, sample, squarings_for

__all__ = ["brought", "exponential", "overlap", "pushed"]

Vectors = NDArray[Any]


def exponential(velocity: Vectors, grid: Geometry) -> Vectors:
    """Return the displacement reached at time 1, as :func:`sagittal.volume.field_maps.exponentiate` does.

    Args:
        velocity: Shape (3, i, j, k), mm in RAS+.
        grid: Where it lies.
    """
    if not native.usable(velocity):
        return np.asarray(exponentiate(velocity, grid.affine))
    times = squarings_for(velocity, grid.affine)
    field = _in_voxels(velocity, grid)
    moved = native.compose(field, own=0, factor=0.5**times, along=0.5 * 0.5**times)
    for _ in range(times):
        moved = native.compose(moved)
    return _turned(grid.affine[:3, :3], moved)


def brought(
    image: NDArray[Any], own: Geometry, displacement: Vectors, moves: Geometry, grid: Geometry
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return an image where the voxels of a grid are moved to, and which of them lie in it.

    Args:
        image: Shape (i, j, k), on the grid ``own``.
        own: Where the image lies.
        displacement: Shape (3, i', j', k'), mm in RAS+, on the grid ``moves``.
        moves: A grid over the same box as ``grid``, as fine or coarser, between whose voxels
            vectors are linear.
        grid: What is asked for.
    """
    if native.usable(image, displacement):
        to_index = np.linalg.inv(own.affine)
        found, seen = native.bring(
            image,
            _in_voxels(displacement, moves),
            grid.shape,
            (to_index @ grid.affine)[:3],
            to_index[:3, :3] @ moves.affine[:3, :3],
        )
        return found, seen.view(np.bool_)
    if moves != grid:
        still = np.zeros((3, *grid.shape), displacement.dtype)
        displacement = sample(displacement, places(still, grid.affine, moves.affine))
    index = places(displacement, grid.affine, own.affine)
    return sample(image, index), inside(index, own.shape)


def pushed(
    a: NDArray[Any],
    b: NDArray[Any],
    by_a: NDArray[Any],
    by_b: NDArray[Any],
    seen: NDArray[Any],
    grid: Geometry,
    coarse: Geometry,
) -> Vectors:
    """Return by_b grad b - by_a grad a where seen, per mm in RAS+: its mean over each voxel of ``coarse``."""
    if native.usable(a, b, by_a, by_b):
        steps = native.push(a, b, by_a, by_b, seen.view(np.uint8), coarse.shape)
        inverse = np.linalg.inv(grid.affine[:3, :3])
        return np.stack([combine(inverse[:, world], list(steps)) for world in range(3)])
    slopes = zip(gradient(a, grid.affine), gradient(b, grid.affine), strict=True)
    force = np.stack([(by_b * second - by_a * first) * seen for first, second in slopes])
    for axis, (count, fewer) in enumerate(zip(grid.shape, coarse.shape, strict=True), start=1):
        force = _means(force, axis, count, fewer)
    return force


def overlap(first: Geometry, second: Geometry, matrix: NDArray[np.float64]) -> int:
    """Return how many voxels of ``first`` lie in ``second`` after an affine map."""
    seen = places(np.zeros((3, *first.shape), dtype=np.float32), matrix @ first.affine, second.affine)
    return int(inside(seen, second.shape).sum())


def _means(values: NDArray[Any], axis: int, count: int, fewer: int) -> NDArray[Any]:
    """Return the means over the voxels of an axis that each of fewer voxels covers, wholly or in part."""
    if count == fewer:
        return values
    sums = np.concatenate(
        [np.zeros_like(values.take([0], axis)), values.cumsum(axis, dtype=np.float64)], axis
    )
    number = np.arange(fewer)
    first, last = number * count // fewer, -(-(number + 1) * count // fewer)
    shape = [1] * values.ndim
    shape[axis] = fewer
    found: NDArray[Any] = (sums.take(last, axis) - sums.take(first, axis)) / (last - first).reshape(shape)
    return found


def _in_voxels(vectors: Vectors, grid: Geometry) -> NDArray[np.float32]:
    """Return vectors in voxels of their grid, (i, j, k, 4) with 0 last."""
    to_index = np.linalg.inv(grid.affine[:3, :3])
    found = np.zeros((*vectors.shape[1:], 4), np.float32)
    for row in range(3):
        found[..., row] = combine(to_index[row], list(vectors))
    return found


def _turned(matrix: NDArray[np.float64], field: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (3, i, j, k) vectors from (i, j, k, 4) ones, after a matrix."""
    return np.stack([combine(row, [field[..., n] for n in range(3)]) for row in matrix])
