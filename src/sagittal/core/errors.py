"""One hierarchy of errors; each message names the source, the value and what was expected."""

from __future__ import annotations

from typing import Any

__all__ = [
    "ArchiveError",
    "AssetError",
    "ChecksumError",
    "ConflictError",
    "FormatError",
    "GeometryError",
    "InputError",
    "MissingDependencyError",
    "ModelError",
    "OfflineError",
    "SagittalError",
    "StorageError",
]


class SagittalError(Exception):
    """Base of every error that sagittal raises on purpose.

    Args:
        problem: What is wrong, in one clause.
        source: The file, asset or field the problem is in.
        value: What was found there.
        expected: What would have been right, or what to do.
    """

    def __init__(
        self, problem: str, *, source: object = None, value: Any = None, expected: str | None = None
    ) -> None:
        self.problem = problem
        self.source = None if source is None else str(source)
        self.value = value
        self.expected = expected
        parts = [problem if self.source is None else f"{self.source}: {problem}"]
        if value is not None:
            parts.append(f"got {value}")
        if expected is not None:
            parts.append(f"expected {expected}")
        super().__init__("; ".join(parts))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.problem, self.source, self.value, self.expected)


def _rebuild(
    kind: type[SagittalError], problem: str, source: str | None, value: Any, expected: str | None
) -> SagittalError:
    return kind(problem, source=source, value=value, expected=expected)


class InputError(SagittalError, ValueError):
    """What the user gave cannot be used as it is."""


class FormatError(InputError):
    """A file is damaged, or is not what its name says."""


class GeometryError(InputError):
    """Positions in space are missing, contradictory or impossible."""


class ConflictError(InputError):
    """Somebody else was faster: what this change builds on is no longer how the record stands."""


class ModelError(InputError):
    """A model cannot be used: wrong files, wrong shapes, or not allowed to be loaded."""


class AssetError(SagittalError):
    """A pinned download cannot be had."""


class ChecksumError(AssetError):
    """A file's sha256 is not the pinned one."""


class OfflineError(AssetError):
    """Something would have to be fetched, and fetching is switched off."""


class ArchiveError(SagittalError):
    """An image archive cannot be reached, refuses, or answers what cannot be right."""


class StorageError(SagittalError, OSError):
    """A place on disk cannot be read or written: full, read-only, or damaged."""


class MissingDependencyError(SagittalError, ImportError):
    """An optional library is needed; the message names the extra that brings it."""
