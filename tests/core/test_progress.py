from __future__ import annotations

import pytest

from sagittal.core.progress import duration, time_left


def test_nothing_is_said_of_the_time_left_before_two_tasks_are_done() -> None:
    assert time_left([], 10, 2) is None
    assert time_left([3.0], 10, 2) is None


def test_tasks_that_take_the_same_leave_no_range() -> None:
    assert time_left([3.0, 3.0, 3.0], 10, 2) == (15.0, 15.0)


def test_the_range_holds_the_mean_and_grows_with_the_spread() -> None:
    low, high = time_left([2.0, 4.0, 3.0], 10, 1) or (0, 0)
    wider_low, wider_high = time_left([1.0, 5.0, 3.0], 10, 1) or (0, 0)
    assert wider_low < low < 30 < high < wider_high
    assert wider_low >= 0


def test_more_workers_than_tasks_do_not_help() -> None:
    assert time_left([3.0, 3.0], 1, 8) == (3.0, 3.0)


def test_nothing_left_takes_no_time() -> None:
    assert time_left([2.0, 4.0], 0, 2) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (40.2, "40 s"), (150, "2 min"), (7100, "118 min"), (9000, "2.5 h")],
)
def test_a_duration_has_the_digits_a_reader_can_use(seconds: float, words: str) -> None:
    assert duration(seconds) == words
