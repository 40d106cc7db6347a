"""The size that a compressed frame itself promises: decoders make room for it before anybody compares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sagittal.core.errors import FormatError, SagittalError
from sagittal.core.optional import optional_import
from sagittal.volume._dicom_values import attribute, integer

__all__ = ["coded_sizes", "require_coded_size"]

_START_OF_FRAME = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
_START_OF_SCAN = 0xDA
_JPEG, _JPEG_2000 = b"\xff\xd8", b"\xff\x4f\xff\x51"


def coded_sizes(stream: bytes) -> list[tuple[int, int]]:
    """Return (rows, columns) of each frame header in a JPEG, JPEG-LS or JPEG 2000 stream; none in another.

    Headers count up to the first scan, where a decoder has made its room.
    """
    if stream.startswith(_JPEG_2000):
        if len(stream) < 24:
            return []
        columns, rows, left, top = (int.from_bytes(stream[at : at + 4]) for at in (8, 12, 16, 20))
        return [(rows - top, columns - left)]
    if not stream.startswith(_JPEG):
        return []
    sizes, at = [], 2
    while at + 4 <= len(stream):
        if stream[at] != 0xFF:
            break
        marker = stream[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker == _START_OF_SCAN:
            break
        if marker in _START_OF_FRAME and at + 9 <= len(stream):
            sizes.append((int.from_bytes(stream[at + 5 : at + 7]), int.from_bytes(stream[at + 7 : at + 9])))
        at += 2 + max(2, int.from_bytes(stream[at + 2 : at + 4]))
    return sizes


def require_coded_size(dataset: Any, file: Path) -> None:
    """Refuse an image with frames whose own header says another size: a decoder would make room for that.

    Raises:
        FormatError: A frame of another size, or none where the data should hold frames.
    """
    size = integer(dataset, "Rows", file), integer(dataset, "Columns", file)
    count = integer(dataset, "NumberOfFrames", file, 1)
    encaps = optional_import("pydicom.encaps")
    try:
        frames = encaps.generate_frames(attribute(dataset, "PixelData", file) or b"", number_of_frames=count)
        coded = {one for frame in frames for one in coded_sizes(frame)}
    except SagittalError:
        raise
    except Exception as error:
        raise FormatError(
            "the pixel data are truncated or damaged", source=file, value=type(error).__name__
        ) from None
    if coded - {size}:
        raise FormatError(
            "the pixel data do not have the size the header gives",
            source=file,
            value=f"rows and columns {sorted(coded - {size})[0]} in the compressed pixel data",
            expected=f"{size}",
        )
