"""What to annotate next: units the model is unsure of that stand for many others, within a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from sagittal.annotation.cover import Cover, cosine_similarity, cover, cover_within, k_centre
from sagittal.annotation.uncertainty import Unit
from sagittal.core.errors import InputError
from sagittal.core.randomness import generator

__all__ = ["Budget", "Candidate", "Choice", "Method", "Pick", "select"]

_Array = NDArray[np.float64]

SHORTLIST = 2
"""How many times the budget goes into the list of the most uncertain; Yang et al. take 16 for 8."""


class Method(StrEnum):
    """How units are chosen.

    ``UNCERTAINTY_COVER`` is suggestive annotation (Yang et al., MICCAI 2017): of the most uncertain units,
    for twice the budget, those that together stand best for all candidates. ``WEIGHTED_COVER`` takes of all
    units those that together stand best for what the model is unsure of: each candidate counts in the cover
    by its uncertainty, so that no list is cut off and the bound holds for the whole choice [inference]. The
    others are their rivals.
    """

    WEIGHTED_COVER = "weighted-cover"
    UNCERTAINTY_COVER = "uncertainty+cover"
    UNCERTAINTY = "uncertainty"
    ENTROPY = "entropy"
    COVER = "cover"
    CORE_SET = "core-set"
    RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A unit that could be annotated.

    Attributes:
        subject: Whose it is; mandatory, since units of one subject never lie on both sides of a split.
        unit: Volume, slice or patch.
        place: What tells a subject's units apart, such as a slice's index; empty for a volume.
        descriptor: What it looks like, shape (features,); the same features for all.
        spread: How far an ensemble disagrees in it, mean over its mask; ``None`` of a single network.
        entropy: Entropy of its probabilities, mean over its mask, 0 to 1.
        minutes: What annotating it is expected to take, above 0.
    """

    subject: str
    unit: Unit = Unit.VOLUME
    place: tuple[int, ...] = ()
    descriptor: _Array = field(compare=False)
    spread: float | None = None
    entropy: float = 0.0
    minutes: float = 1.0

    def __post_init__(self) -> None:
        if not self.subject.strip():
            raise InputError(
                "a candidate has no subject", value=repr(self.subject), expected="the subject's id"
            )
        if not (self.minutes > 0 and np.isfinite(self.minutes)):
            raise InputError(
                "annotating takes time",
                source=self.subject,
                value=self.minutes,
                expected="more than 0 minutes",
            )
        if not np.isfinite([self.entropy, self.spread or 0.0]).all():
            raise InputError("an uncertainty is not finite", source=self.subject, expected="numbers")

    @property
    def uncertainty(self) -> float:
        """The spread of the ensemble; of a single network the entropy."""
        return self.entropy if self.spread is None else self.spread

    @property
    def name(self) -> str:
        """The subject, and which of its units."""
        if self.unit is Unit.VOLUME:
            return self.subject
        return f"{self.subject}, {self.unit} {'-'.join(map(str, self.place))}"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may be spent: a number of units, or minutes.

    Raises:
        InputError: Both, neither, or one that is not above 0.
    """

    number: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.number, self.minutes) if value is not None]
        if len(given) != 1 or not (given[0] > 0 and np.isfinite(given[0])):
            raise InputError(
                "no such budget",
                value=" and ".join(
                    f"{value:g} {what}"
                    for value, what in ((self.number, "units"), (self.minutes, "minutes"))
                    if value is not None
                )
                or "none",
                expected="a number of units or of minutes, not both, above 0",
            )


@dataclass(frozen=True, kw_only=True)
class Pick:
    """A unit that was chosen.

    Attributes:
        index: Which candidate.
        candidate: The candidate itself.
        gain: What the method gave it: cover added, uncertainty, or distance to what was chosen before.
        reason: Why, in a sentence's part.
    """

    index: int
    candidate: Candidate
    gain: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to annotate, first things first.

    Attributes:
        method: How it was chosen.
        picks: The units, in the order of choice.
        guarantee: Share of the best possible cover, by the shortlist where there is one, that this one surely
            reaches; ``None`` for methods that cover nothing.
        candidates: Of how many it was chosen.
        listed: How many of them were on the list of the most uncertain; all, for methods without one.
    """

    method: Method
    picks: tuple[Pick, ...]
    guarantee: float | None
    candidates: int
    listed: int

    @property
    def minutes(self) -> float:
        """What the chosen units are expected to take together."""
        return sum(pick.candidate.minutes for pick in self.picks)


def select(
    candidates: Sequence[Candidate],
    budget: Budget,
    *,
    method: Method = Method.WEIGHTED_COVER,
    labelled: _Array | None = None,
    seed: int = 0,
) -> Choice:
    """Choose what to annotate next.

    With a budget in minutes, covering methods choose by cover gained per minute (``UNCERTAINTY_COVER`` from
    its list of the most uncertain), the ranking ones by uncertainty per minute, core-set
    and random in their own order; whatever no longer fits is passed over.

    Args:
        candidates: Units without labels, each once.
        budget: How many, or how many minutes.
        method: How.
        labelled: Descriptors of what is labelled already, shape (n, features): what they stand for needs no
            other. [inference: the paper covers the unlabelled alone] None by default.
        seed: For ``RANDOM``.

    Raises:
        InputError: No candidates, one twice, descriptors of unlike length, or some with and some without a
            spread.
    """
    if not candidates:
        raise InputError("nothing is left to annotate", source="candidates", expected="one or more")
    keys = [(c.subject, c.unit, c.place) for c in candidates]
    if len(set(keys)) < len(keys):
        twice = next(c.name for c, key in zip(candidates, keys, strict=True) if keys.count(key) > 1)
        raise InputError("a candidate is there twice", source="candidates", value=twice, expected="each once")
    if len({c.descriptor.shape for c in candidates}) > 1 or candidates[0].descriptor.ndim != 1:
        raise InputError("the descriptors are of unlike shape", expected="(features,), the same for all")
    if len({c.spread is None for c in candidates}) > 1:
        raise InputError("only some candidates have a spread", expected="one ensemble for all, or none")
    looks = np.stack([c.descriptor for c in candidates])
    known = np.zeros((0, looks.shape[1])) if labelled is None else labelled
    return _METHODS[method](list(candidates), budget, looks, known, seed)


def _by_cover(method: Method) -> Callable[..., Choice]:
    def run(every: list[Candidate], budget: Budget, looks: _Array, known: _Array, seed: int) -> Choice:
        listed = list(range(len(every)))
        if method is Method.UNCERTAINTY_COVER:
            listed = sorted(_shortlist(every, budget))
        similarity = cosine_similarity(looks, looks)
        covered = cosine_similarity(looks, known).max(axis=1, initial=0.0)
        table = similarity[:, listed]
        weights = np.array([c.uncertainty for c in every]) if method is Method.WEIGHTED_COVER else None
        told = {"weights": weights, "covered": covered}
        if budget.number is not None:
            found = cover(table, min(budget.number, len(listed)), **told)
        else:
            costs = np.array([every[index].minutes for index in listed])
            found = cover_within(table, costs, float(budget.minutes or 0), **told)
        choice = _covering(method, every, [listed[c] for c in found.chosen], found, similarity, covered)
        return replace(choice, listed=len(listed))

    return run


def _covering(
    method: Method,
    every: list[Candidate],
    chosen: list[int],
    found: Cover,
    similarity: _Array,
    covered: _Array,
) -> Choice:
    ranks = _ranks(every)
    best = np.argmax(similarity[:, chosen], axis=1) if chosen else np.zeros(len(every), int)
    picks = []
    for place, (index, gain) in enumerate(zip(chosen, found.gains, strict=True)):
        mine = [
            i for i in np.flatnonzero(best == place) if i not in chosen and similarity[i, index] > covered[i]
        ]
        parts = []
        if method is not Method.COVER:
            parts.append(_told(every[index], ranks[index], len(every)))
        if mine:
            near = float(similarity[mine, index].mean())
            others = f"{len(mine)} other{'s' if len(mine) > 1 else ''}"
            parts.append(f"stands for {others} of the candidates (mean similarity {near:.2f})")
        elif len(chosen) < len(every):
            parts.append("stands for itself alone: the others are nearer to what is chosen or labelled")
        reason = "; ".join(parts) or "all candidates are chosen"
        picks.append(Pick(index=index, candidate=every[index], gain=gain, reason=reason))
    return Choice(
        method=method,
        picks=tuple(picks),
        guarantee=found.guarantee,
        candidates=len(every),
        listed=len(every),
    )


def _by_rank(method: Method) -> Callable[..., Choice]:
    def run(every: list[Candidate], budget: Budget, looks: _Array, known: _Array, seed: int) -> Choice:
        values = [c.entropy if method is Method.ENTROPY else c.uncertainty for c in every]
        worth = [v / c.minutes if budget.minutes else v for v, c in zip(values, every, strict=True)]
        order = sorted(range(len(every)), key=lambda index: (-worth[index], index))
        ranks = _ranks(every, values)
        entropy = method is Method.ENTROPY
        picks = [
            Pick(
                index=index,
                candidate=every[index],
                gain=values[index],
                reason=_told(every[index], ranks[index], len(every), entropy=entropy),
            )
            for index in _affordable(order, every, budget)
        ]
        return Choice(
            method=method, picks=tuple(picks), guarantee=None, candidates=len(every), listed=len(every)
        )

    return run


def _core_set(every: list[Candidate], budget: Budget, looks: _Array, known: _Array, seed: int) -> Choice:
    distance = _distances(looks, looks)
    nearest = _distances(looks, known).min(axis=1) if len(known) else None
    order, radii = k_centre(distance, len(every), nearest=nearest)
    far = dict(zip(order, radii, strict=True))
    picks = []
    for index in _affordable(order, every, budget):
        first = not np.isfinite(far[index])
        reason = (
            "lies in the middle of the candidates"
            if first
            else f"lies furthest from what is labelled or chosen before (distance {far[index]:.3g})"
        )
        gain = 0.0 if first else far[index]
        picks.append(Pick(index=index, candidate=every[index], gain=gain, reason=reason))
    return Choice(
        method=Method.CORE_SET, picks=tuple(picks), guarantee=None, candidates=len(every), listed=len(every)
    )


def _random(every: list[Candidate], budget: Budget, looks: _Array, known: _Array, seed: int) -> Choice:
    order = generator(seed, "annotation").permutation(len(every)).tolist()
    picks = tuple(
        Pick(index=index, candidate=every[index], gain=0.0, reason="drawn by chance")
        for index in _affordable(order, every, budget)
    )
    return Choice(method=Method.RANDOM, picks=picks, guarantee=None, candidates=len(every), listed=len(every))


_METHODS: dict[Method, Callable[..., Choice]] = {
    Method.WEIGHTED_COVER: _by_cover(Method.WEIGHTED_COVER),
    Method.UNCERTAINTY_COVER: _by_cover(Method.UNCERTAINTY_COVER),
    Method.COVER: _by_cover(Method.COVER),
    Method.UNCERTAINTY: _by_rank(Method.UNCERTAINTY),
    Method.ENTROPY: _by_rank(Method.ENTROPY),
    Method.CORE_SET: _core_set,
    Method.RANDOM: _random,
}


def _shortlist(every: list[Candidate], budget: Budget) -> list[int]:
    """Return the most uncertain candidates, for twice the budget; what alone exceeds it is left out.

    By uncertainty and not by uncertainty per minute, which would list what is short because it is well known;
    of equals the shorter first.
    """
    order = sorted(
        range(len(every)), key=lambda index: (-every[index].uncertainty, every[index].minutes, index)
    )
    if budget.number is not None:
        return order[: SHORTLIST * budget.number]
    most = float(budget.minutes or 0)
    found, spent = [], 0.0
    for index in order:
        if every[index].minutes <= most and spent < SHORTLIST * most:
            found.append(index)
            spent += every[index].minutes
    return found


def _affordable(order: Sequence[int], every: list[Candidate], budget: Budget) -> list[int]:
    if budget.number is not None:
        return list(order[: budget.number])
    found, left = [], float(budget.minutes or 0) * (1 + 1e-12)
    for index in order:
        if every[index].minutes <= left:
            found.append(index)
            left -= every[index].minutes
    return found


def _ranks(every: list[Candidate], values: Sequence[float] | None = None) -> list[int]:
    told = np.array([c.uncertainty for c in every] if values is None else values)
    found: list[int] = (1 + len(told) - np.searchsorted(np.sort(told), told, side="right")).tolist()
    return found


def _told(candidate: Candidate, rank: int, count: int, *, entropy: bool = False) -> str:
    if entropy or candidate.spread is None:
        what = f"mean entropy {candidate.entropy:.3f}"
    else:
        what = f"mean disagreement {candidate.spread:.3f}"
    return f"{what} ({rank} of {count}, the most uncertain first)"


def _distances(one: _Array, other: _Array) -> _Array:
    # row by row: all differences at once would not fit into memory for thousands of slices
    return np.stack([np.linalg.norm(other - row, axis=-1) for row in one])
