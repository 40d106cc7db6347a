"""Runs and findings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sagittal.case.record import Artifact, FindingDraft, Run
from sagittal.core.provenance import Measurement
from store_places import CONTENTS


def digest(name: str) -> str:
    """Where a store of the tests keeps one of its contents (see store_places.CONTENTS)."""
    return hashlib.sha256(CONTENTS[name]).hexdigest()


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """A run of step "measure" that wrote role "volume", unless told otherwise."""

    def make(**changes: Any) -> Run:
        run = Run(
            number=0,
            step="measure",
            version="1",
            parameters={"beta": 0.1, "names": ["a", "b"]},
            inputs=(Artifact(role="t1", kind="volume", content=digest("t1")),),
            outputs=(Artifact(role="volume", kind="volume", content=digest("volume")),),
            findings=(),
            used=(),
            seed=2**63 - 1,
            doubt="starts it",
            models={"m": "22" * 32},
            environment={"python": "3"},
            started="2026-01-02T03:04:05+00:00",
            seconds=1.5,
        )
        return replace(run, **changes)

    return make


@pytest.fixture
def draft() -> Callable[..., FindingDraft]:
    """A finding that says how much there is of something."""

    def make(subject: str = "grey matter", value: float = 5.0, **changes: Any) -> FindingDraft:
        finding = FindingDraft(
            code="tissue.volume",
            subject=subject,
            statement=f"{subject}: {value:g} ml",
            measurement=Measurement(value=value, low=value - 1, high=value + 1, level=0.9, unit="ml"),
        )
        return replace(finding, **changes)

    return make
