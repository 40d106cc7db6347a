"""Scanners and a grid that the projectors' tests share: small, off-centre, of every kind."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from sagittal.reconstruction.geometry import ConeBeam, FanBeam, ParallelBeam, ScanGeometry
from sagittal.volume import Geometry

HALF = tuple(np.linspace(0, math.pi, 13, endpoint=False) + 0.03)
FULL = tuple(np.linspace(0, 2 * math.pi, 17, endpoint=False))

FAN = FanBeam(
    angles=FULL, bins=60, bin_width=1.9, source_distance=120, detector_distance=210, offset=0.25, rows=3
)
CONE = ConeBeam(
    angles=FULL,
    bins=40,
    rows=9,
    bin_width=3,
    row_height=2.5,
    source_distance=120,
    detector_distance=210,
    offset=0.25,
    row_offset=0.4,
)
SCANNERS: dict[str, ScanGeometry] = {
    "parallel": ParallelBeam(angles=HALF, bins=70, bin_width=0.9, offset=0.25, rows=3),
    "parallel-fine": ParallelBeam(angles=HALF, bins=400, bin_width=0.15, rows=3),
    "parallel-coarse": ParallelBeam(angles=FULL, bins=20, bin_width=3.1, rows=3),
    "fan-flat": FAN,
    "fan-curved": replace(FAN, curved=True),
    "fan-wide": replace(FAN, source_distance=36, detector_distance=80, bin_width=2.2),
    "fan-wide-curved": replace(FAN, source_distance=36, detector_distance=80, bin_width=1.7, curved=True),
    "cone-wide": replace(CONE, source_distance=36, detector_distance=80, bin_width=3.0),
    "cone": CONE,
    "helix": replace(CONE, curved=True, pitch=20.0),
}


def a_grid(*, turned: bool = False, down: bool = False, slices: int = 3) -> Geometry:
    affine = np.diag([-0.9, 1.1, -1.7 if down else 1.7, 1.0])
    affine[:3, 3] = (20, -19, affine[2, 2] * (1 - slices) / 2)
    if turned:
        turn = np.eye(4)
        turn[:2, :2] = [[math.cos(0.3), -math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]]
        affine = turn @ affine
    return Geometry((44, 37, slices), affine)


def a_pair(geometry: ScanGeometry, grid: Geometry) -> tuple[Any, Any]:
    draw = np.random.default_rng(0)
    return draw.random(grid.shape), draw.random(geometry.shape)
