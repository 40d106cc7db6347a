"""Tissue classes by a hidden Markov random field: intensities and neighbours, no training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import
from sagittal.core.randomness import generator
from sagittal.segmentation.tissue import TISSUES, brain_mask
from sagittal.volume import Volume

__all__ = ["MarkovFieldSegmenter"]

_Array = NDArray[np.float64]
_BACKGROUND, _BACKGROUND_SD = 0.001, 1e-4  # of the brightest voxel, as DIPY fills it


@dataclass(frozen=True, kw_only=True)
class MarkovFieldSegmenter:
    """A hidden Markov random field with Gaussian classes (Zhang, Brady and Smith, IEEE TMI 20:45, 2001).

    Gaussian intensities per class, a Potts prior over the six neighbours, expectation-maximisation with
    iterated conditional modes, all from DIPY. It knows nothing of anatomy: where an average or a partial
    volume makes grey matter as bright as white matter, it errs, and its probabilities say little of that.

    Two things differ from DIPY's ready-made classifier. It starts from evenly spaced classes and creeps to
    its optimum over a hundred iterations, so that its result is that of the iteration it was stopped at;
    here a mixture of Gaussians fitted to the intensities is the start, and it stops when an iteration moves
    less than ``tolerance`` of the brain from class to class. And it fills the background with noise that
    nobody can seed; here the noise is drawn from ``seed``, so that a run can be repeated exactly.
    [inference: start and stop are ours; evidence/tissue_volumes.py shows what they are worth]

    Attributes:
        beta: Weight of the neighbours, 0 or more.
        iterations: Upper bound of iterations.
        tolerance: Share of the brain that an iteration may still move when it stops.
    """

    beta: float = 0.1
    iterations: int = 30
    tolerance: float = 0.002

    def __post_init__(self) -> None:
        if self.beta < 0 or self.iterations < 1 or self.tolerance < 0:
            raise InputError(
                "the field's parameters are out of range",
                value=(self.beta, self.iterations, self.tolerance),
                expected="beta >= 0, iterations >= 1, tolerance >= 0",
            )

    def segment(self, image: Volume, *, seed: int) -> Volume:
        """Segment a brain-masked T1 image; see :class:`~sagittal.segmentation.tissue.TissueSegmenter`.

        Raises:
            InputError: The image is not brain-masked, or its brain has fewer grey values than classes.
            MissingDependencyError: DIPY or scikit-learn is not installed.
        """
        mask = brain_mask(image)
        box = _bounding_box(mask)
        inside = mask[box]
        scaled = image.array[box].astype(np.float64) / float(image.array.max())
        noise = generator(seed, "background").standard_normal(scaled.shape)
        background = _BACKGROUND + _BACKGROUND_SD * noise
        mean, variance = _mixture(scaled[inside])
        posterior = self._field(np.where(inside, scaled, background), inside, mean, variance)
        total = posterior.sum(axis=-1, keepdims=True)
        # A brain voxel so dark that the background explains it better still has to be one of the three.
        share = np.where(total > 1e-6, posterior / np.maximum(total, 1e-6), np.array([1.0, 0.0, 0.0]))
        probabilities = np.zeros((*image.shape, len(TISSUES)), dtype=np.float32)
        probabilities[box] = np.clip(np.where(inside[..., None], share, 0), 0, 1)
        labels = np.where(mask, probabilities.argmax(axis=-1) + 1, 0).astype(np.uint8)
        return image.with_array(labels, unit="1", probabilities=probabilities, classes=TISSUES)

    def _field(self, image: _Array, inside: NDArray[np.bool_], mean: _Array, variance: _Array) -> _Array:
        """Return the posterior of the tissues, shape (i, j, k, 3), from DIPY's model and modes."""
        mrf = optional_import("dipy.segment.mrf")
        model, modes = mrf.ConstantObservationModel(), mrf.IteratedConditionalModes()
        count = len(TISSUES) + 1
        mean, variance = np.append(_BACKGROUND, mean), np.append(_BACKGROUND_SD**2, variance)
        labels = modes.initialize_maximum_likelihood(model.negloglikelihood(image, mean, variance, count))
        amounts = np.zeros(len(TISSUES))
        posterior: _Array
        for _ in range(self.iterations):
            neighbours = modes.prob_neighborhood(labels, self.beta, count)
            posterior = model.prob_image(image, count, mean, variance, neighbours)
            before, amounts = amounts, posterior[inside, 1:].sum(axis=0)
            if np.abs(amounts - before).max() <= self.tolerance * amounts.sum():
                break
            mean, variance = model.update_param(image, posterior, mean, count)
            likelihood = model.negloglikelihood(image, mean, variance, count)
            labels, _energy = modes.icm_ising(likelihood, self.beta, labels)
        return posterior[..., 1:]


def _mixture(values: _Array) -> tuple[_Array, _Array]:
    """Fit a Gaussian to each tissue, dark to bright, on evenly spaced quantiles of the intensities."""
    if np.unique(values).size < len(TISSUES):
        raise InputError(
            "the brain has fewer grey values than tissues",
            value=f"{np.unique(values).size} distinct values",
            expected=f"{len(TISSUES)} or more",
        )
    ranks = np.linspace(0, values.size - 1, min(values.size, 50_000)).round().astype(int)
    sample = np.sort(values)[ranks, None]
    start = np.quantile(sample, (0.08, 0.4, 0.85))[:, None]
    mixture = optional_import("sklearn.mixture").GaussianMixture(
        len(TISSUES), means_init=start, random_state=0, max_iter=500
    )
    mixture.fit(sample)
    order = np.argsort(mixture.means_[:, 0])
    return mixture.means_[order, 0], mixture.covariances_[order, 0, 0]


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        where = np.flatnonzero(mask.any(axis=others))
        box.append(slice(max(int(where[0]) - 1, 0), int(where[-1]) + 2))
    return tuple(box)
