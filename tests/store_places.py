"""Where the tests keep stores: in a folder, or in a PostgreSQL that they start themselves."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sagittal.case.store import CaseStore


class UnavailableError(Exception):
    """PostgreSQL cannot be started here; the message says why."""


CONTENTS = {name: name.encode() for name in ("t1", "volume", "other")}
"""What the runs of the tests refer to."""


class Place:
    """A store of a test's own.

    Attributes:
        location: Folder or URL.
        objects: Folder of the contents.
        engine: ``"sqlite"`` or ``"postgresql"``.
    """

    def __init__(self, location: str, objects: Path, engine: str) -> None:
        self.location, self.objects, self.engine = location, objects, engine

    def open(self, **options: Any) -> CaseStore:
        """Open the store, with the contents in it that the runs of the tests refer to."""
        store = CaseStore(self.location, objects=self.objects, **options)
        if not store.read_only:
            for content in CONTENTS.values():
                store.objects.put_bytes(content)
        return store

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement on the database past the store."""
        from sqlalchemy import text

        with self.open(read_only=False) as store, store.database.engine.connect() as connection:
            done = connection.execute(text(statement))
            rows = [tuple(row) for row in done] if done.returns_rows else []
            connection.commit()
        return rows


def in_folder(folder: Path) -> Place:
    """The place of a store in a folder."""
    return Place(str(folder), folder / "objects", "sqlite")


class Server:
    """A PostgreSQL server on a free port, run by an ordinary user, with its files in a temporary folder."""

    def __init__(self) -> None:
        binaries = _binaries()
        if binaries is None:
            raise UnavailableError("PostgreSQL is not installed")
        if find_spec("psycopg") is None:
            raise UnavailableError("psycopg is not installed")
        self._binaries = binaries
        self._as: list[str] = []
        self.folder = Path(tempfile.mkdtemp(prefix="sagittal-postgresql-"))
        if os.geteuid() == 0:
            user = next((u for u in ("postgres", "nobody") if _known(u)), None)
            if user is None or shutil.which("runuser") is None:
                raise UnavailableError(
                    "PostgreSQL refuses to run as root, and there is no other user to run it"
                )
            self._as = ["runuser", "-u", user, "--"]
            shutil.chown(self.folder, user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._run("initdb", "-D", self.data, "-U", "sagittal", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()

    @property
    def data(self) -> str:
        return str(self.folder / "data")

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories='' -p {self.port}"
        self._run("pg_ctl", "-D", self.data, "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-D", self.data, "-w", "-m", mode, "stop")

    def url(self, database: str) -> str:
        return f"postgresql://sagittal@127.0.0.1:{self.port}/{database}"

    def create(self) -> str:
        """Make an empty database and return its URL."""
        import psycopg

        name = f"store_{secrets.token_hex(4)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove a database, whoever is connected to it."""
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {url.rsplit('/', 1)[1]} WITH (FORCE)")

    def remove(self) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        command: Sequence[str] = [*self._as, str(self._binaries / program), *arguments]
        # pg_ctl leaves the server its output: a pipe would never end.
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(command, stdout=said, stderr=said, cwd="/", check=False, timeout=120)
            said.seek(0)
            assert done.returncode == 0, said.read().decode()


def _binaries() -> Path | None:
    """Folder of the server's programs: Debian keeps them off the path."""
    found = shutil.which("pg_ctl")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").is_file()), None)


def _known(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
