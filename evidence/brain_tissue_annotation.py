"""The arms of brain_tissue.py that train several networks: what to annotate next, its work, and who takes
which case."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from brain_tissue_arms import Row, Seen, Settings, fitted, judged, overlaps, told, with_channels
from brain_tissue_colin import colin
from brain_tissue_data import LABELS, SPACING, Slice, heads, order, redundant
from numpy.typing import NDArray

from sagittal.annotation import (
    Budget,
    BySubject,
    Candidate,
    CaseEffort,
    LoggedMinutes,
    Method,
    campaign_saving,
    correction_effort,
    ensemble_spread,
    expected_effort,
    fit_minutes,
    likeness,
    mean_within,
    predictive_entropy,
    select,
)
from sagittal.core.randomness import derive_seed
from sagittal.segmentation.choice import HeldOut, fit_router, routed_probabilities
from sagittal.segmentation.choice_features import case_features
from sagittal.segmentation.retrieval import image_descriptor


@dataclass(frozen=True)
class Way:
    """How a campaign chooses.

    Attributes:
        method: By what.
        aside: Whether images that look unlike the others are left out, as `sagittal annotate next` does.
        by_minutes: Whether its budget is in minutes: as many as the mean candidate is expected to take, times
            the number that the other campaigns choose.
    """

    method: Method
    aside: bool = True
    by_minutes: bool = False


WAYS = {
    "random": Way(Method.RANDOM, aside=False),
    "random, unlike aside": Way(Method.RANDOM),
    "weighted-cover": Way(Method.WEIGHTED_COVER),
    "weighted-cover, by minutes": Way(Method.WEIGHTED_COVER, by_minutes=True),
    "uncertainty+cover": Way(Method.UNCERTAINTY_COVER),
    "uncertainty+cover, nothing aside": Way(Method.UNCERTAINTY_COVER, aside=False),
    "cover": Way(Method.COVER),
    "core-set": Way(Method.CORE_SET),
    "entropy": Way(Method.ENTROPY),
}
"""A choice by lot from all images is what the others are measured against."""
SHARE = 0.5
"""Of the steps of the other arms, for each network of the many ensembles."""
FOLDS = 2
WIDTHS = (SPACING,) * 3
WORK = fit_minutes([])
"""Minutes of work. Nobody logs any in a simulation: the coefficients of the product's prior, applied to the
real correction, stand for what an annotation takes."""

see = with_channels(("t1",))


class Ensemble:
    """Networks of bootstrap draws, and what they say together."""

    def __init__(self, labelled: Sequence[Slice], seed: int, settings: Settings, round_: str) -> None:
        draws = BySubject((one.subject, one) for one in labelled).draws(
            settings.members, seed=derive_seed(seed, round_)
        )
        steps = max(int(settings.steps * SHARE), 1)
        self.models = [
            fitted(
                [see(one) for one in draw.training], derive_seed(seed, round_, str(number)), settings, steps
            )
            for number, draw in enumerate(draws)
        ]

    def members(self, seen: Seen) -> list[NDArray[np.float32]]:
        """Return what each says of each slice, (networks, i, j, 1, tissues)."""
        return [np.stack(each) for each in zip(*(told(model, seen) for model in self.models), strict=True)]


def proposals(one: Slice, members: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the labels that are proposed to the expert, and the mean probabilities."""
    mean = members.mean(axis=0)
    return np.where(one.mask, mean.argmax(axis=-1) + 1, 0), mean


def scored(ensemble: Ensemble, settings: Settings) -> dict[str, list[float]]:
    judges = [see(one) for one in heads("judge", settings.folder, settings.judge)]
    return judged(judges, [members.mean(axis=0) for members in ensemble.members(judges)])


@functools.lru_cache(maxsize=1)
def beginning(seed: int, settings: Settings) -> tuple[list[Slice], Ensemble]:
    """Return the redundant pool, and the ensemble of those of it that all campaigns start from."""
    pool = redundant(seed, settings.folder, settings.pool)
    return pool, Ensemble(pool[: settings.budgets[0]], seed, settings, "start")


def start(seed: int, settings: Settings) -> Row:
    """Judge what all campaigns start from."""
    return {"dice": scored(beginning(seed, settings)[1], settings)}


def whole(seed: int, settings: Settings) -> Row:
    """Judge an ensemble of the whole pool."""
    pool = redundant(seed, settings.folder, settings.pool)
    return {"dice": scored(Ensemble(pool, seed, settings, "all"), settings), "pool": len(pool)}


def suggestive(seed: int, settings: Settings, way: str) -> Row:
    """Annotate a redundant pool in rounds, in one way."""
    pool, first = beginning(seed, settings)
    campaign = Campaign(way, pool, pool[: settings.budgets[0]], first, seed, settings)
    rounds = []
    for number in range(1, len(settings.budgets)):
        campaign.go_on(number)
        rounds.append({**campaign.facts(), "dice": scored(campaign.ensemble, settings)})
    return {"rounds": rounds, "effort": campaign.told}


class Campaign:
    """One way to annotate a pool, round by round: the ensemble proposes, one chooses, the expert corrects."""

    def __init__(
        self,
        way: str,
        pool: Sequence[Slice],
        start: Sequence[Slice],
        first: Ensemble,
        seed: int,
        settings: Settings,
    ) -> None:
        self.way, self.pool, self.seed, self.settings = way, pool, seed, settings
        self.labelled, self.ensemble = list(start), first
        self.works = [  # those of the start are drawn from nothing
            correction_effort(np.zeros_like(one.labels.array), one.labels.array, LABELS, WIDTHS)
            for one in start
        ]
        self.logs: list[LoggedMinutes] = []
        self.told: list[dict[str, Any]] = []

    def go_on(self, number: int) -> None:
        """Choose and annotate the next slices, and train anew."""
        way = WAYS[self.way]
        rest = [one for one in self.pool if all(one is not other for other in self.labelled)]
        said = self.ensemble.members([see(one) for one in rest])
        proposed = [proposals(one, members) for one, members in zip(rest, said, strict=True)]
        expected = [expected_effort(labels, mean, tuple(LABELS), WIDTHS) for labels, mean in proposed]
        real = [
            correction_effort(labels, one.labels.array, LABELS, WIDTHS)
            for one, (labels, _) in zip(rest, proposed, strict=True)
        ]
        minutes = self._minutes(rest, expected, real)
        candidates = [
            Candidate(
                subject=one.subject,
                descriptor=look(one),
                spread=mean_within(ensemble_spread(members), one.mask),
                entropy=mean_within(predictive_entropy(members.mean(axis=0)), one.mask),
                minutes=each,
            )
            for one, members, each in zip(rest, said, minutes, strict=True)
        ]
        known = np.stack([look(one) for one in self.labelled])
        unlike = likeness(np.stack([one.descriptor for one in candidates]), known).unlike & way.aside
        usual = np.flatnonzero(~unlike)
        budgets = self.settings.budgets
        count = budgets[number] - budgets[number - 1]
        mean = float(np.mean([minutes[index] for index in usual]))
        chosen = select(
            [candidates[index] for index in usual],
            Budget(minutes=count * mean) if way.by_minutes else Budget(number=count),
            method=way.method,
            labelled=known,
            seed=derive_seed(self.seed, "choice", str(number)),
        )
        self.told[-1]["aside"] = [one.kind for one, out in zip(rest, unlike, strict=True) if out]
        for pick in chosen.picks:
            place = int(usual[pick.index])
            one, work = rest[place], real[place]
            self.works.append(work)
            self.labelled.append(one)
            took = WORK.predict(work).value
            self.logs.append(LoggedMinutes(subject=one.subject, effort=expected[place], minutes=took))
        self.ensemble = Ensemble(self.labelled, self.seed, self.settings, f"{self.way} {budgets[number]}")

    def _minutes(
        self, rest: Sequence[Slice], expected: Sequence[CaseEffort], real: Sequence[CaseEffort]
    ) -> list[float]:
        """Return the minutes that each candidate is expected to take, as this campaign's logs tell them."""
        model = fit_minutes(self.logs)
        minutes = [model.predict(work).value for work in expected]
        told = {
            "labelled": len(self.labelled),
            "logs": len(self.logs),
            "kinds": [one.kind for one in rest],
            "predicted": minutes,
            "predicted_by_prior": [WORK.predict(work).value for work in expected],
            "real": [WORK.predict(work).value for work in real],
        }
        self.told.append(told)
        return minutes

    def facts(self) -> dict[str, Any]:
        """Return how many are labelled, what they are, and the work that was spent so far."""
        kinds = [one.kind for one in self.labelled]
        return {
            "labelled": len(self.labelled),
            "kinds": {kind: kinds.count(kind) for kind in ("own", "near duplicate", "outlier")},
            "minutes": sum(WORK.predict(work).value for work in self.works),
            "work_saved": {
                tissue: {
                    criterion: vars(
                        campaign_saving(
                            [getattr(work.tissues[tissue], criterion) for work in self.works], len(self.pool)
                        )
                    )
                    for criterion in ("voxels", "edge")
                }
                for tissue in LABELS
            },
        }


def look(one: Slice) -> NDArray[np.float64]:
    return image_descriptor(one.images[0], one.mask)


def routed(seed: int, settings: Settings) -> Row:
    """Train one network on the quieter half of the pool and one on the noisier; let each case find its
    own."""
    pool = order(seed, settings.folder, settings.pool)
    ranked = sorted(pool, key=lambda one: one.noise)
    halves = {"quiet": ranked[: len(pool) // 2], "noisy": ranked[len(pool) // 2 :]}

    def networks(training: dict[str, list[Slice]], name: str) -> dict[str, object]:
        return {
            half: fitted([see(one) for one in those], derive_seed(seed, name, half), settings)
            for half, those in training.items()
        }

    def features(one: Slice, shares: dict[str, NDArray[np.float32]]) -> dict[str, float]:
        return case_features(one.images[0], one.mask, shares, tuple(LABELS), WIDTHS)

    cases = []
    for fold in range(FOLDS):
        held = [one for number, one in enumerate(pool) if number % FOLDS == fold]
        names = {one.subject for one in held}
        training = {
            half: [one for one in those if one.subject not in names] for half, those in halves.items()
        }
        models = networks(training, f"fold {fold}")
        seen = [see(one) for one in held]
        said = {half: told(model, seen) for half, model in models.items()}
        for number, one in enumerate(held):
            shares = {half: said[half][number] for half in halves}
            cases.append(
                HeldOut(
                    subject=one.subject,
                    features=features(one, shares),
                    dice={half: overlaps(one, share) for half, share in shares.items()},
                    trained_on={
                        half: frozenset(o.subject for o in those) for half, those in training.items()
                    },
                )
            )
    models = networks(halves, "final")
    judges = [see(one) for one in heads("judge", settings.folder, settings.judge)]
    said = {half: told(model, judges) for half, model in models.items()}
    each = [{half: said[half][number] for half in halves} for number in range(len(judges))]
    seen_of = [features(one, shares) for (one, _), shares in zip(judges, each, strict=True)]
    ways: Row = {}
    for granularity in ("slice", "class"):
        for learner in ("ridge", "logistic"):
            router = fit_router(cases, granularity=granularity, learner=learner)
            decided = [router.decide(found) for found in seen_of]
            routed_shares = [
                routed_probabilities(decisions, shares, tuple(LABELS))
                for decisions, shares in zip(decided, each, strict=True)
            ]
            takers = [decision.network for decisions in decided for decision in decisions.values()]
            first = [decision.reasons[0][0] for decisions in decided for decision in decisions.values()]
            ways[f"{learner}, {granularity}"] = {
                "dice": judged(judges, routed_shares),
                "chosen": {half: takers.count(half) for half in halves},
                "first_reasons": {name: first.count(name) for name in sorted(set(first))},
            }
    mean = [np.mean(list(shares.values()), axis=0) for shares in each]
    return {
        "singles": {half: {"dice": judged(judges, shares)} for half, shares in said.items()},
        "average": {"dice": judged(judges, mean)},
        "routers": ways,
    }


MORE: dict[str, Callable[[int, Settings], Row]] = {
    "router": routed,
    "start": start,
    "whole pool": whole,
    **{f"campaign {way}": functools.partial(suggestive, way=way) for way in WAYS},
    "colin27": colin,
}
