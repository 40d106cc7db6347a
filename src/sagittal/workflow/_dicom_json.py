"""DICOM JSON, as archives answer queries, without a word of it in a warning."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from sagittal.core.errors import ArchiveError
from sagittal.core.optional import optional_import

__all__ = ["datasets", "number", "quiet", "text", "texts"]


def datasets(found: Any) -> list[Any]:
    """Return DICOM JSON as data sets.

    Raises:
        ArchiveError: It is something else.
    """
    pydicom = optional_import("pydicom")
    try:
        with quiet():
            return [pydicom.Dataset.from_json(one) for one in found]
    except Exception:  # from_json raises whatever the values make it raise
        raise ArchiveError(
            "the answer is not DICOM JSON", expected="DICOM attributes by their tags"
        ) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's warnings away: they quote values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def text(dataset: Any, name: str) -> str:
    """Return an attribute as text, empty where it is not there."""
    value = dataset.get(name)
    return "" if value is None else str(value).strip()


def texts(dataset: Any, name: str) -> tuple[str, ...]:
    """Return an attribute of several values."""
    value = dataset.get(name)
    if value is None or value == "":
        return ()
    return (value,) if isinstance(value, str) else tuple(str(one) for one in value)


def number(dataset: Any, name: str) -> int | None:
    """Return an attribute as a whole number, None where it is not there."""
    value = dataset.get(name)
    return None if value is None or value == "" else int(value)
