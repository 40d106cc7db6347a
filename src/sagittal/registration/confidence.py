"""How far a registration may be from the truth, voxel by voxel, told from its images and its own field.

Where two images are locally alike, they say where a point lies, and how well they say it shows in the field:
the anatomy bends it over many voxels, noise and lesions bend it from one to the next. Where they are not
alike (flat places, noise, beyond the overlap) nothing is known but how far this registration has moved
things at all. The two are put together as two measurements are, by the inverse of their variances; how
variances follow from roughness was fitted on simulated warps of the MNI152 template [inference].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import GeometryError
from sagittal.registration.filters import box, gaussian
from sagittal.registration.levels import coarsened, normalised, on_grid
from sagittal.registration.optimise import Registration
from sagittal.registration.similarity import similarity
from sagittal.volume import DisplacementField, Geometry, Volume
from sagittal.volume.field_maps import inside, places, sample

__all__ = ["displacement_error"]

_RADIUS = 2  # of the window in which two images are alike, voxels of the finest level
_FLAT = 0.05  # standard deviation that counts as flat, where the image's range is 1
_NEAR = 3.5  # standard deviation of the neighbourhood that a registration ties together, voxels
_BINS = 32
_NOTHING = 1e-3  # share of the neighbourhood below which its roughness is not told from rounding
# Fitted: see _variance.
_FLOOR, _ROUGH, _POWER, _MOVED, _LEVER = 0.044, 10.6, 2.36, 2.7, 0.16


def displacement_error(
    moving: Volume,
    fixed: Volume,
    registration: Registration,
    *,
    measure: str = "local-correlation",
    finest_mm: float | None = None,
) -> NDArray[np.float32]:
    """Return how far from its true place each voxel of the fixed image may have been sent.

    It is no bound: it tells where to look twice, not that nothing else is wrong. A whole structure that was
    taken for its neighbour can look certain.

    Args:
        moving: The image that was brought to ``fixed``.
        fixed: The image whose grid the field lies on.
        registration: What was found for the two.
        measure: The similarity that found it; for "mutual-information" the moving image's values are first
            replaced by the mean of the fixed one's where they occur.
        finest_mm: Voxel width of the registration's last level, as it was given to it.

    Returns:
        The expected distance (root mean square) in mm, float32 of the fixed image's shape.

    Raises:
        InputError: A constant image or an unknown measure.
        GeometryError: The field is not on the fixed image's grid, or does not lead into the moving one.
    """
    similarity(measure)
    if registration.field.geometry != fixed.geometry:
        raise GeometryError(
            "the registration is of another fixed image",
            value=repr(registration.field.geometry),
            expected=repr(fixed.geometry),
        )
    width = min(s for s, n in zip(fixed.geometry.spacing, fixed.shape, strict=True) if n > 1)
    width = max(width, finest_mm or 0.0)
    alike, seen, grid = _likeness(moving, fixed, registration, width, measure == "mutual-information")
    coarse = coarsened(grid, 2 * width)
    evidence = _evidence(
        registration, on_grid(alike, grid, coarse), on_grid(seen, grid, coarse), coarse, width
    )
    error = np.sqrt(_variance(evidence, width)).astype(np.float32)
    index = places(np.zeros((3, *fixed.shape), dtype=np.float32), fixed.geometry.affine, coarse.affine)
    return np.asarray(sample(error, index), dtype=np.float32)


@dataclass(frozen=True)
class _Evidence:
    """What the expected error follows from.

    Attributes:
        known: Share of the neighbourhood in which the images are alike, 0 to 1.
        rough: Mean square, over those voxels, of how far the field is from itself smoothed, mm².
        moved: Mean square of the displacement beyond the affine map, mm².
        lever: Squared distance from the middle of what is alike, as a multiple of its mean over that.
    """

    known: NDArray[Any]
    rough: NDArray[Any]
    moved: float
    lever: NDArray[Any]


def _likeness(
    moving: Volume, fixed: Volume, registration: Registration, width: float, translate: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32], Geometry]:
    """Return the squared correlation around each voxel, and 1 where the moving image is seen, on a grid."""
    grid, own = coarsened(fixed.geometry, width), coarsened(moving.geometry, width)
    still = on_grid(normalised(fixed, "fixed image"), fixed.geometry, grid)
    other = on_grid(normalised(moving, "moving image"), moving.geometry, own)
    field = registration.field if grid == fixed.geometry else registration.field.resample(grid)
    index = places(field.vectors.astype(np.float32, copy=False), grid.affine, own.affine)
    there = inside(index, own.shape)
    if not there.any():
        raise GeometryError(
            "the field leads nowhere into the moving image", value=repr(moving), expected="an overlap"
        )
    warped = np.asarray(sample(other, index), dtype=np.float32)
    if translate:
        warped = _translated(warped, still, there)
    seen = there.astype(np.float32)
    count = np.maximum(box(seen, _RADIUS), 1)
    a, b = still * seen, warped * seen
    mean_a, mean_b = box(a, _RADIUS) / count, box(b, _RADIUS) / count
    both = box(a * b, _RADIUS) / count - mean_a * mean_b
    own_a = np.maximum(box(a * a, _RADIUS) / count - mean_a * mean_a, 0) + _FLAT**2
    own_b = np.maximum(box(b * b, _RADIUS) / count - mean_b * mean_b, 0) + _FLAT**2
    return both * both / (own_a * own_b) * seen, seen, grid


def _translated(
    values: NDArray[np.float32], wanted: NDArray[np.float32], where: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return for each value the mean of what is wanted where it occurs, linear between 32 values."""
    place = np.clip(values, 0, 1) * (_BINS - 1)
    low = np.minimum(place.astype(np.intp), _BINS - 2)
    part = (place - low).astype(np.float64)
    total, mass = np.zeros(_BINS), np.full(_BINS, 1e-9)
    for step, weight in ((0, 1 - part), (1, part)):
        mass += np.bincount(low[where] + step, weight[where], minlength=_BINS)
        total += np.bincount(low[where] + step, (weight * wanted)[where], minlength=_BINS)
    table = total / mass
    return np.asarray(table[low] * (1 - part) + table[low + 1] * part, dtype=np.float32)


def _evidence(
    registration: Registration,
    alike: NDArray[np.float32],
    seen: NDArray[np.float32],
    grid: Geometry,
    width: float,
) -> _Evidence:
    near = [
        _NEAR * width / step if count > 1 else 0.0
        for step, count in zip(grid.spacing, grid.shape, strict=True)
    ]
    field = registration.field.resample(grid).vectors
    moved = (field - DisplacementField.from_affine(registration.affine, grid).vectors).astype(np.float32)
    apart = moved - gaussian(moved, near)
    known = gaussian(alike, near, outside_zero=True)
    rough = gaussian(alike * np.square(apart).sum(axis=0), near, outside_zero=True) / (known + _NOTHING)
    weight = (alike if alike.max() > _NOTHING else seen).astype(np.float64)
    weight /= weight.sum()
    return _Evidence(known, rough, float((np.square(moved).sum(axis=0) * weight).sum()), _lever(weight, grid))


def _lever(weight: NDArray[np.float64], grid: Geometry) -> NDArray[np.float64]:
    """Return the squared Mahalanobis distance from the middle of the weights, 1 on their average."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"))
    axes = [axis for axis in range(3) if grid.shape[axis] > 1]
    away = index[axes] - np.array([(index[axis] * weight).sum() for axis in axes]).reshape(-1, 1, 1, 1)
    spread = np.array([[(p * q * weight).sum() for q in away] for p in away]) + np.eye(len(axes)) / 12
    inverse = np.linalg.inv(spread) / len(axes)
    found = np.zeros(grid.shape)
    for p, row in zip(away, inverse, strict=True):
        for q, factor in zip(away, row.tolist(), strict=True):
            found += factor * p * q
    return found


def _variance(evidence: _Evidence, width: float) -> NDArray[np.float64]:
    """Return the expected squared distance in mm².

    Two variances: what the images leave open, a floor and a power of the roughness, both in voxels of the
    finest level; and what is open without them, which grows with the distance from all that is alike, as
    the affine map's own error does. The first counts for as much as the images are alike.
    """
    local = (_FLOOR + _ROUGH * (evidence.rough.astype(np.float64) / width**2) ** _POWER) * width**2
    without = _MOVED * evidence.moved * (1 + _LEVER * evidence.lever) + (0.1 * width) ** 2
    return np.asarray(1 / (evidence.known / local + 1 / without))
