"""Whether a probability of 0.8 is right in eight of ten voxels, and temperatures that make it so.

Everything here takes rows: the probabilities of the voxels that count, shape (n, classes), and the true class
of each. Which rows these are decides what a number is worth: temperatures are fitted on subjects that trained
nothing, and errors are reported on others again. Voxels of one subject err together, so that n voxels are far
fewer than n independent observations; an interval comes from subjects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import

__all__ = [
    "CalibrationError",
    "Reliability",
    "TemperatureScaling",
    "calibration_error",
    "fit_temperatures",
    "negative_log_likelihood",
    "reliability",
]

_Array = NDArray[np.float64]
_SMALLEST = 1e-7  # a probability of exactly 0 has no logarithm
_COLDEST, _HOTTEST = 0.05, 20.0
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class TemperatureScaling:
    """One temperature for each class, on log-probabilities (Guo et al., ICML 2017, section 4.2).

    It is their vector scaling without its bias, which would carry one data set's shares into another.
    The calibrated probabilities are the softmax of ``log(p_c) / T_c``. Equal temperatures leave the most
    probable class as it is; unequal ones may change it. Above 1 they soften.

    Attributes:
        temperatures: Of each class, within 0.05 to 20.
    """

    temperatures: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.temperatures or not all(_COLDEST <= t <= _HOTTEST for t in self.temperatures):
            raise InputError(
                "the temperatures are out of range",
                source="temperatures",
                value=self.temperatures,
                expected=f"{_COLDEST:g} to {_HOTTEST:g} for each class",
            )

    def apply(self, probabilities: NDArray[Any]) -> NDArray[Any]:
        """Return calibrated probabilities, shape (..., classes), of the type that came.

        Where all classes have 0, as outside a brain, they keep it.

        Raises:
            InputError: Another number of classes.
        """
        if probabilities.shape[-1] != len(self.temperatures):
            raise InputError(
                "the probabilities have other classes than the temperatures",
                value=f"{probabilities.shape[-1]} classes",
                expected=f"{len(self.temperatures)}",
            )
        scaled = _scaled(_logarithms(probabilities), 1 / np.array(self.temperatures))
        named = probabilities.any(axis=-1, keepdims=True)
        kind = probabilities.dtype if probabilities.dtype.kind == "f" else np.float64
        return np.where(named, np.exp(scaled), 0).astype(kind)


@dataclass(frozen=True)
class Reliability:
    """A reliability curve: in bins of confidence, how often it was right. Empty bins are left out.

    Attributes:
        lower: Lower end of each bin.
        upper: Upper end.
        count: Rows in it.
        confidence: Their mean confidence.
        accuracy: The share of them that was right.
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    count: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]

    @property
    def expected_error(self) -> float:
        """Mean distance of confidence and accuracy, bins weighed by their rows."""
        return float(np.average(self._gaps(), weights=self.count))

    @property
    def maximum_error(self) -> float:
        """The largest distance of a bin, however few its rows (MCE)."""
        return float(self._gaps().max())

    def _gaps(self) -> _Array:
        gaps: _Array = np.abs(np.array(self.confidence) - np.array(self.accuracy))
        return gaps


@dataclass(frozen=True, kw_only=True)
class CalibrationError:
    """How far probabilities are from how often they are right: four estimates, 0 at best, and their bins.

    No estimate is the error: bins of equal width leave most rows in the last one, a mean over confidences
    hides classes that err against each other, and noise in a bin reads as error.

    Attributes:
        equal_width: Of the most probable class, bins of equal width (Guo et al., ICML 2017: the usual ECE).
        equal_mass: The same with as many rows in each bin (Nixon et al., CVPR workshops 2019).
        class_wise: Of each class's probability, whether it is the most probable or not, bins of equal width;
            mean of the classes (Kull et al., NeurIPS 2019).
        debiased: Root mean square over bins of equal mass, less what the noise of the bins adds to it
            (Kumar, Liang and Ma, NeurIPS 2019, section 5); 0 where that is more than there is.
        width_bins: The bins of ``equal_width``.
        mass_bins: The bins of ``equal_mass`` and ``debiased``.
        class_bins: The bins of ``class_wise``, for each class.
    """

    equal_width: float
    equal_mass: float
    class_wise: float
    debiased: float
    width_bins: Reliability
    mass_bins: Reliability
    class_bins: tuple[Reliability, ...]


def fit_temperatures(
    probabilities: NDArray[Any], labels: NDArray[Any], *, weights: ArrayLike | None = None
) -> TemperatureScaling:
    """Fit a temperature to each class: those that make held-out labels likeliest.

    In the reciprocals of the temperatures the mean negative log-likelihood is convex, so that there is one
    answer. A class whose labels do not hold its temperature ends at the end of the range.

    Args:
        probabilities: Of rows that trained nothing, shape (n, classes), each row of sum 1.
        labels: True class of each row, shape (n,), from 0.
        weights: What each row counts, shape (n,); such as one over the rows of its subject. All alike by
            default.

    Raises:
        InputError: No rows, shapes that do not fit, rows that are no distributions, a label that is no
            class, fewer than two classes among the labels, weights that are negative or all 0.
        MissingDependencyError: SciPy is not installed.
    """
    true = _checked(probabilities, labels)
    if np.unique(true).size < 2:
        raise InputError(
            "one class alone says nothing of temperatures",
            source="labels",
            value=f"class {true[0]} in all {true.size} rows",
            expected="labels of two classes or more",
        )
    weight = np.ones(true.size) if weights is None else np.asarray(weights, np.float64)
    if weight.shape != true.shape or not (weight >= 0).all() or not 0 < weight.sum() < math.inf:
        raise InputError(
            "the weights do not fit", source="weights", value=weight.shape, expected="one of 0 or more a row"
        )
    weight = weight / weight.sum()
    logs = _logarithms(probabilities)
    rows = np.arange(true.size)

    def loss(reciprocals: _Array) -> tuple[float, _Array]:
        told = _scaled(logs, reciprocals)
        slope = np.exp(told)
        slope[rows, true] -= 1
        return -float(weight @ told[rows, true]), weight @ (slope * logs)

    count = probabilities.shape[1]
    found = optional_import("scipy.optimize").minimize(
        loss,
        np.ones(count),
        jac=True,
        method="L-BFGS-B",
        bounds=[(1 / _HOTTEST, 1 / _COLDEST)] * count,
        options={"ftol": 1e-12, "gtol": 1e-8},
    )
    return TemperatureScaling(tuple(float(t) for t in np.clip(1 / found.x, _COLDEST, _HOTTEST)))


def negative_log_likelihood(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the mean of ``-log p`` of the true class, in nats; probabilities under 1e-7 count as that.

    Raises:
        InputError: As :func:`fit_temperatures`, a single class allowed.
    """
    true = _checked(probabilities, labels)
    told = probabilities[np.arange(true.size), true].astype(np.float64)
    return float(-np.log(np.maximum(told, _SMALLEST)).mean())


def reliability(
    confidence: NDArray[Any],
    correct: NDArray[np.bool_],
    *,
    bins: int = 15,
    by: Literal["width", "mass"] = "width",
) -> Reliability:
    """Return how often confidences were right.

    Args:
        confidence: Shape (n,), 0 to 1.
        correct: Shape (n,), whether each was right.
        bins: How many at most.
        by: Bins of equal width between 0 and 1, or with as many rows each; equal confidences share a bin.

    Raises:
        InputError: No rows, shapes that differ, a confidence outside 0 to 1, less than one bin.
    """
    p = np.asarray(confidence, np.float64)
    if p.ndim != 1 or not p.size or p.shape != correct.shape or correct.dtype != bool:
        raise InputError(
            "confidences and answers do not fit",
            value=f"{p.shape} and {correct.dtype} {correct.shape}",
            expected="(n,) and bool (n,), one row or more",
        )
    if not (p.min() >= 0 and p.max() <= 1):
        raise InputError("confidences leave their range", value=f"{p.min()} to {p.max()}", expected="0 to 1")
    if bins < 1:
        raise InputError("no bin", source="bins", value=bins, expected="1 or more")
    ends = np.linspace(0, 1, bins + 1)
    if by == "mass":
        ends = np.append(p.min(), np.unique(np.quantile(p, ends[1:], method="inverted_cdf")))
    lower, upper = ends[:-1], ends[1:]
    place = np.searchsorted(upper, p, side="left")
    count = np.bincount(place, minlength=upper.size)
    used = np.flatnonzero(count)
    means = [np.bincount(place, weights=told, minlength=upper.size)[used] for told in (p, correct)]
    return Reliability(
        lower=tuple(lower[used].tolist()),
        upper=tuple(upper[used].tolist()),
        count=tuple(count[used].tolist()),
        confidence=tuple((means[0] / count[used]).tolist()),
        accuracy=tuple((means[1] / count[used]).tolist()),
    )


def calibration_error(
    probabilities: NDArray[Any], labels: NDArray[Any], *, bins: int = 15
) -> CalibrationError:
    """Return the calibration error in four estimates, with their bins.

    Args:
        probabilities: Shape (n, classes), each row of sum 1.
        labels: True class of each row, shape (n,), from 0.
        bins: How many each estimate has at most.

    Raises:
        InputError: As :func:`fit_temperatures`, a single class allowed; less than one bin.
    """
    true = _checked(probabilities, labels)
    told = np.clip(probabilities.astype(np.float64), 0, 1)
    confidence, right = told.max(axis=1), told.argmax(axis=1) == true
    width = reliability(confidence, right, bins=bins)
    mass = reliability(confidence, right, bins=bins, by="mass")
    classes = tuple(reliability(told[:, c], true == c, bins=bins) for c in range(told.shape[1]))
    return CalibrationError(
        equal_width=width.expected_error,
        equal_mass=mass.expected_error,
        class_wise=float(np.mean([one.expected_error for one in classes])),
        debiased=_debiased(mass),
        width_bins=width,
        mass_bins=mass,
        class_bins=classes,
    )


def _debiased(curve: Reliability) -> float:
    """Take the variance of each bin's accuracy off its squared gap; a bin of one row says nothing."""
    count = np.array(curve.count, np.float64)
    accuracy = np.array(curve.accuracy)
    noise = accuracy * (1 - accuracy) / np.maximum(count - 1, 1)
    squared = (np.array(curve.confidence) - accuracy) ** 2 - noise
    usable = count > 1
    if not usable.any():
        return 0.0
    return math.sqrt(max(float(np.average(squared[usable], weights=count[usable])), 0.0))


def _scaled(logs: _Array, reciprocals: _Array) -> _Array:
    """Return the logarithms of the softmax of ``logs * reciprocals``."""
    scores = logs * reciprocals
    scores -= scores.max(axis=-1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    return scores


def _logarithms(probabilities: NDArray[Any]) -> _Array:
    return np.log(np.maximum(probabilities.astype(np.float64), _SMALLEST))


def _checked(probabilities: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.intp]:
    """Return the labels as indices, once they and the probabilities fit each other."""
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not labels.size:
        raise InputError(
            "probabilities and labels do not fit",
            value=f"{probabilities.shape} and {labels.shape}",
            expected="(n, classes) and (n,), one row or more",
        )
    off = float(np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1).max())
    if not (probabilities.min() >= 0 and off <= _SUM_TOLERANCE):
        raise InputError(
            "a row is no distribution",
            source="probabilities",
            value=f"least {probabilities.min():g}, a sum {off:g} from 1",
            expected="0 or more, of sum 1",
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise InputError(
            "a label is no class",
            source="labels",
            value=f"{labels.dtype}, {labels.min()} to {labels.max()}",
            expected=f"whole numbers, 0 to {probabilities.shape[1] - 1}",
        )
    return labels.astype(np.intp)
