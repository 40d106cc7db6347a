"""Which of several trained networks is the skilled one for this case, told from the case itself.

Different networks are skilled at different data, and a judgement that gives each case to its skilled network
can do better than any of them (arXiv 1807.08473; how it judges is not in its abstract). Here the judge is a
linear model of label-free features, fitted on how the networks did on subjects that had not trained them;
what it weighs can be shown. [inference: features and learners are ours]

The trap is a judge that was fitted on cases which trained the networks, where all of them look perfect: a
:class:`HeldOut` refuses such a case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError

__all__ = [
    "ALL",
    "Decision",
    "HeldOut",
    "Router",
    "RoutingScores",
    "fit_router",
    "routed_probabilities",
    "routing_scores",
]

Granularity = Literal["volume", "slice", "class"]
Learner = Literal["ridge", "logistic"]
ALL = "all"
"""The one group of a router that gives a whole volume or slice to one network."""

_NEWTON = 50
_SETTLED = 1e-10
_LEAST_SD = 1e-9
_Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How each network did on a case that trained none of them.

    Attributes:
        subject: Whose case.
        features: Label-free, by name: see :func:`sagittal.segmentation.choice_features.case_features`.
        dice: By network and class.
        trained_on: The subjects that trained each network, of the fold that this case was held out of.

    Raises:
        InputError: The subject trained one of the networks, fewer than two networks, other classes for one
            than for another, or values that are not finite.
    """

    subject: str
    features: Mapping[str, float]
    dice: Mapping[str, Mapping[str, float]]
    trained_on: Mapping[str, frozenset[str]]

    def __post_init__(self) -> None:
        leaks = [name for name, subjects in self.trained_on.items() if self.subject in subjects]
        if leaks:
            raise InputError(
                "the case trained a network that it is to judge",
                source=self.subject,
                value=", ".join(leaks),
                expected="networks of a fold that held this subject out",
            )
        classes = [tuple(each) for each in self.dice.values()]
        whole = set(self.dice) == set(self.trained_on) and len(self.dice) >= 2 and len(set(classes)) == 1
        numbers = [
            *self.features.values(),
            *(value for each in self.dice.values() for value in each.values()),
        ]
        if not whole or not classes[0] or not self.features or not np.isfinite(numbers).all():
            raise InputError(
                "the case does not tell how networks did",
                source=self.subject,
                value=f"{len(self.features)} features, Dice of {', '.join(self.dice)}",
                expected="finite features; for two networks or more the same classes and their subjects",
            )


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Which network takes a case, or one class of it.

    Attributes:
        network: The chosen one.
        advantage: How much better than the next it is expected to be: in Dice for "ridge", in log-odds for
            "logistic".
        reasons: Every feature and what it added to the advantage, the weightiest first; with ``constant``
            they sum to the advantage.
        constant: What the networks' general skill added.
    """

    network: str
    advantage: float
    reasons: tuple[tuple[str, float], ...]
    constant: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Router:
    """A fitted judge.

    Attributes:
        networks: Whom it chooses from.
        groups: What is given to one network at a time: :data:`ALL`, or the classes.
        features: Names, in order.
        centre: Of each feature, over the cases it was fitted on.
        scale: Standard deviation of each feature there.
        weights: Shape (groups, networks, features), on scaled features.
        constants: Shape (groups, networks).
        subjects: Whose cases it was fitted on.
    """

    networks: tuple[str, ...]
    groups: tuple[str, ...]
    features: tuple[str, ...]
    centre: _Array
    scale: _Array
    weights: _Array
    constants: _Array
    subjects: frozenset[str]

    def decide(self, features: Mapping[str, float]) -> dict[str, Decision]:
        """Return who takes each group of a case, and why. Of equals, the first network.

        Raises:
            InputError: A feature is missing or not finite.
        """
        missing = [name for name in self.features if not np.isfinite(features.get(name, np.nan))]
        if missing:
            raise InputError("features are missing", value=", ".join(missing), expected="a number for each")
        scaled = (np.array([features[name] for name in self.features]) - self.centre) / self.scale
        found = {}
        for group, weights, constants in zip(self.groups, self.weights, self.constants, strict=True):
            merits = (weights * scaled).sum(axis=1) + constants
            first, second = np.argsort(-merits, kind="stable")[:2]
            parts = (weights[first] - weights[second]) * scaled
            ranked = np.argsort(-np.abs(parts), kind="stable")
            found[group] = Decision(
                network=self.networks[first],
                advantage=float(merits[first] - merits[second]),
                reasons=tuple((self.features[n], float(parts[n])) for n in ranked),
                constant=float(constants[first] - constants[second]),
            )
        return found


def fit_router(
    cases: Sequence[HeldOut],
    *,
    granularity: Granularity = "volume",
    learner: Learner = "ridge",
    strength: float = 1.0,
) -> Router:
    """Fit a judge on held-out cases.

    Args:
        cases: Volumes or slices; each counts as one over the cases of its subject.
        granularity: "volume" and "slice" give the whole case to one network, by its mean Dice; a case is then
            a volume or a slice. "class" judges each class by itself.
        learner: "ridge": a ridge regression of each network's Dice less the mean of all networks'.
            "logistic", for two networks: which is better, each case weighed by the size of the difference.
        strength: Of the penalty on weights of scaled features, over the sum of the cases' weights; the
            constants have none.

    Raises:
        InputError: Fewer than two subjects, cases of other networks, classes or features, a strength below or
            equal to 0, an unknown setting, or "logistic" for more than two networks.
    """
    _check(cases, granularity, learner, strength)
    names, networks = tuple(cases[0].features), tuple(cases[0].dice)
    classes = tuple(cases[0].dice[networks[0]])
    table = np.array([[case.features[name] for name in names] for case in cases], dtype=np.float64)
    dice = np.array(
        [[[case.dice[n][c] for n in networks] for c in classes] for case in cases], dtype=np.float64
    )
    groups = classes if granularity == "class" else (ALL,)
    if granularity != "class":
        dice = dice.mean(axis=1, keepdims=True)
    counts = {
        subject: sum(case.subject == subject for case in cases) for subject in {c.subject for c in cases}
    }
    weight = np.array([1 / counts[case.subject] for case in cases])
    centre = (weight[:, None] * table).sum(axis=0) / weight.sum()
    spread = np.sqrt((weight[:, None] * (table - centre) ** 2).sum(axis=0) / weight.sum())
    scale = np.where(spread > _LEAST_SD, spread, 1.0)
    scaled = (table - centre) / scale
    shape = len(groups), len(networks)
    weights, constants = np.zeros((*shape, len(names))), np.zeros(shape)
    for group in range(len(groups)):
        if learner == "ridge":
            merit = dice[:, group] - dice[:, group].mean(axis=1, keepdims=True)
            for network in range(len(networks)):
                weights[group, network], constants[group, network] = _ridge(
                    scaled, merit[:, network], weight, strength
                )
        else:
            gap = dice[:, group, 0] - dice[:, group, 1]
            found, constant = _logistic(scaled, gap, weight, strength)
            weights[group] = found / 2, -found / 2
            constants[group] = constant / 2, -constant / 2
    return Router(
        networks=networks,
        groups=groups,
        features=names,
        centre=centre,
        scale=scale,
        weights=weights,
        constants=constants,
        subjects=frozenset(counts),
    )


def routed_probabilities(
    decisions: Mapping[str, Decision], told: Mapping[str, NDArray[np.floating]], classes: Sequence[str]
) -> NDArray[np.float64]:
    """Return the probabilities that the chosen networks give, shape (*spatial, classes).

    Where each class has a network of its own, their planes are put together and made to sum to what the
    networks' sums are on average.

    Args:
        decisions: Of :meth:`Router.decide`.
        told: The probabilities of each network, (*spatial, classes).
        classes: Names of the planes, in order.

    Raises:
        InputError: A chosen network has told nothing, or a class has no decision.
    """
    chosen = [decisions.get(name, decisions.get(ALL)) for name in classes]
    missing = [
        name for name, one in zip(classes, chosen, strict=True) if one is None or one.network not in told
    ]
    if missing:
        raise InputError(
            "nobody speaks for a class", value=", ".join(missing), expected="a decision and its network"
        )
    takers = [one.network for one in chosen if one is not None]
    found = np.stack([told[name][..., n].astype(np.float64) for n, name in enumerate(takers)], axis=-1)
    if len(set(takers)) == 1:
        return found
    wanted = np.mean([told[name].sum(axis=-1, dtype=np.float64) for name in sorted(set(takers))], axis=0)
    total = found.sum(axis=-1)
    shared: NDArray[np.float64] = (
        found * np.where(total > 0, wanted / np.where(total > 0, total, 1), 0)[..., None]
    )
    return shared


@dataclass(frozen=True, kw_only=True)
class RoutingScores:
    """Mean scores of ways to choose, over the same cases.

    Attributes:
        singles: Of each network by itself.
        best_single: The highest of these.
        random: Of a choice by lot: the mean of the networks.
        router: Of what the judge chose.
        oracle: Of the best network for each case and class, which needs the truth.
    """

    singles: tuple[float, ...]
    best_single: float
    random: float
    router: float
    oracle: float


def routing_scores(scores: NDArray[np.floating], chosen: NDArray[np.integer]) -> RoutingScores:
    """Compare a judge's choices with each network, with chance, and with the best that there is.

    Args:
        scores: Of each network, shape (cases, networks) or (cases, classes, networks), such as Dice.
        chosen: The number of the chosen network, of the shape of ``scores`` without its last axis.

    Raises:
        InputError: Shapes that do not fit, no case, or a number that is no network's.
    """
    if scores.ndim < 2 or not scores.size or chosen.shape != scores.shape[:-1]:
        raise InputError(
            "choices do not fit the scores",
            value=f"{chosen.shape} and {scores.shape}",
            expected="the same cases",
        )
    if chosen.min() < 0 or chosen.max() >= scores.shape[-1]:
        raise InputError(
            "there is no such network", value=int(chosen.max()), expected=f"0 to {scores.shape[-1] - 1}"
        )
    values = scores.astype(np.float64)
    singles = tuple(float(v) for v in values.reshape(-1, values.shape[-1]).mean(axis=0))
    return RoutingScores(
        singles=singles,
        best_single=max(singles),
        random=float(values.mean()),
        router=float(np.take_along_axis(values, chosen[..., None], axis=-1).mean()),
        oracle=float(values.max(axis=-1).mean()),
    )


def _check(cases: Sequence[HeldOut], granularity: str, learner: str, strength: float) -> None:
    subjects = {case.subject for case in cases}
    if len(subjects) < 2:
        raise InputError("too few subjects to learn a choice from", value=len(subjects), expected="2 or more")
    kinds = {
        (tuple(case.features), tuple((name, tuple(each)) for name, each in case.dice.items()))
        for case in cases
    }
    if len(kinds) > 1:
        raise InputError(
            "cases differ in features, networks or classes", value=f"{len(kinds)} kinds", expected="one"
        )
    if (
        granularity not in ("volume", "slice", "class")
        or learner not in ("ridge", "logistic")
        or not strength > 0
    ):
        raise InputError(
            "not a way to learn a choice",
            value=f"{granularity}, {learner}, {strength}",
            expected="volume, slice or class; ridge or logistic; above 0",
        )
    if learner == "logistic" and len(cases[0].dice) != 2:
        raise InputError(
            "logistic chooses between two networks", value=len(cases[0].dice), expected="2, or ridge"
        )


def _ridge(scaled: _Array, target: _Array, weight: _Array, strength: float) -> tuple[_Array, float]:
    """Return weights and constant; features have weighted mean 0."""
    mean = float((weight * target).sum() / weight.sum())
    share = weight / weight.sum()
    square = (scaled[:, :, None] * scaled[:, None] * share[:, None, None]).sum(axis=0)
    side = (scaled * (share * (target - mean))[:, None]).sum(axis=0)
    found: _Array = np.linalg.solve(square + strength * np.eye(len(side)), side)
    return found, mean


def _logistic(scaled: _Array, gap: _Array, weight: _Array, strength: float) -> tuple[_Array, float]:
    """Return weights and constant of the log-odds that the first network is better, by Newton's steps."""
    share = weight * np.abs(gap)
    if not share.sum() > 0:
        return np.zeros(scaled.shape[1]), 0.0
    share = share / share.sum()
    better = (gap > 0).astype(np.float64)
    rows = np.concatenate([scaled, np.ones((len(scaled), 1))], axis=1)
    penalty = np.append(
        np.full(scaled.shape[1], strength), 1e-3
    )  # a constant must end even if one always wins

    def cost(theta: _Array) -> float:
        odds = (rows * theta).sum(axis=1)
        return float(
            (share * (np.logaddexp(0, odds) - better * odds)).sum() + 0.5 * (penalty * theta**2).sum()
        )

    theta = np.zeros(rows.shape[1])
    for _ in range(_NEWTON):
        chance = 0.5 * (1 + np.tanh((rows * theta).sum(axis=1) / 2))
        slope = (rows * (share * (chance - better))[:, None]).sum(axis=0) + penalty * theta
        bend = (rows[:, :, None] * rows[:, None] * (share * chance * (1 - chance))[:, None, None]).sum(axis=0)
        step = np.linalg.solve(bend + np.diag(penalty), slope)
        length = 1.0
        while cost(theta - length * step) > cost(theta) and length > 1e-6:
            length /= 2
        theta = theta - length * step
        if float(np.abs(length * step).max()) < _SETTLED:
            break
    return theta[:-1], float(theta[-1])
