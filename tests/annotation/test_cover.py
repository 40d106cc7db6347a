from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagittal.annotation.cover import cosine_similarity, cover, cover_within, k_centre
from sagittal.core.errors import InputError


def table(seed: int, pool: int = 10, candidates: int = 8) -> Any:
    return np.random.default_rng(seed).random((pool, candidates)) ** 3


def value(similarity: Any, chosen: Any, weights: Any = 1.0) -> float:
    return float((similarity[:, list(chosen)].max(axis=1, initial=0) * weights).sum())


@pytest.mark.parametrize("seed", range(30))
def test_greedy_reaches_its_bound_of_the_best_of_all_choices(seed: int) -> None:
    similarity = table(seed)
    found = cover(similarity, 2)
    best = max(value(similarity, pair) for pair in itertools.combinations(range(8), 2))
    assert found.value == pytest.approx(value(similarity, found.chosen))
    assert best * (1 - 1 / math.e) <= found.value <= best + 1e-12
    assert found.value >= found.guarantee * best - 1e-12  # what it says of this choice is true
    assert found.guarantee >= 1 - 1 / math.e


@pytest.mark.parametrize("seed", range(30))
def test_greedy_per_cost_reaches_its_bound_within_the_budget(seed: int) -> None:
    similarity, weights = table(seed), np.random.default_rng(seed).random(10)
    costs = np.random.default_rng(seed + 1).uniform(0.2, 3, 8)
    found = cover_within(similarity, costs, 3.0, weights=weights)
    every = (c for size in range(9) for c in itertools.combinations(range(8), size))
    best = max(value(similarity, c, weights) for c in every if costs[list(c)].sum() <= 3)
    assert costs[list(found.chosen)].sum() <= 3
    assert found.value == pytest.approx(value(similarity, found.chosen, weights))
    assert (1 - 1 / math.e) / 2 * best <= found.value <= best + 1e-12
    assert found.value >= found.guarantee * best - 1e-12


def test_gain_per_cost_alone_would_fail_where_the_better_of_two_does_not() -> None:
    # A cheap candidate gains 0.02 for 0.01 and leaves too little for the one that gains 1 for 1.
    similarity = np.array([[0.02, 0.0], [0.0, 1.0]])
    found = cover_within(similarity, np.array([0.01, 1.0]), 1.0)
    assert found.chosen == (1,)
    # And gain alone would spend all on one, where many are better.
    similarity = np.eye(11)
    similarity[10, 10] = 1.5
    found = cover_within(similarity, np.array([1.0] * 10 + [10.0]), 10.0)
    assert sorted(found.chosen) == list(range(10))
    assert found.guarantee > 0.8  # told by what is left over


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_monotone_with_gains_that_never_grow(seed: int) -> None:
    similarity = table(seed, 6, 6)
    values = [cover(similarity, count).value for count in range(7)]
    assert values == sorted(values)
    gains = cover(similarity, 6).gains
    assert list(gains) == sorted(gains, reverse=True)
    assert cover(similarity, 6).guarantee == 1  # nothing is left
    assert cover(similarity, 3).chosen == cover(similarity, 6).chosen[:3]


def test_by_hand() -> None:
    similarity = np.array([[1, 0.2, 0.9], [0.2, 1, 0.6], [0.9, 0.6, 1]])
    found = cover(similarity, 2)  # 2.5 for the third, then 0.4 for the second and 0.1 for the first
    assert found.chosen == (2, 1)
    assert found.gains == pytest.approx((2.5, 0.4))
    covered = cover(similarity, 1, covered=np.array([0.9, 0, 0.9]))
    assert covered.chosen == (1,)
    weighed = cover(similarity, 1, weights=np.array([0, 1, 0]))
    assert (weighed.chosen, weighed.value) == ((1,), 1)
    assert cover(np.ones((3, 3)), 2).chosen == (0, 1)  # the first of equals
    assert cover(similarity, 0).chosen == ()
    assert cover_within(similarity, np.ones(3), 0).chosen == ()


def test_k_centre_takes_the_furthest_and_is_within_twice_the_best() -> None:
    places = np.array([0.0, 1, 2, 10, 11, 30])
    distance = np.abs(places[:, None] - places)
    chosen, radii = k_centre(distance, 3)
    assert chosen == [2, 5, 4]  # 2 and 10 are equally near to all, 30 is 28 away, 11 is 9 away
    assert radii == [math.inf, 28, 9]
    chosen, radii = k_centre(distance, 2, nearest=np.abs(places - 30))
    assert (chosen, radii) == ([0, 4], [30, 11])
    for seed in range(20):
        points = np.random.default_rng(seed).random((8, 2))
        far = np.linalg.norm(points[:, None] - points, axis=-1)
        mine = far[:, k_centre(far, 2)[0]].min(axis=1).max()
        best = min(far[:, list(pair)].min(axis=1).max() for pair in itertools.combinations(range(8), 2))
        assert best <= mine <= 2 * best


def test_similarities_are_cosines_and_never_negative() -> None:
    one, other = np.array([[1.0, 0], [1, 1], [0, 0]]), np.array([[2.0, 0], [-1, 0]])
    np.testing.assert_allclose(cosine_similarity(one, other), [[1, 0], [math.sqrt(0.5), 0], [0, 0]])


def test_what_cannot_be_covered_is_refused() -> None:
    with pytest.raises(InputError, match="got 9; expected 0 to 8"):
        cover(table(0), 9)
    with pytest.raises(InputError, match="0 or more"):
        cover(-table(0), 1)
    with pytest.raises(InputError, match="weights"):
        cover(table(0), 1, weights=np.ones(8))
    with pytest.raises(InputError, match="costs"):
        cover_within(table(0), np.zeros(8), 1)
    with pytest.raises(InputError, match="budget"):
        cover_within(table(0), np.ones(8), -1)
    with pytest.raises(InputError, match="square"):
        k_centre(table(0), 1)
    with pytest.raises(InputError, match="nearest"):
        k_centre(np.zeros((3, 3)), 1, nearest=np.zeros(2))
    with pytest.raises(InputError, match="features"):
        cosine_similarity(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(InputError, match="finite"):
        cosine_similarity(np.full((2, 3), np.nan), np.zeros((2, 3)))
