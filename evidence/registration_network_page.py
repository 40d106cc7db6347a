"""Make docs/registration-network.md from registration-network.md.in and the JSON of registration_network.py.

A part that has not been measured is said to be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from pages import MISSING, filled, measured, table

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "registration-network.md"
RESULT = HERE / "results" / "registration_network.json"
GAP, SHARE = 0.01, 1 / 50
"""What is wanted: Dice within so much of the optimiser's, at such a share of its time."""
STAGE, CONTROL, LONGER = "second, volume change and curl", "second, zeros", "first, twice as long"
NAMES = {
    "identity": "nothing moved",
    "true warp": "the true warp",
    "optimiser": "`register`, the optimiser",
    "optimiser, refinement alone": "the optimiser's refinement, from nothing",
    "first": "network, first stage",
    "first, refined": "first stage, then the optimiser's refinement",
    "first, few subjects": "first stage, trained on few subjects",
    LONGER: "first stage, trained twice as long",
    "first, five times as long": "first stage, trained five times as long",
    STAGE: "second stage, with log Jacobian determinant and curl",
    CONTROL: "second stage, with zeros in their place",
    "first, the pass alone": "nothing but the way through the network",
    "first, trained on the template": "network that saw only the template as fixed",
}

Row = dict[str, Any]


def page(path: Path = RESULT) -> str:
    empty: Row = {"facts": {}, "rows": []}
    kept = measured(path, empty)
    made: dict[str, Callable[[Row], str]] = {
        "cohort": cohort,
        "targets": targets,
        "slices": lambda kept: methods(kept, "slices"),
        "stage": stage,
        "times": times,
        "pairs": lambda kept: methods(kept, "pairs"),
        "volumes": lambda kept: methods(kept, "volumes"),
        "choice": lambda kept: methods(kept, "choice"),
        "choice-steps": lambda kept: str(kept["facts"].get("choice_steps", "no")),
    }
    return filled(HERE / "registration-network.md.in", {name: make(kept) for name, make in made.items()})


def of(kept: Row, part: str, arm: str) -> list[Row]:
    return [row for row in kept["rows"] if (row["part"], row["arm"]) == (part, arm)]


def grid(rows: Sequence[Row], measure: str = "dice_mean") -> np.ndarray:
    """Return a measure by seed and subject; what has no seed has one row."""
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    return np.array([[row[measure] for row in rows if row["seed"] == seed] for seed in seeds])


def interval(differences: np.ndarray, draws: int = 4000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over seeds and subjects, both drawn anew."""
    random = np.random.default_rng(0)
    seeds, subjects = differences.shape
    means = [
        differences[random.integers(seeds, size=seeds)][:, random.integers(subjects, size=subjects)].mean()
        for _ in range(draws)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def against(kept: Row, part: str, arm: str, other: str) -> np.ndarray | None:
    """Return the differences of Dice, by seed and subject; an arm without seeds is the same for each."""
    one, two = of(kept, part, arm), of(kept, part, other)
    if not one or not two:
        return None
    mine, theirs = grid(one), grid(two)
    seeds = min(len(mine), len(theirs)) if len(theirs) > 1 else len(mine)
    found: np.ndarray = mine[:seeds] - (theirs[:seeds] if len(theirs) > 1 else theirs)
    return found


def signed(differences: np.ndarray | None) -> str:
    if differences is None:
        return "-"
    low, high = interval(differences)
    return f"{differences.mean():+.4f} ({low:+.4f} to {high:+.4f})"


def cohort(kept: Row) -> str:
    facts, rows = kept["facts"], []
    for kind in ("slices", "volumes"):
        if facts and of(kept, kind, "first"):
            number, own = facts["subjects"][kind], facts["settings"][kind]
            rows.append(
                [
                    kind,
                    " x ".join(str(side) for side in facts["grids"][kind] if side > 1),
                    f"{facts['spacing_mm'][kind]:g} mm",
                    number["train"],
                    number["judge"],
                    own["steps"],
                    own["width"],
                    f"{own['rate']:g}",
                    f"{own['regularity']:g}",
                ]
            )
    columns = ["data", "voxels", "width of one", "subjects of training", "that judge", "steps"]
    return table([*columns, "channels", "rate", "regularity"], rows)


def methods(kept: Row, part: str) -> str:
    rows = []
    for arm in dict.fromkeys(row["arm"] for row in kept["rows"] if row["part"] == part):
        mine = of(kept, part, arm)
        if arm == "first, the pass alone":
            continue
        seeds = grid(mine).mean(axis=1)
        spread = f" ({seeds.min():.3f} to {seeds.max():.3f})" if len(seeds) > 1 else ""
        rows.append(
            [
                NAMES.get(arm, arm),
                len(seeds) if mine[0]["seed"] is not None else "-",
                f"{seeds.mean():.3f}{spread}",
                *(f"{np.mean([row['dice'][tissue] for row in mine]):.3f}" for tissue in mine[0]["dice"]),
                "-" if arm == "optimiser" else signed(against(kept, part, arm, "optimiser")),
                sum(row["folds"] for row in mine),
                f"{np.mean([row['sd_log_jacobian'] for row in mine]):.3f}",
            ]
        )
    columns = ["method", "trainings", "mean Dice (of each training)", "fluid", "grey matter", "white matter"]
    return table([*columns, "Dice, less the optimiser's", "voxels that fold", "SD of log Jacobian"], rows)


def stage(kept: Row) -> str:
    rows = []
    for arm, other in (
        (STAGE, CONTROL),
        (STAGE, LONGER),
        (STAGE, "first"),
        (CONTROL, "first"),
        (LONGER, "first"),
    ):
        found = against(kept, "slices", arm, other)
        if found is not None:
            low, high = interval(found)
            said = "gains" if low > 0 else "loses" if high < 0 else "no difference seen"
            each = ", ".join(f"{value:+.4f}" for value in found.mean(axis=1))
            rows.append([NAMES[arm], NAMES[other], signed(found), each, said])
    return table(["network", "against", "difference of Dice", "of each seed", "what this says"], rows)


def seconds(kept: Row, part: str, arm: str) -> float | None:
    values = [row["cpu_seconds"] for row in of(kept, part, arm)]
    return median(values) if values else None


def times(kept: Row) -> str:
    rows = []
    for part in ("slices", "volumes"):
        whole = seconds(kept, part, "optimiser")
        for arm in ("optimiser", "first", STAGE, "first, the pass alone", "first, refined"):
            own = seconds(kept, part, arm)
            if own is not None and whole is not None:
                rows.append([part, NAMES[arm], f"{1000 * own:.1f} ms", f"1/{whole / own:.1f}"])
    return table(["data", "what", "median CPU time of a pair", "of the optimiser's"], rows)


def targets(kept: Row) -> str:
    rows = []
    for part in ("slices", "volumes"):
        for arm in ("first", STAGE, LONGER, "first, five times as long", "first, refined"):
            apart = against(kept, part, arm, "optimiser")
            own, whole = seconds(kept, part, arm), seconds(kept, part, "optimiser")
            if apart is None or own is None or whole is None:
                continue
            near, quick = float(apart.mean()) >= -GAP, own <= SHARE * whole
            share = f"1/{whole / own:.1f}"
            rows.append(
                [part, NAMES[arm], signed(apart), "yes" if near else "no", share, "yes" if quick else "no"]
            )
    columns = ["data", "network", "Dice, less the optimiser's", f"within {GAP:g}", "share of its CPU time"]
    return table([*columns, "at most 1/50"], rows) if rows else MISSING
