"""A copy of a store that others may go on writing to: the record as of one moment, then its contents.

Contents of a record are never removed, so that they can be copied after it. The copy is a store in a folder,
whatever the database of the original.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import MetaData, insert, select

from sagittal.case.engines import SQLite
from sagittal.case.schema import ContentRow, StoreRow
from sagittal.case.store import CaseStore
from sagittal.core.errors import InputError, StorageError
from sagittal.core.files import atomic_path, staging_folder, storage_errors
from sagittal.core.progress import Report, silent

__all__ = ["BackedUp", "backup"]

_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class BackedUp:
    """A copy of a store.

    Attributes:
        folder: Where it lies.
        contents: How many contents it holds.
        bad: Contents that could not be copied, because the original has lost or changed them: what is wrong.
    """

    folder: Path
    contents: int
    bad: tuple[str, ...]


def backup(store: CaseStore, folder: Path, *, report: Report = silent) -> BackedUp:
    """Write a copy of ``store`` to a new folder, whole or not at all.

    A content that the original has lost does not keep the others from being saved; the result names it.

    Raises:
        InputError: The folder is not empty.
        StorageError: The disk is full, read-only or forbidden, or the record cannot be read.
    """
    folder = Path(folder)
    with storage_errors(folder):
        if folder.exists() and any(folder.iterdir()):
            raise InputError("the folder is not empty", source=folder, expected="a new or empty folder")
    with staging_folder(folder) as temporary:
        report("copying the record")
        if isinstance(store.database, SQLite):
            store.database.copy(temporary / "cases.sqlite")
            CaseStore(temporary).close()
        else:
            _copy_rows(store, temporary)
        copied, bad = 0, []
        with CaseStore(temporary) as copy:
            with copy.database.reading() as session:
                digests = list(session.scalars(select(ContentRow.digest)))
            for place, digest in enumerate(digests, start=1):
                if place % 100 == 0:
                    report(f"copying content {place} of {len(digests)}")
                try:
                    path = store.objects.check(digest)
                except StorageError as error:
                    bad.append(str(error))
                    continue
                with atomic_path(copy.objects.folder / path.relative_to(store.objects.folder)) as target:
                    shutil.copyfile(path, target)
                copied += 1
        with storage_errors(folder):
            temporary.replace(folder)
    return BackedUp(folder=folder, contents=copied, bad=tuple(bad))


def _copy_rows(store: CaseStore, folder: Path) -> None:
    """Copy every table, as of one moment, into a new store of the same id."""
    here = {StoreRow.__tablename__, "alembic_version"}
    with store.database.reading() as source, CaseStore(folder, _store_id=store.id) as copy:
        connection = source.connection()
        tables = MetaData()
        tables.reflect(connection)
        with copy.database.writing(alone=True) as target:
            for table in tables.sorted_tables:
                if table.name in here:
                    continue
                rows = connection.execute(select(table), execution_options={"yield_per": _AT_ONCE})
                for part in rows.mappings().partitions(_AT_ONCE):
                    target.execute(insert(table), [dict(row) for row in part])
