"""Contents on disk by their hash: written once, never changed, checked when read.

An array is an ``.npy`` file (no pickle), anything else a ``.bin`` file. Equal content is kept once.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import StorageError
from sagittal.core.files import atomic_path, sha256_file, storage_errors
from sagittal.core.provenance import hash_array

__all__ = ["ObjectStore", "check_file"]

_CHUNK = 1 << 20


class ObjectStore:
    """A folder of contents.

    Args:
        folder: Where the contents lie; made when the first one is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def put_bytes(self, content: bytes) -> str:
        """Keep ``content``; return its sha256.

        Raises:
            StorageError: The disk is full, read-only or forbidden; nothing is left half written.
        """
        digest = hashlib.sha256(content).hexdigest()
        path = self._path(digest, "bin")
        if not self._refreshed(path):
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
        return digest

    def get_bytes(self, digest: str) -> bytes:
        """Return the content with this sha256.

        Raises:
            StorageError: It is not in the store, or its content has changed on disk.
        """
        return _read_bytes(self._existing(digest, "bin"), digest)

    def put_array(self, array: NDArray[Any]) -> str:
        """Keep ``array``; return its :func:`~sagittal.core.provenance.hash_array`."""
        digest = hash_array(array)
        path = self._path(digest, "npy")
        if not self._refreshed(path):
            content = np.asarray(array, order="C")
            with atomic_path(path) as temporary, temporary.open("wb") as stream:
                header = np.lib.format.header_data_from_array_1_0(content)
                np.lib.format.write_array_header_1_0(stream, header)
                # numpy's own writer says of a full disk only how many items it wrote
                stream.write(content.reshape(-1).view(np.uint8).data)
        return digest

    def get_array(self, digest: str) -> NDArray[Any]:
        """Return the array with this hash.

        Raises:
            StorageError: It is not in the store, or its content has changed on disk.
        """
        return _read_array(self._existing(digest, "npy"), digest)

    def check(self, digest: str) -> Path:
        """Return the file that holds a content, after comparing it with its hash.

        Raises:
            StorageError: It is not in the store, or its content has changed on disk.
        """
        path = self.find(digest)
        if path is None:
            raise self._absent(digest)
        check_file(path, digest)
        return path

    def adopt(self, path: Path, digest: str) -> None:
        """Move a file, ``.bin`` or ``.npy``, into the store; the caller has done :func:`check_file`.

        Raises:
            StorageError: The store cannot be written.
        """
        target = self._path(digest, path.suffix[1:])
        if not self._refreshed(target):
            with atomic_path(target) as temporary:
                path.replace(temporary)

    def find(self, digest: str) -> Path | None:
        """Return the file that holds a content, or None."""
        return next((p for p in (self._path(digest, "bin"), self._path(digest, "npy")) if p.is_file()), None)

    def size(self, digest: str) -> int:
        """Return how many bytes a content takes on disk.

        Raises:
            StorageError: It is not in the store.
        """
        path = self.find(digest)
        if path is None:
            raise self._absent(digest)
        return path.stat().st_size

    def _refreshed(self, path: Path) -> bool:
        """Whether the content is there; its time is then now, so that the collector leaves it in peace."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        except OSError:  # a medium that cannot be written has no collector either
            return path.exists()
        return True

    def _path(self, digest: str, suffix: str) -> Path:
        return self.folder / digest[:2] / f"{digest[2:]}.{suffix}"

    def _existing(self, digest: str, suffix: str) -> Path:
        path = self._path(digest, suffix)
        if not path.is_file():
            raise StorageError("the store does not hold this content", source=path, value=digest)
        return path

    def _absent(self, digest: str) -> StorageError:
        return StorageError("the store does not hold this content", source=self.folder, value=digest)


def check_file(path: Path, digest: str) -> None:
    """Compare a file, ``.bin`` or ``.npy``, with the hash of its content.

    Raises:
        StorageError: It holds something else.
    """
    _READERS[path.suffix](path, digest)


def _read_bytes(path: Path, digest: str) -> bytes:
    with storage_errors(path):
        content = path.read_bytes()
    _compare(path, digest, hashlib.sha256(content).hexdigest())
    return content


def _check_bytes(path: Path, digest: str) -> None:
    """Compare without taking the content into memory: what an archive holds may be large."""
    with storage_errors(path):
        found = sha256_file(path)
    _compare(path, digest, found)


def _read_array(path: Path, digest: str) -> NDArray[Any]:
    try:
        with storage_errors(path), path.open("rb") as stream:
            _refuse_lies(stream, path.stat().st_size)
            stream.seek(0)
            array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header fails in many ways, MemoryError among them
        raise StorageError("the content on disk is damaged", source=path, value=error) from error
    _compare(path, digest, hash_array(array))
    return array


def _check_array(path: Path, digest: str) -> None:
    """Compare without taking the array into memory, where it lies as ``put_array`` writes it."""
    try:
        with storage_errors(path), path.open("rb") as stream:
            shape, fortran, dtype = _refuse_lies(stream, path.stat().st_size)
            plain = not fortran and not dtype.hasobject and dtype == dtype.newbyteorder("<")
            found = hashlib.sha256(f"{dtype.str}{shape}".encode())
            while plain and (chunk := stream.read(_CHUNK)):
                found.update(chunk)
    except OSError:
        raise
    except Exception as error:  # a damaged header fails in many ways, MemoryError among them
        raise StorageError("the content on disk is damaged", source=path, value=error) from error
    if plain:
        _compare(path, digest, found.hexdigest())
    else:
        _read_array(path, digest)


def _refuse_lies(stream: BinaryIO, size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order and dtype of a header; refuse one that promises other than the file holds."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in read:
        raise ValueError(f"version {version} of the npy format")
    shape, fortran, dtype = read[version](stream)
    held = size - stream.tell()
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"{shape} of {dtype} in {held} bytes")
    return shape, fortran, dtype


def _compare(path: Path, wanted: str, found: str) -> None:
    if wanted != found:
        raise StorageError("the content on disk has changed", source=path, value=found, expected=wanted)


_READERS: dict[str, Callable[[Path, str], object]] = {".bin": _check_bytes, ".npy": _check_array}
