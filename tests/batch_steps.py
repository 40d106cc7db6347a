"""Steps and an engine for the tests of batches. A worker imports this module by its name."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sagittal.case.jobs import Job, job_key
from sagittal.case.record import FindingDraft
from sagittal.core.errors import FormatError
from sagittal.workflow.artifacts import Kind
from sagittal.workflow.step import Context, Result, Step
from sagittal.workflow.worker import Outcome, Setting, Task, Worker


@dataclass(frozen=True, kw_only=True)
class Count(Step):
    """Count the bytes received; tell where that was done."""

    name: ClassVar[str] = "test-batch-count"
    version: ClassVar[str] = "1"
    doubt: ClassVar[str] = "none"

    tell: bool = False

    @property
    def reads(self) -> Mapping[str, Kind]:
        return {"t1.files": Kind.FILES}

    @property
    def writes(self) -> Mapping[str, Kind]:
        return {"count": Kind.JSON}

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        ((_, content),) = inputs["t1.files"].files
        if content.startswith(b"bad"):
            raise FormatError("the file is damaged", source="x.nii", value=content, expected="a whole file")
        if content.startswith(b"odd"):
            raise RuntimeError(f"cannot read {content!r}")
        where = {"pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")} if self.tell else {}
        finding = FindingDraft(code="image.bytes", subject="bytes", statement=f"{len(content)} bytes.")
        return Result(outputs={"count": {"bytes": len(content), **where}}, findings=[finding])


@dataclass(frozen=True, kw_only=True)
class Die(Step):
    """Kill the own process when the received bytes say so: once, or always."""

    name: ClassVar[str] = "test-batch-die"
    version: ClassVar[str] = "1"
    doubt: ClassVar[str] = "none"

    folder: str = ""

    @property
    def reads(self) -> Mapping[str, Kind]:
        return {"t1.files": Kind.FILES}

    @property
    def writes(self) -> Mapping[str, Kind]:
        return {"lives": Kind.JSON}

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        ((_, content),) = inputs["t1.files"].files
        if content.startswith((b"once", b"always")):
            mark = Path(self.folder) / hashlib.sha256(content).hexdigest()
            first = not mark.exists()
            mark.touch()
            if first or content.startswith(b"always"):
                os.kill(os.getpid(), signal.SIGKILL)
        if content.startswith(b"slow"):
            time.sleep(600)
        return Result(outputs={"lives": {}})


def tasks_of(folder: Path, contents: Mapping[str, bytes], *steps: Step) -> list[Task]:
    """Write files into a folder and return a task for each."""
    folder.mkdir(parents=True, exist_ok=True)
    described = [{"name": s.name, "version": s.version, "parameters": s.parameters} for s in steps]
    tasks = []
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        inputs = {"t1.files": [hashlib.sha256(content).hexdigest()]}
        job = Job(key=job_key(inputs, described), batch="b", sources=(name,), steps=tuple(described))
        tasks.append(Task(job=job, files={"t1.files": [folder / name]}, inputs=inputs, label="test"))
    return tasks


@dataclass
class Inline:
    """An engine in this very process: a task is done where its outcome is waited for."""

    setting: Setting
    workers: int = 1
    done: list[str] = field(default_factory=list)
    stopped: int = 0
    interrupt_after: int | None = None
    _tasks: list[Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.worker = Worker(self.setting)

    @property
    def free(self) -> int:
        return self.workers - len(self._tasks)

    def submit(self, task: Task) -> None:
        self._tasks.append(task)

    def wait(self, timeout: float) -> list[Outcome]:
        if self.interrupt_after is not None and len(self.done) >= self.interrupt_after:
            raise KeyboardInterrupt
        if not self._tasks:
            time.sleep(timeout)
            return []
        outcome = self.worker.do(self._tasks.pop(0))
        self.done.append(outcome.task.job.sources[0])
        return [outcome]

    def stop(self) -> None:
        self.stopped += 1
