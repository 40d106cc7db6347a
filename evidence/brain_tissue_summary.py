"""What the rows of brain_tissue.py say.

A difference between two arms is taken subject by subject and seed by seed. Its interval is the 95 % bootstrap
interval of the mean, seeds and subjects both drawn anew: the same subjects judge all seeds, and to draw them
for each seed apart would make it too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from sagittal.segmentation import fit_volumes

Row = dict[str, Any]
Array = NDArray[np.float64]

TISSUES = "csf", "gm", "wm"
DRAWS = 4000
LEVEL = 0.95
SPLITS = 100
LESS = 0.005
"""Suggestive annotation is to reach the Dice of all labels less this."""
LOT, SUGGESTIVE = "campaign random", "campaign weighted-cover"
LOT_ASIDE, BY_MINUTES = f"{LOT}, unlike aside", f"{SUGGESTIVE}, by minutes"
WAYS = (
    LOT,
    LOT_ASIDE,
    SUGGESTIVE,
    BY_MINUTES,
    "campaign uncertainty+cover",
    "campaign uncertainty+cover, nothing aside",
    "campaign cover",
    "campaign core-set",
    "campaign entropy",
)
"""A choice by lot from all, the same without what looks unlike the others, the product's default, and the
rest."""
ROUTER = "ridge, slice"
"""The router's defaults; the other three ways are told beside it and not chosen from."""
WORK_SAVED = (
    "1 - W / N: W sums, over the annotated of N candidates, the effort of correcting the proposal; drawing one "
    "from nothing is an effort of 1, and so is each of the start. voxels: voxels of the tissue to change, of "
    "the tissue's; edge: outline of the tissue to draw again, of its outline. 1 - total = (1 - by_selection) "
    "* (1 - by_correction): the first factor is the share that nobody touched."
)

GEOMETRIC = {
    "jacobian over t1": ("jacobian", "12 subjects"),
    "jacobian over noise": ("jacobian", "noise 1"),
    "curl over t1": ("curl", "12 subjects"),
    "curl over noise": ("curl", "noise 1"),
    "both over t1": ("jacobian curl", "12 subjects"),
    "both over noise": ("jacobian curl", "noise 2"),
    "both over atlas": ("jacobian curl", "atlas 2"),
    "noise over t1": ("noise 2", "12 subjects"),
    "atlas over t1": ("atlas 2", "12 subjects"),
    "atlas over noise": ("atlas 2", "noise 2"),
    "true map over t1": ("true jacobian curl", "12 subjects"),
    "true map over noise": ("true jacobian curl", "noise 2"),
    "images over t1": ("images", "12 subjects"),
    "images and both over images": ("images jacobian curl", "images"),
    "images and both over noise": ("images jacobian curl", "images noise 2"),
}
RETRIEVAL = {
    "retrieved over images": ("retrieved", "images"),
    "retrieved over noise": ("retrieved", "images noise 3"),
    "retrieved over lot": ("retrieved", "retrieved by lot"),
    "aligned over images": ("retrieved aligned", "images"),
    "aligned over noise": ("retrieved aligned", "images noise 3"),
    "aligned over atlas": ("retrieved aligned", "images atlas 3"),
    "aligned by three over images": ("retrieved aligned by three", "images"),
    "noise over images": ("images noise 3", "images"),
    "atlas over images": ("images atlas 3", "images"),
    "own labels over images": ("own labels", "images"),
    "self found over images": ("self found", "images"),
}
"""Arm and what it is compared with."""


def summary(rows: Sequence[Row]) -> Row:
    """Return what the issue asks for; what has no rows is left out."""
    of = by_arm(rows)
    made: dict[str, Callable[[], Row | None]] = {
        "dice_5_subjects": lambda: overlap(of, "5 subjects"),
        "dice_12_subjects": lambda: overlap(of, "12 subjects"),
        "dice_all_subjects": lambda: overlap(of, "all subjects"),
        "dice_untrained": lambda: overlap(of, "untrained"),
        "dice_untrained_chosen": lambda: overlap(of, "untrained chosen"),
        "suggestive_share_for_full_dice": lambda: shares(of),
        "suggestive_gain": lambda: suggestive_gains(of),
        "effort_rank_correlation": lambda: effort(of.get(SUGGESTIVE, {})),
        "work_saved_by_tissue": lambda: work_saved(of),
        "volume_interval_coverage": lambda: coverage(of),
        "ece": lambda: calibration(of),
        "router_gain": lambda: router(of.get("router", {})),
        "geometric_gain": lambda: gains(of, GEOMETRIC),
        "retrieval_gain": lambda: gains(of, RETRIEVAL) | retrieved(of),
        "colin27": lambda: colin(of.get("colin27", {})),
    }
    found = {name: make() for name, make in made.items()}
    return {name: value for name, value in found.items() if value}


def by_arm(rows: Sequence[Row]) -> dict[str, dict[int, Row]]:
    """Return the rows of each arm by seed."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        found.setdefault(row["arm"], {})[row["seed"]] = row
    return found


def grid(dices: Sequence[Mapping[str, Sequence[float]]]) -> Array:
    """Return the Dice of each seed, subject and tissue, from one record a seed."""
    return np.array([[each[tissue] for tissue in TISSUES] for each in dices]).transpose(0, 2, 1)


def drawn(values: Array, draws: int = DRAWS) -> Array:
    """Return the mean over seeds (first axis) and subjects (second) of each bootstrap draw of both."""
    random = np.random.default_rng(0)
    seeds, subjects = (
        random.multinomial(count, np.full(count, 1 / count), size=draws) / count for count in values.shape[:2]
    )
    by_seed = np.tensordot(seeds, values, 1)
    return np.einsum("ds...,ds->d...", by_seed, subjects)


def interval(values: Array) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over seeds and subjects, both drawn anew."""
    low, high = np.quantile(drawn(values), [0.025, 0.975])
    return float(low), float(high)


def with_interval(values: Array) -> Row:
    """Return the mean over seeds and subjects, its interval, and how many there were."""
    low, high = interval(values)
    return {
        "mean": float(values.mean()),
        "low": low,
        "high": high,
        "seeds": values.shape[0],
        "subjects": values.shape[1],
    }


def overlap(of: Mapping[str, Mapping[int, Row]], arm: str) -> Row | None:
    """Return an arm's Dice, of each tissue too, and how far it is above the untrained methods'."""
    if arm not in of:
        return None
    values = grid([row["dice"] for row in of[arm].values()])
    found = with_interval(values.mean(axis=2))
    found |= {tissue: float(values[..., n].mean()) for n, tissue in enumerate(TISSUES)}
    for other in ("untrained", "untrained chosen"):
        if arm not in (other, "untrained") and other in of:
            found[f"over {other}"] = gain(of, arm, other)
    return found


def gain(of: Mapping[str, Mapping[int, Row]], arm: str, control: str) -> Row | None:
    """Return an arm's Dice less a control's, over the seeds that both have."""
    seeds = sorted(set(of.get(arm, {})) & set(of.get(control, {})))
    if not seeds:
        return None
    first, second = (grid([of[name][seed]["dice"] for seed in seeds]) for name in (arm, control))
    return difference(first, second)


def difference(first: Array, second: Array) -> Row:
    """Return the mean difference of Dice by seed, subject and tissue, with its interval; and by tissue."""
    apart = first - second
    found = with_interval(apart.mean(axis=2))
    return found | {tissue: float(apart[..., n].mean()) for n, tissue in enumerate(TISSUES)}


def gains(of: Mapping[str, Mapping[int, Row]], pairs: Mapping[str, tuple[str, str]]) -> Row:
    found = {name: gain(of, *pair) for name, pair in pairs.items()}
    return {name: value for name, value in found.items() if value is not None}


def retrieved(of: Mapping[str, Mapping[int, Row]]) -> Row:
    """Return how well the retrieved labels themselves agree with the truth, in training and with judges."""
    found = {}
    for arm in ("retrieved", "retrieved aligned", "retrieved aligned by three", "retrieved by lot"):
        if arm in of:
            found[arm] = {
                name: float(np.mean([grid([row[f"retrieved_dice_{name}"]]) for row in of[arm].values()]))
                for name in ("training", "judge")
            }
    return {"dice_of_retrieved_labels": found} if found else {}


def curves(of: Mapping[str, Mapping[int, Row]], way: str, seeds: Sequence[int]) -> Array:
    """Return a campaign's Dice, shape (seeds, subjects, rounds), the start first."""
    each = []
    for seed in seeds:
        records = [of["start"][seed]["dice"], *(one["dice"] for one in of[way][seed]["rounds"])]
        each.append(np.stack([grid([record])[0].mean(axis=1) for record in records], axis=-1))
    return np.stack(each)


def shared(of: Mapping[str, Mapping[int, Row]], *arms: str) -> list[int]:
    """Return the seeds that all of these arms have."""
    return sorted(set.intersection(*(set(of.get(arm, {})) for arm in arms)))


def shares(of: Mapping[str, Mapping[int, Row]]) -> Row | None:
    """Return the share of labels that gives the Dice of all less LESS, by way of choosing."""
    if not shared(of, "start", "whole pool", SUGGESTIVE, LOT):
        return None
    found: Row = {"less": LESS, "pool": next(iter(of["whole pool"].values()))["pool"]}
    for way in WAYS:
        seeds = shared(of, "start", "whole pool", way)
        if not seeds:
            continue
        every = grid([of["whole pool"][seed]["dice"] for seed in seeds]).mean(axis=2)
        values = curves(of, way, seeds)
        counts = np.mean(
            [
                [
                    of[way][seed]["effort"][0]["labelled"],
                    *(one["labelled"] for one in of[way][seed]["rounds"]),
                ]
                for seed in seeds
            ],
            axis=0,
        )
        both = np.concatenate([values, every[..., None]], axis=2)
        told = [enough(means[:-1], means[-1] - LESS, counts, found["pool"]) for means in drawn(both)]
        low, high = (float(end) for end in np.quantile(told, [0.025, 0.975]))
        means = values.mean(axis=(0, 1))
        reached = enough(means, float(every.mean()) - LESS, counts, found["pool"])
        found[way] = {
            "seeds": len(seeds),
            "share": reached if reached < 1 else None,
            "low": low,
            "high": high,
            "dice": means.tolist(),
            "dice_all": float(every.mean()),
            "labelled": counts.tolist(),
        }
    return found


def enough(curve: Array, wanted: float, counts: Array, pool: int) -> float:
    """Return the least share of the pool from which on the Dice is ``wanted`` or more; 1 if none of these
    is."""
    short = np.flatnonzero(curve < wanted)
    first = int(short[-1]) + 1 if len(short) else 0
    return float(counts[first]) / pool if first < len(counts) else 1.0


def suggestive_gains(of: Mapping[str, Mapping[int, Row]]) -> Row | None:
    """Return each way's Dice less that of a choice by lot: at each round, and on average of the rounds.

    Beside it, on average, what the way gains over a choice by lot from which the same is left out that looks
    unlike the others.
    """

    def apart(way: str, other: str) -> Array | None:
        seeds = [] if way == other else shared(of, "start", way, other)
        return (curves(of, way, seeds) - curves(of, other, seeds))[..., 1:] if seeds else None

    found: Row = {}
    for way in WAYS:
        gain, beside = apart(way, LOT), apart(way, LOT_ASIDE)
        if way == BY_MINUTES or gain is None:
            continue
        found[way] = {
            "rounds": [with_interval(gain[..., n]) for n in range(gain.shape[2])],
            "average": with_interval(gain.mean(axis=2)),
        }
        if beside is not None:
            found[way]["over_lot_aside"] = with_interval(beside.mean(axis=2))
    return found or None


def effort(rows: Mapping[int, Row]) -> Row | None:
    """Return how minutes predicted before an annotation rank with the real work of its correction.

    Spearman's correlation over the candidates of a round, averaged over rounds; the interval is over seeds.
    """
    if not rows:
        return None
    told = [row["effort"] for row in rows.values()]

    def average(name: str, *, outliers: bool = True) -> Row:
        each = [[ranked(one, name, outliers=outliers) for one in rounds] for rounds in told]
        found = with_interval(np.nanmean(np.array(each, dtype=np.float64), axis=1)[:, None])
        del found["subjects"]
        return found

    def scale(name: str, place: int) -> float:
        return float(np.median([sum(rounds[place]["real"]) / sum(rounds[place][name]) for rounds in told]))

    return average("predicted") | {
        "without_outliers": average("predicted", outliers=False),
        "by_prior": average("predicted_by_prior"),
        "rounds": [
            float(np.mean([ranked(each[n], "predicted") for each in told])) for n in range(len(told[0]))
        ],
        "real_by_predicted": {
            "first round, prior": scale("predicted_by_prior", 0),
            "last round, prior": scale("predicted_by_prior", -1),
            "last round, logs": scale("predicted", -1),
        },
    }


def ranked(told: Mapping[str, Any], name: str, *, outliers: bool = True) -> float:
    """Return Spearman's correlation of predicted and real minutes of a round's candidates; NaN of too few."""
    some = [outliers or kind != "outlier" for kind in told["kinds"]]
    predicted, real = (np.array(told[key])[some] for key in (name, "real"))
    if len(real) < 3 or np.ptp(predicted) == 0 or np.ptp(real) == 0:
        return float("nan")
    return float(spearmanr(predicted, real).statistic)


def work_saved(of: Mapping[str, Mapping[int, Row]]) -> Row | None:
    """Return the work that is saved when the last round is done, by way, criterion and tissue."""
    if not shared(of, "start", SUGGESTIVE):
        return None
    found: Row = {"definition": WORK_SAVED}
    for way in WAYS:
        seeds = shared(of, "start", way)
        if not seeds:
            continue
        last = [of[way][seed]["rounds"][-1] for seed in seeds]
        each = {}
        for criterion in ("voxels", "edge"):
            each[criterion] = {
                tissue: {
                    name: float(np.mean([one["work_saved"][tissue][criterion][name] for one in last]))
                    for name in ("total", "by_selection", "by_correction")
                }
                | {"least_seed": min(one["work_saved"][tissue][criterion]["total"] for one in last)}
                for tissue in TISSUES
            }
        found[way] = {
            "seeds": len(seeds),
            "labelled": float(np.mean([one["labelled"] for one in last])),
            "minutes": float(np.mean([one["minutes"] for one in last])),
            "dice": float(curves(of, way, seeds)[..., -1].mean()),
            **each,
        }
    return found


def coverage(of: Mapping[str, Mapping[int, Row]]) -> Row | None:
    """Return how often volume intervals hold the truth of those that judge, and how wide they are."""
    found: Row = {}
    for arm in ("5 subjects", "12 subjects", "all subjects"):
        rows = [row["volumes"] for row in of.get(arm, {}).values()]
        if not rows:
            continue
        each: Row = {}
        for kind in ("by_held_out", "by_probability"):
            held, width = [], []
            for row in rows:
                ends = np.array([row[tissue][kind] for tissue in TISSUES])
                truth = np.array([row[tissue]["truth"] for tissue in TISSUES])
                held.append(((ends[..., 0] <= truth) & (truth <= ends[..., 1])).T)
                width.append((np.ptp(ends, axis=2) / truth).T)
            inside, wide = np.array(held, dtype=np.float64), np.array(width)
            each[kind] = with_interval(inside.mean(axis=2)) | {
                tissue: float(inside[..., n].mean()) for n, tissue in enumerate(TISSUES)
            }
            each[kind]["width"] = {tissue: float(np.median(wide[..., n])) for n, tissue in enumerate(TISSUES)}
        found[arm] = each | {"over_splits": split_coverage(rows)}
    return found or None


def split_coverage(rows: Sequence[Row]) -> Row:
    """Return how often the interval holds the truth when those that calibrate are drawn anew, by tissue.

    As many calibrate as did, of all subjects that trained nothing; the others judge. One set of twenty may
    lie well or badly by chance; this is what the method does on average over such sets. The temperatures are
    those of the set that was fixed beforehand.
    """
    random = np.random.default_rng(0)
    held: list[Array] = []
    for row in rows:
        columns = [row[tissue] for tissue in TISSUES]
        sides = [
            np.array([[*each["held_out"][name], *each[name]] for each in columns]).T
            for name in ("estimate", "truth")
        ]
        count = len(columns[0]["held_out"]["truth"])
        for _ in range(SPLITS):
            order = random.permutation(len(sides[0]))
            some, others = order[:count], order[count:]
            scaling = fit_volumes(sides[0][some], sides[1][some])
            ends = np.array(scaling.intervals(np.ones(len(TISSUES)), level=LEVEL))  # of an estimate of 1
            ratios = sides[1][others] / sides[0][others]
            held.append(((ends[:, 0] <= ratios) & (ratios <= ends[:, 1])).mean(axis=0))
    means = np.mean(held, axis=0)
    return {"mean": float(means.mean())} | dict(zip(TISSUES, means.tolist(), strict=True))


def calibration(of: Mapping[str, Mapping[int, Row]]) -> Row | None:
    """Return the calibration errors before and after temperatures, and the largest of any seed."""
    found: Row = {}
    for arm in ("5 subjects", "12 subjects", "all subjects"):
        rows = list(of.get(arm, {}).values())
        if rows:
            found[arm] = {
                when: {
                    kind: float(np.mean([row[f"ece_{when}"][kind] for row in rows]))
                    for kind in rows[0]["ece_before"]
                }
                | {"largest": max(row[f"ece_{when}"]["equal_width"] for row in rows)}
                for when in ("before", "after")
            }
    return found or None


def router(rows: Mapping[int, Row]) -> Row | None:
    """Return what a router gives over the best single network, the average, a choice by lot; and the oracle.

    The best single network is the one that did better on those that judge, seed by seed: nobody knows it
    beforehand. The oracle takes the better one of each case.
    """
    if not rows:
        return None
    singles = np.stack(
        [grid([row["singles"][half]["dice"] for row in rows.values()]) for half in ("quiet", "noisy")]
    )
    means = singles.mean(axis=3)  # networks, seeds, subjects
    number = means.mean(axis=2).argmax(axis=0)
    best = singles[number, np.arange(len(number))]
    takes = means.argmax(axis=0)
    oracle = np.take_along_axis(singles, takes[None, ..., None], axis=0)[0]
    average = grid([row["average"]["dice"] for row in rows.values()])
    found: Row = {
        "single": {half: float(singles[n].mean()) for n, half in enumerate(("quiet", "noisy"))},
        "best_single": float(best.mean()),
        "average": float(average.mean()),
        "by_lot": float(singles.mean()),
        "oracle": float(oracle.mean()),
        "average_over_best_single": difference(average, best),
        "oracle_over_best_single": difference(oracle, best),
        "primary": ROUTER,
    }
    for way in next(iter(rows.values()))["routers"]:
        told = grid([row["routers"][way]["dice"] for row in rows.values()])
        chosen = [row["routers"][way]["chosen"] for row in rows.values()]
        found[way] = {
            "dice": float(told.mean()),
            "over_best_single": difference(told, best),
            "over_average": difference(told, average),
            "over_lot": difference(told, singles.mean(axis=0)),
            "less_than_oracle": difference(oracle, told),
            "to_quiet": float(sum(one["quiet"] for one in chosen) / sum(sum(one.values()) for one in chosen)),
        }
    return found


def colin(rows: Mapping[int, Row]) -> Row | None:
    """Return the Dice with the two proxies on Colin27: of the networks, over seeds, and of the Markov
    field."""
    if not rows:
        return None
    found: Row = {"slices": len(next(iter(rows.values()))["slices"]), "seeds": len(rows)}
    for name in ("network", "untrained"):
        found[name] = {
            key: float(np.mean([[one[name][key] for one in row["slices"]] for row in rows.values()]))
            for key in ("gm_regions", *TISSUES)
        }
    return found
