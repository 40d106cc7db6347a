"""Many cases: a folder listed, its jobs kept in the store, and done by the workers of an engine.

The job table is what counts. A batch that is interrupted, killed, or run twice at once goes on from it:
what is done is not done again, and a job whose worker is gone is taken up by somebody else.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sagittal.case.jobs import Job, JobState, JobTable, Watch, job_key, new_worker
from sagittal.case.store import CaseStore
from sagittal.core.errors import SagittalError
from sagittal.core.progress import Report, duration, silent, time_left
from sagittal.core.provenance import canonical_json, hash_json
from sagittal.workflow.engines import Engine
from sagittal.workflow.folder import Listing
from sagittal.workflow.models import DEFAULT_MODEL
from sagittal.workflow.pipeline import plan
from sagittal.workflow.step import Step
from sagittal.workflow.steps import RegisterToAtlas
from sagittal.workflow.worker import Ending, Outcome, Task

__all__ = ["BatchResult", "CaseResult", "Interrupted", "batch_tasks", "job_results", "run_batch"]

_GLANCE = 1.0
"""Seconds between two looks at jobs that others run."""


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """What became of one file or folder.

    Attributes:
        source: Its name.
        case: Id of its case; empty when there is none.
        state: A state of a job, ``"refused"``, or ``"new"`` for one that no batch has taken up.
        error: Why it failed or was refused.
        seconds: How long its case took.
    """

    source: str
    case: str
    state: str
    error: str = ""
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """What became of a folder. Two sources of the same contents are one case, and two results.

    Attributes:
        batch: Id of the folder with these steps.
        done: Cases that are there, whenever they were made.
        failed: Cases that failed.
        seconds: How long this batch took.
        cases: A result for each source, in the order of their names.
    """

    batch: str
    done: int
    failed: int
    seconds: float
    cases: tuple[CaseResult, ...]


class Interrupted(Exception):  # noqa: N818 (a person's wish, not an error)
    """The batch was asked to stop; everything that was begun can go on."""

    def __init__(self, left: int) -> None:
        super().__init__(f"{left} cases are left")
        self.left = left


def batch_tasks(
    folder: Path,
    listing: Listing,
    names: Sequence[str],
    *,
    model: str = DEFAULT_MODEL,
    atlas: RegisterToAtlas | None = None,
    label_by_name: bool = False,
) -> list[Task]:
    """Return a task for each case of a folder.

    Args:
        folder: The folder, for the id of the batch.
        listing: What it holds.
        names: Stages to run.
        model: Language model, as in :func:`~sagittal.workflow.pipeline.run_case`.
        atlas: As in :func:`~sagittal.workflow.pipeline.run_case`.
        label_by_name: Call a case like its file or folder, where the names identify nobody; else by the
            batch and the key.
    """
    planned = [
        (found, _described(plan(found.sources, names, model=model, atlas=atlas))) for found in listing.cases
    ]
    chosen = [atlas.parameters] if atlas is not None else []
    batch = hash_json([str(Path(folder).resolve()), list(names), model, *chosen])[:12]
    tasks = []
    for found, steps in planned:
        key = job_key(found.inputs, steps)
        job = Job(key=key, batch=batch, sources=(found.name,), steps=tuple(steps))
        files = {role: found.sources.files(role.removesuffix(".files")) for role in found.inputs}
        label = Path(found.name).name if label_by_name else f"batch {batch} {key[:8]}"
        tasks.append(Task(job=job, files=files, inputs=found.inputs, label=label))
    return tasks


def run_batch(
    store: CaseStore,
    tasks: Sequence[Task],
    *,
    engine: Engine,
    listing: Listing | None = None,
    retry_failed: bool = False,
    watch: Watch | None = None,
    attempts: int = 3,
    report: Report = silent,
) -> BatchResult:
    """Do what is missing of the tasks, and return what became of all of them.

    Args:
        store: Where jobs and cases are kept; the engine's workers open the same one.
        tasks: From :func:`batch_tasks`.
        engine: Where workers run; it is stopped in the end.
        listing: What the folder holds, for the refusals in the result.
        retry_failed: Try again what failed before.
        watch: Finds out which workers of others are lost.
        attempts: How often a job is begun whose workers are killed.
        report: Takes a line of progress.

    Raises:
        Interrupted: The batch was asked to stop (:class:`KeyboardInterrupt`); it can go on.
        StorageError: The store cannot be written any more; the batch can go on when it can.
    """
    clock = time.perf_counter()
    table = JobTable(store, attempts=attempts)
    table.add(task.job for task in tasks)
    if retry_failed:
        table.retry([task.job.key for task in tasks])
    work = _Work(table, engine, watch or Watch(), report)
    work.take(tasks)
    with _ended(work):
        work.go_on()
    listed = tuple(work.final(task) for task in tasks)
    return _result(table, listed, listing, time.perf_counter() - clock)


def job_results(store: CaseStore, tasks: Sequence[Task], listing: Listing | None = None) -> BatchResult:
    """Return what is known of the tasks, without doing any."""
    return _result(JobTable(store), tasks, listing, 0.0)


@dataclass
class _Work:
    """The tasks of a batch that are not settled yet."""

    table: JobTable
    engine: Engine
    watch: Watch
    report: Report
    queue: deque[Task] = field(default_factory=deque)
    ours: dict[str, Task] = field(default_factory=dict)
    """By token: what our workers have now."""
    others: dict[str, Task] = field(default_factory=dict)
    """By key: what workers of others have now."""
    became: dict[str, Task] = field(default_factory=dict)
    """By key: the task that took another's place."""
    seconds: list[float] = field(default_factory=list)
    done: int = 0
    failed: int = 0

    def take(self, tasks: Sequence[Task]) -> None:
        """Sort tasks by where their jobs are."""
        known = self.table.jobs([task.job.key for task in tasks])
        for task in {task.job.key: task for task in reversed(tasks)}.values():
            self._place(task, known[task.job.key])
        self.queue = deque(reversed(self.queue))

    def go_on(self) -> None:
        """Work until every job is done or has failed."""
        looked = time.monotonic()
        self._tell()
        while self.queue or self.ours or self.others:
            while self.queue and self.engine.free > 0:
                task = replace(self.queue.popleft(), token=secrets.token_hex(8))
                self.ours[task.token] = task
                self.engine.submit(task)
            for outcome in self.engine.wait(_GLANCE):
                self._settle(outcome)
                self._tell()
            if self.others and time.monotonic() - looked >= _GLANCE:
                looked = time.monotonic()
                self._look_at_others(looked)

    def put_back(self) -> None:
        """Let what our workers had wait again, as if it had not been begun; they are gone by now."""
        keys = {task.job.key: token for token, task in self.ours.items()}
        for key, job in self.table.jobs(list(keys)).items():
            if job.state is JobState.RUNNING and job.worker.endswith(f"/{keys[key]}"):
                self.table.release(key, job.worker)

    def final(self, task: Task) -> Task:
        """Return the task that stands for this one in the end."""
        while (again := self.became.get(task.job.key)) is not None:
            task = again
        return task

    def _place(self, task: Task, job: Job) -> None:
        if job.state is JobState.WAITING:
            self.queue.append(task)
        elif job.state is JobState.RUNNING:
            self.others[job.key] = task
        elif job.state is JobState.DONE:
            self.done += 1
        else:
            self.failed += 1

    def _settle(self, outcome: Outcome) -> None:
        task = self.ours.pop(outcome.task.token)
        if outcome.ending is Ending.STOPPED:
            self.ours[task.token] = task  # to be put back
            assert isinstance(outcome.error, SagittalError), "a store that refuses says why"
            raise outcome.error
        if outcome.ending is Ending.LOST:
            self._lost(task, str(outcome.error))
        if outcome.ending is Ending.CHANGED and outcome.again is not None:
            again = replace(outcome.again, token="")
            self.became[task.job.key] = again
            self.became.pop(again.job.key, None)  # contents that changed and changed back
            if self._has(again.job.key):
                return
            task = again
        job = self.table.job(task.job.key)
        if outcome.ending is Ending.SETTLED and job.seconds is not None:
            self.seconds.append(job.seconds)
        self._place(task, job)

    def _has(self, key: str) -> bool:
        return any(key == task.job.key for task in (*self.queue, *self.ours.values(), *self.others.values()))

    def _lost(self, task: Task, how: str) -> None:
        job = self.table.job(task.job.key)
        if job.state is JobState.WAITING:  # killed before it could claim: that is an attempt too
            job = self.table.claim(job.key, new_worker(task.token)) or job
        if job.state is JobState.RUNNING and job.worker.endswith(f"/{task.token}"):
            self.table.lose(job, how)

    def _look_at_others(self, now: float) -> None:
        for job in self.table.jobs(list(self.others)).values():
            if job.state is JobState.RUNNING:
                if not self.watch.lost(job, now):
                    continue
                job = self.table.lose(job, "the worker was killed or lost") or self.table.job(job.key)
            self._place(self.others.pop(job.key), job)
            self._tell()

    def _tell(self) -> None:
        running = len(self.ours) + len(self.others)
        counts = f"{self.done} done, {self.failed} failed, {running} running, {len(self.queue)} waiting"
        left = time_left(self.seconds, running + len(self.queue), self.engine.workers)
        if left is not None and running + len(self.queue):
            mean = duration(sum(self.seconds) / len(self.seconds))
            counts += f"; {mean} a case, {duration(left[0])} to {duration(left[1])} left"
        self.report(counts)


@contextmanager
def _ended(work: _Work) -> Iterator[None]:
    """Stop the engine, whatever happens, and put back what its workers had."""
    try:
        yield
    except KeyboardInterrupt:
        left = len(work.queue) + len(work.ours) + len(work.others)
        _quietly(work.engine.stop, work.put_back)
        raise Interrupted(left) from None
    except SagittalError:
        _quietly(work.engine.stop, work.put_back)
        raise
    finally:
        work.engine.stop()


def _quietly(*calls: Callable[[], None]) -> None:
    """Do what can be done on the way out; a store that refuses has said so already."""
    for call in calls:
        try:
            call()
        except SagittalError:
            continue


def _described(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Steps as JSON values, whole as they will come back from the job table."""
    described = [
        {"name": step.name, "version": step.version, "parameters": step.parameters} for step in steps
    ]
    values: list[dict[str, Any]] = json.loads(canonical_json(described))
    return values


def _result(table: JobTable, tasks: Sequence[Task], listing: Listing | None, seconds: float) -> BatchResult:
    jobs = table.jobs(list(dict.fromkeys(task.job.key for task in tasks)))
    results = []
    for task in tasks:
        job = jobs.get(task.job.key)
        results.append(
            CaseResult(
                source=task.job.sources[0],
                case=(job and job.case_id) or "",
                state=job.state.value if job else "new",
                error=job.error if job and job.state is JobState.FAILED else "",
                seconds=job.seconds if job else None,
            )
        )
    results += [
        CaseResult(source=one.name, case="", state="refused", error=one.reason)
        for one in (listing.refused if listing else ())
    ]
    states = [job.state for job in jobs.values()]
    return BatchResult(
        batch=tasks[0].job.batch if tasks else "",
        done=states.count(JobState.DONE),
        failed=states.count(JobState.FAILED),
        seconds=seconds,
        cases=tuple(sorted(results, key=lambda result: result.source)),
    )
