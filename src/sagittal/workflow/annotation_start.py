"""What a person began with who labelled a case: the labels that networks or a method had proposed before."""

from __future__ import annotations

import numpy as np

from sagittal.case.record import Case
from sagittal.case.store import CaseStore
from sagittal.volume import Volume
from sagittal.workflow import artifacts
from sagittal.workflow.artifacts import Kind
from sagittal.workflow.steps.annotation import ANNOTATION, NOT_LABELLED
from sagittal.workflow.steps.proposal import PROPOSAL

__all__ = ["as_proposed", "begun_with", "changed_voxels"]

_STARTS = (PROPOSAL, "segmentation")


def begun_with(store: CaseStore, case: Case, drawn: Volume, *, before: int | None = None) -> Volume | None:
    """Return the latest proposal that the case held with these labels' names, on their grid.

    Args:
        store: The store.
        case: The case.
        drawn: The labels; their names are in its facts.
        before: Place of the labels' run among the case's: what came later is not what they began with.
    """
    for run in reversed(case.runs[:before]):
        for output in run.outputs:
            if output.kind != Kind.VOLUME or output.role not in _STARTS:
                continue
            about = artifacts.volume_manifest(store.objects, output)
            if list(about["classes"]) != list(drawn.facts["labels"]) or about["probabilities"] is None:
                continue
            volume: Volume = artifacts.load(store.objects, output)
            if volume.shape == drawn.shape and volume.geometry.is_aligned(drawn.geometry):
                return volume
    return None


def changed_voxels(store: CaseStore, case: Case, drawn: Volume, *, before: int | None = None) -> int | None:
    """Return in how many voxels labels differ from the proposal before them; ``None`` where there was none.

    Voxels that nobody has looked at do not count. Arguments as for :func:`begun_with`.
    """
    proposed = begun_with(store, case, drawn, before=before)
    if proposed is None:
        return None
    return int(np.count_nonzero((drawn.array != NOT_LABELLED) & (drawn.array != proposed.array)))


def as_proposed(store: CaseStore, case: Case, drawn: Volume) -> bool:
    """Tell whether the case's latest labels are a proposal as it was: nobody changed a voxel of it."""
    place = max(n for n, run in enumerate(case.runs) if any(o.role == ANNOTATION for o in run.outputs))
    return changed_voxels(store, case, drawn, before=place) == 0
