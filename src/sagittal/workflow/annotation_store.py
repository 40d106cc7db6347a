"""What a store holds for the queue of annotation: cases without labels, and those whose labels are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sagittal.annotation import Budget, Method, Unit, fit_minutes
from sagittal.case.record import Case
from sagittal.core.errors import InputError, ModelError
from sagittal.volume import Volume
from sagittal.workflow import artifacts
from sagittal.workflow.annotation_minutes import logged_minutes
from sagittal.workflow.annotation_networks import Networks
from sagittal.workflow.annotation_queue import Pending, Queue, Scan, annotation_queue
from sagittal.workflow.artifacts import Kind
from sagittal.workflow.labelled import LabelledCase, field_for, images_of, labelled_cases
from sagittal.workflow.network_input import image_roles, labels_on, network_input
from sagittal.workflow.runner import Runner
from sagittal.workflow.steps.annotation import ANNOTATION, NOT_LABELLED
from sagittal.workflow.steps.registration import RegisterToAtlas

__all__ = ["pending_cases", "store_queue"]


def store_queue(
    runner: Runner,
    networks: Networks,
    atlas: RegisterToAtlas,
    *,
    budget: Budget,
    unit: Unit = Unit.VOLUME,
    method: Method = Method.WEIGHTED_COVER,
    with_unlike: bool = False,
    axis: int = 2,
    seed: int = 0,
    keep: Callable[[str, NDArray[np.float32]], None] | None = None,
) -> tuple[Queue, list[Pending]]:
    """Choose what to annotate next among the cases of a store.

    Args:
        runner: Of the store; it registers cases that are not registered yet, where a channel needs it.
        networks: What is asked.
        atlas: How cases are registered to the atlas.
        budget: How many units, or how many minutes.
        unit: What is annotated at a time.
        method: How the choice is made.
        with_unlike: Choose also among cases that look unlike the others.
        axis: Slices lie across it: 0 sagittal, 1 coronal, 2 axial.
        seed: For a choice by chance.
        keep: Given each case's id and the uncertainty of its voxels.

    Returns:
        The queue, and the cases that it was chosen from.

    Raises:
        InputError: Nothing is left to annotate, or a labelled subject is in the store twice.
        ModelError: No case has the networks' channels.
    """
    config = networks.config
    store = runner.store
    labelled = labelled_cases(store, config.labels)
    pending, notes = pending_cases(runner, networks, labelled, atlas, partly=unit is not Unit.VOLUME)
    if not pending:
        raise InputError(
            "nothing is left to annotate",
            source=store.source,
            value="; ".join((f"{len(labelled)} of {len(store.case_ids())} cases are labelled", *notes)),
            expected=f"a case with {', '.join(image_roles(config.channels))} and without labels",
        )
    if not labelled:
        notes.append(
            f"no case of the store is labelled with {', '.join(config.labels)}: what the networks have "
            "learned from is not known here, and cases like it may be chosen again"
        )
    logs, without = logged_minutes(store, labelled, config, axis)
    if without:
        notes.append(
            f"{without} labelled case{'s have' if without > 1 else ' has'} no minutes, and teach none"
        )
    asked = {case.case for case in pending}
    queue = annotation_queue(
        pending,
        networks,
        config.labels,
        budget=budget,
        minutes=fit_minutes(logs),
        labelled=[_known(runner, one.case, networks) for one in labelled if one.id not in asked],
        unit=unit,
        method=method,
        with_unlike=with_unlike,
        axis=axis,
        seed=seed,
        keep=keep,
        report=runner.report,
    )
    return replace(queue, notes=(*queue.notes, *notes)), pending


def pending_cases(
    runner: Runner,
    networks: Networks,
    labelled: Sequence[LabelledCase],
    atlas: RegisterToAtlas,
    *,
    partly: bool = False,
) -> tuple[list[Pending], list[str]]:
    """Return the cases of a store that could be annotated, each image once, and what was left out.

    Args:
        runner: Of the store.
        networks: What is asked: its channels are needed.
        labelled: Cases that are labelled.
        atlas: How cases are registered to the atlas.
        partly: Take cases too of which a part is labelled, such as some slices.

    Raises:
        ModelError: There are cases without labels, and none has the networks' channels.
    """
    store = runner.store
    done = {one.id: one for one in labelled}
    seen = {one.image_sha256: one.id for one in labelled}
    roles = image_roles(networks.config.channels)
    found: list[Pending] = []
    lacking: list[Case] = []
    notes: list[str] = []
    started = 0
    for case_id in store.case_ids():
        one = done.get(case_id)
        if one is not None:
            if (one.labels(store).array == NOT_LABELLED).any():
                started += 1
                if partly:
                    found.append(_pending(runner, one.case, networks, atlas, started=True))
            continue
        case = store.case(case_id)
        first = case.latest(roles[0])
        if first is None or not _holds(case, roles):
            lacking.append(case)
            continue
        voxels = artifacts.volume_manifest(store.objects, first)["array"]
        other = seen.setdefault(voxels, case_id)
        if other != case_id:
            notes.append(f"case {case_id} holds the same image as case {other}, and is left out")
            continue
        found.append(_pending(runner, case, networks, atlas))
    if started and not partly:
        notes.append(f"{started} labelled in part: they are asked for by slice or patch alone")
    if lacking:
        if not found and not any(_holds(one.case, roles) for one in labelled):
            raise ModelError(
                "the model was trained for other channels than the cases have",
                source=store.source,
                value=_images(lacking),
                expected=", ".join(roles),
            )
        which = ", ".join(case.id for case in lacking)
        notes.append(f"without all of {', '.join(roles)}, and left out: {which}")
    return found, notes


def _holds(case: Case, roles: Sequence[str]) -> bool:
    images = [case.latest(role) for role in roles]
    return all(image is not None and image.kind == Kind.VOLUME for image in images)


def _images(cases: Sequence[Case]) -> str:
    """Return the roles of the volumes that cases hold."""
    found = {o.role for case in cases for run in case.runs for o in run.outputs if o.kind == Kind.VOLUME}
    return ", ".join(sorted(found)) or "no image"


def _pending(
    runner: Runner, case: Case, networks: Networks, atlas: RegisterToAtlas, *, started: bool = False
) -> Pending:
    return Pending(
        case=case.id,
        subject=case.id,
        label=case.label,
        started=started,
        load=partial(_scan, runner, case, networks, atlas, started),
    )


def _known(runner: Runner, case: Case, networks: Networks) -> Pending:
    """Return a case of which only the looks count: the first channel, and no registration."""
    first = networks.config.channels[:1]

    def load() -> Scan:
        seen = network_input(images_of(runner.store, case, first), first, networks.config.spacing_mm)
        return Scan(channels=seen.channels, mask=seen.mask, geometry=seen.geometry)

    return Pending(case=case.id, subject=case.id, label=case.label, load=load)


def _scan(runner: Runner, case: Case, networks: Networks, atlas: RegisterToAtlas, started: bool) -> Scan:
    config = networks.config
    field, digest = field_for(runner, case, config.channels, atlas)
    if digest and networks.atlas_images and digest not in networks.atlas_images:
        raise ModelError(
            "the model was trained with another atlas",
            value=f"image sha256 {digest[:12]}…",
            expected=", ".join(f"image sha256 {known[:12]}…" for known in networks.atlas_images),
        )
    images = images_of(runner.store, case, config.channels)
    seen = network_input(images, config.channels, config.spacing_mm, field)
    drawn = case.latest(ANNOTATION) if started else None
    done = None
    if drawn is not None:
        labels: Volume = artifacts.load(runner.store.objects, drawn)
        done = labels_on(labels, seen.geometry) != NOT_LABELLED
    return Scan(channels=seen.channels, mask=seen.mask, geometry=seen.geometry, done=done)
