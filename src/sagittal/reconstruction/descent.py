"""How the energy of total variation is made small: FISTA with restarts, and grids to begin with.

[inference: FISTA starts again when the energy would rise; such a step is not taken, so energies never
rise. Steps follow from a bound on the curvature that positive matrices give.]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.reconstruction.iterative import Report, require_iterations, silent
from sagittal.reconstruction.projectors import Projector
from sagittal.reconstruction.variation import Variation
from sagittal.volume import Geometry

__all__ = ["Descent", "Solver", "carried_over", "curvature_bound", "halved", "minimise"]

_MOMENTUM = 6.0
"""That of ten steps: less says little about how far the end is."""


@dataclass(frozen=True, kw_only=True)
class Solver:
    """How the energy is made small.

    Attributes:
        iterations: At most so many on the finest grid, in each stage.
        tolerance: Two images in turn that differ by less, relatively, are near the end.
        inner: Iterations of the proximal step.
        levels: Grids of half, a quarter, ... as many voxels that are begun with; 0 for none.
        coarse_iterations: At most so many on each of them.
        dtype: float32, or float64 to look closely.
        threads: How many; they change no bit.
    """

    iterations: int = 150
    tolerance: float = 3e-4
    inner: int = 10
    levels: int = 2
    coarse_iterations: int = 40
    dtype: str = "float32"
    threads: int | None = None

    def __post_init__(self) -> None:
        require_iterations(self.iterations)
        require_iterations(self.inner)
        if self.dtype not in ("float32", "float64"):
            raise InputError("iterations are computed in two dtypes", source="dtype", value=self.dtype)
        if not 0 <= self.tolerance < 1:
            raise InputError("the tolerance is out of range", source="tolerance", value=self.tolerance)


@dataclass
class Descent:
    """Where a descent ended.

    Attributes:
        image: Attenuation, 1/mm, shape of the grid.
        energies: What is made small, after each iteration.
        stopped: As in :class:`~sagittal.reconstruction.iterative.Reconstruction`.
        squares: Sum of the squared residual, by its variance.
    """

    image: NDArray[Any]
    energies: list[float]
    stopped: str
    squares: float


def minimise(
    projector: Projector,
    rays: NDArray[Any],
    weights: NDArray[Any],
    variation: Variation,
    price: float,
    start: NDArray[Any],
    *,
    iterations: int = 150,
    tolerance: float = 3e-4,
    inner: int = 10,
    report: Report = silent,
) -> Descent:
    """Make ``sum weights (A f - rays)^2 / 2 + price * variation(f)`` small, for images not below 0.

    Args:
        projector: ``A``, in the dtype that is computed in.
        rays: Line integrals, shape of the projector's sinograms.
        weights: Of each ray, 0 or more, the same shape.
        variation: On the projector's grid.
        price: What it costs.
        start: Where to begin, shape of the grid; not changed.
        iterations: At most so many.
        tolerance: Two images in turn that differ by less, relatively, are near the end.
        inner: Iterations of the proximal step.
        report: Takes a line every ten iterations.
    """
    dtype: Any = projector.dtype
    rays, weights = rays.astype(dtype, copy=False), weights.astype(dtype, copy=False)
    curvature = curvature_bound(projector, weights)
    image = np.maximum(start, 0).astype(dtype)
    dual = variation.start(dtype)
    shadow = projector.forward(image)

    def squares_of(shadow: NDArray[Any]) -> float:
        residual = (shadow - rays).astype(np.float64)
        return float(np.vdot(residual, weights * residual))

    squares = squares_of(shadow)
    energy = squares / 2 + price * variation.value(image)
    ahead, ahead_shadow, momentum, steps = image, shadow, 1.0, inner
    energies: list[float] = []
    stopped = "iterations"
    while len(energies) < iterations:
        slope = projector.back(weights * (ahead_shadow - rays))
        kept = [part.copy() for part in dual]
        new = variation.step(ahead - slope / dtype.type(curvature), price / curvature, dual, iterations=steps)
        new_shadow = projector.forward(new)
        new_squares = squares_of(new_shadow)
        new_energy = new_squares / 2 + price * variation.value(new)
        if new_energy > energy:
            dual = kept
            if momentum > 1:  # begin again, without momentum
                ahead, ahead_shadow, momentum = image, shadow, 1.0
                continue
            if steps < 8 * inner:  # the proximal step was not exact enough
                steps *= 2
                continue
            stopped = "stalled"
            break
        change = float(np.linalg.norm(new - image)) / max(float(np.linalg.norm(new)), 1e-30)
        next_momentum = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        push = dtype.type((momentum - 1) / next_momentum)
        ahead, ahead_shadow = new + push * (new - image), new_shadow + push * (new_shadow - shadow)
        fell = squares - new_squares
        image, shadow, squares, energy, momentum = new, new_shadow, new_squares, new_energy, next_momentum
        energies.append(energy)
        if len(energies) % 10 == 0:
            report(f"{image.shape[0]} voxels wide, iteration {len(energies)}, energy {energy:.6g}")
        # Near the end, unless the steps still gather momentum, or the scan is still being explained
        # and not yet as well as its noise allows.
        explained = squares <= rays.size or fell < 10 * tolerance * squares
        if change < tolerance and momentum > _MOMENTUM and explained:
            stopped = "converged"
            break
    return Descent(image, energies, stopped, squares)


def curvature_bound(projector: Projector, weights: NDArray[Any], *, rounds: int = 4) -> float:
    """Return a bound on the largest eigenvalue of the transpose times the weights times the projection.

    For a matrix without negative numbers the largest ratio of ``M v`` to ``v``, for any positive ``v``, is
    one (Collatz and Wielandt); a few rounds bring it near.
    """
    image = np.ones(projector.grid.shape, projector.dtype)
    bound = math.inf
    for _ in range(rounds):
        applied = projector.back(weights * projector.forward(image))
        bound = min(bound, float((applied / image).max()))
        image = np.maximum(applied / applied.max(), 1e-3).astype(projector.dtype)
    return bound * (1 + 1e-4) if bound > 0 else 1.0


def halved(grid: Geometry, *, slices: bool) -> Geometry:
    """Return a grid of half as many voxels in the plane, and perhaps of half as many slices."""
    factor = np.array(
        [2 if count > 1 and (axis < 2 or slices) else 1 for axis, count in enumerate(grid.shape)]
    )
    affine = grid.affine.copy()
    affine[:3, :3] *= factor
    affine[:3, 3] = grid.index_to_world((factor - 1) / 2)
    i, j, k = (-(-count // int(f)) for count, f in zip(grid.shape, factor, strict=True))
    return Geometry((i, j, k), affine)


def carried_over(image: NDArray[Any], grid: Geometry) -> NDArray[Any]:
    """Return an image on a halved grid, interpolated linearly at the voxels of the grid that was halved."""
    for axis, count in enumerate(grid.shape):
        if image.shape[axis] == count:
            continue
        place = np.clip((np.arange(count) - 0.5) / 2, 0, image.shape[axis] - 1)
        low = np.minimum(place.astype(np.int64), max(image.shape[axis] - 2, 0))
        high = np.minimum(low + 1, image.shape[axis] - 1)
        part = (place - low).astype(image.dtype).reshape([-1 if a == axis else 1 for a in range(3)])
        image = image.take(low, axis) * (1 - part) + image.take(high, axis) * part
    return image
