"""How the energy of total variation is made small: ordered subsets to come near, and FISTA with restarts.

Steps by some of the views with momentum (Kim, Ramani and Fessler, IEEE Transactions on Medical Imaging
34:167, 2015) come near soon, and then no nearer; from there FISTA goes on by all views. [inference: it starts
again when the energy would rise; such a step is not taken, so energies never rise. Steps follow from a bound
on the curvature that positive matrices give.]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.reconstruction.geometry import some_rays
from sagittal.reconstruction.iterative import Report, require_count, require_iterations, silent
from sagittal.reconstruction.projectors import Projector
from sagittal.reconstruction.variation import Variation
from sagittal.volume import Geometry

__all__ = [
    "Descent",
    "Solver",
    "approach",
    "carried_over",
    "curvature_bound",
    "halved",
    "minimise",
    "subsets_of",
]

_MOMENTUM = 6.0
"""That of ten steps: less says little about how far the end is."""

_MOST_MOMENTUM = 100.0
"""More would add up what the subsets differ by."""

_LEAST_VIEWS = 10
"""Of a subset."""


class Weights(Protocol):
    """Weights of rays: those of some views, shape (views, rows, bins), and of some rows. An array is one."""

    def __getitem__(self, rays: slice | tuple[slice, slice], /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Solver:
    """How the energy is made small.

    Attributes:
        iterations: At most so many on the finest grid, in each stage.
        tolerance: Two images in turn that differ by less, relatively, are near the end.
        inner: Iterations of the proximal step.
        passes: How many times all views are used, some at a time, before the iterations; 0 for none.
        levels: Grids of half, a quarter, ... as many voxels that are begun with; 0 for none.
        coarse_iterations: Passes on each of them, or with few views at most so many iterations.
        dtype: float32, or float64 to look closely.
        threads: How many; they change no bit.
        device: Where scans are projected, as for :class:`~sagittal.reconstruction.projectors.Projector`; the
            proximal step is the processor's.

    Raises:
        InputError: A count that is no whole number or too small, another dtype, a tolerance out of range.
    """

    iterations: int = 300
    tolerance: float = 1e-4
    inner: int = 10
    passes: int = 40
    levels: int = 2
    coarse_iterations: int = 20
    dtype: str = "float32"
    threads: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        require_iterations(self.iterations)
        require_count("inner", self.inner, 1, "there are no iterations of the proximal step")
        require_count("passes", self.passes, 0, "there are less than no passes")
        require_count("levels", self.levels, 0, "there are less than no coarser grids")
        require_count("coarse_iterations", self.coarse_iterations, 0, "there are less than no passes")
        if self.threads is not None:
            require_count("threads", self.threads, 1, "there are no threads")
        if self.dtype not in ("float32", "float64"):
            raise InputError(
                "iterations are computed in two dtypes",
                source="dtype",
                value=self.dtype,
                expected="float32 or float64",
            )
        number = isinstance(self.tolerance, int | float | np.number) and not isinstance(self.tolerance, bool)
        if not (number and 0 <= self.tolerance < 1):
            raise InputError(
                "the tolerance is out of range",
                source="tolerance",
                value=self.tolerance,
                expected="a number from 0 to below 1",
            )


@dataclass
class Descent:
    """Where a descent ended.

    Attributes:
        image: Attenuation, 1/mm, shape of the grid.
        energies: What is made small, after each iteration.
        stopped: As in :class:`~sagittal.reconstruction.iterative.Reconstruction`.
        squares: Sum of the squared residual, by its variance.
        travelled: Sum of the relative changes of all iterations.
    """

    image: NDArray[Any]
    energies: list[float]
    stopped: str
    squares: float
    travelled: float


def subsets_of(views: int) -> int:
    """Return into how many parts views can be divided so that each still tells of the whole object."""
    return min(views // _LEAST_VIEWS, 12)


def approach(
    projector: Projector,
    rays: NDArray[Any],
    weights: Weights,
    variation: Variation,
    price: float,
    start: NDArray[Any],
    *,
    passes: int,
    inner: int = 10,
) -> NDArray[Any]:
    """Return an image near the one that :func:`minimise` looks for, by every n-th view at a time.

    Args:
        projector: As for :func:`minimise`.
        rays: As for :func:`minimise`.
        weights: As for :func:`minimise`.
        variation: As for :func:`minimise`.
        price: As for :func:`minimise`.
        start: Where to begin; it is taken over.
        passes: How many times all views are used.
        inner: Iterations of the proximal step, of which those by some of the views take two fifths.
    """
    dtype: Any = projector.dtype
    image = np.ascontiguousarray(start, dtype)
    np.maximum(image, 0, out=image)
    count = subsets_of(projector.shape[0])
    before = np.empty_like(image)
    curvature = curvature_bound(projector, weights, room=before)
    parts = [projector.every(count, first) for first in range(count)]
    dual = variation.start(dtype)
    push, momentum = 0.0, 1.0
    for _ in range(passes):
        for first in _spread_out(count):
            chosen = slice(first, None, count)
            _extrapolate(image, before, push)
            slope = parts[first].forward(before)
            slope -= rays[chosen].astype(dtype, copy=False)
            slope *= weights[chosen]
            parts[first].add_back(slope, before, factor=-count / curvature)
            variation.exchange(before, image, price / curvature, dual, iterations=-(-2 * inner // 5))
            following = min((1 + math.sqrt(1 + 4 * momentum**2)) / 2, _MOST_MOMENTUM)
            push, momentum = (momentum - 1) / following, following
    return image


def _spread_out(count: int) -> list[int]:
    """Return the numbers below a count so that neighbours in the list lie far apart."""
    half = (count + 1) // 2
    pairs = zip(range(half), [*range(half, count), None], strict=False)
    return [n for pair in pairs for n in pair if n is not None]


def minimise(
    projector: Projector,
    rays: NDArray[Any],
    weights: Weights,
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

    What is held beside rays and weights: two images, the dual (for each axis of the grid half an image, whole
    ones of float64), the residual, and how far it moved in 16 bits; and, but for a cone beam, a sixteenth of
    an image, about, for some views at a time.

    Args:
        projector: ``A``, in the dtype that is computed in.
        rays: Line integrals, shape of the projector's sinograms.
        weights: Of each ray, 0 or more: an array of the same shape, or what gives those of some views.
        variation: On the projector's grid.
        price: What it costs.
        start: Where to begin, shape of the grid. It is taken over: what it holds afterwards is not told.
        iterations: At most so many.
        tolerance: Two images in turn that differ by less, relatively, are near the end.
        inner: Iterations of the proximal step.
        report: Takes a line every ten iterations.
    """
    dtype: Any = projector.dtype
    image = np.ascontiguousarray(start, dtype)
    np.maximum(image, 0, out=image)
    before = np.empty_like(image)
    curvature = curvature_bound(projector, weights, room=before)
    dual = variation.start(dtype)
    residual = np.empty(projector.shape, dtype)
    # By how much it changed in the last step: a gradient's error by half a thousandth of it is no matter.
    moved = np.zeros(projector.shape, np.float16 if dtype == np.float32 else dtype)

    def look(image: NDArray[Any]) -> float:
        """Take the residual of an image; return its squares, by their weights."""
        squares = 0.0
        for views in projector.some_views():
            now = projector.forward(image, views)
            now -= rays[views].astype(dtype, copy=False)
            np.subtract(now, residual[views], out=moved[views], casting="same_kind")
            residual[views] = now
            for few in some_rays(now.shape):
                wide = now[few].astype(np.float64)
                wide *= wide
                wide *= weights[_among_all(few, views)]
                squares += float(wide.sum())
        return squares

    def slope(views: slice) -> NDArray[Any]:
        """Return what is projected back for some views."""
        found = residual[views].copy()
        for few in some_rays(found.shape):
            if push != 0:
                found[few] += dtype.type(push) * moved[views][few]
            found[few] *= weights[_among_all(few, views)]
        return found

    residual[...] = 0
    squares = look(image)
    energy = squares / 2 + price * variation.value(image)
    push, momentum, steps = 0.0, 1.0, inner
    measured = sum(int(np.count_nonzero(weights[few])) for few in some_rays(projector.shape))
    energies: list[float] = []
    stopped, travelled = "iterations", 0.0
    while len(energies) < iterations:
        # Where the momentum leads, and from there down the slope, in place of the image before.
        _extrapolate(image, before, push)
        for views in _parts(projector):
            projector.add_back_from(slope, before, views=views, factor=-1 / curvature)
        change, size = variation.exchange(before, image, price / curvature, dual, iterations=steps)
        new_squares = look(image)
        new_energy = new_squares / 2 + price * variation.value(image)
        if new_energy > energy:
            image, before = before, image
            residual -= moved
            push = 0.0
            if momentum > 1:  # begin again, without momentum
                momentum = 1.0
                continue
            if steps < 8 * inner:  # the proximal step was not exact enough
                steps *= 2
                continue
            stopped = "stalled"
            break
        next_momentum = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        push = (momentum - 1) / next_momentum
        fell = squares - new_squares
        squares, energy, momentum = new_squares, new_energy, next_momentum
        energies.append(energy)
        relative = math.sqrt(change / max(size, 1e-60))
        travelled += relative
        if len(energies) % 10 == 0:
            report(f"{image.shape[0]} voxels wide, iteration {len(energies)}, energy {energy:.6g}")
        # Near the end, unless the steps still gather momentum, or the scan is still being explained
        # and not yet as well as its noise allows.
        explained = squares <= measured or fell < 10 * tolerance * squares
        if relative < tolerance and momentum > _MOMENTUM and explained:
            stopped = "converged"
            break
    return Descent(image, energies, stopped, squares, travelled)


def _parts(projector: Projector) -> list[slice]:
    """Return the views in parts, for each of which a sixteenth of an image has room, or a megabyte."""
    views, rows, bins = projector.shape
    if not projector.in_parts:
        return [slice(0, views)]
    most = max(math.prod(projector.grid.shape) // 16, 1 << 18)
    many = min(views, max(1, most // (rows * bins)))
    return [slice(first, min(first + many, views)) for first in range(0, views, many)]


def _among_all(rays: tuple[slice, slice], views: slice) -> tuple[slice, slice]:
    """Return which rays of a scan are some of some views'."""
    return slice(views.start + rays[0].start, views.start + rays[0].stop), rays[1]


def _extrapolate(image: NDArray[Any], before: NDArray[Any], push: float) -> None:
    """Put ``image + push * (image - before)`` in place of ``before``."""
    if push == 0:
        before[...] = image
        return
    amount = image.dtype.type(push)
    rows = max(1, (1 << 16) * image.shape[0] // image.size)  # at a time, so that what is between stays near
    for first in range(0, image.shape[0], rows):
        now, then = image[first : first + rows], before[first : first + rows]
        np.subtract(now, then, out=then)
        then *= amount
        then += now


def curvature_bound(
    projector: Projector, weights: Weights, *, rounds: int = 4, room: NDArray[Any] | None = None
) -> float:
    """Return a bound on the largest eigenvalue of the transpose times the weights times the projection.

    For a matrix without negative numbers the largest ratio of ``M v`` to ``v``, for any positive ``v``, is
    one (Collatz and Wielandt); a few rounds bring it near.

    Args:
        projector: The projection.
        weights: Of each ray.
        rounds: How many.
        room: An image that may be written over.
    """
    image = np.ones(projector.grid.shape, projector.dtype)
    applied = np.empty_like(image) if room is None else room
    bound = math.inf
    for _ in range(rounds):
        applied[...] = 0
        for views in _parts(projector):
            rays = projector.forward(image, views)
            rays *= weights[views]
            projector.add_back(rays, applied, first=views.start)
        np.divide(applied, image, out=image)
        bound = min(bound, float(image.max()))
        if bound <= 0:
            return 1.0
        applied /= applied.max()
        np.maximum(applied, 1e-3, out=applied)
        image, applied = applied, image
    return bound * (1 + 1e-4)


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
        upper = image.take(high, axis)
        upper *= part
        image = image.take(low, axis)
        image *= 1 - part
        image += upper
    return image
