"""How unlike two images on one grid are, and how that changes with each voxel of either.

Each function takes two arrays or tensors of shape (i, j, k), and perhaps how much each voxel counts, and
returns a number, lower where they are more alike, with its derivatives by the first and by the second. The
derivatives are written out, not left to autograd: they need less memory, and they have the same bits whatever
the number of threads.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.registration import native
from sagittal.registration.filters import box, gaussian
from sagittal.volume.field_calculus import Array, like

__all__ = [
    "SIMILARITIES",
    "Similarity",
    "correlation",
    "local_correlation",
    "mean_square",
    "mutual_information",
    "similarity",
]


class Similarity(Protocol):
    """How unlike two images are, and the derivatives by each."""

    def __call__(self, a: Array, b: Array, weight: Array | None = None) -> tuple[float, Array, Array]:
        """Compare, where each voxel counts as ``weight`` says."""


_RADIUS = 2  # of the window of the local correlation, voxels
_FLAT = 0.05  # standard deviation that counts as flat, where the image's range is 1
_BINS = 32
_LEAST = 1e-3  # of a window: with less weight, it has none


def mean_square(a: Array, b: Array, weight: Array | None = None) -> tuple[float, Array, Array]:
    """Return the mean squared difference: for images of one contrast."""
    apart = a - b
    scaled = apart * (2 / _size(a, weight))
    scaled = scaled if weight is None else scaled * weight
    return _mean(apart * apart, weight), scaled, -scaled


def correlation(a: Array, b: Array, weight: Array | None = None) -> tuple[float, Array, Array]:
    """Return 1 minus the squared correlation of the whole images: for contrasts that differ by a line."""
    p, q = a - _mean(a, weight), b - _mean(b, weight)
    pp, qq = _mean(p * p, weight) + _FLAT**2, _mean(q * q, weight) + _FLAT**2
    pq = _mean(p * q, weight)
    share = pq * pq / (pp * qq)
    scale = 2 * pq / (pp * qq) / _size(a, weight)
    by_a, by_b = (p * (pq / pp) - q) * scale, (q * (pq / qq) - p) * scale
    return (1 - share, by_a, by_b) if weight is None else (1 - share, by_a * weight, by_b * weight)


def local_correlation(a: Array, b: Array, weight: Array | None = None) -> tuple[float, Array, Array]:
    """Return 1 minus the mean squared correlation within windows of 5 voxels a side.

    For contrasts that differ by a line in each place, as a bias field makes them. A standard deviation of
    0.05 is added to both images, so that flat places and their noise count for little. Weights count both
    within a window and for the window around each voxel. Source: Avants, Epstein, Grossman, Gee 2008; the
    derivative is that of the sum over all windows.
    """
    if native.usable(a, b, *(() if weight is None else (weight,))):
        return native.correlate(a, b, weight, _FLAT**2)
    weights = like(np.ones(tuple(a.shape)), a) if weight is None else weight
    size = box(weights, _RADIUS)  # windows are cut off at the faces
    size = size + (size < _LEAST) * _LEAST
    mean_a, mean_b = box(weights * a, _RADIUS) / size, box(weights * b, _RADIUS) / size
    both = box(weights * a * b, _RADIUS) - mean_a * mean_b * size
    own_a = box(weights * a * a, _RADIUS) - mean_a * mean_a * size + size * _FLAT**2
    own_b = box(weights * b * b, _RADIUS) - mean_b * mean_b * size + size * _FLAT**2
    cross = weights * both / (own_a * own_b)
    share = both * cross
    by_a, by_b = share / own_a, share / own_b
    crossed = box(cross, _RADIUS)
    scale = weights * (-2 / _size(a, weight))
    d_a = b * crossed - box(cross * mean_b, _RADIUS) - a * box(by_a, _RADIUS) + box(by_a * mean_a, _RADIUS)
    d_b = a * crossed - box(cross * mean_a, _RADIUS) - b * box(by_b, _RADIUS) + box(by_b * mean_b, _RADIUS)
    return 1 - _mean(share, None) * _count(a) / _size(a, weight), d_a * scale, d_b * scale


def mutual_information(a: Array, b: Array, weight: Array | None = None) -> tuple[float, Array, Array]:
    """Return the negative mutual information, in nats: for images of different kinds.

    From a histogram of 32 bins a side over [0, 1], smoothed by one bin; the derivatives are those of the
    logarithm of the smoothed densities. Source: Hermosillo, Chefd'hotel, Faugeras 2002.
    """
    places = [np.clip(_plain(x).astype(np.float64), 0, 1) * (_BINS - 1) for x in (a, b)]
    counts = np.float64(1) if weight is None else _plain(weight).astype(np.float64)
    size = _size(a, weight)
    low = [np.minimum(place.astype(np.intp), _BINS - 2) for place in places]
    part = [place - floor for place, floor in zip(places, low, strict=True)]
    joint = np.zeros(_BINS * _BINS)
    corners = [(0, 0), (0, 1), (1, 0), (1, 1)]
    cells, weights = [], []
    for i, j in corners:
        cells.append((low[0] + i) * _BINS + low[1] + j)
        weights.append((part[0] if i else 1 - part[0]) * (part[1] if j else 1 - part[1]))
        joint += np.bincount(cells[-1].ravel(), (weights[-1] * counts).ravel(), minlength=joint.size)
    density = gaussian(joint.reshape(_BINS, _BINS, 1) / size, (1, 1, 0))[..., 0] + 1e-9
    own = [density.sum(axis=1, keepdims=True), density.sum(axis=0, keepdims=True)]
    found = float((density * np.log(density / (own[0] * own[1]))).sum())
    slopes = []
    for axis in (0, 1):
        table = np.gradient(np.log(density / own[axis]), axis=axis).ravel() * (_BINS - 1) / size
        value = sum(table[cell] * share for cell, share in zip(cells, weights, strict=True))
        slopes.append(like(-np.asarray(value) * counts, a))
    return -found, slopes[0], slopes[1]


SIMILARITIES: dict[str, Similarity] = {
    "local-correlation": local_correlation,
    "mean-square": mean_square,
    "mutual-information": mutual_information,
}


def similarity(name: str) -> Similarity:
    """Return a measure by its name.

    Raises:
        InputError: There is no such measure.
    """
    if name not in SIMILARITIES:
        raise InputError("there is no such similarity", value=name, expected=", ".join(SIMILARITIES))
    return SIMILARITIES[name]


def _plain(values: Array) -> NDArray[Any]:
    return np.asarray(values if isinstance(values, np.ndarray) else values.detach().cpu())


def _mean(values: Array, weight: Array | None) -> float:
    """Return the mean, added up in float64 by one thread, in one order."""
    counted = values if weight is None else values * weight
    return float(_plain(counted).sum(dtype=np.float64)) / _size(values, weight)


def _size(values: Array, weight: Array | None) -> float:
    """Return what all weights sum to, and 1 where they are none."""
    return _count(values) if weight is None else float(_plain(weight).sum(dtype=np.float64)) or 1.0


def _count(values: Array) -> int:
    return int(np.prod(values.shape))
