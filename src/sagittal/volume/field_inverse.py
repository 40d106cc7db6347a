"""The inverse of a displacement field, voxel by voxel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.optional import optional_import
from sagittal.volume import field_maps
from sagittal.volume.geometry import Geometry

__all__ = ["folded_onto", "inverted"]


def inverted(
    displacement: NDArray[Any],
    affine: NDArray[Any],
    start: NDArray[Any],
    grid_affine: NDArray[Any],
    tolerance_mm: float,
    iterations: int,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Solve v(y) + u(y + v(y)) = 0 in each voxel y of a grid.

    A step is v <- v - step * (v + u(y + v)); where it does not bring the sum closer to 0 it is taken back
    and the voxel's step is halved, as it must be where u grows by more than its argument (a map that
    enlarges more than twofold). Only voxels that are not yet solved are worked on.

    Args:
        displacement: u, shape (3, i, j, k), mm in RAS+.
        affine: (4, 4), where u lies.
        start: First guess of v on the grid asked for, shape (3, i', j', k').
        grid_affine: (4, 4), where v lies.
        tolerance_mm: Length of the sum that counts as solved.
        iterations: At most so many steps.

    Returns:
        v, the length of the sum in each voxel, and whether y + v(y) lies beyond the grid of u.
    """
    to_index = np.linalg.inv(affine)
    u = displacement.astype(np.float64)
    shape = start.shape[1:]
    v = start.astype(np.float64).reshape(3, -1)
    still = np.zeros((3, *shape))
    home = field_maps.places(still, grid_affine, affine).reshape(3, -1)  # of y, in voxels of u

    def sums(guess: NDArray[Any], which: NDArray[Any]) -> NDArray[Any]:
        places = home[:, which] + to_index[:3, :3] @ guess
        found: NDArray[Any] = guess + field_maps.sample(u, places[:, :, None, None])[:, :, 0, 0]
        return found

    left = np.arange(v.shape[1])
    error = sums(v, left)
    length = np.linalg.norm(error, axis=0)
    step = np.ones(v.shape[1])
    left = left[length > tolerance_mm]
    for _ in range(iterations):
        if not left.size:
            break
        trial = v[:, left] - step[left] * error[:, left]
        there = sums(trial, left)
        now = np.linalg.norm(there, axis=0)
        better = now < length[left]
        chosen = left[better]
        v[:, chosen], error[:, chosen], length[chosen] = trial[:, better], there[:, better], now[better]
        step[chosen] = np.minimum(1.0, 1.5 * step[chosen])
        step[left[~better]] *= 0.5
        left = left[length[left] > tolerance_mm]
    found = v.reshape(3, *shape)
    index = field_maps.places(found, grid_affine, affine)
    return found, length.reshape(shape), ~field_maps.inside(index, u.shape[1:])


def folded_onto(
    displacement: NDArray[Any], affine: NDArray[Any], folds: NDArray[np.bool_], grid: Geometry
) -> NDArray[np.bool_]:
    """Tell which voxels of a grid lie within a voxel of where folded ones and their neighbours are moved to.

    The neighbours, because a fold between two voxels shows in the differences at one of them only.

    Args:
        displacement: Shape (3, i, j, k), mm in RAS+.
        affine: (4, 4), where it lies.
        folds: The voxels where the map folds, shape (i, j, k).
        grid: Whose voxels are asked for.

    Returns:
        Shape of the grid.
    """
    covered = np.zeros(grid.shape, dtype=np.bool_)
    if not folds.any():
        return covered
    ndimage, around = optional_import("scipy.ndimage"), np.ones((3, 3, 3))
    near = ndimage.binary_dilation(folds, around)
    found = np.rint(field_maps.places(displacement, affine, grid.affine)[:, near]).astype(np.intp)
    count = np.reshape(grid.shape, (3, 1))
    covered[tuple(found[:, ((found >= 0) & (found < count)).all(axis=0)])] = True
    return np.asarray(ndimage.binary_dilation(covered, around), dtype=np.bool_)
