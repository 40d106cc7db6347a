"""Low-dose CT by total variation, with weights that spare edges.

Minimises ``sum W (A f - y)^2 / 2 + b sum w |grad f|`` over images that are not negative: ``W`` are the
inverse variances of the line integrals (penalised weighted least squares), and ``w = exp(-(|grad f| /
delta)^2)`` lowers the price of edges (Tian, Jia, Yuan, Pan and Jiang, Physics in Medicine and Biology
56:5949, 2011; the paper gives the idea, an independent code the weight). With weights per axis inside the
root it is the adaptive-weighted total variation of Liu, Ma, Fan and Liang (2012).

[inference: for frozen weights the problem is convex, so the default has two stages: weights are computed
once, from the image of plain total variation.

What limits an image from few views at usual doses is less noise than what voxels cannot show: an edge that
runs through a voxel moves the rays that cross it by more than their noise, and where an edge costs nothing
its voxels take up that error. So :func:`edge_preserving_tv` explains the scan on finer voxels and returns
their means, adds the error that the image's own edges suggest to the variance of each ray, and lets edges
pay part of their price. None of the three is from the paper; the first two are options of :func:`tv` as well,
off unless asked for. A scan of a detector has another error at edges, which both correct if asked to: see
:mod:`sagittal.reconstruction.edge_gradient`.]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.reconstruction.descent import (
    Descent,
    Solver,
    approach,
    carried_over,
    halved,
    minimise,
    subsets_of,
)
from sagittal.reconstruction.edge_gradient import edge_gradient as missed_by_bins
from sagittal.reconstruction.geometry import ConeBeam
from sagittal.reconstruction.iterative import Reconstruction, Report, begin, silent
from sagittal.reconstruction.projectors import Projector
from sagittal.reconstruction.ray_weights import RayWeights
from sagittal.reconstruction.scan import Scan, hounsfield
from sagittal.reconstruction.variation import Variation, gradient_length, step_weights
from sagittal.volume import Geometry
from sagittal.volume.phantoms import WATER_PER_MM

__all__ = ["Solver", "directional_tv", "edge_preserving_tv", "edge_threshold", "subdivided", "tv"]

_SMALLEST_LEVEL = 64
"""Voxels along an axis below which no coarser grid is begun with."""


def tv(
    scan: Scan,
    grid: Geometry,
    *,
    roughness: float = 32.0,
    subdivision: int = 1,
    model_error: float = 0.0,
    edge_gradient: bool = False,
    solver: Solver | None = None,
    start: NDArray[np.floating] | None = None,
    mu_water: float = WATER_PER_MM,
    report: Report = silent,
) -> Reconstruction:
    """Reconstruct with the total variation for a prior.

    Args:
        scan: Any geometry. Where its dose is not known, every ray counts the same, by the noise between
            neighbours.
        grid: Where the voxels are to lie.
        roughness: Step between neighbouring voxels that is expected on average, HU: the variation costs 1 by
            it. Smaller is smoother; what the dose and the number of views ask for follows from the counts.
        subdivision: Along either axis of a slice, so many voxels explain the scan for each one of the grid,
            which is their mean.
        model_error: Share of a voxel by which edges may lie elsewhere than voxels show; the variance of each
            ray grows by what that makes of the edges it crosses. About 0.05 where it helps.
        edge_gradient: Whether to correct rays for edges within a bin, as detectors measure them: in planes,
            with a subdivision of 2 or more. A scan that was simulated as means of line integrals, as by
            :func:`.simulate_scan`, has none of that error.
        solver: How the energy is made small.
        start: Attenuation to begin with, 1/mm; without it, coarser grids are solved first.
        mu_water: Attenuation of water, 1/mm.
        report: Takes a line every ten iterations.

    Raises:
        GeometryError: The grid does not suit the scanner.
        InputError: A roughness that is not positive, no subdivision, a negative model error, or rays to
            correct for edges where that does harm.
    """
    of_edges = _OfEdges(subdivision, model_error, edge_gradient)
    task = _Task(scan, grid, roughness, solver or Solver(), mu_water, report, "tv", of_edges)
    image = task.begin(start)
    task.heed_edges(image)
    return task.result(task.solve(task.variation(), image))


def edge_preserving_tv(
    scan: Scan,
    grid: Geometry,
    *,
    roughness: float = 64.0,
    delta: float | None = None,
    edge_share: float | None = None,
    edge_price: float = 0.5,
    subdivision: int | None = None,
    model_error: float = 0.05,
    edge_gradient: bool = False,
    alternating: bool = False,
    solver: Solver | None = None,
    start: NDArray[np.floating] | None = None,
    mu_water: float = WATER_PER_MM,
    report: Report = silent,
) -> Reconstruction:
    """Reconstruct with a total variation that asks less for steps much larger than ``delta``.

    What is smaller than about ``delta`` is smoothed as by :func:`tv`: contrasts below half of it are lost
    where those of :func:`tv` are.

    Args:
        scan: Any geometry.
        grid: Where the voxels are to lie.
        roughness: As for :func:`tv`, in both stages.
        delta: Step between neighbouring voxels that counts as an edge, HU: at it the weight is 1/e of its way
            down. 60 where neither it nor ``edge_share`` is given; infinity makes all weights 1, and 0 takes
            all of them away, ``edge_price`` too.
        edge_share: Instead, the share of voxels above which steps are edges; it must be at least the true
            share, or noise is kept as if it were edges.
        edge_price: Least weight, that of the sharpest edges; 0 is the formula of the paper.
        subdivision: As for :func:`tv`; without it 2, but 1 for a cone beam, where it would cost memory.
        model_error: As for :func:`tv`.
        edge_gradient: As for :func:`tv`.
        alternating: Compute the weights again every five iterations, instead of once. The energy then changes
            under way, and there is no promise that it falls.
        solver: How the energy is made small.
        start: Attenuation to begin with, 1/mm.
        mu_water: Attenuation of water, 1/mm.
        report: Takes a line every ten iterations.

    Raises:
        GeometryError: The grid does not suit the scanner.
        InputError: Both ``delta`` and ``edge_share`` are given, or a number is out of range.
    """
    delta = _one_threshold(delta, edge_share)
    if not 0 <= edge_price <= 1:
        raise InputError(
            "the price of edges is out of range", source="edge_price", value=edge_price, expected="0 to 1"
        )
    if subdivision is None:
        subdivision = 1 if isinstance(scan.geometry, ConeBeam) else 2
    of_edges = _OfEdges(subdivision, model_error, edge_gradient)
    task = _Task(scan, grid, roughness, solver or Solver(), mu_water, report, "edge-preserving-tv", of_edges)

    def weighted(image: NDArray[Any]) -> Variation:
        threshold = edge_threshold(image, task.grid, edge_share) if delta is None else delta * mu_water / 1000
        return task.variation(bound=step_weights(image, task.grid, _weighing(threshold, edge_price)))

    image = task.begin(start)
    task.heed_edges(image)
    image = task.solve(task.variation(), image).image
    task.heed_edges(image)
    if not alternating:
        return task.result(task.solve(weighted(image), image))
    state = None
    energies: list[float] = []
    for _ in range(math.ceil(task.solver.iterations / 5)):
        state = task.solve(weighted(image), image, iterations=5)
        energies += state.energies
        image = state.image
        if state.travelled < task.solver.tolerance:
            state.stopped = "converged"
            break
    assert state is not None
    state.energies = energies
    return task.result(state)


def directional_tv(
    scan: Scan,
    grid: Geometry,
    *,
    roughness: float = 16.0,
    first_roughness: float | None = None,
    delta: float = 60.0,
    solver: Solver | None = None,
    start: NDArray[np.floating] | None = None,
    mu_water: float = WATER_PER_MM,
    report: Report = silent,
) -> Reconstruction:
    """Reconstruct with a total variation weighted along each axis (AwTV), in two stages.

    Args:
        scan: Any geometry.
        grid: Where the voxels are to lie.
        roughness: As for :func:`tv`.
        first_roughness: That of the first stage's plain total variation; twice ``roughness`` without it.
        delta: Step along an axis that counts as an edge, HU.
        solver: How the energy is made small.
        start: Attenuation to begin with, 1/mm.
        mu_water: Attenuation of water, 1/mm.
        report: Takes a line every ten iterations.

    Raises:
        GeometryError: The grid does not suit the scanner.
        InputError: A roughness or a ``delta`` that is not positive.
    """
    threshold = _one_threshold(delta, None)
    assert threshold is not None
    solver = solver or Solver()
    before = 2 * roughness if first_roughness is None else first_roughness
    first = _Task(scan, grid, before, solver, mu_water, report, "tv")
    image = first.solve(first.variation(), first.begin(start)).image
    del first
    task = _Task(scan, grid, roughness, solver, mu_water, report, "directional-tv")
    weighing = _weighing(threshold * mu_water / 1000, root=True)
    flat = grid.shape[2] == 1
    scales = tuple(step_weights(image, grid, weighing, axis=axis) for axis in range(2 if flat else 3))
    if flat:
        scales += scales[-1:]  # along an axis of one voxel there are no differences to weigh
    return task.result(task.solve(task.variation(scales=scales), image))


def edge_threshold(image: NDArray[Any], grid: Geometry, edge_share: float | None) -> float:
    """Return the step that a share of the object's voxels exceed, in the image's unit.

    The object is where the attenuation is above a fifth of its 99th percentile: air around it has no say.
    """
    object_ = image > 0.2 * float(np.percentile(image, 99))
    length = gradient_length(image, grid)
    within = length[object_] if object_.any() else length.reshape(-1)
    return float(np.quantile(within, 1 - (edge_share or 0.0)))


@dataclass(frozen=True)
class _OfEdges:
    """What is done about edges that voxels and bins do not show: options of :func:`tv`."""

    subdivision: int = 1
    model_error: float = 0.0
    gradient: bool = False

    def __post_init__(self) -> None:
        if self.subdivision < 1:
            raise InputError(
                "there is no such subdivision",
                source="subdivision",
                value=self.subdivision,
                expected="1 or more",
            )
        if not (math.isfinite(self.model_error) and self.model_error >= 0):
            raise InputError(
                "the model error is out of range",
                source="model_error",
                value=self.model_error,
                expected="0 or more",
            )
        if not isinstance(self.gradient, bool):
            raise InputError(
                "rays are corrected for edges or not",
                source="edge_gradient",
                value=self.gradient,
                expected="True or False",
            )
        if self.gradient and self.subdivision == 1:
            raise InputError(
                "only voxels finer than bins tell of edges within them",
                source="edge_gradient",
                value="no subdivision",
                expected="a subdivision of 2 or more, as edge-preserving-tv has in parallel and fan beams",
            )


class _Task:
    """One scan to be explained on one grid, at one price of variation."""

    def __init__(
        self,
        scan: Scan,
        grid: Geometry,
        roughness: float,
        solver: Solver,
        mu_water: float,
        report: Report,
        name: str,
        of_edges: _OfEdges = _OfEdges(),
    ) -> None:
        if not (math.isfinite(roughness) and roughness > 0):
            raise InputError(
                "the roughness must be a positive number", source="roughness", value=roughness, expected="HU"
            )
        if of_edges.gradient and isinstance(scan.geometry, ConeBeam):
            raise InputError(
                "rays are corrected for edges in planes alone",
                source="edge_gradient",
                value="a cone beam",
                expected="a parallel or fan beam",
            )
        self.scan, self.asked, self.solver, self.mu_water = scan, grid, solver, mu_water
        self.report, self.name = report, name
        self.roughness, self.of_edges, self.subdivision = roughness, of_edges, of_edges.subdivision
        self.grid = subdivided(grid, self.subdivision)
        self.rays = scan.sinogram
        # Of the variation in 1/mm; the same image has a larger sum of differences on smaller voxels.
        self.price = 1000 / (roughness * mu_water * self.subdivision)
        self.weights = RayWeights(scan, solver.dtype)

    def begin(self, start: NDArray[Any] | None) -> NDArray[Any]:
        """Return the image to begin with: the one that is given, or that of coarser grids."""
        if start is None:
            return self._coarse()
        image = begin(self.asked, start)
        return image.repeat(self.subdivision, axis=0).repeat(self.subdivision, axis=1)

    def heed_edges(self, image: NDArray[Any]) -> None:
        """Correct the rays for edges within bins, and add to the variance of each what edges make of it that
        lie elsewhere than the voxels show; both anew each time."""
        model_error = self.of_edges.model_error
        if not (self.of_edges.gradient or model_error):
            return
        projector = self._projector(self.grid)
        if self.of_edges.gradient:
            self.rays = self.scan.sinogram + missed_by_bins(projector, image)
        if not model_error:
            return
        squares = gradient_length(image, self.grid).astype(self.solver.dtype, copy=False)
        np.square(squares, out=squares)

        def error(views: slice) -> NDArray[Any]:
            return np.asarray(
                model_error**2 * (projector.forward(squares, views) * min(self.grid.spacing[:2]))
            )

        self.weights.doubt(error, projector.some_views())

    def variation(self, **weights: Any) -> Variation:
        return Variation(grid=self.grid, threads=self.solver.threads, **weights)

    def solve(self, variation: Variation, image: NDArray[Any], *, iterations: int | None = None) -> Descent:
        return self._minimise(
            self.grid,
            variation,
            image,
            self.price,
            iterations or self.solver.iterations,
            self.solver.tolerance,
        )

    def result(self, state: Descent) -> Reconstruction:
        facts = {"method": self.name, "roughness": self.roughness, "iterations": len(state.energies)}
        if self.of_edges.gradient:
            facts["edge_gradient"] = True
        known = self.scan.photons is not None
        image = _means(state.image, self.subdivision)
        image.setflags(write=False)  # or the volume would copy it
        return Reconstruction(
            volume=hounsfield(image, self.asked, self.mu_water, facts=facts),
            energies=tuple(state.energies),
            stopped=state.stopped,
            discrepancy=state.squares / self.scan.measured if known else None,
        )

    def _coarse(self) -> NDArray[Any]:
        """Come near plain total variation on coarser grids, the coarsest first, and then on the finest."""
        grids = [self.grid]
        levels = self.solver.levels + self.subdivision.bit_length() - 1
        while len(grids) <= levels and min(grids[-1].shape[:2]) >= 2 * _SMALLEST_LEVEL:
            grids.append(halved(grids[-1], slices=isinstance(self.scan.geometry, ConeBeam)))
        image: NDArray[Any] = np.zeros(grids[-1].shape, self.solver.dtype)
        for finer, grid in zip(reversed(grids[:-1]), reversed(grids[1:]), strict=True):
            image = carried_over(self._near(grid, image, self.solver.coarse_iterations), finer)
        return self._near(self.grid, image, self.solver.passes)

    def _near(self, grid: Geometry, image: NDArray[Any], passes: int) -> NDArray[Any]:
        # The same image has a smaller sum of differences on a coarser grid: by its side in a plane, ...
        coarser = grid.spacing[0] / self.grid.spacing[0]
        price = self.price * coarser * grid.spacing[2] / self.grid.spacing[2]
        variation = Variation(grid=grid, threads=self.solver.threads)
        if subsets_of(len(self.scan.sinogram)) > 1:
            self.report(f"{self.name}: {grid.shape[0]} voxels wide, {passes} passes by subsets")
            given = (self._projector(grid), self.rays, self.weights, variation, price, image)
            return approach(*given, passes=passes, inner=self.solver.inner) if passes else image
        if grid is self.grid:
            return image
        return self._minimise(grid, variation, image, price, passes, 3 * self.solver.tolerance).image

    def _minimise(
        self,
        grid: Geometry,
        variation: Variation,
        image: NDArray[Any],
        price: float,
        iterations: int,
        tolerance: float,
    ) -> Descent:
        return minimise(
            self._projector(grid),
            self.rays,
            self.weights,
            variation,
            price,
            image,
            iterations=iterations,
            tolerance=tolerance,
            inner=self.solver.inner,
            report=lambda line: self.report(f"{self.name}: {line}"),
        )

    def _projector(self, grid: Geometry) -> Projector:
        solver = self.solver
        return Projector(
            self.scan.geometry, grid, dtype=solver.dtype, threads=solver.threads, device=solver.device
        )


def subdivided(grid: Geometry, parts: int) -> Geometry:
    """Return a grid of ``parts`` times as many voxels along either axis of a slice, in the same place."""
    affine = grid.affine.copy()
    affine[:3, :2] /= parts
    middle = (1 / parts - 1) / 2
    affine[:3, 3] = grid.index_to_world(np.array([middle, middle, 0]))
    return Geometry((grid.shape[0] * parts, grid.shape[1] * parts, grid.shape[2]), affine)


def _means(image: NDArray[Any], parts: int) -> NDArray[Any]:
    """Return the means of ``parts`` by ``parts`` voxels of each slice."""
    if parts == 1:
        return image
    found = np.zeros_like(image[::parts, ::parts])
    for i in range(parts):
        for j in range(parts):
            found += image[i::parts, j::parts]
    found /= parts**2
    return found


def _weighing(
    threshold: float, least: float = 0.0, *, root: bool = False
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return what gives steps weights, from ``least`` to 1: all 0 at a threshold of 0, 1 at infinity."""

    def weigh(step: NDArray[Any]) -> NDArray[Any]:
        if threshold == 0:
            return np.zeros_like(step)
        kept = np.exp((-0.5 if root else -1.0) * (step / step.dtype.type(threshold)) ** 2)
        return np.asarray(least + (1 - least) * kept, step.dtype)

    return weigh


def _one_threshold(delta: float | None, edge_share: float | None) -> float | None:
    if delta is not None and edge_share is not None:
        raise InputError(
            "two thresholds are one too many", source="delta", value=delta, expected="or edge_share"
        )
    if edge_share is not None:
        if not 0 < edge_share < 1:
            raise InputError(
                "the share is out of range", source="edge_share", value=edge_share, expected="0 to 1"
            )
        return None
    found = 60.0 if delta is None else float(delta)
    if math.isnan(found) or found < 0:
        raise InputError(
            "the threshold is out of range", source="delta", value=delta, expected="0 HU or more"
        )
    return found
