"""Files for the person who annotates: the image, and the labels that networks propose, to be corrected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sagittal.annotation import Unit
from sagittal.case.store import CaseStore
from sagittal.core.errors import InputError
from sagittal.volume import Volume, reorient, resample, write_nifti
from sagittal.workflow import artifacts
from sagittal.workflow.annotation_networks import Networks
from sagittal.workflow.annotation_queue import Pending, Queue, QueueItem
from sagittal.workflow.labelled import images_of
from sagittal.workflow.runner import Runner
from sagittal.workflow.steps.annotation import ANNOTATION, NOT_LABELLED
from sagittal.workflow.steps.proposal import ProposeLabels
from sagittal.workflow.steps.registration import RegisterToAtlas

__all__ = ["UNKNOWN", "require_new_folder", "write_proposals"]

UNKNOWN = 255
"""Value of voxels that nobody is asked to look at, in the files."""

_LABELS = "-labels.nii.gz"


def require_new_folder(folder: Path) -> None:
    """Refuse a folder with labels in it: they may be a person's work. Asked before any network is.

    Raises:
        InputError: There is such a file.
    """
    there = sorted(folder.glob(f"*{_LABELS}"))
    if there:
        raise InputError("labels are there already", source=there[0], expected="a new folder for each round")


def write_proposals(
    runner: Runner,
    networks: Networks,
    atlas: RegisterToAtlas,
    queue: Queue,
    pending: Sequence[Pending],
    folder: Path,
) -> dict[str, Path]:
    """Write image and proposed labels of each case of a queue, on the image's own grid.

    The proposal is kept in the case too: minutes that are logged later are judged by the work on it. Of
    slices and patches only those in the queue are proposed. What was labelled before stays; all else is
    :data:`UNKNOWN`.

    Args:
        runner: Of the store.
        networks: Those that the queue asked.
        atlas: How cases are registered to the atlas.
        queue: The queue.
        pending: The cases that it was chosen from.
        folder: Where to write ``CASE-image.nii.gz`` and ``CASE-labels.nii.gz``.

    Returns:
        The file of labels of each case.

    Raises:
        InputError: Labels are there already.
        StorageError: The folder cannot be written.
    """
    require_new_folder(folder)
    files = {item.case: folder / f"{item.case}{_LABELS}" for item in queue.items}
    step = ProposeLabels(
        models=tuple(str(file) for file in networks.files),
        sha256=networks.sha256,
        channels=networks.config.channels,
        prefix=atlas.prefix,
    )
    cases = {case.case: case for case in pending}
    role = networks.config.channels[:1]
    for name, path in files.items():
        run = runner.run(name, step, once=True)
        proposed: Volume = artifacts.load(runner.store.objects, run.outputs[0])
        (image,) = images_of(runner.store, runner.store.case(name), role).values()
        items = [item for item in queue.items if item.case == name]
        labels = _to_correct(runner.store, cases[name], proposed, items)
        write_nifti(image, folder / f"{name}-image.nii.gz", sidecar=False)
        write_nifti(proposed.with_array(labels), path, sidecar=False)
    return files


def _to_correct(
    store: CaseStore, case: Pending, proposed: Volume, items: Sequence[QueueItem]
) -> NDArray[np.uint8]:
    """Return the proposal where it is asked for, over what was labelled before."""
    labels = np.full(proposed.shape, UNKNOWN, np.uint8)
    drawn = store.case(case.case).latest(ANNOTATION) if case.started else None
    if drawn is not None:
        before: Volume = artifacts.load(store.objects, drawn)
        looked = before.array != NOT_LABELLED
        labels[looked] = before.array[looked]
    asked = _asked(case, proposed, items) & (labels == UNKNOWN)
    labels[asked] = proposed.array[asked]
    return labels


def _asked(case: Pending, proposed: Volume, items: Sequence[QueueItem]) -> NDArray[np.bool_]:
    """Return where the items of a case lie, on the image's grid."""
    if any(item.unit is Unit.VOLUME for item in items):
        return np.ones(proposed.shape, bool)
    scan = case.load()
    there = np.zeros(scan.mask.shape, np.uint8)
    for item in items:
        there[tuple(slice(a, b) for a, b in zip(item.start, item.stop, strict=True))] = 1
    where = reorient(Volume(there, scan.geometry), proposed.geometry.axis_codes)
    if where.shape != proposed.shape or not where.geometry.is_aligned(proposed.geometry):
        where = resample(where, proposed.geometry, "nearest")
    return where.array > 0
