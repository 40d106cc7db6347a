"""Smooth maps that are known in space, so that they can be put on any grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sagittal.volume import DisplacementField, Geometry

Map = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def turn(yaw: float, pitch: float) -> NDArray[np.float64]:
    """A rotation about z and then about x."""
    c, s = np.cos(yaw), np.sin(yaw)
    d, t = np.cos(pitch), np.sin(pitch)
    return np.array([[1, 0, 0], [0, d, -t], [0, t, d]]) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def centred(shape: tuple[int, int, int], spacing: ArrayLike, direction: ArrayLike) -> Geometry:
    """A grid around the origin of space."""
    steps = np.asarray(direction, dtype=np.float64) * np.asarray(spacing)
    origin = -steps @ ((np.array(shape) - 1) / 2)
    return Geometry.from_spacing(shape, np.asarray(spacing).tolist(), origin.tolist(), direction)


def on_grid(displacement: Map, geometry: Geometry) -> DisplacementField:
    """The map x -> x + displacement(x), sampled at the voxels of a grid."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), axis=-1)
    return DisplacementField(np.moveaxis(displacement(geometry.index_to_world(index)), -1, 0), geometry)


def swirl(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """A smooth displacement of a few mm that differs along every axis."""
    x, y, z = np.moveaxis(points, -1, 0) / 20.0
    u = [2.0 * np.sin(y + 0.3) + x, 1.5 * np.cos(x - z), 1.2 * np.sin(z + 0.5 * x)]
    return np.stack(u, axis=-1)


def swirl_determinant(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Jacobian determinant of x + swirl(x)."""
    x, y, z = np.moveaxis(points, -1, 0) / 20.0
    one = np.ones_like(x)
    rows = [
        [1 + one / 20, 2.0 * np.cos(y + 0.3) / 20, 0 * one],
        [-1.5 * np.sin(x - z) / 20, one, 1.5 * np.sin(x - z) / 20],
        [0.6 * np.cos(z + 0.5 * x) / 20, 0 * one, 1 + 1.2 * np.cos(z + 0.5 * x) / 20],
    ]
    return np.linalg.det(np.stack([np.stack(row, axis=-1) for row in rows], axis=-2))


def swirl_curl(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The curl of swirl, components last."""
    x, y, z = np.moveaxis(points, -1, 0) / 20.0
    found = [
        -1.5 * np.sin(x - z),
        -0.6 * np.cos(z + 0.5 * x),
        -1.5 * np.sin(x - z) - 2.0 * np.cos(y + 0.3),
    ]
    return np.stack(found, axis=-1) / 20.0


def bump(peak_mm: float, half_width: ArrayLike, seed: int, modes: int = 2) -> Map:
    """A random displacement of sines, 0 on the faces of the box |x| <= half_width."""
    random = np.random.default_rng(seed)
    factors = random.normal(size=(3, modes, modes, modes))
    half = np.asarray(half_width, dtype=np.float64)

    def displacement(points: NDArray[np.float64]) -> NDArray[np.float64]:
        phase = (points + half) / (2 * half) * np.pi
        waves: Any = [np.stack([np.sin((n + 1) * phase[..., a]) for n in range(modes)]) for a in range(3)]
        found = np.einsum("capq,a...,p...,q...->...c", factors, *waves)
        return peak_mm * found / np.abs(factors).sum(axis=(1, 2, 3)).max()

    return displacement
