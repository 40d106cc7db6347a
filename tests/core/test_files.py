from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sagittal.core.errors import StorageError
from sagittal.core.files import atomic_path, sha256_file, storage_errors, write_bytes, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_new_content_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text(path, "old content, longer")
    write_text(path, "µ")
    assert path.read_bytes() == "µ".encode()
    assert names(path.parent) == ["a.txt"]
    assert sha256_file(path) == hashlib.sha256("µ".encode()).hexdigest()


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_patient_file_is_its_owners_alone(tmp_path: Path) -> None:
    assert write_bytes(tmp_path / "a", b"x").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("problem", [RuntimeError("boom"), KeyboardInterrupt()])
def test_a_block_that_raises_leaves_the_old_content(tmp_path: Path, problem: BaseException) -> None:
    path = write_bytes(tmp_path / "a", b"old")

    def interrupted() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half of the new")
            raise problem

    with pytest.raises(type(problem)):
        interrupted()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_full_disk_leaves_the_old_content_and_no_remains(small_disk: Path) -> None:
    path = write_bytes(small_disk / "a", b"old")
    with pytest.raises(StorageError, match=r"disk/a: the disk is full; expected free space"):
        write_bytes(path, bytes(3 << 20))
    assert path.read_bytes() == b"old"
    assert names(small_disk) == ["a"]
    write_bytes(path, bytes(1 << 19))  # what the failure took up is free again


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, seal: Callable[[Path], None]) -> None:
    folder = tmp_path / "sealed"
    path = write_bytes(folder / "a", b"old")
    seal(folder)
    with pytest.raises(StorageError, match=r"sealed/a: (the file system is read-only|no permission)"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file/a: a file is where a folder is needed"):
        write_bytes(tmp_path / "file" / "a", b"x")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc here")
def test_a_place_where_no_folder_can_be_is_named() -> None:
    with pytest.raises(StorageError, match="^/proc/none/here: no folder can be made here"):
        write_text(Path("/proc/none/here/a"), "a")


def test_a_name_that_is_too_long_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the name is too long; expected a shorter one"):
        write_text(tmp_path / ("a" * 300), "a")
    assert not list(tmp_path.iterdir())


def test_another_file_that_was_refused_is_the_one_named(tmp_path: Path) -> None:
    other = str(tmp_path / "elsewhere" / "secret")
    with pytest.raises(StorageError, match=f"^{other}: no permission$"), storage_errors(tmp_path / "a" / "b"):
        raise PermissionError(errno.EACCES, "Permission denied", other)


def test_only_refusals_of_the_disk_are_translated(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), storage_errors(tmp_path):
        (tmp_path / "absent").read_bytes()
