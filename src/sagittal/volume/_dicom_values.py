"""Values of DICOM attributes from data sets that are not trusted.

pydicom turns bytes into values when they are asked for, and raises almost anything where they are malformed.
What it raises, warns of and logs may quote the bytes, and a damaged length makes them the neighbour's: a name
or a date. So its own words go no further, and only numbers of a file stand in a message.
"""

from __future__ import annotations

import logging
import math
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import FormatError

__all__ = ["attribute", "integer", "numbers", "quiet_pydicom", "sequence", "text"]

_LONGEST_TEXT = 64  # of the texts that are used, in the standard's count
_SHOWN_NUMBERS = 9


def attribute(dataset: Any, name: str, source: object) -> Any:
    """Return the value of an attribute, or None where it is absent or empty.

    Raises:
        FormatError: The bytes cannot be turned into a value of the kind that the file names.
    """
    try:
        value = dataset.get(name)
        return None if value is None or value == "" else value
    except Exception as error:
        raise _malformed(name, source, type(error).__name__) from None


def text(dataset: Any, name: str, source: object) -> str:
    """Return a text of at most 64 printable characters; "" where the attribute is absent.

    Raises:
        FormatError: Several values, no text, a longer one, or control characters.
    """
    value = attribute(dataset, name, source)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT or not value.isprintable():
        raise _malformed(name, source, _kind(value), f"at most {_LONGEST_TEXT} printable characters")
    return value


def integer(dataset: Any, name: str, source: object, default: int | None = None) -> int:
    """Return a whole number, or ``default`` where the attribute is absent.

    Raises:
        FormatError: It is absent without a default, or no whole number.
    """
    value = attribute(dataset, name, source)
    if value is None:
        if default is not None:
            return default
        raise FormatError("a required attribute is missing", source=source, value=name, expected=name)
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise _malformed(name, source, _kind(value), "a whole number") from None


def numbers(places: Sequence[Any], name: str, count: int, source: object, frame: int) -> NDArray[np.float64]:
    """Return the numbers of the first place that has the attribute, shape (count,).

    Raises:
        FormatError: No place has it, or it is not ``count`` finite numbers.
    """
    found = next((value for place in places if (value := attribute(place, name, source)) is not None), None)
    if found is None:
        where = f"{name} of frame {frame + 1}" if frame else name
        raise FormatError(
            "a required attribute is missing", source=source, value=where, expected=f"{count} numbers"
        )
    try:
        values = np.array(found, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        raise _malformed(name, source, _kind(found), f"{count} numbers") from None
    if len(values) != count or not all(math.isfinite(value) for value in values):
        shown = values.tolist() if len(values) <= _SHOWN_NUMBERS else f"{len(values)} numbers"
        raise _malformed(name, source, shown, f"{count} numbers")
    return values


def sequence(dataset: Any, name: str, source: object) -> list[Any]:
    """Return the items of a sequence; none where it is absent.

    Raises:
        FormatError: It is no sequence, or its items cannot be read.
    """
    value = attribute(dataset, name, source)
    if value is None:
        return []
    try:
        items = list(value)
    except Exception as error:
        raise _malformed(name, source, type(error).__name__) from None
    if not all(hasattr(item, "elements") for item in items):
        raise _malformed(name, source, _kind(value), "a sequence of items")
    return items


def _malformed(name: str, source: object, value: object, expected: str | None = None) -> FormatError:
    return FormatError(f"the attribute {name} is malformed", source=source, value=value, expected=expected)


def _kind(value: Any) -> str:
    """Say what a value is without quoting it, unless it is a number."""
    if isinstance(value, int | float):
        return repr(value)[:40]
    if isinstance(value, str | bytes):
        return f"a text of {len(value)} characters"
    return f"{len(value)} values" if isinstance(value, Sequence) else type(value).__name__


class _Muted(threading.local):
    """Whether this thread is reading with :func:`quiet_pydicom` at the moment."""

    depth = 0


_muted = _Muted()


def _unless_muted(record: logging.LogRecord) -> bool:
    return _muted.depth == 0


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom's warnings and log lines of this thread back, for they quote values."""
    logging.getLogger("pydicom").addFilter(_unless_muted)  # once: an equal filter is not added again
    _muted.depth += 1
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
            yield
    finally:
        _muted.depth -= 1
