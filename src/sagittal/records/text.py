"""A patient record as text: decoded as it was written, or refused."""

from __future__ import annotations

import codecs

from sagittal.core.errors import FormatError, InputError

__all__ = ["decode_record"]


def decode_record(content: bytes, *, encoding: str = "utf-8", source: object = "record") -> str:
    """Return the text of a record; line ends become ``\\n``.

    Nothing is guessed: a wrong guess turns names and units into other ones without a word.

    Args:
        content: The file's bytes. A UTF-8 byte order mark is dropped.
        encoding: The encoding that it was written in.
        source: What to call it in an error.

    Raises:
        InputError: The record is empty, or the encoding is unknown.
        FormatError: The bytes are not in this encoding, or are no text at all.
    """
    try:
        name = codecs.lookup(encoding).name
        "a".encode(name)  # rot13 and hex are codecs, but not of text
    except (LookupError, ValueError):
        raise InputError("no such encoding", source=source, value=encoding, expected="e.g. utf-8") from None
    try:
        text = content.decode(name)
    except UnicodeDecodeError as error:
        found = " ".join(f"{byte:02x}" for byte in content[error.start : error.start + 4])
        line = content.count(b"\n", 0, error.start) + 1
        raise FormatError(
            f"line {line} is not {name}",
            source=source,
            value=f"bytes {found} at {error.start}",
            expected="the encoding it was written in, e.g. --encoding latin-1",
        ) from error
    text = text.removeprefix("\ufeff") if name == "utf-8" else text
    if "\x00" in text:
        raise FormatError("the record holds NUL characters", source=source, expected="a text file")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise InputError("the record is empty", source=source, value=f"{len(content)} bytes", expected="text")
    return text
