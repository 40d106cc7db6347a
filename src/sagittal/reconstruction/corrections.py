"""Corrections of a sinogram: bad channels, zingers, rings, the beam hardening of water.

Each takes line integrals of shape (views, rows, bins) and returns a :class:`Correction`: the corrected line
integrals, what was changed, and how much a changed ray is worth. A value that was put in place of a measured
one is as good as the same rule is where it can be checked: the rule is applied to rays that are kept, each
time without the ray itself, and the mean square of what it misses there (signal and noise alike) becomes the
variance of what was put in. :meth:`Correction.carry` hands it on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sagittal.core.errors import GeometryError, InputError
from sagittal.core.optional import optional_import

__all__ = [
    "Correction",
    "fill_channels",
    "find_bad_channels",
    "harden_water",
    "hardening_coefficients",
    "remove_rings",
    "remove_zingers",
    "water_attenuation",
]

_MAD = 1.4826  # of a Gaussian: standard deviation over median absolute deviation

# keV, cm^2/g: total attenuation with coherent scattering (NIST XCOM), water.
_WATER = (
    (10, 5.329), (15, 1.673), (20, 0.8096), (30, 0.3756), (40, 0.2683), (50, 0.2269),
    (60, 0.2059), (80, 0.1837), (100, 0.1707), (150, 0.1505), (200, 0.1370),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Correction:
    """Corrected line integrals.

    Attributes:
        sinogram: Line integrals, shape (views, rows, bins), the dtype that was given.
        changed: Rays that were treated otherwise than the rest, bool of the same shape; false everywhere
            where all rays went through one curve.
        variance: Variance that the correction itself adds to a ray, same shape.
        slope: What is left of a ray's own error, as a factor: 0 where its value was replaced; same shape.
    """

    sinogram: NDArray[np.floating[Any]]
    changed: NDArray[np.bool_]
    variance: NDArray[np.float64]
    slope: NDArray[np.float64]

    def carry(self, variance: ArrayLike) -> NDArray[np.float64]:
        """Return the variance after the correction from that before it, shape (views, rows, bins).

        That of a ray whose value was replaced does not count, though it be infinite.
        """
        before = np.broadcast_to(np.asarray(variance, dtype=np.float64), self.sinogram.shape)
        return np.asarray(self.slope**2 * np.where(self.slope == 0, 0, before) + self.variance)


def find_bad_channels(sinogram: NDArray[Any], *, threshold: float = 8.0) -> NDArray[np.bool_]:
    """Return the channels that do not measure what their neighbours do, bool of shape (rows, bins).

    A channel is bad where it holds a number that is not finite, or where one of two figures lies
    ``threshold`` robust standard deviations from the rest: the median over the views of its distance to the
    cubic through the four channels beside it (a constant error), and the logarithm of that distance's spread
    over the views against the 31 channels about it (a dead or a noisy one). A bad channel spoils that cubic
    for its neighbours, so the worst within two bins is taken out first, and the rest looked at again.

    Args:
        sinogram: Line integrals, shape (views, rows, bins); numbers that are not finite are allowed here.
        threshold: How far from the rest is bad.

    Raises:
        InputError: Fewer than four views or eleven bins, or a threshold that is not positive.
        GeometryError: Not three axes.
    """
    values = _sinogram(sinogram, finite=False)
    if values.shape[0] < 4 or values.shape[2] < 11 or not threshold > 0:
        raise InputError(
            "channels cannot be compared",
            value=(values.shape, threshold),
            expected="4 views and 11 bins or more, a positive threshold",
        )
    broken = ~np.isfinite(values)
    bad: NDArray[np.bool_] = np.asarray(broken.any(axis=0))
    values = np.where(broken, 0, values)
    while True:
        if ((~bad).sum(axis=1) < 2).any():
            return bad
        values = fill_channels(values, bad).sinogram.astype(np.float64)
        score = np.where(bad, 0, _strangeness(values, threshold))
        worst = optional_import("scipy.ndimage").maximum_filter(score, (1, 5), mode="nearest")
        found = (score > 1) & (score >= worst)
        if not found.any():
            return bad
        bad = np.asarray(bad | found)


def _strangeness(values: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """Return how far each channel is from what its neighbours measure; above 1 is beyond the threshold."""
    median_filter = optional_import("scipy.ndimage").median_filter
    apart = values - _cubic(values)
    middle = np.median(apart, axis=0)
    spread = _MAD * np.median(np.abs(apart - middle), axis=0)
    usual = median_filter(spread, (1, 31), mode="nearest")
    floor = 1e-3 * np.median(spread, axis=1, keepdims=True) + 1e-12
    ratio = np.log((spread + floor) / (usual + floor))
    noise = np.sqrt(usual**2 / len(values) + _robust(middle) ** 2 + 1e-18)
    shifted = np.abs(middle) / (threshold * noise)
    return np.asarray(np.maximum(shifted, np.abs(ratio) / np.maximum(threshold * _robust(ratio), np.log(3))))


def _cubic(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what the cubic through the two channels on both sides gives at each channel."""
    padded = np.pad(values, ((0, 0), (0, 0), (2, 2)), mode="reflect", reflect_type="odd")
    near, far = padded[..., 1:-3] + padded[..., 3:-1], padded[..., :-4] + padded[..., 4:]
    return np.asarray((4 * near - far) / 6)


def fill_channels(sinogram: NDArray[Any], bad: NDArray[np.bool_]) -> Correction:
    """Fill channels from the good ones beside them in their row, linearly along the detector.

    Their variance is what the same interpolation over the same gap misses at the good channels of that row.

    Args:
        sinogram: Line integrals, shape (views, rows, bins); those of bad channels may be anything.
        bad: Shape (rows, bins), as from :func:`find_bad_channels`, or known.

    Raises:
        InputError: A row without two good channels, or good channels that are not finite.
        GeometryError: Shapes that do not match.
    """
    values = _sinogram(sinogram, finite=False).copy()
    if bad.shape != values.shape[1:] or bad.dtype != bool:
        raise GeometryError(
            "the bad channels do not fit", value=bad.shape, expected=f"bool, {values.shape[1:]}"
        )
    variance = np.zeros(values.shape)
    for row in range(values.shape[1]):
        good = np.flatnonzero(~bad[row])
        if len(good) == values.shape[2]:
            continue
        if len(good) < 2:
            raise InputError("a row has no two good channels", source=f"row {row}", value=len(good))
        rays = values[:, row]
        if not np.all(np.isfinite(rays[:, good])):
            raise InputError("good channels hold values that are not finite", source=f"row {row}")
        for channel in np.flatnonzero(bad[row]):
            place = int(np.searchsorted(good, channel))
            left, right = good[max(place - 1, 0)], good[min(place, len(good) - 1)]
            share = 0.0 if left == right else (channel - left) / (right - left)
            rays[:, channel] = (1 - share) * rays[:, left] + share * rays[:, right]
            variance[:, row, channel] = _missed(rays, ~bad[row], channel - left, right - channel, share)
    changed = np.broadcast_to(bad, values.shape).copy()
    return Correction(_like(values, sinogram), changed, variance, _own(changed))


def remove_zingers(sinogram: NDArray[Any], *, threshold: float = 8.0, views: int = 5) -> Correction:
    """Replace rays that stand out in one view alone (a particle hit the detector) by a median over views.

    A ray is one where it lies ``threshold`` robust standard deviations of its channel from the median of the
    ``views`` - 1 about it, and as far, on the same side, from the median of the four bins beside it: an edge
    that turns by is far from the first but not from the second. The median over the views takes its place.

    With few views sharp bone may still pass for one: 36 of 15 000 rays of a head in 60 views, none in 720.

    Args:
        sinogram: Line integrals, shape (views, rows, bins), finite.
        threshold: How far is too far.
        views: Views of the median, odd.

    Raises:
        InputError: Fewer views than the median needs, an even number, values that are not finite.
        GeometryError: Not three axes.
    """
    values = _sinogram(sinogram)
    if views < 3 or views % 2 == 0 or len(values) < views or not threshold > 0:
        raise InputError(
            "a median over views needs an odd number of them",
            value=(views, len(values)),
            expected="3 or more",
        )
    over_views = _beside(values, axis=0, reach=views // 2)
    apart, beside = values - over_views, _smaller(values - _beside(values, axis=2), values - _cubic(values))
    limits = [
        threshold * np.maximum(_MAD * np.median(np.abs(d), axis=0), _robust_floor(d)) for d in (apart, beside)
    ]
    changed = (np.abs(apart) > limits[0]) & (np.abs(beside) > limits[1]) & (apart * beside > 0)
    changed &= np.abs(apart) > 2 * _range(values, axis=0, reach=views // 2)
    changed &= np.abs(apart) > 2 * _range(values, axis=2)
    missed = np.where(changed, 0, apart**2).sum(axis=0) / np.maximum((~changed).sum(axis=0), 1)
    replaced = _like(np.where(changed, over_views, values), sinogram)
    return Correction(replaced, changed, np.where(changed, missed, 0.0), _own(changed))


def remove_rings(sinogram: NDArray[Any], *, size: int = 7, threshold: float = 8.0) -> Correction:
    """Remove the stripes of miscalibrated channels, which would become rings.

    The sorting-based method (Vo, Atwood and Drakopoulos, Opt. Express 26:28396, 2018, algorithm 3), on the
    channels that show a stripe alone: each channel's values are sorted and compared with the median over
    ``size`` neighbouring channels at the same rank. Sorting makes neighbours comparable although the object
    turns by, so it finds errors that depend on the signal, and unlike filters in the Fourier or wavelet
    domain it rings at no edge and has one parameter. The paper puts the median in the place of the values;
    here the difference, averaged over a quarter of the ranks, is subtracted, so that a ray keeps its own
    detail and noise [inference]. It needs views all round the object, and stripes narrower than half of
    ``size``. What it leaves behind at strong edges of the object is 0.01 to 0.06 in a line integral on the
    phantoms it was tried on.

    The variance that it adds is the mean square of what it would subtract from channels without a stripe.

    Args:
        sinogram: Line integrals, shape (views, rows, bins), finite.
        size: Channels of the median, odd.
        threshold: A channel shows a stripe where the mean of its difference, less that of its neighbours,
            exceeds this many robust standard deviations of the 31 channels about it.

    Raises:
        InputError: An even size, fewer bins than it, values that are not finite.
        GeometryError: Not three axes.
    """
    values = _sinogram(sinogram)
    if size < 3 or size % 2 == 0 or values.shape[2] < size or not threshold > 0:
        raise InputError(
            "a median over channels needs an odd number of them",
            source="size",
            value=(size, values.shape[2]),
            expected="3 to the number of bins",
        )
    ndimage = optional_import("scipy.ndimage")
    order = np.argsort(values, axis=0, kind="stable")
    ranked = np.take_along_axis(values, order, axis=0)
    apart = ranked - ndimage.median_filter(ranked, (1, 1, size), mode="nearest")
    mean = apart.mean(axis=0)
    stripe = np.abs(mean - ndimage.median_filter(mean, (1, size), mode="nearest"))
    usual = _MAD * ndimage.median_filter(stripe, (1, min(31, values.shape[2])), mode="nearest")
    floor = 0.1 * _MAD * np.median(np.abs(apart)) / np.sqrt(len(values)) + 1e-12
    striped = stripe > threshold * np.maximum(usual, floor)
    smooth = ndimage.uniform_filter1d(apart, max(len(values) // 4, 1), axis=0, mode="nearest")
    offset = np.empty_like(values)
    np.put_along_axis(offset, order, smooth, axis=0)
    changed = np.broadcast_to(striped, values.shape).copy()
    missed = np.where(changed, 0, offset**2).sum(axis=(0, 2)) / np.maximum((~changed).sum(axis=(0, 2)), 1)
    return Correction(
        _like(values - np.where(changed, offset, 0), sinogram),
        changed,
        np.where(changed, missed[:, None], 0.0),
        np.ones(values.shape),
    )


def harden_water(sinogram: NDArray[Any], coefficients: Sequence[float]) -> Correction:
    """Turn line integrals of a polychromatic beam in water into those at one energy (water correction).

    The polynomial is ``c[0] p + c[1] p^2 + ...``. Bone is not water: behind it an error stays. No ray is
    replaced; a ray's error grows by the polynomial's slope there.

    Args:
        sinogram: Line integrals, shape (views, rows, bins), finite.
        coefficients: From :func:`hardening_coefficients`, or a scanner's own.

    Raises:
        InputError: No coefficients, or a polynomial that falls within the values given.
        GeometryError: Not three axes.
    """
    values = _sinogram(sinogram)
    polynomial = np.polynomial.Polynomial([0.0, *coefficients])
    if len(coefficients) == 0 or not np.all(np.isfinite(polynomial.coef)):
        raise InputError("the polynomial has no usable coefficients", value=list(coefficients))
    slope = polynomial.deriv()(values)
    if np.any(slope <= 0):
        raise InputError(
            "the polynomial falls within the data",
            source="coefficients",
            value=f"at line integrals from {float(values[slope <= 0].min()):.3g}",
            expected="one that was fitted over the whole range of the scan",
        )
    none = np.zeros(values.shape, bool)
    return Correction(_like(polynomial(values), sinogram), none, np.zeros(values.shape), slope)


def hardening_coefficients(
    energies: ArrayLike,
    spectrum: ArrayLike,
    *,
    reference: float,
    longest: float = 400.0,
    degree: int = 3,
    attenuation: ArrayLike | None = None,
) -> tuple[float, ...]:
    """Return the polynomial for :func:`harden_water` from the detected spectrum.

    It is fitted by least squares to 200 thicknesses of water up to ``longest``, through no thickness at no
    integral.

    Args:
        energies: keV, shape (n,).
        spectrum: What the detector measures of each energy with nothing in the way, any scale, shape (n,).
        reference: The energy that the result is for, keV.
        longest: Greatest thickness of water that the scan meets, mm.
        degree: Degree of the polynomial.
        attenuation: Attenuation of water at the energies, 1/mm; from NIST's table by default.

    Raises:
        InputError: Spectra that are empty, negative or do not match; energies outside 10 to 200 keV.
    """
    keV, weight = np.asarray(energies, np.float64), np.asarray(spectrum, np.float64)
    if keV.ndim != 1 or keV.shape != weight.shape or not np.all(weight >= 0) or not 0 < weight.sum() < np.inf:
        raise InputError("the spectrum does not fit its energies", value=(keV.shape, weight.shape))
    if not longest > 0 or not 1 <= degree <= 8:
        raise InputError(
            "the polynomial cannot be fitted", value=(longest, degree), expected="mm, degree 1 to 8"
        )
    mu = water_attenuation(keV) if attenuation is None else np.asarray(attenuation, np.float64)
    lengths = np.linspace(0, longest, 201)[1:]
    mono = lengths * float(water_attenuation(reference))
    measured = -np.log(np.exp(-lengths[:, None] * mu) @ (weight / weight.sum()))
    powers = measured[:, None] ** np.arange(1, degree + 1)
    found = np.linalg.lstsq(powers / mono[:, None], np.ones(len(mono)), rcond=None)[0]
    return tuple(float(c) for c in found)


def water_attenuation(energies: ArrayLike) -> NDArray[np.float64]:
    """Return water's attenuation at energies of 10 to 200 keV, 1/mm (NIST XCOM, linear in the logarithms).

    Raises:
        InputError: An energy outside the table.
    """
    keV = np.asarray(energies, np.float64)
    table = np.asarray(_WATER)
    if not np.all((keV >= table[0, 0]) & (keV <= table[-1, 0])):
        raise InputError(
            "an energy lies outside the table", value=np.ravel(keV).tolist()[:4], expected="10 to 200 keV"
        )
    return np.asarray(np.exp(np.interp(np.log(keV), np.log(table[:, 0]), np.log(table[:, 1] / 10))))


def _sinogram(sinogram: NDArray[Any], *, finite: bool = True) -> NDArray[np.float64]:
    if sinogram.ndim != 3 or sinogram.dtype.kind not in "fiu" or not sinogram.size:
        raise GeometryError(
            "a sinogram has three axes of real numbers",
            value=(sinogram.dtype, sinogram.shape),
            expected="views, rows, bins",
        )
    values = sinogram.astype(np.float64)
    if finite and not np.all(np.isfinite(values)):
        raise InputError(
            "line integrals are not finite",
            value=f"{int(np.count_nonzero(~np.isfinite(values)))} of {values.size}",
            expected="finite ones; fill bad channels first",
        )
    return values


def _like(values: NDArray[np.float64], given: NDArray[Any]) -> NDArray[np.floating[Any]]:
    return values.astype(given.dtype if given.dtype.kind == "f" else np.float64)


def _smaller(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the one nearer to 0, and 0 where their signs differ."""
    return np.where(one * other > 0, np.where(np.abs(one) < np.abs(other), one, other), 0.0)


def _own(replaced: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(replaced, 0.0, 1.0)


def _robust(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1.48 times the median absolute deviation along the last axis, kept."""
    middle = np.median(values, axis=-1, keepdims=True)
    return np.asarray(_MAD * np.median(np.abs(values - middle), axis=-1, keepdims=True))


def _robust_floor(values: NDArray[np.float64]) -> float:
    """Return what no channel's spread is taken to be below: a tenth of the usual."""
    return max(0.1 * _MAD * float(np.median(np.abs(values))), 1e-12)


def _missed(rays: NDArray[np.float64], good: NDArray[np.bool_], left: int, right: int, share: float) -> float:
    """Return the mean square by which interpolating from bins so far away misses good channels."""
    bins = np.arange(rays.shape[1])
    if left + right == 0 or left < 0 or right < 0:  # beyond the last good channel: its value was repeated
        right, share = max(abs(left), abs(right)), 1.0
        left = 0
    inside = bins[(bins - left >= 0) & (bins + right < len(bins))]
    known = good[inside] & good[inside - left] & good[inside + right]
    at = inside[known]
    if not len(at):
        return float(np.var(rays[:, good]))
    return float(np.mean((rays[:, at] - (1 - share) * rays[:, at - left] - share * rays[:, at + right]) ** 2))


def _beside(values: NDArray[np.float64], *, axis: int, reach: int = 2) -> NDArray[np.float64]:
    """Return the median of the values up to ``reach`` away along an axis, without the value itself."""
    return np.asarray(np.median(_near(values, axis, reach), axis=0))


def _range(values: NDArray[np.float64], *, axis: int, reach: int = 2) -> NDArray[np.float64]:
    """Return how far those values lie apart, the furthest on each side left out."""
    ordered = np.sort(_near(values, axis, reach), axis=0)
    return np.asarray(ordered[-2] - ordered[1] if len(ordered) > 3 else ordered[-1] - ordered[0])


def _near(values: NDArray[np.float64], axis: int, reach: int) -> NDArray[np.float64]:
    moved = np.moveaxis(values, axis, 0)
    padded = np.concatenate([moved[reach:0:-1], moved, moved[-2 : -2 - reach : -1]])
    near = [np.moveaxis(padded[k : k + len(moved)], 0, axis) for k in range(2 * reach + 1) if k != reach]
    return np.stack(near)
