"""The case store: findings, runs and verdicts in SQLite, contents on disk by their hash.

A folder with ``cases.sqlite`` and ``objects/``. A run enters with its findings in one transaction,
after the contents it refers to are on disk; whatever interrupts it, the record holds the whole run
or nothing of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from sagittal.case.objects import ObjectStore
from sagittal.case.record import Artifact, Case, Event, Finding, FindingDraft, FindingState, Run, Verdict
from sagittal.case.schema import CaseRow, EventRow, FindingRow, RunRow
from sagittal.core.errors import InputError, StorageError
from sagittal.core.files import storage_errors
from sagittal.core.provenance import canonical_json

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["CaseStore"]


class CaseStore:
    """A folder of cases.

    Args:
        folder: The store; made when it does not exist, unless ``read_only``.
        read_only: Open it for reading; anything that would write raises.

    Raises:
        StorageError: The folder cannot be written, or its database is damaged or of another version.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.folder = Path(folder)
        self.read_only = read_only
        self.path = self.folder / "cases.sqlite"
        self.objects = ObjectStore(self.folder / "objects")
        if not read_only:
            with storage_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                self.folder.chmod(self.folder.stat().st_mode & 0o700)  # its owner's alone
        elif not self.path.is_file():
            raise StorageError("there is no case store here", source=self.folder, expected="a cases.sqlite")
        self._engine = _engine(self.path, read_only=read_only)
        with self._errors():
            if not read_only:
                self._migrate()
            with self._engine.connect() as connection:
                verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
                found, wanted = self._versions(connection)
        if verdict != "ok":
            raise StorageError("the database is damaged", source=self.path, value=verdict)
        if found != wanted:
            raise StorageError(
                "the store is of another version", source=self.path, value=found, expected=wanted
            )

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()

    def __enter__(self) -> CaseStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def create_case(self, label: str) -> str:
        """Open a new case and return its id. ``label`` should identify nobody."""
        identifier = secrets.token_hex(6)
        with self._transaction() as session:
            session.add(CaseRow(id=identifier, label=label, created=_now()))
        return identifier

    def case_ids(self) -> list[str]:
        """Return the ids of all cases, oldest first."""
        with self._errors(), Session(self._engine) as session:
            return list(session.scalars(select(CaseRow.id).order_by(CaseRow.created, CaseRow.id)))

    def case(self, case_id: str) -> Case:
        """Return the case as it stands now.

        Raises:
            InputError: There is no such case.
        """
        with self._errors(), Session(self._engine) as session:
            return self._load(session, case_id)

    def finding(self, case_id: str, number: int) -> Finding:
        """Return one finding of a case.

        Raises:
            InputError: There is no such case or finding.
        """
        return _numbered(self.case(case_id).findings, number)

    def add_run(self, case_id: str, run: Run, findings: Sequence[FindingDraft], *, once: bool = False) -> Run:
        """Add a run and its findings in one transaction; return the run with its number.

        Drafts that an earlier run of the same step for the same roles left are superseded by the new
        findings of the same code and subject, or without a successor where there is none. What a person
        has accepted, rejected or written stays as that person left it.

        With ``once``, a run that :meth:`~sagittal.case.record.Case.repeated` finds in the case is
        returned, and nothing is written.
        """
        author = f"{run.step} {run.version}"
        with self._transaction() as session:
            before = self._load(session, case_id)
            if once and (done := before.repeated(run)) is not None:
                return done
            number = self._next(session, RunRow, case_id)
            numbered = replace(run, number=number, findings=tuple(f.content_hash for f in findings))
            values = json.loads(canonical_json(asdict(numbered)))
            values["seed"] = str(run.seed)
            session.add(RunRow(case_id=case_id, **values))
            session.flush()
            first = self._next(session, FindingRow, case_id)
            successors = {}
            for offset, draft in enumerate(findings):
                session.add(_finding_row(case_id, first + offset, number, author, draft))
                successors[draft.code, draft.subject] = first + offset
            session.flush()
            roles = [output.role for output in run.outputs]
            earlier = {
                r.number: f"{r.step} {r.version}"
                for r in before.runs
                if r.step == run.step and [output.role for output in r.outputs] == roles
            }
            for old in before.findings:
                if old.state is FindingState.DRAFT and old.run in earlier and old.author == earlier[old.run]:
                    successor = successors.get((old.content.code, old.content.subject))
                    session.add(
                        _event_row(case_id, old.number, Verdict.SUPERSEDED, author, "run again", successor)
                    )
        return numbered

    def judge(self, case_id: str, number: int, verdict: Verdict, *, who: str, note: str = "") -> None:
        """Accept or reject a finding.

        Raises:
            InputError: No such finding, it no longer stands, nobody is named, or the verdict is
                ``superseded``, for which :meth:`supersede` asks what takes its place.
        """
        if verdict is Verdict.SUPERSEDED:
            raise InputError("a finding is superseded by another one", expected="CaseStore.supersede")
        with self._transaction() as session:
            self._standing(session, case_id, number, who)
            session.add(_event_row(case_id, number, verdict, who, note, None))

    def supersede(
        self, case_id: str, number: int, draft: FindingDraft, *, who: str, note: str = ""
    ) -> Finding:
        """Put a person's finding in the place of another one; the old one stays in the record."""
        with self._transaction() as session:
            old = self._standing(session, case_id, number, who)
            successor = self._next(session, FindingRow, case_id)
            session.add(_finding_row(case_id, successor, old.run, who, draft))
            session.flush()
            session.add(_event_row(case_id, number, Verdict.SUPERSEDED, who, note, successor))
        return self.case(case_id).findings[successor - 1]

    def _load(self, session: Session, case_id: str) -> Case:
        row = session.get(CaseRow, case_id)
        if row is None:
            raise InputError(
                "no case has this id", source=self.path, value=case_id, expected="'sagittal case list'"
            )
        mine = {"case_id": case_id}
        runs = session.scalars(select(RunRow).filter_by(**mine).order_by(RunRow.number))
        findings = session.scalars(select(FindingRow).filter_by(**mine).order_by(FindingRow.number))
        verdicts: dict[int, list[Event]] = {}
        for said in session.scalars(select(EventRow).filter_by(**mine).order_by(EventRow.id)):
            verdicts.setdefault(said.finding, []).append(_event(said))
        return Case(
            id=row.id,
            label=row.label,
            created=row.created,
            runs=tuple(_run(run) for run in runs),
            findings=tuple(_finding(found, verdicts.get(found.number, [])) for found in findings),
        )

    def _standing(self, session: Session, case_id: str, number: int, who: str) -> Finding:
        if not who.strip():
            raise InputError("a verdict needs a name", source=f"finding {number}", expected="who says so")
        found = _numbered(self._load(session, case_id).findings, number)
        if not found.stands:
            raise InputError("the finding no longer stands", source=f"finding {number}", value=found.state)
        return found

    def _next(self, session: Session, table: type[RunRow] | type[FindingRow], case_id: str) -> int:
        last = session.scalar(select(func.max(table.number)).where(table.case_id == case_id))
        return (last or 0) + 1

    def _migrate(self) -> None:
        from alembic import command
        from alembic.util import CommandError

        with self._engine.connect() as connection:
            found, wanted = self._versions(connection)
        if found == wanted:
            return
        config = _migrations()
        try:
            with self._engine.begin() as connection:
                # One lock and one transaction: a second process waits, and a killed one leaves nothing.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as error:
            raise StorageError(
                "the store is of another version", source=self.path, value=found, expected=wanted
            ) from error

    def _versions(self, connection: Connection) -> tuple[str | None, str | None]:
        """The version of the tables in the store, and the version that this code reads."""
        from alembic.migration import MigrationContext
        from alembic.script import ScriptDirectory

        found = MigrationContext.configure(connection).get_current_revision()
        return found, ScriptDirectory.from_config(_migrations()).get_current_head()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Session]:
        if self.read_only:
            raise StorageError("the store was opened read-only", source=self.path)
        with self._errors(), Session(self._engine) as session, session.begin():
            # Take the write lock before the next number is read, so that two writers never share one.
            session.connection().exec_driver_sql("BEGIN IMMEDIATE")
            yield session

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OperationalError as error:
            reason = str(error.orig)
            expected = next((hint for word, hint in _HINTS.items() if word in reason), None)
            raise StorageError(
                f"the case store refuses: {reason}", source=self.path, expected=expected
            ) from error
        except IntegrityError as error:
            raise StorageError(f"the case store refuses: {error.orig}", source=self.path) from error
        except DatabaseError as error:
            raise StorageError(f"the database is damaged: {error.orig}", source=self.path) from error


_HINTS = {
    "full": "free space, or another folder",
    "readonly": "a folder that can be written",
    "unable to open": "a folder that can be read and written",
    "locked": "the other writer to finish",
}


def _migrations() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def _engine(path: Path, *, read_only: bool) -> Engine:
    # On a medium that cannot be written, SQLite cannot make the files that WAL needs beside the database.
    # Where one was copied along, what it holds belongs to the record: it must be read, not passed over.
    log = path.with_name(f"{path.name}-wal")
    sealed = read_only and not os.access(path.parent, os.W_OK) and not (log.exists() and log.stat().st_size)
    mode = ("ro" if read_only else "rwc") + ("&immutable=1" if sealed else "")

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=30, isolation_level=None
        )

    engine = create_engine("sqlite://", creator=connect)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA foreign_keys=ON")
        if not read_only:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")

    return engine


def _numbered(findings: Sequence[Finding], number: int) -> Finding:
    if not 1 <= number <= len(findings):
        raise InputError("no finding has this number", value=number, expected=f"1 to {len(findings)}")
    return findings[number - 1]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _run(row: RunRow) -> Run:
    return Run(
        number=row.number,
        step=row.step,
        version=row.version,
        parameters=row.parameters,
        inputs=tuple(Artifact(**artifact) for artifact in row.inputs),
        outputs=tuple(Artifact(**artifact) for artifact in row.outputs),
        findings=tuple(row.findings),
        used=tuple(row.used),
        seed=int(row.seed),
        doubt=row.doubt,
        models=row.models,
        environment=row.environment,
        started=row.started,
        seconds=row.seconds,
    )


def _finding(row: FindingRow, events: Sequence[Event]) -> Finding:
    return Finding(
        number=row.number,
        run=row.run,
        author=row.author,
        added=row.added,
        content=FindingDraft.from_json(row.content),
        events=tuple(events),
    )


def _finding_row(case_id: str, number: int, run: int | None, author: str, draft: FindingDraft) -> FindingRow:
    content = json.loads(canonical_json(draft.to_json()))  # what JSON cannot say is refused here
    return FindingRow(case_id=case_id, number=number, run=run, author=author, added=_now(), content=content)


def _event(row: EventRow) -> Event:
    return Event(
        verdict=Verdict(row.verdict), who=row.who, when=row.when, note=row.note, successor=row.successor
    )


def _event_row(
    case_id: str, finding: int, verdict: Verdict, who: str, note: str, successor: int | None
) -> EventRow:
    return EventRow(
        case_id=case_id,
        finding=finding,
        verdict=verdict.value,
        who=who,
        when=_now(),
        note=note,
        successor=successor,
    )
