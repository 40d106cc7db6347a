"""What the store reads of a case, within one session."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sagittal.case.record import Case, Event, Finding
from sagittal.case.rows import check_text, event_of, finding_of, run_of
from sagittal.case.schema import CaseRow, EventRow, FindingRow, RunRow
from sagittal.case.worklist import stands
from sagittal.core.errors import InputError

__all__ = [
    "FindingPage",
    "case_row",
    "check_part",
    "findings",
    "last",
    "one_finding",
    "outline",
    "whole_case",
]


@dataclass(frozen=True, kw_only=True)
class FindingPage:
    """Part of a case's findings: ``rows`` of ``total``, by number."""

    total: int
    rows: tuple[Finding, ...]


def case_row(session: Session, case_id: str) -> CaseRow:
    """Return the row of a case.

    Raises:
        InputError: There is no such case.
    """
    check_text(case_id, "case")
    row = session.get(CaseRow, case_id)
    if row is None:
        raise InputError(
            "no case has this id",
            source=session.info.get("source"),
            value=case_id,
            expected="'sagittal case list'",
        )
    return row


def outline(session: Session, case_id: str) -> Case:
    """Return a case with all its runs, without its findings."""
    row = case_row(session, case_id)
    runs = session.scalars(select(RunRow).filter_by(case_id=case_id).order_by(RunRow.number))
    return Case(id=row.id, label=row.label, created=row.created, runs=tuple(map(run_of, runs)), findings=())


def whole_case(session: Session, case_id: str) -> Case:
    """Return a case with all its runs, findings and events."""
    case = outline(session, case_id)
    found = session.scalars(select(FindingRow).filter_by(case_id=case_id).order_by(FindingRow.number))
    events = _events(session, case_id)
    findings = tuple(finding_of(finding, events.get(finding.number, [])) for finding in found)
    return replace(case, findings=findings)


def one_finding(session: Session, case_id: str, number: int) -> Finding:
    """Return one finding, without reading the others.

    Raises:
        InputError: There is no such case or finding.
    """
    case_row(session, case_id)
    most = last(session, FindingRow, case_id)
    if not 1 <= number <= most:
        raise InputError("no finding has this number", value=number, expected=f"1 to {most}")
    row = session.get_one(FindingRow, (case_id, number))
    return finding_of(row, _events(session, case_id, number, number).get(number, []))


def findings(session: Session, case_id: str, *, offset: int, limit: int, standing: bool) -> FindingPage:
    """Return a part of a case's findings, without reading the others."""
    case_row(session, case_id)
    wanted = [FindingRow.case_id == case_id, *([stands()] if standing else [])]
    total = session.scalar(select(func.count()).select_from(FindingRow).where(*wanted)) or 0
    rows = session.scalars(
        select(FindingRow).where(*wanted).order_by(FindingRow.number).offset(offset).limit(limit)
    ).all()
    events = _events(session, case_id, rows[0].number, rows[-1].number) if rows else {}
    return FindingPage(total=total, rows=tuple(finding_of(row, events.get(row.number, [])) for row in rows))


def last(session: Session, table: type[RunRow] | type[FindingRow] | type[EventRow], case_id: str) -> int:
    """Return the highest number in a case, 0 where there is none."""
    return session.scalar(select(func.max(table.number)).where(table.case_id == case_id)) or 0


def check_part(offset: int, limit: int) -> None:
    """Refuse a part that begins before the start, or ends before it begins."""
    if offset < 0 or limit < 0:
        raise InputError("no part of a list", value=f"offset {offset}, limit {limit}", expected="0 or more")


def _events(
    session: Session, case_id: str, first: int | None = None, final: int | None = None
) -> dict[int, list[Event]]:
    wanted = select(EventRow).filter_by(case_id=case_id).order_by(EventRow.number)
    if first is not None:
        wanted = wanted.where(EventRow.finding.between(first, final))
    events: dict[int, list[Event]] = {}
    for row in session.scalars(wanted):
        events.setdefault(row.finding, []).append(event_of(row))
    return events
