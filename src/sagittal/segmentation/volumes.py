"""Volumes with an interval that labelled subjects have earned.

A network's probabilities say how unsure each voxel is, not how its errors go together, and an interval that
trusts neither extreme is far too wide (:mod:`~sagittal.segmentation.doubt`). Subjects with labels that
trained nothing tell more: by how much each one's true volume differed from the estimated one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import
from sagittal.core.provenance import Measurement
from sagittal.segmentation.doubt import quantity

__all__ = ["LEAST_SUBJECTS", "VolumeScaling", "class_volumes", "fit_volumes"]

LEAST_SUBJECTS = 3
"""Fewer say nothing of how much subjects differ."""


@dataclass(frozen=True)
class VolumeScaling:
    """How true volumes lie about estimated ones.

    The logarithm of true by estimated volume is taken to be normal from subject to subject. The interval is
    that of a new subject by Student's t (a prediction interval: Hahn and Meeker, Statistical Intervals, 1991,
    chapter 4), so it is as wide as few subjects make it, and not narrower. It promises nothing for subjects
    unlike those it was fitted on.

    Attributes:
        mean: Of each class, the mean logarithm of true by estimated volume: what the estimate is off by.
        sd: Its standard deviation from subject to subject.
        subjects: How many it comes from.

    Raises:
        InputError: Numbers that do not fit, or fewer than three subjects.
    """

    mean: tuple[float, ...]
    sd: tuple[float, ...]
    subjects: int

    def __post_init__(self) -> None:
        if (
            len(self.mean) != len(self.sd)
            or not all(math.isfinite(m) for m in self.mean)
            or not all(math.isfinite(s) and s >= 0 for s in self.sd)
        ):
            raise InputError(
                "volumes cannot be scaled so",
                value=f"{self.mean} and {self.sd}",
                expected="a mean and a standard deviation for each class",
            )
        if self.subjects < LEAST_SUBJECTS:
            raise InputError(
                "too few subjects for an interval",
                value=self.subjects,
                expected=f"{LEAST_SUBJECTS} or more with labels that trained nothing",
            )

    def estimates(self, volumes: NDArray[Any]) -> NDArray[np.float64]:
        """Return volumes less what they are usually off by; shape (classes,), any unit."""
        corrected: NDArray[np.float64] = self._checked(volumes) * np.exp(self.mean)
        return corrected

    def intervals(self, volumes: NDArray[Any], *, level: float = 0.9) -> list[tuple[float, float]]:
        """Return the interval of each class's true volume.

        Args:
            volumes: As estimated, shape (classes,), any unit; a volume of 0 has the interval from 0 to 0.
            level: Share of new subjects that it is meant to hold.

        Raises:
            InputError: Another number of classes, a negative volume, or a level outside (0, 1).
        """
        if not 0 < level < 1:
            raise InputError("the interval's level is not a share", value=level, expected="0 < level < 1")
        t = float(optional_import("scipy.stats").t.ppf((1 + level) / 2, self.subjects - 1))
        reach = t * math.sqrt(1 + 1 / self.subjects) * np.array(self.sd)
        middle = self.estimates(volumes)
        return list(zip((middle * np.exp(-reach)).tolist(), (middle * np.exp(reach)).tolist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, which the constructor takes again."""
        return {"mean": list(self.mean), "sd": list(self.sd), "subjects": self.subjects}

    def _checked(self, volumes: NDArray[Any]) -> NDArray[np.float64]:
        found = np.asarray(volumes, np.float64)
        if found.shape != (len(self.mean),) or not (np.isfinite(found) & (found >= 0)).all():
            raise InputError(
                "not a volume for each class",
                value=found.tolist(),
                expected=f"{len(self.mean)} volumes of 0 or more",
            )
        return found


def class_volumes(
    probabilities: NDArray[Any], *, voxel_ml: float, level: float, scaling: VolumeScaling | None = None
) -> list[Measurement]:
    """Return the volume of each class in ml, with its interval.

    With a scaling, value and interval are those that labelled subjects have earned. Without one the interval
    is that of the probabilities alone (:func:`~sagittal.segmentation.doubt.quantity`), which takes all voxels
    to err together and is far wider than most errors.

    Args:
        probabilities: Shape (..., classes), in [0, 1].
        voxel_ml: Of one voxel.
        level: Coverage of the intervals.
        scaling: Of the same classes.

    Raises:
        InputError: Another number of classes, or a value out of range.
    """
    classes = np.moveaxis(probabilities, -1, 0)
    if scaling is None:
        return [quantity(each, size=voxel_ml, unit="ml", level=level) for each in classes]
    sums = np.array([float(each.sum(dtype=np.float64)) * voxel_ml for each in classes])
    values = scaling.estimates(sums).tolist()
    return [
        Measurement(value=value, low=low, high=high, level=level, unit="ml")
        for value, (low, high) in zip(values, scaling.intervals(sums, level=level), strict=True)
    ]


def fit_volumes(estimated: NDArray[Any], true: NDArray[Any]) -> VolumeScaling:
    """Fit how true volumes lie about estimated ones, on subjects that trained nothing.

    Args:
        estimated: Shape (subjects, classes), any unit.
        true: The same, from labels, in the same unit.

    Raises:
        InputError: Shapes that differ, fewer than three subjects, or a volume that is not above 0: a class
            that a subject lacks has no ratio.
    """
    ours, theirs = np.asarray(estimated, np.float64), np.asarray(true, np.float64)
    if ours.ndim != 2 or ours.shape != theirs.shape:
        raise InputError(
            "volumes do not fit",
            value=f"{ours.shape} and {theirs.shape}",
            expected="(subjects, classes), twice",
        )
    for name, volumes in (("estimated", ours), ("true", theirs)):
        if not (np.isfinite(volumes) & (volumes > 0)).all():
            raise InputError(
                "a volume is not above 0", source=name, value=float(volumes.min()), expected="more than 0"
            )
    ratios = np.log(theirs / ours)
    if len(ratios) < LEAST_SUBJECTS:
        return VolumeScaling((), (), len(ratios))  # which refuses so few
    return VolumeScaling(tuple(ratios.mean(axis=0)), tuple(ratios.std(axis=0, ddof=1)), len(ratios))
