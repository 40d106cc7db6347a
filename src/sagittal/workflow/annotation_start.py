"""What a person began with who labelled a case: the labels that networks or a method had proposed before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sagittal.case.record import Case
from sagittal.case.store import CaseStore
from sagittal.volume import Volume
from sagittal.workflow import artifacts
from sagittal.workflow.artifacts import Kind
from sagittal.workflow.steps.annotation import ANNOTATION, NOT_LABELLED
from sagittal.workflow.steps.correct import CorrectMask
from sagittal.workflow.steps.proposal import PROPOSAL

__all__ = ["Nearest", "begun_with", "nearest_proposal", "proposal_of_latest"]

_STARTS = (PROPOSAL, "segmentation")


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The proposal that labels are nearest to.

    Attributes:
        changed: Voxels in which they differ, of those that somebody has looked at.
        models: Sha256 of the networks that proposed it.
    """

    changed: int
    models: tuple[str, ...]


def begun_with(store: CaseStore, case: Case, drawn: Volume, *, before: int | None = None) -> Volume | None:
    """Return the latest proposal that the case held with these labels' names, on their grid.

    Args:
        store: The store.
        case: The case.
        drawn: The labels; their names are in its facts.
        before: Place of the labels' run among the case's: what came later is not what they began with.
    """
    return next(_proposals(store, case, drawn, before), None)


def nearest_proposal(
    store: CaseStore, case: Case, drawn: Volume, *, before: int | None = None
) -> Nearest | None:
    """Return the proposal that labels differ least from, the latest of equals; ``None`` where none was made.

    All that were made before count: a person may have begun with one when the case held a later one
    already. What a person corrected in the case is nobody's proposal. Arguments as for :func:`begun_with`.
    """
    found: Nearest | None = None
    looked = drawn.array != NOT_LABELLED
    for proposed in _proposals(store, case, drawn, before, corrected=False):
        changed = int(np.count_nonzero(looked & (drawn.array != proposed.array)))
        if found is None or changed < found.changed:
            found = Nearest(changed=changed, models=_models(proposed))
    return found


def proposal_of_latest(store: CaseStore, case: Case, drawn: Volume) -> Nearest | None:
    """Return the proposal that the case's latest labels are nearest to, of those made before them."""
    place = max(n for n, run in enumerate(case.runs) if any(o.role == ANNOTATION for o in run.outputs))
    return nearest_proposal(store, case, drawn, before=place)


def _proposals(
    store: CaseStore, case: Case, drawn: Volume, before: int | None, *, corrected: bool = True
) -> Iterator[Volume]:
    """Return the proposals with these labels' names on their grid, the latest first, none twice."""
    seen = set()
    for run in reversed(case.runs[:before]):
        if run.step == CorrectMask.name and not corrected:
            continue
        for output in run.outputs:
            if output.kind != Kind.VOLUME or output.role not in _STARTS or output.content in seen:
                continue
            seen.add(output.content)
            about = artifacts.volume_manifest(store.objects, output)
            if list(about["classes"]) != list(drawn.facts["labels"]) or about["probabilities"] is None:
                continue
            volume: Volume = artifacts.load(store.objects, output)
            if volume.shape == drawn.shape and volume.geometry.is_aligned(drawn.geometry):
                yield volume


def _models(proposed: Volume) -> tuple[str, ...]:
    """Return the sha256 of the networks behind a proposal, as the steps that propose write it down."""
    facts = proposed.facts
    return tuple(str(one) for one in facts.get("models", [facts["model"]] if "model" in facts else []))
