from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sagittal.annotation.selection import Budget, Candidate, Method, select
from sagittal.annotation.uncertainty import Unit
from sagittal.core.errors import InputError

COVERING = (Method.WEIGHTED_COVER, Method.UNCERTAINTY_COVER, Method.COVER)


def pool() -> list[Candidate]:
    """Three kinds of heads in four copies each, of unlike uncertainty, and an outlier that is well known."""
    kinds = np.eye(4)
    rng = np.random.default_rng(0)
    found = []
    for kind, spread in enumerate((0.1, 0.3, 0.2)):
        for copy in range(4):
            look = kinds[kind] + 0.05 * rng.random(4)
            found.append(
                Candidate(
                    subject=f"kind {kind} copy {copy}",
                    descriptor=look,
                    spread=spread + 0.01 * copy,
                    entropy=0.5 - spread,
                    minutes=10.0 + copy,
                )
            )
    found.append(Candidate(subject="outlier", descriptor=kinds[3], spread=0.0, entropy=0.0, minutes=5.0))
    return found


def kinds(choice: Any) -> list[str]:
    return [pick.candidate.subject[:6] for pick in choice.picks]


def test_uncertain_units_that_stand_for_others_are_chosen_once_of_each_kind() -> None:
    choice = select(pool(), Budget(number=3), method=Method.UNCERTAINTY_COVER)
    # The shortlist of 6 holds the four copies of kind 1 and two of kind 2: the third pick adds little.
    assert sorted(kinds(choice)[:2]) == ["kind 1", "kind 2"]
    assert choice.guarantee is not None
    assert choice.guarantee >= 1 - 1 / math.e
    assert [pick.gain for pick in choice.picks] == sorted((p.gain for p in choice.picks), reverse=True)
    assert (
        "mean disagreement 0.3" in choice.picks[0].reason or "mean disagreement 0.2" in choice.picks[0].reason
    )
    assert "stands for 2 others" in choice.picks[0].reason  # the fourth copy is chosen last
    assert choice.candidates == 13


def test_what_the_model_is_unsure_of_counts_more_in_the_cover() -> None:
    choice = select(pool(), Budget(number=4), method=Method.WEIGHTED_COVER)
    assert kinds(choice)[:3] == ["kind 1", "kind 2", "kind 0"]  # by their spreads; each stands for four
    assert choice.picks[3].candidate.subject != "outlier"  # of which the model is sure
    assert choice.listed == choice.candidates
    assert choice.guarantee is not None
    assert choice.guarantee >= 1 - 1 / math.e
    assert "mean disagreement" in choice.picks[0].reason
    first = select(pool(), Budget(number=3), method=Method.WEIGHTED_COVER).picks[0]
    assert "stands for 4 others" in first.reason  # its copies, and the outlier, which is like nobody


def test_a_weighted_cover_by_hand() -> None:
    look = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    some = [
        Candidate(subject=str(n), descriptor=look[n], spread=spread)
        for n, spread in enumerate((0.1, 0.2, 0.4))
    ]
    choice = select(some, Budget(number=2), method=Method.WEIGHTED_COVER)
    # 0: 0.1 + 0.6 * 0.2 = 0.22; 1: 0.6 * 0.1 + 0.2 + 0.8 * 0.4 = 0.58; 2: 0.8 * 0.2 + 0.4 = 0.56
    assert [pick.index for pick in choice.picks] == [1, 2]
    np.testing.assert_allclose([pick.gain for pick in choice.picks], [0.58, 0.08])


def test_uncertainty_alone_chooses_copies() -> None:
    assert kinds(select(pool(), Budget(number=3), method=Method.UNCERTAINTY)) == ["kind 1"] * 3


def test_cover_alone_and_core_set_find_every_kind() -> None:
    for method in (Method.COVER, Method.CORE_SET):
        assert set(kinds(select(pool(), Budget(number=4), method=method))) == {
            "kind 0",
            "kind 1",
            "kind 2",
            "outlie",
        }


def test_entropy_is_its_own_order() -> None:
    choice = select(pool(), Budget(number=2), method=Method.ENTROPY)
    assert kinds(choice) == ["kind 0"] * 2
    assert choice.picks[0].reason.startswith("mean entropy 0.400 (1 of 13")


def test_chance_follows_the_seed() -> None:
    one, same, other = (
        select(pool(), Budget(number=5), method=Method.RANDOM, seed=seed) for seed in (1, 1, 2)
    )
    assert one == same
    assert [p.index for p in one.picks] != [p.index for p in other.picks]


@pytest.mark.parametrize("method", list(Method))
def test_minutes_are_never_overspent_and_nobody_is_chosen_twice(method: Method) -> None:
    for minutes in (1.0, 10.0, 36.0, 1000.0):
        choice = select(pool(), Budget(minutes=minutes), method=method)
        assert choice.minutes <= minutes
        assert len({pick.index for pick in choice.picks}) == len(choice.picks)
    everything = select(pool(), Budget(minutes=1000), method=method)
    assert len(everything.picks) == 13
    assert select(pool(), Budget(number=13), method=method).picks != ()


def test_minutes_prefer_the_cheap_of_equals() -> None:
    look = np.array([1.0, 0.0])
    dear = Candidate(subject="dear", descriptor=look, spread=0.3, minutes=60)
    cheap = Candidate(subject="cheap", descriptor=look, spread=0.3, minutes=10)
    for method in (*COVERING, Method.UNCERTAINTY):
        assert select([dear, cheap], Budget(minutes=60), method=method).picks[0].candidate is cheap


def test_what_is_labelled_needs_no_other() -> None:
    labelled = np.eye(4)[1:2]
    for method in (*COVERING, Method.CORE_SET):
        first = kinds(select(pool(), Budget(number=3), method=method, labelled=labelled))[0]
        assert first != "kind 1", method


def test_a_single_network_is_uncertain_by_its_entropy() -> None:
    single = [Candidate(subject=str(n), descriptor=np.eye(3)[n], entropy=n / 10) for n in range(3)]
    choice = select(single, Budget(number=1))
    assert choice.picks[0].reason.startswith("mean entropy")
    assert select(single, Budget(number=1), method=Method.UNCERTAINTY).picks[0].index == 2


def test_units_have_names() -> None:
    look = np.ones(2)
    names = [
        Candidate(subject="a", descriptor=look).name,
        Candidate(subject="a", unit=Unit.SLICE, place=(12,), descriptor=look).name,
        Candidate(subject="a", unit=Unit.PATCH, place=(0, 32, 64), descriptor=look).name,
    ]
    assert names == ["a", "a, slice 12", "a, patch 0-32-64"]


def test_what_cannot_be_chosen_from_is_refused() -> None:
    one = Candidate(subject="a", descriptor=np.ones(2))
    with pytest.raises(InputError, match="nothing is left to annotate"):
        select([], Budget(number=1))
    with pytest.raises(InputError, match="twice; got a"):
        select([one, one], Budget(number=1))
    with pytest.raises(InputError, match="unlike shape"):
        select([one, Candidate(subject="b", descriptor=np.ones(3))], Budget(number=1))
    with pytest.raises(InputError, match="only some candidates have a spread"):
        select([one, Candidate(subject="b", descriptor=np.ones(2), spread=0.1)], Budget(number=1))
    for given in ({}, {"number": 1, "minutes": 2.0}, {"number": 0}, {"minutes": -1.0}, {"minutes": math.inf}):
        with pytest.raises(InputError, match="no such budget"):
            Budget(**given)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no subject"):
        Candidate(subject=" ", descriptor=np.ones(2))
    with pytest.raises(InputError, match="more than 0 minutes"):
        Candidate(subject="a", descriptor=np.ones(2), minutes=0)
    with pytest.raises(InputError, match="not finite"):
        Candidate(subject="a", descriptor=np.ones(2), entropy=math.nan)


def test_equals_share_a_rank_and_a_thousand_slices_are_ranked() -> None:
    spreads = [0.3, 0.1, 0.3, 0.2]
    some = [
        Candidate(subject=str(n), descriptor=np.eye(4)[n], spread=spread) for n, spread in enumerate(spreads)
    ]
    reasons = [
        pick.reason.partition("(")[2][:6]
        for pick in select(some, Budget(number=4), method=Method.UNCERTAINTY).picks
    ]
    assert reasons == ["1 of 4", "1 of 4", "3 of 4", "4 of 4"]
    rng = np.random.default_rng(0)
    many = [Candidate(subject=str(n), descriptor=rng.random(9), spread=rng.random()) for n in range(1500)]
    choice = select(many, Budget(number=40), method=Method.CORE_SET, labelled=rng.random((5, 9)))
    radii = [pick.gain for pick in choice.picks]
    assert radii == sorted(radii, reverse=True)


def test_a_budget_of_minutes_is_spent_where_a_minute_covers_most() -> None:
    """Two kinds of heads: one dear copy stands for 3 others, two cheap ones for 2 each, at equal minutes."""
    looks, minutes = np.eye(3), {0: 30.0, 1: 15.0, 2: 15.0}
    some = [
        Candidate(subject=f"{kind} {copy}", descriptor=looks[kind], spread=0.3, minutes=minutes[kind])
        for kind, copies in ((0, 4), (1, 3), (2, 3))
        for copy in range(copies)
    ]
    for method in COVERING:
        by_minute = select(some, Budget(minutes=30.0), method=method)
        assert sorted(pick.candidate.subject[0] for pick in by_minute.picks) == ["1", "2"], method
        by_number = select(some, Budget(number=1), method=Method.COVER)
        assert by_number.picks[0].candidate.subject[0] == "0"
    worth = [replace(some[0], spread=0.31), replace(some[4], spread=0.3)]  # 0.0103 and 0.02 a minute
    assert select(worth, Budget(minutes=30), method=Method.UNCERTAINTY).picks[0].index == 1
    assert select(worth, Budget(number=1), method=Method.UNCERTAINTY).picks[0].index == 0
