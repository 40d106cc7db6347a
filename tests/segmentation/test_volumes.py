from __future__ import annotations

import math

import numpy as np
import pytest

from sagittal.core.errors import InputError
from sagittal.segmentation import VolumeScaling, class_volumes, fit_volumes, quantity


def test_hand_values() -> None:
    scaling = fit_volumes(np.array([[1.0], [1.0], [1.0]]), np.exp([[0.1], [0.2], [0.3]]))
    assert scaling.mean == pytest.approx((0.2,))
    assert scaling.sd == pytest.approx((0.1,))
    assert scaling.estimates(np.array([10.0])) == pytest.approx([10 * math.exp(0.2)])
    ((low, high),) = scaling.intervals(np.array([10.0]), level=0.95)
    reach = 4.302653 * math.sqrt(4 / 3) * 0.1  # Student's t with two degrees of freedom
    assert (low, high) == pytest.approx((10 * math.exp(0.2 - reach), 10 * math.exp(0.2 + reach)))


@pytest.mark.parametrize("subjects", [3, 5, 20])
def test_intervals_hold_as_many_new_subjects_as_they_say(subjects: int) -> None:
    rng = np.random.default_rng(7)
    held = []
    for _ in range(4000):
        ratios = np.exp(rng.normal(0.1, 0.2, (subjects + 1, 1)))
        estimated = rng.uniform(50, 500, (subjects + 1, 1))
        scaling = fit_volumes(estimated[1:], estimated[1:] * ratios[1:])
        ((low, high),) = scaling.intervals(estimated[0], level=0.9)
        held.append(low <= float(estimated[0, 0] * ratios[0, 0]) <= high)
    assert np.mean(held) == pytest.approx(0.9, abs=0.02)


def test_fewer_subjects_give_a_wider_interval() -> None:
    many, few = (VolumeScaling((0.0,), (0.1,), n) for n in (20, 3))
    (a,), (b,) = (s.intervals(np.array([100.0])) for s in (many, few))
    assert b[0] < a[0] < 100 < a[1] < b[1]


def test_the_unit_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    estimated, true = rng.uniform(1, 2, (2, 6, 3))
    ml, mm3 = fit_volumes(estimated, true), fit_volumes(1000 * estimated, 1000 * true)
    assert ml.mean == pytest.approx(mm3.mean)
    assert ml.sd == pytest.approx(mm3.sd)


@pytest.mark.parametrize(
    ("estimated", "true", "match"),
    [
        (np.ones((2, 3)), np.ones((2, 3)), "too few subjects for an interval.*2.*3 or more"),
        (np.ones((4, 3)), np.ones((4, 2)), "do not fit"),
        (np.ones((4, 1)), np.array([[1.0], [1.0], [0.0], [1.0]]), "true: a volume is not above 0"),
        (np.full((4, 1), np.nan), np.ones((4, 1)), "estimated"),
    ],
)
def test_what_is_refused(estimated: np.ndarray, true: np.ndarray, match: str) -> None:
    with pytest.raises(InputError, match=match):
        fit_volumes(estimated, true)


def test_a_volume_for_each_class() -> None:
    scaling = VolumeScaling((0.0, 0.0), (0.1, 0.1), 5)
    for wrong in ([1.0], [1.0, -1.0], [1.0, np.nan]):
        with pytest.raises(InputError, match="not a volume for each class"):
            scaling.intervals(np.array(wrong))
    with pytest.raises(InputError, match="level"):
        scaling.intervals(np.ones(2), level=1.0)
    assert scaling.intervals(np.zeros(2)) == [(0.0, 0.0)] * 2


def test_volumes_take_the_interval_that_was_earned_or_that_of_the_probabilities() -> None:
    shares = np.zeros((4, 5, 6, 2))
    shares[:2, ..., 0], shares[2:, ..., 1] = 1.0, 0.75
    scaling = VolumeScaling((math.log(2), 0.0), (0.1, 0.2), 12)
    first, second = class_volumes(shares, voxel_ml=0.5, level=0.95, scaling=scaling)
    assert (first.value, second.value) == pytest.approx((60.0, 22.5))
    (low, high), _ = scaling.intervals(np.array([30.0, 22.5]), level=0.95)
    assert (first.low, first.high, first.unit) == (low, high, "ml")
    alone = class_volumes(shares, voxel_ml=0.5, level=0.95)
    assert alone == [quantity(shares[..., n], size=0.5, unit="ml", level=0.95) for n in range(2)]
    with pytest.raises(InputError, match="not a volume for each class"):
        class_volumes(shares[..., :1], voxel_ml=0.5, level=0.95, scaling=scaling)
