"""The queue of annotation: of the cases without labels, which come next, how long each takes, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.annotation import (
    Budget,
    Candidate,
    CaseEffort,
    Choice,
    Method,
    MinutesModel,
    Unit,
    UnitRegion,
    ensemble_spread,
    expected_effort,
    likeness,
    mean_within,
    predictive_entropy,
    regions,
    select,
    thumbnail,
    total_minutes,
)
from sagittal.core.errors import InputError
from sagittal.core.progress import Report, silent
from sagittal.core.provenance import Measurement
from sagittal.volume import Geometry

__all__ = [
    "Aside",
    "Pending",
    "Predict",
    "Queue",
    "QueueItem",
    "Scan",
    "annotation_queue",
    "proposal_of",
    "slice_place",
]

_Array = NDArray[Any]

_PLACE: dict[Unit, Callable[[tuple[int, ...], int], tuple[int, ...]]] = {
    Unit.VOLUME: lambda start, axis: (),
    Unit.SLICE: lambda start, axis: (start[axis],),
    Unit.PATCH: lambda start, axis: start,
}
_PLANES = ("sagittal", "coronal", "axial")
_DONE = 0.5  # of a unit's voxels: it counts as annotated
_LOOKS = {Unit.VOLUME: (8, 8, 8), Unit.SLICE: (12, 12, 1), Unit.PATCH: (6, 6, 6)}


@dataclass(frozen=True, eq=False, kw_only=True)
class Scan:
    """A case's image as a network takes it.

    Attributes:
        channels: float32, (C, i, j, k).
        mask: Where there is something to annotate, bool, (i, j, k).
        geometry: Of the grid.
        done: Voxels that are annotated already; none by default.
    """

    channels: _Array
    mask: NDArray[np.bool_]
    geometry: Geometry
    done: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Pending:
    """A case that is in the store.

    Attributes:
        case: Its id.
        subject: Whose it is.
        label: What a person calls it.
        started: Whether a part of it is annotated.
        load: Reads its image; called when it is needed, so that one case is in memory at a time.
    """

    case: str
    subject: str
    label: str = ""
    started: bool = False
    load: Callable[[], Scan]


Predict = Callable[[Scan], _Array]
"""Gives the probabilities of each network, shape (networks, i, j, k, labels)."""


@dataclass(frozen=True, kw_only=True)
class QueueItem:
    """What to annotate, with what is known of it before.

    Attributes:
        case: The case's id.
        subject: Whose it is.
        label: What a person calls the case.
        unit: Volume, slice or patch.
        start: Its first voxel, on the networks' grid.
        stop: The one behind its last.
        middle_mm: Its middle in space: mm to the right, the front and the top of the scanner's origin.
        minutes: What it is expected to take.
        effort: The work that is expected on the model's proposal.
        uncertainty: Mean disagreement or entropy over the mask.
        gain: What the method gave it.
        reason: Why it was chosen.
    """

    case: str
    subject: str
    label: str
    unit: Unit
    start: tuple[int, ...]
    stop: tuple[int, ...]
    middle_mm: tuple[float, ...]
    minutes: Measurement
    effort: CaseEffort
    uncertainty: float
    gain: float
    reason: str

    def place(self, axis: int = 2) -> str:
        """Return where the item lies, in words and mm; empty for a whole volume."""
        if self.unit is Unit.VOLUME:
            return ""
        if self.unit is Unit.SLICE:
            return slice_place(self.middle_mm[axis], axis)
        return ", ".join(_along(mm, along) for along, mm in enumerate(self.middle_mm))


@dataclass(frozen=True, kw_only=True)
class Aside:
    """A case that looks unlike the others, and is not chosen before a person has looked at it.

    Attributes:
        case: The case's id.
        label: What a person calls it.
        similarity: Median cosine between its looks and those of the other cases.
        usual: The least of a case that is not unlike them.
        start: First voxel of what there is to annotate, on the networks' grid.
        stop: The one behind its last.
    """

    case: str
    label: str
    similarity: float
    usual: float
    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __str__(self) -> str:
        return (
            f"case {self.case} looks unlike the others (similarity {self.similarity:.2f}, usual from "
            f"{self.usual:.2f} on) and is set aside: look whether it is spoilt"
        )


@dataclass(frozen=True, kw_only=True)
class Queue:
    """What to annotate, first things first.

    Attributes:
        items: In the order of choice.
        total: Minutes of all of them; ``None`` where there are none.
        budget: What could be spent.
        method: How they were chosen.
        guarantee: Share of the best possible cover (by the shortlist, where there is one) that is certain;
            ``None`` for methods that cover nothing.
        candidates: Of how many units they were chosen.
        networks: How many networks were asked.
        minutes_basis: What the minutes rest on.
        notes: What a reader must know before relying on it.
        aside: Cases that were not among the candidates, for they look unlike the others.
    """

    items: tuple[QueueItem, ...]
    total: Measurement | None
    budget: Budget
    method: Method
    guarantee: float | None
    candidates: int
    networks: int
    minutes_basis: str
    notes: tuple[str, ...]
    aside: tuple[Aside, ...] = ()

    @property
    def summary(self) -> str:
        """How many were chosen of how many, how, and what they take together, in a sentence."""
        chosen = f"{len(self.items)} of {self.candidates} candidates, chosen by {self.method}"
        if self.guarantee is not None:
            chosen += (
                f" (at least {100 * self.guarantee:.0f} % of the best cover that such a choice can have)"
            )
        if self.total is None:
            return chosen
        allowed = "" if self.budget.minutes is None else f" of {self.budget.minutes:g}"
        total = self.total
        return (
            f"{chosen}: {_short(total.value)}{allowed} minutes, "
            f"{100 * total.level:.0f} % interval {_short(total.low)} to {_short(total.high)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the queue as JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Part:
    """A unit of a case that could be chosen."""

    pending: Pending
    region: UnitRegion
    middle_mm: tuple[float, ...]
    candidate: Candidate
    effort: CaseEffort


@dataclass(frozen=True, eq=False)
class _Seen:
    """A case without labels, when it has been read.

    Attributes:
        pending: The case.
        whole: All there is to annotate in it.
        look: What it looks like as a whole.
        parts: Its units that could be chosen.
        known: What those look like that are annotated.
    """

    pending: Pending
    whole: UnitRegion
    look: _Array
    parts: list[_Part]
    known: list[_Array]


@dataclass(frozen=True, eq=False)
class _Answer:
    """What the networks say of a case, voxel by voxel; 0 outside the mask."""

    labels: _Array
    mean: _Array
    spread: _Array | None
    entropy: _Array

    @classmethod
    def of(cls, said: _Array, mask: NDArray[np.bool_]) -> _Answer:
        labels, mean = proposal_of(said, mask)
        spread, entropy = np.zeros((2, *mask.shape))
        entropy[mask] = predictive_entropy(_with_rest(mean[mask]))
        if len(said) > 1:
            spread[mask] = ensemble_spread(said[:, mask])
        return cls(labels, mean, spread if len(said) > 1 else None, entropy)

    @property
    def unsure(self) -> _Array:
        """The spread of an ensemble, the entropy of a single network."""
        return self.entropy if self.spread is None else self.spread


def annotation_queue(
    pending: Sequence[Pending],
    predict: Predict,
    classes: Sequence[str],
    *,
    budget: Budget,
    minutes: MinutesModel,
    labelled: Sequence[Pending] = (),
    unit: Unit = Unit.VOLUME,
    method: Method = Method.WEIGHTED_COVER,
    with_unlike: bool = False,
    axis: int = 2,
    level: float = 0.9,
    seed: int = 0,
    keep: Callable[[str, NDArray[np.float32]], None] | None = None,
    report: Report = silent,
) -> Queue:
    """Choose what to annotate next among the cases of a store.

    Args:
        pending: Cases that are not, or not wholly, annotated. One that cannot be read as the networks take
            it is left out, and a note says so.
        predict: What the networks say of an image.
        classes: Names of the labels, in the order of the probabilities.
        budget: How many units, or how many minutes.
        minutes: Predicts minutes from work.
        labelled: Cases that are annotated: what they stand for needs no other.
        unit: What is annotated at a time.
        method: How the choice is made.
        with_unlike: Choose also among cases that look unlike the others, which are set aside otherwise: see
            :func:`sagittal.annotation.likeness`.
        axis: Slices lie across it.
        level: Of the intervals of minutes.
        seed: For a choice by chance.
        keep: Given each case's id and the uncertainty of its voxels, 0 outside the mask: for pictures.
        report: Told what is being done.

    Raises:
        InputError: Nothing is left to annotate.
    """
    seen: list[_Seen] = []
    looks: list[_Array] = []  # of whole cases that count as usual
    known: list[_Array] = []
    networks, left_out = 1, []
    for place, case in enumerate(pending, 1):
        report(f"case {place} of {len(pending)}: {case.case}")
        try:
            scan = case.load()
        except InputError as error:
            left_out.append(f"case {case.case} is left out: {error}")
            continue
        if not (wholes := regions(scan.mask, Unit.VOLUME)):
            left_out.append(f"case {case.case} is left out: nothing in it is to be annotated")
            continue
        said = predict(scan)
        networks = len(said)
        answer = _Answer.of(said, scan.mask)
        if keep is not None:
            keep(case.case, answer.unsure.astype(np.float32))
        one = _Seen(case, wholes[0], _look(scan, wholes[0], Unit.VOLUME, axis), [], [])
        for region in regions(scan.mask, unit, axis=axis):
            if scan.done is not None and mean_within(scan.done[region.box], scan.mask[region.box]) >= _DONE:
                one.known.append(_look(scan, region, unit, axis))
            else:
                part = _part(place, case, scan, answer, region, unit, axis, classes, minutes, level)
                one.parts.append(part)
        seen.append(one)
    for case in labelled:
        report(f"labelled case {case.case}")
        try:
            scan = case.load()
        except InputError as error:
            left_out.append(f"labelled case {case.case} is left out: {error}")
            continue
        looks.extend(_look(scan, whole, Unit.VOLUME, axis) for whole in regions(scan.mask, Unit.VOLUME))
        known.extend(_look(scan, region, unit, axis) for region in regions(scan.mask, unit, axis=axis))
    aside = () if with_unlike else _unlike(seen, looks)
    out = {one.case for one in aside}
    known += [look for one in seen for look in one.known]
    parts = [part for one in seen if one.pending.case not in out for part in one.parts]
    if not parts:
        raise InputError(
            "nothing is left to annotate",
            value="; ".join((*left_out, *map(str, aside))) or f"{len(pending)} cases without labels",
            expected="a case with an image and without labels"
            + (" that looks like the others, or leave to choose among all" if aside else ""),
        )
    choice = select(
        [part.candidate for part in parts],
        budget,
        method=method,
        labelled=np.stack(known) if known else None,
        seed=seed,
    )
    items = tuple(_items(choice, parts, unit, minutes, level))
    return Queue(
        items=items,
        total=total_minutes([item.minutes for item in items]) if items else None,
        budget=budget,
        method=method,
        guarantee=choice.guarantee,
        candidates=len(parts),
        networks=networks,
        minutes_basis=minutes.basis,
        notes=(
            *_notes(networks, minutes, budget, choice, [part.candidate.minutes for part in parts]),
            *left_out,
            *map(str, aside),
        ),
        aside=aside,
    )


def proposal_of(said: _Array, mask: NDArray[np.bool_]) -> tuple[_Array, _Array]:
    """Return labels (0 background, 1 the first) and the networks' mean probabilities, 0 outside the mask."""
    inside = said[:, mask].mean(axis=0, dtype=np.float64)
    mean = np.zeros((*mask.shape, said.shape[-1]))
    mean[mask] = np.clip(inside, 0, 1)
    labels = np.zeros(mask.shape, np.intp)
    labels[mask] = _with_rest(inside).argmax(axis=-1)
    return labels, mean


def slice_place(mm: float, axis: int) -> str:
    """Say where a slice across an axis of space lies, in words and mm."""
    return f"{_PLANES[axis]}, {_along(mm, axis)}"


def _short(minutes: float) -> str:
    return f"{minutes:.1f}" if minutes < 9.95 else f"{minutes:.0f}"


def _along(mm: float, axis: int) -> str:
    return f"{'xyz'[axis]} = {round(mm)} mm"


def _with_rest(probabilities: _Array) -> _Array:
    """Put the background, which is what the labels lack to 1, before them."""
    rest = np.clip(1 - probabilities.sum(axis=-1, keepdims=True, dtype=np.float64), 0, 1)
    return np.concatenate([rest, probabilities], axis=-1)


def _part(
    number: int,
    case: Pending,
    scan: Scan,
    answer: _Answer,
    region: UnitRegion,
    unit: Unit,
    axis: int,
    classes: Sequence[str],
    minutes: MinutesModel,
    level: float,
) -> _Part:
    box, mask = region.box, scan.mask[region.box]
    effort = expected_effort(answer.labels[box], answer.mean[box], classes, scan.geometry.spacing, axis=axis)
    candidate = Candidate(
        subject=case.subject,
        unit=unit,
        place=(number, *_PLACE[unit](region.start, axis)),
        descriptor=_look(scan, region, unit, axis),
        spread=None if answer.spread is None else mean_within(answer.spread[box], mask),
        entropy=mean_within(answer.entropy[box], mask),
        minutes=minutes.predict(effort, level=level).value,
    )
    ends = (np.array(region.start) + np.array(region.stop) - 1) / 2
    middle = tuple(round(float(mm), 3) for mm in scan.geometry.index_to_world(ends))
    return _Part(case, region, middle, candidate, effort)


def _unlike(seen: Sequence[_Seen], usual: Sequence[_Array]) -> tuple[Aside, ...]:
    """Return the cases that look unlike the others; not those that a person has begun to annotate."""
    if not seen:
        return ()
    told = likeness(np.stack([one.look for one in seen]), np.stack(usual) if usual else None)
    return tuple(
        Aside(
            case=one.pending.case,
            label=one.pending.label,
            similarity=float(similarity),
            usual=float(told.fence or 0.0),
            start=one.whole.start,
            stop=one.whole.stop,
        )
        for one, similarity, unlike in zip(seen, told.typical, told.unlike, strict=True)
        if unlike and not one.pending.started
    )


def _look(scan: Scan, region: UnitRegion, unit: Unit, axis: int) -> _Array:
    image, mask = scan.channels[0][region.box], scan.mask[region.box]
    size = _LOOKS[unit]
    if unit is Unit.SLICE:
        image, mask = (np.moveaxis(array, axis, 2) for array in (image, mask))
    return thumbnail(image, mask, size=size)


def _items(
    choice: Choice, parts: Sequence[_Part], unit: Unit, minutes: MinutesModel, level: float
) -> Iterator[QueueItem]:
    for pick in choice.picks:
        part = parts[pick.index]
        yield QueueItem(
            case=part.pending.case,
            subject=part.pending.subject,
            label=part.pending.label,
            unit=unit,
            start=part.region.start,
            stop=part.region.stop,
            middle_mm=part.middle_mm,
            minutes=minutes.predict(part.effort, level=level),
            effort=part.effort,
            uncertainty=part.candidate.uncertainty,
            gain=pick.gain,
            reason=pick.reason,
        )


def _notes(
    networks: int,
    minutes: MinutesModel,
    budget: Budget,
    choice: Choice,
    costs: Sequence[float],
) -> Iterator[str]:
    if networks == 1:
        yield (
            "the model is a single network: uncertainty is the entropy of its probabilities, which knows "
            "nothing of what it is wrongly sure of; an ensemble would tell"
        )
    yield f"what the minutes rest on: {minutes.basis}"
    if choice.method is Method.UNCERTAINTY_COVER and 1 < choice.listed == choice.candidates:
        yield (
            "the list of the most uncertain, for twice the budget, holds all candidates: the choice among "
            "them is by cover alone"
        )
    if not choice.picks and budget.minutes is not None:
        yield (
            f"nothing fits into {budget.minutes:g} minutes: the shortest is expected to take {min(costs):.3g}"
        )
