"""How much each ray counts where lines are seen twice: full turns, short scans, shifted detectors."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.reconstruction.geometry import ConeBeam, FanBeam, ParallelBeam, ScanGeometry

__all__ = ["longer_side", "redundancy"]

_TURN = 2 * math.pi
_WIDEST_GAP = 3.0
"""In usual gaps: what is missing beyond it is not made up for."""

_EVEN = 1.01
"""Bins by which the sides of a detector may differ without weights of their own."""


def redundancy(geometry: ScanGeometry) -> NDArray[np.float64]:
    """Return the weight of each ray, radians, shape (views, bins): a line seen twice counts half.

    Views share what the gaps between them are, up to three usual gaps. A fan's full turn counts each ray
    half; less than that takes the weights of Parker (Medical Physics 9:254, 1982). Where the detector is
    shifted to see further on one side, over a full turn, what both sides see fades from one to the other
    (Wang, Medical Physics 29:1634, 2002), over four times the shift or eight bins, if that is less than all
    of it [inference: a slight shift then costs little noise].

    Raises:
        InputError: A fan that turns by less than half a turn and its own angle, or a detector that does not
            reach the axis.
    """
    angles = np.asarray(geometry.angles)
    if isinstance(geometry, ParallelBeam) and longer_side(geometry) == 0:
        return np.tile(_gaps(angles, math.pi)[:, None], (1, geometry.bins))
    total, step = _turned(geometry)
    if isinstance(geometry, ParallelBeam) or total > _TURN - 0.51 * step:
        return _gaps(angles, _TURN)[:, None] * _sides(geometry)
    return _short_scan(geometry, angles, total, step)


def longer_side(geometry: ScanGeometry) -> int:
    """Return on which side a detector sees further and the views of a whole turn make up for the other.

    Returns:
        1 for the last bins, -1 for the first, 0 where the sides are even or there is no whole turn.
    """
    edges = geometry.edges
    apart = float(edges[-1] + edges[0])
    total, step = _turned(geometry)
    if abs(apart) <= _EVEN * geometry.bin_width or total <= _TURN - 0.51 * step:
        return 0
    return 1 if apart > 0 else -1


def _turned(geometry: ScanGeometry) -> tuple[float, float]:
    """Return how far the views turn, the last one's share included, and the usual step."""
    angles = np.sort(geometry.angles)
    step = float(np.median(np.diff(angles))) if len(angles) > 1 else 0.0
    return float(np.ptp(angles)) + step, step


def _short_scan(
    geometry: FanBeam | ConeBeam, angles: NDArray[np.float64], total: float, step: float
) -> NDArray[np.float64]:
    edges = geometry.fan_angles
    fan = (edges[1:] + edges[:-1]) / 2
    over, widest = (total - math.pi) / 2, float(np.abs(edges).max())
    if over < widest - 1e-9:
        raise InputError(
            "the views cover too little of a turn",
            source="angles",
            value=f"{math.degrees(total):.0f} degrees",
            expected=f"{180 + 2 * math.degrees(widest):.0f} or more; iterative methods take fewer",
        )
    turn = (angles - angles.min() + step / 2)[:, None]
    gamma = np.broadcast_to(fan, (len(angles), geometry.bins))
    rise, fall = over + gamma, over - gamma
    weight = np.ones_like(gamma)
    begins, ends = turn < 2 * rise, turn > math.pi + 2 * gamma
    weight[begins] = (np.sin(math.pi / 4 * turn / np.maximum(rise, 1e-9)) ** 2)[begins]
    weight[ends] = (np.sin(math.pi / 4 * (math.pi + 2 * over - turn) / np.maximum(fall, 1e-9)) ** 2)[ends]
    order = np.argsort(angles)
    after = np.minimum(np.diff(angles[order]), _WIDEST_GAP * step)
    share = np.empty(len(angles))
    share[order] = (np.append(after, step) + np.append(step, after)) / 2
    return weight * share[:, None]


def _sides(geometry: ScanGeometry) -> NDArray[np.float64]:
    """Return the weight of each bin against the one that sees its lines from behind; their sum is 1."""
    side = longer_side(geometry)
    if side == 0:
        return np.full(geometry.bins, 0.5)
    edges = geometry.edges
    short, long = sorted((-float(edges[0]), float(edges[-1])))
    if short <= 0:
        raise InputError(
            "the detector does not reach the axis",
            source="offset",
            value=f"{geometry.offset:g} bins of {geometry.bins}",
            expected="less than half the bins; iterative methods take it",
        )
    place = (edges[1:] + edges[:-1]) / 2 * side
    width = min(short, max(2 * (long - short), 8 * geometry.bin_width))
    part = np.clip((np.abs(place) - (short - width)) / width, 0, 1)
    more = (1 + np.sin(math.pi / 2 * part) ** 2) / 2
    return np.where(place > 0, more, 1 - more)


def _gaps(angles: NDArray[np.float64], period: float) -> NDArray[np.float64]:
    """Return how much of the period each angle stands for; a wide gap is not made up for."""
    if len(angles) == 1:
        return np.array([period])
    order = np.argsort(angles % period)
    places = (angles % period)[order]
    after = np.diff(np.append(places, places[0] + period))
    after = np.minimum(after, _WIDEST_GAP * max(float(np.median(after)), period / len(angles)))
    found = np.empty(len(angles))
    found[order] = (after + np.roll(after, 1)) / 2
    return found
