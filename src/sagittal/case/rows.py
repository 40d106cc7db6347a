"""Rows of the tables, and the values of the record that they stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

from sagittal.case.record import Artifact, Event, Finding, FindingDraft, Run, Verdict
from sagittal.case.schema import EventRow, FindingRow, RunRow
from sagittal.core.errors import InputError
from sagittal.core.provenance import canonical_json

__all__ = [
    "check_text",
    "event_of",
    "finding_of",
    "finding_values",
    "json_value",
    "now",
    "run_of",
    "run_values",
]


def now() -> str:
    """Return the time, ISO 8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def check_text(value: Any, source: str) -> None:
    """Refuse text that a database cannot keep as it is, anywhere in a JSON value.

    Raises:
        InputError: It holds the character NUL, or half a surrogate pair.
    """
    if isinstance(value, str):
        if "\0" in value:
            raise InputError("the text holds the character NUL", source=source, value=ascii(value[:80]))
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                "the text holds half a surrogate pair", source=source, value=ascii(value[:80])
            ) from error
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_text(key, source)
            check_text(item, source)
    elif isinstance(value, list | tuple):
        for item in value:
            check_text(item, source)


def json_value(value: Any, source: str) -> Any:
    """Return ``value`` as JSON would give it back.

    Raises:
        InputError: JSON, or a database, cannot say it.
    """
    result = json.loads(canonical_json(value))
    check_text(result, source)
    return result


def run_values(case_id: str, run: Run) -> dict[str, Any]:
    """Return the columns of a run."""
    return {"case_id": case_id, **json_value(asdict(run), f"run of {run.step}"), "seed": str(run.seed)}


def run_of(row: RunRow) -> Run:
    """Return the run that a row stands for."""
    values = {field.name: getattr(row, field.name) for field in fields(Run)}
    return Run(
        **{
            **values,
            "inputs": tuple(map(artifact_of, row.inputs)),
            "outputs": tuple(map(artifact_of, row.outputs)),
            "findings": tuple(row.findings),
            "used": tuple(row.used),
            "seed": int(row.seed),
        }
    )


def artifact_of(value: Mapping[str, Any]) -> Artifact:
    """Rebuild an artifact; one of an older store names no parts."""
    return Artifact(**{**value, "parts": tuple(value.get("parts", ()))})


def finding_values(
    case_id: str, number: int, run: int | None, author: str, draft: FindingDraft
) -> dict[str, Any]:
    """Return the columns of a new finding."""
    return {
        "case_id": case_id,
        "number": number,
        "run": run,
        "author": author,
        "added": now(),
        "content": json_value(draft.to_json(), f"finding {draft.code}"),
        "doubt": draft.doubt,
    }


def finding_of(row: FindingRow, events: Sequence[Event] = ()) -> Finding:
    """Return the finding that a row and its events stand for."""
    return Finding(
        number=row.number,
        run=row.run,
        author=row.author,
        added=row.added,
        content=FindingDraft.from_json(row.content),
        events=tuple(events),
    )


def event_of(row: EventRow) -> Event:
    """Return the event that a row stands for."""
    return Event(
        number=row.number,
        verdict=Verdict(row.verdict),
        who=row.who,
        when=row.when,
        note=row.note,
        successor=row.successor,
    )
