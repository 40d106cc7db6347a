"""What a scanner sees of its object: voxels seen from every side, projections that end within the object."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sagittal.reconstruction.geometry import ConeBeam, ParallelBeam, ScanGeometry
from sagittal.reconstruction.redundancy import longer_side
from sagittal.reconstruction.scan import Scan
from sagittal.volume import Geometry
from sagittal.volume.phantoms import WATER_PER_MM

__all__ = ["extrapolated", "seen_from", "sight", "truncated_share", "unseen"]

_CUT = 0.05
"""Share of the largest line integral from which the end of a projection lies in the object."""

_DIRECTIONS = 32
_EDGE = 5  # bins at least, that say value and slope at the detector's end


def seen_from(
    geometry: ScanGeometry, grid: Geometry, view: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return place (in bins, from the first's middle), weight and magnification of each pixel, (i, j)."""
    to_detector, from_source = sight(geometry, grid, geometry.angles[view])
    i, j = np.arange(grid.shape[0])[:, None], np.arange(grid.shape[1])
    across = to_detector[0] * i + to_detector[1] * j + to_detector[2]
    first = geometry.bins / 2 - geometry.offset - 0.5
    if isinstance(geometry, ParallelBeam):
        return across / geometry.bin_width + first, np.ones_like(across), np.ones_like(across)
    deep = from_source[0] * i + from_source[1] * j + from_source[2]
    distance = geometry.detector_distance
    if geometry.curved:
        away = np.hypot(across, deep)
        return np.arctan2(across, deep) * distance / geometry.bin_width + first, 1 / away**2, distance / away
    weight = (geometry.source_distance / deep) ** 2
    return across / deep * distance / geometry.bin_width + first, weight, distance / deep


def sight(
    geometry: ScanGeometry, grid: Geometry, angle: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what (i, j, 1) gives a pixel's place along the detector, and its depth from the source, mm."""
    u, d = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    zero = grid.affine[:2, 3] - np.asarray(geometry.centre[:2])
    columns = np.stack([grid.affine[:2, 0], grid.affine[:2, 1], zero])
    away = 0.0 if isinstance(geometry, ParallelBeam) else geometry.source_distance
    return columns @ u, columns @ d + np.array([0.0, 0.0, away])


def unseen(geometry: ScanGeometry, grid: Geometry) -> NDArray[np.bool_] | None:
    """Return the voxels that are not seen from every side, bool of the grid's shape; None where all are.

    A side is a direction of rays, either way along the line: a voxel that a shifted detector sees only from
    every other side of a whole turn is seen. Directions are told apart in up to 32 steps, fewer where there
    are few views, four to a step [inference]. A direction that no view has, of any voxel, does not count.

    Args:
        geometry: The scanner.
        grid: The voxels.
    """
    if _sees_all(geometry, grid):
        return None
    steps = min(_DIRECTIONS, max(1, len(geometry.angles) // 4))
    there = np.zeros(grid.shape, np.uint32)
    possible = np.zeros(grid.shape[:2], np.uint32)
    heights = grid.affine[2, 3] + grid.affine[2, 2] * np.arange(grid.shape[2])
    source = geometry.heights if isinstance(geometry, ConeBeam) else np.zeros(len(geometry.angles))
    for view, angle in enumerate(geometry.angles):
        place, _, grow = seen_from(geometry, grid, view)
        side = angle - _fan_angle(geometry, place)
        bit = np.uint32(1) << (np.floor(side / math.pi * steps) % steps).astype(np.uint32)
        possible |= bit
        inside = (place >= -0.5) & (place <= geometry.bins - 0.5)
        if not isinstance(geometry, ConeBeam):
            there |= np.where(inside, bit, np.uint32(0))[..., None]
            continue
        middle = geometry.rows / 2 - 0.5 - geometry.row_offset
        for i in range(grid.shape[0]):  # a plane at a time, which takes little memory
            row = middle + (heights - source[view]) * grow[i, :, None] / geometry.row_height
            seen = inside[i, :, None] & (row >= -0.5) & (row <= geometry.rows - 0.5)
            there[i] |= np.where(seen, bit[i, :, None], np.uint32(0))
    found = there != possible[..., None]
    return found if found.any() else None


def truncated_share(scan: Scan) -> float:
    """Return the share of views whose outermost bins see part of the object, so that some of it is cut off.

    A bin does where its line integral, averaged over the rows, is above a twentieth of the scan's largest.
    The short side of a detector that is shifted over a whole turn does not count: the other side sees it.
    """
    ends = scan.sinogram[:, :, [0, -1]].astype(np.float64)
    known = np.ones(ends.shape, bool) if scan.missing is None else ~scan.missing[:, :, [0, -1]]
    mean = np.sum(ends * known, axis=1) / np.maximum(known.sum(axis=1), 1)
    side = longer_side(scan.geometry)
    mean = mean[:, [-1] if side > 0 else [0] if side < 0 else [0, 1]]
    return float(np.mean(mean.max(axis=1) > _CUT * max(float(scan.sinogram.max()), 1e-6)))


def extrapolated(
    rays: NDArray[np.floating], geometry: ScanGeometry, beyond: int, mu_water: float = WATER_PER_MM
) -> NDArray[np.float32]:
    """Return projections continued beyond the detector on both sides, shape (views, rows, bins + 2 beyond).

    They go on as those of the water cylinder that has their value and slope at the detector's end (Hsieh et
    al., Medical Physics 31:2385, 2004), for as long as it does, and fade over the last quarter. Where a
    projection ends outside the object there is nothing to continue.

    Args:
        rays: Line integrals, shape (views, rows, bins).
        geometry: The scanner.
        beyond: Bins on either side.
        mu_water: Attenuation of water, 1/mm.
    """
    found = np.zeros((*rays.shape[:2], rays.shape[2] + 2 * beyond), np.float32)
    found[..., beyond : beyond + rays.shape[2]] = rays
    if beyond == 0:
        return found
    width = geometry.bin_width
    if not isinstance(geometry, ParallelBeam):
        width *= geometry.source_distance / geometry.detector_distance
    count = min(max(_EDGE, rays.shape[2] // 40), rays.shape[2])
    along = (np.arange(count) - (count - 1) / 2) * width
    further = (np.arange(beyond) + (count + 1) / 2) * width
    fade = np.cos(math.pi / 2 * np.clip(4 * (np.arange(beyond) + 1) / (beyond + 1) - 3, 0, 1)) ** 2
    for side in (slice(None), slice(None, None, -1)):
        ends = rays[..., side][..., :count].astype(np.float64)
        value = np.maximum(ends.mean(axis=-1, keepdims=True), 0)
        slope = -(ends * along).sum(axis=-1, keepdims=True) / max(float((along**2).sum()), 1e-12)
        middle = -value * slope / (2 * mu_water) ** 2  # how far inside the end the cylinder's axis is
        square = (value / (2 * mu_water)) ** 2 + middle**2
        chord = 2 * mu_water * np.sqrt(np.maximum(square - (middle + further) ** 2, 0))
        found[..., side][..., :beyond] = (chord * fade)[..., ::-1]
    return found


def _sees_all(geometry: ScanGeometry, grid: Geometry) -> bool:
    """Return whether every view sees all corners of a grid, and so, where rays are straight, all of it."""
    shape = np.array(grid.shape)
    corners = Geometry((2, 2, 1), grid.affine @ np.diag([*(np.maximum(shape[:2] - 1, 1)), 1.0, 1.0]))
    heights = grid.affine[2, 3] + grid.affine[2, 2] * np.array([0, shape[2] - 1])
    source = geometry.heights if isinstance(geometry, ConeBeam) else np.zeros(len(geometry.angles))
    for view in range(len(geometry.angles)):
        place, _, grow = seen_from(geometry, corners, view)
        if place.min() < -0.5 or place.max() > geometry.bins - 0.5:
            return False
        if isinstance(geometry, ConeBeam):
            if geometry.curved:  # rows are lowest at the middle of the arc: as if the detector were flat
                grow = grow / np.cos(_fan_angle(geometry, place))
            middle = geometry.rows / 2 - 0.5 - geometry.row_offset
            row = middle + (heights - source[view]) * grow[..., None] / geometry.row_height
            if row.min() < -0.5 or row.max() > geometry.rows - 0.5:
                return False
    return True


def _fan_angle(geometry: ScanGeometry, place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the angle from the central ray of places on the detector, in bins from the first's middle."""
    if isinstance(geometry, ParallelBeam):
        return np.zeros_like(place)
    first = geometry.bins / 2 - geometry.offset - 0.5
    along = (place - first) * geometry.bin_width / geometry.detector_distance
    return along if geometry.curved else np.arctan(along)
