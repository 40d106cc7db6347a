"""How commands speak: tables or one line of JSON, and errors that a person can act on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from sagittal.core.errors import SagittalError

__all__ = ["JsonOption", "emit", "speaks", "table"]

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as one line of JSON, the last line.")
]

_NO_END = 10_000
"""Columns of what is no terminal."""

P = ParamSpec("P")
R = TypeVar("R")


def emit(value: Any, *, as_json: bool, text: Callable[[], None]) -> None:
    """Print ``value`` as one line of JSON, or call ``text`` to print it for a person."""
    if as_json:
        sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    else:
        text()


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table: as wide as the terminal, or as it needs to be where there is none."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        drawn.add_row(*[str(cell) for cell in row])
    terminal = sys.stdout.isatty()
    Console(width=None if terminal else _NO_END, soft_wrap=not terminal).print(drawn)


def speaks(command: Callable[P, R]) -> Callable[P, R]:
    """Let a command end an expected error with its message on standard error and exit status 2."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except SagittalError as error:
            if kwargs.get("as_json"):
                sys.stdout.write(json.dumps({"error": str(error), "kind": type(error).__name__}) + "\n")
            sys.stderr.write(f"sagittal: {error}\n")
            raise typer.Exit(2) from error

    return wrapped
