"""The arms of brain_tissue.py that train one network each, and how a network is judged."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from brain_tissue_data import LABELS, SPACING, STILL, Slice, channels, heads, labelled, named, order
from numpy.typing import NDArray

from sagittal.core.randomness import derive_seed
from sagittal.registration import register
from sagittal.segmentation import (
    MarkovFieldSegmenter,
    NetworkConfig,
    SegmentationModel,
    calibration_error,
    fit_temperatures,
    predict,
    quantity,
    train,
)
from sagittal.segmentation.channels import Channels
from sagittal.segmentation.retrieval import (
    Labelled,
    Match,
    RetrievalIndex,
    image_descriptor,
    retrieved_channels,
)
from sagittal.volume import DisplacementField, Volume
from sagittal.volume.metrics import dice

Row = dict[str, object]
Seen = list[tuple[Slice, Channels]]

FEW, SOME = 5, 12
"""Labelled subjects of the smallest training, and of every arm that compares channels."""
LEVEL = 0.95
VOXEL_ML = SPACING**3 / 1000


@dataclass(frozen=True)
class Settings:
    """What every training of one run has in common; ``count`` subjects are in the pool."""

    folder: Path
    steps: int = 200
    width: int = 8
    patch: int = 48
    batch: int = 4
    rate: float = 1e-2
    pool: int = 40
    hold: int = 20
    judge: int = 20

    def facts(self) -> Row:
        told = {name: value for name, value in vars(self).items() if name != "folder"}
        return {**told, "architecture": "voxresnet", "dimensions": 2, "spacing_mm": SPACING}


def fitted(seen: Seen, seed: int, settings: Settings, steps: int | None = None) -> SegmentationModel:
    """Return a network trained on slices with these channels."""
    config = NetworkConfig(
        architecture="voxresnet",
        dimensions=2,
        channels=seen[0][1].names,
        labels=tuple(LABELS),
        width=settings.width,
        patch=(settings.patch, settings.patch),
        spacing_mm=(SPACING,) * 3,
    )
    images = [labelled(one, layers) for one, layers in seen]
    return train(
        images,
        config,
        seed=seed,
        steps=settings.steps if steps is None else steps,
        batch=settings.batch,
        rate=settings.rate,
    ).model


def told(model: SegmentationModel, seen: Seen) -> list[NDArray[np.float32]]:
    """Return the probabilities of each slice, (i, j, 1, tissues)."""
    return [predict(model, layers.array, one.mask) for one, layers in seen]


def overlaps(one: Slice, probabilities: NDArray[np.floating]) -> Row:
    """Return the Dice of each tissue for one slice."""
    found = np.where(one.mask, probabilities.argmax(axis=-1) + 1, 0)
    each = {name: dice(found == value, one.labels.array == value) for name, value in LABELS.items()}
    return {"subject": one.subject, "dice": each, "dice_mean": float(np.mean(list(each.values())))}


def judged(seen: Seen, shares: Sequence[NDArray[np.floating]]) -> list[Row]:
    return [overlaps(one, share) for (one, _), share in zip(seen, shares, strict=True)]


def with_channels(kinds: tuple[str, ...]) -> Callable[[Slice], tuple[Slice, Channels]]:
    return lambda one: (one, channels(one, kinds))


def plain(seed: int, settings: Settings, count: int, kinds: tuple[str, ...]) -> Row:
    """Train on the first subjects of a seed's order with these channels; judge, calibrate, give volumes."""
    see = with_channels(kinds)
    model = fitted(
        [see(one) for one in order(seed, settings.folder, settings.pool)[:count]],
        derive_seed(seed, "network"),
        settings,
    )
    judges = [see(one) for one in heads("judge", settings.folder, settings.judge)]
    shares = told(model, judges)
    row: Row = {"subjects": judged(judges, shares)}
    if kinds == ("t1",):
        held = [see(one) for one in heads("hold", settings.folder, settings.hold)]
        row |= calibrated(judges, shares, held, told(model, held))
    return row


def calibrated(
    judges: Seen, shares: Sequence[NDArray[np.floating]], held: Seen, before: Sequence[NDArray[np.floating]]
) -> Row:
    """Return calibration errors and volume intervals, both from held-out subjects, on those that judge."""

    def rows(
        seen: Seen, told: Sequence[NDArray[np.floating]]
    ) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
        flat = np.concatenate([share[one.mask] for (one, _), share in zip(seen, told, strict=True)])
        true = np.concatenate([one.labels.array[one.mask].astype(np.int64) - 1 for one, _ in seen])
        return flat / flat.sum(axis=1, keepdims=True), true

    scaling = fit_temperatures(*rows(held, before))
    after = [scaling.apply(share) for share in shares]
    found: Row = {"temperatures": list(scaling.temperatures)}
    for name, those in (("before", shares), ("after", after)):
        error = calibration_error(*rows(judges, those))
        found[f"ece_{name}"] = {
            kind: getattr(error, kind) for kind in ("equal_width", "equal_mass", "class_wise", "debiased")
        }
    spread = relative_errors(held, [scaling.apply(share) for share in before])
    found["volumes"] = [
        {"subject": one.subject, "tissue": tissue, **interval(one, share, tissue, spread[tissue])}
        for (one, _), share in zip(judges, after, strict=True)
        for tissue in LABELS
    ]
    return found


def relative_errors(seen: Seen, shares: Sequence[NDArray[np.floating]]) -> dict[str, NDArray[np.float64]]:
    """Return, for each tissue, the truth over the estimate of each subject, less 1."""
    return {
        tissue: np.array(
            [
                np.count_nonzero(one.labels.array == value) / float(share[..., number].sum()) - 1
                for (one, _), share in zip(seen, shares, strict=True)
            ]
        )
        for number, (tissue, value) in enumerate(LABELS.items())
    }


def interval(one: Slice, share: NDArray[np.floating], tissue: str, errors: NDArray[np.float64]) -> Row:
    """Return a tissue's amount in ml with two intervals.

    One from the probabilities alone; one is the prediction interval of a new subject by Student's t, from the
    errors of subjects that trained nothing.
    """
    from scipy.stats import t

    number = list(LABELS).index(tissue)
    own = quantity(np.clip(share[..., number], 0, 1), size=VOXEL_ML, unit="ml", level=LEVEL)
    count = len(errors)
    reach = float(t.ppf((1 + LEVEL) / 2, count - 1)) * float(errors.std(ddof=1)) * math.sqrt(1 + 1 / count)
    middle = own.value * (1 + float(errors.mean()))
    return {
        "truth": np.count_nonzero(one.labels.array == LABELS[tissue]) * VOXEL_ML,
        "estimate": own.value,
        "by_probability": [own.low, own.high],
        "by_held_out": [max(middle - own.value * reach, 0.0), middle + own.value * reach],
    }


def untrained(seed: int, settings: Settings) -> Row:
    """Judge the hidden Markov random field, which needs no training."""
    found = []
    for one in heads("judge", settings.folder, settings.judge):
        share = MarkovFieldSegmenter().segment(one.t1, seed=seed).probabilities
        found.append(overlaps(one, np.asarray(share)))
    return {"subjects": found}


def entry(one: Slice) -> Labelled:
    """Return a slice as it stands in a retrieval index."""
    descriptor = image_descriptor(one.images[0], one.mask)
    return Labelled(subject=one.subject, image=one.t1, labels=one.labels, descriptor=descriptor)


def moved(moving: Volume, fixed: Volume) -> DisplacementField:
    """Return where the points of a slice lie in a retrieved one, from the images alone."""
    return register(moving, fixed, affine=STILL).field


def retrieval(seed: int, settings: Settings, how: str) -> Row:
    """Train on three kinds of image and retrieved labels.

    Args:
        seed: Of the run.
        settings: Of the run.
        how: "retrieved"; "aligned", by a registration of the retrieved T1; "own", where everybody, those that
            judge too, is given the truth; "leak", where those of training are, and those that judge are not.
    """
    training = order(seed, settings.folder, settings.pool)[:SOME]
    index = RetrievalIndex([entry(one) for one in training])
    align = moved if how == "aligned" else None

    def see(one: Slice, *, itself: bool) -> tuple[Slice, Channels]:
        own = entry(one)
        match = Match(own, 1.0) if itself else index.query(own.descriptor, subject=one.subject)[0]
        return one, named(one, "images").beside(retrieved_channels(one.t1, match, LABELS, align=align))

    seen = [see(one, itself=how in ("own", "leak")) for one in training]
    model = fitted(seen, derive_seed(seed, "network"), settings)
    judges = [see(one, itself=how == "own") for one in heads("judge", settings.folder, settings.judge)]
    row: Row = {"subjects": judged(judges, told(model, judges))}
    if how in ("retrieved", "aligned"):
        shares = [np.moveaxis(layers.array[-len(LABELS) :], 0, -1) for _, layers in judges]
        row["retrieved_dice"] = [
            overlaps(one, share)["dice_mean"] for (one, _), share in zip(judges, shares, strict=True)
        ]
    return row


def geometric(kinds: tuple[str, ...], count: int = SOME) -> Callable[[int, Settings], Row]:
    return functools.partial(_plain, count=count, kinds=kinds)


def _plain(seed: int, settings: Settings, count: int, kinds: tuple[str, ...]) -> Row:
    return plain(seed, settings, min(count, settings.pool), kinds)


ARMS: dict[str, Callable[[int, Settings], Row]] = {
    "untrained": untrained,
    "5 subjects": geometric(("t1",), FEW),
    "12 subjects": geometric(("t1",), SOME),
    "all subjects": lambda seed, settings: plain(seed, settings, settings.pool, ("t1",)),
    "images": geometric(("images",)),
    "jacobian": geometric(("t1", "jacobian")),
    "curl": geometric(("t1", "curl")),
    "jacobian curl": geometric(("t1", "jacobian", "curl")),
    "noise": geometric(("t1", "noise")),
    "atlas": geometric(("t1", "atlas")),
    "images jacobian curl": geometric(("images", "jacobian", "curl")),
    "retrieved": functools.partial(retrieval, how="retrieved"),
    "retrieved aligned": functools.partial(retrieval, how="aligned"),
    "own labels": functools.partial(retrieval, how="own"),
    "self found": functools.partial(retrieval, how="leak"),
}
