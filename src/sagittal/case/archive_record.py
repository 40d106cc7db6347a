"""The record of one case as JSON, for an archive; and the way back, which believes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from sagittal.case import uses as content_uses
from sagittal.case.record import Case, Event, FindingDraft, Run, Verdict
from sagittal.case.rows import artifact_of, check_text, run_values
from sagittal.core.errors import FormatError, InputError
from sagittal.core.provenance import canonical_json

__all__ = ["FORMAT", "ArchivedCase", "describe", "parse"]

FORMAT = "sagittal case archive 1"

_CASE_ID = re.compile(r"[0-9a-f]{12}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TIME = 40
_SEED = 24

_NUMBER = (int, float)
_PERHAPS_NUMBER = (int, float, type(None))
_RECORD: dict[str, Any] = {"format": str, "case": dict, "runs": list, "findings": list, "uses": list}
_CASE: dict[str, Any] = {"id": str, "label": str, "created": str}
_RUN: dict[str, Any] = {
    "number": int,
    "step": str,
    "version": str,
    "parameters": dict,
    "inputs": list,
    "outputs": list,
    "findings": list,
    "used": list,
    "seed": int,
    "doubt": str,
    "models": dict,
    "environment": dict,
    "started": str,
    "seconds": _NUMBER,
    "author": str,
    "seen": int,
}
_ARTIFACT: dict[str, Any] = {"role": str, "kind": str, "content": str, "parts": list}
_FINDING: dict[str, Any] = {
    "number": int,
    "run": (int, type(None)),
    "author": str,
    "added": str,
    "content": dict,
    "events": list,
}
_CONTENT: dict[str, Any] = {
    "code": str,
    "subject": str,
    "statement": str,
    "measurement": (dict, type(None)),
    "confidence": _PERHAPS_NUMBER,
    "caution": str,
    "details": dict,
}
_MEASUREMENT: dict[str, Any] = {
    "value": _NUMBER,
    "low": _NUMBER,
    "high": _NUMBER,
    "level": _NUMBER,
    "unit": str,
}
_EVENT: dict[str, Any] = {
    "number": int,
    "verdict": str,
    "who": str,
    "when": str,
    "note": str,
    "successor": (int, type(None)),
}


@dataclass(frozen=True, kw_only=True)
class ArchivedCase:
    """A case as the rows that it is to become, checked.

    Attributes:
        id: Id of the case.
        text: The record as canonical JSON, to compare with another.
        case: Columns of the case.
        runs: Columns of its runs.
        findings: Columns of its findings.
        events: Columns of its events, in order.
        uses: Contents that each run refers to, by run.
    """

    id: str
    text: str
    case: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]
    findings: Sequence[Mapping[str, Any]]
    events: Sequence[Mapping[str, Any]]
    uses: Sequence[Sequence[str]]


def describe(case: Case, uses: Mapping[int, Sequence[str]]) -> dict[str, Any]:
    """Return a case as JSON values.

    Args:
        case: The case.
        uses: The contents that each run refers to.
    """
    return {
        "format": FORMAT,
        "case": {"id": case.id, "label": case.label, "created": case.created},
        "runs": [asdict(run) for run in case.runs],
        "findings": [
            {
                "number": finding.number,
                "run": finding.run,
                "author": finding.author,
                "added": finding.added,
                "content": finding.content.to_json(),
                "events": [asdict(event) for event in finding.events],
            }
            for finding in case.findings
        ],
        "uses": [list(uses.get(run.number, ())) for run in case.runs],
    }


def parse(content: bytes, source: Path) -> ArchivedCase:
    """Return the case that a record describes, after checking every type, number and reference.

    Raises:
        FormatError: It is no such record, or contradicts itself.
    """
    try:
        return _parse(json.loads(content, parse_constant=_refuse_constant))
    except FormatError as error:
        raise FormatError(error.problem, source=source, value=error.value, expected=error.expected) from error
    except (InputError, ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise FormatError(f"the record cannot be read: {error}", source=source) from error


def _parse(record: Any) -> ArchivedCase:
    _fields(record, _RECORD, "the record")
    if record["format"] != FORMAT:
        _refuse("another format of archive", record["format"][:80], FORMAT)
    check_text(record, "record")
    case = _fields(record["case"], _CASE, "the case")
    if not _CASE_ID.fullmatch(case["id"]):
        _refuse("this is no id of a case", ascii(case["id"][:80]))
    _length(case["created"], _TIME, "created")
    runs = [_run(value, place, record["uses"]) for place, value in enumerate(record["runs"], start=1)]
    if len(record["uses"]) != len(runs):
        _refuse("not every run says which contents it refers to", len(record["uses"]), str(len(runs)))
    findings = [_finding(value, place, len(runs)) for place, value in enumerate(record["findings"], start=1)]
    _check_whole(runs, findings)
    events = _events(record["findings"])
    for run in runs:
        if not all(type(number) is int and 1 <= number <= len(findings) for number in run.used):
            _refuse(f"run {run.number} used a finding that is not there", run.used)
        if not 0 <= run.seen <= len(events):
            _refuse(f"run {run.number} had seen more events than there are", run.seen)
    return ArchivedCase(
        id=case["id"],
        text=canonical_json(record),
        case=case,
        runs=[run_values(case["id"], run) for run in runs],
        findings=[{**finding, "case_id": case["id"]} for finding in findings],
        events=[{**event, "case_id": case["id"]} for event in events],
        uses=record["uses"],
    )


def _run(value: Any, number: int, uses: Sequence[Any]) -> Run:
    where = f"run {number}"
    _fields(value, _RUN, where)
    _numbered(value, number, where)
    _length(value["started"], _TIME, f"{where}, started")
    _length(str(value["seed"]), _SEED, f"{where}, seed")
    if not all(isinstance(sha256, str) for sha256 in value["models"].values()):
        _refuse(f"{where} does not name its models by their hashes", where)
    for name, found in value["environment"].items():
        if not isinstance(found, str | int) and not _texts(found):
            _refuse(f"{where} says of its environment what cannot be read", ascii(name)[:80])
    for artifact in [*value["inputs"], *value["outputs"]]:
        _fields(artifact, _ARTIFACT, f"{where}, artifact")
    run = replace(
        Run(**value),
        inputs=tuple(map(artifact_of, value["inputs"])),
        outputs=tuple(map(artifact_of, value["outputs"])),
        findings=tuple(value["findings"]),
        used=tuple(value["used"]),
    )
    if not all(isinstance(digest, str) for digest in run.findings):
        _refuse(f"{where} does not name its findings by their hashes", where)
    held = uses[number - 1] if number <= len(uses) else None
    if not isinstance(held, list) or not all(isinstance(d, str) and _DIGEST.fullmatch(d) for d in held):
        _refuse(f"{where} does not say which contents it refers to", where)
    if held != sorted(set(held)) or not set(content_uses.digests(run)) <= set(held):
        _refuse(f"{where} does not say every content that it refers to", where)
    return run


def _finding(value: Any, number: int, runs: int) -> dict[str, Any]:
    where = f"finding {number}"
    _fields(value, _FINDING, where)
    _numbered(value, number, where)
    _length(value["added"], _TIME, f"{where}, added")
    if value["run"] is not None and not 1 <= value["run"] <= runs:
        _refuse(f"{where} comes from a run that is not there", value["run"])
    content = _fields(value["content"], _CONTENT, f"{where}, content")
    if content["measurement"] is not None:
        _fields(content["measurement"], _MEASUREMENT, f"{where}, measurement")
    draft = FindingDraft.from_json(content)
    columns = {name: value[name] for name in ("number", "run", "author", "added", "content")}
    return {**columns, "doubt": draft.doubt, "hash": draft.content_hash}


def _check_whole(runs: Sequence[Run], findings: Sequence[dict[str, Any]]) -> None:
    """Every run has the findings that it says it added, in order, before any that a person put there."""
    by_run: dict[int, list[str]] = {}
    for finding in findings:
        digest = finding.pop("hash")
        if finding["run"] is not None:
            by_run.setdefault(finding["run"], []).append(digest)
    for run in runs:
        if tuple(by_run.get(run.number, ())[: len(run.findings)]) != run.findings:
            _refuse(f"run {run.number} has not the findings that it says it added", len(run.findings))


def _events(findings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the events in order, as the store would have let them happen."""
    said = []
    for finding in findings:
        fallen = False
        for value in finding["events"]:
            where = f"event of finding {finding['number']}"
            _fields(value, _EVENT, where)
            _length(value["when"], _TIME, f"{where}, when")
            event = Event(**{**value, "verdict": Verdict(value["verdict"])})
            replaced = event.successor is not None
            if fallen or (replaced and event.verdict is not Verdict.SUPERSEDED):
                _refuse("a finding that no longer stands, or is not superseded, has a later event", where)
            if replaced and not 1 <= value["successor"] <= len(findings):
                _refuse(f"{where}: its successor is not there", value["successor"])
            fallen = event.verdict is not Verdict.ACCEPTED
            said.append({**value, "finding": finding["number"]})
    said.sort(key=lambda event: event["number"])
    if [event["number"] for event in said] != list(range(1, len(said) + 1)):
        _refuse("the events are not numbered one after another", len(said))
    return said


def _fields(value: Any, kinds: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return ``value`` when it is an object with these fields of these types, and no other field."""
    if not isinstance(value, dict) or set(value) != set(kinds):
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        _refuse(f"{where} has other fields", ascii(found)[:200], ", ".join(sorted(kinds)))
    for name, kind in kinds.items():
        wrong = not isinstance(value[name], kind) or isinstance(value[name], bool)
        if wrong:
            _refuse(f"{where}: {name} is of another type", type(value[name]).__name__)
    return value


def _numbered(value: Mapping[str, Any], number: int, where: str) -> None:
    if value["number"] != number:
        _refuse(f"{where} has another number", value["number"], "numbers without gaps")


def _length(text: str, most: int, where: str) -> None:
    if len(text) > most:
        _refuse(f"{where} is too long", len(text), f"at most {most} characters")


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse(problem: str, value: object, expected: str | None = None) -> NoReturn:
    raise FormatError(problem, value=value, expected=expected)
