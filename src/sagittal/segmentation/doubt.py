"""From class probabilities to quantities with an interval."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.provenance import Measurement

__all__ = ["doubtful_share", "entropy_bits", "quantity"]


def quantity(probability: NDArray[Any], *, size: float, unit: str, level: float = 0.9) -> Measurement:
    """Return how much of a class there is, with an interval that does not trust voxels to err apart.

    The best estimate is the expected amount, ``size * sum(p)``. For the interval the voxels are taken
    to err together: one level ``t``, uniform in (0, 1), decides for all of them, and a voxel belongs
    to the class where ``p > t``. Of all ways in which voxels with these probabilities can depend on
    each other this one gives their sum the largest variance (comonotone variables are largest in convex
    order), while independent voxels would give a brain's tissue an interval about a millilitre wide,
    which no segmentation deserves: an error of the boundary moves it along its whole length. It is no
    bound for each level: many voxels that are each less likely than ``(1 - level) / 2`` count in no
    ``t`` that the interval covers. The interval is therefore never narrower than that of independent
    voxels. [inference: the design is ours; evidence/tissue_volumes.py sets both beside a reference]

    Args:
        probability: Probability of the class in each voxel, in [0, 1], any shape.
        size: Amount in one voxel, in ``unit``.
        unit: Unit of the result.
        level: Share of the levels ``t`` that the interval covers.

    Returns:
        The amount, and an interval that contains it.

    Raises:
        InputError: A probability outside [0, 1], ``level`` outside (0, 1), or ``size`` not above 0.
    """
    if not 0 < level < 1:
        raise InputError("the interval's level is not a share", value=level, expected="0 < level < 1")
    if not size > 0:
        raise InputError("a voxel holds no amount", value=size, expected=f"more than 0 {unit}")
    if probability.size and not (probability.min() >= 0 and probability.max() <= 1):
        raise InputError(
            "probabilities leave their range",
            value=f"{probability.min()} to {probability.max()}",
            expected="0 to 1",
        )
    tail = (1 - level) / 2
    p = probability.astype(np.float64).ravel()
    value = float(p.sum()) * size
    apart = NormalDist().inv_cdf(1 - tail) * math.sqrt(float((p * (1 - p)).sum())) * size
    low = float(np.count_nonzero(p > 1 - tail)) * size
    high = float(np.count_nonzero(p > tail)) * size
    return Measurement(
        value=value,
        low=max(min(low, value - apart), 0.0),
        high=max(min(max(high, value + apart), p.size * size), value),
        level=level,
        unit=unit,
    )


def doubtful_share(probabilities: NDArray[Any], mask: NDArray[np.bool_], *, below: float = 0.8) -> float:
    """Return the share of masked voxels whose most probable class has a probability under ``below``.

    Args:
        probabilities: Shape (*spatial, classes).
        mask: Shape (*spatial); an empty mask gives 0.
        below: Threshold.
    """
    count = int(np.count_nonzero(mask))
    if count == 0:
        return 0.0
    return float(np.count_nonzero(probabilities.max(axis=-1)[mask] < below)) / count


def entropy_bits(probabilities: NDArray[Any]) -> NDArray[np.float32]:
    """Return the entropy of each voxel's classes in bits, shape (*spatial); 0 where nothing is named."""
    p = probabilities.astype(np.float32)
    safe = np.where(p > 0, p, 1)
    bits: NDArray[np.float32] = -(p * np.log2(safe)).sum(axis=-1)
    return bits
