"""Headers of NRRD and MetaImage files, checked before ITK sees them.

ITK's parsers trust a header: one with other separators, spaces or line ends can name another file as its
data, a count that is impossible ends the process, and compressed voxels that are too few leave memory as it
was. So only what writers write is let through.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

from sagittal.core.errors import FormatError

__all__ = ["checked_header"]

_LARGEST_HEADER = 1 << 20
_CHUNK = 1 << 20
_DETACHED = "header and data in one file (.nrrd, .mha)"
_ELEMENT_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_LONG", "MET_ULONG", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
_VECTORS = ("Offset", "Position", "Origin", "CenterOfRotation", "ElementSpacing", "ElementSize")
_MATRICES = ("TransformMatrix", "Rotation", "Orientation")
_FLAGS = ("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData")
_ENCODINGS = ("raw", "txt", "text", "ascii", "hex", "gz", "gzip")
_MOST_AXES = 8
_LONGEST_NAME, _LONGEST_TEXT = 64, 240  # ITK keeps a text in 255 bytes and does not count


def checked_header(path: Path, max_bytes: int) -> tuple[str, bool]:
    """Return the name of ITK's reader for a file, and whether its header places the image in space.

    Raises:
        FormatError: Neither NRRD nor MetaImage; a header that is damaged, longer than 1 MiB, or written
            as no writer does; data in another file; compressed voxels that are not as many as promised.
    """
    with path.open("rb") as stream:
        start = stream.read(_LARGEST_HEADER)
    if not start:
        raise FormatError(
            "the file is empty", source=path, value="0 bytes", expected="an NRRD or MetaImage file"
        )
    if start.startswith(b"NRRD000"):
        return "NrrdImageIO", _check_nrrd(start, path)
    if re.match(rb"(ObjectType|NDims|Comment)\s*=", start):
        return "MetaImageIO", _check_metaimage(start, path, max_bytes)
    raise FormatError(
        "neither an NRRD nor a MetaImage file", source=path, value=f"first bytes {start[:16]!r}"
    )


def _lines(header: bytes, path: Path) -> list[str]:
    lines = header.decode("latin-1").replace("\r\n", "\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if any(ord(letter) < 32 and letter != "\t" for letter in line):
            raise _damaged(path, f"a control character in line {number}", "lines of text")
    return lines


def _check_nrrd(start: bytes, path: Path) -> bool:
    end = re.search(rb"\r?\n\r?\n", start)
    header = start[: end.start()] if end else start.rstrip(b"\r\n")
    fields: dict[str, str] = {}
    for number, line in enumerate(_lines(header, path)[1:], start=2):
        if line.startswith("#") or ":=" in line.partition(": ")[0]:
            continue
        name, separator, value = line.partition(":")
        key = re.sub(r"[\s_]", "", name).lower()
        if key == "datafile":
            raise FormatError(
                "the voxel data are not in this file",
                source=path,
                value="a detached header",
                expected=_DETACHED,
            )
        if not separator or name != name.strip() or key in fields:
            raise _damaged(path, f"line {number}", "a field, a key or a comment")
        fields[key] = value.strip()
    if end is None:
        raise _damaged(path, "no empty line that ends it", f"one within {_LARGEST_HEADER} bytes")
    if fields.get("encoding", "").lower() not in _ENCODINGS:
        raise _damaged(path, f"encoding {_shown(fields.get('encoding', 'missing'))}", ", ".join(_ENCODINGS))
    for key in ("lineskip", "byteskip"):
        if fields.get(key, "0") not in ("0", "-1"):
            raise _damaged(path, f"{key} {_shown(fields[key])}", "data that follow the header")
    axes = _whole(fields, "dimension", 1, path, most=_MOST_AXES)[0]
    _whole(fields, "sizes", axes, path, most=2**40)
    return "spacedirections" in fields


def _check_metaimage(start: bytes, path: Path, max_bytes: int) -> bool:
    named = re.search(rb"(?i)ElementDataFile", start)
    if named is None:
        raise _damaged(path, "no ElementDataFile", f"one within {_LARGEST_HEADER} bytes")
    last = re.compile(rb"ElementDataFile[ \t]*=[ \t]*(\S+)[ \t]*(?:\r?\n|$)").match(start, named.start())
    if last is None or last[1].upper() != b"LOCAL" or start[named.start() - 1] != 10:
        raise FormatError(
            "the voxel data are not in this file", source=path, value="a detached header", expected=_DETACHED
        )
    fields: dict[str, str] = {}
    for number, line in enumerate(_lines(start[: named.start()], path)[:-1], start=1):
        found = re.fullmatch(r"([A-Za-z]\w*)[ \t]*=[ \t]*(.*\S)[ \t]*", line)
        if found is None:
            raise _damaged(path, f"line {number}", "NAME = VALUE")
        if found[1] in fields:
            raise _damaged(path, f"{found[1]} twice", "each name once")
        numeric = found[1] in (*_VECTORS, *_MATRICES, "DimSize")
        if len(found[1]) > _LONGEST_NAME or (len(found[2]) > _LONGEST_TEXT and not numeric):
            raise _damaged(path, f"{len(line)} characters in line {number}", f"texts up to {_LONGEST_TEXT}")
        fields[found[1]] = found[2]
    axes = _whole(fields, "NDims", 1, path, most=_MOST_AXES)[0]
    sizes = _whole(fields, "DimSize", axes, path, most=2**40)
    names = list(fields)
    for key in names[: names.index("NDims")]:
        if key in (*_VECTORS, *_MATRICES, "DimSize"):
            raise _damaged(path, f"{key} before NDims", "NDims first")
    for key in names:
        if key in _VECTORS or key in _MATRICES:
            _finite(fields, key, axes if key in _VECTORS else axes * axes, path)
        elif key in _FLAGS and fields[key].lower() not in ("true", "false", "1", "0"):
            raise _damaged(path, f"{key} {_shown(fields[key])}", "True or False")
    if fields.get("HeaderSize", "0") != "0":
        raise _damaged(path, f"HeaderSize {_shown(fields['HeaderSize'])}", "data that follow the header")
    channels = _whole(fields, "ElementNumberOfChannels", 1, path, most=64, default="1")[0]
    kind = fields.get("ElementType", "missing")
    if kind not in _ELEMENT_BYTES:
        raise _damaged(path, f"ElementType {_shown(kind)}", ", ".join(_ELEMENT_BYTES))
    promised = math.prod(sizes) * channels * _ELEMENT_BYTES[kind]
    if promised > max_bytes:
        raise FormatError(
            "the header promises more data than allowed",
            source=path,
            value=f"size {tuple(sizes)}, {promised} bytes",
            expected=f"at most max_bytes={max_bytes}",
        )
    if fields.get("CompressedData", "False").lower() in ("true", "1"):
        packed = _whole(fields, "CompressedDataSize", 1, path, most=2**40)[0]
        _check_packed(path, last.end(), packed, promised)
    return any(key in fields for key in _MATRICES)


def _check_packed(path: Path, offset: int, packed: int, promised: int) -> None:
    """Unpack the voxels once and count them: ITK leaves what is missing as it finds the memory."""
    there = path.stat().st_size - offset
    if packed > there:  # ITK makes room for what is said, not for what is there
        raise FormatError(
            "the voxel data are truncated or damaged",
            source=path,
            value=f"{there} bytes",
            expected=f"CompressedDataSize {packed}",
        )
    unpacker, found = zlib.decompressobj(47), 0
    with path.open("rb") as stream:
        stream.seek(offset)
        try:
            while packed > 0 and found <= promised and not unpacker.eof:
                piece = stream.read(min(packed, _CHUNK))
                if not piece:
                    break
                packed -= len(piece)
                while piece and found <= promised and not unpacker.eof:
                    found += len(unpacker.decompress(piece, _CHUNK))
                    piece = unpacker.unconsumed_tail
        except zlib.error as error:
            raise FormatError(f"the voxel data are truncated or damaged ({error})", source=path) from error
    if found != promised or not unpacker.eof:
        raise FormatError(
            "the voxel data are truncated or damaged",
            source=path,
            value=f"{found} bytes unpacked" if unpacker.eof else "a compressed stream without its end",
            expected=f"{promised} bytes",
        )


def _whole(
    fields: Mapping[str, str], name: str, count: int, path: Path, *, most: int, default: str = ""
) -> list[int]:
    text = fields.get(name, default)
    words = text.split()
    if len(words) != count or not all(re.fullmatch(r"[0-9]{1,13}", word) for word in words):
        raise _damaged(path, f"{name} {_shown(text)}", f"{count} whole numbers")
    numbers = [int(word) for word in words]
    if not all(1 <= number <= most for number in numbers):
        raise _damaged(path, f"{name} {_shown(text)}", f"1 to {most}")
    return numbers


def _finite(fields: Mapping[str, str], name: str, count: int, path: Path) -> None:
    try:
        numbers = [float(word) for word in fields[name].split()]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise _damaged(path, f"{name} {_shown(fields[name])}", f"{count} finite numbers")


def _shown(text: str) -> str:
    return text[:40] or "missing"


def _damaged(path: Path, value: str, expected: str) -> FormatError:
    return FormatError("the header is damaged", source=path, value=value, expected=expected)
