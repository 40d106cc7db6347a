"""What is known about one patient: findings, the runs they came from, and what was said of them since.

Everything here is a value. A record only grows: a finding is added, and later accepted, rejected or
superseded by an event that names who and when; it is never edited.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from sagittal.core.errors import InputError
from sagittal.core.provenance import Measurement, canonical_json, hash_json

__all__ = ["Artifact", "Case", "Event", "Finding", "FindingDraft", "FindingState", "Run", "Verdict"]


class Verdict(StrEnum):
    """What a person, or a later run, said of a finding."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    SUPERSEDED = "superseded"


class FindingState(StrEnum):
    """Where a finding stands after its events."""

    DRAFT = "draft"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, kw_only=True)
class FindingDraft:
    """A finding as a step hands it over, before the store gives it a number.

    Attributes:
        code: What kind of statement this is, dotted, e.g. ``"tissue.volume"``.
        subject: What it is about, in the words of the report, e.g. ``"grey matter"``.
        statement: One sentence that says it in full, with its numbers.
        measurement: The number behind the sentence and its interval, where there is one.
        confidence: Probability in [0, 1] that the step gives the statement, where it gives one.
        caution: What a reader must know before relying on it; empty when nothing special.
        details: JSON values that another step or a page may need (codes, spans, shares).
    """

    code: str
    subject: str
    statement: str
    measurement: Measurement | None = None
    confidence: float | None = None
    caution: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.statement.strip():
            raise InputError("a finding needs a statement", source=self.code)
        if self.confidence is not None and not 0 <= self.confidence <= 1:
            raise InputError("confidence is not a probability", source=self.code, value=self.confidence)

    def to_json(self) -> dict[str, Any]:
        """Return the draft as JSON values."""
        return {**asdict(self), "details": dict(self.details)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FindingDraft:
        """Rebuild a draft from :meth:`to_json`."""
        measurement = value["measurement"]
        return cls(**{**value, "measurement": Measurement(**measurement) if measurement else None})

    @property
    def simulated(self) -> bool:
        """Whether it was found on simulated data (its code starts so): not observed on the patient."""
        return self.code.startswith("simulated-")

    @property
    def doubt(self) -> float | None:
        """How unsure the finding is, in [0, 1]; None when it does not say.

        The larger of 1 - confidence and of half the interval's width over the value's size, cut at 1. HU
        start at water and not at nothing, so that a share of their size says nothing.
        """
        doubts = [] if self.confidence is None else [1 - self.confidence]
        if self.measurement is not None and self.measurement.unit != "HU":
            half = (self.measurement.high - self.measurement.low) / 2
            size = abs(self.measurement.value)
            doubts.append(0.0 if half == 0 else 1.0 if half >= size else half / size)
        return max(doubts, default=None)

    @property
    def content_hash(self) -> str:
        """Return the sha256 of what the finding says, whoever said it and whenever."""
        return hash_json(self.to_json())


@dataclass(frozen=True, kw_only=True)
class Event:
    """Somebody accepted, rejected or superseded a finding.

    Attributes:
        number: Order within the case, from 1, whatever the clock said.
        verdict: What was said.
        who: Who said it.
        when: Time, ISO 8601, UTC.
        note: Why.
        successor: Number of the finding that stands instead, where one does.
    """

    number: int = 0
    verdict: Verdict
    who: str
    when: str
    note: str = ""
    successor: int | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A finding in a case: its draft, its number, the run it came from and what was said of it since."""

    number: int
    run: int | None
    author: str
    added: str
    content: FindingDraft
    events: tuple[Event, ...] = ()

    @property
    def state(self) -> FindingState:
        """Where the finding stands: the last event decides."""
        return FindingState(self.events[-1].verdict.value) if self.events else FindingState.DRAFT

    @property
    def stands(self) -> bool:
        """Whether a report may use it: neither rejected nor superseded."""
        return self.state in {FindingState.DRAFT, FindingState.ACCEPTED}


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """Something a run read or wrote: an image, a text, a file, known by its content.

    Attributes:
        role: Its part in the case, e.g. ``"t1"`` or ``"tissue"``.
        kind: How it is kept: ``"volume"``, ``"text"``, ``"json"`` or ``"file"``.
        content: sha256 of the content.
        parts: sha256 of the further contents that the content names: arrays of a volume, received files.
            The store keeps them for as long as it keeps the run.
    """

    role: str
    kind: str
    content: str
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """One execution of a step: all that is needed to run it again and compare.

    Attributes:
        number: Order within the case, from 1.
        step: Name of the step.
        version: Version of the step.
        parameters: The step's parameters as JSON values.
        inputs: Artifacts read.
        outputs: Artifacts written.
        findings: Content hashes of the findings added, in order.
        used: Numbers of the findings that the step read.
        seed: Seed of the step's own random stream.
        doubt: What the step does with the doubt of its inputs, in its own words.
        models: Models used, name to sha256.
        environment: Versions, processor and threads.
        started: Time of the start, ISO 8601, UTC.
        seconds: Wall time.
        author: The person who made the run; empty when the step ran by itself.
        seen: How many events the case held when the step read it: how findings stood then.
    """

    number: int
    step: str
    version: str
    parameters: Mapping[str, Any]
    inputs: tuple[Artifact, ...]
    outputs: tuple[Artifact, ...]
    findings: tuple[str, ...]
    used: tuple[int, ...]
    seed: int
    doubt: str
    models: Mapping[str, str]
    environment: Mapping[str, Any]
    started: str
    seconds: float
    author: str = ""
    seen: int = 0


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case as it stands: a snapshot, not a handle."""

    id: str
    label: str
    created: str
    runs: tuple[Run, ...]
    findings: tuple[Finding, ...]

    @property
    def events(self) -> int:
        """How many events the case holds."""
        return sum(len(finding.events) for finding in self.findings)

    def latest(self, role: str) -> Artifact | None:
        """Return the artifact last written for ``role``, or None."""
        for run in reversed(self.runs):
            for artifact in run.outputs:
                if artifact.role == role:
                    return artifact
        return None

    def repeated(self, run: Run) -> Run | None:
        """Return the run in the case that read and asked for the same as ``run``, or None.

        Same are step, version, parameters, seed, inputs by content, and numbers of the findings read.
        """
        wanted = _asked(run)
        return next((done for done in self.runs if _asked(done) == wanted), None)

    def standing(self, prefix: str = "") -> tuple[Finding, ...]:
        """Return the findings that a report may use, whose code starts with ``prefix``."""
        return tuple(f for f in self.findings if f.stands and f.content.code.startswith(prefix))


def _asked(run: Run) -> tuple[object, ...]:
    """What a run was asked to do, apart from what came of it."""
    inputs = [(artifact.role, artifact.kind, artifact.content) for artifact in run.inputs]
    return (run.step, run.version, canonical_json(dict(run.parameters)), run.seed, inputs, run.used)
