"""A few hundred bent archives: what evidence/fuzz.py does for longer, without atheris."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fuzz_doors import visit
from fuzz_inputs import seeds
from fuzz_kept import KEPT, Kept
from fuzz_mutations import mutate


def test_the_archives_to_start_from_are_taken_in(tmp_path: Path) -> None:
    assert [visit("archive", data, tmp_path) for data in seeds("archive")] == [(None, "accepted")] * 3


@pytest.mark.parametrize("start", range(8))
def test_a_bent_archive_is_taken_in_whole_or_refused(start: int, tmp_path: Path) -> None:
    outcomes = set()
    for number in range(40 * start, 40 * (start + 1)):
        rng = random.Random(number)
        data = mutate("archive", rng.choice(seeds("archive")), 8192, rng)
        finding, outcome = visit("archive", data, tmp_path)
        assert finding is None, f"input {number}: {finding}"
        outcomes.add(outcome)
    assert "refused" in outcomes


@pytest.mark.parametrize(
    "case", [case for case in KEPT if case.target == "archive"], ids=lambda case: case.name
)
def test_what_was_found_once_stays_fixed(case: Kept, tmp_path: Path) -> None:
    finding, _ = visit("archive", case.make(), tmp_path)
    assert finding is None
