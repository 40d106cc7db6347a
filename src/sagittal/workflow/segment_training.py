"""Train a segmentation network on the labelled cases of a store, and keep it in a folder.

A part of the subjects is held out: they fit the temperatures and say how good the model is. What was done is
kept every so many steps, so that a training that was killed goes on where it was, to the same bits.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.core.errors import FormatError, InputError
from sagittal.core.files import write_bytes, write_text
from sagittal.core.progress import Report, silent
from sagittal.core.provenance import canonical_json, hash_array
from sagittal.core.randomness import generator
from sagittal.segmentation import LabelledImage, NetworkConfig, TrainingState, train
from sagittal.segmentation.network_file import model_bytes, state_bytes, state_from_bytes
from sagittal.segmentation.volumes import LEAST_SUBJECTS
from sagittal.workflow.labelled import LabelledCase, field_for, labelled_cases
from sagittal.workflow.network_input import expanded
from sagittal.workflow.runner import Runner
from sagittal.workflow.segment_judgement import FEWEST_FOR_INTERVAL, judged
from sagittal.workflow.steps.registration import RegisterToAtlas

__all__ = ["FEWEST", "MODEL", "TrainingPlan", "train_on_store", "training_history"]

MODEL, HISTORY = "model.safetensors", "training.json"
_STATE = "training.safetensors"
FEWEST = 3
"""Labelled subjects that a training needs: two to learn from, and one to say how well."""

_HELD_OUT = 5  # one of so many subjects is held out, and one at least
_SPACE_SIDE = 48  # voxels, at most, of a patch in space


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What to train, as a person says it.

    Attributes:
        labels: Names of the labels.
        channels: Images by their part in the case, and "jacobian" and "curl".
        architecture: "voxresnet" or "residual-unet".
        dimensions: 2, "2.5" or 3.
        width: Channels of the network at full resolution.
        depth: How often the network halves the resolution.
        steps: Of training.
        batch: Patches a step; by default 8 in a plane and 2 in space.
        rate: Of learning, at the first step.
        spacing_mm: Voxel widths of the network; by default those of the subjects in the middle.
        held_out: Subjects that fit the temperatures and judge; by default a fifth, and one at least.
        seed: Of everything that is drawn.
        keep_every: Steps after which what was done is kept.
    """

    labels: tuple[str, ...]
    channels: tuple[str, ...] = ("t1",)
    architecture: str = "voxresnet"
    dimensions: Any = 3
    width: int = 16
    depth: int = 3
    steps: int = 1000
    batch: int | None = None
    rate: float = 1e-2
    spacing_mm: tuple[float, float, float] | None = None
    held_out: int | None = None
    seed: int = 0
    keep_every: int = 50


def train_on_store(
    runner: Runner, out: Path, plan: TrainingPlan, atlas: RegisterToAtlas, *, report: Report = silent
) -> dict[str, Any]:
    """Train on the labelled cases of a store and write the model to a folder.

    A training that was begun in the folder with the same cases and plan goes on. The folder then holds
    ``model.safetensors`` and ``training.json`` (loss curve, and each held-out subject's Dice).

    Args:
        runner: Of the store; it registers cases that are not registered yet, where a channel needs it.
        out: The folder.
        plan: What to train.
        atlas: How cases are registered to the atlas.
        report: Takes a line that says what is being done.

    Returns:
        JSON values: the folder, the subjects, the loss, Dice of the held-out subjects with its range and,
        from six subjects, an interval of the median; calibration error of subjects that fitted nothing.

    Raises:
        InputError: Too few labelled subjects (the message says how many are needed), one twice, a channel
            that is missing, or a folder with another training or a model in it.
    """
    channels = expanded(plan.channels)
    cases = labelled_cases(runner.store, plan.labels)
    held = max(1, len(cases) // _HELD_OUT) if plan.held_out is None else plan.held_out
    if len(cases) < FEWEST or held < 1 or len(cases) - held < FEWEST - 1:
        raise InputError(
            "too few labelled subjects",
            source=runner.store.source,
            value=f"{len(cases)} with labels {', '.join(plan.labels)}, {held} of them held out",
            expected=f"{max(FEWEST, held + FEWEST - 1)} or more to train; for an interval of how good the "
            f"model is, {FEWEST_FOR_INTERVAL} held out, and for one of volumes {LEAST_SUBJECTS}",
        )
    if (out / MODEL).exists():
        raise InputError("the folder holds a model already", source=out / MODEL, expected="another folder")
    spacing = plan.spacing_mm or _usual_spacing(runner, cases, channels[0])
    images, grids, hashes = [], [], set()
    for one in cases:
        report(f"reading case {one.id}")
        field, digest = field_for(runner, one.case, channels, atlas)
        hashes.add(digest)
        image, grid = one.image(runner.store, channels, spacing, field)
        images.append(image)
        grids.append(grid)
    config = _config(plan, channels, spacing, images)
    order = generator(plan.seed, "held out").permutation(len(cases)).tolist()
    last, first = sorted(order[:held]), sorted(order[held:])
    learns = [images[number] for number in first]
    about = json.loads(
        canonical_json(
            {
                "config": config.to_json(),
                "steps": plan.steps,
                "batch": plan.batch,
                "rate": plan.rate,
                "seed": plan.seed,
                "subjects": [_known_by(image) for image in learns],
                "held out": [_known_by(images[number]) for number in last],
                "atlas": sorted(hashes - {""}),
            }
        )
    )
    kept = out / _STATE
    state = state_from_bytes(kept.read_bytes(), about, kept) if kept.is_file() else None
    if state is not None:
        report(f"going on from step {state.step}")

    def keep(now: TrainingState) -> None:
        write_bytes(kept, state_bytes(now, about))

    done = train(
        learns,
        config,
        seed=plan.seed,
        steps=plan.steps,
        batch=plan.batch,
        rate=plan.rate,
        state=state,
        keep=keep,
        keep_every=plan.keep_every,
        report=report,
    )
    report("judging the held-out subjects")
    facts = {
        "orientations": sorted({"".join(one.grid(runner.store, channels[0]).axis_codes) for one in cases}),
        "atlas_image": sorted(hashes - {""}),
        "held_out": [[images[number].subject, images[number].label_hash] for number in last],
    }
    model = dataclasses.replace(done.model, facts=facts)
    model, said = judged(model, [(images[number], grids[number]) for number in last])
    result: dict[str, Any] = {
        "model": str((out / MODEL).absolute()),
        "subjects": [image.subject for image in learns],
        "held_out": said,
        "steps": plan.steps,
        "resumed_at": 0 if state is None else state.step,
        "loss_first": float(np.mean(done.losses[:20])),
        "loss_last": float(np.mean(done.losses[-20:])),
        "temperatures": list(model.temperatures),
        "config": config.to_json(),
    }
    write_text(out / HISTORY, json.dumps({**result, "losses": list(done.losses)}, indent=1) + "\n")
    write_bytes(out / MODEL, model_bytes(model))
    kept.unlink(missing_ok=True)
    return result


def _known_by(image: LabelledImage) -> list[str]:
    return [image.subject, image.label_hash, hash_array(image.channels)]


def training_history(model: Path) -> dict[str, Any]:
    """Return what a training wrote beside its model: the loss of each step, and the held-out subjects.

    Args:
        model: The model's folder or file. Empty where only the model is there.

    Raises:
        FormatError: The file is damaged.
    """
    path = (model if model.is_dir() else model.parent) / HISTORY
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {**found, "losses": [float(loss) for loss in found["losses"]]}
    except (ValueError, TypeError, KeyError) as error:
        raise FormatError(
            "the history of the training is damaged",
            source=path,
            expected="what 'sagittal segment train' has written",
        ) from error


def _config(
    plan: TrainingPlan,
    channels: tuple[str, ...],
    spacing: tuple[float, float, float],
    images: Sequence[LabelledImage],
) -> NetworkConfig:
    """Return the network: whole slices as patches in a plane, cubes of 48 voxels at most in space."""
    block = 2**plan.depth
    largest = np.max([image.mask.shape for image in images], axis=0)
    sides = [-(-int(side) // block) * block for side in largest]
    if plan.dimensions == 3:
        most = max(_SPACE_SIDE // block, 1) * block
        patch = tuple(min(side, most) for side in sides)
    else:
        patch = (sides[0], sides[1])
    nothing = any(((image.labels == 0) & image.mask).any() for image in images)
    return NetworkConfig(
        architecture=plan.architecture,
        dimensions=plan.dimensions,
        channels=channels,
        labels=plan.labels,
        background=nothing,
        width=plan.width,
        depth=plan.depth,
        spacing_mm=spacing,
        patch=patch,
    )


def _usual_spacing(runner: Runner, cases: Sequence[LabelledCase], role: str) -> tuple[float, float, float]:
    """Return the middle of the subjects' voxel widths along right, anterior and superior."""
    widths = []
    for one in cases:
        grid = one.grid(runner.store, role)
        order = [axis for axis, _ in grid.orientation]
        widths.append([grid.spacing[order.index(axis)] for axis in range(3)])
    x, y, z = (round(float(mm), 4) for mm in np.median(widths, axis=0))
    return x, y, z
