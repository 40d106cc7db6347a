"""The databases a store can lie in, behind one small interface: SQLite by default, PostgreSQL by URL.

Writers take a lock before they read the number that comes next, so that two never share one: of the whole
database in SQLite, of one case in PostgreSQL. Readers see one moment and never wait.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event, exc, make_url
from sqlalchemy.orm import Session

from sagittal.core.errors import InputError, StorageError
from sagittal.core.files import storage_errors
from sagittal.core.optional import optional_import

__all__ = ["Database", "PostgreSQL", "SQLite", "append_only", "changeable", "is_url", "shown"]

PATIENCE = 30
"""Seconds that a writer waits for the others."""

REFUSAL = "the case record is append-only"

_LOCK = 0x5A617474  # any number that another program on the same server is unlikely to use


def is_url(location: object) -> bool:
    """Whether a location names a PostgreSQL database rather than a folder."""
    return isinstance(location, str) and location.split(":", 1)[0] in {
        "postgres",
        "postgresql",
        "postgresql+psycopg",
    }


def shown(url: str) -> str:
    """Return a URL for messages: without its password."""
    try:
        return make_url(url).set(drivername="postgresql").render_as_string(hide_password=True)
    except (exc.ArgumentError, ValueError):
        return "postgresql://…"


class Database(ABC):
    """A database that holds the record.

    Attributes:
        source: Its path or URL for messages, without a password.
        read_only: Whether writing is refused.
        engine: SQLAlchemy's engine.
    """

    source: str
    read_only: bool
    engine: Engine

    hints: ClassVar[dict[str, str]]

    @abstractmethod
    def prepare(self, known: Collection[str]) -> None:
        """Refuse what must not be touched, then make the place where the database is to lie.

        Args:
            known: Versions of a store that this code can open.
        """

    @abstractmethod
    def lock(self, connection: Connection, case_id: str | None) -> None:
        """Begin to write: hold other writers of this case off until the transaction ends."""

    @abstractmethod
    def lock_all(self, connection: Connection) -> None:
        """Begin to write: hold every other writer off until the transaction ends."""

    @abstractmethod
    def snapshot(self, connection: Connection) -> None:
        """Begin to read: everything that follows is read as of one moment."""

    @abstractmethod
    def check(self, connection: Connection) -> str | None:
        """Return what is wrong with the database, or None."""

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees the record as of one moment."""
        with self.errors(), Session(self.engine, info={"source": self.source}) as session:
            self.snapshot(session.connection())
            yield session

    @contextlib.contextmanager
    def writing(self, case_id: str | None = None, *, alone: bool = False) -> Iterator[Session]:
        """A transaction that writes: of one case, of a new one, or ``alone`` in the whole store.

        Raises:
            StorageError: The database cannot be reached or written, or is damaged.
        """
        if self.read_only:
            raise StorageError("the store was opened read-only", source=self.source)
        told = {"source": self.source}
        with self.errors(), Session(self.engine, info=told) as session, session.begin():
            if alone:
                self.lock_all(session.connection())
            else:
                self.lock(session.connection(), case_id)
            yield session

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what the driver raises into a :class:`StorageError` that names the database."""
        try:
            yield
        except (exc.OperationalError, exc.IntegrityError, exc.InternalError, exc.TimeoutError) as error:
            raise self._refusal(error) from error
        except exc.DatabaseError as error:
            raise self._damage(error) from error

    def _refusal(self, error: exc.SQLAlchemyError) -> StorageError:
        reason = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
        expected = next((hint for word, hint in self.hints.items() if word in reason), None)
        return StorageError(f"the case store refuses: {reason}", source=self.source, expected=expected)

    def _damage(self, error: exc.DatabaseError) -> StorageError:
        return self._refusal(error)


class SQLite(Database):
    """A file, written ahead in a log beside it, synchronised at every commit.

    Args:
        path: The file.
        read_only: Open it for reading.
    """

    hints: ClassVar[dict[str, str]] = {
        "full": "free space, or another folder",
        "readonly": "a folder that can be written",
        "unable to open": "a folder that can be read and written",
        "locked": "the other writer to finish",
    }

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path, self.read_only, self.source = path, read_only, str(path)
        self.engine = create_engine(
            "sqlite://", creator=self._connect, poolclass=QueuePool, pool_size=8, max_overflow=-1
        )
        event.listen(self.engine, "connect", self._configure)

    def prepare(self, known: Collection[str]) -> None:
        """Make the folder, its owner's alone."""
        folder = self.path.parent
        if self.read_only:
            if not self.path.is_file():
                raise StorageError("there is no case store here", source=folder, expected="a cases.sqlite")
            return
        self._refuse_strangers(known)
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(folder.stat().st_mode & 0o700)

    def lock(self, connection: Connection, case_id: str | None) -> None:
        """Take the one write lock."""
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def lock_all(self, connection: Connection) -> None:
        """Take the one write lock."""
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def snapshot(self, connection: Connection) -> None:
        """Begin a transaction: the first statement in it fixes the moment."""
        connection.exec_driver_sql("BEGIN")

    def check(self, connection: Connection) -> str | None:
        """Look for pages and indexes that do not hold together."""
        verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        return None if verdict == "ok" else str(verdict)

    def copy(self, path: Path) -> None:
        """Write the database as of one moment to ``path``, while others write to it."""
        with self.errors(), self.engine.connect() as connection:
            source: Any = connection.connection.driver_connection
            target = sqlite3.connect(path)
            try:
                source.backup(target)
            except sqlite3.Error as error:
                raise StorageError(f"the copy failed: {error}", source=path) from error
            finally:
                target.close()

    def _refuse_strangers(self, known: Collection[str]) -> None:
        """Refuse another program's file, or a later version's, before a byte of it or beside it changes.

        It is read without a lock, which would leave files beside it. Where somebody writes to it meanwhile
        nothing is concluded: opening it properly will tell.
        """
        before = self._marks()
        if before is None:
            return
        names, found = [], None
        with contextlib.suppress(sqlite3.Error):  # what cannot be read is named when it is opened
            address = f"{self.path.absolute().as_uri()}?mode=ro&immutable=1"
            with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
                names = sorted(row[0] for row in connection.execute("SELECT name FROM sqlite_master"))
                if "alembic_version" in names:
                    found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        if self._marks() != before:
            return
        if names and "alembic_version" not in names:
            raise StorageError("this is not a case store", source=self.path, value=", ".join(names[:3]))
        if found is not None and found[0] not in known:
            raise StorageError(
                "the store is of another version", source=self.path, value=found[0], expected=max(known)
            )

    def _marks(self) -> tuple[int, int] | None:
        """Size and time of the file; None where there is none, or a log beside it that belongs to it."""
        if self.path.with_name(f"{self.path.name}-wal").exists() or not self.path.is_file():
            return None
        found = self.path.stat()
        return found.st_size, found.st_mtime_ns

    def _connect(self) -> sqlite3.Connection:
        # On a medium that cannot be written, SQLite cannot make the files that WAL needs beside the database.
        # Where one was copied along, what it holds belongs to the record: it must be read, not passed over.
        log = self.path.with_name(f"{self.path.name}-wal")
        sealed = (
            self.read_only
            and not os.access(self.path.parent, os.W_OK)
            and not (log.exists() and log.stat().st_size)
        )
        mode = ("ro" if self.read_only else "rwc") + ("&immutable=1" if sealed else "")
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=PATIENCE,
            isolation_level=None,
            check_same_thread=False,  # the pool hands a connection to one thread at a time
        )

    def _configure(self, connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA foreign_keys=ON")
        if not self.read_only:
            _write_ahead(connection)
            connection.execute("PRAGMA synchronous=FULL")

    def _damage(self, error: exc.DatabaseError) -> StorageError:
        return StorageError(f"the database is damaged: {error.orig}", source=self.source)


class PostgreSQL(Database):
    """A database on a server. A connection is tried before it is used, so that a server may come back.

    Args:
        url: ``postgresql://user:password@host:port/database``.
        read_only: Let the server refuse to write.

    Raises:
        InputError: The URL cannot be read.
        MissingDependencyError: The driver is not installed.
    """

    hints: ClassVar[dict[str, str]] = {
        "No space left": "free space on the server",
        "lock timeout": "the other writer to finish",
        "read-only transaction": "a server that can be written",
        "permission denied": "a user who may write to this database",
        "authentication failed": "the user's password, in the URL or in ~/.pgpass",
        "does not exist": "a database that exists: createdb makes one",
        "connection": "a PostgreSQL server that answers there",
        "terminating": "the server to come back; read the case again before repeating a change",
    }

    def __init__(self, url: str, *, read_only: bool) -> None:
        optional_import("psycopg", "postgresql")
        try:
            parsed = make_url(url).set(drivername="postgresql+psycopg")
        except (exc.ArgumentError, ValueError) as error:
            raise InputError("the store's URL cannot be read", expected="postgresql://…") from error
        self.read_only = read_only
        self.source = shown(url)
        options = f"-c lock_timeout={PATIENCE}s -c timezone=UTC"
        if read_only:
            options += " -c default_transaction_read_only=on"
        self.engine = create_engine(
            parsed,
            pool_pre_ping=True,
            pool_size=8,
            max_overflow=-1,
            connect_args={"connect_timeout": 10, "options": options, "client_encoding": "utf8"},
        )

    def prepare(self, known: Collection[str]) -> None:
        """Nothing: the server has made the place."""

    def lock(self, connection: Connection, case_id: str | None) -> None:
        """Share the store with the writers of other cases; take this case's row."""
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock_shared({_LOCK})")
        if case_id is not None:
            connection.exec_driver_sql("SELECT id FROM cases WHERE id = %s FOR UPDATE", (case_id,))

    def lock_all(self, connection: Connection) -> None:
        """Take the store from every writer."""
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")

    def snapshot(self, connection: Connection) -> None:
        """Read as of the first statement."""
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

    def check(self, connection: Connection) -> str | None:
        """Trust the server: it checks its own files."""
        return None


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging; SQLite does not wait by itself for another process that does so."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def append_only(dialect: str, table: str, key: tuple[str, ...]) -> list[str]:
    """Return the statements after which rows of ``table`` can only be added.

    Args:
        dialect: ``"sqlite"`` or ``"postgresql"``.
        table: The table.
        key: Its primary key.
    """
    if dialect == "postgresql":
        return [
            "CREATE OR REPLACE FUNCTION sagittal_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{REFUSAL}' USING ERRCODE = 'integrity_constraint_violation'; END $$",
            *(
                f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table} "
                "FOR EACH STATEMENT EXECUTE FUNCTION sagittal_append_only()"
                for action in ("UPDATE", "DELETE", "TRUNCATE")
            ),
        ]
    refusal = f"BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
    same = " AND ".join(f"{column} = NEW.{column}" for column in key)
    return [
        *(
            f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table} {refusal}"
            for action in ("UPDATE", "DELETE")
        ),
        # INSERT OR REPLACE deletes a row without the DELETE trigger.
        f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
        f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {same}) {refusal}",
    ]


def changeable(dialect: str, table: str) -> list[str]:
    """Return the statements that take :func:`append_only` back, for a migration."""
    actions = ("update", "delete", "truncate" if dialect == "postgresql" else "replace")
    where = f" ON {table}" if dialect == "postgresql" else ""
    return [f"DROP TRIGGER {table}_no_{action}{where}" for action in actions]
