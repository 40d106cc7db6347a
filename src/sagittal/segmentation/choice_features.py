"""What a case shows of itself, without labels, to a judge that chooses between networks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import
from sagittal.segmentation.doubt import entropy_bits

__all__ = ["case_features"]

_BINS = 8
_RANGE = 2.5  # standard deviations to either side, of the histogram
_BIAS_MM = 30.0
_TINY = 1e-6


def case_features(
    image: NDArray[np.floating],
    mask: NDArray[np.bool_],
    told: Mapping[str, NDArray[np.floating]],
    classes: Sequence[str],
    spacing: Sequence[float],
) -> dict[str, float]:
    """Return label-free features of a case for :func:`sagittal.segmentation.choice.fit_router`.

    Args:
        image: One contrast, (i, j, k), any scale.
        mask: The brain, of the same shape.
        told: What each network says: probabilities (i, j, k, classes).
        classes: Their names.
        spacing: Voxel widths in mm.

    Returns:
        For each network ``entropy NETWORK``, its mean entropy in bits, and ``edge NETWORK``, the share of the
        brain next to another class. For each pair and class ``agreement A B CLASS``, the Dice of the two, and
        ``ratio A B CLASS``, the logarithm of the ratio of their amounts. Of the image ``noise``, its standard
        deviation from its neighbours over that of the whole brain, ``bias``, the standard deviation of the
        image smoothed over 30 mm over its mean, and ``histogram 1`` to ``histogram 8``, the shares of the
        z-scored intensities in equal bins from -2.5 to 2.5, all beyond in the last ones.

    Raises:
        InputError: Fewer than two networks, an empty mask, or shapes that do not fit.
        MissingDependencyError: scipy is not installed.
    """
    if (
        image.shape != mask.shape
        or not mask.any()
        or len(told) < 2
        or any(each.shape != (*image.shape, len(classes)) for each in told.values())
    ):
        raise InputError(
            "there is nothing to judge by",
            value=f"image {image.shape}, mask {mask.shape}, {', '.join(told) or 'no network'}",
            expected="a brain, and probabilities of two networks or more on the image's grid",
        )
    found: dict[str, float] = {}
    labels = {name: np.where(mask, each.argmax(axis=-1), -1) for name, each in told.items()}
    for name, each in told.items():
        found[f"entropy {name}"] = float(entropy_bits(each)[mask].mean())
        found[f"edge {name}"] = _edge(labels[name], mask)
    for (one, first), (other, second) in itertools.combinations(told.items(), 2):
        for number, tissue in enumerate(classes):
            a, b = labels[one] == number, labels[other] == number
            size = np.count_nonzero(a) + np.count_nonzero(b)
            found[f"agreement {one} {other} {tissue}"] = 2 * np.count_nonzero(a & b) / size if size else 1.0
            amounts = [float(each[..., number][mask].sum()) + 1 for each in (first, second)]
            found[f"ratio {one} {other} {tissue}"] = float(np.log(amounts[0] / amounts[1]))
    return found | _of_image(image, mask, spacing)


def _of_image(
    image: NDArray[np.floating], mask: NDArray[np.bool_], spacing: Sequence[float]
) -> dict[str, float]:
    ndimage = optional_import("scipy.ndimage")
    inside = image[mask].astype(np.float64)
    mean, spread = float(inside.mean()), max(float(inside.std()), _TINY)
    scaled = np.where(mask, (image - mean) / spread, 0.0)

    def smoothed(sigmas: Sequence[float]) -> NDArray[np.float64]:
        amount = ndimage.gaussian_filter(mask.astype(np.float64), sigmas)
        total: NDArray[np.float64] = ndimage.gaussian_filter(scaled, sigmas)
        found: NDArray[np.float64] = (total / np.maximum(amount, _TINY))[mask]
        return found

    wide = [side > 1 for side in image.shape]
    near = smoothed([1.0 if one else 0.0 for one in wide])
    far = smoothed([_BIAS_MM / step if one else 0.0 for one, step in zip(wide, spacing, strict=True)])
    edges = np.linspace(-_RANGE, _RANGE, _BINS + 1)
    counts = np.histogram(np.clip(scaled[mask], -_RANGE, _RANGE), edges)[0]
    told = {
        "noise": float((scaled[mask] - near).std()),
        "bias": float(far.std()) * spread / max(abs(mean), _TINY),
    }
    return told | {f"histogram {n}": float(c) / inside.size for n, c in enumerate(counts, start=1)}


def _edge(labels: NDArray[np.integer], mask: NDArray[np.bool_]) -> float:
    """Return the share of the brain's voxels that have a neighbour of another class in the brain."""
    beside = np.zeros(mask.shape, dtype=bool)
    for axis in range(mask.ndim):
        low = tuple(slice(None, -1) if a == axis else slice(None) for a in range(mask.ndim))
        high = tuple(slice(1, None) if a == axis else slice(None) for a in range(mask.ndim))
        other = mask[low] & mask[high] & (labels[low] != labels[high])
        beside[low] |= other
        beside[high] |= other
    return np.count_nonzero(beside) / np.count_nonzero(mask)
