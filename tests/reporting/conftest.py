"""Findings as the steps word them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sagittal.case.record import Event, Finding, FindingDraft, Verdict
from sagittal.core.provenance import Measurement

Make = Callable[..., Finding]


def finding(
    number: int,
    code: str,
    subject: str,
    statement: str,
    measurement: Measurement | None = None,
    verdict: Verdict | None = None,
    caution: str = "",
) -> Finding:
    content = FindingDraft(
        code=code, subject=subject, statement=statement, measurement=measurement, caution=caution
    )
    events = (Event(verdict=verdict, who="Dr A", when="t"),) if verdict else ()
    return Finding(number=number, run=1, author="step 1", added="t", content=content, events=events)


def volume(number: int, subject: str, value: float, low: float, high: float) -> Finding:
    amount = Measurement(value=value, low=low, high=high, level=0.9, unit="ml")
    statement = f"{subject.capitalize()}: {amount.amount} ({amount.interval})."
    return finding(number, "tissue.volume", subject, statement, amount)


def area(number: int, subject: str, value: float, low: float, high: float, share: int) -> Finding:
    amount = Measurement(value=value, low=low, high=high, level=0.9, unit="cm2")
    statement = (
        f"{subject.capitalize()} on the slice: {amount.amount} ({amount.interval}), "
        f"{share} % of the area inside the head's outline."
    )
    return finding(number, "ct.area", subject, statement, amount)


@pytest.fixture
def make() -> Make:
    return finding


@pytest.fixture
def tissue() -> list[Finding]:
    return [
        volume(1, "cerebrospinal fluid", 187.4, 170.2, 210.7),
        volume(2, "grey matter", 662.3, 640.1, 680.2),
        volume(3, "white matter", 501.9, 480.0, 533.3),
        finding(
            4,
            "tissue.doubt",
            "doubtful brain voxels",
            "12 % of brain voxels have no tissue with a probability of 0.8 or more.",
        ),
    ]


@pytest.fixture
def ct() -> list[Finding]:
    return [
        area(5, "air", 12.34, 11.9, 12.9, 6),
        area(6, "soft tissue", 212.44, 210.1, 214.2, 80),
        area(7, "bone", 30.2, 29.9, 31.0, 14),
    ]


@pytest.fixture
def quote() -> Finding:
    line = (
        "2023-05-02 Radiology request: MRI of the brain requested because of two episodes of "
        "double vision in the left eye, pressure 120/80, dioptres -2.5."
    )
    return finding(8, "record.quote", "Why was the MRI of the brain requested?", f"Record, line 42: “{line}”")
