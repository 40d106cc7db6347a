"""Versions of a store: which one it has, which one this code reads, and the way from one to the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, inspect

from sagittal.case.engines import Database
from sagittal.case.schema import Base
from sagittal.case.worklist import rebuild
from sagittal.core.errors import StorageError

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

__all__ = ["configuration", "require", "upgrade", "versions"]


def upgrade(database: Database, attributes: Mapping[str, Any]) -> None:
    """Bring the tables to the version that this code reads, under one lock and in one transaction.

    A second process waits; a killed one leaves nothing. A store of a later version is not touched.

    Args:
        database: Where the tables are, or are to be.
        attributes: What migrations may need: ``objects``, the folder of contents, and ``store_id``, the id
            of a store that is copied.

    Raises:
        StorageError: The store is of a version that is not known here, or is something else.
    """
    from alembic import command

    with database.engine.connect() as connection:
        database.snapshot(connection)  # one moment: another process may be making the tables
        found, wanted = _versions(connection)
        if found == wanted:
            return
        if found is not None and found not in versions():
            raise _other_version(database, found, wanted)
        if found is None and (
            strange := set(inspect(connection).get_table_names()) & set(Base.metadata.tables)
        ):
            raise StorageError("this is not a case store", source=database.source, value=sorted(strange)[:3])
    config = configuration()
    with database.writing(alone=True) as session:
        config.attributes.update(attributes, connection=session.connection())
        command.upgrade(config, "head")
        rebuild(session)


def require(database: Database, connection: Connection) -> None:
    """Refuse a store of another version than this code reads.

    Raises:
        StorageError: The message names both versions.
    """
    found, wanted = _versions(connection)
    if found != wanted:
        raise _other_version(database, found, wanted)


def configuration() -> Config:
    """Return what Alembic needs to find the migrations."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def versions() -> set[str]:
    """Return every version of a store that this code can open."""
    return {script.revision for script in _scripts().walk_revisions()}


def _versions(connection: Connection) -> tuple[str | None, str | None]:
    """The version that the store has, and the one that this code reads."""
    from alembic.migration import MigrationContext

    return MigrationContext.configure(connection).get_current_revision(), _scripts().get_current_head()


def _scripts() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(configuration())


def _other_version(database: Database, found: str | None, wanted: str | None) -> StorageError:
    return StorageError(
        "the store is of another version", source=database.source, value=found, expected=wanted
    )
