"""What the pages that are made from measurements share: tables of Markdown, and templates that are filled."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

MISSING = "*Not measured yet.*"


def measured(path: Path, empty: Any) -> Any:
    """Return what a script has measured, or what stands for it where it has not yet been run."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else empty


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown, or, without a row, that it was not measured."""
    body = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    if not body:
        return MISSING
    return "\n".join(["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns), *body])


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def filled(template: Path, made: Mapping[str, str]) -> str:
    """Return the template with each ``{{name}}`` replaced by what was made for it.

    Raises:
        ValueError: The template has a name that is not made, has one twice, or lacks one.
    """
    text = template.read_text(encoding="utf-8")
    wanted = re.findall(r"\{\{(.+?)\}\}", text)
    if sorted(wanted) != sorted(made):
        differing = sorted(set(wanted) ^ set(made)) or "a name stands twice"
        raise ValueError(f"{template.name} and the tables do not agree: {differing}")
    text = re.sub(r"\{\{(.+?)\}\}", lambda found: made[found[1]].strip(), text)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"
