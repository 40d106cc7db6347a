"""Brain tissue from a T1-weighted image: the interface that every method takes."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.volume import Volume

__all__ = ["TISSUES", "TissueSegmenter", "brain_mask"]

TISSUES = ("csf", "gm", "wm")
"""Cerebrospinal fluid, grey matter, white matter: dark to bright on T1."""

_BACKGROUND_SHARE = 0.1


class TissueSegmenter(Protocol):
    """A method that gives each brain voxel a probability of each tissue; learned or not.

    A method is a frozen dataclass whose fields are its parameters.
    """

    def segment(self, image: Volume, *, seed: int) -> Volume:
        """Segment a brain-masked T1-weighted image.

        Args:
            image: Brain-masked T1, (i, j, k); background is exactly 0.
            seed: Seed of whatever the method draws.

        Returns:
            Labels (uint8: 0 background, 1 CSF, 2 GM, 3 WM) on the same grid, with probabilities of
            shape (i, j, k, 3), classes :data:`TISSUES`, which sum to 1 inside the brain and are 0
            outside.

        Raises:
            InputError: The image is not brain-masked, or empty.
        """
        ...


def brain_mask(image: Volume) -> NDArray[np.bool_]:
    """Return where a brain-masked image has brain: voxels above 0.

    Raises:
        InputError: Nothing is above 0, some voxel is below, or so little is exactly 0 that the image
            still has its skull and surroundings.
    """
    if image.array.min() < 0:
        raise InputError(
            "a T1 image has negative voxels", value=float(image.array.min()), expected="0 for background"
        )
    mask: NDArray[np.bool_] = image.array > 0
    share = 1 - np.count_nonzero(mask) / mask.size
    if share == 1:
        raise InputError("the image is empty", value="all voxels 0", expected="a brain-masked T1 image")
    if share < _BACKGROUND_SHARE:
        raise InputError(
            "the image does not look brain-masked",
            value=f"{100 * share:.1f} % of its voxels are exactly 0",
            expected=f"at least {100 * _BACKGROUND_SHARE:.0f} %: remove skull and background first",
        )
    return mask
