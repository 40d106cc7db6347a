"""The jobs of batches: one row for each case to be made, claimed by one worker at a time.

A job is known by its key, the hash of what goes in and what is to be done: the same contents and steps
are the same job, whatever the files are called. Every change is one transaction under the store's write
lock, and a change by a worker is made only while the job is still that worker's.

A worker that was killed is found out without asking the clock of the wall. On the same system, it is
looked for among the processes. And its beats are counted: a worker at its job raises the number every few
seconds, and one whose number stays the same for two minutes of the watcher's own monotonic clock counts as
lost. Should it live after all, it cannot change the job any more, and what it adds to the case is not added
twice.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from sagittal.case.changes import open_case
from sagittal.case.rows import now
from sagittal.case.schema import JobRow
from sagittal.case.store import CaseStore
from sagittal.core.errors import InputError
from sagittal.core.provenance import hash_json

__all__ = ["Job", "JobState", "JobTable", "Watch", "job_key", "new_worker"]

ATTEMPTS = 3
"""How often a job is begun whose workers are killed."""
_CHUNK = 500


class JobState(StrEnum):
    """Where a job is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as it stands: a snapshot.

    Attributes:
        key: See :func:`job_key`.
        batch: The batch that brought it first.
        sources: Names of the files or folders with these contents, relative to the batch's folder.
        steps: Steps to be run: name, version, parameters.
        case_id: The case made for it, once there is one.
        state: Where it is.
        attempts: How often it was begun since it last waited for its first time.
        worker: Who is at it, or was last; see :func:`new_worker`.
        beat: A number that its worker raises while it is at it.
        started: Time of the last start, ISO 8601, UTC.
        seconds: How long it took, once it is done or failed.
        error: Why it failed.
    """

    key: str
    batch: str
    sources: tuple[str, ...]
    steps: tuple[Mapping[str, Any], ...]
    case_id: str | None = None
    state: JobState = JobState.WAITING
    attempts: int = 0
    worker: str = ""
    beat: int = 0
    started: str = ""
    seconds: float | None = None
    error: str = ""


def job_key(inputs: Mapping[str, Sequence[str]], steps: Sequence[Mapping[str, Any]]) -> str:
    """Return the hash of what goes in and what is done with it.

    Args:
        inputs: Role to the sha256 of each of its files; their order does not matter.
        steps: Name, version and parameters of each step, in order.
    """
    return hash_json(
        {"inputs": {role: sorted(files) for role, files in inputs.items()}, "steps": list(steps)}
    )


class JobTable:
    """The jobs of a store.

    Args:
        store: Where they are kept, beside the cases.
        attempts: How often a job is begun whose workers are killed, before it has failed.
    """

    def __init__(self, store: CaseStore, *, attempts: int = ATTEMPTS) -> None:
        self.store = store
        self.attempts = attempts

    def add(self, jobs: Iterable[Job]) -> None:
        """Add jobs that are not there; of those that are, note names of sources that are new."""
        wanted: dict[str, list[Job]] = {}
        for job in jobs:
            wanted.setdefault(job.key, []).append(job)
        with self._writing(alone=True) as session:
            rows = {row.key: row for row in _rows(session, list(wanted))}
            for key, same in wanted.items():
                names = dict.fromkeys(name for job in same for name in job.sources)
                if (row := rows.get(key)) is not None:
                    if new := [name for name in names if name not in row.sources]:
                        row.sources = [*row.sources, *new]
                    continue
                session.add(_row(same[0], list(names)))

    def jobs(self, keys: Sequence[str]) -> dict[str, Job]:
        """Return the jobs with these keys; a key that no job has is left out."""
        with self.store.database.reading() as session:
            return {row.key: _job(row) for row in _rows(session, keys)}

    def job(self, key: str) -> Job:
        """Return one job.

        Raises:
            InputError: There is none with this key.
        """
        found = self.jobs([key])
        if key not in found:
            raise InputError("no job has this key", source="jobs", value=key, expected="a key of this store")
        return found[key]

    def claim(self, key: str, worker: str) -> Job | None:
        """Give a job that waits to ``worker``; None when it does not wait (any more)."""
        return self._change(
            key,
            {"state": JobState.WAITING},
            state=JobState.RUNNING,
            worker=worker,
            attempts=JobRow.attempts + 1,
            beat=JobRow.beat + 1,
            started=now(),
            seconds=None,
            error="",
        )

    def beat(self, key: str, worker: str) -> bool:
        """Say that ``worker`` is at its job; False when the job is not its own any more."""
        return self._mine(key, worker, beat=JobRow.beat + 1)

    def open_case(self, key: str, worker: str, label: str) -> str | None:
        """Return the id of the job's case, opened in the same transaction that ties it to the job.

        None when the job is not ``worker``'s any more.
        """
        with self._writing() as session:
            row = session.get(JobRow, key, with_for_update=True)
            if row is None or (row.state, row.worker) != (JobState.RUNNING.value, worker):
                return None
            if row.case_id is None:
                row.case_id = open_case(session, label, "batch")
            return row.case_id

    def finish(self, key: str, worker: str, seconds: float) -> bool:
        """Note that the job is done; False when it is not ``worker``'s any more."""
        return self._mine(key, worker, state=JobState.DONE, seconds=seconds)

    def fail(self, key: str, worker: str, error: str, seconds: float) -> bool:
        """Note that the job has failed, and why; False when it is not ``worker``'s any more."""
        return self._mine(key, worker, state=JobState.FAILED, seconds=seconds, error=error)

    def release(self, key: str, worker: str) -> bool:
        """Let the job wait again as if it had not been begun; False when it is not ``worker``'s any more."""
        return self._mine(key, worker, state=JobState.WAITING, attempts=JobRow.attempts - 1)

    def lose(self, job: Job, reason: str) -> Job | None:
        """Take a job from a worker that was killed: it waits again, or has failed after too many attempts.

        Args:
            job: The job as it was when its worker was found to be lost.
            reason: What became of the worker, e.g. "the worker was killed (signal 9)".

        Returns:
            The job as it stands now, or None when it moved since ``job`` was read.
        """
        spent = job.attempts >= self.attempts
        return self._change(
            job.key,
            {"state": JobState.RUNNING, "worker": job.worker, "beat": job.beat},
            state=JobState.FAILED if spent else JobState.WAITING,
            error=f"{reason}, in {job.attempts} of {self.attempts} attempts" if spent else reason,
        )

    def replace(self, key: str, worker: str, job: Job) -> bool:
        """Put ``job``, which waits, in the place of ``worker``'s job: its source holds other contents now.

        False, and nothing is changed, when the job is not ``worker``'s any more or has a case already.
        """
        with self._writing(alone=True) as session:
            row = session.get(JobRow, key)
            if row is None or (row.state, row.worker) != (JobState.RUNNING.value, worker) or row.case_id:
                return False
            session.delete(row)
            same = session.get(JobRow, job.key)
            if same is None:
                session.add(_row(job, list(job.sources)))
            else:
                same.sources = list(dict.fromkeys([*same.sources, *job.sources]))
        return True

    def retry(self, keys: Sequence[str]) -> None:
        """Let those of these jobs wait again that have failed, with all their attempts before them."""
        with self._writing(alone=True) as session:
            for row in _rows(session, keys):
                if row.state == JobState.FAILED.value:
                    row.state, row.attempts, row.error = JobState.WAITING.value, 0, ""

    def _writing(self, *, alone: bool = False) -> AbstractContextManager[Session]:
        return self.store.database.writing(alone=alone)

    def _mine(self, key: str, worker: str, **values: Any) -> bool:
        return self._change(key, {"state": JobState.RUNNING, "worker": worker}, **values) is not None

    def _change(self, key: str, found: Mapping[str, Any], **values: Any) -> Job | None:
        """Change a job in one statement, if it stands as ``found`` says; return it as it stands then."""
        wanted = {name: _plain(value) for name, value in found.items()}
        change = (
            update(JobRow)
            .where(JobRow.key == key, *[getattr(JobRow, name) == value for name, value in wanted.items()])
            .values({name: _plain(value) for name, value in values.items()})
            .returning(JobRow)
        )
        with self._writing() as session:
            row = session.scalars(change, execution_options={"synchronize_session": False}).one_or_none()
            return None if row is None else _job(row)


@dataclass
class Watch:
    """Watches jobs that others run, and says which of them are lost.

    Attributes:
        patience: Seconds after which a worker that does not beat is lost.
    """

    patience: float = 120.0
    _seen: dict[str, tuple[tuple[str, int], float]] = field(default_factory=dict)

    def lost(self, job: Job, moment: float) -> bool:
        """Tell whether the worker of a running job is lost.

        Args:
            job: The job as it stands.
            moment: A monotonic time in seconds.
        """
        if _dead(job.worker):
            return True
        sign = (job.worker, job.beat)
        before, since = self._seen.get(job.key, (None, moment))
        if before != sign:
            self._seen[job.key] = (sign, moment)
            return False
        return moment - since >= self.patience


def new_worker(token: str = "") -> str:
    """Return a name for this process at one job, that ends in ``token``; a killed one can be found out."""
    return f"{_system()}/{os.getpid()}/{_born(os.getpid())}/{token or secrets.token_hex(8)}"


def _dead(worker: str) -> bool:
    """Tell whether the process of a worker is known to be gone; from elsewhere that cannot be known."""
    try:
        system, pid, born, _ = worker.split("/")
    except ValueError:
        return False
    return bool(system and born) and system == _system() and _born(int(pid)) != born


def _system() -> str:
    """What tells this running system, and its space of process numbers, from others; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return hash_json([boot, str(Path("/proc/self/ns/pid").readlink())])[:16]
    except OSError:
        return ""


def _born(pid: int) -> str:
    """Return the tick of the system at which a process began; empty for one that is dead or unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in {"Z", "X"} else fields[19]


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, StrEnum) else value


def _rows(session: Session, keys: Sequence[str]) -> list[JobRow]:
    rows: list[JobRow] = []
    for start in range(0, len(keys), _CHUNK):
        rows += session.scalars(select(JobRow).where(JobRow.key.in_(keys[start : start + _CHUNK])))
    return rows


def _row(job: Job, sources: list[str]) -> JobRow:
    return JobRow(
        key=job.key,
        batch=job.batch,
        sources=sources,
        steps=[dict(step) for step in job.steps],
        case_id=job.case_id,
        state=job.state.value,
        attempts=job.attempts,
        worker=job.worker,
        beat=job.beat,
        started=job.started,
        seconds=job.seconds,
        error=job.error,
    )


def _job(row: JobRow) -> Job:
    return Job(
        key=row.key,
        batch=row.batch,
        sources=tuple(row.sources),
        steps=tuple(row.steps),
        case_id=row.case_id,
        state=JobState(row.state),
        attempts=row.attempts,
        worker=row.worker,
        beat=row.beat,
        started=row.started,
        seconds=row.seconds,
        error=row.error,
    )
