from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import InputError
from sagittal.segmentation.calibration import (
    TemperatureScaling,
    calibration_error,
    fit_temperatures,
    negative_log_likelihood,
    reliability,
)

pytest.importorskip("scipy.optimize")


def drawn(probabilities: Any, seed: int = 0) -> Any:
    """True classes that occur exactly as often as the probabilities say."""
    uniform = np.random.default_rng(seed).random(len(probabilities))[:, None]
    return np.minimum((uniform > probabilities.cumsum(axis=1)).sum(axis=1), probabilities.shape[1] - 1)


def told(count: int = 60_000, seed: int = 1) -> Any:
    return np.random.default_rng(seed).dirichlet((0.6, 0.8, 1.0), count)


def test_a_curve_by_hand() -> None:
    confidence = np.array([0.55, 0.6, 0.9, 0.95, 0.95, 1.0])
    correct = np.array([True, False, True, True, False, True])
    curve = reliability(confidence, correct, bins=2, by="width")
    assert (curve.lower, curve.upper, curve.count) == ((0.5,), (1.0,), (6,))  # the empty bin is left out
    curve = reliability(confidence, correct, bins=5, by="width")
    assert curve.count == (2, 4)  # 0.6 ends a bin
    assert curve.confidence == pytest.approx((0.575, 0.95))
    assert curve.accuracy == (0.5, 0.75)
    assert curve.expected_error == pytest.approx((2 * 0.075 + 4 * 0.2) / 6)
    assert curve.maximum_error == pytest.approx(0.2)
    curve = reliability(confidence, correct, bins=3, by="mass")
    assert curve.count == (2, 3, 1)  # the two of 0.95 share a bin
    assert curve.upper == (0.6, 0.95, 1.0)
    assert curve.accuracy == pytest.approx((0.5, 2 / 3, 1.0))


def test_the_order_of_rows_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    confidence = rng.choice([0.4, 0.7, 0.7001, 1.0], 500)
    correct = rng.random(500) < confidence
    order = rng.permutation(500)
    for by in ("width", "mass"):
        one = reliability(confidence, correct, by=by)  # type: ignore[arg-type]
        other = reliability(confidence[order], correct[order], by=by)  # type: ignore[arg-type]
        assert one.count == other.count
        assert one.accuracy == other.accuracy


def test_four_errors_by_hand() -> None:
    probabilities = np.array([[0.8, 0.2]] * 4 + [[0.4, 0.6]] * 2)
    labels = np.array([0, 0, 0, 1, 1, 0])
    error = calibration_error(probabilities, labels, bins=5)
    # Of 0.8 three of four are right, of 0.6 one of two.
    assert error.equal_width == pytest.approx((4 * 0.05 + 2 * 0.1) / 6)
    assert error.equal_mass == pytest.approx(error.equal_width)
    assert error.width_bins.count == error.mass_bins.count == (2, 4)
    # Of class 0 the bins are 0.4 (half are) and 0.8 (three quarters are); class 1 mirrors it.
    assert error.class_wise == pytest.approx((4 * 0.05 + 2 * 0.1) / 6)
    assert [bins.count for bins in error.class_bins] == [(2, 4), (4, 2)]
    # 0.05^2 and 0.1^2 less 0.75 * 0.25 / 3 and 0.5 * 0.5 / 1: less than nothing.
    assert error.debiased == 0
    many = calibration_error(np.repeat(probabilities, 1000, 0), np.repeat(labels, 1000), bins=5)
    squared = 4 * (0.05**2 - 0.1875 / 3999) + 2 * (0.1**2 - 0.25 / 1999)
    assert many.debiased == pytest.approx(math.sqrt(squared / 6))


def test_probabilities_that_are_right_have_no_error_and_keep_their_temperature() -> None:
    probabilities = told()
    labels = drawn(probabilities)
    error = calibration_error(probabilities, labels)
    assert max(error.equal_width, error.equal_mass, error.class_wise, error.debiased) < 0.01
    assert sum(error.width_bins.count) == len(labels)
    assert fit_temperatures(probabilities, labels).temperatures == pytest.approx((1, 1, 1), abs=0.03)


def test_noise_reads_as_error_unless_it_is_taken_off() -> None:
    each = []
    for seed in range(40):
        probabilities = told(300, seed)
        error = calibration_error(probabilities, drawn(probabilities, seed))
        each.append((error.equal_mass**2, error.debiased**2))
    plain, debiased = np.mean(each, axis=0)
    assert debiased < plain / 2


@pytest.mark.parametrize("temperatures", [(2.0, 2.0, 2.0), (0.5, 1.5, 3.0)])
def test_the_temperatures_that_made_the_labels_are_found(temperatures: tuple[float, ...]) -> None:
    sharp = told()
    right = TemperatureScaling(temperatures).apply(sharp)
    labels = drawn(right)
    found = fit_temperatures(sharp, labels)
    assert found.temperatures == pytest.approx(temperatures, rel=0.05)
    assert negative_log_likelihood(found.apply(sharp), labels) <= negative_log_likelihood(right, labels)
    before, after = (calibration_error(p, labels).class_wise for p in (sharp, found.apply(sharp)))
    assert after < 0.01 < before


def test_every_class_hurts_where_its_temperature_is_moved() -> None:
    sharp = told(5000)
    labels = drawn(TemperatureScaling((0.8, 2.0, 1.2)).apply(sharp))
    best = fit_temperatures(sharp, labels).temperatures
    least = negative_log_likelihood(TemperatureScaling(best).apply(sharp), labels)
    for position, factor in ((p, f) for p in range(3) for f in (0.9, 1.1)):
        moved = [t * (factor if p == position else 1) for p, t in enumerate(best)]
        assert negative_log_likelihood(TemperatureScaling(tuple(moved)).apply(sharp), labels) > least


def test_weights_are_repetitions() -> None:
    sharp = told(400)
    labels = drawn(sharp[:, ::-1])
    count = np.random.default_rng(5).integers(0, 4, 400)
    weighed = fit_temperatures(sharp, labels, weights=count)
    repeated = fit_temperatures(np.repeat(sharp, count, 0), np.repeat(labels, count))
    assert weighed.temperatures == pytest.approx(repeated.temperatures, rel=1e-4)


def test_applied_by_hand_and_to_volumes() -> None:
    # p^(1/2) of 0.64 and 0.36 is 0.8 and 0.6.
    got = TemperatureScaling((2.0, 2.0)).apply(np.array([[0.64, 0.36], [0, 0]], np.float32))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [[8 / 14, 6 / 14], [0, 0]], rtol=1e-6)
    volume = told(24).reshape(2, 3, 4, 3).astype(np.float32)
    same = TemperatureScaling((1.0, 1.0, 1.0)).apply(volume)
    np.testing.assert_allclose(same, volume, atol=1e-6)
    hot = TemperatureScaling((20.0, 20.0, 20.0)).apply(volume)
    assert (hot.argmax(axis=-1) == volume.argmax(axis=-1)).all()
    assert hot.max() < 0.6
    sure = TemperatureScaling((1.5, 1.5)).apply(np.array([[1.0, 0.0]]))
    assert np.isfinite(sure).all()


def test_what_is_no_calibration_data_is_refused() -> None:
    good, labels = told(10), drawn(told(10))
    for call in (fit_temperatures, calibration_error, negative_log_likelihood):
        with pytest.raises(InputError, match=r"\(10, 3\) and \(9,\)"):
            call(good, labels[:9])
        with pytest.raises(InputError, match="a row is no distribution"):
            call(good * 0.9, labels)
        with pytest.raises(InputError, match="expected whole numbers, 0 to 2"):
            call(good, labels + 3)
        with pytest.raises(InputError, match="whole numbers"):
            call(good, labels.astype(float))
        with pytest.raises(InputError, match="one row or more"):
            call(good[:0], labels[:0])
        with pytest.raises(InputError, match="no distribution"):
            call(np.where(np.arange(3) == 0, np.nan, good), labels)
    with pytest.raises(InputError, match="class 1 in all 10 rows"):
        fit_temperatures(good, np.ones(10, int))
    for weights in (np.ones(9), -np.ones(10), np.zeros(10)):
        with pytest.raises(InputError, match="weights"):
            fit_temperatures(good, labels, weights=weights)
    with pytest.raises(InputError, match="0.05 to 20"):
        TemperatureScaling((1.0, 0.0))
    with pytest.raises(InputError, match="got 3 classes; expected 2"):
        TemperatureScaling((1.0, 1.0)).apply(good)
    with pytest.raises(InputError, match="bins"):
        reliability(np.array([0.5]), np.array([True]), bins=0)
    with pytest.raises(InputError, match="0 to 1"):
        reliability(np.array([1.5]), np.array([True]))
