"""The case store: findings, runs and verdicts in a database, contents on disk by their hash.

By default a folder with ``cases.sqlite`` and ``objects/``; or a PostgreSQL database, by URL, with its
contents in a folder. A run enters with its findings in one transaction, after the contents it refers to are
on disk; whatever interrupts it, the record holds the whole run or nothing of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from sagittal.case import audit, uses, worklist
from sagittal.case.audit import AuditLine
from sagittal.case.engines import Database, PostgreSQL, SQLite, is_url
from sagittal.case.objects import ObjectStore
from sagittal.case.record import Artifact, Case, Event, Finding, FindingDraft, Run, Verdict
from sagittal.case.rows import check_text, event_of, finding_of, finding_values, now, run_of, run_values
from sagittal.case.schema import CaseRow, EventRow, FindingRow, RunRow, StoreRow
from sagittal.case.upgrade import require, upgrade
from sagittal.case.worklist import CaseSummary, Worklist
from sagittal.core.errors import ConflictError, InputError, StorageError
from sagittal.core.files import storage_errors, write_text
from sagittal.core.places import data_folder

__all__ = ["CaseStore", "FindingPage"]

_MARK = "store-id"


@dataclass(frozen=True, kw_only=True)
class FindingPage:
    """Part of a case's findings: ``rows`` of ``total``, by number."""

    total: int
    rows: tuple[Finding, ...]


class CaseStore:
    """A store of cases. Several threads may share it; each process opens its own.

    Args:
        location: A folder, made when it does not exist unless ``read_only``; or ``postgresql://…``, an empty
            database or one that holds a store.
        objects: Folder of the contents; by default ``objects`` in the folder, or for PostgreSQL a folder in
            the data folder, named after the store's id.
        read_only: Open it for reading; anything that would write raises.

    Attributes:
        location: Where it was opened, as given; it may hold a password.
        objects: The contents.
        id: Id of the store, which the folder of contents knows too.

    Raises:
        StorageError: The place cannot be read or written, its database is damaged or of another version, or
            the contents belong to another store.
        InputError: The URL cannot be read.
        MissingDependencyError: The driver of PostgreSQL is not installed.
    """

    def __init__(
        self,
        location: Path | str,
        *,
        objects: Path | None = None,
        read_only: bool = False,
        _store_id: str | None = None,
    ) -> None:
        self.location, self.read_only = str(location), read_only
        remote = is_url(self.location)
        self.folder = None if remote else Path(location)
        self._database: Database = (
            SQLite(self.folder / "cases.sqlite", read_only=read_only)
            if self.folder is not None
            else PostgreSQL(self.location, read_only=read_only)
        )
        default = self.folder / "objects" if self.folder is not None else None
        self._database.prepare()
        try:
            with self._database.errors():
                if not read_only:
                    upgrade(self._database, {"objects": objects or default, "store_id": _store_id})
                with self._database.engine.connect() as connection:
                    problem = self._database.check(connection)
                    if problem is not None:
                        raise StorageError(
                            "the database is damaged", source=self._database.source, value=problem
                        )
                    require(self._database, connection)
                    self.id = str(connection.execute(select(StoreRow.id)).scalar_one())
            self.objects = ObjectStore(objects or default or data_folder() / f"objects-{self.id}")
            if self.objects.folder != default:
                self._know_each_other(self.objects.folder / _MARK)
        except BaseException:
            self._database.close()
            raise

    @property
    def source(self) -> str:
        """The database's path or URL for messages, without a password."""
        return self._database.source

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def __enter__(self) -> CaseStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # Cases

    def create_case(self, label: str, *, who: str = "") -> str:
        """Open a new case and return its id. ``label`` should identify nobody.

        Raises:
            InputError: The label holds a character that no database keeps.
        """
        check_text(label, "label")
        identifier, moment = secrets.token_hex(6), now()
        with self._database.writing() as session:
            session.add(CaseRow(id=identifier, label=label, created=moment))
            self._changed(session, "create-case", who, identifier, {}, moment)
        return identifier

    def case_ids(self) -> list[str]:
        """Return the ids of all cases, oldest first."""
        with self._database.reading() as session:
            return list(session.scalars(select(CaseRow.id).order_by(CaseRow.created, CaseRow.id)))

    def case(self, case_id: str) -> Case:
        """Return the case as it stands now, whole.

        Raises:
            InputError: There is no such case.
        """
        with self._database.reading() as session:
            return self._load(session, case_id)

    def outline(self, case_id: str) -> tuple[Case, CaseSummary]:
        """Return a case with its runs and without its findings, and its line of the worklist.

        Quick, however many findings there are.

        Raises:
            InputError: There is no such case.
        """
        with self._database.reading() as session:
            row = self._case_row(session, case_id)
            runs = session.scalars(select(RunRow).filter_by(case_id=case_id).order_by(RunRow.number))
            case = Case(
                id=row.id,
                label=row.label,
                created=row.created,
                runs=tuple(run_of(run) for run in runs),
                findings=(),
            )
            return case, worklist.summary(session, case_id)

    def worklist(
        self,
        *,
        search: str = "",
        state: str | None = None,
        order: str = "doubt",
        offset: int = 0,
        limit: int = 50,
    ) -> Worklist:
        """Return a part of the worklist.

        Args:
            search: Words that all occur in the label or the id; case does not matter.
            state: One of :data:`~sagittal.case.worklist.STATES`, or None for all.
            order: One of :data:`~sagittal.case.worklist.ORDERS`.
            offset: Cases to pass over.
            limit: Most cases to return.

        Raises:
            InputError: No such state or order, or a negative offset or limit.
        """
        _check_part(offset, limit)
        check_text(search, "search")
        with self._database.reading() as session:
            return worklist.listed(
                session, search=search, state=state, order=order, offset=offset, limit=limit
            )

    def rebuild_worklist(self) -> None:
        """Make the worklist again from the record. Nothing that the store does should make this needed."""
        with self._database.writing(alone=True) as session:
            worklist.rebuild(session)

    # Findings

    def finding(self, case_id: str, number: int) -> Finding:
        """Return one finding of a case.

        Raises:
            InputError: There is no such case or finding.
        """
        with self._database.reading() as session:
            return self._finding(session, case_id, number)

    def findings(
        self, case_id: str, *, offset: int = 0, limit: int = 100, standing: bool = False
    ) -> FindingPage:
        """Return a part of a case's findings, by number.

        Args:
            case_id: The case.
            offset: Findings to pass over.
            limit: Most findings to return.
            standing: Only those that a report may use.

        Raises:
            InputError: There is no such case, or a negative offset or limit.
        """
        _check_part(offset, limit)
        wanted = [FindingRow.case_id == case_id, *([worklist.stands()] if standing else [])]
        with self._database.reading() as session:
            self._case_row(session, case_id)
            total = session.scalar(select(func.count()).select_from(FindingRow).where(*wanted)) or 0
            rows = session.scalars(
                select(FindingRow).where(*wanted).order_by(FindingRow.number).offset(offset).limit(limit)
            ).all()
            first, last = (rows[0].number, rows[-1].number) if rows else (0, -1)
            events = self._events(session, case_id, first, last)
            found = tuple(finding_of(row, events.get(row.number, [])) for row in rows)
        return FindingPage(total=total, rows=found)

    def judge(self, case_id: str, number: int, verdict: Verdict, *, who: str, note: str = "") -> None:
        """Accept or reject a finding.

        Raises:
            InputError: No such finding, nobody is named, or the verdict is ``superseded``, for which
                :meth:`supersede` asks what takes its place.
            ConflictError: The finding no longer stands.
        """
        if verdict is Verdict.SUPERSEDED:
            raise InputError("a finding is superseded by another one", expected="CaseStore.supersede")
        with self._database.writing(case_id) as session:
            self._standing(session, case_id, number, who)
            self._say(session, case_id, [(number, None)], verdict, who, note)
            self._changed(session, "judge", who, case_id, {"finding": number, "verdict": verdict.value})

    def supersede(
        self, case_id: str, number: int, draft: FindingDraft, *, who: str, note: str = ""
    ) -> Finding:
        """Put a person's finding in the place of another one; the old one stays in the record.

        Raises:
            InputError: No such finding, or nobody is named.
            ConflictError: The finding no longer stands.
        """
        with self._database.writing(case_id) as session:
            old = self._standing(session, case_id, number, who)
            successor = self._last(session, FindingRow, case_id) + 1
            session.add(FindingRow(**finding_values(case_id, successor, old.run, who, draft)))
            session.flush()
            self._say(session, case_id, [(number, successor)], Verdict.SUPERSEDED, who, note)
            detail = {"finding": number, "successor": successor}
            self._changed(session, "supersede", who, case_id, detail)
            return self._finding(session, case_id, successor)

    # Runs

    def add_run(
        self,
        case_id: str,
        run: Run,
        findings: Sequence[FindingDraft],
        *,
        author: str | None = None,
        replaces: Mapping[int, int] | None = None,
        unless_changed: Artifact | None = None,
    ) -> Run:
        """Add a run and its findings in one transaction; return the run with its number.

        Drafts that an earlier run of the same step for the same roles left are superseded by the new
        findings of the same code and subject, or without a successor where there is none. What a person
        has accepted, rejected or written stays as that person left it.

        Args:
            case_id: The case.
            run: The run; the store gives its number.
            findings: What it found, in order.
            author: The person who made it, where it is not the step by itself.
            replaces: Places in ``findings``, each with the number of the finding that it supersedes.
            unless_changed: The artifact that the run is based on; the case's latest one of this role must
                still have this content.

        Raises:
            InputError: There is no such case, finding or place, or nobody is named as author.
            ConflictError: The artifact, or a finding that is to be replaced, was changed by somebody else.
            StorageError: A content that the run refers to is not in the store.
        """
        name = f"{run.step} {run.version}" if author is None else author
        replaced = dict(replaces or {})
        wrong = [place for place in replaced if not 0 <= place < len(findings)]
        if wrong or len(set(replaced.values())) < len(replaced):
            raise InputError(
                "not every replacement is one finding for one",
                source="replaces",
                value=replaced,
                expected=f"places 0 to {len(findings) - 1}, each with a number of its own",
            )
        with self._database.writing(case_id) as session:
            self._case_row(session, case_id)
            if unless_changed is not None:
                self._unchanged(session, case_id, unless_changed)
            for number in replaced.values():
                self._standing(session, case_id, number, name)
            added = replace(
                run,
                number=self._last(session, RunRow, case_id) + 1,
                findings=tuple(f.content_hash for f in findings),
                author=author or "",
            )
            first = self._last(session, FindingRow, case_id) + 1
            earlier = self._earlier_drafts(session, case_id, added)
            session.execute(insert(RunRow), [run_values(case_id, added)])
            self._insert_findings(session, case_id, added.number, name, first, findings)
            uses.record(session, self.objects, case_id, added)
            named = {(draft.code, draft.subject): first + i for i, draft in enumerate(findings)}
            self._say(
                session,
                case_id,
                [(number, first + place) for place, number in replaced.items()],
                Verdict.SUPERSEDED,
                name,
                "replaced",
            )
            again = {old: named.get(key) for old, key in earlier.items() if old not in replaced.values()}
            self._say(session, case_id, again.items(), Verdict.SUPERSEDED, name, "run again")
            detail = {"run": added.number, "step": added.step, "findings": len(findings)}
            self._changed(session, "add-run", name, case_id, detail)
        return added

    # Audit

    def audit(
        self, action: str, *, who: str, case_id: str | None = None, detail: Mapping[str, Any] | None = None
    ) -> None:
        """Write down that somebody saw or did something. Changes of the record write their own line.

        Args:
            action: What was done, in a word or two of at most 40 characters.
            who: Who did it; may be empty where nobody is known.
            case_id: The case it was about, whether there is one or not.
            detail: JSON values; nothing that identifies a patient.
        """
        with self._database.writing() as session:
            audit.add(session, action, who, case_id, detail or {})

    def audit_lines(
        self, case_id: str | None = None, offset: int = 0, limit: int = 100
    ) -> tuple[AuditLine, ...]:
        """Return audit lines, the newest first, of one case or of all."""
        _check_part(offset, limit)
        with self._database.reading() as session:
            return audit.lines(session, case_id, offset, limit)

    # Within a transaction

    def _load(self, session: Session, case_id: str) -> Case:
        row = self._case_row(session, case_id)
        runs = session.scalars(select(RunRow).filter_by(case_id=case_id).order_by(RunRow.number))
        findings = session.scalars(select(FindingRow).filter_by(case_id=case_id).order_by(FindingRow.number))
        events = self._events(session, case_id)
        return Case(
            id=row.id,
            label=row.label,
            created=row.created,
            runs=tuple(run_of(run) for run in runs),
            findings=tuple(finding_of(found, events.get(found.number, [])) for found in findings),
        )

    def _case_row(self, session: Session, case_id: str) -> CaseRow:
        check_text(case_id, "case")
        row = session.get(CaseRow, case_id)
        if row is None:
            raise InputError(
                "no case has this id", source=self.source, value=case_id, expected="'sagittal case list'"
            )
        return row

    def _finding(self, session: Session, case_id: str, number: int) -> Finding:
        self._case_row(session, case_id)
        last = self._last(session, FindingRow, case_id)
        if not 1 <= number <= last:
            raise InputError("no finding has this number", value=number, expected=f"1 to {last}")
        row = session.get_one(FindingRow, (case_id, number))
        return finding_of(row, self._events(session, case_id, number, number).get(number, []))

    def _events(
        self, session: Session, case_id: str, first: int | None = None, last: int | None = None
    ) -> dict[int, list[Event]]:
        wanted = select(EventRow).filter_by(case_id=case_id).order_by(EventRow.number)
        if first is not None:
            wanted = wanted.where(EventRow.finding.between(first, last))
        events: dict[int, list[Event]] = {}
        for row in session.scalars(wanted):
            events.setdefault(row.finding, []).append(event_of(row))
        return events

    def _standing(self, session: Session, case_id: str, number: int, who: str) -> Finding:
        check_text(who, "who")
        if not who.strip():
            raise InputError("a verdict needs a name", source=f"finding {number}", expected="who says so")
        found = self._finding(session, case_id, number)
        if not found.stands:
            last = found.events[-1]
            raise ConflictError(
                "the finding no longer stands",
                source=f"finding {number}",
                value=f"{found.state} by {last.who}, {last.when}",
            )
        return found

    def _unchanged(self, session: Session, case_id: str, base: Artifact) -> None:
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

    def _earlier_drafts(self, session: Session, case_id: str, run: Run) -> dict[int, tuple[str, str]]:
        """Drafts that earlier runs of the same step for the same roles left: number to code and subject."""
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

    def _insert_findings(
        self,
        session: Session,
        case_id: str,
        run: int,
        author: str,
        first: int,
        drafts: Sequence[FindingDraft],
    ) -> None:
        rows = [
            finding_values(case_id, first + place, run, author, draft) for place, draft in enumerate(drafts)
        ]
        if rows:
            session.execute(insert(FindingRow), rows)

    def _say(
        self,
        session: Session,
        case_id: str,
        findings: Iterable[tuple[int, int | None]],
        verdict: Verdict,
        who: str,
        note: str,
    ) -> None:
        """Add an event for each finding: its number, and the number of its successor."""
        check_text(note, "note")
        first, moment = self._last(session, EventRow, case_id) + 1, now()
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

    def _changed(
        self,
        session: Session,
        action: str,
        who: str,
        case_id: str,
        detail: Mapping[str, Any],
        moment: str | None = None,
    ) -> None:
        """What every change of a case ends with: its line in the audit, and its summary."""
        audit.add(session, action, who, case_id, detail)
        worklist.refresh(session, case_id, moment or now())

    def _last(
        self, session: Session, table: type[RunRow] | type[FindingRow] | type[EventRow], case_id: str
    ) -> int:
        return session.scalar(select(func.max(table.number)).where(table.case_id == case_id)) or 0

    def _know_each_other(self, mark: Path) -> None:
        """Let the folder of contents carry the store's id; refuse the folder of another store."""
        with storage_errors(mark):
            known = mark.read_text(encoding="utf-8").strip() if mark.is_file() else None
            if known is None and not self.read_only:
                mark.parent.mkdir(parents=True, exist_ok=True)
                write_text(mark, f"{self.id}\n")
                known = self.id
        if known is not None and known != self.id:
            raise StorageError(
                "these contents belong to another store", source=mark, value=known, expected=self.id
            )


def _check_part(offset: int, limit: int) -> None:
    if offset < 0 or limit < 0:
        raise InputError(
            "a part begins before the start or ends before it begins",
            value=(offset, limit),
            expected="0 or more",
        )
