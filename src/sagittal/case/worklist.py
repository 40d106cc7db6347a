"""The worklist: what a reader has to see of each case, kept beside the record and made from it.

A summary is written in the same transaction as the change it follows from, out of the record and never
out of the summary before, so that it cannot drift. It costs a count over the case's events, not over its
findings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, exists, func, select
from sqlalchemy.orm import Session

from sagittal.case.record import Verdict
from sagittal.case.schema import CaseRow, EventRow, FindingRow, RunRow, SummaryRow
from sagittal.core.errors import InputError

__all__ = ["ORDERS", "STATES", "CaseSummary", "Worklist", "listed", "rebuild", "refresh", "stands", "summary"]

STATES = ("empty", "open", "reviewed")
"""A case without findings, one with drafts, and one with findings of which none is a draft."""

_ORDERS: dict[str, tuple[Any, ...]] = {
    "doubt": (SummaryRow.doubt.is_(None), SummaryRow.doubt.desc()),
    "changed": (SummaryRow.changed.desc(),),
    "created": (SummaryRow.created.desc(),),
    "label": (SummaryRow.search,),
}

ORDERS = tuple(_ORDERS)
"""Worst doubt first, changed last first, created last first, or by label."""


@dataclass(frozen=True, kw_only=True)
class CaseSummary:
    """One line of the worklist.

    Attributes:
        id: Id of the case.
        label: Its label.
        created: Time it was opened, ISO 8601, UTC.
        changed: Time of its last change; never earlier than the change before, whatever the clock says.
        state: One of :data:`STATES`.
        findings: How many findings stand.
        undecided: How many of them are drafts.
        doubt: The largest doubt of a finding that stands, in [0, 1]; None when none says any.
        worst: Statement of that finding.
    """

    id: str
    label: str
    created: str
    changed: str
    state: str
    findings: int
    undecided: int
    doubt: float | None
    worst: str


@dataclass(frozen=True, kw_only=True)
class Worklist:
    """Part of the worklist: ``rows`` of the ``total`` cases that were asked for."""

    total: int
    rows: tuple[CaseSummary, ...]


def stands() -> ColumnElement[bool]:
    """The condition that a finding stands. One that does not gets no further event."""
    return ~exists().where(
        EventRow.case_id == FindingRow.case_id,
        EventRow.finding == FindingRow.number,
        EventRow.verdict.in_([Verdict.REJECTED.value, Verdict.SUPERSEDED.value]),
    )


def listed(
    session: Session, *, search: str, state: str | None, order: str, offset: int, limit: int
) -> Worklist:
    """Return the part of the worklist that was asked for.

    Raises:
        InputError: No such state or order, or a negative offset or limit.
    """
    if state is not None and state not in STATES:
        raise InputError("no case has this state", value=state, expected=f"one of {', '.join(STATES)}")
    if order not in _ORDERS:
        raise InputError("there is no such order", value=order, expected=f"one of {', '.join(_ORDERS)}")
    wanted: list[ColumnElement[bool]] = [] if state is None else [SummaryRow.state == state]
    wanted += [SummaryRow.search.contains(word, autoescape=True) for word in search.casefold().split()]
    total = session.scalar(select(func.count()).select_from(SummaryRow).where(*wanted)) or 0
    page = (
        select(SummaryRow.case_id)
        .where(*wanted)
        .order_by(*_ORDERS[order], SummaryRow.case_id)
        .offset(offset)
        .limit(limit)
        .subquery()
    )
    rows = session.execute(
        select(SummaryRow, CaseRow.label)
        .join(page, page.c.case_id == SummaryRow.case_id)
        .join(CaseRow, CaseRow.id == SummaryRow.case_id)
        .order_by(*_ORDERS[order], SummaryRow.case_id)
    )
    return Worklist(total=total, rows=tuple(_summary(row, label) for row, label in rows))


def summary(session: Session, case_id: str) -> CaseSummary:
    """Return the line of a case that exists."""
    row, label = session.execute(
        select(SummaryRow, CaseRow.label)
        .join(CaseRow, CaseRow.id == SummaryRow.case_id)
        .where(SummaryRow.case_id == case_id)
    ).one()
    return _summary(row, label)


def refresh(session: Session, case_id: str, moment: str) -> None:
    """Write the summary of a case again, which changed at ``moment``; the caller holds the case's lock."""
    session.flush()
    case = session.get_one(CaseRow, case_id)
    mine = FindingRow.case_id == case_id
    total = session.scalar(select(func.max(FindingRow.number)).where(mine)) or 0
    judged, fallen = session.execute(
        select(
            func.count(EventRow.finding.distinct()),
            func.count().filter(EventRow.verdict.in_([Verdict.REJECTED.value, Verdict.SUPERSEDED.value])),
        ).where(EventRow.case_id == case_id)
    ).one()
    worst = session.execute(
        select(FindingRow.doubt, FindingRow.content)
        .where(mine, FindingRow.doubt.is_not(None), stands())
        .order_by(FindingRow.doubt.desc(), FindingRow.number)
        .limit(1)
    ).one_or_none()
    row = session.get(SummaryRow, case_id)
    if row is None:
        row = SummaryRow(case_id=case_id, created=case.created, changed=case.created)
        row.search = f"{case.label.casefold()} {case_id}"
        session.add(row)
    row.changed = max(row.changed, moment)
    row.state = "empty" if not total else "open" if judged < total else "reviewed"
    row.findings, row.undecided = total - fallen, total - judged
    row.doubt, row.worst = (worst[0], worst[1]["statement"]) if worst else (None, "")
    session.flush()


def rebuild(session: Session) -> None:
    """Write the summary of every case again from the record; the caller holds the store's lock."""
    session.execute(delete(SummaryRow))
    for case in session.scalars(select(CaseRow)).all():
        last = [
            session.scalar(select(func.max(column)).where(table.case_id == case.id))
            for table, column in (
                (RunRow, RunRow.started),
                (FindingRow, FindingRow.added),
                (EventRow, EventRow.when),
            )
        ]
        refresh(session, case.id, max(case.created, *(moment for moment in last if moment)))


def _summary(row: SummaryRow, label: str) -> CaseSummary:
    return CaseSummary(
        id=row.case_id,
        label=label,
        created=row.created,
        changed=row.changed,
        state=row.state,
        findings=row.findings,
        undecided=row.undecided,
        doubt=row.doubt,
        worst=row.worst,
    )
