"""What an ideal scanner measures of a phantom: its exact line integrals, without voxels.

Reconstructions that are judged on such data commit no inverse crime: nothing of the projector or the grid
that made the image is in the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.reconstruction.geometry import ConeBeam, ParallelBeam, ScanGeometry
from sagittal.volume.phantoms import WATER_PER_MM, Phantom

__all__ = ["line_integrals", "rays"]


def line_integrals(
    phantom: Phantom,
    geometry: ScanGeometry,
    *,
    subrays: int = 5,
    heights: Sequence[float] | None = None,
    water: float = WATER_PER_MM,
    as_intensity: bool = False,
) -> NDArray[np.float64]:
    """Return the sinogram of a phantom: exact integrals along rays, averaged over each bin of the detector.

    Args:
        phantom: What is scanned.
        geometry: How.
        subrays: Rays across a bin, evenly spaced; a cone takes as many along a row's height, so their square.
        heights: Where each slice of a parallel or fan beam lies, RAS+ mm; by default all at the geometry's
            centre.
        water: Attenuation of water, 1/mm.
        as_intensity: Average what the detector receives, exp(-integral), as a detector does, instead of the
            integrals. The two differ where an edge crosses a bin (the exponential edge-gradient effect).

    Returns:
        float64, shape (views, rows, bins), no unit.

    Raises:
        InputError: ``subrays`` below 1, attenuation that is not positive, or other heights than slices.
    """
    if subrays < 1 or not water > 0:
        raise InputError(
            "the rays cannot be drawn", value=(subrays, water), expected="1 ray or more, water above 0"
        )
    views, rows, bins = geometry.shape
    cone = isinstance(geometry, ConeBeam)
    if heights is None:
        heights = [geometry.centre[2]] * rows
    elif cone or len(heights) != rows:
        raise InputError(
            "heights are not for this geometry",
            source="heights",
            value=len(heights),
            expected="none for a cone beam" if cone else f"one for each of {rows} slices",
        )
    along = (np.arange(bins * subrays) + 0.5) / subrays
    across = subrays if cone else 1
    up = (np.arange(rows * across) + 0.5) / across
    found = np.empty(geometry.shape)
    for view in range(views):
        points, directions = rays(geometry, view, along, up, heights)
        total = np.zeros(points.shape[:-1])
        for body in phantom.bodies:
            total += body.integrals(points, directions)
        total *= water
        if as_intensity:
            total = np.exp(-total)
        mean = total.reshape(rows, -1, bins, subrays).mean(axis=(1, 3))
        found[view] = -np.log(mean) if as_intensity else mean
    return found


def rays(
    geometry: ScanGeometry,
    view: int,
    along: NDArray[np.float64],
    up: NDArray[np.float64],
    heights: Sequence[float] = (),
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a point (the source, for a fan or a cone) and the unit direction of each ray of one view.

    Args:
        geometry: How the scanner looks.
        view: Which view.
        along: Places along the detector, in bins from its first edge, shape (n,).
        up: Places along its rows, in rows from the lowest edge, shape (m,).
        heights: Height of each slice of a parallel or fan beam, RAS+ mm.

    Returns:
        Points and directions, shape (m, n, 3), RAS+ mm.
    """
    angle = geometry.angles[view]
    u = np.array([math.cos(angle), math.sin(angle), 0.0])
    d = np.array([-math.sin(angle), math.cos(angle), 0.0])
    place = (along - geometry.bins / 2 + geometry.offset) * geometry.bin_width
    centre = np.asarray(geometry.centre)
    shape = (len(up), len(along), 3)
    if isinstance(geometry, ConeBeam):
        rise = (up - geometry.rows / 2 + geometry.row_offset) * geometry.row_height
        level = np.full(len(up), geometry.heights[view])
    else:
        rise = np.zeros(len(up))
        level = np.asarray(heights, dtype=np.float64)[np.floor(up).astype(int)]
    points = np.zeros(shape)
    points[..., :2] = centre[:2]
    points[..., 2] = level[:, None]
    if isinstance(geometry, ParallelBeam):
        points += place[:, None] * u
        return points, np.broadcast_to(d, shape)
    points -= geometry.source_distance * d
    distance = geometry.detector_distance
    if geometry.curved:
        fan = place[:, None] / distance
        across = distance * (np.cos(fan) * d + np.sin(fan) * u)
    else:
        across = distance * d + place[:, None] * u
    directions = across[None] + rise[:, None, None] * np.array([0.0, 0.0, 1.0])
    return points, directions / np.linalg.norm(directions, axis=-1, keepdims=True)
