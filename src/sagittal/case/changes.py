"""What the store writes to a case, within one transaction that holds the case's lock."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from sagittal.case import audit, worklist
from sagittal.case.reading import last, one_finding
from sagittal.case.record import Artifact, Finding, FindingDraft, Run, Verdict
from sagittal.case.rows import check_text, finding_values, now
from sagittal.case.schema import CaseRow, EventRow, FindingRow, RunRow
from sagittal.core.errors import ConflictError, InputError

__all__ = [
    "add_findings",
    "changed",
    "check_author",
    "check_replacements",
    "earlier_drafts",
    "open_case",
    "require_standing",
    "require_unchanged",
    "say",
]


def open_case(session: Session, label: str, who: str) -> str:
    """Add a case and return its id.

    Raises:
        InputError: The label holds a character that no database keeps.
    """
    check_text(label, "label")
    identifier, moment = secrets.token_hex(6), now()
    session.add(CaseRow(id=identifier, label=label, created=moment))
    changed(session, "create-case", who, identifier, {}, moment=moment)
    return identifier


def require_standing(session: Session, case_id: str, number: int, who: str) -> Finding:
    """Return a finding that ``who`` is about to judge.

    Raises:
        InputError: There is no such finding, or nobody is named.
        ConflictError: It no longer stands; the message says who saw to that, and when.
    """
    check_text(who, "who")
    if not who.strip():
        raise InputError("a verdict needs a name", source=f"finding {number}", expected="who says so")
    found = one_finding(session, case_id, number)
    if not found.stands:
        said = found.events[-1]
        raise ConflictError(
            "the finding no longer stands",
            source=f"finding {number}",
            value=f"{found.state} by {said.who}, {said.when}",
        )
    return found


def require_unchanged(session: Session, case_id: str, base: Artifact) -> None:
    """Refuse to build on an artifact that is no longer the case's latest of its role.

    Raises:
        ConflictError: The message says who changed it, and when.
    """
    columns = (RunRow.outputs, RunRow.author, RunRow.step, RunRow.started)
    runs = select(*columns).filter_by(case_id=case_id).order_by(RunRow.number.desc())
    for outputs, author, step, started in session.execute(runs):
        for output in outputs:
            if output["role"] != base.role:
                continue
            if output["content"] == base.content:
                return
            raise ConflictError(
                f"{base.role} was changed meanwhile",
                source=f"case {case_id}",
                value=f"a change by {author or step}, {started}",
                expected="a change of what is there now",
            )
    raise ConflictError("the case has no such artifact", source=f"case {case_id}", value=base.role)


def check_author(author: str | None) -> None:
    """Refuse an author without a name; None is the step itself.

    Raises:
        InputError: The name is empty, or holds what no database keeps.
    """
    if author is not None:
        check_text(author, "author")
        if not author.strip():
            raise InputError("an author needs a name", source="author", expected="who made the run")


def check_replacements(replaces: Mapping[int, int], findings: int) -> None:
    """Refuse what does not give each finding that is replaced one of the ``findings`` new ones.

    Raises:
        InputError: A place that is none, or a number twice.
    """
    known = all(0 <= place < findings for place in replaces)
    if not known or len(set(replaces.values())) < len(replaces):
        raise InputError(
            "not every replacement is one finding for one",
            source="replaces",
            value=dict(replaces),
            expected=f"places below {findings}, each with a number of its own",
        )


def earlier_drafts(session: Session, case_id: str, run: Run) -> dict[int, tuple[str, str]]:
    """Return the drafts that earlier runs of the same step for the same roles left.

    Returns:
        Their numbers, each with code and subject.
    """
    roles = [output.role for output in run.outputs]
    columns = (RunRow.number, RunRow.step, RunRow.version, RunRow.outputs)
    runs = {
        number: f"{step} {version}"
        for number, step, version, outputs in session.execute(
            select(*columns).filter_by(case_id=case_id, step=run.step)
        )
        if [output["role"] for output in outputs] == roles
    }
    judged = select(EventRow.finding).filter_by(case_id=case_id)
    drafts = select(FindingRow.number, FindingRow.run, FindingRow.author, FindingRow.content).where(
        FindingRow.case_id == case_id, FindingRow.run.in_(runs), FindingRow.number.not_in(judged)
    )
    return {
        number: (content["code"], content["subject"])
        for number, made_by, author, content in session.execute(drafts.order_by(FindingRow.number))
        if author == runs[made_by]
    }


def add_findings(
    session: Session, case_id: str, run: int | None, author: str, drafts: Sequence[FindingDraft]
) -> int:
    """Add findings; return the number of the first."""
    first = last(session, FindingRow, case_id) + 1
    rows = [finding_values(case_id, first + place, run, author, draft) for place, draft in enumerate(drafts)]
    if rows:
        session.execute(insert(FindingRow), rows)
    return first


def say(
    session: Session,
    case_id: str,
    findings: Iterable[tuple[int, int | None]],
    verdict: Verdict,
    who: str,
    note: str,
) -> None:
    """Add an event for each finding: its number, and the number of its successor."""
    check_text(note, "note")
    first, moment = last(session, EventRow, case_id) + 1, now()
    rows = [
        {
            "case_id": case_id,
            "number": first + place,
            "finding": number,
            "verdict": verdict.value,
            "who": who,
            "when": moment,
            "note": note,
            "successor": successor,
        }
        for place, (number, successor) in enumerate(findings)
    ]
    if rows:
        session.execute(insert(EventRow), rows)


def changed(
    session: Session,
    action: str,
    who: str,
    case_id: str,
    detail: Mapping[str, Any],
    *,
    moment: str | None = None,
) -> None:
    """End a change of a case: its line in the audit, and its summary in the worklist."""
    audit.add(session, action, who, case_id, detail)
    worklist.refresh(session, case_id, moment or now())
