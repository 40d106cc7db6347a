"""Phantoms of ellipses, whose line integrals are known exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.reconstruction.geometry import ConeBeam, ScanGeometry
from sagittal.reconstruction.projectors import ray_lines
from sagittal.volume import Geometry, Volume

__all__ = ["Ellipse", "ellipse_image", "ellipse_integrals", "shepp_logan", "torso"]


@dataclass(frozen=True)
class Ellipse:
    """A disc, drawn out and turned, that adds to what lies under it.

    Attributes:
        centre: Right and anterior, mm.
        axes: Half its lengths, mm.
        density: Attenuation that it adds, in that of water.
        turn: By how much it is turned, radians.
    """

    centre: tuple[float, float]
    axes: tuple[float, float]
    density: float
    turn: float = 0.0

    def to_unit(self, points: NDArray[np.float64], *, offset: bool = True) -> NDArray[np.float64]:
        """Map points (without ``offset``: directions), (..., 2), to where the ellipse is the unit circle."""
        c, s = math.cos(self.turn), math.sin(self.turn)
        moved = points - np.asarray(self.centre) if offset else points
        return np.asarray(moved @ np.array([[c, -s], [s, c]]) / np.asarray(self.axes))


def ellipse_integrals(
    ellipses: Sequence[Ellipse], geometry: ScanGeometry, *, mu_water: float = 0.02, rays: int = 4
) -> NDArray[np.float64]:
    """Return exact line integrals, averaged over rays spread over each bin, shape (views, 1, bins).

    Raises:
        InputError: A cone beam, or more than one slice.
    """
    if isinstance(geometry, ConeBeam) or geometry.rows != 1:
        raise InputError(
            "ellipses lie in one plane", value=geometry.kind, expected="a parallel or fan scan of one row"
        )
    found = np.zeros((len(geometry.angles), 1, geometry.bins))
    edges = np.interp(
        np.linspace(0, geometry.bins, geometry.bins * rays + 1), np.arange(geometry.bins + 1), geometry.edges
    )
    for view, angle in enumerate(geometry.angles):
        points, ways = ray_lines(geometry, angle, (edges[1:] + edges[:-1]) / 2)
        ways = ways / np.linalg.norm(ways, axis=1, keepdims=True)
        points = points + np.asarray(geometry.centre[:2])
        for ellipse in ellipses:
            p, w = ellipse.to_unit(points), ellipse.to_unit(ways, offset=False)
            square, along = (w**2).sum(axis=1), (p * w).sum(axis=1)
            inside = np.maximum(along**2 - square * ((p**2).sum(axis=1) - 1), 0)
            chord = 2 * np.sqrt(inside) / square
            found[view, 0] += ellipse.density * chord.reshape(geometry.bins, rays).mean(axis=1)
    return found * mu_water


def ellipse_image(ellipses: Sequence[Ellipse], grid: Geometry, *, parts: int = 4) -> Volume:
    """Return the phantom in HU; a voxel has the mean of ``parts`` x ``parts`` points in its plane."""
    total = np.zeros(grid.shape[:2])
    offsets = (np.arange(parts) + 0.5) / parts - 0.5
    i, j = np.meshgrid(*(np.arange(n) for n in grid.shape[:2]), indexing="ij")
    for a in offsets:
        for b in offsets:
            world = grid.index_to_world(np.stack([i + a, j + b, np.zeros_like(i)], axis=-1))[..., :2]
            for ellipse in ellipses:
                total += ellipse.density * ((ellipse.to_unit(world) ** 2).sum(axis=-1) <= 1)
    hu = (total / parts**2 - 1) * 1000
    return Volume(np.repeat(hu[..., None].astype(np.float32), grid.shape[2], axis=2), grid, unit="HU")


def shepp_logan(radius: float = 100.0) -> tuple[Ellipse, ...]:
    """Return the head phantom of Shepp and Logan (1974) with Toft's contrasts, 2 ``radius`` mm long."""
    rows = (
        (0.0, 0.0, 0.69, 0.92, 1.0, 0),
        (0.0, -0.0184, 0.6624, 0.874, -0.8, 0),
        (0.22, 0.0, 0.11, 0.31, -0.2, -18),
        (-0.22, 0.0, 0.16, 0.41, -0.2, 18),
        (0.0, 0.35, 0.21, 0.25, 0.1, 0),
        (0.0, 0.1, 0.046, 0.046, 0.1, 0),
        (0.0, -0.1, 0.046, 0.046, 0.1, 0),
        (-0.08, -0.605, 0.046, 0.023, 0.1, 0),
        (0.0, -0.605, 0.023, 0.023, 0.1, 0),
        (0.06, -0.605, 0.023, 0.046, 0.1, 0),
    )
    return tuple(_scaled(row, radius / 0.92) for row in rows)


def torso(radius: float = 150.0) -> tuple[Ellipse, ...]:
    """Return a chest-like phantom: lungs, spine, heart, vessels, and discs of 100, 60, 40 and 20 HU."""
    rows = [
        (0.0, 0.0, 1.0, 0.72, 1.0, 0),
        (-0.47, 0.05, 0.33, 0.5, -0.75, 8),
        (0.47, 0.05, 0.33, 0.5, -0.75, -8),
        (0.0, -0.5, 0.13, 0.13, 0.6, 0),
        (0.0, -0.5, 0.05, 0.05, -0.5, 0),
        (0.06, 0.2, 0.14, 0.2, 0.05, 20),
        (0.0, 0.62, 0.06, 0.04, 0.4, 0),
        (-0.92, 0.0, 0.03, 0.12, 0.7, 0),
        (0.92, 0.0, 0.03, 0.12, 0.7, 0),
        (-0.5, 0.2, 0.03, 0.03, 0.75, 0),
        (-0.4, -0.1, 0.02, 0.02, 0.75, 0),
        (0.52, 0.0, 0.025, 0.025, 0.75, 0),
        (0.42, 0.25, 0.015, 0.015, 0.75, 0),
    ]
    for place, contrast in enumerate((0.1, 0.06, 0.04, 0.02)):
        rows += [
            (-0.36 + 0.24 * place, -0.6 if place in (0, 3) else -0.28, size, size, contrast, 0)
            for size in (0.04,)
        ]
    return tuple(_scaled(row, radius) for row in rows)


def _scaled(row: tuple[float, ...], scale: float) -> Ellipse:
    x, y, a, b, density, degrees = row
    return Ellipse((x * scale, y * scale), (a * scale, b * scale), density, math.radians(degrees))
