"""Minutes that an annotation will take, learned from those that earlier ones took.

    minutes = base + a * slices + b * components + c * edge_mm

with no coefficient below 0. Without logs the coefficients are a prior, which is a guess and says so. Logs
move them from it: first all of them alike, since people differ in pace, then each by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sagittal.annotation.effort import CaseEffort
from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import
from sagittal.core.provenance import Measurement

__all__ = ["PRIOR", "LoggedMinutes", "MinutesModel", "fit_minutes", "total_minutes"]

_Array = NDArray[np.float64]

PRIOR = (1.0, 0.25, 0.1, 0.003)
"""Minutes for a case, a slice, a region, and a millimetre of outline (20 mm in 4 s). Nobody measured these.
[inference]"""

ENOUGH = 10
"""Logs below which the interval is mostly the prior's, which the model says."""

_PRIOR_SPREAD, _PRIOR_WEIGHT = 0.5, 3.0  # standard deviation of the logarithm, and the logs it counts as
_ROUNDS = 10


@dataclass(frozen=True, kw_only=True)
class LoggedMinutes:
    """What one annotation took.

    Attributes:
        subject: Whose image it was.
        effort: The work that was expected on the proposal before, by which minutes are predicted.
        minutes: What it took, above 0.
    """

    subject: str
    effort: CaseEffort
    minutes: float

    def __post_init__(self) -> None:
        if not self.subject.strip():
            raise InputError("a log has no subject", value=repr(self.subject), expected="the subject's id")
        if not 0 < self.minutes < math.inf:
            raise InputError(
                "an annotation takes time",
                source=self.subject,
                value=self.minutes,
                expected="more than 0 minutes",
            )


@dataclass(frozen=True, kw_only=True)
class MinutesModel:
    """Predicts minutes from expected work.

    Attributes:
        coefficients: Minutes for a case, a slice, a region, and a millimetre of outline.
        spread: Scale of the logarithm of real over predicted minutes, of annotations that fitted nothing.
        logs: How many annotations it was fitted to.
    """

    coefficients: tuple[float, float, float, float]
    spread: float
    logs: int

    @property
    def basis(self) -> str:
        """What the predictions rest on, in a sentence."""
        if not self.logs:
            return "no minutes are logged: they are a prior that nobody measured, and their interval is wide"
        logs = f"{self.logs} logged annotation{'s' if self.logs > 1 else ''}"
        if self.logs < ENOUGH:
            few = f"fewer than {ENOUGH} logs, so the interval is wide"
            return f"{logs} and a prior that nobody measured: {few}"
        return logs

    def predict(self, effort: CaseEffort, *, level: float = 0.9) -> Measurement:
        """Return the minutes to expect, with the interval that one annotation's minutes should lie in.

        Raises:
            InputError: A level outside 0 to 1.
        """
        if not 0 < level < 1:
            raise InputError("the interval's level is not a share", value=level, expected="0 < level < 1")
        value = max(float(np.dot(self.coefficients, _features(effort))), _LEAST_MINUTES)
        student = optional_import("scipy.stats").t
        factor = math.exp(float(student.ppf((1 + level) / 2, _PRIOR_WEIGHT + self.logs)) * self.spread)
        return Measurement(value=value, low=value / factor, high=value * factor, level=level, unit="min")


_LEAST_MINUTES = 0.1


def fit_minutes(logs: Sequence[LoggedMinutes]) -> MinutesModel:
    """Fit the model to what was logged, none allowed.

    The pace is the mean logarithm of logged over prior minutes, with the prior as one more log. About the
    prior at that pace, the coefficients follow by non-negative least squares (Lawson and Hanson, 1974) on
    errors relative to the prediction, since long annotations miss by more; the prior enters as one more row
    for each coefficient. The spread joins the errors of predictions for subjects left out in turn with the
    prior's, of a factor of about three either way. [inference]

    Raises:
        MissingDependencyError: SciPy is not installed.
    """
    rows = np.array([_features(log.effort) for log in logs]).reshape(-1, len(PRIOR))
    minutes = np.array([log.minutes for log in logs])
    subjects = np.array([log.subject for log in logs])
    errors: list[float] = []
    for subject in sorted(set(subjects.tolist())):
        out = subjects == subject
        told = np.maximum(rows[out] @ _coefficients(rows[~out], minutes[~out]), _LEAST_MINUTES)
        errors.extend(np.log(minutes[out] / told).tolist())
    total = _PRIOR_WEIGHT * _PRIOR_SPREAD**2 + math.fsum(error**2 for error in errors)
    base, a, b, c = _coefficients(rows, minutes).tolist()
    return MinutesModel(
        coefficients=(base, a, b, c),
        spread=math.sqrt(total / (_PRIOR_WEIGHT + len(errors))),
        logs=len(logs),
    )


def total_minutes(parts: Sequence[Measurement]) -> Measurement:
    """Add up predictions; their intervals too, since they err together where the model is wrong.

    Raises:
        InputError: Nothing to add up, or levels that differ.
    """
    if not parts or len({part.level for part in parts}) > 1:
        raise InputError(
            "these minutes cannot be added up", value=len(parts), expected="one or more of one level"
        )
    value, low, high = (math.fsum(getattr(p, name) for p in parts) for name in ("value", "low", "high"))
    return Measurement(value=value, low=low, high=high, level=parts[0].level, unit="min")


def _features(effort: CaseEffort) -> _Array:
    return np.array([1.0, effort.slices, effort.components, effort.edge_mm])


def _coefficients(rows: _Array, minutes: _Array) -> _Array:
    """Fit: first how much slower than the prior all goes, then each coefficient about that."""
    prior = np.array(PRIOR)
    if not len(rows):
        return prior
    ratios = np.log(minutes / (rows @ prior))
    scaled = prior * math.exp(math.fsum(ratios.tolist()) / (len(rows) + 1))
    found = scaled
    for _ in range(_ROUNDS):
        told = np.maximum(rows @ found, _LEAST_MINUTES)
        table = np.concatenate([rows * scaled / told[:, None], np.eye(len(prior))])
        wanted = np.concatenate([minutes / told, np.ones(len(prior))])
        found = np.asarray(optional_import("scipy.optimize").nnls(table, wanted)[0]) * scaled
    return found
