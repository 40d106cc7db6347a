"""Inputs that were findings once, each made in a few lines; they stay, so that the fixes stay."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from fuzz_inputs import PATIENT, bundle, seeds
from fuzz_mutations import elements

_LONG_FORMS = (b"OB", b"OW", b"OF", b"SQ", b"UN", b"UT")


@dataclass(frozen=True)
class Kept:
    """One input: the door it goes to, what happened there before the fix, and how its bytes are made."""

    name: str
    target: str
    kind: str
    make: Callable[[], bytes]


def _scaled(slope: float, intercept: float) -> bytes:
    data = bytearray(seeds("nifti")[0])
    struct.pack_into("<2f", data, 112, slope, intercept)
    return bytes(data[:352]) + bytes(48)


def _sidecar_with(dtype: str) -> bytes:
    image = seeds("nifti")[0]
    affine = [[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]]
    record = {"version": 1, "unit": "1", "dtype": dtype, "facts": {}, "content_hash": ""}
    record["geometry"] = {"shape": [4, 3, 2], "affine": affine}
    return bundle([image, json.dumps({"sagittal": record}).encode()])


def _dicom_with(tag: int, kind: bytes, value: bytes, *, length: int | None = None, seed: int = 0) -> bytes:
    """An explicit little-endian seed with one element put in the place of the one of that tag, or added."""
    data = seeds("dicom")[seed]
    name = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    value += b" " * (len(value) % 2)
    number = len(value) if length is None else length
    head = struct.pack("<HI", 0, number) if kind in _LONG_FORMS else struct.pack("<H", number)
    found = [
        (at, end)
        for at, _, end in elements(data)
        if struct.unpack_from("<HH", data, at) >= (tag >> 16, tag & 0xFFFF)
    ]
    at, end = next(((at, end) for at, end in found if data[at : at + 4] == name), (found[0][0], found[0][0]))
    return data[:at] + name + kind + head + value + data[end:]


def _coded_with(marker: bytes, at: int, numbers: bytes, seed: int) -> bytes:
    data = bytearray(seeds("dicom")[seed])
    start = data.index(marker) + at
    data[start : start + len(numbers)] = numbers
    return bytes(data)


def _deflated_bomb() -> bytes:
    data = seeds("dicom")[7]
    end = 144 + int.from_bytes(data[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return data[:end] + 600 * block + packer.flush()


_META = (
    b"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n%s"
    b"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 1\nDimSize = 8 8 8\n"
    b"ElementType = MET_UCHAR\n%sElementDataFile = LOCAL\n"
)
_NRRD = (
    b"NRRD0004\ntype: uint8\ndimension: 3\nspace: right-anterior-superior\nsizes: 8 8 8\n"
    b"space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nencoding: raw\n%s\n"
)
_PACKED = zlib.compress(bytes(100))
_WHOLE = zlib.compress(bytes(range(256)) * 2)
_COMPRESSED = b"CompressedData = True\nCompressedDataSize = %d\n"


def _meta(first: bytes = b"", last: bytes = b"", body: bytes = bytes(512)) -> bytes:
    return _META % (first, last) + body


def _plan_of_fields() -> bytes:
    return seeds("plan")[1].replace(b'"dtype": "float32"', b'"dtype": "V9,,"')


def _before_its_start() -> bytes:
    """An archive whose directory says that it begins ten bytes further on, and its first file ten before."""
    data = seeds("archive")[0]
    at = data.rfind(b"PK\5\6") + 16
    return data[:at] + struct.pack("<I", struct.unpack_from("<I", data, at)[0] + 10) + data[at + 4 :]


def _overlong() -> bytes:
    return _meta(b"Name = " + b"x" * 300 + b"\n").replace(b"ElementSpacing = 1 ", b"ElementSpacing = 1e+300 ")


def _swallowed() -> bytes:
    """A class that takes in what stands behind it, the patient's name among it."""
    data = seeds("dicom")[0]
    start = next(at for at, _, _ in elements(data) if data[at : at + 4] == b"\x08\0\x16\0")
    end = next(end for at, _, end in elements(data) if data[at : at + 4] == b"\x10\0\x20\0")
    length = struct.pack("<H", end - start - 8)
    return data[: start + 6] + length + data[start + 8 :]


KEPT = (
    Kept("an intercept that is infinite", "nifti", "exception", lambda: _scaled(2.0, float("-inf"))),
    Kept("a whole slope beyond 64 bits", "nifti", "exception", lambda: _scaled(1e30, 0.0)),
    Kept("a sidecar with a dtype of fields", "nifti", "exception", lambda: _sidecar_with("V9,,")),
    Kept("a sidecar with a dtype of a shape", "nifti", "exception", lambda: _sidecar_with("(1,(2))i2")),
    Kept("two padding values", "dicom", "exception", lambda: _dicom_with(0x00280120, b"SS", b"\1\0\2\0")),
    Kept(
        "a padding value that is a text", "dicom", "exception", lambda: _dicom_with(0x00280120, b"LO", b"x")
    ),
    Kept(
        "a manufacturer that is a number",
        "dicom",
        "exception",
        lambda: _dicom_with(0x00080070, b"US", b"\1\0"),
    ),
    Kept(
        "a modality of an unknown kind", "dicom", "exception", lambda: _dicom_with(0x00080060, b"ZZ", b"CT")
    ),
    Kept("a modality in too few bytes", "dicom", "exception", lambda: _dicom_with(0x00080060, b"UL", b"CT")),
    Kept("a class of an unknown kind", "dicom", "exception", lambda: _dicom_with(0x00080016, b"ZZ", b"1.2")),
    Kept("a series of an unknown kind", "dicom", "exception", lambda: _dicom_with(0x0020000E, b"ZZ", b"1.2")),
    Kept(
        "a position of another kind",
        "dicom",
        "exception",
        lambda: _dicom_with(0x00200032, b"FD", b"-4\\5\\6"),
    ),
    Kept(
        "a slice spacing of an unknown kind",
        "dicom",
        "exception",
        lambda: _dicom_with(0x00180088, b"ZZ", b"3"),
    ),
    Kept(
        "a transfer syntax of two UIDs",
        "dicom",
        "exception",
        lambda: _dicom_with(0x00020010, b"UI", b"1.2\\1.3"),
    ),
    Kept(
        "a transfer syntax of another kind",
        "dicom",
        "exception",
        lambda: _dicom_with(0x00020010, b"LO", b"1.2.3"),
    ),
    Kept(
        "functional groups that end early",
        "dicom",
        "exception",
        lambda: _dicom_with(0x52009230, b"SQ", b"\xfe\xff\0\xe0", seed=9),
    ),
    Kept("a name in a message", "dicom", "identity", _swallowed),
    Kept(
        "a name in a message of a colour",
        "dicom",
        "identity",
        lambda: _dicom_with(0x00280004, b"CS", PATIENT[1].encode()),
    ),
    Kept(
        "a message of many pages",
        "dicom",
        "message",
        lambda: _dicom_with(0x00280103, b"US", bytes(range(1, 256)) * 20),
    ),
    Kept(
        "a JPEG-LS frame of 20000 x 20000",
        "dicom",
        "memory",
        lambda: _coded_with(b"\xff\xf7", 5, struct.pack(">HH", 20000, 20000), 5),
    ),
    Kept("a deflated data set of 600 MB", "dicom", "memory", _deflated_bomb),
    Kept("axes without end", "itk", "crash", lambda: _meta().replace(b"NDims = 3", b"NDims = 4294967295")),
    Kept("axes below zero", "itk", "crash", lambda: _meta().replace(b"NDims = 3", b"NDims = -1")),
    Kept("axes named twice", "itk", "crash", lambda: _meta(b"NDims = -1.0\n")),
    Kept("a name of 300 letters", "itk", "crash", _overlong),
    Kept(
        "compressed voxels of 2 GB in a small file",
        "itk",
        "memory",
        lambda: _meta(_COMPRESSED % 2147483647, body=zlib.compress(bytes(512))),
    ),
    Kept(
        "another file behind a space",
        "itk",
        "foreign-read",
        lambda: _meta(last=b" ElementDataFile = secret.raw\n"),
    ),
    Kept(
        "another file behind a colon",
        "itk",
        "foreign-read",
        lambda: _meta(last=b"ElementDataFile : secret.raw\n"),
    ),
    Kept(
        "another file behind a long comment",
        "itk",
        "foreign-read",
        lambda: _NRRD % (b"#" * 70000 + b"\ndata file: secret.raw\n") + bytes(512),
    ),
    Kept(
        "another file behind a carriage return",
        "itk",
        "foreign-read",
        lambda: _NRRD % b"#\rdata file: secret.raw\n" + bytes(512),
    ),
    Kept(
        "compressed voxels that are too few",
        "itk",
        "foreign-read",
        lambda: _meta(_COMPRESSED % len(_PACKED), body=_PACKED),
    ),
    Kept(
        "compressed voxels of no size",
        "itk",
        "foreign-read",
        lambda: _meta(b"CompressedData = True\n", body=_PACKED),
    ),
    Kept(
        "compressed voxels counted from the end",
        "itk",
        "foreign-read",
        lambda: _meta(_COMPRESSED % len(_WHOLE) + b"HeaderSize = -1\n", body=_WHOLE),
    ),
    Kept("a plan with a dtype of fields", "plan", "exception", _plan_of_fields),
    Kept("a file before the start of its archive", "archive", "exception", _before_its_start),
)
