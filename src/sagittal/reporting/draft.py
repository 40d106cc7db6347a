"""From findings to a draft: sentences that each know the findings they rest on. Deterministic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sagittal.case.record import Finding
from sagittal.core.errors import InputError

__all__ = [
    "NO_DIAGNOSIS",
    "SECTIONS",
    "Draft",
    "Impression",
    "Section",
    "Sentence",
    "deterministic_impression",
    "draft_sections",
]

NO_DIAGNOSIS = "No diagnosis is drawn from these findings."
"""Closes every impression that rules word."""

SECTIONS: Mapping[str, str] = {
    "record": "From the record",
    "image": "Images",
    "tissue": "Brain tissue volumes",
    "segmentation": "Segmentation by a trained network",
    "annotation": "Labels drawn by people",
    "atlas": "Against the atlas",
    "ct": "Head CT, one slice",
    "simulated-ct": "Simulation: the CT slice scanned at low dose",
    "simulated-atlas": "Simulation: the head deformed and registered to the atlas",
}
"""Prefix of a finding's code, to the section that its sentence stands in."""


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One sentence of a report and the numbers of the findings that hold it."""

    text: str
    findings: tuple[int, ...]
    caution: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A titled run of sentences."""

    title: str
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True, kw_only=True)
class Impression:
    """The summing-up.

    Attributes:
        text: What the report says.
        findings: Findings it rests on.
        author: ``"rules"``, or the name of the language model that worded it.
        refused: Model texts that were not used, each with the objections to it.
    """

    text: str
    findings: tuple[int, ...]
    author: str
    refused: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A drafted report."""

    sections: tuple[Section, ...]
    impression: Impression

    def to_json(self) -> dict[str, Any]:
        """Return the draft as JSON values."""
        return asdict(self)


def draft_sections(findings: Sequence[Finding]) -> tuple[Section, ...]:
    """Return the sections of a report, a sentence for each finding, in the findings' own order.

    Raises:
        InputError: A finding no longer stands, or its code belongs to no section.
    """
    sentences: dict[str, list[Sentence]] = {title: [] for title in SECTIONS.values()}
    for finding in findings:
        content = finding.content
        if not finding.stands:
            raise InputError("the finding no longer stands", source=f"finding {finding.number}")
        try:
            title = SECTIONS[content.code.partition(".")[0]]
        except KeyError:
            raise InputError(
                "no section of the report is for this finding",
                source=f"finding {finding.number}",
                value=content.code,
                expected=f"a code that starts with one of {', '.join(SECTIONS)}",
            ) from None
        sentences[title].append(
            Sentence(text=content.statement, findings=(finding.number,), caution=content.caution)
        )
    return tuple(Section(title=title, sentences=tuple(found)) for title, found in sentences.items() if found)


def deterministic_impression(findings: Sequence[Finding]) -> Impression:
    """Return the impression that rules give: what was measured, and how much of it is in doubt."""
    key = [
        f for f in findings if f.content.code in {"record.quote", "tissue.volume", "tissue.doubt", "ct.area"}
    ]
    by_code: dict[str, list[Finding]] = {}
    for finding in key:
        by_code.setdefault(finding.content.code, []).append(finding)
    clauses = _summed("Brain tissue", by_code.get("tissue.volume", []))
    clauses += [f.content.statement for f in by_code.get("tissue.doubt", [])]
    clauses += _summed("CT slice", by_code.get("ct.area", []))
    if quotes := len(by_code.get("record.quote", [])):
        clauses.append(f"{quotes} statement{'s' * (quotes > 1)} quoted from the record above.")
    if not clauses:
        clauses.append("Nothing was measured.")
    clauses.append(NO_DIAGNOSIS)
    return Impression(text=" ".join(clauses), findings=tuple(f.number for f in key), author="rules")


def _summed(title: str, findings: Sequence[Finding]) -> list[str]:
    """One clause for all that is measured; what a person wrote without a number keeps its own words."""
    measured = [
        f"{f.content.subject} {f.content.measurement.amount} ({f.content.measurement.interval})"
        for f in findings
        if f.content.measurement is not None
    ]
    clauses = [f"{title}: {', '.join(measured)}."] if measured else []
    return clauses + [f.content.statement for f in findings if f.content.measurement is None]
