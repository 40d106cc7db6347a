from __future__ import annotations

import re

import pytest

from sagittal.core.errors import InputError
from sagittal.records import ground, simulate_record

SEEDS = range(20)


def test_a_seed_gives_one_record_and_another_seed_another() -> None:
    assert simulate_record(seed=3) == simulate_record(seed=3)
    records = [simulate_record(seed=seed) for seed in SEEDS]
    assert len({record.text for record in records}) == len(SEEDS)
    assert len({tuple(fact.answer for fact in record.facts) for record in records}) > 10
    assert len({tuple(fact.line for fact in record.facts) for record in records}) == len(SEEDS)


@pytest.mark.parametrize("entries", [5, 40, 225])
def test_the_record_says_that_it_is_simulated_and_runs_in_the_order_of_time(entries: int) -> None:
    record = simulate_record(seed=1, entries=entries)
    first, *lines = record.text.removesuffix("\n").split("\n")
    assert first.startswith("SIMULATED")
    assert len(lines) == entries
    days = [line.split(" ")[0] for line in lines]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", day) for day in days)
    assert days == sorted(set(days))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_facts_stand_where_they_are_said_to_stand_and_nowhere_else(seed: int) -> None:
    record = simulate_record(seed=seed)
    lines = record.text.split("\n")
    assert [fact.question for fact in record.facts] == [f.question for f in simulate_record(seed=99).facts]
    for fact in record.facts:
        assert fact.answer in lines[fact.line - 1]
        quote = ground(fact.question, fact.answer, record.text)
        assert quote is not None
        assert (quote.line, quote.text) == (fact.line, lines[fact.line - 1])


def test_too_few_entries_are_refused() -> None:
    with pytest.raises(InputError, match="too few entries for the facts; got 4; expected 5 or more"):
        simulate_record(seed=0, entries=4)
