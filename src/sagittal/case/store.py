"""The case store: findings, runs and verdicts in a database, contents on disk by their hash.

By default a folder with ``cases.sqlite`` and ``objects/``; or a PostgreSQL database, by URL, with its
contents in a folder. A run enters with its findings in one transaction, after the contents it refers to are
on disk; whatever interrupts it, the record holds the whole run or nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select

from sagittal.case import audit, changes, reading, uses, worklist
from sagittal.case.audit import AuditLine
from sagittal.case.engines import Database, PostgreSQL, SQLite, is_url
from sagittal.case.objects import ObjectStore
from sagittal.case.reading import FindingPage
from sagittal.case.record import Artifact, Case, Finding, FindingDraft, Run, Verdict
from sagittal.case.rows import check_text, run_values
from sagittal.case.schema import CaseRow, RunRow, StoreRow
from sagittal.case.upgrade import require, upgrade, versions
from sagittal.case.worklist import CaseSummary, Worklist
from sagittal.core.errors import InputError, StorageError
from sagittal.core.files import storage_errors, write_text
from sagittal.core.places import data_folder

__all__ = ["CaseStore", "FindingPage"]

_MARK = "store-id"


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
        self.database: Database = (
            SQLite(self.folder / "cases.sqlite", read_only=read_only)
            if self.folder is not None
            else PostgreSQL(self.location, read_only=read_only)
        )
        default = self.folder / "objects" if self.folder is not None else None
        self.database.prepare(versions())
        try:
            with self.database.errors():
                if not read_only:
                    upgrade(self.database, {"objects": objects or default, "store_id": _store_id})
                with self.database.engine.connect() as connection:
                    problem = self.database.check(connection)
                    if problem is not None:
                        raise StorageError(
                            "the database is damaged", source=self.database.source, value=problem
                        )
                    require(self.database, connection)
                    self.id = str(connection.execute(select(StoreRow.id)).scalar_one())
            self.objects = ObjectStore(objects or default or data_folder() / f"objects-{self.id}")
            if self.objects.folder != default:
                self._know_each_other(self.objects.folder / _MARK)
        except BaseException:
            self.database.close()
            raise

    @property
    def source(self) -> str:
        """The database's path or URL for messages, without a password."""
        return self.database.source

    def close(self) -> None:
        """Close the database."""
        self.database.close()

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
        with self.database.writing() as session:
            return changes.open_case(session, label, who)

    def case_ids(self) -> list[str]:
        """Return the ids of all cases, oldest first."""
        with self.database.reading() as session:
            return list(session.scalars(select(CaseRow.id).order_by(CaseRow.created, CaseRow.id)))

    def case(self, case_id: str) -> Case:
        """Return the case as it stands now, whole.

        Raises:
            InputError: There is no such case.
        """
        with self.database.reading() as session:
            return reading.whole_case(session, case_id)

    def outline(self, case_id: str) -> tuple[Case, CaseSummary]:
        """Return a case with its runs and without its findings, and its line of the worklist.

        Quick, however many findings there are.

        Raises:
            InputError: There is no such case.
        """
        with self.database.reading() as session:
            return reading.outline(session, case_id), worklist.summary(session, case_id)

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
        reading.check_part(offset, limit)
        check_text(search, "search")
        with self.database.reading() as session:
            return worklist.listed(
                session, search=search, state=state, order=order, offset=offset, limit=limit
            )

    def rebuild_worklist(self) -> None:
        """Make the worklist again from the record. Nothing that the store does should make this needed."""
        with self.database.writing(alone=True) as session:
            worklist.rebuild(session)

    # Findings

    def finding(self, case_id: str, number: int) -> Finding:
        """Return one finding of a case.

        Raises:
            InputError: There is no such case or finding.
        """
        with self.database.reading() as session:
            return reading.one_finding(session, case_id, number)

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
        reading.check_part(offset, limit)
        with self.database.reading() as session:
            return reading.findings(session, case_id, offset=offset, limit=limit, standing=standing)

    def judge(self, case_id: str, number: int, verdict: Verdict, *, who: str, note: str = "") -> None:
        """Accept or reject a finding.

        Raises:
            InputError: No such finding, nobody is named, or the verdict is ``superseded``, for which
                :meth:`supersede` asks what takes its place.
            ConflictError: The finding no longer stands.
        """
        if verdict is Verdict.SUPERSEDED:
            raise InputError("a finding is superseded by another one", expected="CaseStore.supersede")
        with self.database.writing(case_id) as session:
            changes.require_standing(session, case_id, number, who)
            changes.say(session, case_id, [(number, None)], verdict, who, note)
            changes.changed(session, "judge", who, case_id, {"finding": number, "verdict": verdict.value})

    def supersede(
        self, case_id: str, number: int, draft: FindingDraft, *, who: str, note: str = ""
    ) -> Finding:
        """Put a person's finding in the place of another one; the old one stays in the record.

        Raises:
            InputError: No such finding, or nobody is named.
            ConflictError: The finding no longer stands.
        """
        with self.database.writing(case_id) as session:
            old = changes.require_standing(session, case_id, number, who)
            successor = changes.add_findings(session, case_id, old.run, who, [draft])
            changes.say(session, case_id, [(number, successor)], Verdict.SUPERSEDED, who, note)
            detail = {"finding": number, "successor": successor}
            changes.changed(session, "supersede", who, case_id, detail)
            return reading.one_finding(session, case_id, successor)

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
        once: bool = False,
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
            once: Write nothing where the case holds a run that asked for the same
                (:meth:`~sagittal.case.record.Case.repeated`), and return that one.

        Raises:
            InputError: There is no such case, finding or place, or nobody is named as author.
            ConflictError: The artifact, or a finding that is to be replaced, was changed by somebody else.
            StorageError: A content that the run refers to is not in the store.
        """
        changes.check_author(author)
        name = f"{run.step} {run.version}" if author is None else author
        replaced = dict(replaces or {})
        changes.check_replacements(replaced, len(findings))
        with self.database.writing(case_id) as session:
            reading.case_row(session, case_id)
            if once and (done := reading.whole_case(session, case_id).repeated(run)) is not None:
                return done
            if unless_changed is not None:
                changes.require_unchanged(session, case_id, unless_changed)
            for number in replaced.values():
                changes.require_standing(session, case_id, number, name)
            added = replace(
                run,
                number=reading.last(session, RunRow, case_id) + 1,
                findings=tuple(f.content_hash for f in findings),
                author=author or "",
            )
            earlier = changes.earlier_drafts(session, case_id, added)
            session.execute(insert(RunRow), [run_values(case_id, added)])
            first = changes.add_findings(session, case_id, added.number, name, findings)
            uses.record(session, self.objects, case_id, added)
            named = {(draft.code, draft.subject): first + place for place, draft in enumerate(findings)}
            given = [(number, first + place) for place, number in replaced.items()]
            again = [(old, named.get(key)) for old, key in earlier.items() if old not in replaced.values()]
            for which, note in ((given, "replaced"), (again, "run again")):
                changes.say(session, case_id, which, Verdict.SUPERSEDED, name, note)
            detail = {"run": added.number, "step": added.step, "findings": len(findings)}
            changes.changed(session, "add-run", name, case_id, detail)
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
        with self.database.writing() as session:
            audit.add(session, action, who, case_id, detail or {})

    def audit_lines(
        self, case_id: str | None = None, offset: int = 0, limit: int = 100
    ) -> tuple[AuditLine, ...]:
        """Return audit lines, the newest first, of one case or of all."""
        reading.check_part(offset, limit)
        with self.database.reading() as session:
            return audit.lines(session, case_id, offset, limit)

    def _know_each_other(self, mark: Path) -> None:
        """Let the folder of contents carry the store's id; refuse the folder of another store."""
        with storage_errors(mark):
            known = mark.read_text(encoding="utf-8").strip() if mark.is_file() else None
            if known is None and not self.read_only:
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.parent.chmod(0o700)  # its owner's alone
                write_text(mark, f"{self.id}\n")
                known = self.id
        if known is not None and known != self.id:
            raise StorageError(
                "these contents belong to another store", source=mark, value=known, expected=self.id
            )
