"""Iterative reconstruction without a prior: SIRT, CGLS, and ordered subsets.

Rays that were not measured (:attr:`~sagittal.reconstruction.scan.Scan.missing`) have no part in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.reconstruction.geometry import subset
from sagittal.reconstruction.projectors import Projector
from sagittal.reconstruction.scan import Scan, hounsfield
from sagittal.volume import Geometry, Volume
from sagittal.volume.phantoms import WATER_PER_MM

if TYPE_CHECKING:
    from sagittal.reconstruction.uncertainty import Uncertainty

__all__ = ["Reconstruction", "cgls", "ordered_subsets", "sirt"]

Report = Callable[[str], None]
"""Takes one line that says how far a reconstruction is."""


def silent(message: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """An image, and how it was come by.

    Attributes:
        volume: In HU.
        energies: What is made small, after each iteration: half the squared residual, and what else a method
            adds.
        stopped: Why it ended: "iterations", "converged", or "stalled" where rounding allowed no further fall.
        discrepancy: Mean over rays of the squared residual by its variance; near 1 where the image explains
            the scan up to its noise. None where the dose is not known.
        doubt: What the volume's variance is made of; None where none was asked for.
        unseen: Voxels that the scanner does not see from every side, bool of the volume's shape; None where
            there are none.
    """

    volume: Volume
    energies: tuple[float, ...]
    stopped: str
    discrepancy: float | None = None
    doubt: Uncertainty | None = None
    unseen: NDArray[np.bool_] | None = None


def sirt(
    scan: Scan,
    grid: Geometry,
    *,
    iterations: int = 100,
    positive: bool = True,
    start: NDArray[np.floating] | None = None,
    device: str | None = None,
    mu_water: float = WATER_PER_MM,
    report: Report = silent,
) -> Reconstruction:
    """Reconstruct by simultaneous iterations, rays and voxels by their weights' sums (Gregor, Benson 2008).

    Args:
        scan: Any geometry.
        grid: Where the voxels are to lie.
        iterations: How many.
        positive: Hold the attenuation at 0 or more.
        start: Attenuation to begin with, 1/mm; zero without it.
        device: As for :class:`~sagittal.reconstruction.projectors.Projector`.
        mu_water: Attenuation of water, 1/mm.
        report: Takes a line every ten iterations.

    Raises:
        GeometryError: The grid does not suit the scanner.
        InputError: No iterations.
    """
    return ordered_subsets(
        scan,
        grid,
        subsets=1,
        iterations=iterations,
        positive=positive,
        start=start,
        device=device,
        mu_water=mu_water,
        report=report,
        name="sirt",
    )


def ordered_subsets(
    scan: Scan,
    grid: Geometry,
    *,
    subsets: int = 6,
    iterations: int = 20,
    positive: bool = True,
    start: NDArray[np.floating] | None = None,
    device: str | None = None,
    mu_water: float = WATER_PER_MM,
    report: Report = silent,
    name: str = "ordered-subsets",
) -> Reconstruction:
    """Reconstruct as :func:`sirt` does, from every n-th view at a time: faster at first, without a limit.

    Args:
        scan: Any geometry.
        grid: Where the voxels are to lie.
        subsets: Into how many parts the views are divided.
        iterations: How many times all views are used.
        positive: Hold the attenuation at 0 or more.
        start: Attenuation to begin with, 1/mm; zero without it.
        device: As for :class:`~sagittal.reconstruction.projectors.Projector`.
        mu_water: Attenuation of water, 1/mm.
        report: Takes a line every ten iterations.
        name: What the image's facts call the method.

    Raises:
        GeometryError: The grid does not suit the scanner.
        InputError: No iterations, or more subsets than views.
    """
    require_iterations(iterations)
    views = scan.geometry.shape[0]
    if not 1 <= subsets <= views:
        raise InputError(
            "views cannot be divided so", source="subsets", value=subsets, expected=f"1 to {views}"
        )
    parts = []
    for first in range(subsets):
        rays = scan.sinogram[first::subsets].astype(np.float32)
        projector = Projector(subset(scan.geometry, slice(first, None, subsets)), grid, device=device)
        seen = np.ones(projector.shape, np.float32)
        if scan.missing is not None:
            seen[scan.missing[first::subsets]] = 0
        lengths = projector.forward(np.ones(grid.shape, np.float32))
        crossed = projector.back(seen)
        parts.append((projector, rays, seen, _inverse(lengths), _inverse(crossed)))
    image = begin(grid, start)
    energies = []
    for iteration in range(iterations):
        energy = 0.0
        for projector, rays, seen, by_ray, by_voxel in parts:
            residual = seen * (rays - projector.forward(image))
            energy += float(np.vdot(residual, residual)) / 2
            image += by_voxel * projector.back(by_ray * residual)
            if positive:
                np.maximum(image, 0, out=image)
        energies.append(energy)
        if iteration % 10 == 9:
            report(f"{name}: iteration {iteration + 1} of {iterations}")
    volume = hounsfield(image, grid, mu_water, facts={"method": name, "iterations": iterations})
    return Reconstruction(volume=volume, energies=tuple(energies), stopped="iterations")


def cgls(
    scan: Scan,
    grid: Geometry,
    *,
    iterations: int = 15,
    start: NDArray[np.floating] | None = None,
    device: str | None = None,
    mu_water: float = WATER_PER_MM,
    report: Report = silent,
) -> Reconstruction:
    """Reconstruct by conjugate gradients on the least squares; few iterations are what holds the noise down.

    Args:
        scan: Any geometry.
        grid: Where the voxels are to lie.
        iterations: How many.
        start: Attenuation to begin with, 1/mm; zero without it.
        device: As for :class:`~sagittal.reconstruction.projectors.Projector`.
        mu_water: Attenuation of water, 1/mm.
        report: Takes a line every ten iterations.

    Raises:
        GeometryError: The grid does not suit the scanner.
        InputError: No iterations.
    """
    require_iterations(iterations)
    projector = Projector(scan.geometry, grid, device=device)
    image = begin(grid, start)
    residual = _measured(scan, scan.sinogram.astype(np.float32) - projector.forward(image))
    slope = projector.back(residual)
    way, square = slope.copy(), float(np.vdot(slope, slope))
    energies = []
    stopped = "iterations"
    for iteration in range(iterations):
        ahead = _measured(scan, projector.forward(way))
        length = float(np.vdot(ahead, ahead))
        if square == 0 or length == 0:
            stopped = "converged"
            break
        amount = square / length
        image += np.float32(amount) * way
        residual -= np.float32(amount) * ahead
        slope = projector.back(residual)
        before, square = square, float(np.vdot(slope, slope))
        way = slope + np.float32(square / before) * way
        energies.append(float(np.vdot(residual, residual)) / 2)
        if iteration % 10 == 9:
            report(f"cgls: iteration {iteration + 1} of {iterations}")
    volume = hounsfield(image, grid, mu_water, facts={"method": "cgls", "iterations": len(energies)})
    return Reconstruction(volume=volume, energies=tuple(energies), stopped=stopped)


def require_iterations(iterations: int) -> None:
    """Refuse a number of iterations below 1."""
    require_count("iterations", iterations, 1, "there are no iterations")


def require_count(name: str, count: int, least: int, problem: str) -> None:
    """Refuse what is no whole number, or one below ``least``.

    Raises:
        InputError: It names the field.
    """
    whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
    if not whole or count < least:
        problem = problem if whole else "this is no whole number"
        raise InputError(problem, source=name, value=repr(count), expected=f"{least} or more")


def begin(grid: Geometry, start: NDArray[np.floating] | None) -> NDArray[np.float32]:
    """Return a copy of where to begin, or zeros.

    Raises:
        InputError: It has another shape than the grid.
    """
    if start is None:
        return np.zeros(grid.shape, np.float32)
    if start.shape != grid.shape:
        raise InputError(
            "the start has another shape than the grid", value=start.shape, expected=str(grid.shape)
        )
    return np.array(start, np.float32)


def _measured(scan: Scan, rays: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rays with 0 where nothing was measured."""
    return rays if scan.missing is None else np.where(scan.missing, np.float32(0), rays)


def _inverse(sums: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return 1 by each sum, and 0 where hardly anything was summed."""
    least = 1e-3 * float(sums.max())
    return np.asarray(np.where(sums > least, 1 / np.maximum(sums, least or 1), 0), np.float32)
