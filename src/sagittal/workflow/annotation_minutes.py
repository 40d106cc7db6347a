"""Minutes that annotations of a store took, each with the work that was to be seen before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.annotation import CaseEffort, LoggedMinutes, correction_effort, expected_effort
from sagittal.case.record import Case
from sagittal.case.store import CaseStore
from sagittal.segmentation import NetworkConfig
from sagittal.volume import Geometry, Volume, reorient, resample
from sagittal.workflow import artifacts
from sagittal.workflow.annotation_start import begun_with
from sagittal.workflow.labelled import LabelledCase, images_of
from sagittal.workflow.network_input import labels_on, network_input
from sagittal.workflow.steps.annotation import ANNOTATION, NOT_LABELLED

__all__ = ["logged_minutes"]


@dataclass(frozen=True, eq=False)
class _Piece:
    """Labels that came at once: what was drawn, and where nobody had looked before."""

    drawn: Volume
    new: NDArray[np.bool_]
    minutes: float
    run: int


def logged_minutes(
    store: CaseStore, labelled: Sequence[LabelledCase], config: NetworkConfig, axis: int = 2
) -> tuple[list[LoggedMinutes], int]:
    """Return what annotations took, with the work that was to be seen before them.

    That is the work expected on the proposal that the case held when the labels came, the latest with these
    classes, on the grid of the networks as predictions are. Without a proposal the labels were drawn from
    nothing, and the work is all of them. Labels that came in several parts, such as slice by slice, are as
    many logs. A later import that only changes labels teaches nothing; the same labels again correct the
    minutes.

    Args:
        store: The store.
        labelled: Its labelled cases.
        config: Of the networks: their labels and voxels.
        axis: Slices lie across it: 0 sagittal, 1 coronal, 2 axial.

    Returns:
        The logs, and how many labelled cases have none.
    """
    logs: list[LoggedMinutes] = []
    without = 0
    for one in labelled:
        pieces = [piece for piece in _pieces(store, one.case, config.labels) if piece.minutes > 0]
        without += not pieces
        if pieces:
            grid = _grid(store, one.case, config)
            logs.extend(
                LoggedMinutes(
                    subject=one.id,
                    effort=_work_before(store, one.case, piece, config.labels, grid, axis),
                    minutes=piece.minutes,
                )
                for piece in pieces
            )
    return logs, without


def _pieces(store: CaseStore, case: Case, labels: Sequence[str]) -> list[_Piece]:
    found: list[_Piece] = []
    before: NDArray[Any] | None = None
    for place, drawn, minutes in _drawn(store, case):
        if list(drawn.facts["labels"]) != list(labels):
            found, before = [], None
            continue
        looked = drawn.array != NOT_LABELLED
        if before is None or before.shape != drawn.shape:
            found.append(_Piece(drawn, looked, minutes, place))
        elif (new := looked & (before == NOT_LABELLED)).any():
            found.append(_Piece(drawn, new, minutes, place))
        elif np.array_equal(before, drawn.array):
            found[-1] = replace(found[-1], minutes=minutes)
        before = drawn.array
    return found


def _drawn(store: CaseStore, case: Case) -> Iterator[tuple[int, Volume, float]]:
    for place, run in enumerate(case.runs):
        for output in run.outputs:
            if output.role == ANNOTATION:
                yield place, artifacts.load(store.objects, output), float(run.parameters["minutes"])


def _grid(store: CaseStore, case: Case, config: NetworkConfig) -> Geometry:
    first = config.channels[:1]
    return network_input(images_of(store, case, first), first, config.spacing_mm).geometry


def _work_before(
    store: CaseStore, case: Case, piece: _Piece, labels: Sequence[str], grid: Geometry, axis: int
) -> CaseEffort:
    kept = np.where(piece.new, piece.drawn.array, NOT_LABELLED)
    final = labels_on(piece.drawn.with_array(kept), grid)
    looked = final != NOT_LABELLED
    proposal = begun_with(store, case, piece.drawn, before=piece.run)
    if proposal is None:
        classes = {name: number for number, name in enumerate(labels, 1)}
        nothing = np.zeros(grid.shape, np.uint8)
        return correction_effort(nothing, np.where(looked, final, 0), classes, grid.spacing, axis=axis)
    there = reorient(proposal)
    if there.shape != grid.shape or not there.geometry.is_aligned(grid):
        there = resample(there, grid)
    assert there.probabilities is not None, "a proposal has probabilities"
    shares = np.where(looked[..., None], np.clip(there.probabilities, 0, 1), 0)
    return expected_effort(np.where(looked, there.array, 0), shares, labels, grid.spacing, axis=axis)
