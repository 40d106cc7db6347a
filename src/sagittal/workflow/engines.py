"""Where the workers of a batch run: processes of this machine, or Ray.

An engine is handed tasks and hands back outcomes. It knows nothing of the job table: a worker that was
killed is an outcome like any other, and whoever gave the task decides what follows.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from sagittal.core.errors import SagittalError
from sagittal.core.optional import optional_import
from sagittal.workflow.worker import Ending, Outcome, Setting, Task, Worker

__all__ = ["Engine", "LocalEngine", "RayEngine", "processors"]

_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
_PATIENCE = 10.0


class Engine(Protocol):
    """Runs tasks, several at once."""

    @property
    def workers(self) -> int:
        """How many tasks it runs side by side."""

    @property
    def free(self) -> int:
        """How many tasks it would take now."""

    def submit(self, task: Task) -> None:
        """Begin a task; only while :attr:`free` says so."""

    def wait(self, timeout: float) -> list[Outcome]:
        """Return what has ended, after at most ``timeout`` seconds."""

    def stop(self) -> None:
        """End all workers, whatever they do."""


@dataclass
class _Process:
    process: BaseProcess
    connection: Connection
    task: Task | None = None
    done: int = 0


@dataclass(kw_only=True)
class LocalEngine:
    """Processes of this machine, started when they are first needed.

    Attributes:
        setting: What every worker needs to know.
        workers: How many; the processors are divided among them.
        tasks: Tasks after which a process is replaced by a fresh one, for memory that was not given back.
    """

    setting: Setting
    workers: int
    tasks: int = 100
    _held: list[_Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.setting = replace(self.setting, guarded=True)

    @property
    def free(self) -> int:
        """How many tasks it would take now."""
        return self.workers - sum(held.task is not None for held in self._held)

    def submit(self, task: Task) -> None:
        """Begin a task in an idle process, or in a new one."""
        held = next((one for one in self._held if one.task is None), None) or self._start()
        held.task = task
        with contextlib.suppress(OSError):  # one that died while it was idle: wait finds out
            held.connection.send(task)

    def wait(self, timeout: float) -> list[Outcome]:
        """Return what has ended; a process that is gone is an outcome too."""
        if not self._held:
            time.sleep(timeout)
            return []
        by_sign: dict[Any, _Process] = {one.connection: one for one in self._held}
        by_sign |= {one.process.sentinel: one for one in self._held}
        ready = {id(by_sign[sign]): by_sign[sign] for sign in wait(list(by_sign), timeout)}
        return [outcome for held in ready.values() if (outcome := self._settle(held)) is not None]

    def stop(self) -> None:
        """End all processes, whatever they do."""
        for held in self._held:
            held.process.terminate()
        for held in self._held:
            held.process.join(_PATIENCE)
            if held.process.is_alive():
                held.process.kill()
                held.process.join()
            held.connection.close()
        self._held.clear()

    def _start(self) -> _Process:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks as they stand
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.setting), daemon=True)
        with _environment(_threads(self.workers)), _uninterrupted():
            process.start()
        theirs.close()
        held = _Process(process, ours)
        self._held.append(held)
        return held

    def _settle(self, held: _Process) -> Outcome | None:
        try:
            outcome: Outcome = held.connection.recv()
        except (EOFError, OSError):
            return self._bury(held)
        held.task, held.done = None, held.done + 1
        if held.done >= self.tasks:
            held.connection.close()  # an end of tasks, at which it ends itself
            held.process.join(_PATIENCE)
            self._held.remove(held)
        return outcome

    def _bury(self, held: _Process) -> Outcome | None:
        held.connection.close()
        held.process.join(_PATIENCE)
        self._held.remove(held)
        if held.task is None:
            return None
        code = held.process.exitcode or 0
        how = f"was killed (signal {-code})" if code < 0 else f"ended (exit status {code})"
        return Outcome(task=held.task, ending=Ending.LOST, error=f"the worker {how}")


def _serve(connection: Connection, setting: Setting) -> None:
    """What a process of :class:`LocalEngine` does: one task after the other, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    worker = Worker(setting)
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send(worker.do(connection.recv()))


@dataclass(kw_only=True)
class RayEngine:
    """Actors of Ray, on this machine or on those of a cluster that see the same store and folder.

    Nothing is sent to anybody: Ray's usage statistics are switched off, and so is its dashboard.

    Attributes:
        setting: What every worker needs to know.
        workers: How many, each with one processor.
        address: Address of a running cluster; without one, Ray is started on this machine and ended.
        object_store_bytes: Bound on the shared memory of a Ray that is started here; little goes through it.
    """

    setting: Setting
    workers: int
    address: str = ""
    object_store_bytes: int = 100_000_000
    _idle: list[Any] = field(default_factory=list)
    _busy: dict[Any, tuple[Any, Task]] = field(default_factory=dict)
    _ray: Any = None
    _ours: bool = False

    @property
    def free(self) -> int:
        """How many tasks it would take now."""
        return self.workers - len(self._busy)

    def submit(self, task: Task) -> None:
        """Begin a task in an idle actor, or in a new one."""
        ray = self._start()
        if not self._idle:
            self._idle.append(ray.remote(num_cpus=1, max_restarts=0)(Worker).remote(self.setting))
        actor = self._idle.pop()
        self._busy[actor.do.remote(task)] = actor, task

    def wait(self, timeout: float) -> list[Outcome]:
        """Return what has ended; an actor that is gone is an outcome too."""
        if not self._busy:
            time.sleep(timeout)
            return []
        ready, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=timeout)
        outcomes = []
        for reference in ready:
            actor, task = self._busy.pop(reference)
            try:
                outcomes.append(self._ray.get(reference))
            except self._ray.exceptions.RayError as error:
                if "creation task" in str(error):  # it was not killed: it cannot be started at all
                    problem = SagittalError(
                        "Ray cannot start a worker",
                        value=str(error).strip().splitlines()[-1],
                        expected="the same sagittal wherever workers run",
                    )
                    outcomes.append(Outcome(task=task, ending=Ending.STOPPED, error=problem))
                    continue
                how = f"the worker was killed, or its machine is gone (Ray: {type(error).__name__})"
                outcomes.append(Outcome(task=task, ending=Ending.LOST, error=how))
            else:
                self._idle.append(actor)
        return outcomes

    def stop(self) -> None:
        """End all actors, whatever they do, and a Ray that was started here."""
        if self._ray is None:
            return
        with contextlib.suppress(Exception):  # a Ray that is going away already
            for actor in [*self._idle, *(actor for actor, _ in self._busy.values())]:
                self._ray.kill(actor)
        self._idle.clear()
        self._busy.clear()
        if self._ours:
            self._ray.shutdown()
        self._ray = None

    def _start(self) -> Any:
        if self._ray is None:
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
            ray = optional_import("ray", "ray")
            self._ours = not ray.is_initialized()
            if self._ours:
                here: dict[str, Any] = {
                    "num_cpus": self.workers,
                    "object_store_memory": self.object_store_bytes,
                    "include_dashboard": False,
                }
                with _environment(_threads(self.workers)):
                    ray.init(
                        **({"address": self.address} if self.address else here),
                        log_to_driver=False,
                        logging_level="ERROR",
                    )
            self._ray = ray
        return self._ray


def _threads(workers: int) -> dict[str, str]:
    """The processors divided among workers, unless the environment asks for fewer threads."""
    share = max(1, processors() // workers)
    return {name: str(min(share, _number(os.environ.get(name)) or share)) for name in _THREADS}


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() and int(text) else None


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Have a process that starts meanwhile pass over Ctrl-C from its first moment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
