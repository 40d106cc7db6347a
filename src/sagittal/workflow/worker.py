"""The worker of a batch: takes one job after the other and makes its case."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from sagittal.case.engines import is_url
from sagittal.case.jobs import Job, JobTable, job_key, new_worker
from sagittal.case.location import open_store
from sagittal.case.store import CaseStore
from sagittal.core.errors import InputError, SagittalError, StorageError
from sagittal.core.optional import optional_import
from sagittal.workflow.artifacts import SourceFiles
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.pipeline import complete_case
from sagittal.workflow.replay import step_from_record
from sagittal.workflow.runner import RECEIVE, Runner, read_files

__all__ = ["Ending", "Outcome", "Setting", "Task", "Worker"]

_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every worker of a batch needs to know.

    Attributes:
        store: Where the cases are kept, as :func:`~sagittal.case.location.resolve` gives it.
        store_id: Id of the store; a worker that finds another one there stops.
        offline: Fetch no model.
        beat: Seconds between two signs of life.
        imports: Modules that define steps which do not come with sagittal.
        guarded: Whether the worker ends when the process that started it is gone.
    """

    store: str
    store_id: str = ""
    offline: bool | None = None
    beat: float = 5.0
    imports: tuple[str, ...] = ()
    guarded: bool = False


@dataclass(frozen=True, kw_only=True)
class Task:
    """One job for a worker.

    Attributes:
        job: The job.
        files: Role to the paths of its files.
        inputs: Role to the sha256 of each of these files when the folder was listed.
        label: What to call the case.
        token: Ends the worker's name in the job table, so that who gave the task knows it again.
    """

    job: Job
    files: Mapping[str, Sequence[Path]]
    inputs: Mapping[str, Sequence[str]]
    label: str
    token: str = ""


class Ending(StrEnum):
    """How a task ended for the worker; the job table says what became of the job."""

    SETTLED = "settled"
    CHANGED = "changed"
    MOVED = "moved"
    STOPPED = "stopped"
    LOST = "lost"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a worker, or the engine in its place, says of a task.

    Attributes:
        task: The task.
        ending: ``settled``: done or failed. ``changed``: the files hold other contents now, and ``again``
            is the task for these. ``moved``: somebody else has the job. ``stopped``: the store refuses,
            and so it will for others. ``lost``: the worker was killed.
        again: The task that took this one's place.
        error: What the store said, or what became of the worker.
    """

    task: Task
    ending: Ending
    again: Task | None = None
    error: SagittalError | str = ""


class Worker:
    """Makes cases in one store; models are loaded once.

    Args:
        setting: What the workers of a batch have in common.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._store: CaseStore | None = None
        self._shelf = ModelShelf(offline=setting.offline)

    def do(self, task: Task) -> Outcome:
        """Do a task, if its job waits still, and note in the job table what became of it."""
        try:
            return self._do(task)
        except SagittalError as error:  # the store cannot be opened, or takes no note of a job
            return Outcome(task=task, ending=Ending.STOPPED, error=error)

    def _do(self, task: Task) -> Outcome:
        if self._store is None:
            self._store = self._open()
        jobs = JobTable(self._store)
        key, worker, clock = task.job.key, new_worker(task.token), time.perf_counter()
        job = jobs.claim(key, worker)
        if job is None:
            return Outcome(task=task, ending=Ending.MOVED)
        with _beating(jobs, key, worker, self._setting):
            try:
                again = self._make(jobs, job, task, worker)
            except Exception as error:
                if _store_refuses(error):
                    with contextlib.suppress(SagittalError):
                        jobs.release(key, worker)
                    raise _storage_error(error) from error
                noted = jobs.fail(key, worker, reason(error), time.perf_counter() - clock)
                return Outcome(task=task, ending=Ending.SETTLED if noted else Ending.MOVED)
        if again is not None:
            return Outcome(task=task, ending=Ending.CHANGED, again=again)
        noted = jobs.finish(key, worker, time.perf_counter() - clock)
        return Outcome(task=task, ending=Ending.SETTLED if noted else Ending.MOVED)

    def _open(self) -> CaseStore:
        for module in self._setting.imports:
            optional_import(module)
        location = self._setting.store
        if not is_url(location) and not Path(location).is_dir():  # which opening it would make
            raise StorageError("the worker does not see the store", source=location)
        store = open_store(location)
        if self._setting.store_id not in {"", store.id}:
            raise StorageError(
                "the worker sees another store",
                source=store.source,
                value=store.id,
                expected=self._setting.store_id,
            )
        return store

    def _make(self, jobs: JobTable, job: Job, task: Task, worker: str) -> Task | None:
        """Make the case; return another task instead where the files hold other contents than listed."""
        steps = [step_from_record(**step) for step in job.steps]
        runner = Runner(store=jobs.store, shelf=self._shelf)
        missing = [role for role in task.files if role not in _received(jobs.store, job)]
        files = {role: _read(task.files[role], role) for role in missing}
        found = {**task.inputs, **{role: _hashes(taken) for role, taken in files.items()}}
        if found != task.inputs:
            return self._changed(jobs, job, task, worker, found)
        case_id = jobs.open_case(job.key, worker, task.label)
        if case_id is not None:
            complete_case(runner, case_id, files, steps)
        return None

    def _changed(
        self, jobs: JobTable, job: Job, task: Task, worker: str, inputs: Mapping[str, Sequence[str]]
    ) -> Task:
        fresh = Job(
            key=job_key(inputs, job.steps), batch=job.batch, sources=task.job.sources, steps=job.steps
        )
        if not jobs.replace(job.key, worker, fresh):
            raise InputError("the files changed while the case was being made")
        return replace(task, job=fresh, inputs=inputs)


def reason(error: Exception) -> str:
    """Return why a case failed, without what may come out of a file: values that are no numbers.

    The text of an error of another library may hold such values too; only its kind is named.
    """
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if not isinstance(error, SagittalError):
        return f"an unexpected error ({type(error).__name__}); 'sagittal run' on this source says more"
    problem = error.problem
    if (cause := error.__cause__) is not None and not isinstance(cause, SagittalError) and str(cause):
        for text in (str(cause), str(cause).splitlines()[0]):
            problem = problem.replace(text, type(cause).__name__)
    parts = [f"{Path(error.source).name}: {problem}" if error.source else problem]
    if isinstance(error.value, int | float):
        parts.append(f"got {error.value}")
    if error.expected:
        parts.append(f"expected {error.expected}")
    return "; ".join(parts)


@contextlib.contextmanager
def _beating(jobs: JobTable, key: str, worker: str, setting: Setting) -> Iterator[None]:
    """Show, from a thread of its own, that the worker is at its job; end with the parent, if guarded."""
    over = threading.Event()
    parent = multiprocessing.parent_process() if setting.guarded else None

    def beat() -> None:
        due = time.monotonic() + setting.beat
        while not over.wait(min(1.0, setting.beat)):
            if parent is not None and not parent.is_alive():
                with contextlib.suppress(Exception):
                    jobs.release(key, worker)
                os._exit(1)
            if time.monotonic() >= due:
                due = time.monotonic() + setting.beat
                with contextlib.suppress(SagittalError):  # the step will meet the same refusal, and say so
                    jobs.beat(key, worker)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _received(store: CaseStore, job: Job) -> set[str]:
    if job.case_id is None:
        return set()
    runs = store.case(job.case_id).runs
    return {run.outputs[0].role for run in runs if run.step == RECEIVE}


def _read(paths: Sequence[Path], role: str) -> SourceFiles:
    try:
        return read_files(paths, role)
    except StorageError as error:  # of this case's files, which says nothing of the store
        raise InputError(error.problem, source=error.source, expected="a file that can be read") from error


def _hashes(files: SourceFiles) -> list[str]:
    return [hashlib.sha256(content).hexdigest() for _, content in files.files]


def _store_refuses(error: BaseException | None) -> bool:
    """Tell whether no case can be made any more: the disk is full or sealed, or the database refuses."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _REFUSALS:
            return True
        if type(error).__module__.startswith("sqlalchemy."):
            return True
        error = error.__cause__
    return False


def _storage_error(error: Exception) -> SagittalError:
    return error if isinstance(error, SagittalError) else StorageError(str(error))
