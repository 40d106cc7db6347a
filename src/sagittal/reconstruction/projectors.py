"""Projection along rays and its exact transpose, distance-driven.

A ray's share of a pixel is the overlap of the bin and the pixel on the pixel's row, by the bin's width,
times the length of the ray from row to row (De Man and Basu, Physics in Medicine and Biology 49:2463,
2004). Rows run across the rays: the part of a view whose rays run mostly along the first index axis takes
rows of the second, and the other way round [inference: chosen for each bin, not for each view].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sagittal.core.errors import GeometryError, InputError
from sagittal.core.native import load_extension, thread_count, vector_kernels
from sagittal.core.optional import optional_import
from sagittal.reconstruction.geometry import ConeBeam, ScanGeometry, finer_bins, some_views, subset
from sagittal.reconstruction.segments import (
    MARGIN,
    Segment,
    check_grid,
    each_segment,
    line_heights,
    middle_line,
    segments_of,
)
from sagittal.volume import Geometry, Volume

__all__ = ["REFERENCE", "Projector", "back", "forward", "projector_kernels", "system_matrix"]

REFERENCE = "reference"
"""The name of the sparse matrix among the kernels."""

_native = load_extension()
_MOST_ENTRIES = 400_000_000


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
        device: Where torch is to compute instead, such as ``cuda``; images and sinograms are carried there
            and back. See :class:`~sagittal.reconstruction.torch_projectors.TorchProjector`.

    Raises:
        GeometryError: The grid is tilted against the scanner's axis, the source turns through it, or a 2-D
            scan has other slices than the grid.
        InputError: Another dtype, a kernel that does not run here or that a device cannot run, or a device
            that torch does not have here.
        MissingDependencyError: A device is asked for, and torch is not installed.
    """

    def __init__(
        self,
        geometry: ScanGeometry,
        grid: Geometry,
        *,
        dtype: DTypeLike = np.float32,
        threads: int | None = None,
        kernel: str | None = None,
        device: str | None = None,
    ) -> None:
        self.geometry, self.grid, self.dtype = geometry, grid, np.dtype(dtype)
        if self.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise InputError(
                "projections are computed in two dtypes", value=self.dtype, expected="float32, float64"
            )
        check_grid(geometry, grid)
        self._choice = (kernel, thread_count() if threads is None else threads, device)
        self._pair = self._chosen(*self._choice)

    def every(self, step: int, first: int) -> Projector:
        """Return the projector to every ``step``-th view from the ``first`` on."""
        kernel, threads, device = self._choice
        geometry = subset(self.geometry, slice(first, None, step))
        return Projector(geometry, self.grid, dtype=self.dtype, threads=threads, kernel=kernel, device=device)

    def to_finer_bins(self, parts: int) -> Projector:
        """Return the projector to a detector whose bins are each cut into so many."""
        kernel, threads, device = self._choice
        geometry = finer_bins(self.geometry, parts)
        return Projector(geometry, self.grid, dtype=self.dtype, threads=threads, kernel=kernel, device=device)

    def _chosen(self, kernel: str | None, threads: int, device: str | None) -> _Pair:
        known = projector_kernels()
        if kernel is not None and (device is not None or kernel not in known):
            known = known if device is None else ("none beside a device",)
            raise InputError("this kernel does not run here", value=kernel, expected=", ".join(known))
        if device is not None:
            from sagittal.reconstruction.torch_projectors import Elsewhere

            return Elsewhere(self.geometry, self.grid, self.dtype, device)
        kernel = kernel or known[-1]
        if kernel == REFERENCE:
            return _Matrix(self.geometry, self.grid, self.dtype)
        return _Compiled(self.geometry, self.grid, self.dtype, kernel, threads)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a sinogram: views, rows, bins."""
        return self.geometry.shape

    @property
    def in_parts(self) -> bool:
        """Whether some views can be computed for less than all of them cost."""
        return self._pair.in_parts

    def forward(self, image: NDArray[Any], views: slice = slice(None)) -> NDArray[Any]:
        """Return the line integrals of an image, shape (views, rows, bins), in the image's unit times mm.

        Args:
            image: Shape of the grid.
            views: Those that are computed, neighbours; all without it.
        """
        first, last, _ = views.indices(self.shape[0])
        return self._pair.forward(self._checked(image, self.grid.shape, "an image"), first, last)

    def back(self, sinogram: NDArray[Any]) -> NDArray[Any]:
        """Return the transpose applied to a sinogram: an image of the grid's shape.

        Args:
            sinogram: Shape (views, rows, bins).
        """
        image = np.zeros(self.grid.shape, self.dtype)
        self._pair.add_back(self._checked(sinogram, self.shape, "a sinogram"), image, 0, 1.0)
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
        self._pair.add_back(rays, image, first, factor)

    def some_views(self) -> list[slice]:
        """Return all views in parts that are projected forward for little memory, and no more time."""
        if not self.in_parts:
            return [slice(0, self.shape[0])]
        few = isinstance(self.geometry, ConeBeam)  # in planes, an image is made ready for each part
        return list(some_views(self.shape) if few else some_views(self.shape, 1 << 18))

    def add_back_from(
        self,
        rays: Callable[[slice], NDArray[Any]],
        image: NDArray[Any],
        *,
        views: slice,
        factor: float = 1.0,
    ) -> None:
        """Do what :meth:`add_back` does, to the same bits, for rays that are not there all at once.

        Args:
            rays: Gives a sinogram of some of the views; asked more than once for the same ones.
            image: As for :meth:`add_back`.
            views: Neighbours, as a slice with both ends.
            factor: As for :meth:`add_back`.
        """
        if isinstance(self._pair, _Compiled) and isinstance(self.geometry, ConeBeam):
            self._pair.add_back_from(rays, image, views, factor)
        else:
            self.add_back(rays(views), image, first=views.start, factor=factor)

    def _checked(self, values: NDArray[Any], shape: tuple[int, ...], what: str) -> NDArray[Any]:
        if values.shape != shape:
            raise GeometryError(f"{what} has another shape", value=values.shape, expected=str(shape))
        return np.ascontiguousarray(values, dtype=self.dtype)


class _Pair(Protocol):
    """A projection to the views [first, last), and what adds its transpose, of arrays that are checked."""

    in_parts: bool

    def forward(self, image: NDArray[Any], first: int, last: int) -> NDArray[Any]: ...

    def add_back(self, rays: NDArray[Any], image: NDArray[Any], first: int, factor: float) -> None: ...


class _Matrix:
    """The pair as products with the sparse matrix."""

    in_parts = False

    def __init__(self, geometry: ScanGeometry, grid: Geometry, dtype: np.dtype[Any]) -> None:
        self.geometry, self.grid, self.dtype = geometry, grid, dtype

    def forward(self, image: NDArray[Any], first: int, last: int) -> NDArray[Any]:
        shape = (last - first, *self.geometry.shape[1:])
        return self._product(self._rows(first, last), image, shape)

    def add_back(self, rays: NDArray[Any], image: NDArray[Any], first: int, factor: float) -> None:
        matrix = self._rows(first, first + len(rays)).T
        image += self.dtype.type(factor) * self._product(matrix, rays, self.grid.shape)

    def _rows(self, first: int, last: int) -> Any:
        views, rows, bins = self.geometry.shape
        each = rows * bins
        return self._matrix if last - first == views else self._matrix[first * each : last * each]

    def _product(self, matrix: Any, values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        found: NDArray[Any] = matrix @ values.reshape(-1)
        return found.astype(self.dtype, copy=False).reshape(shape)

    @functools.cached_property
    def _matrix(self) -> Any:
        return system_matrix(self.geometry, self.grid).astype(self.dtype)


class _Compiled:
    """The pair by a kernel of the extension."""

    in_parts = True

    def __init__(
        self, geometry: ScanGeometry, grid: Geometry, dtype: np.dtype[Any], kernel: str, threads: int
    ) -> None:
        self.geometry, self.grid, self.dtype = geometry, grid, dtype
        self.kernel, self.threads = kernel, threads
        self._up = check_grid(geometry, grid)
        self._down = self._up < 0 and isinstance(geometry, ConeBeam)

    def forward(self, image: NDArray[Any], first: int, last: int) -> NDArray[Any]:
        rays = np.zeros((last - first, *self.geometry.shape[1:]), self.dtype)
        for second, sweep in self._sweeps:
            _native.project(self.kernel, self.threads, sweep, image, second, first, self._down, rays)
        return rays

    def add_back(self, rays: NDArray[Any], image: NDArray[Any], first: int, factor: float) -> None:
        for second, sweep in self._sweeps:
            _native.spread(self.kernel, self.threads, sweep, rays, second, first, self._down, factor, image)

    def add_back_from(
        self, rays: Callable[[slice], NDArray[Any]], image: NDArray[Any], views: slice, factor: float
    ) -> None:
        # Of a cone beam alone: of planes, what some views say of a pixel is summed up before it is added.
        shape = (views.stop - views.start, *self.geometry.shape[1:])
        for second, sweep in self._sweeps:
            for part in some_views(shape):
                first = views.start + part.start
                given = rays(slice(first, views.start + part.stop))
                _native.spread(
                    self.kernel, self.threads, sweep, given, second, first, self._down, factor, image
                )

    @functools.cached_property
    def _sweeps(self) -> list[tuple[bool, Any]]:
        found = []
        for second in (False, True):
            sweep = self._sweep(second)
            if sweep is not None:
                found.append((second, sweep))
        return found

    def _sweep(self, second: bool) -> Any:
        rows, pixels = self.grid.shape[:2][:: -1 if second else 1]
        cone = isinstance(self.geometry, ConeBeam)
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in ("P", "Q", "scale", "m0", "m1", "tilt")}
        table, inverse, heights = [], [], []
        edges = scales = 0
        for s in each_segment(self.geometry, self.grid, second=second):
            first = s.view * self.geometry.bins + s.first
            table.append((edges, len(s.scale), first, s.step, scales, *s.taps(), *s.rows))
            inverse.append([*s.inverse, s.centre])
            edges, scales = edges + len(s.P), scales + len(s.scale)
            for name in parts if cone else ("P", "Q", "scale"):
                parts[name].append(getattr(s, name).astype(self.dtype))
            if cone:
                heights.append(line_heights([s]))
        if not table:
            return None

        def joined(name: str) -> NDArray[Any]:
            return np.concatenate(parts.pop(name))

        kind = _native.Sweep32 if self.dtype == np.float32 else _native.Sweep64
        sweep = kind(
            rows,
            pixels,
            np.array(table, np.int64),
            np.array(inverse, np.float64),
            joined("P"),
            joined("Q"),
            joined("scale"),
        )
        if isinstance(self.geometry, ConeBeam):
            low, high = min(low for low, _ in heights), max(high for _, high in heights)
            sweep.set_cone(
                self.grid.shape[2],
                self.geometry.rows,
                joined("m0"),
                joined("m1"),
                joined("tilt"),
                middle_line(self.geometry, self._up),
                math.ceil(high) + 1,
                math.ceil(1 / low + 2 * MARGIN) + 1,
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
    return (REFERENCE, *vector_kernels())


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
    nothing = np.zeros(0, np.int64)
    planes = [(nothing, nothing, np.zeros(0))]  # a detector that sees no voxel has no entries
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
