from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.segmentation import doubtful_share, entropy_bits, quantity

PROBABILITIES = st.lists(st.floats(0, 1), max_size=30).map(np.array)
LEVELS = st.floats(0.01, 0.99)


def test_a_hand_worked_amount() -> None:
    probability = np.array([[1, 0.5, 0], [0.97, 0.02, 0]])
    amount = quantity(probability, size=2.0, unit="ml", level=0.9)
    assert amount.value == pytest.approx(2 * 2.49)
    # Above 0.95 are two voxels and above 0.05 three: 4 to 6 ml. Erring apart they reach further:
    apart = 1.6448536 * 2 * math.sqrt(0.5 * 0.5 + 0.97 * 0.03 + 0.02 * 0.98)
    assert amount.low == pytest.approx(4.98 - apart)
    assert amount.high == pytest.approx(4.98 + apart)
    assert (amount.level, amount.unit) == (0.9, "ml")
    amount = quantity(probability, size=2.0, unit="ml", level=0.98)
    assert (amount.low, amount.high) == (2, 8)  # above 0.99 is one voxel, above 0.01 four


@given(PROBABILITIES, st.floats(0.001, 1000), LEVELS)
def test_the_interval_holds_the_value_and_is_possible(
    probability: NDArray[np.float64], size: float, level: float
) -> None:
    amount = quantity(probability, size=size, unit="ml", level=level)
    most = len(probability) * size
    assert 0 <= amount.low <= amount.value <= amount.high <= most * (1 + 1e-12)
    assert amount.value == pytest.approx(size * math.fsum(probability))


@given(PROBABILITIES, LEVELS, LEVELS)
def test_a_surer_interval_is_never_narrower(
    probability: NDArray[np.float64], one: float, other: float
) -> None:
    lower, higher = sorted((one, other))
    narrow = quantity(probability, size=1, unit="1", level=lower)
    wide = quantity(probability, size=1, unit="1", level=higher)
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


@given(st.lists(st.sampled_from([0.0, 1.0]), max_size=30).map(np.array), LEVELS)
def test_sure_voxels_leave_no_interval(probability: NDArray[np.float64], level: float) -> None:
    amount = quantity(probability, size=0.5, unit="ml", level=level)
    assert amount.low == amount.value == amount.high == 0.5 * np.count_nonzero(probability)


def test_the_interval_is_that_of_one_level_for_all_voxels() -> None:
    random = np.random.default_rng(0)
    probability = random.beta(0.5, 0.5, 400)
    amount = quantity(probability, size=1, unit="1", level=0.9)
    together = [(probability > level).sum() for level in random.random(20_000)]
    assert amount.low == pytest.approx(np.quantile(together, 0.05), abs=2)
    assert amount.high == pytest.approx(np.quantile(together, 0.95), abs=2)


def test_voxels_that_err_apart_or_in_blocks_stay_inside() -> None:
    """A boundary of 2000 voxels, each as likely in as out, in blocks that err as one."""
    random = np.random.default_rng(1)
    probability = np.linspace(0.01, 0.99, 2000)
    amount = quantity(probability, size=1, unit="1", level=0.9)
    for block in (1, 10, 100, 500):
        levels = np.repeat(random.random((4000, 2000 // block)), block, axis=1)
        sums = (probability > levels).sum(axis=1)
        assert amount.low <= np.quantile(sums, 0.05)
        assert np.quantile(sums, 0.95) <= amount.high


@pytest.mark.parametrize("chance", [0.04, 0.96])
def test_many_voxels_that_no_shared_level_moves_still_err_apart(chance: float) -> None:
    amount = quantity(np.full(1000, chance), size=1, unit="1", level=0.9)
    sums = np.random.default_rng(2).binomial(1000, chance, 20_000)
    assert np.quantile(sums, 0.05) >= amount.low - 1
    assert np.quantile(sums, 0.95) <= amount.high + 1


@pytest.mark.parametrize(
    ("probability", "arguments", "message"),
    [
        ([0.5, 1.1], {}, "probabilities leave their range; got 0.5 to 1.1; expected 0 to 1"),
        ([-0.1], {}, "probabilities leave their range; got -0.1"),
        ([0.5, math.nan], {}, "probabilities leave their range; got nan to nan"),
        ([0.5], {"level": 0}, "the interval's level is not a share; got 0; expected 0 < level < 1"),
        ([0.5], {"level": 90}, "the interval's level is not a share; got 90"),
        ([0.5], {"size": 0}, "a voxel holds no amount; got 0; expected more than 0 ml"),
        ([0.5], {"size": -1.5}, "a voxel holds no amount; got -1.5"),
        ([0.5], {"size": math.nan}, "a voxel holds no amount; got nan"),
    ],
)
def test_what_is_no_probability_level_or_size_is_refused(
    probability: list[float], arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        quantity(np.array(probability), **{"size": 1.0, "unit": "ml", **arguments})


def test_the_doubtful_share_counts_masked_voxels_under_the_threshold() -> None:
    probabilities = np.array([[0.8, 0.2], [0.79, 0.21], [0.5, 0.5], [0.1, 0.9], [0.0, 0.0]])
    mask = np.array([True, True, True, True, False])
    assert doubtful_share(probabilities, mask) == 0.5
    assert doubtful_share(probabilities, mask, below=0.95) == 1
    assert doubtful_share(probabilities, np.zeros(5, bool)) == 0


def test_entropy_is_in_bits() -> None:
    probabilities = np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4, [0, 0, 0, 0]])
    bits = entropy_bits(probabilities.reshape(2, 2, 4))
    assert bits.shape == (2, 2)
    assert bits.dtype == np.float32
    assert bits.ravel().tolist() == [0, 1, 2, 0]
