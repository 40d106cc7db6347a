"""Which images look unlike all others: spoilt ones, images of another kind, rare anatomy.

A model is least sure of exactly these, and a choice by uncertainty asks for each of them, while they teach it
little of the others. Whoever chooses has to look at them first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sagittal.annotation.cover import cosine_similarity
from sagittal.core.errors import InputError

__all__ = ["Likeness", "likeness"]

_Array = NDArray[np.float64]

ENOUGH = 8
"""Images below which nothing can be said of what is usual."""

_FENCE = 1.5  # interquartile ranges


@dataclass(frozen=True, eq=False)
class Likeness:
    """How much each image looks like the others.

    Attributes:
        typical: Median cosine of its descriptor with those of the others, 0 to 1, shape (n,).
        fence: Less than this is unlike the others; ``None`` where there are fewer than ``ENOUGH`` images.
    """

    typical: _Array
    fence: float | None

    @property
    def unlike(self) -> NDArray[np.bool_]:
        """Which images are unlike the others, shape (n,)."""
        if self.fence is None:
            return np.zeros(len(self.typical), bool)
        return self.typical < self.fence


def likeness(descriptors: _Array, known: _Array | None = None) -> Likeness:
    """Tell how much each image looks like the others, and which are unlike them.

    An image is unlike the others if its median similarity to them lies more than 1.5 interquartile ranges
    below the lower quartile (Tukey, Exploratory Data Analysis, 1977), which never holds for a quarter of them
    or more. The median bears with a minority that is unlike in the same way. The rule says nothing of why:
    a spoilt image, one of another kind, and rare anatomy are told by a person who looks. [inference]

    Args:
        descriptors: Of the images that are asked about, shape (n, features).
        known: Of others that count as usual, such as those that are labelled, shape (m, features).

    Raises:
        InputError: The features differ in number, or one is not finite.
    """
    every = descriptors if known is None else np.concatenate([descriptors, known])
    if every.ndim != 2:
        raise InputError("descriptors do not fit", value=every.shape, expected="(n, features)")
    similarity = cosine_similarity(every, every)
    np.fill_diagonal(similarity, np.nan)
    typical = np.nanmedian(similarity, axis=1) if len(every) > 1 else np.ones(len(every))
    asked = typical[: len(descriptors)]
    if len(every) < ENOUGH:
        return Likeness(asked, None)
    low, high = np.percentile(typical, [25, 75])
    return Likeness(asked, float(low - _FENCE * (high - low)))
