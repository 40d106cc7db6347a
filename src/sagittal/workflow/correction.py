"""Keep a mask as a person corrected it, with what follows from it, unless somebody else was faster."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from sagittal.case.record import Artifact, Case, Run
from sagittal.case.store import CaseStore
from sagittal.core.errors import ConflictError, InputError
from sagittal.volume import Volume
from sagittal.workflow import artifacts
from sagittal.workflow.artifacts import Kind
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.runner import execute, planned_run
from sagittal.workflow.step import STEPS
from sagittal.workflow.steps.correct import CorrectMask, measures_masks, painted_labels

__all__ = ["Corrected", "correct_mask", "correctable"]


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """A correction that was kept.

    Attributes:
        run: The person's run.
        artifact: The corrected segmentation.
        changed: Voxels with another label than before.
        findings: Numbers of the new findings.
    """

    run: Run
    artifact: Artifact
    changed: int
    findings: tuple[int, ...]


def correct_mask(
    store: CaseStore, case_id: str, role: str, painted: Volume, *, edited: str, who: str, note: str = ""
) -> Corrected:
    """Put a person's labels in the place of a segmentation's and measure it again.

    The old segmentation and its findings stay in the record. The new findings are the person's and supersede
    those of the same subject that stand, accepted ones too: they were of another mask. Replay makes the
    corrected segmentation again from the labels, which are kept, and compares it.

    Args:
        store: The store.
        case_id: The case.
        role: The segmentation, e.g. ``"tissue"``.
        painted: Labels: 0, or 1 for the first class and so on, on the grid of the segmentation.
        edited: Content hash of the segmentation that the person saw.
        who: The person.
        note: Why.

    Raises:
        ConflictError: The segmentation, or a finding on it, was changed since; nothing is written.
        InputError: Nobody is named, the case has no such segmentation, or a label is no class of it.
        GeometryError: The labels lie on another grid.
    """
    if not who.strip():
        raise InputError("a correction needs a name", source="who", expected="who corrected it")
    started, clock = datetime.now(UTC).isoformat(timespec="milliseconds"), time.perf_counter()
    case = store.case(case_id)
    base, maker = _base(case, role, edited)
    before: Volume = artifacts.load(store.objects, base)
    labels = painted_labels(painted, before)
    changed = int(np.count_nonzero(labels.array != before.array))
    step = CorrectMask(
        role=role,
        step=maker.step,
        step_version=maker.version,
        step_parameters=dict(maker.parameters),
        changed=changed,
        note=note,
    )
    inputs = (base, artifacts.save(store.objects, f"{role}.painted", Kind.VOLUME, labels))
    result, outputs, _ = execute(store, step, inputs, (), seed=0, shelf=ModelShelf(offline=True))
    standing = _standing(case, role)
    replaces = {
        place: standing[key]
        for place, found in enumerate(result.findings)
        if (key := (found.code, found.subject)) in standing
    }
    run = replace(
        planned_run(step, inputs, case, packages=STEPS[maker.step].packages, started=started),
        outputs=outputs,
        seconds=time.perf_counter() - clock,
    )
    kept = store.add_run(case_id, run, result.findings, author=who, replaces=replaces, unless_changed=base)
    numbers = tuple(f.number for f in store.case(case_id).findings if f.run == kept.number)
    return Corrected(run=kept, artifact=outputs[0], changed=changed, findings=numbers)


def correctable(runs: Iterable[Run], role: str) -> bool:
    """Whether a corrected mask of this role is taken: the step that made it can measure it again."""
    maker = _maker(runs, role)
    return maker is not None and maker.step in STEPS and measures_masks(STEPS[maker.step])


def _base(case: Case, role: str, edited: str) -> tuple[Artifact, Run]:
    """The segmentation that is corrected, and the step's run that first made it."""
    base, maker = case.latest(role), _maker(case.runs, role)
    if base is None or maker is None or not correctable(case.runs, role):
        raise InputError("the case has no segmentation to correct under this name", source="role", value=role)
    if base.content != edited:
        last = next(run for run in reversed(case.runs) if base in run.outputs)
        raise ConflictError(
            "the mask was changed since it was read",
            source=role,
            value=f"changed by {last.author or last.step}, {last.started}",
            expected="the correction to be made on the mask as it is now",
        )
    return base, maker


def _maker(runs: Iterable[Run], role: str) -> Run | None:
    made = [run for run in runs if any(output.role == role for output in run.outputs)]
    return next((run for run in reversed(made) if run.step != CorrectMask.name), None)


def _standing(case: Case, role: str) -> dict[tuple[str, str], int]:
    """Numbers of the findings on this role's segmentations that stand, by code and subject."""
    made = {run.number for run in case.runs if any(output.role == role for output in run.outputs)}
    return {(f.content.code, f.content.subject): f.number for f in case.standing() if f.run in made}
