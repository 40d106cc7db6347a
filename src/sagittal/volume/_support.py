"""What the readers share: optional libraries, rescaling, and values that are not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import FormatError, InputError

__all__ = ["GIB", "NonFinite", "existing_file", "replace_nonfinite", "rescale_frames"]

GIB = 1 << 30
NonFinite = Literal["refuse"] | float
"""What to do with NaN and infinity: refuse the file, or put this number in their place."""


def existing_file(path: Path) -> Path:
    """Return ``path`` where a file stands there.

    Raises:
        InputError: Nothing is there, or it is a folder.
    """
    if path.is_file():
        return path
    raise InputError(
        "a folder, not a file" if path.is_dir() else "there is no such file", source=path, expected="a file"
    )


def rescale_frames(
    frames: NDArray[Any], scaling: Sequence[tuple[float, float]], axis: int = -1
) -> NDArray[Any]:
    """Apply ``stored * slope + intercept``, with one (slope, intercept) for each frame along ``axis``.

    When every slope is 1 and every intercept 0 the array comes back as it is. When all are whole
    numbers and the stored values are integers, the result is exact, in the smallest of int16, int32
    and int64 that holds it. Otherwise the arithmetic is float64 and the result is float32 where that
    keeps a stored float32 or a hundredth of a step between stored integers, else float64.
    """
    if all(pair == (1.0, 0.0) for pair in scaling):
        return frames
    moved = np.moveaxis(frames, axis, 0)
    whole = all(number.is_integer() and abs(number) < 2.0**63 for pair in scaling for number in pair)
    if frames.dtype.kind in "iu" and whole:
        ends = [
            int(end) * int(slope) + int(intercept)
            for frame, (slope, intercept) in zip(moved, scaling, strict=True)
            for end in (frame.min(), frame.max())
        ]
        for dtype in (np.int16, np.int32, np.int64):
            limits = np.iinfo(dtype)
            if limits.min <= min(ends) and max(ends) <= limits.max:
                return _apply(moved, scaling, np.dtype(dtype), np.dtype(np.int64), axis)
    narrow = frames.dtype.itemsize <= 4
    if frames.dtype.kind in "iu":
        largest = max(
            abs(float(end) * slope + intercept)
            for frame, (slope, intercept) in zip(moved, scaling, strict=True)
            for end in (frame.min(), frame.max())
        )
        narrow = largest * 2.0**-24 <= 0.01 * min(abs(slope) for slope, _ in scaling)
    return _apply(moved, scaling, np.dtype(np.float32 if narrow else np.float64), np.dtype(np.float64), axis)


def _apply(
    moved: NDArray[Any],
    scaling: Sequence[tuple[float, float]],
    dtype: np.dtype[Any],
    inner: np.dtype[Any],
    axis: int,
) -> NDArray[Any]:
    result = np.empty_like(moved, dtype=dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, and refused as such
        for place, frame, (slope, intercept) in zip(result, moved, scaling, strict=True):
            place[...] = frame.astype(inner) * inner.type(slope) + inner.type(intercept)
    result.setflags(write=False)
    return np.moveaxis(result, 0, axis)


def replace_nonfinite(array: NDArray[Any], nonfinite: NonFinite, source: object) -> tuple[NDArray[Any], int]:
    """Refuse NaN and infinity, or replace them; return the array and how many were replaced.

    Raises:
        FormatError: There are such values and ``nonfinite`` is "refuse"; or it is not finite itself.
    """
    if nonfinite != "refuse" and not (isinstance(nonfinite, int | float) and math.isfinite(nonfinite)):
        raise FormatError(
            "not a way to treat NaN", value=repr(nonfinite), expected='"refuse" or a finite number'
        )
    if array.dtype.kind != "f":
        return array, 0
    wrong = ~np.isfinite(array)
    count = int(np.count_nonzero(wrong))
    if count == 0:
        return array, 0
    if nonfinite == "refuse":
        first = tuple(int(axis) for axis in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
        raise FormatError(
            "voxels are not finite",
            source=source,
            value=f"{count} of {array.size}, first {array[first]} at {first}",
            expected="finite voxels, or nonfinite= a number to put in their place",
        )
    filled = array.copy()
    filled[wrong] = nonfinite
    return filled, count
