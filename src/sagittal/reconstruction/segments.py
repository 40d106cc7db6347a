"""Which rays cross which rows of an image, and where: what every distance-driven projector is made of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import GeometryError
from sagittal.reconstruction.geometry import ConeBeam, ParallelBeam, ScanGeometry, require_covered
from sagittal.volume import Geometry

__all__ = [
    "MARGIN",
    "Segment",
    "check_grid",
    "each_segment",
    "line_heights",
    "middle_line",
    "ray_lines",
    "segments_of",
]

MARGIN, _CURVED_MARGIN = 0.002, 0.05  # of a bin, as in native/projectors.cpp


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Neighbouring bins of one view whose rays run mostly across the same rows.

    Edge ``e`` crosses row ``r`` at ``P[e] + Q[e] r``, in pixels along the row, ascending.

    Attributes:
        view: Number of the view.
        first: The bin whose edges come first.
        step: 1, or -1 where the bins descend.
        P: Where the edges cross row 0, shape (bins + 1,).
        Q: How far they move from row to row.
        scale: Length of the bins' rays from row to row, in the plane, mm.
        m0: Height of a detector row where the ray meets row 0, in slices; None for a plane.
        m1: How much it grows from row to row.
        tilt: Rise of a ray from row to row for each detector row above the source, mm.
        rows: The first row that these rays cross before the image ends, and the one behind the last.
        inverse: From a pixel to a bin: a (3), b (3), f0, f1, curved; see native/projectors.h.
        centre: Height of the source, in slices.
    """

    view: int
    first: int
    step: int
    P: NDArray[np.float64]
    Q: NDArray[np.float64]
    scale: NDArray[np.float64]
    m0: NDArray[np.float64] | None
    m1: NDArray[np.float64] | None
    tilt: NDArray[np.float64] | None
    rows: tuple[int, int]
    inverse: NDArray[np.float64]
    centre: float

    def taps(self) -> tuple[int, int]:
        """Return how many pixels a bin may meet, and how many bins a pixel."""
        widths = np.stack([np.diff(self.P + self.Q * row) for row in (self.rows[0], self.rows[1] - 1)])
        if widths.min() <= 0:
            raise GeometryError("rays cross inside the image", source="geometry", value=f"view {self.view}")
        margin = _CURVED_MARGIN if self.inverse[8] else MARGIN
        return math.ceil(widths.max()) + 1, math.ceil(1 / widths.min() + 2 * margin) + 1


def check_grid(geometry: ScanGeometry, grid: Geometry) -> int:
    """Return 1 if the slices of a grid go up the scanner's axis, -1 if down.

    Raises:
        GeometryError: See :class:`~sagittal.reconstruction.projectors.Projector`.
    """
    matrix = grid.affine[:3, :3]
    if np.abs(np.append(matrix[:2, 2], matrix[2, :2])).max() > 1e-4 * min(grid.spacing):
        raise GeometryError(
            "the grid's slices do not lie across the scanner's axis",
            value=f"axes {''.join(grid.axis_codes)}",
            expected="a third index axis along the patient's; reorient or resample the volume first",
        )
    if not isinstance(geometry, ConeBeam) and geometry.rows != grid.shape[2]:
        raise GeometryError(
            "the scan has other slices than the grid",
            value=f"{geometry.rows} and {grid.shape[2]}",
            expected="as many",
        )
    faces = np.array([[i, j] for i in (-0.5, grid.shape[0] - 0.5) for j in (-0.5, grid.shape[1] - 0.5)])
    corners = faces @ matrix[:2, :2].T + grid.affine[:2, 3] - np.asarray(geometry.centre[:2])
    require_covered(geometry, float(np.linalg.norm(corners, axis=1).max()))
    return 1 if matrix[2, 2] > 0 else -1


def segments_of(geometry: ScanGeometry, grid: Geometry, *, second: bool) -> list[Segment]:
    """Return the rays that cross the rows of the first index axis, or with ``second`` those of the second."""
    return list(each_segment(geometry, grid, second=second))


def each_segment(geometry: ScanGeometry, grid: Geometry, *, second: bool) -> Iterator[Segment]:
    """Yield what :func:`segments_of` returns, for who need not hold it all."""
    row, pixel = (1, 0) if second else (0, 1)
    plane = grid.affine[:2, :2]
    to_index = np.linalg.inv(plane)
    zero = grid.affine[:2, 3] - np.asarray(geometry.centre[:2])
    steps = np.linalg.norm(plane, axis=0)
    cone = isinstance(geometry, ConeBeam)
    heights = geometry.heights if isinstance(geometry, ConeBeam) else np.zeros(len(geometry.angles))
    slice_step = float(abs(grid.affine[2, 2]))
    for view, angle in enumerate(geometry.angles):
        points, ways = ray_lines(geometry, angle, geometry.edges)
        middle_points, middle_ways = ray_lines(
            geometry, angle, (geometry.edges[1:] + geometry.edges[:-1]) / 2
        )
        o, d = (points - zero) @ to_index.T, ways @ to_index.T
        mo, md = (middle_points - zero) @ to_index.T, middle_ways @ to_index.T
        first_axis = np.abs(md[:, 0]) * steps[0] > np.abs(md[:, 1]) * steps[1]
        ours = ~first_axis if second else first_axis
        for begin, end in _runs(ours):
            edge, bins = slice(begin, end + 1), slice(begin, end)
            Q = d[edge, pixel] / d[edge, row]
            P = o[edge, pixel] - Q * o[edge, row]
            crossed = np.arange(grid.shape[row])
            if not isinstance(geometry, ParallelBeam):  # rows behind the source are crossed by no ray
                crossed = crossed[(crossed - o[begin, row]) / d[begin, row] > 0]
            low, high = P[0] + Q[0] * crossed, P[-1] + Q[-1] * crossed
            step = 1 if (high - low).sum() > 0 else -1
            low, high = (low, high) if step > 0 else (high, low)
            crossed = crossed[(high > -0.5) & (low < grid.shape[pixel] - 0.5)]
            if not len(crossed):
                continue
            rate = np.abs(md[bins, row])
            scale = np.linalg.norm(middle_ways[bins], axis=1) / rate
            m0 = m1 = tilt = None
            if isinstance(geometry, ConeBeam):
                m1 = geometry.row_height / slice_step / md[bins, row]
                m0 = -mo[bins, row] * m1
                tilt = geometry.row_height / rate
                m0, m1, tilt = m0[::step], m1[::step], tilt[::step]
            a, b, f0, f1, curved = _inverse(geometry, angle, zero, plane, pixel, row)
            f0, f1 = (f0 - begin, f1) if step > 0 else (end - f0, -f1)
            yield Segment(
                view=view,
                first=begin if step > 0 else end - 1,
                step=step,
                P=P[::step],
                Q=Q[::step],
                scale=scale[::step],
                m0=m0,
                m1=m1,
                tilt=tilt,
                rows=(int(crossed[0]), int(crossed[-1]) + 1),
                inverse=np.array([*a, *b, f0, f1, curved]),
                centre=float((heights[view] - grid.affine[2, 3]) / grid.affine[2, 2]) if cone else 0.0,
            )


def middle_line(geometry: ConeBeam, up: int) -> float:
    """Return the line (edges are whole numbers) at the source's height, lines in the slices' order."""
    middle = geometry.rows / 2 - geometry.row_offset
    return middle if up > 0 else geometry.rows - middle


def line_heights(segments: list[Segment]) -> tuple[float, float]:
    """Return the least and the largest height of a detector row inside the image, in slices."""
    each = [
        s.m0 + s.m1 * row
        for s in segments
        if s.m0 is not None and s.m1 is not None
        for row in (s.rows[0], s.rows[1] - 1)
    ]
    low, high = min(float(m.min()) for m in each), max(float(m.max()) for m in each)
    return low, high


def ray_lines(
    geometry: ScanGeometry, angle: float, along: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return a point and the direction (to the detector, for a fan) of rays at places along it."""
    u, d = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    if isinstance(geometry, ParallelBeam):
        return along[:, None] * u, np.broadcast_to(d, (len(along), 2))
    distance = geometry.detector_distance
    points = np.broadcast_to(-geometry.source_distance * d, (len(along), 2))
    if geometry.curved:
        fan = along[:, None] / distance
        return points, distance * (np.cos(fan) * d + np.sin(fan) * u)
    return points, distance * d + along[:, None] * u


def _inverse(
    geometry: ScanGeometry, angle: float, zero: NDArray[Any], plane: NDArray[Any], pixel: int, row: int
) -> tuple[NDArray[Any], NDArray[Any], float, float, bool]:
    u, d = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    columns = np.stack([plane[:, pixel], plane[:, row], zero])
    f0, f1 = geometry.bins / 2 - geometry.offset, 1 / geometry.bin_width
    if isinstance(geometry, ParallelBeam):
        return columns @ u, np.array([0.0, 0.0, 1.0]), f0, f1, False
    depth = columns @ d + np.array([0.0, 0.0, geometry.source_distance])
    return columns @ u, depth, f0, f1 * geometry.detector_distance, geometry.curved


def _runs(chosen: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return begin and end of each run of True."""
    change = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(change[::2], change[1::2], strict=True)]
