"""Bootstrap draws by subject: what a subject gave is in a draw as a whole, or held out as a whole.

Slices and patches of one head are near copies of each other. A draw of slices would hold out slices whose
neighbours it trains on, and every error out of the bag would be too small. :class:`BySubject` is the only
thing that is drawn from, and nothing enters it without its subject.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from sagittal.core.errors import InputError
from sagittal.core.randomness import generator

__all__ = ["BySubject", "Draw", "out_of_bag_mean"]

T = TypeVar("T")

_LEAST = 2


@dataclass(frozen=True, kw_only=True)
class Draw(Generic[T]):
    """One bootstrap draw.

    Attributes:
        subjects: Those drawn, as often as they were, in the order of :attr:`BySubject.subjects`.
        training: What they gave, as often as they were drawn.
        out_of_bag: What each subject that was not drawn gave; at least one subject.
    """

    subjects: tuple[str, ...]
    training: tuple[T, ...]
    out_of_bag: Mapping[str, tuple[T, ...]]

    def __post_init__(self) -> None:
        both = set(self.subjects) & set(self.out_of_bag)
        if both:
            raise InputError(
                "a subject is in the draw and held out from it", value=", ".join(sorted(both)), expected="one"
            )


class BySubject(Generic[T]):
    """What subjects gave (volumes, slices, patches), kept by subject.

    Args:
        given: Subject and what it gave, in any order; a subject may give several.

    Raises:
        InputError: A subject without a name, or nobody.
    """

    def __init__(self, given: Iterable[tuple[str, T]]) -> None:
        kept: dict[str, list[T]] = {}
        for subject, item in given:
            if not isinstance(subject, str) or not subject.strip():
                raise InputError("an item has no subject", value=repr(subject), expected="the subject's id")
            kept.setdefault(subject, []).append(item)
        if not kept:
            raise InputError("there is no subject", expected="one or more")
        self._kept = {subject: tuple(kept[subject]) for subject in sorted(kept)}

    @property
    def subjects(self) -> tuple[str, ...]:
        """All subjects, sorted."""
        return tuple(self._kept)

    def of(self, subject: str) -> tuple[T, ...]:
        """Return what a subject gave.

        Raises:
            InputError: There is no such subject.
        """
        if subject not in self._kept:
            raise InputError("there is no such subject", value=subject, expected=", ".join(self._kept))
        return self._kept[subject]

    def draws(self, count: int, *, seed: int) -> tuple[Draw[T], ...]:
        """Draw as many subjects as there are, with replacement, ``count`` times.

        The bootstrap (Efron, Ann. Stat. 7:1, 1979). A draw that holds everybody is drawn again, so that there
        is always somebody to test on. Of many subjects a draw leaves out 37 % on average. The first draws of
        a larger count are those of a smaller.

        Raises:
            InputError: Less than one draw, or fewer than two subjects.
        """
        if count < 1:
            raise InputError("no draw", source="count", value=count, expected="1 or more")
        names = self.subjects
        if len(names) < _LEAST:
            raise InputError(
                "too few subjects to hold one out", value=len(names), expected=f"{_LEAST} or more"
            )
        return tuple(self._draw(seed, number) for number in range(count))

    def _draw(self, seed: int, number: int) -> Draw[T]:
        names, random = self.subjects, generator(seed, "bootstrap", str(number))
        while True:
            places = sorted(random.integers(0, len(names), len(names)).tolist())
            if len(set(places)) < len(names):
                break
        drawn = tuple(names[place] for place in places)
        return Draw(
            subjects=drawn,
            training=tuple(item for name in drawn for item in self._kept[name]),
            out_of_bag={name: self._kept[name] for name in names if name not in drawn},
        )


def out_of_bag_mean(scores: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return each subject's mean score over the draws that held it out.

    Args:
        scores: For each draw, a score of each subject of its ``out_of_bag``.

    Returns:
        Means by subject, sorted; a subject that every draw held is not in it.
    """
    found: dict[str, list[float]] = {}
    for draw in scores:
        for subject, score in draw.items():
            found.setdefault(subject, []).append(score)
    return {subject: sum(found[subject]) / len(found[subject]) for subject in sorted(found)}
