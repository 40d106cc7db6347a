from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagittal.core.errors import FormatError, InputError
from sagittal.records import decode_record

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r\ufeff")).filter(str.strip)


@given(TEXT, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"]))
def test_what_was_written_is_what_is_read(text: str, encoding: str) -> None:
    assert decode_record(text.encode(encoding), encoding=encoding) == text


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_bytes_of_another_encoding_are_refused_by_line_and_byte(mark: bytes) -> None:
    content = mark + "first\nfrüh".encode() + "\nMüller".encode("latin-1")
    offset = content.index(b"\xfc")
    assert content[offset:].startswith(b"\xfcll")
    with pytest.raises(FormatError) as caught:
        decode_record(content, source="notes.txt")
    assert str(caught.value) == (
        f"notes.txt: line 3 is not utf-8; got bytes fc 6c 6c 65 at {offset}; "
        "expected the encoding it was written in, e.g. --encoding latin-1"
    )


def test_the_encoding_that_is_named_is_used() -> None:
    assert decode_record("Müller: 5 µg".encode("latin-1"), encoding="latin-1") == "Müller: 5 µg"
    with pytest.raises(FormatError, match="line 1 is not ascii; got bytes fc"):
        decode_record(b"M\xfcller", encoding="ascii")


def test_a_byte_order_mark_is_no_text() -> None:
    assert decode_record(b"\xef\xbb\xbfabc") == "abc"
    assert decode_record(b"abc\xef\xbb\xbf") == "abc\ufeff"


@pytest.mark.parametrize("content", [b"a\nb\nc\n", b"a\r\nb\r\nc\r\n", b"a\rb\rc\r", b"a\r\nb\nc\r"])
def test_line_ends_become_one(content: bytes) -> None:
    assert decode_record(content) == "a\nb\nc\n"


@pytest.mark.parametrize("content", [b"", b" \r\n\t\n", b"\xef\xbb\xbf\n", "\u00a0\u2003".encode()])
def test_an_empty_record_is_refused(content: bytes) -> None:
    with pytest.raises(
        InputError, match=f"r.txt: the record is empty; got {len(content)} bytes; expected text"
    ):
        decode_record(content, source="r.txt")


def test_a_binary_file_is_refused() -> None:
    with pytest.raises(FormatError, match="r.doc: the record holds NUL characters; expected a text file"):
        decode_record(b"text\x00more", source="r.doc")
    with pytest.raises(FormatError, match="NUL"):
        decode_record("ab".encode("utf-16-le"))


@pytest.mark.parametrize("encoding", ["utf-9", "", "rot13", "hex", "zip", "a\x00b"])
def test_an_encoding_that_is_none_is_refused(encoding: str) -> None:
    with pytest.raises(InputError) as caught:
        decode_record(b"abc", encoding=encoding, source="r.txt")
    assert f"r.txt: no such encoding; got {encoding}; expected e.g. utf-8" in str(caught.value)
