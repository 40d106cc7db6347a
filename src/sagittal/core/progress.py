"""Progress on the terminal; nothing where the output is piped."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

__all__ = ["Report", "silent", "status"]

Report = Callable[[str], None]
"""Takes one line that says what is being done now. Methods never print; they are handed none of this."""


def silent(message: str) -> None:
    """Say nothing."""


@contextlib.contextmanager
def status(*, quiet: bool = False) -> Iterator[Report]:
    """Yield a function that shows one line of status on a terminal's standard error.

    Quiet when asked, and when standard error is not a terminal, so that pipes and logs stay clean.
    """
    if quiet or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("") as spinner:

        def show(message: str) -> None:
            spinner.update(message)
            console.print(message, style="dim", highlight=False, markup=False)

        yield show
