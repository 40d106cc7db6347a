"""The transformation with a prescribed Jacobian determinant and curl.

Source: Chen and Liao, "A variational method for constructing diffeomorphisms with prescribed Jacobian
determinant and curl" (arXiv 1507.03715) for the principle: the sum of squares of both deviations is least,
and the boundary stays. The minimiser is ours [inference]: Gauss-Newton steps on the discrete energy, each
solved by conjugate gradients that a Poisson solve by fast sine transforms preconditions. At the identity the
energy's second derivative *is* the negative Laplacian, so few of them are needed; the energy is that of
derivatives in space, so any affine will do, oblique and left-handed ones too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sagittal.core.errors import GeometryError, InputError
from sagittal.core.optional import optional_import
from sagittal.volume import DisplacementField, Geometry
from sagittal.volume.field_calculus import curl as curl_of
from sagittal.volume.field_calculus import determinant, jacobian

__all__ = ["Construction", "Report", "construct", "silent"]

Floats = NDArray[np.float64]
Report = Callable[[str], None]
"""Takes one line that says how far a method is."""

_SMALLEST_STEP = 1e-4
_INNER = 40  # conjugate gradient steps for one step of Gauss and Newton


def silent(message: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, eq=False)
class Construction:
    """A constructed transformation.

    Attributes:
        field: The transformation.
        energies: Half the weighted sum of squared deviations at the start and after each step.
        stopped: "converged", or "iterations" or "no step" where the least energy may not be reached.
        jacobian_error: Largest deviation of the Jacobian determinant.
        curl_error: Largest length of the deviation of the curl; 0 where none was prescribed.
    """

    field: DisplacementField
    energies: tuple[float, ...]
    stopped: str
    jacobian_error: float
    curl_error: float


def construct(
    jacobian_determinant: ArrayLike,
    curl: ArrayLike | None,
    geometry: Geometry,
    *,
    start: DisplacementField | None = None,
    curl_weight: float = 1.0,
    iterations: int = 30,
    tolerance: float = 1e-6,
    report: Report = silent,
) -> Construction:
    """Return the transformation whose Jacobian determinant and curl come closest to those prescribed.

    The outermost voxels stay where ``start`` has them. For a transformation that keeps the boundary, the
    determinant's mean over the grid is 1 (what grows here shrinks there) and the divergence of the curl
    is 0; with other data the deviations that remain are spread over the grid, and are told.

    Args:
        jacobian_determinant: Positive, shape (i, j, k).
        curl: Shape (3, i, j, k), RAS+; without it a transformation with this determinant, one of many.
        geometry: The grid; one slice for a transformation of the plane.
        start: Where to begin, and what the boundary does; by default the identity. It must not fold.
        curl_weight: How much a squared deviation of the curl counts beside one of the determinant. It
            matters only where both cannot be had.
        iterations: At most so many Gauss-Newton steps.
        tolerance: It is done when a step lowers the energy by less than this share of the first energy.
        report: Is told each step.

    Raises:
        InputError: Values that are not finite, a determinant that is not positive, another shape, a start
            that folds, a weight that is not positive, or a number of iterations below 1.
        GeometryError: A grid of fewer than three voxels along an axis that is not a single one.
        MissingDependencyError: scipy is not installed.
    """
    wanted = _checked(jacobian_determinant, geometry.shape, "the Jacobian determinant")
    if not (wanted > 0).all():
        raise InputError(
            "the Jacobian determinant is not positive", value=float(wanted.min()), expected="more than 0"
        )
    turning = None if curl is None else _checked(curl, (3, *geometry.shape), "the curl")
    if any(count == 2 for count in geometry.shape) or max(geometry.shape) < 3:
        raise GeometryError(
            "the grid has nothing within its boundary", value=geometry.shape, expected="3 voxels, or a slice"
        )
    if iterations < 1:
        raise InputError("not a number of iterations", value=iterations, expected="1 or more")
    if not (curl_weight > 0 and np.isfinite(curl_weight)):
        raise InputError("not a weight", source="curl_weight", value=curl_weight, expected="more than 0")
    if start is None:
        start = DisplacementField.identity(geometry)
    if start.shape != geometry.shape or not start.geometry.is_aligned(geometry):
        raise GeometryError(
            "the start lies on another grid", value=repr(start.geometry), expected=repr(geometry)
        )
    if start.folds:
        raise InputError("the start folds", source="start", value=f"{start.folds} voxels", expected="none")
    problem = _Problem(wanted, turning, geometry, curl_weight)
    return problem.minimised(start.vectors.astype(np.float64), iterations, tolerance, report)


class _Problem:
    """Energy, its derivatives and a preconditioner, on one grid."""

    def __init__(self, wanted: Floats, turning: Floats | None, geometry: Geometry, weight: float) -> None:
        self.wanted, self.turning, self.geometry, self.weight = wanted, turning, geometry, weight
        self.inverse = np.linalg.inv(geometry.affine[:3, :3])
        self.free = tuple(slice(1, -1) if count > 1 else slice(None) for count in geometry.shape)
        self.axes = [axis for axis, count in enumerate(geometry.shape) if count > 1]
        self.fft = optional_import("scipy.fft")
        stiffness = np.zeros(())
        for axis in range(3):
            count = geometry.shape[axis]
            if count > 1:
                wave = np.arange(1, count - 1) * np.pi / (count - 1)
                scale = float(self.inverse[axis] @ self.inverse[axis])
                shape = [1, 1, 1]
                shape[axis] = count - 2
                stiffness = stiffness + (scale * (2 - 2 * np.cos(wave))).reshape(shape)
        self.stiffness = stiffness

    def deviations(self, u: Floats) -> tuple[list[list[Floats]], Floats, Floats | None]:
        """Return the Jacobian matrix, the determinant's deviation, and the curl's."""
        matrix = jacobian(u, self.geometry.affine)
        turned = None if self.turning is None else curl_of(u, self.geometry.affine) - self.turning
        return matrix, determinant(matrix) - self.wanted, turned

    def energy(self, growth: Floats, turned: Floats | None) -> float:
        """Return half the weighted sum of the squared deviations."""
        rest = 0.0 if turned is None else self.weight * _dot(turned, turned)
        return 0.5 * (_dot(growth, growth) + rest)

    def forward(self, adjugate: list[list[Floats]], step: Floats) -> tuple[Floats, Floats | None]:
        """Return how determinant and curl change, to first order, by a displacement."""
        rows = jacobian(step, self.geometry.affine)
        growth = np.zeros(self.geometry.shape)
        for a in range(3):
            for b in range(3):
                entry = rows[a][b] - 1 if a == b else rows[a][b]
                growth += adjugate[a][b] * entry
        return growth, None if self.turning is None else curl_of(step, self.geometry.affine)

    def backward(self, adjugate: list[list[Floats]], growth: Floats, turned: Floats | None) -> Floats:
        """Return the transpose of :meth:`forward`, on the free voxels."""
        weights = [[adjugate[a][b] * growth for b in range(3)] for a in range(3)]
        if turned is not None:
            x, y, z = self.weight * turned
            weights[2][1] += x
            weights[1][2] -= x
            weights[0][2] += y
            weights[2][0] -= y
            weights[1][0] += z
            weights[0][1] -= z
        found = np.zeros((3, *self.geometry.shape))
        for a in range(3):
            for axis in self.axes:
                along = sum(self.inverse[axis, b] * weights[a][b] for b in range(3))
                found[a] += _difference_transposed(np.asarray(along), axis)
        return self.within(found)

    def within(self, values: Floats) -> Floats:
        """Return the field with the boundary set to 0."""
        kept = np.zeros_like(values)
        kept[(slice(None), *self.free)] = values[(slice(None), *self.free)]
        return kept

    def smoothed(self, values: Floats) -> Floats:
        """Solve -Laplace(w) = values with w = 0 on the boundary, by sine transforms of type I."""
        axes = [axis + 1 for axis in self.axes]
        inner = self.fft.dstn(values[(slice(None), *self.free)], type=1, axes=axes)
        found = np.zeros_like(values)
        found[(slice(None), *self.free)] = self.fft.idstn(inner / self.stiffness, type=1, axes=axes)
        return found

    def step(self, adjugate: list[list[Floats]], slope: Floats, accuracy: float) -> Floats:
        """Return the Gauss-Newton step against a gradient, by preconditioned conjugate gradients."""
        found, left = np.zeros_like(slope), -slope
        near = self.smoothed(left)
        direction = near
        size = first = _dot(left, near)
        for _ in range(_INNER):
            changed = self.backward(adjugate, *self.forward(adjugate, direction))
            bend = _dot(direction, changed)
            if bend <= 0:
                break
            far = size / bend
            found += far * direction
            left = left - far * changed
            near = self.smoothed(left)
            before, size = size, _dot(left, near)
            if size <= accuracy**2 * first:
                break
            direction = near + size / before * direction
        return found

    def minimised(self, u: Floats, iterations: int, tolerance: float, report: Report) -> Construction:
        """Return the field of least energy that is reached without a fold."""
        matrix, growth, turned = self.deviations(u)
        energies, stopped = [self.energy(growth, turned)], "iterations"
        for number in range(iterations):
            if energies[-1] <= 1e-20 * growth.size:
                stopped = "converged"
                break
            adjugate = _cofactors(matrix)
            slope = self.backward(adjugate, growth, turned)
            step = self.step(adjugate, slope, min(0.1, np.sqrt(energies[-1] / energies[0])))
            share = 1.0
            while share >= _SMALLEST_STEP:
                trial = u + share * step
                now = self.deviations(trial)
                if self.energy(*now[1:]) < energies[-1] and (now[1] + self.wanted > 0).all():
                    break
                share /= 2
            else:
                small = abs(_dot(slope, step)) <= tolerance * energies[0]
                stopped = "converged" if small else "no step"
                break
            u, (matrix, growth, turned) = trial, now
            energies.append(self.energy(growth, turned))
            report(f"step {number + 1}: energy {energies[-1]:.3g}")
            if share == 1 and energies[-2] - energies[-1] <= tolerance * energies[0]:
                stopped = "converged"
                break
        worst = 0.0 if turned is None else float(np.sqrt((turned**2).sum(axis=0)).max())
        field = DisplacementField(u, self.geometry)
        return Construction(field, tuple(energies), stopped, float(np.abs(growth).max()), worst)


def _checked(values: ArrayLike, shape: tuple[int, ...], name: str) -> Floats:
    array = np.asarray(values)
    if array.dtype.kind not in "iuf" or array.shape != shape:
        raise InputError(
            f"{name} does not belong to the grid",
            value=f"{array.dtype} of shape {array.shape}",
            expected=str(shape),
        )
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        count = int(np.count_nonzero(~np.isfinite(array)))
        raise InputError(f"{name} is not finite", value=f"{count} of {array.size} values")
    return array


def _dot(a: Floats, b: Floats) -> float:
    return float((a * b).sum())  # not BLAS, whose order of adding depends on the number of threads


def _cofactors(matrix: list[list[Any]]) -> list[list[Any]]:
    """Return the derivatives of the determinant by each entry."""
    (a, b, c), (d, e, f), (g, h, i) = matrix
    return [
        [e * i - f * h, f * g - d * i, d * h - e * g],
        [c * h - b * i, a * i - c * g, b * g - a * h],
        [b * f - c * e, c * d - a * f, a * e - b * d],
    ]


def _difference_transposed(values: Floats, axis: int) -> Floats:
    """Return the transpose of ``field_calculus.difference`` along an axis of more than one voxel."""
    moved = np.moveaxis(values, axis, 0)
    found = np.zeros_like(moved)
    found[2:] += 0.5 * moved[1:-1]
    found[:-2] -= 0.5 * moved[1:-1]
    found[1] += moved[0]
    found[0] -= moved[0]
    found[-1] += moved[-1]
    found[-2] -= moved[-1]
    return np.moveaxis(found, 0, axis)
