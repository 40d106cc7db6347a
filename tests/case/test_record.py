from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagittal.case.record import Artifact, Case, Event, Finding, FindingDraft, FindingState, Run, Verdict
from sagittal.core.errors import InputError
from sagittal.core.provenance import Measurement, canonical_json

NUMBERS = st.floats(-1e9, 1e9)
MEASUREMENTS = st.builds(
    lambda ends, level: Measurement(value=ends[1], low=ends[0], high=ends[2], level=level, unit="ml"),
    st.tuples(NUMBERS, NUMBERS, NUMBERS).map(sorted),
    st.floats(0.01, 0.99),
)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
DRAFTS = st.builds(
    FindingDraft,
    code=WORDS,
    subject=WORDS,
    statement=WORDS.filter(str.strip),
    measurement=st.none() | MEASUREMENTS,
    confidence=st.none() | st.floats(0, 1),
    caution=WORDS,
    details=st.dictionaries(WORDS, st.integers() | WORDS | st.lists(NUMBERS, max_size=3), max_size=3),
)


@given(DRAFTS)
def test_a_draft_survives_json_and_keeps_its_hash(draft: FindingDraft) -> None:
    again = FindingDraft.from_json(json.loads(canonical_json(draft.to_json())))
    assert again == draft
    assert again.content_hash == draft.content_hash


@pytest.mark.parametrize(
    "changes",
    [
        {"statement": "other"},
        {"subject": "other"},
        {"code": "other"},
        {"caution": "other"},
        {"confidence": 0.5},
        {"details": {"a": 1}},
        {"measurement": None},
        {"measurement": Measurement(value=5, low=4, high=6, level=0.95, unit="ml")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_a_finding_says_is_in_its_hash(
    draft: Callable[..., FindingDraft], changes: dict[str, object]
) -> None:
    assert replace(draft(), **changes).content_hash != draft().content_hash


@pytest.mark.parametrize("confidence", [-0.01, 1.01, math.nan])
def test_a_confidence_is_a_probability(draft: Callable[..., FindingDraft], confidence: float) -> None:
    with pytest.raises(InputError, match=f"tissue.volume: confidence is not a probability; got {confidence}"):
        draft(confidence=confidence)


@pytest.mark.parametrize("statement", ["", " \n"])
def test_a_finding_says_something(draft: Callable[..., FindingDraft], statement: str) -> None:
    with pytest.raises(InputError, match=r"tissue\.volume: a finding needs a statement"):
        draft(statement=statement)


@pytest.mark.parametrize(
    ("verdicts", "state", "stands"),
    [
        ([], FindingState.DRAFT, True),
        ([Verdict.ACCEPTED], FindingState.ACCEPTED, True),
        ([Verdict.ACCEPTED, Verdict.REJECTED], FindingState.REJECTED, False),
        ([Verdict.SUPERSEDED], FindingState.SUPERSEDED, False),
    ],
)
def test_the_last_verdict_decides(
    draft: Callable[..., FindingDraft], verdicts: list[Verdict], state: FindingState, stands: bool
) -> None:
    events = tuple(Event(verdict=verdict, who="a", when="t") for verdict in verdicts)
    finding = Finding(number=1, run=1, author="a", added="t", content=draft(), events=events)
    assert (finding.state, finding.stands) == (state, stands)


def test_a_case_knows_the_latest_artifact_and_what_stands(
    make_run: Callable[..., Run], draft: Callable[..., FindingDraft]
) -> None:
    runs = tuple(
        make_run(number=number, outputs=(Artifact(role=role, kind="text", content=str(number)),))
        for number, role in enumerate(["a", "b", "a"], start=1)
    )
    rejected = (Event(verdict=Verdict.REJECTED, who="a", when="t"),)
    findings = tuple(
        Finding(number=number, run=1, author="a", added="t", content=draft(code=code), events=events)
        for number, (code, events) in enumerate(
            [("tissue.volume", ()), ("tissue.doubt", rejected), ("ct.area", ())], start=1
        )
    )
    case = Case(id="c", label="", created="t", runs=runs, findings=findings)
    assert case.latest("a") == Artifact(role="a", kind="text", content="3")
    assert case.latest("absent") is None
    assert [finding.number for finding in case.standing()] == [1, 3]
    assert [finding.number for finding in case.standing("tissue.")] == [1]
