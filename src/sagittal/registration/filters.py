"""Separable filters on arrays and tensors, written as sums of shifted copies.

Every voxel's sum is added in one order, so the result has the same bits whatever the number of threads. A
Gaussian of numpy's float32 is the extension's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sagittal.registration import native
from sagittal.volume.field_calculus import Array

__all__ = ["box", "gaussian"]

_REACH = 3.0  # a Gaussian is cut off at so many standard deviations


def gaussian(values: Array, sigmas: Sequence[float], *, outside_zero: bool = False) -> Array:
    """Smooth along the last three axes.

    Args:
        values: Tensor or array of shape (..., i, j, k).
        sigmas: Standard deviation along each axis, in voxels; 0 leaves an axis as it is.
        outside_zero: Take what lies beyond the grid for 0; else the weights of what lies within sum to 1.

    Returns:
        The same shape.
    """
    for axis, sigma in zip((-3, -2, -1), sigmas, strict=True):
        count = values.shape[axis]
        radius = min(int(np.ceil(_REACH * sigma)), count - 1)
        if sigma <= 0 or radius < 1:
            continue
        weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
        weights /= weights[0] + 2 * weights[1:].sum()
        if native.usable(values):
            values = native.blur(values, weights.tolist(), axis, outside_zero=outside_zero)
            continue
        total = _shifted_sum(values, weights.tolist(), axis)
        if not outside_zero:
            ones = _shifted_sum(np.ones((1, 1, count)), weights.tolist(), -1)
            for place in {*range(radius), *range(count - radius, count)}:
                edge = _cut(total, axis, place, place + 1)
                edge *= float(1 / ones[0, 0, place])
        values = total
    return values


def box(values: Array, radius: int) -> Array:
    """Return the sum over a cube of 2 * radius + 1 voxels a side; what lies beyond the grid counts as 0."""
    for axis in (-3, -2, -1):
        if values.shape[axis] > 1:
            values = _shifted_sum(values, [1.0] * (min(radius, values.shape[axis] - 1) + 1), axis)
    return values


def _shifted_sum(values: Array, weights: Sequence[float], axis: int) -> Array:
    count = values.shape[axis]
    total = values * weights[0]
    for step, weight in enumerate(weights[1:], start=1):
        part = values if weight == 1 else values * weight
        after = _cut(total, axis, step, count)
        after += _cut(part, axis, 0, count - step)
        before = _cut(total, axis, 0, count - step)
        before += _cut(part, axis, step, count)
    return total


def _cut(values: Array, axis: int, start: int, stop: int) -> Array:
    part = [slice(None)] * 3
    part[axis] = slice(start, stop)
    return values[(..., *part)]
