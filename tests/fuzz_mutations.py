"""Changes that keep a file's structure: what is packed is unpacked, changed and packed again.

Every function draws from the ``random.Random`` it is given, so a seed gives the same input again. The change
of bytes without structure is handed in, because a coverage-guided fuzzer brings its own.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

from fuzz_inputs import BUNDLE, bundle, unbundle

Bytewise = Callable[[bytes, int], bytes]
INTEGERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    -1,
)
FLOATS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1e-30,
    1e30,
    1e300,
    3e38,
    float("inf"),
    float("-inf"),
    float("nan"),
    2.0**53,
)
WORDS = b"""
0 -1 1 3 99999999999999999999 1e400 nan inf CT MR PT US GML DERIVED LOCAL secret.raw ../secret.raw
LIST True False gzip raw hex ascii MET_UCHAR MET_DOUBLE double uint8 block little big
""".split()
WORDS += [
    b"",
    b"\\",
    b"1\\2\\3",
    b"\xff\xfe",
    b"0 0 0",
    b"(1,0,0) (0,1,0) (0,0,1)",
    b"none (1,0,0) (0,1,0) (0,0,1)",
    b"x" * 300,
]
LINES = b"""\
data file: secret.raw
datafile: secret.raw
data file: LIST
ElementDataFile : secret.raw
ElementDataFile = secret.raw
ElementDataFile = LOCAL
byte skip: -1
byte skip: 5
line skip: 2
HeaderSize = -1
HeaderSize = 99999
CompressedData = True
CompressedDataSize = 4
ElementNumberOfChannels = 3
kinds: domain domain domain
endian: big
block size: 8
encoding: gzip
encoding: bzip2
measurement frame: (1,0,0) (0,1,0) (0,0,1)
space: scanner-xyz
space units: "mm" "mm" "mm"
spacings: 1 2 3
#
Comment =""".splitlines()
LINES += [b"", b" ElementDataFile = secret.raw", b"Name = \xff"]
NIFTI1 = (
    (40, "h", 8),
    (70, "h", 2),
    (76, "f", 8),
    (108, "f", 3),
    (123, "b", 1),
    (252, "h", 2),
    (256, "f", 18),
)
NIFTI2 = (
    (12, "h", 2),
    (16, "q", 8),
    (104, "d", 8),
    (168, "q", 1),
    (176, "d", 2),
    (344, "i", 2),
    (352, "d", 18),
)


def bytewise(rng: random.Random) -> Bytewise:
    """Change one to four places of a file without knowing what it is."""

    def change(data: bytes, limit: int) -> bytes:
        out = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(out) + 1)
            match rng.randrange(6):
                case 0 if at < len(out):
                    out[at] ^= 1 << rng.randrange(8)
                case 1 if at < len(out):
                    out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x20))
                case 2:
                    del out[at : at + rng.randint(1, 16)]
                case 3:
                    out[at:at] = out[at : at + rng.randint(1, 16)]
                case 4:
                    out[at:at] = rng.choice(WORDS)
                case _:
                    del out[at:]
        return bytes(out[:limit])

    return change


def mutate(target: str, data: bytes, limit: int, rng: random.Random, change: Bytewise | None = None) -> bytes:
    """One changed input of at most ``limit`` bytes."""
    change = change or bytewise(rng)
    if target == "archive":
        from fuzz_archive import mutate_archive

        return mutate_archive(data, limit, rng, change)[:limit]
    if target == "plan":
        return change_json(data, limit, rng, change)[:limit]
    one = {"nifti": _nifti, "dicom": _dicom, "itk": _itk}[target]
    if not data.startswith(BUNDLE):
        return one(data, limit, rng, change)[:limit]
    if rng.random() < 0.05:
        return change(data, limit)
    parts = unbundle(data)
    at = rng.randrange(len(parts))
    match rng.randrange(12):
        case 0 if len(parts) > 1:
            del parts[at]
        case 1 if len(parts) < 6:
            parts.insert(rng.randrange(len(parts)), parts[at])
        case 2:
            other = rng.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        case _:
            parts[at] = one(parts[at], limit, rng, change)
    result = bundle(parts)
    return result if len(result) <= limit else data


def _number(code: str, rng: random.Random) -> float | int:
    if code in "fd":
        value = rng.choice(FLOATS) if rng.random() < 0.6 else rng.uniform(-1000, 1000)
        return max(-3e38, min(3e38, value)) if code == "f" and abs(value) < 1e305 else value
    bits = 8 * struct.calcsize(f"<{code}")
    value = rng.choice(INTEGERS) if rng.random() < 0.6 else rng.randrange(1200)
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >= 1 << (bits - 1) else value


def _nifti(data: bytes, limit: int, rng: random.Random, change: Bytewise) -> bytes:
    if data[:1] == b"{":
        return change_json(data, limit, rng, change)
    if data[:2] == b"\x1f\x8b":
        if rng.random() < 0.15:
            return change(data, limit)
        try:
            inner = zlib.decompressobj(31).decompress(data, 1 << 22)  # a packed pack could fill the memory
        except zlib.error:
            return change(data, limit)
        packed = gzip.compress(_nifti(inner, 64 * limit, rng, change), mtime=0)
        return packed + packed if rng.random() < 0.02 else packed
    if len(data) < 348 or rng.random() < 0.3:
        return change(data, limit)
    if rng.random() < 0.05:
        return gzip.compress(data + bytes(rng.choice((0, 1000, 1 << 20, 3 << 20))), mtime=0)
    order = "<" if data[0] else ">"
    fields = NIFTI2 if len(data) >= 540 and data[4:7] == b"n+2" else NIFTI1
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        start, code, count = rng.choice(fields)
        width = struct.calcsize(f"<{code}")
        struct.pack_into(f"{order}{code}", out, start + width * rng.randrange(count), _number(code, rng))
    return bytes(out)


def change_json(data: bytes, limit: int, rng: random.Random, change: Bytewise) -> bytes:
    """Change one value, key or length somewhere in a JSON text."""
    try:
        root: Any = json.loads(data)
    except (ValueError, RecursionError):
        return change(data, limit)
    if rng.random() < 0.15 or not isinstance(root, dict):
        return change(data, limit)
    place: Any = root
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return change(data, limit)
        key = rng.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.85:
            place = place[key]
            continue
        values = [
            None,
            True,
            "",
            "x",
            -1,
            2**70,
            1e308,
            float("nan"),
            [],
            {},
            [[]],
            {"a": 1},
            "float32",
            "O",
            "M8",
            "V9,,",
            "(1,(2))i2",
            "\ud800",
        ]
        match rng.randrange(4):
            case 0:
                del place[key]
            case 1 if isinstance(place, list):
                place.append(rng.choice(values))
            case 1:
                place[rng.choice(("x", "", "version"))] = rng.choice(values)
            case _:
                place[key] = rng.choice(values)
        return json.dumps(root).encode()


def _itk(data: bytes, limit: int, rng: random.Random, change: Bytewise) -> bytes:
    local = re.search(rb"ElementDataFile = LOCAL\n", data)
    end = local.end() if local else data.find(b"\n\n") + 1
    if end <= 1 or rng.random() < 0.15:
        return change(data, limit)
    lines, body = data[:end].split(b"\n"), data[end:]
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(lines))
        match rng.randrange(9):
            case 0 if len(lines) > 1:
                del lines[at]
            case 1:
                lines.insert(at, lines[rng.randrange(len(lines))])
            case 2:
                lines.insert(at, rng.choice(LINES))
            case 3:
                lines[at] = change(lines[at], 400)
            case 4:
                lines[at] += rng.choice((b"\r", b" ", b"\t", b"\0", b"\r\r", b"\r" + rng.choice(LINES)))
            case 5:
                lines[at] = rng.choice((b" ", b"\t", b"#")) + lines[at]
            case _:
                name, separator, value = re.match(rb"([^:=]*)(:?=?\s*)(.*)", lines[at], re.S).groups()  # type: ignore[union-attr]
                words = value.split()
                if words and rng.random() < 0.7:
                    word = (
                        str(_number(rng.choice("hiqd"), rng)).encode()
                        if rng.random() < 0.6
                        else rng.choice(WORDS)
                    )
                    words[rng.randrange(len(words))] = word
                    value = b" ".join(words)
                else:
                    value = rng.choice(WORDS)
                lines[at] = name + rng.choice((separator, separator, b" : ", b" = ", b":=")) + value
    if body and rng.random() < 0.3:
        body = change(body, limit)
    return b"\n".join(lines) + body


def elements(data: bytes) -> list[tuple[int, int, int]]:
    """Start, length of the head and end of each element of a DICOM file, as far as it can be told."""
    syntax = re.search(rb"1\.2\.840\.10008\.1\.2[.\d]*", data[132:400])
    found, at = [], 132
    name = syntax[0] if syntax else b""
    while at + 8 <= len(data):
        meta = data[at : at + 2] == b"\x02\0"
        order = ">" if name == b"1.2.840.10008.1.2.2" and not meta else "<"
        if name == b"1.2.840.10008.1.2" and not meta:
            head, (length,) = 8, struct.unpack_from("<I", data, at + 4)
        elif data[at + 4 : at + 6] in (b"OB", b"OW", b"OF", b"SQ", b"UN", b"UT", b"OD", b"OL", b"UC", b"UR"):
            if at + 12 > len(data):
                break
            head, (length,) = 12, struct.unpack_from(f"{order}I", data, at + 8)
        else:
            head, (length,) = 8, struct.unpack_from(f"{order}H", data, at + 6)
        end = len(data) if length == 0xFFFFFFFF else min(len(data), at + head + length)
        found.append((at, head, end))
        at = end
    return found


def _dicom(data: bytes, limit: int, rng: random.Random, change: Bytewise) -> bytes:
    found = elements(data)
    if not found or rng.random() < 0.1:
        return data[:132] + change(data[132:], limit - 132) if rng.random() < 0.8 else change(data, limit)
    at, head, end = rng.choice(found)
    element, order = data[at:end], ">" if b"1.2.840.10008.1.2.2\0" in data[:400] else "<"
    value, width = element[head:], 4 if head == 12 or element[4:6] == b"\0\0" else 2
    match rng.randrange(11):
        case 0:
            element = b""
        case 1:
            element += element
        case 2:
            other = rng.choice([one for one in found if data[one[0] : one[0] + 2] != b"\x10\0"])  # no names
            element = element[:4] + data[other[0] + 4 : other[2]]
        case 3:  # the length alone
            claimed = rng.choice(INTEGERS) & (256**width - 1)
            element = (
                element[: head - width] + claimed.to_bytes(width, "big" if order == ">" else "little") + value
            )
        case 4:  # the kind of value
            kinds = (
                b"AE AS AT CS DA DS DT FL FD IS LO LT OB OW PN SH SL SQ SS ST TM UI UL UN US UT ZZ".split()
            )
            element = element[:4] + rng.choice(kinds) + element[6:]
        case 5:  # the name of the attribute
            tags = (
                0x00280010,
                0x00280100,
                0x00280103,
                0x00281053,
                0x00200032,
                0x00280008,
                0x7FE00008,
                0x52009230,
            )
            tag = rng.choice(tags)
            element = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF) + element[4:]
        case _:  # the value, with the length that belongs to it
            match rng.randrange(4):
                case 0:
                    value = rng.choice(WORDS)
                case 1 if len(value) in (2, 4):
                    number = rng.choice(INTEGERS) & (256 ** len(value) - 1)
                    value = number.to_bytes(len(value), "big" if order == ">" else "little")
                case 2 if b"\\" in value:
                    words = value.split(b"\\")
                    words[rng.randrange(len(words))] = rng.choice(
                        (b"", b"0", b"1e39", b"nan", b"-7", b"1e-320", b"x")
                    )
                    value = b"\\".join(words)
                case _:
                    value = change(value, limit)
            value += b" " * (len(value) % 2)
            length = min(len(value), 256**width - 1).to_bytes(width, "big" if order == ">" else "little")
            element = element[: head - width] + length + value
    return data[:at] + element + data[end:]
