"""Judge a trained segmentation network on the labelled cases of a store that it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.files import sha256_file, storage_errors
from sagittal.core.progress import Report, silent
from sagittal.segmentation import calibration_error, class_volumes, reliability
from sagittal.segmentation.inference import predict_logits, probabilities_of
from sagittal.volume import Volume
from sagittal.volume.metrics import compare_labels
from sagittal.workflow.annotation_start import proposal_of_latest
from sagittal.workflow.labelled import field_for, labelled_cases
from sagittal.workflow.runner import Runner
from sagittal.workflow.segment_judgement import (
    FEWEST_FOR_INTERVAL,
    all_classes,
    median_interval,
    named,
    share_interval,
    true_classes,
)
from sagittal.workflow.segment_prediction import model_file, read_model
from sagittal.workflow.steps.registration import RegisterToAtlas

__all__ = ["Show", "evaluate_on_store"]

Show = Callable[[str, Volume, Volume, Volume], None]
"""Takes a case's id, its image, its labels and what the network says, on the network's grid."""

_LEVEL = 0.95


def evaluate_on_store(
    runner: Runner,
    model: Path,
    atlas: RegisterToAtlas,
    *,
    show: Show | None = None,
    report: Report = silent,
) -> dict[str, Any]:
    """Compare what a model says with the labels of each case that it neither learned nor was calibrated on.

    A case is known by its id and by its labels' contents. Everything is measured on the network's grid.

    Args:
        runner: Of the store.
        model: The model's folder or file.
        atlas: How cases are registered to the atlas, where a channel needs it.
        show: Called for each case that is judged, for pictures.
        report: Takes a line that says what is being done.

    Returns:
        JSON values: the cases, the worst first, each with Dice, HD95, ASSD and volumes of each label; means;
        an interval of the median subject's Dice from six cases; the cases whose labels are a proposal in
        which nobody changed a voxel, those of which this network proposed it, alone or with others, and the
        mean without them; calibration errors, and how often each confidence was right; the share of volumes
        that lie in their 95 % interval, with an interval of it that takes those of one case to hold or miss
        together. Labels that are this network's own proposal say nothing of its confidence: calibration and
        volumes are of the other cases (``calibrated_on``), and of all only where there are no others.

    Raises:
        InputError: No case is left to judge on, or a channel is missing.
    """
    path = model_file(model)
    found = read_model(path)
    with storage_errors(path):
        digest = sha256_file(path)
    config = found.config
    known = [tuple(pair) for pair in (*found.subjects, *found.facts.get("held_out", ()))]
    ids, hashes = {one for one, _ in known}, {labels for _, labels in known}
    cases: list[dict[str, Any]] = []
    left_out: list[str] = []
    rows = []
    for one in labelled_cases(runner.store, config.labels):
        if one.id in ids:
            left_out.append(one.id)
            continue
        report(f"judging case {one.id}")
        field, _ = field_for(runner, one.case, config.channels, atlas)
        image, seen = one.image(runner.store, config.channels, config.spacing_mm, field)
        if image.label_hash in hashes:
            left_out.append(one.id)
            continue
        shares = probabilities_of(found, predict_logits(found, seen.channels, seen.mask), seen.mask)
        classes = true_classes(config, image)
        counted = image.mask & (classes >= 0)
        truth, answer = np.where(counted, image.labels, 0), np.where(counted, named(shares), 0)
        size = seen.geometry.voxel_volume_ml
        scores: dict[str, Any] = {}
        values = {name: number for number, name in enumerate(config.labels, 1)}
        drawn, reference = (Volume(array.astype(np.uint8), seen.geometry) for array in (answer, truth))
        volumes = class_volumes(shares[counted], voxel_ml=size, level=_LEVEL, scaling=found.volumes)
        for name, score in compare_labels(drawn, reference, values).items():
            amount = volumes[values[name] - 1]
            scores[name] = {
                "dice": score.dice,
                "jaccard": score.jaccard,
                "hd95_mm": score.hd95_mm,
                "assd_mm": score.assd_mm,
                "surface_dice": score.surface_dice,
                "volume_ml": amount.value,
                "volume_interval_ml": [amount.low, amount.high],
                "reference_ml": score.reference_ml,
                "covered": bool(amount.low <= score.reference_ml <= amount.high),
            }
        rows.append((all_classes(config, shares[counted]), classes[counted]))
        if show is not None:
            head = Volume(seen.channels[0], seen.geometry)
            said = np.where(counted[..., None], shares, 0)
            known_labels = np.stack([truth == n for n in values.values()], axis=-1).astype(np.float32)
            show(one.id, head, _with(reference, known_labels, values), _with(drawn, said, values))
        nearest = proposal_of_latest(runner.store, one.case, one.labels(runner.store))
        unchanged = nearest is not None and nearest.changed == 0
        own = nearest is not None and unchanged and digest in nearest.models
        cases.append(
            {
                "case": one.id,
                "minutes": one.minutes,
                "labels": scores,
                "as_proposed": unchanged,
                "as_proposed_by_itself": own,
            }
        )
    if not cases:
        raise InputError(
            "no labelled case is left to judge on",
            source=runner.store.source,
            value=f"{len(left_out)} with labels {', '.join(config.labels)}, all seen in training",
            expected="cases that the model has not seen",
        )
    means = [float(np.mean([s["dice"] for s in one["labels"].values()])) for one in cases]
    drawn_anew = [mean for mean, one in zip(means, cases, strict=True) if not one["as_proposed"]]
    independent = [n for n, one in enumerate(cases) if not one["as_proposed_by_itself"]]
    judging = independent or list(range(len(cases)))
    told, true = (np.concatenate(part) for part in zip(*(rows[n] for n in judging), strict=True))
    error = calibration_error(told, true)
    curve = reliability(told.max(axis=-1), told.argmax(axis=-1) == true)
    covered = [[s["covered"] for s in cases[n]["labels"].values()] for n in judging]
    result: dict[str, Any] = {
        "model": str(path.absolute()),
        "cases": [cases[n] for n in np.argsort(means, kind="stable").tolist()],
        "left_out": left_out,
        "dice": {n: float(np.mean([one["labels"][n]["dice"] for one in cases])) for n in config.labels},
        "dice_mean": float(np.mean(means)),
        "dice_interval": median_interval(means),
        "as_proposed": [one["case"] for one in cases if one["as_proposed"]],
        "as_proposed_by_itself": [one["case"] for one in cases if one["as_proposed_by_itself"]],
        "dice_mean_of_others": float(np.mean(drawn_anew)) if drawn_anew else None,
        "calibrated_on": [cases[n]["case"] for n in judging],
        "ece": {
            "equal_width": error.equal_width,
            "equal_mass": error.equal_mass,
            "class_wise": error.class_wise,
            "debiased": error.debiased,
        },
        "reliability": {
            name: list(getattr(curve, name)) for name in ("lower", "upper", "count", "confidence", "accuracy")
        },
        "volume_interval_coverage": float(np.mean(covered)),
        "volume_interval_coverage_interval": share_interval([float(np.mean(one)) for one in covered]),
        "volume_intervals": int(np.size(covered)),
        "volume_intervals_held": int(np.sum(covered)),
        "volume_intervals_from": "probabilities alone"
        if found.volumes is None
        else f"{found.volumes.subjects} held-out subjects",
    }
    if result["dice_interval"] is None:
        result["for_an_interval"] = f"{FEWEST_FOR_INTERVAL} cases are needed; there are {len(cases)}"
    return result


def _with(labels: Volume, shares: NDArray[np.float32], values: dict[str, int]) -> Volume:
    return labels.replace(probabilities=shares, classes=tuple(values))
