"""Projection along rays and its exact transpose, distance-driven.

A ray's share of a pixel is the overlap of the bin and the pixel on the pixel's row, by the bin's width,
times the length of the ray from row to row (De Man and Basu, Physics in Medicine and Biology 49:2463,
2004). Rows run across the rays: the part of a view whose rays run mostly along the first index axis takes
rows of the second, and the other way round [inference: chosen for each bin, not for each view].
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sagittal.core.errors import GeometryError, InputError
from sagittal.core.native import load_extension, thread_count
from sagittal.core.optional import optional_import
from sagittal.reconstruction.geometry import ConeBeam, ParallelBeam, ScanGeometry, require_covered
from sagittal.volume import Geometry, Volume

__all__ = ["REFERENCE", "Projector", "back", "forward", "projector_kernels", "system_matrix"]

REFERENCE = "reference"
"""The name of the sparse matrix among the kernels."""

_native = load_extension()
_MARGIN, _CURVED_MARGIN = 0.002, 0.05  # of a bin, as in native/projectors.cpp
_MOST_ENTRIES = 400_000_000


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
        margin = _CURVED_MARGIN if self.inverse[8] else _MARGIN
        return math.ceil(widths.max()) + 1, math.ceil(1 / widths.min() + 2 * margin) + 1


class Projector:
    """Projection of images on one grid along the rays of one geometry, and its transpose.

    Args:
        geometry: The scanner.
        grid: The voxels. Its third index axis must run along the scanner's axis; in the plane it may be
            turned.
        dtype: float32 or float64.
        threads: How many; by default :func:`sagittal.core.native.thread_count`. They change no bit.
        kernel: ``generic``, ``avx2``, ``avx512`` (of the extension) or ``reference``; by default the fastest
            here.

    Raises:
        GeometryError: The grid is tilted against the scanner's axis, the source turns through it, or a 2-D
            scan has other slices than the grid.
        InputError: Another dtype, or a kernel that does not run here.
    """

    def __init__(
        self,
        geometry: ScanGeometry,
        grid: Geometry,
        *,
        dtype: DTypeLike = np.float32,
        threads: int | None = None,
        kernel: str | None = None,
    ) -> None:
        self.geometry, self.grid, self.dtype = geometry, grid, np.dtype(dtype)
        if self.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise InputError(
                "projections are computed in two dtypes", value=self.dtype, expected="float32, float64"
            )
        self.threads = thread_count() if threads is None else threads
        known = projector_kernels()
        self.kernel = known[-1] if kernel is None else kernel
        if self.kernel not in known:
            raise InputError("this kernel does not run here", value=self.kernel, expected=", ".join(known))
        self._up = check_grid(geometry, grid)
        self._down = self._up < 0 and isinstance(geometry, ConeBeam)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a sinogram: views, rows, bins."""
        return self.geometry.shape

    def forward(self, image: NDArray[Any], views: slice = slice(None)) -> NDArray[Any]:
        """Return the line integrals of an image, shape (views, rows, bins), in the image's unit times mm.

        Args:
            image: Shape of the grid.
            views: Those that are computed, neighbours; all without it.
        """
        image = self._checked(image, self.grid.shape, "an image")
        first, last, _ = views.indices(self.shape[0])
        shape = (last - first, *self.shape[1:])
        if self.kernel == REFERENCE:
            return self._by_matrix(image, self._rows(first, last), shape)
        rays = np.zeros(shape, self.dtype)
        for second, sweep in self._sweeps:
            _native.project(self.kernel, self.threads, sweep, image, second, first, self._down, rays)
        return rays

    def back(self, sinogram: NDArray[Any]) -> NDArray[Any]:
        """Return the transpose applied to a sinogram: an image of the grid's shape.

        Args:
            sinogram: Shape (views, rows, bins).
        """
        image = np.zeros(self.grid.shape, self.dtype)
        self.add_back(self._checked(sinogram, self.geometry.shape, "a sinogram"), image)
        return image

    def add_back(
        self, sinogram: NDArray[Any], image: NDArray[Any], *, first: int = 0, factor: float = 1.0
    ) -> None:
        """Add the transpose, applied to some views, to an image.

        Args:
            sinogram: Shape (views, rows, bins), of neighbouring views.
            image: Shape of the grid, contiguous, in the projector's dtype.
            first: The first of the views.
            factor: What is added is multiplied by it.
        """
        rays = self._checked(sinogram, (len(sinogram), *self.shape[1:]), "a sinogram")
        if self.kernel == REFERENCE:
            matrix = self._rows(first, first + len(rays)).T
            image += self.dtype.type(factor) * self._by_matrix(rays, matrix, self.grid.shape)
            return
        for second, sweep in self._sweeps:
            _native.spread(self.kernel, self.threads, sweep, rays, second, first, self._down, factor, image)

    def _rows(self, first: int, last: int) -> Any:
        rays = math.prod(self.shape[1:])
        whole = last - first == self.shape[0]
        return self._matrix if whole else self._matrix[first * rays : last * rays]

    def _checked(self, values: NDArray[Any], shape: tuple[int, ...], what: str) -> NDArray[Any]:
        if values.shape != shape:
            raise GeometryError(f"{what} has another shape", value=values.shape, expected=str(shape))
        return np.ascontiguousarray(values, dtype=self.dtype)

    def _by_matrix(self, values: NDArray[Any], matrix: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        found: NDArray[Any] = matrix @ values.reshape(-1)
        return found.astype(self.dtype, copy=False).reshape(shape)

    @functools.cached_property
    def _matrix(self) -> Any:
        return system_matrix(self.geometry, self.grid).astype(self.dtype)

    @functools.cached_property
    def _sweeps(self) -> list[tuple[bool, Any]]:
        found = []
        for second in (False, True):
            segments = segments_of(self.geometry, self.grid, second=second)
            if segments:
                found.append((second, self._sweep(segments, second)))
        return found

    def _sweep(self, segments: list[Segment], second: bool) -> Any:
        rows, pixels = self.grid.shape[:2][:: -1 if second else 1]
        table = np.empty((len(segments), 9), np.int64)
        edges = scales = 0
        for i, s in enumerate(segments):
            first = s.view * self.geometry.bins + s.first
            table[i] = (edges, len(s.scale), first, s.step, scales, *s.taps(), *s.rows)
            edges, scales = edges + len(s.P), scales + len(s.scale)

        def joined(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(s, name) for s in segments]).astype(self.dtype)

        inverse = np.array([[*s.inverse, s.centre] for s in segments], self.dtype)
        kind = _native.Sweep32 if self.dtype == np.float32 else _native.Sweep64
        sweep = kind(rows, pixels, table, inverse, joined("P"), joined("Q"), joined("scale"))
        if isinstance(self.geometry, ConeBeam):
            low, high = line_heights(segments)
            sweep.set_cone(
                self.grid.shape[2],
                self.geometry.rows,
                joined("m0"),
                joined("m1"),
                joined("tilt"),
                middle_line(self.geometry, self._up),
                math.ceil(high) + 1,
                math.ceil(1 / low + 2 * _MARGIN) + 1,
            )
        return sweep


def forward(volume: Volume, geometry: ScanGeometry, *, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return the line integrals of a volume, shape (views, rows, bins), in its unit times mm.

    Raises:
        GeometryError: See :class:`Projector`.
    """
    return Projector(geometry, volume.geometry, dtype=dtype).forward(volume.array)


def back(
    sinogram: NDArray[Any], geometry: ScanGeometry, grid: Geometry, *, dtype: DTypeLike = np.float32
) -> NDArray[Any]:
    """Return the transpose of :func:`forward` applied to a sinogram: an image of the grid's shape.

    Raises:
        GeometryError: See :class:`Projector`.
    """
    return Projector(geometry, grid, dtype=dtype).back(sinogram)


def projector_kernels() -> tuple[str, ...]:
    """Return the kernels that run here, the fastest last: ``reference``, and those of the extension."""
    return (REFERENCE, *(_native.projector_kernels() if _native else ()))


def check_grid(geometry: ScanGeometry, grid: Geometry) -> int:
    """Return 1 if the slices of a grid go up the scanner's axis, -1 if down.

    Raises:
        GeometryError: See :class:`Projector`.
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
    row, pixel = (1, 0) if second else (0, 1)
    plane = grid.affine[:2, :2]
    to_index = np.linalg.inv(plane)
    zero = grid.affine[:2, 3] - np.asarray(geometry.centre[:2])
    steps = np.linalg.norm(plane, axis=0)
    cone = isinstance(geometry, ConeBeam)
    heights = geometry.heights if isinstance(geometry, ConeBeam) else np.zeros(len(geometry.angles))
    slice_step = float(abs(grid.affine[2, 2]))
    found = []
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
            found.append(
                Segment(
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
            )
    return found


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


def system_matrix(geometry: ScanGeometry, grid: Geometry) -> Any:
    """Return the projection as a sparse matrix, float64, shape (views x rows x bins, voxels): the reference.

    Raises:
        GeometryError: See :class:`Projector`.
        InputError: It would be too large.
        MissingDependencyError: scipy is not installed.
    """
    sparse = optional_import("scipy.sparse")
    up = check_grid(geometry, grid)
    expected = 3 * geometry.bins * len(geometry.angles) * max(grid.shape[:2]) * grid.shape[2]
    if isinstance(geometry, ConeBeam):
        expected *= 3
    if expected > _MOST_ENTRIES:
        raise InputError(
            "the matrix is too large", value=f"about {expected:.2g} entries", expected=f"{_MOST_ENTRIES:.0g}"
        )
    planes = []
    for second in (False, True):
        pixels = grid.shape[0 if second else 1]
        for segment in segments_of(geometry, grid, second=second):
            planes.append(_entries(geometry, grid, segment, pixels, second=second, up=up))
    ray, voxel, weight = (np.concatenate([part[i] for part in planes]) for i in range(3))
    shape = (math.prod(geometry.shape), math.prod(grid.shape))
    return sparse.coo_array((weight, (ray, voxel)), shape=shape).tocsr()


def _entries(
    geometry: ScanGeometry, grid: Geometry, s: Segment, pixels: int, *, second: bool, up: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    E = s.P + s.Q * np.arange(*s.rows)[:, None]
    lo, hi = E[:, :-1, None], E[:, 1:, None]
    pixel = np.floor(lo + 0.5).astype(np.int64) + np.arange(s.taps()[0])
    share = np.minimum(hi, pixel + 0.5) - np.maximum(lo, pixel - 0.5)
    weight = np.where((pixel >= 0) & (pixel < pixels), np.maximum(share, 0), 0) / (hi - lo)
    at_row, at_bin, at_tap = np.nonzero(weight)
    at_pixel, weight = pixel[at_row, at_bin, at_tap], weight[at_row, at_bin, at_tap]
    at_row = at_row + s.rows[0]
    i, j = (at_pixel, at_row) if second else (at_row, at_pixel)
    bins = s.first + s.step * at_bin
    slices = grid.shape[2]
    if not isinstance(geometry, ConeBeam):
        line = np.arange(slices)
        ray = (s.view * geometry.rows + line[:, None]) * geometry.bins + bins
        voxel = (i * grid.shape[1] + j) * slices + line[:, None]
        return ray.reshape(-1), voxel.reshape(-1), np.tile(weight * s.scale[at_bin], slices)
    assert s.m0 is not None
    assert s.m1 is not None
    assert s.tilt is not None
    height = s.m0[at_bin] + s.m1[at_bin] * at_row
    middle = middle_line(geometry, up)
    line = np.arange(geometry.rows)[:, None]
    low = s.centre + height * (line - middle)
    first = np.floor(low + 0.5).astype(np.int64)
    found = []
    for k in range(math.ceil(float(height.max(initial=0))) + 1):
        z = first + k
        share = np.maximum(np.minimum(low + height, z + 0.5) - np.maximum(low, z - 0.5), 0) / height
        length = np.hypot(s.scale[at_bin], (line + 0.5 - middle) * s.tilt[at_bin])
        value = np.where((z >= 0) & (z < slices), share, 0) * length * weight
        v, n = np.nonzero(value)
        row = v if up > 0 else geometry.rows - 1 - v
        ray = (s.view * geometry.rows + row) * geometry.bins + bins[n]
        found.append((ray, (i[n] * grid.shape[1] + j[n]) * slices + z[v, n], value[v, n]))
    ray, voxel, value = (np.concatenate([part[axis] for part in found]) for axis in range(3))
    return ray, voxel, value


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
