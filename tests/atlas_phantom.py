"""A head given by formulas, so that an atlas and cases that are known warps of it lie on any grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from known_fields import Map, centred, turn
from sagittal.volume import Geometry, Volume

_SHELLS = (1.0, 0.75, 0.45)  # of the half axes
_HALF = np.array([52.0, 60.0, 48.0])
_BALLS = (([20, 25, 5], 12.0), ([-22, 18, -8], 9.0), ([10, -28, 12], 14.0), ([-14, -20, 20], 8.0))


def oblique(spacing: float = 4.0) -> Geometry:
    """An oblique, anisotropic, left-handed grid around the head."""
    direction = turn(0.35, -0.2) @ np.diag([-1.0, 1.0, 1.0])
    steps = np.array([1.0, 1.1, 1.5]) * spacing
    count = np.ceil(2.4 * _HALF[[0, 1, 2]] / steps).astype(int) + 4
    return centred((int(count[0]), int(count[1]), int(count[2])), steps, direction)


def upright(spacing: float = 4.0) -> Geometry:
    """A grid along the axes of space."""
    count = np.ceil(2.3 * _HALF / spacing).astype(int) + 2
    return centred((int(count[0]), int(count[1]), int(count[2])), [spacing] * 3, np.eye(3))


def _points(geometry: Geometry) -> NDArray[np.float64]:
    return geometry.index_to_world(np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), -1))


def labels_at(points: NDArray[np.float64]) -> NDArray[np.uint8]:
    """0 outside, 1 to 3 from the outer shell to the inner one."""
    radius = np.sqrt(((points / _HALF) ** 2).sum(axis=-1))
    return sum((radius < edge).astype(np.uint8) for edge in _SHELLS)  # type: ignore[return-value]


def _intensity(points: NDArray[np.float64]) -> NDArray[np.float64]:
    radius = np.sqrt(((points / _HALF) ** 2).sum(axis=-1))
    soft = [1 / (1 + np.exp((radius - edge) * 30)) for edge in _SHELLS]
    image = 60 * soft[0] + 60 * soft[1] + 70 * soft[2]
    for middle, size in _BALLS:
        away = np.linalg.norm(points - np.array(middle, dtype=np.float64), axis=-1)
        image = image - 50 / (1 + np.exp((away - size) / 1.5))
    return np.where(radius < 1.1, np.clip(image, 1, None), 0)


def head(geometry: Geometry, displacement: Map | None = None, *, noise: float = 0.0, seed: int = 0) -> Volume:
    """The head on a grid, each voxel read where ``displacement`` leads from it."""
    points = _points(geometry)
    if displacement is not None:
        points = points + displacement(points)
    image = _intensity(points)
    added = np.random.default_rng(seed).normal(0, noise, image.shape) if noise else 0
    array = np.where(image > 0, np.clip(image + added, 1, 255), 0).astype(np.float32)
    return Volume(array, geometry, unit="a.u.")


def head_labels(geometry: Geometry, displacement: Map | None = None) -> Volume:
    """The labels of :func:`head`."""
    points = _points(geometry)
    if displacement is not None:
        points = points + displacement(points)
    return Volume(labels_at(points), geometry)
