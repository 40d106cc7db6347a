"""How well does a network in space segment brain tissue, after few labelled subjects and after many?

All data are simulated (evidence/cohort.py: the MNI152 template, warped, folded anew and re-imaged at 2 mm); nobody's
head is among them. Subjects of training, of calibration and of judging are apart. Arms: 5 labelled subjects and 24,
by the T1 image alone and by three contrasts; and the hidden Markov field, which needs no label. The settings were
chosen on two subjects of another seed, after 200 steps.

Temperatures and the intervals of volumes are fitted on the subjects of calibration, once; with 5 labelled
subjects nobody would have so many more, so what they reach is what the method can do, not what 5 labels give.

``--weights FILE`` also writes the network that the demonstration uses: 24 subjects, T1, seed 0.

    python evidence/tissue_network.py [--only ARM] [--weights FILE]

Writes evidence/results/tissue_network.json after each training. About 8 minutes of one core for a training.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from cohort import TISSUES, Subject, subjects
from numpy.typing import NDArray

from sagittal.core.files import write_bytes, write_text
from sagittal.segmentation import (
    LabelledImage,
    MarkovFieldSegmenter,
    NetworkConfig,
    SegmentationModel,
    calibration_error,
    fit_temperatures,
    fit_volumes,
    model_bytes,
    model_from_bytes,
    predict,
    quantity,
    train,
)
from sagittal.volume.metrics import compare_labels

RESULT = Path(__file__).parent / "results" / "tissue_network.json"
SPACING = 2.0
SEEDS = {"train": 2001, "calibrate": 2002, "judge": 2003}
NUMBERS = {"train": 24, "calibrate": 20, "judge": 20}
FEW = 5
KINDS = {"t1": "T1", "t1-ir": "T1-IR", "flair": "FLAIR"}
STEPS, BATCH, RATE, WIDTH, PATCH = 800, 2, 1e-2, 8, (48, 48, 48)
ARMS = {
    "24 subjects, T1": (24, ("t1",)),
    "5 subjects, T1": (FEW, ("t1",)),
    "24 subjects, three contrasts": (24, tuple(KINDS)),
    "5 subjects, three contrasts": (FEW, tuple(KINDS)),
}
FLOOR = "hidden Markov field, T1"
CLASSES = {name: number for number, name in enumerate(TISSUES, start=1)}
LEVEL = 0.95
VOXELS = 20_000  # of a subject, that calibration sees

Row = dict[str, Any]


@functools.cache
def heads(side: str, kind: str) -> list[Subject]:
    return subjects(NUMBERS[side], seed=SEEDS[side], spacing_mm=SPACING, kind=kind, pose=True)


@functools.cache
def images(side: str, channels: tuple[str, ...]) -> list[LabelledImage]:
    """Return the subjects of one side of the split as a network sees them."""
    seen = [heads(side, KINDS[name]) for name in channels]
    return [
        LabelledImage(
            channels=np.stack([one.image.array for one in same]).astype(np.float32),
            labels=same[0].labels.array.astype(int),
            mask=same[0].labels.array > 0,
            subject=f"{side} {number}",
        )
        for number, same in enumerate(zip(*seen, strict=True))
    ]


def drawn(
    probabilities: NDArray[Any], labels: NDArray[Any], number: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return some voxels of a subject: probabilities, and labels from 0."""
    inside = np.flatnonzero(labels > 0)
    chosen = np.random.default_rng(number).choice(inside, min(VOXELS, inside.size), replace=False)
    return probabilities.reshape(-1, len(TISSUES))[chosen], labels.ravel()[chosen] - 1


def amounts(probabilities: NDArray[Any]) -> list[float]:
    return [float(p.sum(dtype=np.float64)) * SPACING**3 / 1000 for p in np.moveaxis(probabilities, -1, 0)]


def truth(labels: NDArray[Any]) -> list[float]:
    return [float(np.count_nonzero(labels == n)) * SPACING**3 / 1000 for n in CLASSES.values()]


def calibrated(model: SegmentationModel, side: list[LabelledImage]) -> SegmentationModel:
    """Return the model with its temperatures, and what its volumes say of true ones: both of ``side``."""
    told = [predict(model, one.channels, one.mask) for one in side]
    rows = [drawn(p, one.labels, n) for n, (p, one) in enumerate(zip(told, side, strict=True))]
    scaling = fit_temperatures(*(np.concatenate(part) for part in zip(*rows, strict=True)))
    found = np.array([amounts(scaling.apply(p)) for p in told])
    volumes = fit_volumes(found, np.array([truth(one.labels) for one in side]))
    facts = {"orientations": ["RAS"], "data": "simulated"}
    return dataclasses.replace(model, temperatures=scaling.temperatures, volumes=volumes, facts=facts)


def judged(told: NDArray[Any], subject: Subject, volumes: Any, number: int) -> Row:
    labels = subject.labels.array
    found = np.where(labels > 0, told.argmax(axis=-1) + 1, 0).astype(np.uint8)
    scores = compare_labels(subject.labels.with_array(found), subject.labels, CLASSES)
    real, estimated = truth(labels), amounts(told)
    plain = [
        quantity(told[..., n][labels > 0], size=SPACING**3 / 1000, unit="ml", level=LEVEL)
        for n in range(len(TISSUES))
    ]
    row: Row = {
        "dice": {name: one.dice for name, one in scores.items()},
        "hd95_mm": {name: one.hd95_mm for name, one in scores.items()},
        "dice_mean": float(np.mean([one.dice for one in scores.values()])),
        "volume_ml": dict(zip(TISSUES, estimated, strict=True)),
        "true_ml": dict(zip(TISSUES, real, strict=True)),
        "held_by_voxels": [bool(m.low <= v <= m.high) for m, v in zip(plain, real, strict=True)],
        "ece": calibration_error(*drawn(told, labels, number)).equal_width,
    }
    if volumes is not None:
        intervals = volumes.intervals(np.array(estimated), level=LEVEL)
        row["held"] = [bool(low <= v <= high) for (low, high), v in zip(intervals, real, strict=True)]
        row["width_share"] = [float((high - low) / v) for (low, high), v in zip(intervals, real, strict=True)]
    return row


def measured(arm: str, seed: int, folder: Path) -> tuple[list[Row], SegmentationModel]:
    count, channels = ARMS[arm]
    file = folder / f"{arm} {seed}.safetensors"
    if not file.is_file():
        config = NetworkConfig(channels=channels, width=WIDTH, patch=PATCH, spacing_mm=(SPACING,) * 3)
        started = time.process_time()
        made = train(
            images("train", channels)[:count], config, seed=seed, steps=STEPS, batch=BATCH, rate=RATE
        )
        print(arm, seed, f"trained in {time.process_time() - started:.0f} s of CPU", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(file, model_bytes(made.model))
    model = calibrated(model_from_bytes(file.read_bytes(), file), images("calibrate", channels))
    rows = []
    for number, (subject, one) in enumerate(
        zip(heads("judge", "T1"), images("judge", channels), strict=True)
    ):
        started = time.process_time()
        told = predict(model, one.channels, one.mask)
        seconds = time.process_time() - started
        rows.append(judged(told, subject, model.volumes, number) | {"cpu_seconds": seconds})
    return rows, model


def floor() -> list[Row]:
    rows = []
    for number, subject in enumerate(heads("judge", "T1")):
        started = time.process_time()
        told = MarkovFieldSegmenter().segment(subject.image, seed=0).probabilities
        seconds = time.process_time() - started
        rows.append(judged(told, subject, None, number) | {"cpu_seconds": seconds})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--networks", type=Path, default=Path("build/tissue_network"), help="kept here")
    parser.add_argument("--only", choices=[*ARMS, FLOOR], action="append")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--weights", type=Path, help="write the demonstration's network here")
    given = parser.parse_args()
    kept: Row = json.loads(given.json.read_text()) if given.json.is_file() else {"facts": {}, "rows": []}
    for arm in given.only or [*ARMS, FLOOR]:
        for seed in range(given.seeds) if arm in ARMS else [None]:
            if any((row["arm"], row["seed"]) == (arm, seed) for row in kept["rows"]):
                continue
            if seed is None:
                rows = floor()
            else:
                rows, model = measured(arm, seed, given.networks)
                if given.weights and (arm, seed) == (next(iter(ARMS)), 0):
                    write_bytes(given.weights, model_bytes(model))
            kept["rows"] += [{"arm": arm, "seed": seed, "subject": n, **row} for n, row in enumerate(rows)]
            kept["facts"] = {
                "spacing_mm": SPACING,
                "subjects": NUMBERS,
                "steps": STEPS,
                "batch": BATCH,
                "width": WIDTH,
                "patch": PATCH,
                "level": LEVEL,
            }
            write_text(given.json, json.dumps(kept, indent=1) + "\n")
            print(arm, seed, round(float(np.mean([row["dice_mean"] for row in rows])), 4), flush=True)


if __name__ == "__main__":
    main()
