"""Work that takes longer than an answer may: one worker process, and what became of each job."""

from __future__ import annotations

import multiprocessing
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sagittal.core.errors import SagittalError
from sagittal.workbench.server.problems import Problem

__all__ = ["Job", "Jobs"]

_MOST_WAITING = 100
_MOST_REMEMBERED = 1000


@dataclass
class Job:
    """A piece of work on a case and where it stands."""

    id: str
    case: str
    what: str
    started: str
    clock: float
    future: Future[Any]
    seconds: float | None = None

    @property
    def state(self) -> str:
        """``"waiting"``, ``"running"``, ``"done"`` or ``"failed"``."""
        if not self.future.done():
            return "running" if self.future.running() else "waiting"
        return "failed" if self.problem else "done"

    @property
    def elapsed(self) -> float:
        """Seconds since it was put into the queue, or until it ended."""
        return time.monotonic() - self.clock if self.seconds is None else self.seconds

    @property
    def problem(self) -> str | None:
        """Why it failed; None where it did not, or not yet."""
        if not self.future.done():
            return None
        if self.future.cancelled():
            return "the server ended before the job's turn came"
        error = self.future.exception()
        if error is None:
            return None
        return str(error) if isinstance(error, SagittalError) else f"it broke off ({type(error).__name__})"


class Jobs:
    """One worker process, started with the first job, away from the process that answers."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, case_id: str, what: str, function: Callable[..., Any], *arguments: Any) -> Job:
        """Put a job into the queue.

        Args:
            case_id: The case it works on.
            what: What it does, in a few words.
            function: A function of a module, which the worker process imports.
            arguments: Its arguments; they travel to the worker.

        Raises:
            Problem: Too many jobs wait already.
        """
        with self._lock:
            if sum(not job.future.done() for job in self._jobs.values()) >= _MOST_WAITING:
                raise Problem(503, "too many jobs wait", value=_MOST_WAITING, expected="some to end first")
            try:
                future = self._running().submit(function, *arguments)
            except RuntimeError:  # the worker died: the next one takes over
                self._pool = None
                future = self._running().submit(function, *arguments)
            job = Job(
                id=secrets.token_hex(6),
                case=case_id,
                what=what,
                started=datetime.now(UTC).isoformat(timespec="milliseconds"),
                clock=time.monotonic(),
                future=future,
            )
            self._jobs[job.id] = job
            while len(self._jobs) > _MOST_REMEMBERED:
                self._jobs.popitem(last=False)
        future.add_done_callback(lambda _: setattr(job, "seconds", time.monotonic() - job.clock))
        return job

    def of(self, case_id: str) -> list[Job]:
        """Return the jobs of a case, oldest first."""
        with self._lock:
            return [job for job in self._jobs.values() if job.case == case_id]

    def close(self) -> None:
        """Drop the jobs that wait, and let the one that runs come to its end."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def _running(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(max_workers=1, mp_context=context)
        return self._pool
