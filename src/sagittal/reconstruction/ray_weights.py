"""How much each ray counts: one by the variance of its line integral, computed where it is used.

What a scan's counts say is a few operations for each ray, and projecting a ray costs a hundred times as much.
So the weights of many rays are not kept, but computed each time, some views at a time. What edges add to the
variance (see :mod:`sagittal.reconstruction.total_variation`) took a projection, and is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.reconstruction.geometry import some_rays
from sagittal.reconstruction.scan import Scan

__all__ = ["RayWeights"]

_FEW = 1 << 18
"""Rays whose weights are kept anyway: a megabyte."""


class RayWeights:
    """The inverse variance of each line integral of a scan; 0 where none was measured.

    ``weights[views]`` gives those of some views, shape (views, rows, bins), and ``weights[views, rows]`` of
    some of their rows, both as slices; not to be written over.
    Where the dose is not known, every ray counts the same, by the noise between neighbours.

    Args:
        scan: Any geometry.
        dtype: float32 or float64.
    """

    def __init__(self, scan: Scan, dtype: Any) -> None:
        self._scan, self._dtype = scan, np.dtype(dtype)
        self._noise = _noise(scan) if scan.photons is None else 0.0
        self._kept: NDArray[Any] | None = None
        if scan.sinogram.size <= _FEW:
            self._kept = self[:]

    def __getitem__(self, rays: slice | tuple[slice, slice]) -> NDArray[Any]:
        if self._kept is not None:
            return self._kept[rays]
        shape = self._scan.sinogram.shape
        views, rows = rays if isinstance(rays, tuple) else (rays, slice(None))
        chosen = range(*views.indices(shape[0])), range(*rows.indices(shape[1]))
        found = np.empty((len(chosen[0]), len(chosen[1]), shape[2]), self._dtype)
        for part in some_rays(found.shape):
            v, r = (there[few] for there, few in zip(chosen, part, strict=True))
            these = slice(v.start, v.stop, v.step), slice(r.start, r.stop, r.step)
            np.divide(1, self._variance(these), out=found[part], casting="same_kind")
        return found

    def doubt(self, error: Callable[[slice], NDArray[Any]], views: list[slice]) -> None:
        """Add to the variance of each ray, in place of what was added before.

        Args:
            error: Gives what is added in some views.
            views: Those that it is asked for, in turn; all of them together.
        """
        if self._kept is None:
            self._kept = np.empty(self._scan.sinogram.shape, self._dtype)
        for part in views:
            self._kept[part] = 1 / (self._variance(part) + error(part))

    def _variance(self, rays: slice | tuple[slice, slice]) -> NDArray[np.float64] | float:
        if not self._noise:
            return self._scan.variance_in(rays)
        missing = self._scan.missing
        return self._noise**2 if missing is None else np.where(missing[rays], math.inf, self._noise**2)


def _noise(scan: Scan) -> float:
    """Return the standard deviation of the rays of a scan without a dose, from neighbours."""
    views, rows, bins = scan.sinogram.shape
    second = np.empty((views, rows, max(bins - 2, 0)))
    for part in some_rays(scan.sinogram.shape):
        second[part] = np.abs(np.diff(scan.sinogram[part].astype(np.float64), 2, axis=-1))
    if scan.missing is not None:
        known = ~scan.missing
        second = second[known[..., :-2] & known[..., 1:-1] & known[..., 2:]]
    noise = float(np.median(second, overwrite_input=True)) / 0.6745 / math.sqrt(6) if second.size else 0.0
    return max(noise, 1e-4 * max(float(np.abs(scan.sinogram).max()), 1e-6))
