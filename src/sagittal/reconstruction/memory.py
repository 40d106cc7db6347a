"""What memory a reconstruction takes, so that one that cannot fit is refused before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sagittal.reconstruction.field_of_view import truncated_share
from sagittal.reconstruction.geometry import ConeBeam
from sagittal.reconstruction.projectors import REFERENCE, projector_kernels
from sagittal.reconstruction.scan import Scan
from sagittal.volume import Geometry

__all__ = ["COPIES", "memory_needed"]

COPIES: Mapping[str, tuple[int, int]] = {
    "fbp": (5, 12),
    "sirt": (6, 8),
    "cgls": (6, 4),
    "ordered-subsets": (11, 4),
    "tv": (5, 4),
    "edge-preserving-tv": (5, 4),
    "directional-tv": (6, 4),
}
"""Copies of the volume and of the sinogram, both in float32, at the peak of each method.

Measured, and rounded up. The test that measures them again fails where one is too low, or far too high.
"""

_BY_NUMPY = 14
"""More copies of the volume where fbp has no compiled kernels."""

_VARIANCE, _BESIDE = (17, 22), (6, 6)
_FLOAT = 4
_TABLES = 80
"""Bytes for each bin of each view that a projector knows it by."""


def memory_needed(
    scan: Scan,
    grid: Geometry,
    method: str,
    *,
    variance: bool = False,
    subdivision: int | None = None,
    edge_gradient: bool = False,
) -> int:
    """Return an estimate of the bytes that a reconstruction takes at its peak, the scan itself not counted.

    Args:
        scan: What is reconstructed.
        grid: Where the voxels are to lie.
        method: A key of :data:`COPIES`.
        variance: Whether each voxel's variance is estimated too.
        subdivision: Parts of a voxel's side that total variation computes with; its default without it.
        edge_gradient: Whether total variation corrects rays for edges within bins.
    """
    cone = isinstance(scan.geometry, ConeBeam)
    of_volume, of_rays = COPIES[method]
    if subdivision is None:
        subdivision = 2 if method == "edge-preserving-tv" and not cone else 1
    of_volume *= subdivision**2
    of_rays += 2 * edge_gradient
    if variance:
        of_volume = max(of_volume + _BESIDE[0], _VARIANCE[0])
        of_rays = max(of_rays + _BESIDE[1], _VARIANCE[1])
    if variance or method == "fbp":
        if projector_kernels()[-1] == REFERENCE:
            of_volume += _BY_NUMPY
        if truncated_share(scan) > 0:
            of_rays *= 2  # continued beyond the detector
    views, rows, bins = scan.geometry.shape
    copies = _FLOAT * (of_volume * math.prod(grid.shape) + of_rays * views * rows * bins)
    return copies + _TABLES * views * bins
