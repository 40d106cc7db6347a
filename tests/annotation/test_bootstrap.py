from __future__ import annotations

from collections import Counter

import pytest

from sagittal.annotation.bootstrap import BySubject, Draw, out_of_bag_mean
from sagittal.core.errors import InputError


def slices(subjects: int = 6, each: int = 4) -> BySubject[str]:
    return BySubject((f"s{n}", f"s{n} slice {k}") for k in range(each) for n in range(subjects))


def test_a_subject_is_in_a_draw_as_a_whole_or_held_out_as_a_whole() -> None:
    for draw in slices().draws(50, seed=3):
        assert len(draw.subjects) == 6
        assert draw.out_of_bag
        assert set(draw.subjects).isdisjoint(draw.out_of_bag)
        assert set(draw.subjects) | set(draw.out_of_bag) == {f"s{n}" for n in range(6)}
        times = Counter(draw.subjects)
        assert Counter(draw.training) == {f"{s} slice {k}": n for s, n in times.items() for k in range(4)}
        held = {item for items in draw.out_of_bag.values() for item in items}
        assert held.isdisjoint(draw.training)


def test_about_37_in_100_are_held_out() -> None:
    draws = slices(30, 1).draws(200, seed=0)
    share = sum(len(draw.out_of_bag) for draw in draws) / (200 * 30)
    assert share == pytest.approx((1 - 1 / 30) ** 30, abs=0.02)


def test_draws_follow_the_seed_and_not_the_order_of_what_is_given() -> None:
    forwards = BySubject([("a", 1), ("b", 2), ("c", 3), ("d", 4)])
    backwards = BySubject([("d", 4), ("c", 3), ("b", 2), ("a", 1)])
    assert forwards.draws(5, seed=1) == backwards.draws(5, seed=1)
    assert forwards.draws(2, seed=1) == forwards.draws(5, seed=1)[:2]
    assert forwards.draws(5, seed=1) != forwards.draws(5, seed=2)


def test_two_subjects_are_enough_to_hold_one_out() -> None:
    for draw in BySubject([("a", 1), ("b", 2)]).draws(20, seed=0):
        assert draw.subjects in (("a", "a"), ("b", "b"))
        assert len(draw.out_of_bag) == 1


def test_nothing_is_drawn_without_its_subject() -> None:
    for nobody in ("", "  ", None, 7):
        with pytest.raises(InputError, match="an item has no subject"):
            BySubject([(nobody, 1)])  # type: ignore[list-item]
    with pytest.raises(InputError, match="there is no subject"):
        BySubject([])
    with pytest.raises(InputError, match="got 1; expected 2 or more"):
        BySubject([("a", 1), ("a", 2)]).draws(1, seed=0)
    with pytest.raises(InputError, match="count"):
        slices().draws(0, seed=0)
    with pytest.raises(InputError, match="in the draw and held out from it; got a"):
        Draw(subjects=("a",), training=(1,), out_of_bag={"a": (1,)})
    assert slices().of("s2")[0] == "s2 slice 0"
    with pytest.raises(InputError, match="no such subject"):
        slices().of("s9")


def test_scores_out_of_the_bag_are_averaged_over_the_draws_that_held_a_subject_out() -> None:
    assert out_of_bag_mean([{"b": 0.5}, {"b": 0.7, "a": 0.1}, {}]) == {"a": 0.1, "b": pytest.approx(0.6)}
