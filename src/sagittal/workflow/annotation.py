"""Take a person's labels into a case, with who drew them and how long it took."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from sagittal.case.record import Finding, Run
from sagittal.case.store import CaseStore
from sagittal.core.errors import InputError
from sagittal.workflow import artifacts
from sagittal.workflow.annotation_start import nearest_proposal
from sagittal.workflow.artifacts import Kind
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.runner import execute, planned_run, read_files
from sagittal.workflow.steps.annotation import ANNOTATION, TakeAnnotation

__all__ = ["Imported", "import_annotation"]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """An annotation that is now part of a case.

    Attributes:
        run: The person's run.
        finding: What the case says of it.
        replaced: Number of the finding on an earlier annotation, which it supersedes.
        changed: Voxels that differ from the nearest labels that were proposed for the case before; ``None``
            where none were.
    """

    run: Run
    finding: Finding
    replaced: int | None
    changed: int | None


def import_annotation(
    store: CaseStore,
    case_id: str,
    path: Path,
    *,
    labels: tuple[str, ...],
    minutes: float,
    who: str,
    role: str = "t1",
    unknown: int | None = None,
) -> Imported:
    """Add labels to a case; the labels and their finding enter in one transaction, or nothing does.

    An earlier annotation of the same image stays in the record; the finding on it is superseded.

    Args:
        store: The store.
        case_id: The case.
        path: Labels on the image's grid: NIfTI, NRRD, MetaImage or a DICOM file.
        labels: Names of the values 1, 2 and so on.
        minutes: How long it took.
        who: Who drew them.
        role: The image.
        unknown: Value of voxels that nobody has looked at.

    Raises:
        InputError: No such case, image or file; a value outside the list; nothing labelled.
        GeometryError: The labels lie on another grid.
    """
    step = TakeAnnotation(role=role, labels=labels, minutes=minutes, who=who, unknown=unknown)
    started, clock = datetime.now(UTC).isoformat(timespec="milliseconds"), time.perf_counter()
    case = store.case(case_id)
    image = case.latest(role)
    if image is None or image.kind != Kind.VOLUME:
        raise InputError(
            "the case has no such image to label", source=f"case {case_id}", value=role, expected="an image"
        )
    given = artifacts.save(store.objects, f"{ANNOTATION}.files", Kind.FILES, read_files([path], "labels"))
    inputs = (image, given)
    result, outputs, _ = execute(store, step, inputs, (), seed=0, shelf=ModelShelf(offline=True))
    (found,) = result.findings
    before = [
        finding.number for finding in case.standing(found.code) if finding.content.subject == found.subject
    ]
    run = replace(
        planned_run(step, inputs, case, started=started),
        outputs=outputs,
        seconds=time.perf_counter() - clock,
    )
    replaces = {0: before[-1]} if before else None
    kept = store.add_run(case_id, run, result.findings, author=who, replaces=replaces, unless_changed=image)
    added = next(f for f in store.case(case_id).findings if f.run == kept.number)
    nearest = nearest_proposal(store, case, result.outputs[ANNOTATION])
    return Imported(
        run=kept,
        finding=added,
        replaced=before[-1] if before else None,
        changed=None if nearest is None else nearest.changed,
    )
