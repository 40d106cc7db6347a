"""Runs steps on a case and writes down, by itself, where each result came from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sagittal.case.record import Artifact, Case, Finding, Run
from sagittal.case.store import CaseStore
from sagittal.core.errors import InputError
from sagittal.core.files import storage_errors
from sagittal.core.progress import Report, silent
from sagittal.core.provenance import Environment
from sagittal.core.randomness import derive_seed
from sagittal.workflow import artifacts
from sagittal.workflow.artifacts import Kind, SourceFiles
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.step import Context, Result, Step

__all__ = ["RECEIVE", "Runner", "execute", "planned_run", "read_files"]

RECEIVE = "receive"
"""Name of the run that takes files in. It computes nothing, so replay only checks the files."""


@dataclass(kw_only=True)
class Runner:
    """Runs steps in one store.

    Attributes:
        store: Where cases are kept.
        shelf: Where models come from.
        seed: The seed that every step's own seed follows from.
        report: Takes a line that says what is being done.
    """

    store: CaseStore
    shelf: ModelShelf
    seed: int = 0
    report: Report = silent

    def receive(
        self, case_id: str, role: str, files: Sequence[Path] | SourceFiles, *, once: bool = False
    ) -> Run:
        """Take files into the case as they are, under ``role``.

        Args:
            case_id: The case.
            role: The files' part in the case.
            files: Paths, or what :func:`read_files` has read of them.
            once: Take nothing, and read no file, where the case has received files under ``role``: what
                was received counts, whatever became of the files since.

        Raises:
            InputError: No file, or a path that is not a file.
        """
        if once and (before := self._received(case_id, role)) is not None:
            return before
        started, clock = _now(), time.perf_counter()
        contents = files if isinstance(files, SourceFiles) else read_files(files, role)
        output = artifacts.save(self.store.objects, role, Kind.FILES, contents)
        run = Run(
            number=0,
            step=RECEIVE,
            version="1",
            parameters={},
            inputs=(),
            outputs=(output,),
            findings=(),
            used=(),
            seed=0,
            doubt="takes the files as they are",
            models={},
            environment=Environment.current().to_json(),
            started=started,
            seconds=time.perf_counter() - clock,
        )
        return self.store.add_run(case_id, run, ())

    def run(self, case_id: str, step: Step, *, once: bool = False) -> Run:
        """Run a step on the latest inputs of a case and add the run with its findings.

        Args:
            case_id: The case.
            step: What to run.
            once: Return the run that is already in the case where one asked for and read the same:
                version, parameters, seed, inputs by content, findings.

        Raises:
            InputError: An input is missing, or the step refuses it.
        """
        case = self.store.case(case_id)
        inputs = tuple(_latest(case, role, kind, step) for role, kind in step.reads.items())
        findings = tuple(f for prefix in step.uses for f in case.standing(prefix))
        seed = derive_seed(self.seed, step.name)
        planned = planned_run(step, inputs, case, seed=seed, used=tuple(f.number for f in findings))
        if once and (before := case.repeated(planned)) is not None:
            return before
        self.report(f"step {step.name}")
        clock = time.perf_counter()
        result, outputs, models = execute(
            self.store, step, inputs, findings, seed=seed, shelf=self.shelf, report=self.report
        )
        run = replace(planned, outputs=outputs, models=models, seconds=time.perf_counter() - clock)
        return self.store.add_run(case_id, run, result.findings, once=once)

    def _received(self, case_id: str, role: str) -> Run | None:
        taken = (run for run in self.store.case(case_id).runs if run.step == RECEIVE)
        return next((run for run in taken if run.outputs[0].role == role), None)


def read_files(paths: Sequence[Path], role: str) -> SourceFiles:
    """Read files as they are.

    Raises:
        InputError: No file, or a path that is not a file.
        StorageError: A file cannot be read.
    """
    if not paths:
        raise InputError("no file was given", source=role)
    contents = []
    for path in paths:
        if not path.is_file():
            raise InputError("there is no such file", source=path, expected="a file that can be read")
        with storage_errors(path):
            contents.append((path.name, path.read_bytes()))
    return SourceFiles(tuple(contents))


def planned_run(
    step: Step,
    inputs: tuple[Artifact, ...],
    case: Case,
    *,
    seed: int = 0,
    used: tuple[int, ...] = (),
    packages: tuple[str, ...] | None = None,
    started: str | None = None,
) -> Run:
    """Return the run of a step as it is known before: without outputs, models, and seconds.

    Args:
        step: What is run.
        inputs: On what.
        case: As it was seen.
        seed: Of the step.
        used: Numbers of the findings that it reads.
        packages: What the result may depend on; the step's own by default.
        started: When it began, ISO 8601; now by default.
    """
    return Run(
        number=0,
        step=step.name,
        version=step.version,
        parameters=step.parameters,
        inputs=inputs,
        outputs=(),
        findings=(),
        used=used,
        seed=seed,
        doubt=step.doubt,
        models={},
        environment=Environment.current(step.packages if packages is None else packages).to_json(),
        started=_now() if started is None else started,
        seconds=0.0,
        seen=case.events,
    )


def execute(
    store: CaseStore,
    step: Step,
    inputs: Sequence[Artifact],
    findings: Sequence[Finding],
    *,
    seed: int,
    shelf: ModelShelf,
    report: Report = silent,
) -> tuple[Result, tuple[Artifact, ...], dict[str, str]]:
    """Run a step on artifacts and keep its outputs; the record is not touched.

    Returns:
        The step's result, the artifacts of its outputs, and the models it used (name to sha256).
    """
    values: dict[str, Any] = {artifact.role: artifacts.load(store.objects, artifact) for artifact in inputs}
    context = Context(seed=seed, findings=tuple(findings), report=report, shelf=shelf)
    result = step.run(values, context)
    if set(result.outputs) != set(step.writes):
        raise InputError(
            "a step wrote other roles than it declares",
            source=step.name,
            value=sorted(result.outputs),
            expected=str(sorted(step.writes)),
        )
    outputs = tuple(
        artifacts.save(store.objects, role, kind, result.outputs[role]) for role, kind in step.writes.items()
    )
    return result, outputs, context.models


def _latest(case: Case, role: str, kind: Kind, step: Step) -> Artifact:
    artifact = case.latest(role)
    if artifact is None:
        raise InputError(
            "the case has no such input yet", source=f"step {step.name}", value=role, expected=f"a {kind}"
        )
    if artifact.kind != kind:
        raise InputError(
            "an input is of another kind",
            source=f"step {step.name}",
            value=artifact.kind,
            expected=kind.value,
        )
    return artifact


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
