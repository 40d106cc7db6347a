"""The arms of brain_tissue.py that train one network each, and how a network is judged."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from brain_tissue_data import LABELS, SPACING, STILL, Slice, channels, heads, labelled, named, order
from numpy.typing import NDArray

from sagittal.core.randomness import derive_seed, generator
from sagittal.registration import register
from sagittal.segmentation import (
    MarkovFieldSegmenter,
    NetworkConfig,
    SegmentationModel,
    calibration_error,
    fit_temperatures,
    fit_volumes,
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

Row = dict[str, Any]
Seen = list[tuple[Slice, Channels]]

FEW, SOME = 5, 12
"""Labelled subjects of the smallest training, and of every arm that compares channels."""
LENGTH_SEEDS = 100, 101
BETAS = (0.1, 0.3, 0.5, 1.0, 2.0)
LEVEL = 0.95
VOXEL_ML = SPACING**3 / 1000


@dataclass(frozen=True)
class Settings:
    """What every training of one run has in common.

    The steps were chosen by :func:`lengths`.
    """

    folder: Path
    colin: Path | None = None
    steps: int = 400
    width: int = 8
    patch: int = 48
    batch: int = 4
    rate: float = 1e-2
    pool: int = 40
    hold: int = 20
    judge: int = 40
    budgets: tuple[int, ...] = (4, 8, 12, 16, 20)
    members: int = 3

    def facts(self) -> Row:
        told = {name: value for name, value in vars(self).items() if name not in ("folder", "colin")}
        told["budgets"] = list(self.budgets)
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


def overlaps(one: Slice, probabilities: NDArray[np.floating]) -> dict[str, float]:
    """Return the Dice of each tissue for one slice."""
    found = np.where(one.mask, probabilities.argmax(axis=-1) + 1, 0)
    return {name: dice(found == value, one.labels.array == value) for name, value in LABELS.items()}


def judged(seen: Seen, shares: Sequence[NDArray[np.floating]]) -> dict[str, list[float]]:
    """Return the Dice of each tissue, slice by slice."""
    rows = [overlaps(one, share) for (one, _), share in zip(seen, shares, strict=True)]
    return {name: [round(row[name], 5) for row in rows] for name in LABELS}


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
    row: Row = {"dice": judged(judges, shares)}
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
    found["volumes"] = volumes(judges, after, held, [scaling.apply(share) for share in before])
    return found


def volumes(
    judges: Seen, shares: Sequence[NDArray[np.floating]], held: Seen, before: Sequence[NDArray[np.floating]]
) -> Row:
    """Return each tissue's amounts in ml with two intervals: one from the probabilities alone, one that the
    held-out subjects have earned (:func:`sagittal.segmentation.fit_volumes`).
    """

    def amounts(share: NDArray[np.floating]) -> list[float]:
        return [float(share[..., number].sum(dtype=np.float64)) * VOXEL_ML for number in range(len(LABELS))]

    def truth(one: Slice) -> list[float]:
        return [np.count_nonzero(one.labels.array == value) * VOXEL_ML for value in LABELS.values()]

    known, estimated = np.array([truth(one) for one, _ in held]), np.array([amounts(s) for s in before])
    scaling = fit_volumes(estimated, known)
    found: Row = {
        tissue: {"truth": [], "estimate": [], "by_probability": [], "by_held_out": []} for tissue in LABELS
    }
    for number, tissue in enumerate(LABELS):
        found[tissue]["held_out"] = {
            "truth": known[:, number].round(3).tolist(),
            "estimate": estimated[:, number].round(3).tolist(),
        }
    for (one, _), share in zip(judges, shares, strict=True):
        told = np.array(amounts(share))
        rows = zip(LABELS, truth(one), told, scaling.intervals(told, level=LEVEL), strict=True)
        for number, (tissue, true, estimate, held_out) in enumerate(rows):
            own = quantity(np.clip(share[..., number], 0, 1), size=VOXEL_ML, unit="ml", level=LEVEL)
            column = found[tissue]
            column["truth"].append(round(true, 3))
            column["estimate"].append(round(float(estimate), 3))
            column["by_probability"].append([round(own.low, 3), round(own.high, 3)])
            column["by_held_out"].append([round(end, 3) for end in held_out])
    return found


def untrained(seed: int, settings: Settings) -> Row:
    """Judge the hidden Markov random field, which needs no training."""
    judges = [(one, named(one, "t1")) for one in heads("judge", settings.folder, settings.judge)]
    return {"dice": judged(judges, by_field(judges, MarkovFieldSegmenter(), seed))}


def untrained_chosen(seed: int, settings: Settings) -> Row:
    """Judge the same field with the weight of its neighbours that is best on the subjects that calibrate."""
    held, judges = (
        [(one, named(one, "t1")) for one in heads(side, settings.folder, count)]
        for side, count in (("hold", settings.hold), ("judge", settings.judge))
    )
    tried = {}
    for beta in BETAS:
        each = judged(held, by_field(held, MarkovFieldSegmenter(beta=beta), seed))
        tried[beta] = float(np.mean(list(each.values())))
    best = max(tried, key=lambda beta: tried[beta])
    shares = by_field(judges, MarkovFieldSegmenter(beta=best), seed)
    return {"dice": judged(judges, shares), "beta": best, "tried": list(tried.items())}


def by_field(seen: Seen, segmenter: MarkovFieldSegmenter, seed: int) -> list[NDArray[np.float32]]:
    return [np.asarray(segmenter.segment(one.t1, seed=seed).probabilities) for one, _ in seen]


def entry(one: Slice, *, three: bool = False) -> Labelled:
    """Return a slice as it stands in a retrieval index, described by its T1 image or by all three kinds."""
    kinds = one.images if three else one.images[:1]
    descriptor = np.concatenate([image_descriptor(image, one.mask) for image in kinds])
    return Labelled(subject=one.subject, image=one.t1, labels=one.labels, descriptor=descriptor)


def moved(moving: Volume, fixed: Volume) -> DisplacementField:
    """Return where the points of a slice lie in a retrieved one, from the images alone."""
    return register(moving, fixed, affine=STILL).field


def retrieval(seed: int, settings: Settings, how: str) -> Row:
    """Train on three kinds of image and retrieved labels.

    Those that train ask the index as a new person does: nobody finds themselves, and the label that is found
    is another subject's.

    Args:
        seed: Of the run.
        settings: Of the run.
        how: "retrieved"; "aligned", by a registration of the retrieved T1; "three", aligned, and described by
            the three kinds of image; "random", the labels of somebody else drawn by lot; "own", where
            everybody, those that judge too, is given the truth; "leak", where those of training are, and
            those that judge are not.
    """
    training = order(seed, settings.folder, settings.pool)[:SOME]
    index = RetrievalIndex([entry(one, three=how == "three") for one in training])
    align = moved if how in ("aligned", "three") else None

    def see(one: Slice, *, itself: bool) -> tuple[Slice, Channels]:
        own = entry(one, three=how == "three")
        if itself:
            match = Match(own, 1.0)
        else:
            matches = index.query(own.descriptor, subject=one.subject, count=SOME)
            lot = int(generator(seed, "lot", one.subject).integers(len(matches))) if how == "random" else 0
            match = matches[lot]
        return one, named(one, "images").beside(retrieved_channels(one.t1, match, LABELS, align=align))

    seen = [see(one, itself=how in ("own", "leak")) for one in training]
    model = fitted(seen, derive_seed(seed, "network"), settings)
    judges = [see(one, itself=how == "own") for one in heads("judge", settings.folder, settings.judge)]
    row: Row = {"dice": judged(judges, told(model, judges))}
    for name, those in (("training", seen), ("judge", judges)):
        shares = [np.moveaxis(layers.array[-len(LABELS) :], 0, -1) for _, layers in those]
        row[f"retrieved_dice_{name}"] = judged(those, shares)
    return row


def lengths(settings: Settings) -> list[Row]:
    """Return how well the subjects that calibrate are segmented after trainings of several lengths.

    By the T1 image alone, with seeds that no arm uses; none of those that judge is looked at.
    """
    see = with_channels(("t1",))
    held = [see(one) for one in heads("hold", settings.folder, settings.hold)]
    found = []
    for seed in LENGTH_SEEDS:
        for steps in (settings.steps // 2, settings.steps, settings.steps * 2):
            for count in (FEW, SOME, settings.pool):
                training = [see(one) for one in order(seed, settings.folder, settings.pool)[:count]]
                model = fitted(training, seed, settings, steps)
                each = judged(held, told(model, held))
                means = {name: float(np.mean(values)) for name, values in each.items()}
                found.append({"seed": seed, "steps": steps, "subjects": len(training), "dice": means})
    return found


def geometric(kinds: tuple[str, ...], count: int = SOME) -> Callable[[int, Settings], Row]:
    return functools.partial(_plain, count=count, kinds=kinds)


def _plain(seed: int, settings: Settings, count: int, kinds: tuple[str, ...]) -> Row:
    return plain(seed, settings, min(count, settings.pool), kinds)


ARMS: dict[str, Callable[[int, Settings], Row]] = {
    "untrained": untrained,
    "untrained chosen": untrained_chosen,
    "5 subjects": geometric(("t1",), FEW),
    "12 subjects": geometric(("t1",), SOME),
    "all subjects": lambda seed, settings: plain(seed, settings, settings.pool, ("t1",)),
    "images": geometric(("images",)),
    "jacobian": geometric(("t1", "jacobian")),
    "curl": geometric(("t1", "curl")),
    "jacobian curl": geometric(("t1", "jacobian", "curl")),
    "true jacobian curl": geometric(("t1", "true jacobian", "true curl")),
    "noise 1": geometric(("t1", "noise 1")),
    "noise 2": geometric(("t1", "noise 2")),
    "atlas 2": geometric(("t1", "atlas 2")),
    "images jacobian curl": geometric(("images", "jacobian", "curl")),
    "images noise 2": geometric(("images", "noise 2")),
    "images noise 3": geometric(("images", "noise 3")),
    "images atlas 3": geometric(("images", "atlas 3")),
    "retrieved": functools.partial(retrieval, how="retrieved"),
    "retrieved aligned": functools.partial(retrieval, how="aligned"),
    "retrieved aligned by three": functools.partial(retrieval, how="three"),
    "retrieved by lot": functools.partial(retrieval, how="random"),
    "own labels": functools.partial(retrieval, how="own"),
    "self found": functools.partial(retrieval, how="leak"),
}
