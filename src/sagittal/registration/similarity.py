"""How unlike two images on one grid are, and how that changes with each voxel of either.

Each function takes two tensors of shape (i, j, k) and returns a number, lower where they are more alike, with
its derivatives by the first and by the second. The derivatives are written out, not left to autograd: they
need less memory, and they have the same bits whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sagittal.core.errors import InputError
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

Similarity = Callable[[Array, Array], tuple[float, Array, Array]]

_RADIUS = 2  # of the window of the local correlation, voxels
_FLAT = 0.05  # standard deviation that counts as flat, where the image's range is 1
_BINS = 32


def mean_square(a: Array, b: Array) -> tuple[float, Array, Array]:
    """Return the mean squared difference: for images of one contrast."""
    apart = a - b
    return _mean(apart * apart), apart * (2 / _count(a)), apart * (-2 / _count(a))


def correlation(a: Array, b: Array) -> tuple[float, Array, Array]:
    """Return 1 minus the squared correlation of the whole images: for contrasts that differ by a line."""
    p, q = a - _mean(a), b - _mean(b)
    pp, qq, pq = _mean(p * p) + _FLAT**2, _mean(q * q) + _FLAT**2, _mean(p * q)
    share = pq * pq / (pp * qq)
    scale = 2 * pq / (pp * qq) / _count(a)
    return 1 - share, (p * (pq / pp) - q) * scale, (q * (pq / qq) - p) * scale


def local_correlation(a: Array, b: Array) -> tuple[float, Array, Array]:
    """Return 1 minus the mean squared correlation within windows of 5 voxels a side.

    For contrasts that differ by a line in each place, as a bias field makes them. A standard deviation of
    0.05 is added to both images, so that flat places and their noise count for little. Source: Avants,
    Epstein, Grossman, Gee 2008; the derivative is that of the sum over all windows.
    """
    size = box(like(np.ones(tuple(a.shape)), a), _RADIUS)  # windows are cut off at the faces
    flat = size * _FLAT**2
    mean_a, mean_b = box(a, _RADIUS) / size, box(b, _RADIUS) / size
    both = box(a * b, _RADIUS) - mean_a * mean_b * size
    own_a = box(a * a, _RADIUS) - mean_a * mean_a * size + flat
    own_b = box(b * b, _RADIUS) - mean_b * mean_b * size + flat
    cross = both / (own_a * own_b)
    share = both * cross
    by_a, by_b = share / own_a, share / own_b
    crossed = box(cross, _RADIUS)
    scale = -2 / _count(a)
    d_a = b * crossed - box(cross * mean_b, _RADIUS) - a * box(by_a, _RADIUS) + box(by_a * mean_a, _RADIUS)
    d_b = a * crossed - box(cross * mean_a, _RADIUS) - b * box(by_b, _RADIUS) + box(by_b * mean_b, _RADIUS)
    return 1 - _mean(share), d_a * scale, d_b * scale


def mutual_information(a: Array, b: Array) -> tuple[float, Array, Array]:
    """Return the negative mutual information, in nats: for images of different kinds.

    From a histogram of 32 bins a side over [0, 1], smoothed by one bin; the derivatives are those of the
    logarithm of the smoothed densities. Source: Hermosillo, Chefd'hotel, Faugeras 2002.
    """
    places = [np.clip(np.asarray(x.detach().cpu(), dtype=np.float64), 0, 1) * (_BINS - 1) for x in (a, b)]
    low = [np.minimum(place.astype(np.intp), _BINS - 2) for place in places]
    part = [place - floor for place, floor in zip(places, low, strict=True)]
    joint = np.zeros(_BINS * _BINS)
    corners = [(0, 0), (0, 1), (1, 0), (1, 1)]
    cells, weights = [], []
    for i, j in corners:
        cells.append((low[0] + i) * _BINS + low[1] + j)
        weights.append((part[0] if i else 1 - part[0]) * (part[1] if j else 1 - part[1]))
        joint += np.bincount(cells[-1].ravel(), weights[-1].ravel(), minlength=joint.size)
    density = gaussian(joint.reshape(_BINS, _BINS, 1) / places[0].size, (1, 1, 0))[..., 0] + 1e-9
    own = [density.sum(axis=1, keepdims=True), density.sum(axis=0, keepdims=True)]
    found = float((density * np.log(density / (own[0] * own[1]))).sum())
    slopes = []
    for axis in (0, 1):
        table = np.gradient(np.log(density / own[axis]), axis=axis).ravel() * (_BINS - 1) / places[0].size
        value = sum(table[cell] * weight for cell, weight in zip(cells, weights, strict=True))
        slopes.append(like(-np.asarray(value), a))
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


def _mean(values: Array) -> float:
    """Return the mean, added up in float64 by one thread, in one order."""
    return float(np.asarray(values.detach().cpu()).mean(dtype=np.float64))


def _count(values: Array) -> int:
    return int(np.prod(values.shape))
