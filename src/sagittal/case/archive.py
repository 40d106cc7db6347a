"""One case as one file: a zip archive of its record, ``case.json``, and of the contents that it refers to.

An archive comes from anywhere. Nothing in it is believed: members are read by name and never extracted, no
further than their declared sizes, which are added up first; every content is compared with its hash and every
reference with what it refers to, before anything enters the store.
"""

from __future__ import annotations

import errno
import re
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import insert

from sagittal.case import archive_record, changes, uses
from sagittal.case.archive_record import ArchivedCase
from sagittal.case.objects import check_file
from sagittal.case.reading import whole_case
from sagittal.case.schema import CaseRow, EventRow, FindingRow, RunRow
from sagittal.case.store import CaseStore
from sagittal.core.errors import ConflictError, FormatError, InputError, StorageError
from sagittal.core.files import atomic_path, storage_errors
from sagittal.core.provenance import canonical_json

__all__ = ["Imported", "Limits", "export_archive", "import_archive", "import_case"]

RECORD = "case.json"
_MEMBER = re.compile(r"objects/([0-9a-f]{2})/([0-9a-f]{62})\.(bin|npy)")
_CHUNK = 1 << 20
_SMALL_RECORD, _RECORD_RATIO = 1 << 22, 40  # JSON takes many times its length in memory
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,  # UnicodeDecodeError among them
    OverflowError,
    RuntimeError,  # NotImplementedError among them
    MemoryError,
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How large an archive may be, unpacked.

    Attributes:
        members: Most files in it.
        record: Most bytes of the record.
        total: Most bytes of everything.
        small: Up to so many bytes it may be packed as tightly as it likes (a mask packs a thousand times).
        ratio: Beyond that, how many times larger than the archive its contents may be.
    """

    members: int = 100_000
    record: int = 1 << 26
    total: int = 1 << 36
    small: int = 1 << 30
    ratio: int = 100


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A case that an archive held; not ``new`` when the store had the same case already."""

    case_id: str
    new: bool


def export_archive(store: CaseStore, case_id: str, path: Path) -> Path:
    """Write a case to one file, whole or not at all.

    Raises:
        InputError: There is no such case.
        StorageError: A content is missing or damaged, or the disk is full, read-only or forbidden.
    """
    with store.database.reading() as session:
        record = archive_record.describe(whole_case(session, case_id), uses.by_run(session, case_id))
    digests = sorted({digest for digests in record["uses"] for digest in digests})
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        with atomic_path(path) as temporary:
            with zipfile.ZipFile(temporary, "w", compression, compresslevel=1) as archive:
                archive.writestr(RECORD, canonical_json(record))
                for digest in digests:
                    content = store.objects.check(digest)
                    archive.write(content, f"objects/{content.parent.name}/{content.name}")
                unpacked = sum(member.file_size for member in archive.infolist())
                dense = _dense(archive.getinfo(RECORD))
            if (dense or _tight(unpacked, temporary.stat().st_size, Limits())) and compression:
                continue  # an import would take it for a bomb
        break
    return path


def import_archive(store: CaseStore, path: Path, *, limits: Limits | None = None, who: str = "") -> str:
    """Take the case of an archive into the store; return its id. See :func:`import_case`."""
    return import_case(store, path, limits=limits, who=who).case_id


def import_case(store: CaseStore, path: Path, *, limits: Limits | None = None, who: str = "") -> Imported:
    """Take the case of an archive into the store, whole or not at all.

    Args:
        store: The store.
        path: The archive.
        limits: How large it may be.
        who: Who brings it, for the audit.

    Raises:
        FormatError: The file is no such archive, is damaged, contradicts itself, or is too large.
        ConflictError: The store holds another case of the same id.
        StorageError: The disk is full, read-only or forbidden.
    """
    path, limits = Path(path), limits or Limits()
    objects = store.objects
    with _members(path, limits) as (archive, members):
        case = archive_record.parse(_read(archive, members.pop(RECORD), path), path)
        _compare_names(case, members, path)
        if _present(store, case):
            return Imported(case_id=case.id, new=False)
        with storage_errors(objects.folder):
            objects.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".import.", suffix=".tmp", dir=objects.folder) as folder:
                files = {}
                for digest, member in members.items():
                    files[digest] = Path(folder) / Path(member.filename).name
                    _unpack(archive, member, digest, files[digest], path)
                for digest, file in files.items():
                    objects.adopt(file, digest)
    return _insert(store, case, who)


@contextmanager
def _members(path: Path, limits: Limits) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """Open an archive and yield its members, by digest and the record by its name, once all are harmless."""
    if not path.is_file():
        raise InputError("there is no such file", source=path, expected="a case archive")
    with storage_errors(path), path.open("rb") as stream:
        try:
            archive = zipfile.ZipFile(stream)
        except _DAMAGE as error:
            raise _refuse(path, "not a zip archive that can be read", error) from error
        with archive:
            yield archive, _harmless(archive.infolist(), path, limits)


def _harmless(members: list[zipfile.ZipInfo], path: Path, limits: Limits) -> dict[str, zipfile.ZipInfo]:
    if len(members) > limits.members:
        raise _refuse(path, "too many files in the archive", len(members), f"at most {limits.members}")
    found: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        shown = ascii(member.filename[:120])
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise _refuse(path, "the archive holds something that is no plain file", shown)
        if member.flag_bits & 0x1:
            raise _refuse(path, "the archive is encrypted", shown)
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refuse(path, "the archive is packed in an unusual way", shown, "stored or deflated")
        content = _MEMBER.fullmatch(member.orig_filename)
        if content is None and member.orig_filename != RECORD:
            raise _refuse(path, "the archive holds something else", shown, f"{RECORD} and objects/…")
        name = content[1] + content[2] if content else RECORD
        if name in found:
            raise _refuse(path, "the archive holds a file twice", shown)
        found[name] = member
    if RECORD not in found:
        raise _refuse(path, "the archive holds no case", expected=RECORD)
    total, packed = sum(member.file_size for member in members), path.stat().st_size
    if found[RECORD].file_size > limits.record:
        raise _refuse(path, "the record is too large", found[RECORD].file_size, f"at most {limits.record}")
    if _dense(found[RECORD]):
        raise _refuse(path, "the record unpacks to far more than it is", found[RECORD].file_size)
    if total > limits.total:
        raise _refuse(path, "the archive is too large, unpacked", total, f"at most {limits.total} bytes")
    if _tight(total, packed, limits):
        raise _refuse(path, "the archive unpacks to far more than it is", f"{total} bytes of {packed}")
    return found


def _tight(unpacked: int, packed: int, limits: Limits) -> bool:
    return unpacked > max(limits.small, limits.ratio * packed)


def _dense(record: zipfile.ZipInfo) -> bool:
    return record.file_size > max(_SMALL_RECORD, _RECORD_RATIO * record.compress_size)


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> bytes:
    try:
        with archive.open(member) as stream:
            content = stream.read(member.file_size)
            if len(content) != member.file_size or stream.read(1):
                raise _refuse(path, "a file is not as long as the archive says", member.filename)
    except _DAMAGE as error:
        raise _refuse(path, "the archive is damaged", error) from error
    except OSError as error:
        _raise_the_disks(error)
        raise _refuse(path, "the archive is damaged", error) from error
    return content


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, digest: str, file: Path, path: Path) -> None:
    """Write a content to ``file``, no further than its declared size, and compare it with its hash."""
    left = member.file_size
    try:
        with archive.open(member) as stream, file.open("wb") as target:
            while chunk := stream.read(min(_CHUNK, left + 1)):
                left -= len(chunk)
                if left < 0:
                    break
                target.write(chunk)
    except OSError as error:
        _raise_the_disks(error)
        raise _refuse(path, "the archive is damaged", error) from error
    except _DAMAGE as error:
        raise _refuse(path, "the archive is damaged", error) from error
    if left:
        raise _refuse(path, "a file is not as long as the archive says", member.filename)
    try:
        check_file(file, digest)
    except StorageError as error:
        raise _refuse(path, "a content is not what its name says", member.filename, error.problem) from error


def _raise_the_disks(error: OSError) -> None:
    """Raise an error of the disk again; an archive that points before its own start is damaged."""
    if error.errno not in (None, errno.EINVAL):
        raise error


def _compare_names(case: ArchivedCase, members: dict[str, zipfile.ZipInfo], path: Path) -> None:
    wanted = {digest for digests in case.uses for digest in digests}
    if missing := wanted - set(members):
        raise _refuse(path, "the archive lacks a content that its record refers to", min(missing))
    if spare := set(members) - wanted:
        raise _refuse(path, "the archive holds a content that its record does not refer to", min(spare))


def _present(store: CaseStore, case: ArchivedCase) -> bool:
    """Whether the store holds this very case.

    Raises:
        ConflictError: It holds another one of the same id.
    """
    with store.database.reading() as session:
        if session.get(CaseRow, case.id) is None:
            return False
        held = archive_record.describe(whole_case(session, case.id), uses.by_run(session, case.id))
    if canonical_json(held) != case.text:
        raise ConflictError(
            "the store holds another record of this case",
            source=store.source,
            value=case.id,
            expected="a case that is not there yet, or the very same",
        )
    return True


def _insert(store: CaseStore, case: ArchivedCase, who: str) -> Imported:
    with store.database.writing(alone=True) as session:
        if session.get(CaseRow, case.id) is not None:
            raise ConflictError("the case came from elsewhere meanwhile", source=store.source, value=case.id)
        for table, rows in (
            (CaseRow, [case.case]),
            (RunRow, case.runs),
            (FindingRow, case.findings),
            (EventRow, case.events),
        ):
            if rows:
                session.execute(insert(table), rows)
        for number, digests in enumerate(case.uses, start=1):
            uses.write(session, case.id, number, {digest: store.objects.size(digest) for digest in digests})
        detail = {"runs": len(case.runs), "findings": len(case.findings)}
        changes.changed(session, "import-case", who, case.id, detail)
    return Imported(case_id=case.id, new=True)


def _refuse(path: Path, problem: str, value: object = None, expected: str | None = None) -> FormatError:
    return FormatError(problem, source=path, value=value, expected=expected)
