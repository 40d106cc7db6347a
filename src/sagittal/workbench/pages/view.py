"""What the pages show, as values: pure functions of the record, so that templates only place words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sagittal.case.record import Case, Event, Finding, FindingState, Run
from sagittal.workflow.export.graph import Graph, provenance_graph

__all__ = [
    "Bar",
    "FindingView",
    "Link",
    "differences",
    "drawn",
    "findings_of",
    "replaced_by",
    "report_view",
    "title_of",
]

_TITLES = {
    "t1": "T1 image",
    "ct": "CT slice",
    "tissue": "Brain tissue",
    "segmentation": "Segmentation by a network",
    "ct-classes": "CT tissue classes",
    "ct-scanned": "CT slice as scanned in simulation",
    "ct-fbp": "Simulated low-dose CT, FBP",
    "ct-low-dose": "Simulated low-dose CT",
    "ct-low-dose-classes": "Classes on the simulated low-dose CT",
}
_SAID = {
    FindingState.DRAFT: "undecided",
    FindingState.ACCEPTED: "accepted",
    FindingState.REJECTED: "rejected",
    FindingState.SUPERSEDED: "superseded",
}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """An interval as shares of a scale that the findings of one unit have in common.

    Attributes:
        low: Lower end, in [0, 1].
        value: Best estimate, in [0, 1].
        high: Upper end, in [0, 1].
        words: The same for who cannot see it.
    """

    low: float
    value: float
    high: float
    words: str


@dataclass(frozen=True, kw_only=True)
class Link:
    """A number of a finding, and where it can be read."""

    number: int
    url: str
    note: str


@dataclass(frozen=True, kw_only=True)
class FindingView:
    """One finding as the pages show it."""

    number: int
    run: int | None
    roles: tuple[str, ...]
    class_name: str
    author: str
    added: str
    code: str
    subject: str
    statement: str
    caution: str
    state: str
    said: str
    stands: bool
    measurement: bool
    amount: str
    interval: str
    bar: Bar | None
    confidence: float | None
    doubt: float | None
    sentences: tuple[str, ...]
    replaces: tuple[int, ...]
    events: tuple[Event, ...]


def title_of(role: str) -> str:
    """Return what a reader calls an image of this role."""
    return _TITLES.get(role, role)


def findings_of(
    shown: Sequence[Finding],
    *,
    runs: Mapping[int, Run],
    replaced: Mapping[int, Sequence[int]],
    report: Mapping[str, Any] | None,
) -> list[FindingView]:
    """Return the findings as they are shown.

    Args:
        shown: The findings of this page.
        runs: Runs of the case by number.
        replaced: For each finding that took the place of others, their numbers.
        report: What :func:`report_view` returned, to say in which sentences a finding is used.
    """
    scales = _scales(shown)
    used = _sentences(report)
    return [_view(f, scales, runs.get(f.run or 0), replaced.get(f.number, ()), used) for f in shown]


def replaced_by(findings: Sequence[Finding]) -> dict[int, list[int]]:
    """Return, for each finding that took the place of some of these, their numbers."""
    replaced: dict[int, list[int]] = {}
    for finding in findings:
        for event in finding.events:
            if event.successor is not None:
                replaced.setdefault(event.successor, []).append(finding.number)
    return replaced


def drawn(case: Case, findings: Sequence[Finding] | None) -> tuple[Graph, dict[int, str]]:
    """Return the provenance as a drawing, and how many findings each run made, in words.

    Args:
        case: The case without its findings.
        findings: All of them, or None where they are too many: lines of findings are then left out.
    """
    if findings is None:
        whole = replace(case, findings=(), runs=tuple(replace(run, used=()) for run in case.runs))
    else:
        whole = replace(case, findings=tuple(findings))
    counts = {run.number: len(run.findings) for run in case.runs}
    words = {number: f"{count} finding{'' if count == 1 else 's'}" for number, count in counts.items()}
    return provenance_graph(whole), words


def report_view(
    draft: Mapping[str, Any] | None, findings: Mapping[int, Finding], case_id: str, *, whole: bool = True
) -> dict[str, Any] | None:
    """Return a drafted report with an anchor for each sentence, and links to the findings that hold it.

    Args:
        draft: The report as ``draft-report`` wrote it, or None.
        findings: Findings of the case, by number.
        case_id: The case.
        whole: Whether ``findings`` are all of them; of one that is not there nothing is said otherwise.
    """

    def gone(number: int) -> bool:
        return not findings[number].stands if number in findings else whole

    if draft is None:
        return None
    count = 0
    sections = []
    for section in draft["sections"]:
        sentences = []
        for sentence in section["sentences"]:
            count += 1
            numbers = list(sentence["findings"])
            sentences.append(
                {
                    "anchor": f"sentence-{count}",
                    "text": sentence["text"],
                    "findings": numbers,
                    "links": _links(numbers, findings, case_id),
                    "gone": any(gone(number) for number in numbers),
                }
            )
        sections.append({"title": section["title"], "sentences": sentences})
    impression = draft["impression"]
    numbers = sorted(
        {*impression["findings"], *(n for s in sections for one in s["sentences"] for n in one["findings"])}
    )
    return {
        "sections": sections,
        "impression": {
            "text": impression["text"],
            "author": impression["author"],
            "findings": list(impression["findings"]),
            "links": _links(impression["findings"], findings, case_id),
        },
        "stale": ", ".join(
            f"{n} {_SAID[findings[n].state]}" if n in findings else f"{n} missing" for n in numbers if gone(n)
        ),
    }


def differences(one: FindingView, other: FindingView, runs: Mapping[int, Run]) -> list[tuple[str, str, str]]:
    """Return the fields in which two findings differ: name, of the one, of the other."""
    rows = [
        (name, str(getattr(one, field) or "none"), str(getattr(other, field) or "none"))
        for name, field in (
            ("Subject", "subject"),
            ("Kind", "code"),
            ("Statement", "statement"),
            ("Value", "amount"),
            ("Interval", "interval"),
            ("Confidence", "confidence"),
            ("Caution", "caution"),
            ("State", "said"),
            ("Author", "author"),
        )
    ]
    left, right = (_run_fields(runs.get(finding.run or 0)) for finding in (one, other))
    rows += [(name, left[name], right[name]) for name in left]
    return [row for row in rows if row[1] != row[2]]


def _run_fields(run: Run | None) -> dict[str, str]:
    """What of a run can explain that two findings differ."""
    if run is None:
        return dict.fromkeys(("Run", "Reads", "Parameters", "Seed"), "none")
    return {
        "Run": f"{run.number}, {run.step} {run.version}",
        "Reads": ", ".join(f"{artifact.role} {artifact.content[:12]}" for artifact in run.inputs),
        "Parameters": ", ".join(f"{name} {value}" for name, value in sorted(run.parameters.items())),
        "Seed": str(run.seed),
    }


def _view(
    finding: Finding,
    scales: Mapping[str, tuple[float, float]],
    run: Run | None,
    replaces: Sequence[int],
    used: Mapping[int, list[str]],
) -> FindingView:
    content, amount = finding.content, finding.content.measurement
    details = content.details
    return FindingView(
        number=finding.number,
        run=finding.run,
        roles=tuple(output.role for output in run.outputs) if run else (),
        class_name=str(details.get("tissue") or details.get("class") or ""),
        author=finding.author,
        added=finding.added,
        code=content.code,
        subject=content.subject,
        statement=content.statement,
        caution=content.caution,
        state=finding.state.value,
        said=_SAID[finding.state],
        stands=finding.stands,
        measurement=amount is not None,
        amount=amount.amount if amount else "",
        interval=amount.interval if amount else "",
        bar=_bar(finding, scales),
        confidence=content.confidence,
        doubt=content.doubt,
        sentences=tuple(used.get(finding.number, ())),
        replaces=tuple(replaces),
        events=finding.events,
    )


def _scales(findings: Sequence[Finding]) -> dict[str, tuple[float, float]]:
    """The scale of each unit: from 0, or below where a value is, to a little above the highest end."""
    scales: dict[str, tuple[float, float]] = {}
    for finding in findings:
        if (amount := finding.content.measurement) is not None:
            low, high = scales.get(amount.unit, (0.0, 0.0))
            scales[amount.unit] = (min(low, amount.low), max(high, amount.high))
    return {unit: (low, high + 0.04 * (high - low)) for unit, (low, high) in scales.items()}


def _bar(finding: Finding, scales: Mapping[str, tuple[float, float]]) -> Bar | None:
    amount = finding.content.measurement
    if amount is None:
        return None
    start, end = scales[amount.unit]
    span = (end - start) or 1.0
    return Bar(
        low=(amount.low - start) / span,
        value=(amount.value - start) / span,
        high=(amount.high - start) / span,
        words=f"{amount.amount}, {amount.interval}",
    )


def _sentences(report: Mapping[str, Any] | None) -> dict[int, list[str]]:
    used: dict[int, list[str]] = {}
    if report is not None:
        for number in report["impression"]["findings"]:
            used.setdefault(number, []).append("impression")
        for section in report["sections"]:
            for sentence in section["sentences"]:
                for number in sentence["findings"]:
                    used.setdefault(number, []).append(sentence["anchor"])
    return used


def _links(numbers: Sequence[int], findings: Mapping[int, Finding], case_id: str) -> list[Link]:
    links = []
    for number in numbers:
        finding = findings.get(number)
        stands = finding is None or finding.stands
        query = "" if stands else "?show=all"
        note = "" if finding is None or stands else _SAID[finding.state]
        links.append(Link(number=number, url=f"/cases/{case_id}{query}#finding-{number}", note=note))
    return links
