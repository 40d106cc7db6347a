"""What the networks in space reach, of what is asked of brain tissue from few labels.

``summary`` is made from the JSON of tissue_network.py and tissue_effort.py; brain_tissue.py keeps it beside what the
slices reach. What was not measured is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from brain_tissue_summary import DRAWS, with_interval
from pages import measured
from scipy.stats import spearmanr

RESULTS = Path(__file__).parent / "results"
NETWORKS, EFFORT = RESULTS / "tissue_network.json", RESULTS / "tissue_effort.json"
FLOOR = "hidden Markov field, T1"
SIZES = {"dice_5_subjects": "5 subjects, ", "dice_all_subjects": "24 subjects, "}

Row = dict[str, Any]


def rows_of(path: Path) -> list[Row]:
    found: list[Row] = measured(path, {"rows": []})["rows"]
    return found


def summary(networks: Path = NETWORKS, effort_path: Path = EFFORT) -> Row:
    """Return the figures by the names that the summary of the slices gives them."""
    rows = rows_of(networks)
    learned = [row for row in rows if row["arm"] != FLOOR]
    found: Row = {}
    for name, start in SIZES.items():
        arms = sorted({row["arm"] for row in learned if row["arm"].startswith(start)})
        if arms:
            found[name] = {arm.removeprefix(start): overlap(learned, arm) for arm in arms}
    if learned:
        held = [each for row in learned for each in row["held"]]
        found["volume_interval_coverage"] = {"mean": float(np.mean(held)), "intervals": len(held)}
        arms = sorted({row["arm"] for row in learned})
        means = [np.mean([row["ece"] for row in learned if row["arm"] == arm]) for arm in arms]
        found["ece"] = {"largest": float(max(means))}
    told = rows_of(effort_path)
    return found | ({"effort_rank_correlation": effort(told)} if told else {})


def overlap(rows: Sequence[Row], arm: str) -> Row:
    """Return an arm's mean Dice with its interval."""
    mine = [row for row in rows if row["arm"] == arm]
    return with_interval(by_seed(mine, lambda row: row["dice_mean"]))


def by_seed(rows: Sequence[Row], value: Callable[[Row], float]) -> Any:
    """Return a value of each row, shape (seeds, subjects)."""
    seeds = sorted({row["seed"] for row in rows})
    return np.array([[value(row) for row in rows if row["seed"] == seed] for seed in seeds], dtype=np.float64)


def effort(rows: Sequence[Row]) -> Row:
    """Return how well the work on whole heads was foreseen.

    Ranks are Spearman's correlations over the heads, averaged over seeds. Minutes after logs are those of the heads
    that were not logged; *error* is the median of how far they are from the real ones, as a share of these.
    """
    real = by_seed(rows, lambda row: row["real"]["minutes"])
    told = by_seed(rows, lambda row: row["expected"]["minutes"])
    low, high = rank_interval(told, real)
    rest = [row for row in rows if not row["logged"]]

    def error(name: str) -> float:
        return float(np.median([abs(row[name]["minutes"] / row["real"]["minutes"] - 1) for row in rest]))

    return {
        "mean": rank(told, real),
        "low": low,
        "high": high,
        "seeds": real.shape[0],
        "subjects": real.shape[1],
        "by_seed": [rank(one[None], other[None]) for one, other in zip(told, real, strict=True)],
        "of": {
            name: rank(
                by_seed(rows, lambda row, name=name: row["expected"][name]),
                by_seed(rows, lambda row, name=name: row["real"][name]),
            )
            for name in ("components", "edge_mm", "slices")
        },
        "entropy": rank(by_seed(rows, lambda row: row["entropy"]), real),
        "size": rank(by_seed(rows, lambda row: row["brain_ml"]), real),
        "least_real": float(real.min()),
        "most_real": float(real.max()),
        "real_by_predicted": float(np.median(real.sum(axis=1) / told.sum(axis=1))),
        "error_by_prior": error("expected"),
        "error_after_logs": error("after_logs"),
        "held_after_logs": float(
            np.mean(
                [
                    row["after_logs"]["low"] <= row["real"]["minutes"] <= row["after_logs"]["high"]
                    for row in rest
                ]
            )
        ),
        "level": rest[0]["after_logs"]["level"],
    }


def rank(told: Any, real: Any) -> float:
    return float(np.mean([spearmanr(one, other).statistic for one, other in zip(told, real, strict=True)]))


def rank_interval(told: Any, real: Any, draws: int = DRAWS // 2) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean rank correlation, seeds and subjects both drawn anew."""
    random = np.random.default_rng(0)
    seeds, subjects = told.shape
    found = []
    for _ in range(draws):
        some = random.integers(subjects, size=subjects)
        if len(set(some.tolist())) < 2:
            continue  # one subject has no rank
        each = random.integers(seeds, size=seeds)
        found.append(rank(told[each][:, some], real[each][:, some]))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
