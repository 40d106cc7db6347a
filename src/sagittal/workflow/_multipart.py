"""A multipart/related message taken apart as it arrives, each part to a file of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from sagittal.core.errors import ArchiveError

__all__ = ["boundary_of", "write_parts"]

_LONGEST_HEADER = 16 * 1024


def boundary_of(content_type: str, *, source: object) -> bytes:
    """Return the boundary that a Content-Type names.

    Raises:
        ArchiveError: It is not multipart/related, or names no boundary.
    """
    kind, *parameters = [part.strip() for part in content_type.split(";")]
    if kind.lower() != "multipart/related":
        raise ArchiveError(
            "the answer is not a multipart message", source=source, value=kind, expected="multipart/related"
        )
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "boundary" and value.strip('" '):
            return value.strip('" ').encode("latin-1")
    raise ArchiveError("the multipart message names no boundary", source=source, value=content_type)


def write_parts(
    chunks: Iterable[bytes],
    boundary: bytes,
    folder: Path,
    *,
    source: object,
    max_parts: int,
    max_bytes: int,
    content_type: str = "application/dicom",
) -> Iterator[Path]:
    """Write each part's body to ``folder`` as it arrives, and yield its path once it is whole.

    Args:
        chunks: The message.
        boundary: What stands between the parts.
        folder: Where to write ``part-00001`` and so on.
        source: What errors name.
        max_parts: Bound on the number of parts.
        max_bytes: Bound on the size of all bodies together.
        content_type: What each part has to be, where it says what it is.

    Raises:
        ArchiveError: The message ends before its closing boundary, a part is of another type, or a bound
            is passed.
    """
    stream = _Stream(chunks, source)
    delimiter = b"\r\n--" + boundary
    stream.buffer = bytearray(b"\r\n")  # the first boundary may open the message
    stream.copy_until(delimiter, None, _LONGEST_HEADER)
    left = max_bytes
    for number in range(1, max_parts + 2):
        if stream.take(2) == b"--":
            return
        if number > max_parts:
            raise ArchiveError(
                "the answer has too many parts", source=source, expected=f"at most {max_parts}"
            )
        header = b"\r\n" + stream.read_until(b"\r\n\r\n")
        _check_type(header, content_type, source)
        path = folder / f"part-{number:05d}"
        with path.open("wb") as file:
            left -= stream.copy_until(delimiter, file, left)
        yield path


def _check_type(header: bytes, wanted: str, source: object) -> None:
    for line in header.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        kind = value.partition(";")[0].strip().lower()
        if name.strip().lower() == "content-type" and kind != wanted:
            raise ArchiveError("a part is of another type", source=source, value=kind, expected=wanted)


class _Stream:
    """Bytes that arrive in chunks, read up to a mark."""

    def __init__(self, chunks: Iterable[bytes], source: object) -> None:
        self._chunks = iter(chunks)
        self._source = source
        self.buffer = bytearray()

    def _more(self) -> None:
        for chunk in self._chunks:
            if chunk:
                self.buffer += chunk
                return
        raise ArchiveError(
            "the answer ends in the middle: the connection or the archive broke off", source=self._source
        )

    def take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            self._more()
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken

    def read_until(self, mark: bytes) -> bytes:
        """Return what stands before the mark, and step over it; no more than a header may be long."""
        while (place := self.buffer.find(mark)) < 0:
            if len(self.buffer) > _LONGEST_HEADER:
                raise ArchiveError("a part's header has no end", source=self._source)
            self._more()
        return self.take(place + len(mark))[: -len(mark)]

    def copy_until(self, mark: bytes, file: BinaryIO | None, most: int) -> int:
        """Write what stands before the mark to ``file``, step over the mark, and return the size."""
        size = 0
        while True:
            place = self.buffer.find(mark)
            ready = place if place >= 0 else max(0, len(self.buffer) - len(mark) + 1)
            size += ready
            if size > most:
                raise ArchiveError(
                    "the answer is larger than allowed", source=self._source, expected=f"{most} bytes at most"
                )
            body = self.take(ready)
            if file is not None:
                file.write(body)
            if place >= 0:
                self.take(len(mark))
                return size
            self._more()
