"""The audit: one line for each access and change, only ever added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from sagittal.case.rows import check_text, json_value, now
from sagittal.case.schema import AuditRow
from sagittal.core.errors import InputError

__all__ = ["AuditLine", "add", "lines"]

_LONGEST = {"action": 40, "case": 64}


@dataclass(frozen=True, kw_only=True)
class AuditLine:
    """Somebody saw or changed something.

    Attributes:
        number: Order within the store, whatever the clock said.
        when: Time, ISO 8601, UTC.
        who: Who; empty where nobody is known.
        action: What was done.
        case_id: The case it was about, where it was about one.
        detail: JSON values.
    """

    number: int
    when: str
    who: str
    action: str
    case_id: str | None
    detail: Mapping[str, Any]


def add(session: Session, action: str, who: str, case_id: str | None, detail: Mapping[str, Any]) -> None:
    """Add a line in the session's transaction.

    Raises:
        InputError: A text is too long, or holds what no database keeps.
    """
    for name, value in (("action", action), ("case", case_id or "")):
        if len(value) > _LONGEST[name]:
            raise InputError(
                "too long for an audit line",
                source=name,
                value=ascii(value[:80]),
                expected=f"{_LONGEST[name]}",
            )
    check_text([action, who, case_id or ""], "audit line")
    row = AuditRow(
        when=now(), who=who, action=action, case_id=case_id, detail=json_value(detail, "audit line")
    )
    session.add(row)


def lines(session: Session, case_id: str | None, offset: int, limit: int) -> tuple[AuditLine, ...]:
    """Return lines, the newest first, of one case or of all."""
    wanted = select(AuditRow).order_by(AuditRow.number.desc()).offset(offset).limit(limit)
    if case_id is not None:
        check_text(case_id, "case")
        wanted = wanted.where(AuditRow.case_id == case_id)
    return tuple(
        AuditLine(
            number=row.number,
            when=row.when,
            who=row.who,
            action=row.action,
            case_id=row.case_id,
            detail=row.detail,
        )
        for row in session.scalars(wanted)
    )
