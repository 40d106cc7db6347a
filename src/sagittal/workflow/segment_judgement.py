"""How good a segmentation network is on subjects that it did not learn from, and what they calibrate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.randomness import generator
from sagittal.segmentation import (
    LabelledImage,
    NetworkConfig,
    SegmentationModel,
    TemperatureScaling,
    VolumeScaling,
    calibration_error,
    fit_temperatures,
    fit_volumes,
)
from sagittal.segmentation.inference import predict_logits, probabilities_of
from sagittal.segmentation.volumes import LEAST_SUBJECTS
from sagittal.volume.metrics import dice
from sagittal.workflow.network_input import NetworkInput

__all__ = [
    "FEWEST_FOR_INTERVAL",
    "all_classes",
    "judged",
    "median_interval",
    "named",
    "share_interval",
    "true_classes",
]

FEWEST_FOR_INTERVAL = 6
"""Subjects of which the range holds the median of all with 95 %: 1 - 2 / 2**6 is 0.97 (sign test)."""

_LEVEL = 0.95  # of the intervals of volumes
_ROWS = 200_000  # voxels, at most, that temperatures are fitted on
_Rows = tuple[NDArray[np.float32], NDArray[np.int64]]


def judged(
    model: SegmentationModel, held: Sequence[tuple[LabelledImage, NetworkInput]]
) -> tuple[SegmentationModel, dict[str, Any]]:
    """Fit a model's temperatures and volumes on held-out subjects, and say how good it is on them.

    Dice and calibration error are those of subjects that fitted nothing: each subject's probabilities take
    the temperatures of the others. With one subject there is no calibration error, and Dice is that without
    temperatures. Likewise each subject's volumes take the intervals that the others earned, from four
    subjects on; the temperatures below them are those of all, which have seen its voxels.

    Returns:
        The model with the temperatures and volumes of all held-out subjects, and JSON values.
    """
    rows: list[_Rows] = []
    unknown = False
    overlaps: list[dict[str, float]] = []
    plain = dataclasses.replace(model, temperatures=())
    for image, seen in held:
        logits = predict_logits(plain, seen.channels, seen.mask)
        classes = true_classes(model.config, image)
        known = image.mask & (classes >= 0)
        shares = probabilities_of(plain, logits, seen.mask)
        rows.append((all_classes(model.config, shares[known]), classes[known]))
        unknown |= bool((image.mask & ~known).any())
    drawn = [_thinned(p, y, number, _ROWS // len(rows)) for number, (p, y) in enumerate(rows)]
    errors = []
    first = int(model.config.background)
    for number, (p, y) in enumerate(rows):
        others = [pair for other, pair in enumerate(drawn) if other != number]
        told = _fitted(others).apply(p) if others else p
        found = told.argmax(axis=-1)
        overlaps.append({name: dice(found == n, y == n) for n, name in enumerate(model.config.labels, first)})
        if others:
            errors.append(calibration_error(told, y))
    means = [float(np.mean(list(each.values()))) for each in overlaps]
    worst_first = np.argsort(means, kind="stable").tolist()
    said: dict[str, Any] = {
        "subjects": [{"subject": held[n][0].subject, "dice": overlaps[n]} for n in worst_first],
        "dice": {name: float(np.mean([each[name] for each in overlaps])) for name in model.config.labels},
        "dice_mean": float(np.mean(means)),
        "dice_range": [min(means), max(means)],
        "dice_interval": median_interval(means),
        "ece": float(np.mean([error.equal_width for error in errors])) if errors else None,
    }
    if said["dice_interval"] is None:
        said["for_an_interval"] = (
            f"{FEWEST_FOR_INTERVAL} held-out subjects are needed; there are {len(means)}"
        )
    temperatures = _fitted(drawn)
    size = [seen.geometry.voxel_volume_ml for _, seen in held]
    estimated = np.array(
        [temperatures.apply(p)[:, first:].sum(axis=0) * ml for (p, _), ml in zip(rows, size, strict=True)]
    )
    true = np.array(
        [
            [np.count_nonzero(y == first + n) * ml for n in range(len(model.config.labels))]
            for (_, y), ml in zip(rows, size, strict=True)
        ]
    )
    volumes, said["volumes"] = _volumes(estimated, true, unknown)
    return dataclasses.replace(model, temperatures=temperatures.temperatures, volumes=volumes), said


def _volumes(
    estimated: NDArray[np.float64], true: NDArray[np.float64], unknown: bool
) -> tuple[VolumeScaling | None, dict[str, Any]]:
    """Fit how far volumes are off, and say how many subjects' the others' intervals hold."""
    said: dict[str, Any] = {"subjects": len(true), "level": _LEVEL, "held": None, "of": 0}
    if unknown:
        return None, {**said, "why_not": "parts of the held-out subjects are not labelled"}
    if not ((estimated > 0) & (true > 0)).all():
        return None, {**said, "why_not": "a held-out subject has nothing of a label"}
    if len(true) < LEAST_SUBJECTS:
        wanted = f"{LEAST_SUBJECTS} held-out subjects are needed; there are {len(true)}"
        return None, {**said, "why_not": wanted}
    if len(true) > LEAST_SUBJECTS:
        held = []
        for number in range(len(true)):
            others = np.arange(len(true)) != number
            found = fit_volumes(estimated[others], true[others]).intervals(estimated[number], level=_LEVEL)
            held += [low <= volume <= high for (low, high), volume in zip(found, true[number], strict=True)]
        said |= {"held": int(np.sum(held)), "of": len(held)}
    return fit_volumes(estimated, true), said


def median_interval(values: Sequence[float], level: float = 0.95) -> list[float] | None:
    """Return an interval that holds the median of all subjects, from the order of some; None of too few.

    The sign test's: it asks nothing of the distribution. The k-th smallest and largest of n values hold the
    median with 1 - 2 P(X < k), X of a binomial with n and one half; the largest k whose chance is enough is
    taken.
    """
    n, ordered = len(values), sorted(values)
    tail, found = 0.0, None
    for k in range(n // 2):
        tail += math.comb(n, k) / 2**n
        if 1 - 2 * tail < level:
            break
        found = [ordered[k], ordered[n - 1 - k]]
    return found


def share_interval(shares: Sequence[float], level: float = 0.95) -> list[float]:
    """Return an interval that holds the share of all subjects, from each subject's share.

    Clopper and Pearson's (Biometrika 26:4, 1934) of as many trials as there are subjects, not of all that was
    counted in them [inference]: what one subject gives may be right or wrong together, as the volumes of
    tissues are that share a border. It is wider than it need be where it is not.

    Args:
        shares: Of each subject, from 0 to 1; one or more.
        level: How often the interval holds the share of all, at least.
    """
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    held = math.fsum(shares)
    missed = math.fsum(1 - share for share in shares)
    low = float(betaincinv(held, missed + 1, tail)) if held > 0 else 0.0
    high = float(betaincinv(held + 1, missed, 1 - tail)) if missed > 0 else 1.0
    return [low, high]


def true_classes(config: NetworkConfig, image: LabelledImage) -> NDArray[np.int64]:
    """Return the network's class of each voxel; below 0 where it is not known."""
    labels = image.labels.astype(np.int64)
    return labels if config.background else np.where(labels > 0, labels - 1, -1)


def named(shares: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the most probable label of each voxel, 0 where none of them is more probable."""
    left = 1 - shares.sum(axis=-1)
    return np.where(shares.max(axis=-1) >= left, shares.argmax(axis=-1) + 1, 0)


def all_classes(config: NetworkConfig, shares: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities of all classes, the background first, that sum to 1."""
    if not config.background:
        return shares
    left = np.clip(1 - shares.sum(axis=-1, keepdims=True), 0, 1)
    found: NDArray[np.float32] = np.concatenate([left, shares], axis=-1)
    return found


def _thinned(shares: NDArray[np.float32], classes: NDArray[np.int64], number: int, count: int) -> _Rows:
    chosen = generator(0, "rows", str(number)).permutation(len(classes))[:count]
    return shares[chosen], classes[chosen]


def _fitted(rows: Sequence[_Rows]) -> TemperatureScaling:
    return fit_temperatures(np.concatenate([p for p, _ in rows]), np.concatenate([y for _, y in rows]))
