"""Rays that were not measured, for methods that need every ray: interpolated, with what that is worth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import GeometryError
from sagittal.reconstruction.corrections import Correction

__all__ = ["fill_missing"]

_SAMPLED = 64
"""Views that the worth of an interpolation is measured on."""


def fill_missing(sinogram: NDArray[np.floating], missing: NDArray[np.bool_]) -> Correction:
    """Fill missing rays linearly along the detector, or from the rows beside where all of a row is missing.

    The variance of a filled ray is the mean square of what the same interpolation over the same gap misses
    at rays that were measured, in up to 64 of the views (their noise included). It is taken as independent of
    the neighbours, which it is not. Whole views cannot be filled: they stay as they are, with a variance
    without end.

    Args:
        sinogram: Line integrals, shape (views, rows, bins); those of missing rays may be anything.
        missing: Bool, same shape.

    Raises:
        GeometryError: Shapes that do not match.
    """
    if missing.shape != sinogram.shape or missing.dtype != bool:
        raise GeometryError(
            "the missing rays do not fit", value=missing.shape, expected=f"bool, {sinogram.shape}"
        )
    rays, known = np.where(missing, 0, sinogram), ~missing
    variance = np.zeros(rays.shape)
    step = -(-len(rays) // _SAMPLED)
    sample = rays[::step].astype(np.float64), known[::step]
    costs: dict[tuple[int, int, int], float] = {}
    for view in np.flatnonzero(missing.any(axis=(1, 2))):
        seen = known[view]
        if not seen.any():
            variance[view] = np.inf
            continue
        rows = seen.any(axis=1)
        if not seen[rows].all():
            rays[view, rows], variance[view, rows] = _filled(rays[view, rows], seen[rows], 2, sample, costs)
        if not rows.all():  # the rays of whole rows, from the rows beside
            seen = np.broadcast_to(rows[:, None], seen.shape)
            across, worth = _filled(rays[view].T, seen.T, 1, sample, costs)
            rays[view, ~rows], variance[view, ~rows] = across.T[~rows], worth.T[~rows]
    return Correction(rays, missing, variance, np.where(missing, 0.0, 1.0))


def _filled(
    lines: NDArray[np.floating],
    known: NDArray[np.bool_],
    axis: int,
    sample: tuple[NDArray[np.float64], NDArray[np.bool_]],
    costs: dict[tuple[int, int, int], float],
) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
    """Return lines, filled along their last axis, and the variance of what was filled.

    Args:
        lines: Shape (n, places); each has a known place.
        known: Bool, same shape.
        axis: That of the sample along which the lines run.
        sample: Rays of some views, and which of them are known.
        costs: What interpolating over a gap misses, by axis and distances; more are added.
    """
    places = np.arange(lines.shape[1])
    left = np.maximum.accumulate(np.where(known, places, -1), axis=1)
    right = np.minimum.accumulate(np.where(known, places, lines.shape[1])[:, ::-1], axis=1)[:, ::-1]
    n, place = np.nonzero(~known)
    below, above = left[n, place], right[n, place]
    lower = np.where(below < 0, above, below)
    upper = np.where(above == lines.shape[1], below, above)
    share = np.where(upper > lower, (place - lower) / np.maximum(upper - lower, 1), 0)
    filled, worth = lines.copy(), np.zeros(lines.shape)
    filled[n, place] = (1 - share) * lines[n, lower] + share * lines[n, upper]
    gaps = np.stack(
        [np.where(below < 0, 0, place - below), np.where(above == lines.shape[1], 0, above - place)]
    )
    kinds, which = np.unique(gaps, axis=1, return_inverse=True)
    for kind in kinds.T.tolist():
        if (axis, *kind) not in costs:
            costs[axis, kind[0], kind[1]] = _missed(*sample, axis, *kind)
    worth[n, place] = np.array([costs[axis, a, b] for a, b in kinds.T.tolist()])[which.reshape(-1)]
    return filled, worth


def _missed(rays: NDArray[np.float64], known: NDArray[np.bool_], axis: int, left: int, right: int) -> float:
    """Return the mean square by which interpolating from so far away misses known rays; 0 is no neighbour."""
    rays, known = np.moveaxis(rays, axis, -1), np.moveaxis(known, axis, -1)
    count = rays.shape[-1] - left - right
    if count > 0:
        middle = slice(left, left + count)
        low, high = slice(0, count), slice(left + right, left + right + count)
        if left == 0:
            low = high
        if right == 0:
            high = low
        share = left / (left + right) if left and right else 0.0
        usable = known[..., middle] & known[..., low] & known[..., high]
        if usable.any():
            apart = rays[..., middle] - (1 - share) * rays[..., low] - share * rays[..., high]
            return float(np.mean(apart[usable] ** 2))
    return float(np.var(rays[known])) if known.any() else 0.0
