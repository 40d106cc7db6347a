"""How far each voxel of a reconstruction may be off: its noise, and what the method gets wrong.

A voxel's variance here is the expected square of its error, a sum of two parts.

*Noise.* Counts are drawn again from the line integrals of the image, each draw is reconstructed, and the
draws' variance is taken (a parametric bootstrap; Efron and Tibshirani 1993, chapter 6). The cheap kind
takes few draws, begins total variation at the image and stops it early, and shares each voxel's variance with
its neighbours'. Few draws say little of a variance: it is raised so that 1.96 of its roots are as wide as
Student's interval.

*What the method gets wrong*, the larger of two squares [inference: both estimates are ours]:

- Its shift: what the method makes of an image like this one, minus that image. For total variation the image
  is its own likeness. For methods that leave noise and streaks in the image, the likeness is the image
  without them: three times in turn, the shift that was found is taken away and the rest made smooth by total
  variation.
- What is left: the scan minus the image's line integrals, reconstructed by filtered backprojection at low
  resolution. Detail that a prior took out of the image, but not out of the scan, stands there. Half the noise
  that the scan has at that resolution is taken off, because an image takes up part of the noise it is fitted
  to.

A detail that is weaker than the scan's noise at its own size leaves no trace in either. The facts say how
strong a disc of four voxels must be to be seen in what is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.randomness import generator
from sagittal.reconstruction.analytic import fbp, fdk
from sagittal.reconstruction.geometry import ConeBeam, ParallelBeam
from sagittal.reconstruction.iterative import Report
from sagittal.reconstruction.projectors import Projector
from sagittal.reconstruction.scan import LEAST_COUNT, Scan
from sagittal.reconstruction.variation import Variation
from sagittal.volume import Geometry, Volume

__all__ = ["Kind", "Uncertainty", "leftover", "redrawn", "smallest_disc", "student_factor", "uncertainty"]

Kind = Literal["quick", "bootstrap"]

Again = Callable[[Scan, "NDArray[np.float32] | None"], Volume]
"""Reconstructs another scan of the same grid; begins with an attenuation, 1/mm, where one is given."""

_CUTOFF = 0.4
"""Of the voxels' highest frequency: the resolution at which what is left is looked at."""

_TAKEN_UP = 0.5
"""Share of the scan's noise that is taken off what is left."""

_ROUNDS = 3
_STRIDE = 1.7
"""By how much of what a likeness lacks it is changed; below 2, as a method only weakens what it is given."""

_SMOOTHING = 3.0
"""Price of the variation when a likeness is made, in standard deviations of the noise."""

_AIR_HU = -900.0
_WIDTH = 1.5
_WIDTH_SHIFT, _WIDTH_LEFT = 2.0, 3.0
"""Standard deviations, in voxels, of the weights by which neighbours share a noise and an error's square."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Uncertainty:
    """What is known of the errors of an image, each of the grid's shape, in HU squared.

    Attributes:
        noise: Variance by photon noise.
        shift: Square of what the method does to an image like this one.
        left: Square of what the scan shows and the image does not; None where the scan has too few views
            for a filtered backprojection, or runs on a helix.
        facts: Kind, draws, seed, the shares of the parts within the object, and what could not be seen.
    """

    noise: NDArray[np.float32]
    shift: NDArray[np.float32]
    left: NDArray[np.float32] | None
    facts: dict[str, Any]

    @property
    def variance(self) -> NDArray[np.float32]:
        """The expected square of the error."""
        wrong = self.shift if self.left is None else np.maximum(self.shift, self.left)
        return np.asarray(self.noise + wrong, np.float32)


def uncertainty(
    scan: Scan,
    image: Volume,
    again: Again,
    *,
    kind: Kind,
    draws: int,
    seed: int,
    smooth: bool,
    mu_water: float,
    noise: NDArray[Any] | None = None,
    report: Report,
) -> Uncertainty:
    """Estimate the errors of a reconstructed image.

    Args:
        scan: What it was reconstructed from; it must say its photons.
        image: In HU.
        again: Reconstructs as the image was.
        kind: "quick" shares the variance of its draws between neighbours and begins them at the image.
        draws: How often the counts are drawn again, 2 or more.
        seed: The draws follow from it.
        smooth: Whether the method makes images smooth, so that they are their own likeness.
        mu_water: Attenuation of water, 1/mm.
        noise: The variance by photon noise in HU squared, where it is known; nothing is drawn then.
        report: Takes a line for each draw.

    Raises:
        InputError: The scan does not say its dose, or there are fewer draws than two.
    """
    if scan.photons is None:
        raise InputError(
            "the scan does not say its dose, from which the variance follows",
            source="photons",
            expected="photons per ray",
        )
    if draws < 2:
        raise InputError("a variance takes two draws", source="draws", value=draws, expected="2 or more")
    grid = image.geometry
    projector = Projector(scan.geometry, grid)
    hu = image.array.astype(np.float32)
    start = _attenuation(hu, mu_water)
    quick = kind == "quick"
    change = None
    if noise is None:
        exact = projector.forward(start)
        noise, change = _spread(scan, exact, again, hu, start if quick else None, draws, seed, quick, report)
        if quick:
            noise = shared(noise, _WIDTH)
    if change is None or not smooth:
        shift = _shift(scan, projector, again, hu, noise, mu_water, report)
    else:  # the mean of the draws has noise of its own
        shift = np.asarray(change**2 - noise / draws, np.float32)
    shift = np.maximum(shared(shift, _WIDTH_SHIFT), 0)
    left, seen = _left(scan, projector, start, mu_water)
    object_ = hu > _AIR_HU if (hu > _AIR_HU).any() else np.ones(hu.shape, bool)
    found = Uncertainty(noise=np.asarray(noise, np.float32), shift=shift, left=left, facts={})
    total = float(found.variance[object_].mean(dtype=np.float64)) or 1.0
    facts: dict[str, Any] = {
        "kind": kind,
        "draws": None if change is None else draws,
        "seed": None if change is None else seed,
        "noise_share": float(noise[object_].mean(dtype=np.float64)) / total,
        "shift_hu": math.sqrt(float(shift[object_].mean(dtype=np.float64))),
        "left_hu": None,
        "unseen_disc": None,
    }
    if left is not None and seen is not None:
        diameter, contrast = smallest_disc(grid, seen[object_])
        facts["left_hu"] = math.sqrt(float(left[object_].mean(dtype=np.float64)))
        facts["unseen_disc"] = {"diameter_mm": diameter, "below_hu": contrast}
    found.facts.update(facts)
    return found


def redrawn(scan: Scan, exact: NDArray[np.floating], seed: int, number: int) -> Scan:
    """Return the scan with counts drawn about other line integrals, at its own dose.

    Args:
        scan: Says dose and electronic noise.
        exact: Line integrals, shape (views, rows, bins).
        seed: The noise follows from it ...
        number: ... and from the number of the draw.
    """
    draw = generator(seed, "ct-doubt", str(number))
    photons = np.broadcast_to(np.asarray(scan.photons, np.float64), scan.sinogram.shape)
    counts = draw.poisson(photons * np.exp(-exact.astype(np.float64))).astype(np.float64)
    if scan.electronic:
        counts += draw.normal(0, scan.electronic, counts.shape)
    counted = photons > 0  # elsewhere there was no ray to count
    rays = np.log(np.where(counted, photons, 1)) - np.log(
        np.where(counted, np.maximum(counts, LEAST_COUNT), 1)
    )
    return scan.replace(
        sinogram=rays.astype(np.float32), starved=int((counted & (counts < LEAST_COUNT)).sum())
    )


def leftover(scan: Scan, exact: NDArray[np.floating], grid: Geometry, mu_water: float) -> Volume | None:
    """Reconstruct at low resolution what line integrals do not explain of a scan, with its noise.

    Rays that counted next to nothing are taken as explained.

    Args:
        scan: It must say its photons.
        exact: Line integrals of an image, shape (views, rows, bins).
        grid: Where the voxels are to lie.
        mu_water: Attenuation of water, 1/mm.

    Returns:
        HU that the image lacks (water would be 1000), and the scan's own variance at that resolution; None
        where filtered backprojection does not suit the scan.
    """
    analytic = fdk if isinstance(scan.geometry, ConeBeam) else fbp
    geometry = scan.geometry
    width = geometry.bin_width
    if not isinstance(geometry, ParallelBeam):
        width *= geometry.source_distance / geometry.detector_distance
    cutoff = min(1.0, _CUTOFF * width / min(grid.spacing[:2]))
    variance = scan.variance
    known = np.isfinite(variance) & (variance < 1 / LEAST_COUNT)
    rays = np.where(known, scan.sinogram - exact, 0).astype(np.float32)
    try:
        left = scan.replace(sinogram=rays)  # whose noise at the ends is no object that goes on
        image = analytic(left, grid, cutoff=cutoff, truncation="none", mu_water=mu_water)
    except InputError:  # too little of a turn, or a helix
        return None
    noise = analytic(scan, grid, cutoff=cutoff, variance=True, mu_water=mu_water).variance
    assert noise is not None
    return image.replace(array=image.array + 1000, variance=np.where(np.isfinite(noise), noise, 0))


def shared(values: NDArray[np.float32], width: float) -> NDArray[np.float32]:
    """Return the mean of each voxel's neighbours by Gaussian weights of this width, voxels."""
    weights = _gaussian(width)
    reach = len(weights) // 2
    for axis in range(values.ndim):
        count = values.shape[axis]
        if count == 1:
            continue
        padded = np.pad(
            values, [(reach, reach) if a == axis else (0, 0) for a in range(values.ndim)], mode="edge"
        )
        total = np.zeros(values.shape, np.float32)
        for i, weight in enumerate(weights):
            total += np.float32(weight) * padded.take(np.arange(i, i + count), axis)
        values = total
    return values


def student_factor(freedom: float) -> float:
    """Return the square of Student's 97.5 % quantile by the normal one's, for 2 degrees of freedom or more.

    The quantile is expanded about the normal one (Abramowitz and Stegun 26.7.5), 3 % off at 2.
    """
    z, n = 1.959964, max(freedom, 2.0)
    terms = (
        (z**3 + z) / 4 / n,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96 / n**2,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384 / n**3,
    )
    return (1 + sum(terms) / z) ** 2


def smallest_disc(grid: Geometry, noise: NDArray[Any]) -> tuple[float, float]:
    """Return a disc of four voxels across, mm, and the contrast that it needs to be seen in what is left, HU.

    Seen means: beyond 1.96 of the scan's own standard deviations, at the median of the voxels given.
    """
    size, across = 64, 4.0
    place = np.arange(size) - size // 2
    far = np.hypot(place[:, None], place[None, :])
    disc = np.clip(across / 2 + 0.5 - far, 0, 1)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size))) * 2 / _CUTOFF
    window = np.where(frequency <= 1, (1 + np.cos(np.pi * np.minimum(frequency, 1))) / 2, 0)
    kept = float(np.fft.ifft2(np.fft.fft2(disc) * window).real[size // 2, size // 2])
    return across * min(grid.spacing[:2]), 1.96 * math.sqrt(float(np.median(noise))) / kept


def _spread(
    scan: Scan,
    exact: NDArray[Any],
    again: Again,
    hu: NDArray[np.float32],
    start: NDArray[np.float32] | None,
    draws: int,
    seed: int,
    quick: bool,
    report: Report,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the raised variance of draws, and the mean of their differences from the image."""
    mean, squares = np.zeros_like(hu), np.zeros_like(hu)
    for number in range(draws):
        change = again(redrawn(scan, exact, seed, number), start).array - hu
        step = change - mean
        mean += step / np.float32(number + 1)
        squares += step * (change - mean)
        report(f"variance: draw {number + 1} of {draws}")
    variance = squares / np.float32(draws - 1)
    freedom = float(draws - 1)
    if quick:
        freedom *= _independent(change - mean, hu > _AIR_HU, _WIDTH)
    return variance * np.float32(student_factor(freedom)), mean


def _independent(noise: NDArray[np.float32], within: NDArray[np.bool_], width: float) -> float:
    """Return how many independent squares of noise are shared: the product over the axes of what
    correlations along each leave of them."""
    weights, found = _gaussian(width), 1.0
    values = np.where(within, noise, 0).astype(np.float64)
    power = float((values**2).sum())
    if power == 0:
        return found
    for axis, count in enumerate(noise.shape):
        reach = min(len(weights), count) - 1
        line = np.moveaxis(values, axis, 0)
        rho = np.zeros(len(weights))
        rho[: reach + 1] = [float((line[: count - n] * line[n:]).sum()) / power for n in range(reach + 1)]
        both = weights[:, None] * weights[None, :]
        lag = np.abs(np.arange(len(weights))[:, None] - np.arange(len(weights))[None, :])
        found *= 1 / float((both * rho[lag] ** 2).sum()) if count > 1 else 1.0
    return found


def _shift(
    scan: Scan,
    projector: Projector,
    again: Again,
    hu: NDArray[np.float32],
    noise: NDArray[Any],
    mu_water: float,
    report: Report,
) -> NDArray[np.float32]:
    """Return the square of what the method adds to an image that might have been scanned."""
    variation = Variation(grid=projector.grid)
    within = hu > _AIR_HU
    price = _SMOOTHING * math.sqrt(float(np.median(noise[within] if within.any() else noise)))
    given, shift = hu, np.zeros_like(hu)
    for number in range(_ROUNDS):
        likeness = variation.step(
            np.maximum(given + 1000, 0), price, variation.start(np.float32), iterations=60
        ) - np.float32(1000)
        rays = projector.forward(_attenuation(likeness, mu_water))
        made = again(scan.replace(sinogram=rays, starved=0), None).array
        shift, given = made - likeness, likeness + np.float32(_STRIDE) * (hu - made)
        report(f"variance: likeness {number + 1} of {_ROUNDS}")
    return np.asarray(shift**2, np.float32)


def _left(
    scan: Scan, projector: Projector, start: NDArray[np.float32], mu_water: float
) -> tuple[NDArray[np.float32] | None, NDArray[Any] | None]:
    found = leftover(scan, projector.forward(start), projector.grid, mu_water)
    if found is None or found.variance is None:
        return None, None
    square = found.array.astype(np.float32) ** 2 - np.float32(_TAKEN_UP) * found.variance.astype(np.float32)
    return np.maximum(shared(square, _WIDTH_LEFT), 0), found.variance


def _attenuation(hu: NDArray[np.float32], mu_water: float) -> NDArray[np.float32]:
    return np.asarray(np.maximum(hu + 1000, 0) * np.float32(mu_water / 1000), np.float32)


def _gaussian(width: float) -> NDArray[np.float64]:
    place = np.arange(-math.ceil(2.5 * width), math.ceil(2.5 * width) + 1)
    weights = np.exp(-((place / width) ** 2) / 2)
    return np.asarray(weights / weights.sum())
