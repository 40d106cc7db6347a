"""Tissue classes by a hidden Markov random field: intensities and neighbours, no training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import
from sagittal.core.randomness import generator
from sagittal.segmentation.tissue import TISSUES, brain_mask
from sagittal.volume import Volume

__all__ = ["MarkovFieldSegmenter"]


@dataclass(frozen=True, kw_only=True)
class MarkovFieldSegmenter:
    """DIPY's hidden Markov random field classifier (Zhang, Brady and Smith, IEEE TMI 20:45, 2001).

    Gaussian intensities per class, a Potts prior over the six neighbours, expectation-maximisation
    with iterated conditional modes. It knows nothing of anatomy: where an average or a partial volume
    makes grey matter as bright as white matter, it errs, and its probabilities say little of that.

    DIPY fills voxels that are exactly 0 with noise from a generator nobody can seed. Here the background
    is filled before, with the same noise drawn from ``seed``, so that a run can be repeated exactly.

    Attributes:
        beta: Weight of the neighbours, 0 or more.
        iterations: Upper bound of iterations.
        tolerance: Relative change of the energy at which it stops.
    """

    beta: float = 0.1
    iterations: int = 20
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if self.beta < 0 or self.iterations < 1 or self.tolerance < 0:
            raise InputError(
                "the field's parameters are out of range",
                value=(self.beta, self.iterations, self.tolerance),
                expected="beta >= 0, iterations >= 1, tolerance >= 0",
            )

    def segment(self, image: Volume, *, seed: int) -> Volume:
        """Segment a brain-masked T1 image; see :class:`~sagittal.segmentation.tissue.TissueSegmenter`."""
        tissue = optional_import("dipy.segment.tissue")
        mask = brain_mask(image)
        box = _bounding_box(mask)
        inside = mask[box]
        scaled = image.array[box].astype(np.float64) / float(image.array.max())
        background = 0.001 + 1e-4 * generator(seed, "background").standard_normal(scaled.shape)
        field = tissue.TissueClassifierHMRF(verbose=False)
        _, _, posterior = field.classify(
            np.where(inside, scaled, background),
            len(TISSUES),
            self.beta,
            tolerance=self.tolerance,
            max_iter=self.iterations,
        )
        if not np.isfinite(posterior).all():
            raise InputError(
                "the image does not hold three tissues that intensity tells apart",
                value=f"{np.unique(image.array[mask]).size} distinct intensities in the brain",
            )
        total = posterior.sum(axis=-1, keepdims=True)
        # A brain voxel so dark that the background explains it better still has to be one of the three.
        share = np.where(total > 1e-6, posterior / np.maximum(total, 1e-6), np.array([1.0, 0.0, 0.0]))
        probabilities = np.zeros((*image.shape, len(TISSUES)), dtype=np.float32)
        probabilities[box] = np.clip(np.where(inside[..., None], share, 0), 0, 1)
        labels = np.where(mask, probabilities.argmax(axis=-1) + 1, 0).astype(np.uint8)
        return image.with_array(labels, unit="1", probabilities=probabilities, classes=TISSUES)


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        where = np.flatnonzero(mask.any(axis=others))
        box.append(slice(max(int(where[0]) - 1, 0), int(where[-1]) + 2))
    return tuple(box)
