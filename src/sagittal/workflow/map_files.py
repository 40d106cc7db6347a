"""Displacement fields as the files of a run, and back."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from sagittal.volume import DisplacementField, read_field, write_field
from sagittal.workflow.artifacts import SourceFiles

__all__ = ["file_fields", "map_files"]


def map_files(fields: Mapping[str, DisplacementField]) -> SourceFiles:
    """Return displacement fields as NIfTI files by their names; unpacked, so that equal ones are equal."""
    files = []
    with tempfile.TemporaryDirectory(prefix="sagittal-") as folder:
        for name, moved in fields.items():
            files.append((name, write_field(moved, Path(folder) / name).read_bytes()))
    return SourceFiles(tuple(files))


def file_fields(source: SourceFiles) -> dict[str, DisplacementField]:
    """Return the fields that :func:`map_files` wrote, by the names of their files."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="sagittal-") as folder:
        for name, content in source.files:
            path = Path(folder) / Path(name).name
            path.write_bytes(content)
            found[name] = read_field(path)
    return found
