"""Run every step of a case again from its record and compare the contents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sagittal.workflow.steps  # noqa: F401  (defines the steps that come with sagittal)
from sagittal.case.record import Finding, Run
from sagittal.case.store import CaseStore
from sagittal.core.errors import InputError, SagittalError
from sagittal.core.progress import Report, silent
from sagittal.workflow import artifacts
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.runner import RECEIVE, execute
from sagittal.workflow.step import STEPS, Step

__all__ = ["Difference", "ReplayedRun", "replay", "step_from_record"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Something that came out otherwise: an output, a finding, a model, or the whole run."""

    what: str
    recorded: str
    replayed: str


@dataclass(frozen=True, kw_only=True)
class ReplayedRun:
    """One run, run again: the hashes that were compared, and where they differ."""

    run: int
    step: str
    hashes: tuple[str, ...]
    differences: tuple[Difference, ...]


def replay(
    store: CaseStore, case_id: str, *, shelf: ModelShelf, report: Report = silent
) -> tuple[ReplayedRun, ...]:
    """Run every step of a case again on its recorded inputs, findings and seed, and compare hashes.

    Nothing is added to the record. A step that cannot run any more is a difference, not an error.
    """
    case = store.case(case_id)
    numbered = {finding.number: finding for finding in case.findings}
    replayed = []
    for run in case.runs:
        report(f"replay of run {run.number}, step {run.step}")
        try:
            findings = [_as_of(numbered[number], run.seen) for number in run.used]
            hashes, differences = _again(store, run, findings, shelf, report)
        except SagittalError as error:
            hashes, differences = (), (Difference(what="run", recorded="done", replayed=str(error)),)
        replayed.append(ReplayedRun(run=run.number, step=run.step, hashes=hashes, differences=differences))
    return tuple(replayed)


def step_from_record(name: str, version: str, parameters: Mapping[str, Any]) -> Step:
    """Rebuild a step from a run's record.

    Raises:
        InputError: The step is not known here, has another version here, or refuses the parameters.
    """
    kind = STEPS.get(name)
    if kind is None:
        raise InputError("no step has this name", value=name, expected=f"one of {', '.join(sorted(STEPS))}")
    if kind.version != version:
        raise InputError(
            "the step has changed since the run",
            source=name,
            value=f"version {kind.version}",
            expected=version,
        )
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError("the step does not take these parameters", source=name, value=error) from error


def _as_of(finding: Finding, seen: int) -> Finding:
    """The finding as it stood after the case's first ``seen`` events; the clock has no say in it."""
    return replace(finding, events=tuple(event for event in finding.events if event.number <= seen))


def _again(
    store: CaseStore, run: Run, findings: Sequence[Finding], shelf: ModelShelf, report: Report
) -> tuple[tuple[str, ...], tuple[Difference, ...]]:
    if run.step == RECEIVE:
        for artifact in run.outputs:
            artifacts.load(store.objects, artifact)  # raises when a content is missing or has changed
        return tuple(artifact.content for artifact in run.outputs), ()
    step = step_from_record(run.step, run.version, run.parameters)
    result, outputs, models = execute(
        store, step, run.inputs, findings, seed=run.seed, shelf=shelf, report=report
    )
    pairs = [
        (f"output {recorded.role}", recorded.content, again.content)
        for recorded, again in zip(run.outputs, outputs, strict=True)
    ]
    again_findings = [finding.content_hash for finding in result.findings]
    pairs.append(("number of findings", str(len(run.findings)), str(len(again_findings))))
    pairs += [
        (f"finding {index} of the run", recorded, again)
        for index, (recorded, again) in enumerate(zip(run.findings, again_findings, strict=False), start=1)
    ]
    pairs += [(f"model {name}", recorded, models.get(name, "")) for name, recorded in run.models.items()]
    differences = tuple(
        Difference(what=what, recorded=recorded, replayed=again)
        for what, recorded, again in pairs
        if recorded != again
    )
    return tuple(again.content for again in outputs) + tuple(again_findings), differences
