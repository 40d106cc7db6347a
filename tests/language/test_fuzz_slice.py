"""Bent files of cache plans: what evidence/fuzz.py does for longer, without atheris."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fuzz_doors import visit
from fuzz_inputs import seeds
from fuzz_kept import KEPT
from fuzz_mutations import mutate


def test_the_plans_to_start_from_are_read(tmp_path: Path) -> None:
    assert [visit("plan", data, tmp_path) for data in seeds("plan")] == [(None, "accepted")] * 2


@pytest.mark.parametrize("start", range(4))
def test_a_bent_plan_is_read_or_refused(start: int, tmp_path: Path) -> None:
    outcomes = set()
    for number in range(100 * start, 100 * (start + 1)):
        rng = random.Random(number)
        finding, outcome = visit("plan", mutate("plan", rng.choice(seeds("plan")), 8192, rng), tmp_path)
        assert finding is None, f"input {number}: {finding}"
        outcomes.add(outcome)
    assert outcomes == {"accepted", "refused"}


def test_what_was_found_once_stays_fixed(tmp_path: Path) -> None:
    for case in KEPT:
        if case.target == "plan":
            assert visit("plan", case.make(), tmp_path) == (None, "refused")
