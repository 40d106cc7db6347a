"""The arms of brain_tissue.py that train several networks: what to annotate next, its work, and who takes
which case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from brain_tissue_arms import Row, Seen, Settings, fitted, judged, overlaps, told, with_channels
from brain_tissue_data import LABELS, SPACING, Slice, heads, order, redundant
from numpy.typing import NDArray
from scipy.stats import spearmanr

from sagittal.annotation import (
    Budget,
    BySubject,
    Candidate,
    Method,
    campaign_saving,
    correction_effort,
    ensemble_spread,
    expected_effort,
    fit_minutes,
    mean_within,
    select,
)
from sagittal.core.randomness import derive_seed
from sagittal.segmentation.choice import HeldOut, fit_router, routed_probabilities, routing_scores
from sagittal.segmentation.choice_features import case_features
from sagittal.segmentation.retrieval import image_descriptor

BUDGETS = (4, 12, 20)
"""Labelled slices of a pool of 40 after each round."""
METHODS = (Method.RANDOM, Method.UNCERTAINTY_COVER)
MEMBERS = 3
"""Networks of an ensemble, each of a bootstrap draw of the labelled."""
SHARE = 0.5
"""Of the steps of the other arms, for each of the many networks here."""
FOLDS = 2
WIDTHS = (SPACING,) * 3

see = with_channels(("t1",))


class Ensemble:
    """Networks of bootstrap draws, and what they say together."""

    def __init__(self, labelled: Sequence[Slice], seed: int, settings: Settings, round_: str) -> None:
        draws = BySubject((one.subject, one) for one in labelled).draws(
            MEMBERS, seed=derive_seed(seed, round_)
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


def suggestive(seed: int, settings: Settings) -> Row:
    """Annotate a redundant pool in rounds, by lot and by suggestion, from the same start; and all of it."""
    pool = (
        redundant(seed, settings.folder)
        if settings.pool == 40
        else order(seed, settings.folder, settings.pool)
    )
    judges = [see(one) for one in heads("judge", settings.folder, settings.judge)]
    model = fit_minutes([])  # nothing is logged in a simulation: the prior's coefficients stand for the work
    start = pool[: BUDGETS[0]]
    first = Ensemble(start, seed, settings, "start")
    rounds, savings, ranks = [], {}, []

    def scored(ensemble: Ensemble, method: str, labelled: Sequence[Slice]) -> None:
        shares = [members.mean(axis=0) for members in ensemble.members(judges)]
        kinds = [one.kind for one in labelled]
        rounds.append(
            {
                "method": method,
                "labelled": len(labelled),
                "kinds": {kind: kinds.count(kind) for kind in ("own", "near duplicate", "outlier")},
                "subjects": judged(judges, shares),
            }
        )

    scored(first, "start", start)
    for method in METHODS:
        labelled, ensemble = list(start), first
        works = [  # those of the start are drawn from nothing
            correction_effort(np.zeros_like(one.labels.array), one.labels.array, LABELS, WIDTHS)
            for one in start
        ]
        for number, budget in enumerate(BUDGETS[1:]):
            rest = [one for one in pool if all(one is not other for other in labelled)]
            said = ensemble.members([see(one) for one in rest])
            proposed = [proposals(one, members) for one, members in zip(rest, said, strict=True)]
            expected = [expected_effort(labels, mean, tuple(LABELS), WIDTHS) for labels, mean in proposed]
            real = [
                correction_effort(labels, one.labels.array, LABELS, WIDTHS)
                for one, (labels, _) in zip(rest, proposed, strict=True)
            ]
            ranks.append(
                {
                    "method": str(method),
                    "labelled": len(labelled),
                    "predicted_minutes": [model.predict(work).value for work in expected],
                    "real_minutes": [model.predict(work).value for work in real],
                }
            )
            candidates = [
                Candidate(
                    subject=one.subject,
                    descriptor=image_descriptor(one.images[0], one.mask),
                    spread=mean_within(ensemble_spread(members), one.mask),
                )
                for one, members in zip(rest, said, strict=True)
            ]
            known = np.stack([image_descriptor(one.images[0], one.mask) for one in labelled])
            chosen = select(
                candidates,
                Budget(number=min(budget, len(pool)) - len(labelled)),
                method=method,
                labelled=known,
                seed=derive_seed(seed, "choice", str(number)),
            )
            works += [real[pick.index] for pick in chosen.picks]
            labelled += [rest[pick.index] for pick in chosen.picks]
            ensemble = Ensemble(labelled, seed, settings, f"{method} {budget}")
            scored(ensemble, str(method), labelled)
        savings[str(method)] = {
            tissue: {
                criterion: vars(
                    campaign_saving([getattr(work.tissues[tissue], criterion) for work in works], len(pool))
                )
                for criterion in ("voxels", "edge")
            }
            for tissue in LABELS
        }
    scored(Ensemble(pool, seed, settings, "all"), "all", pool)
    for each in ranks:
        found = float(spearmanr(each["predicted_minutes"], each["real_minutes"]).statistic)
        each["rank_correlation"] = found if np.isfinite(found) else None  # of too few cases there is none
    return {"rounds": rounds, "work_saved": savings, "effort": ranks, "members": MEMBERS}


def routed(seed: int, settings: Settings) -> Row:
    """Train one network on the quieter half of the pool and one on the noisier; let each case find its
    own."""
    pool = order(seed, settings.folder, settings.pool)
    ranked = sorted(pool, key=lambda one: one.noise)
    halves = {"quiet": ranked[: len(pool) // 2], "noisy": ranked[len(pool) // 2 :]}
    steps = max(int(settings.steps * SHARE), 1)

    def networks(training: dict[str, list[Slice]], name: str) -> dict[str, object]:
        return {
            half: fitted([see(one) for one in those], derive_seed(seed, name, half), settings, steps)
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
                    dice={half: overlaps(one, share)["dice"] for half, share in shares.items()},
                    trained_on={
                        half: frozenset(o.subject for o in those) for half, those in training.items()
                    },
                )
            )
    models = networks(halves, "final")
    judges = [see(one) for one in heads("judge", settings.folder, settings.judge)]
    said = {half: told(model, judges) for half, model in models.items()}
    ways: Row = {}
    reasons: Row = {}
    for granularity in ("slice", "class"):
        for learner in ("ridge", "logistic"):
            router = fit_router(cases, granularity=granularity, learner=learner)
            found = []
            for number, (one, _) in enumerate(judges):
                shares = {half: said[half][number] for half in halves}
                decisions = router.decide(features(one, shares))
                row = overlaps(one, routed_probabilities(decisions, shares, tuple(LABELS)))
                found.append({**row, "chosen": {group: d.network for group, d in decisions.items()}})
                for decision in decisions.values():
                    key = decision.reasons[0][0]
                    reasons[key] = int(str(reasons.get(key, 0))) + 1
            ways[f"{learner}, {granularity}"] = found
    singles = {half: judged(judges, shares) for half, shares in said.items()}
    pairs = np.array([[row["dice_mean"] for row in rows] for rows in singles.values()]).T
    bounds = routing_scores(pairs, np.zeros(len(pairs), int))
    mean = [np.mean([said[half][n] for half in halves], axis=0) for n in range(len(judges))]
    return {
        "singles": singles,
        "average": judged(judges, mean),
        "routers": ways,
        "oracle": bounds.oracle,
        "random": bounds.random,
        "first_reasons": reasons,
    }


MORE = {"suggestive": suggestive, "router": routed}
