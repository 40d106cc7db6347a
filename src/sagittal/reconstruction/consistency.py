"""What a scan says about its own geometry: the two rays along one line must agree."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sagittal.reconstruction.geometry import ConeBeam, ParallelBeam
from sagittal.reconstruction.scan import Scan

__all__ = ["turns_the_other_way"]

_TURN = 2 * math.pi
_FAR_BETTER = 0.25
_ABOVE_NOISE = 4.0
_SAMPLED = 120


def turns_the_other_way(scan: Scan) -> bool:
    """Tell whether the rays of a fan agree far better if the gantry turned against its angles.

    Over a whole turn each line is seen from both ends, in different views; which views depends on the way
    that the gantry turns. It is said to turn the other way where the mean square of what opposite rays differ
    by is then a quarter or less, and what they differ by now is four times their noise [inference]. Of
    parallel rays nothing can be said: turned the other way, they are those of the mirrored object.

    Args:
        scan: Its middle row is looked at, in up to 120 views.
    """
    geometry = scan.geometry
    if isinstance(geometry, ParallelBeam) or (isinstance(geometry, ConeBeam) and geometry.pitch != 0):
        return False
    row = geometry.rows // 2
    known = np.ones(len(scan.sinogram), bool) if scan.missing is None else ~scan.missing[:, row].any(axis=1)
    angles = np.asarray(geometry.angles)[known] % _TURN
    order = np.argsort(angles)
    angles, rays = angles[order], scan.sinogram[known, row][order].astype(np.float64)
    if len(angles) < 16 or np.diff(np.append(angles, angles[0] + _TURN)).max() > math.pi / 4:
        return False
    edges = geometry.fan_angles
    fan = (edges[1:] + edges[:-1]) / 2
    both = np.abs(fan) <= min(-fan[0], fan[-1])
    if both.sum() < 8:
        return False
    views = np.arange(0, len(angles), -(-len(angles) // _SAMPLED))
    gamma, here = fan[both], rays[views][:, both]
    apart = []
    for way in (-1, 1):
        twin = angles[views][:, None] + math.pi + way * 2 * gamma
        apart.append(float(np.mean((here - _at(rays, angles, fan, twin, -gamma)) ** 2)))
    noise = float(np.mean(np.diff(here, 2, axis=1) ** 2)) / 6
    return apart[1] < _FAR_BETTER * apart[0] and apart[0] > _ABOVE_NOISE * noise


def _at(
    rays: NDArray[np.float64],
    angles: NDArray[np.float64],
    fan: NDArray[np.float64],
    view: NDArray[np.float64],
    gamma: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return rays at angles of the gantry and of the fan, interpolated linearly in both."""
    around = np.concatenate([[angles[-1] - _TURN], angles, [angles[0] + _TURN]])
    place = np.interp(view % _TURN, around, np.arange(-1, len(angles) + 1))
    low, part = np.floor(place).astype(np.int64), place - np.floor(place)
    bin_ = np.broadcast_to(np.interp(gamma, fan, np.arange(len(fan))), view.shape)
    left = np.minimum(bin_.astype(np.int64), len(fan) - 2)
    share = bin_ - left

    def of(view: NDArray[np.int64]) -> NDArray[np.float64]:
        view = view % len(angles)
        return np.asarray((1 - share) * rays[view, left] + share * rays[view, left + 1])

    return np.asarray((1 - part) * of(low) + part * of(low + 1))
