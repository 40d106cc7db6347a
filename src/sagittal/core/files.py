"""Files on disk: whole or not at all, and known by their content."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sagittal.core.errors import StorageError

__all__ = [
    "atomic_path",
    "sha256_file",
    "staging_folder",
    "storage_errors",
    "write_bytes",
    "write_text",
]

_REASONS = {
    errno.ENOSPC: ("the disk is full", "free space, or another folder"),
    errno.EDQUOT: ("the disk quota is used up", "free space, or another folder"),
    errno.EROFS: ("the file system is read-only", "a folder that can be written"),
    errno.EACCES: ("no permission", "a folder that you may write"),
    errno.EPERM: ("no permission", "a folder that you may write"),
    errno.EEXIST: ("a file is where a folder is needed", "a folder"),
    errno.ENOTDIR: ("a file is where a folder is needed", "a folder"),
    errno.ENAMETOOLONG: ("the name is too long", "a shorter one"),
    errno.EIO: ("the disk cannot be read or written", "another disk"),
}


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals (full, read-only, forbidden) into a :class:`StorageError`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        number = _errno(error)
        if number not in _REASONS:
            raise
        problem, expected = _REASONS[number]
        other = (
            error.filename if isinstance(error.filename, str) and not _near(path, error.filename) else None
        )
        if other is not None:  # a file that was read, or a program that was run, to write this one
            raise StorageError(problem, source=other) from error
        raise StorageError(problem, source=path, expected=expected) from error


def _errno(error: BaseException | None) -> int | None:
    """Return the operating system's number; libraries wrap its error in one of their own without it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        error = error.__cause__ or error.__context__
    return None


def _near(path: Path, name: str) -> bool:
    """Whether ``name`` is the file, a folder it lies in, or a temporary beside it."""
    return Path(path).is_relative_to(name) or Path(name).is_relative_to(Path(path).parent)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it onto ``path`` when the block ends well.

    A reader sees the old content or the new, never a part. When the block raises, the temporary
    file is removed and ``path`` is untouched.

    Raises:
        StorageError: The disk is full, read-only or forbidden.
    """
    path = Path(path)
    with storage_errors(path):
        _make_folder(path.parent)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o600)
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # not where the system keeps folders of its own
        raise StorageError("no folder can be made here", source=folder, expected="another folder") from error


def _sync_folder(folder: Path) -> None:
    """Let a rename outlast a power failure, where the system can do that for a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``, to be filled and then renamed, whole or file by file.

    Whatever is left in it is removed when the block ends, however it ends.

    Raises:
        StorageError: The disk is full, read-only or forbidden.
    """
    path = Path(path)
    with storage_errors(path):
        _make_folder(path.parent)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> Path:
    """Write ``content`` to ``path``, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def write_text(path: Path, content: str) -> Path:
    """Write ``content`` to ``path`` as UTF-8, whole or not at all."""
    return write_bytes(path, content.encode("utf-8"))


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
