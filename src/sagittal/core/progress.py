"""Progress on the terminal; nothing where the output is piped."""

from __future__ import annotations

import contextlib
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence

__all__ = ["Report", "duration", "silent", "status", "time_left"]

Report = Callable[[str], None]
"""Takes one line that says what is being done now. Methods never print; they are handed none of this."""


def silent(message: str) -> None:
    """Say nothing."""


def time_left(seconds: Sequence[float], remaining: int, workers: int) -> tuple[float, float] | None:
    """Return the ends of the time, in seconds, that the rest of equal tasks is likely to take.

    From the spread of those that are done: two standard errors of a sum of ``remaining`` draws whose mean
    is itself an estimate. It knows nothing of tasks that are of another kind than those done so far.

    Args:
        seconds: What each finished task took.
        remaining: How many are left.
        workers: How many run side by side.

    Returns:
        Low and high, or None before two tasks are done.
    """
    if len(seconds) < 2:
        return None
    mean, spread = statistics.fmean(seconds), statistics.stdev(seconds)
    sides = max(1, min(workers, remaining))
    error = 2 * spread * math.sqrt(remaining + remaining**2 / len(seconds))
    return max(0.0, remaining * mean - error) / sides, (remaining * mean + error) / sides


def duration(seconds: float) -> str:
    """Return a time in words, with no more digits than a reader can use: ``"40 s"``, ``"12 min"``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


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
