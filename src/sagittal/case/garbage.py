"""Removing contents that no run refers to, and files that an interrupted writer left.

A writer puts its contents first and its run afterwards, so that a content may be on disk before anything
refers to it. Two things keep the collector from taking it away. A content younger than the grace period
stays, and putting one that is there already makes it young. And whatever the period, contents are removed
under the lock that runs are added under: a run looks for its contents once it has the lock, and is refused
without them.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sagittal.case import uses
from sagittal.case.store import CaseStore
from sagittal.core.errors import InputError
from sagittal.core.files import storage_errors

__all__ = ["GRACE_SECONDS", "Collected", "collect"]

GRACE_SECONDS = 24 * 3600.0
"""How old a content must be before it is removed, unless another period is asked for."""

_LEAST_TEMPORARY = 3600.0
"""A temporary file this young may belong to a writer at work, whatever the grace period."""

_AT_ONCE = 200
_CONTENT = re.compile(r"[0-9a-f]{62}\.(bin|npy)")


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What was removed, or would be.

    Attributes:
        contents: Digests of the contents.
        bytes: Bytes of all that was removed.
        temporaries: How many files or folders an interrupted writer had left.
        young: Contents that no run refers to and that stay because they are young.
    """

    contents: tuple[str, ...]
    bytes: int
    temporaries: int
    young: int


def collect(store: CaseStore, *, dry_run: bool = False, grace_seconds: float = GRACE_SECONDS) -> Collected:
    """Remove the contents that no run refers to.

    Args:
        store: The store; others may write to it meanwhile.
        dry_run: Only say what would be removed.
        grace_seconds: Leave what is younger than this.

    Raises:
        InputError: A negative period.
        StorageError: The store cannot be written.
    """
    if not grace_seconds >= 0:
        raise InputError("the grace period is negative", value=grace_seconds, expected="0 seconds or more")
    contents, bytes_, young = [], 0, 0
    every = _contents(store.objects.folder)
    while batch := list(islice(every, _AT_ONCE)):
        digests = {path.parent.name + path.stem: path for path in batch}
        with store.database.reading() if dry_run else store.database.writing(alone=True) as session:
            for digest in digests.keys() - uses.used(session, digests):
                age, size = _age(digests[digest])
                if age < grace_seconds:
                    young += 1
                    continue
                if not dry_run:
                    _remove(digests[digest])
                contents.append(digest)
                bytes_ += size
    temporaries = 0
    for path in list(store.objects.folder.rglob(".*.tmp")):
        age, size = _age(path)
        if age >= max(grace_seconds, _LEAST_TEMPORARY):
            if not dry_run:
                _remove(path)
            temporaries, bytes_ = temporaries + 1, bytes_ + size
    return Collected(contents=tuple(sorted(contents)), bytes=bytes_, temporaries=temporaries, young=young)


def _contents(folder: Path) -> Iterator[Path]:
    for path in folder.glob("[0-9a-f][0-9a-f]/*"):
        if _CONTENT.fullmatch(path.name):
            yield path


def _age(path: Path) -> tuple[float, int]:
    """Age in seconds, and bytes; no age at all for what is gone or was written in the clock's future."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0.0, 0
    return time.time() - found.st_mtime, found.st_size


def _remove(path: Path) -> None:
    with storage_errors(path):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
