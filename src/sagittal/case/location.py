"""Opening the store that a person means: a folder, a URL, or the one in the data folder."""

from __future__ import annotations

import os
from pathlib import Path

from sagittal.case.engines import is_url
from sagittal.case.store import CaseStore
from sagittal.core.errors import InputError
from sagittal.core.places import data_folder

__all__ = ["open_store", "resolve"]


def resolve(location: str | None) -> str:
    """Return where a store lies: as given, else ``SAGITTAL_STORE``, else the data folder.

    Raises:
        InputError: A URL of a database that is not supported.
    """
    named = location or os.environ.get("SAGITTAL_STORE")
    if not named:
        return str(data_folder())
    if is_url(named):
        return named
    if "://" in named:
        raise InputError(
            "no store lies there", source=named.split("://")[0] + "://", expected="a folder or postgresql://…"
        )
    return str(Path(named).expanduser().absolute())


def open_store(location: str | None, *, read_only: bool = False) -> CaseStore:
    """Open a store.

    ``SAGITTAL_OBJECTS`` names the folder of contents of a store in PostgreSQL.

    Args:
        location: A folder, ``postgresql://…``, or None for ``SAGITTAL_STORE``, else the data folder.
        read_only: Open it for reading.

    Raises:
        StorageError: See :class:`~sagittal.case.store.CaseStore`.
        InputError: A URL of a database that is not supported.
    """
    resolved = resolve(location)
    objects = os.environ.get("SAGITTAL_OBJECTS") if is_url(resolved) else None
    return CaseStore(resolved, objects=Path(objects).expanduser() if objects else None, read_only=read_only)
