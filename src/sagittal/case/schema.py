"""Tables of the case store. Rows of the record are only ever added: triggers refuse updates and deletes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Float, ForeignKey, ForeignKeyConstraint, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["Base", "CaseRow", "EventRow", "FindingRow", "JobRow", "RunRow"]


class Base(DeclarativeBase):
    """Declarative base of the store."""


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
    inputs: Mapped[list[dict[str, str]]] = mapped_column(JSON)
    outputs: Mapped[list[dict[str, str]]] = mapped_column(JSON)
    findings: Mapped[list[str]] = mapped_column(JSON)
    used: Mapped[list[int]] = mapped_column(JSON)
    seed: Mapped[str] = mapped_column(String(24))
    doubt: Mapped[str] = mapped_column(Text)
    models: Mapped[dict[str, str]] = mapped_column(JSON)
    environment: Mapped[dict[str, Any]] = mapped_column(JSON)
    started: Mapped[str] = mapped_column(String(40))
    seconds: Mapped[float] = mapped_column(Float)


class FindingRow(Base):
    """One finding."""

    __tablename__ = "findings"
    __table_args__ = (ForeignKeyConstraint(["case_id", "run"], ["runs.case_id", "runs.number"]),)
    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    run: Mapped[int | None] = mapped_column(Integer)
    author: Mapped[str] = mapped_column(Text)
    added: Mapped[str] = mapped_column(String(40))
    content: Mapped[dict[str, Any]] = mapped_column(JSON)


class EventRow(Base):
    """Somebody's verdict on a finding."""

    __tablename__ = "events"
    __table_args__ = (
        ForeignKeyConstraint(["case_id", "finding"], ["findings.case_id", "findings.number"]),
        ForeignKeyConstraint(["case_id", "successor"], ["findings.case_id", "findings.number"]),
    )
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    case_id: Mapped[str] = mapped_column(ForeignKey("cases.id"))
    finding: Mapped[int] = mapped_column(Integer)
    verdict: Mapped[str] = mapped_column(String(16))
    who: Mapped[str] = mapped_column(Text)
    when: Mapped[str] = mapped_column(String(40))
    note: Mapped[str] = mapped_column(Text)
    successor: Mapped[int | None] = mapped_column(Integer)


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
