"""What a store holds for the queue of annotation: cases without labels, logged minutes, and networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.annotation import (
    Budget,
    CaseEffort,
    LoggedMinutes,
    Method,
    Unit,
    correction_effort,
    expected_effort,
    fit_minutes,
)
from sagittal.case.record import Case
from sagittal.core.errors import InputError, ModelError
from sagittal.segmentation import SegmentationModel, predict
from sagittal.segmentation.network_file import model_from_bytes
from sagittal.volume import Volume
from sagittal.workflow import artifacts
from sagittal.workflow.annotation_queue import Pending, Predict, Queue, Scan, annotation_queue
from sagittal.workflow.artifacts import Kind
from sagittal.workflow.labelled import LabelledCase, field_for, images_of, labelled_cases
from sagittal.workflow.network_input import image_roles, labels_on, network_input
from sagittal.workflow.runner import Runner
from sagittal.workflow.segment_training import MODEL
from sagittal.workflow.steps.annotation import ANNOTATION, NOT_LABELLED
from sagittal.workflow.steps.registration import RegisterToAtlas

__all__ = ["logged_minutes", "pending_cases", "predict_with", "read_networks", "store_queue"]


def store_queue(
    runner: Runner,
    models: Sequence[SegmentationModel],
    atlas: RegisterToAtlas,
    *,
    budget: Budget,
    unit: Unit = Unit.VOLUME,
    method: Method = Method.UNCERTAINTY_COVER,
    axis: int = 2,
    seed: int = 0,
) -> tuple[Queue, list[Pending]]:
    """Choose what to annotate next among the cases of a store.

    Args:
        runner: Of the store; it registers cases that are not registered yet, where a channel needs it.
        models: Networks of one kind: the same channels, labels and voxels.
        atlas: How cases are registered to the atlas.
        budget: How many units, or how many minutes.
        unit: What is annotated at a time.
        method: How the choice is made.
        axis: Slices lie across it: 0 sagittal, 1 coronal, 2 axial.
        seed: For a choice by chance.

    Returns:
        The queue, and the cases that it was chosen from.

    Raises:
        InputError: Nothing is left to annotate, or a labelled subject is in the store twice.
    """
    config = models[0].config
    labelled = labelled_cases(runner.store, config.labels)
    pending, notes = pending_cases(runner, models[0], labelled, atlas, partial_labels=unit is not Unit.VOLUME)
    logs, unlogged = logged_minutes(runner, labelled, config.labels, axis)
    if unlogged:
        notes.append(f"{unlogged} labelled cases have no minutes, and teach none")
    whole = {case.case for case in pending}
    known = [
        _pending(runner, one.case, models[0], atlas, done=False) for one in labelled if one.id not in whole
    ]
    queue = annotation_queue(
        pending,
        predict_with(models),
        config.labels,
        budget=budget,
        minutes=fit_minutes(logs),
        labelled=known,
        unit=unit,
        method=method,
        axis=axis,
        seed=seed,
        report=runner.report,
    )
    return replace(queue, notes=(*queue.notes, *notes)), pending


def read_networks(paths: Sequence[Path]) -> list[SegmentationModel]:
    """Read networks from the folders that trainings wrote; several are an ensemble.

    Raises:
        InputError: No folder, or one without a model.
        ModelError: Networks for other channels, labels or voxels than the first, or one twice.
    """
    if not paths:
        raise InputError("no model is given", expected="a folder that 'sagittal segment train' has written")
    found: list[SegmentationModel] = []
    for path in paths:
        file = path / MODEL if path.is_dir() else path
        if not file.is_file():
            raise InputError(
                "there is no such model", source=file, expected="what 'sagittal segment train' has written"
            )
        model = model_from_bytes(file.read_bytes(), file)
        same = [_kind(one) for one in found[:1]] in ([], [_kind(model)])
        if not same:
            raise ModelError(
                "the networks are no ensemble", source=file, value=_kind(model), expected=str(_kind(found[0]))
            )
        if any(_weigh_alike(model, one) for one in found):
            raise ModelError(
                "a network is given twice", source=file, expected="networks of their own trainings"
            )
        found.append(model)
    return found


def predict_with(models: Sequence[SegmentationModel]) -> Predict:
    """Return what asks all networks of an ensemble."""

    def ask(scan: Scan) -> NDArray[Any]:
        return np.stack([predict(model, scan.channels, scan.mask) for model in models])

    return ask


def pending_cases(
    runner: Runner,
    model: SegmentationModel,
    labelled: Sequence[LabelledCase],
    atlas: RegisterToAtlas,
    *,
    partial_labels: bool = False,
) -> tuple[list[Pending], list[str]]:
    """Return the cases of a store that could be annotated, each image once, and what was left out.

    Args:
        runner: Of the store.
        model: A network: its channels are needed.
        labelled: Cases that are labelled.
        atlas: How cases are registered to the atlas.
        partial_labels: Take cases too of which a part is labelled, such as some slices.
    """
    store = runner.store
    done = {one.id: one for one in labelled}
    seen = {one.image_sha256: one.id for one in labelled}
    found: list[Pending] = []
    without, twice = 0, []
    for case_id in store.case_ids():
        one = done.get(case_id)
        if one is not None:
            if partial_labels and (one.labels(store).array == NOT_LABELLED).any():
                found.append(_pending(runner, one.case, model, atlas, done=True))
            continue
        case = store.case(case_id)
        images = [case.latest(role) for role in image_roles(model.config.channels)]
        if any(image is None or image.kind != Kind.VOLUME for image in images):
            without += 1
            continue
        assert images[0] is not None, "the first channel is an image"
        voxels = artifacts.volume_manifest(store.objects, images[0])["array"]
        other = seen.setdefault(voxels, case_id)
        if other != case_id:
            twice.append(f"case {case_id} holds the same image as case {other}, and is left out")
            continue
        found.append(_pending(runner, case, model, atlas, done=False))
    if without:
        roles = ", ".join(image_roles(model.config.channels))
        twice.append(f"{without} cases have no {roles}, and are left out")
    return found, twice


def logged_minutes(
    runner: Runner, labelled: Sequence[LabelledCase], labels: Sequence[str], axis: int
) -> tuple[list[LoggedMinutes], int]:
    """Return what annotations took, with the work that was to be seen before them.

    That is the work expected on the proposal that the case held when the labels came: the latest segmentation
    with these classes. Without one the labels were drawn from nothing, and the work is all of them.

    Returns:
        The logs, and how many labelled cases have no minutes.
    """
    logs = [
        LoggedMinutes(subject=one.id, effort=effort, minutes=one.minutes)
        for one in labelled
        if one.minutes > 0
        for effort in _work_before(runner, one, labels, axis)
    ]
    return logs, sum(one.minutes <= 0 for one in labelled)


def _work_before(runner: Runner, one: LabelledCase, labels: Sequence[str], axis: int) -> Iterator[CaseEffort]:
    drawn = one.labels(runner.store)
    looked = drawn.array != NOT_LABELLED
    across = _axis_of(drawn, axis)
    proposal = _proposal(runner, one.case, labels, drawn)
    spacing = drawn.geometry.spacing
    if proposal is None or proposal.probabilities is None:
        classes = {name: number for number, name in enumerate(labels, 1)}
        nothing = np.zeros(drawn.shape, np.uint8)
        yield correction_effort(nothing, np.where(looked, drawn.array, 0), classes, spacing, axis=across)
    else:
        shares = np.where(looked[..., None], proposal.probabilities, 0)
        yield expected_effort(np.where(looked, proposal.array, 0), shares, labels, spacing, axis=across)


def _proposal(runner: Runner, case: Case, labels: Sequence[str], drawn: Volume) -> Volume | None:
    """Return the latest segmentation with these classes on the labels' grid from before the labels."""
    runs = list(case.runs)
    while runs and not any(output.role == ANNOTATION for output in runs[-1].outputs):
        runs.pop()
    for run in reversed(runs[:-1]):
        for output in run.outputs:
            if output.kind != Kind.VOLUME or output.role == ANNOTATION:
                continue
            about = artifacts.volume_manifest(runner.store.objects, output)
            if list(about["classes"]) != list(labels) or about["probabilities"] is None:
                continue
            volume: Volume = artifacts.load(runner.store.objects, output)
            if volume.shape == drawn.shape and volume.geometry.is_aligned(drawn.geometry):
                return volume
    return None


def _pending(
    runner: Runner, case: Case, model: SegmentationModel, atlas: RegisterToAtlas, *, done: bool
) -> Pending:
    return Pending(case=case.id, subject=case.id, load=partial(_scan, runner, case, model, atlas, done))


def _scan(runner: Runner, case: Case, model: SegmentationModel, atlas: RegisterToAtlas, done: bool) -> Scan:
    config = model.config
    field, _ = field_for(runner, case, config.channels, atlas)
    seen = network_input(
        images_of(runner.store, case, config.channels), config.channels, config.spacing_mm, field
    )
    labels = case.latest(ANNOTATION) if done else None
    return Scan(
        channels=seen.channels,
        mask=seen.mask,
        geometry=seen.geometry,
        done=None
        if labels is None
        else labels_on(artifacts.load(runner.store.objects, labels), seen.geometry) != NOT_LABELLED,
    )


def _axis_of(volume: Volume, axis: int) -> int:
    """Return a volume's own axis that runs along right (0), anterior (1) or superior (2)."""
    along = [world for world, _ in volume.geometry.orientation]
    return along.index(axis)


def _kind(model: SegmentationModel) -> tuple[object, ...]:
    config = model.config
    return config.channels, config.labels, config.spacing_mm, model.facts.get("atlas_image", [])


def _weigh_alike(one: SegmentationModel, other: SegmentationModel) -> bool:
    return one.weights.keys() == other.weights.keys() and all(
        np.array_equal(array, other.weights[name]) for name, array in one.weights.items()
    )
