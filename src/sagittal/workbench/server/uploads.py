"""Received files: bounded in number, named harmlessly, known by their content, kept in a temporary folder."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from sagittal.core.errors import FormatError
from sagittal.core.files import storage_errors
from sagittal.volume import image_format
from sagittal.workbench.server.problems import Problem

__all__ = ["Upload", "base_name", "received"]

_LONGEST_NAME = 150
_LONGEST_FIELD = 10_000
_MOST_FIELDS = 20
_LONGEST_HEADERS = 8192


@dataclass
class Upload:
    """What a form brought.

    Attributes:
        fields: Its texts by name.
        files: Its files by field: the name that was received, cut to a base name, and where the content lies.
    """

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[tuple[str, Path]]] = field(default_factory=dict)

    def contents(self, name: str) -> list[tuple[str, bytes]]:
        """Return the files of a field: name and content, in the order in which they came."""
        found = []
        for original, path in self.files.get(name, []):
            with storage_errors(path):
                found.append((original, path.read_bytes()))
        return found

    def require_images(self, fields: Sequence[str]) -> None:
        """Refuse files that are no image by their first bytes, and one field with images of several formats.

        Raises:
            Problem: The message names the file.
        """
        for name in fields:
            for original, path in self.files.get(name, []):
                try:
                    image_format(path)
                except FormatError as error:
                    raise Problem(
                        415, error.problem, source=original, value=error.value, expected=error.expected
                    ) from error


def base_name(name: str) -> str:
    """Return the last part of a received file name.

    Raises:
        Problem: Nothing is left of it, it is too long, or it holds control characters.
    """
    last = name.replace("\\", "/").rpartition("/")[2].strip()
    wrong = last in {"", ".", ".."} or len(last.encode("utf-8", "replace")) > _LONGEST_NAME
    if wrong or not last.isprintable():
        raise Problem(
            422,
            "a file's name cannot be used",
            value=ascii(last[:80]),
            expected=f"up to {_LONGEST_NAME} bytes",
        )
    return last


@contextlib.asynccontextmanager
async def received(request: Request, files: Sequence[str], *, most: int) -> AsyncIterator[Upload]:
    """Spool a multipart form to a temporary folder, under names of our own; removed when the block ends.

    Args:
        request: The request; its body is bounded before it comes here.
        files: Names of the fields that hold files.
        most: Most files.

    Raises:
        Problem: Not a form, a damaged one, too many files or texts, or a name that cannot be used.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise Problem(415, "not a form with files", expected="multipart/form-data")
    folder = Path(tempfile.mkdtemp(prefix="sagittal-upload-"))
    spool = _Spool(folder, frozenset(files), most)
    try:
        try:
            parser = MultipartParser(boundary, spool.callbacks())
            async for chunk in request.stream():
                with storage_errors(folder):
                    await run_in_threadpool(parser.write, chunk)
            parser.finalize()
        except (FormParserError, UnicodeDecodeError) as error:
            raise Problem(400, "the form is damaged", expected="multipart/form-data") from error
        finally:
            spool.close()
        if not spool.ended:
            raise Problem(400, "the form is cut off", expected="its last boundary")
        yield spool.upload
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Spool:
    """Takes what the parser of a form finds."""

    def __init__(self, folder: Path, files: frozenset[str], most: int) -> None:
        self.upload = Upload()
        self.ended = False
        self._folder, self._files, self._most = folder, files, most
        self._count = 0
        self._name = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._field = ""
        self._text = b""
        self._stream: Any = None
        self._skip = False

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _begin(self) -> None:
        self._headers, self._name, self._value, self._text = {}, b"", b"", b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name = self._bounded(self._name + data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value = self._bounded(self._value + data[start:end])

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""
        if len(self._headers) > _MOST_FIELDS:
            raise Problem(400, "a part of the form has too many headers")

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._field = options.get(b"name", b"").decode()
        self._skip = options.get(b"filename") == b""  # a browser's field in which no file was chosen
        if b"filename" not in options or self._skip:
            if len(self.upload.fields) >= _MOST_FIELDS and not self._skip:
                raise Problem(413, "too many fields", expected=f"{_MOST_FIELDS} or fewer")
            return
        if self._field not in self._files:
            raise Problem(
                422,
                "no file is taken in this field",
                value=ascii(self._field[:80]),
                expected=", ".join(sorted(self._files)),
            )
        name = base_name(options[b"filename"].decode())
        if self._count >= self._most:
            raise Problem(413, "too many files", expected=f"{self._most} or fewer")
        path = self._folder / f"{self._count:05d}"
        self._count += 1
        self._stream = path.open("xb")
        self.upload.files.setdefault(self._field, []).append((name, path))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._stream is not None:
            self._stream.write(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > _LONGEST_FIELD:
            raise Problem(413, "a field is too long", expected=f"{_LONGEST_FIELD} bytes or fewer")

    def _end_part(self) -> None:
        if self._stream is not None:
            self.close()
        elif not self._skip:
            self.upload.fields[self._field] = self._text.decode()

    def _end(self) -> None:
        self.ended = True

    def _bounded(self, text: bytes) -> bytes:
        if len(text) > _LONGEST_HEADERS:
            raise Problem(400, "a header of the form is too long")
        return text
