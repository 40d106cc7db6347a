"""Tables of the case store. Rows of the record are only ever added: triggers refuse updates and deletes.

``case_summaries`` and ``jobs`` are no part of it and are changed: the one repeats what the record says, for
the worklist, and can be made again; the other says what batches have to do.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    Text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = [
    "AuditRow",
    "Base",
    "CaseRow",
    "ContentRow",
    "ContentUseRow",
    "EventRow",
    "FindingRow",
    "JobRow",
    "RunRow",
    "StoreRow",
    "SummaryRow",
]

_SORTED = Text().with_variant(Text(collation="C"), "postgresql")


class Base(DeclarativeBase):
    """Declarative base of the store."""


class StoreRow(Base):
    """The store itself: one row."""

    __tablename__ = "store"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)


class CaseRow(Base):
    """One patient's case."""

    __tablename__ = "cases"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    label: Mapped[str] = mapped_column(Text)
    created: Mapped[str] = mapped_column(String(40))


class RunRow(Base):
    """One execution of a step."""

    __tablename__ = "runs"
    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    step: Mapped[str] = mapped_column(Text)
    version: Mapped[str] = mapped_column(Text)
    parameters: Mapped[dict[str, Any]] = mapped_column(JSON)
    inputs: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    outputs: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    findings: Mapped[list[str]] = mapped_column(JSON)
    used: Mapped[list[int]] = mapped_column(JSON)
    seed: Mapped[str] = mapped_column(String(24))
    doubt: Mapped[str] = mapped_column(Text)
    models: Mapped[dict[str, str]] = mapped_column(JSON)
    environment: Mapped[dict[str, Any]] = mapped_column(JSON)
    started: Mapped[str] = mapped_column(String(40))
    seconds: Mapped[float] = mapped_column(Float)
    author: Mapped[str] = mapped_column(Text)
    seen: Mapped[int] = mapped_column(Integer)


class FindingRow(Base):
    """One finding; ``doubt`` repeats what its content says, so that the database can order by it."""

    __tablename__ = "findings"
    __table_args__ = (
        ForeignKeyConstraint(["case_id", "run"], ["runs.case_id", "runs.number"]),
        Index("findings_by_run", "case_id", "run"),
        Index("findings_by_doubt", "case_id", "doubt"),
    )
    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    run: Mapped[int | None] = mapped_column(Integer)
    author: Mapped[str] = mapped_column(Text)
    added: Mapped[str] = mapped_column(String(40))
    content: Mapped[dict[str, Any]] = mapped_column(JSON)
    doubt: Mapped[float | None] = mapped_column(Float)


class EventRow(Base):
    """Somebody's verdict on a finding; ``number`` counts within the case, whatever the clock says."""

    __tablename__ = "events"
    __table_args__ = (
        ForeignKeyConstraint(["case_id", "finding"], ["findings.case_id", "findings.number"]),
        ForeignKeyConstraint(["case_id", "successor"], ["findings.case_id", "findings.number"]),
        Index("events_by_number", "case_id", "number", unique=True),
        Index("events_by_finding", "case_id", "finding"),
    )
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id"))
    number: Mapped[int] = mapped_column(Integer)
    finding: Mapped[int] = mapped_column(Integer)
    verdict: Mapped[str] = mapped_column(String(16))
    who: Mapped[str] = mapped_column(Text)
    when: Mapped[str] = mapped_column(String(40))
    note: Mapped[str] = mapped_column(Text)
    successor: Mapped[int | None] = mapped_column(Integer)


class ContentRow(Base):
    """A content that a run refers to; ``bytes`` is null where it was gone when it was first counted."""

    __tablename__ = "contents"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    bytes: Mapped[int | None] = mapped_column(BigInteger)


class ContentUseRow(Base):
    """A run refers to a content. How often a content is used is how many rows there are, never a number."""

    __tablename__ = "content_uses"
    __table_args__ = (
        ForeignKeyConstraint(["case_id", "run"], ["runs.case_id", "runs.number"]),
        Index("content_uses_by_digest", "digest"),
    )
    case_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    run: Mapped[int] = mapped_column(Integer, primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("contents.digest"), primary_key=True)


class AuditRow(Base):
    """Somebody saw or changed something. ``case_id`` may name a case that is not there: asking counts."""

    __tablename__ = "audit"
    __table_args__ = (Index("audit_by_case", "case_id", "number"),)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    when: Mapped[str] = mapped_column(String(40))
    who: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(String(40))
    case_id: Mapped[str | None] = mapped_column(String(64))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)


class SummaryRow(Base):
    """What the worklist shows of a case: derived from the record, changed with it in one transaction."""

    __tablename__ = "case_summaries"
    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id"), primary_key=True)
    search: Mapped[str] = mapped_column(_SORTED)
    created: Mapped[str] = mapped_column(String(40))
    changed: Mapped[str] = mapped_column(String(40))
    state: Mapped[str] = mapped_column(String(16))
    findings: Mapped[int] = mapped_column(Integer)
    undecided: Mapped[int] = mapped_column(Integer)
    doubt: Mapped[float | None] = mapped_column(Float)
    worst: Mapped[str] = mapped_column(Text)


class JobRow(Base):
    """One job of a batch; its row changes as work goes on, for it is no part of the record."""

    __tablename__ = "jobs"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    batch: Mapped[str] = mapped_column(String(12))
    sources: Mapped[list[str]] = mapped_column(JSON)
    steps: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    case_id: Mapped[str | None] = mapped_column(ForeignKey("cases.id"))
    state: Mapped[str] = mapped_column(String(8))
    attempts: Mapped[int] = mapped_column(Integer)
    worker: Mapped[str] = mapped_column(Text)
    beat: Mapped[int] = mapped_column(Integer)
    started: Mapped[str] = mapped_column(String(40))
    seconds: Mapped[float | None] = mapped_column(Float)
    error: Mapped[str] = mapped_column(Text)
