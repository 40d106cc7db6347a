"""Make docs/brain-tissue.md from brain-tissue.md.in and the JSON of brain_tissue.py.

A part that has not been measured is said to be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from brain_tissue_summary import BY_MINUTES, LOT, ROUTER, SUGGESTIVE, TISSUES, WAYS
from pages import MISSING, filled, measured, number, table

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "brain-tissue.md"
RESULT = HERE / "results" / "brain_tissue.json"
HEAD = ["CSF", "grey", "white"]
TRAININGS = {
    "dice_untrained": "hidden Markov field, as it comes",
    "dice_untrained_chosen": "the same, neighbours' weight chosen on the calibrating subjects",
    "dice_5_subjects": "network, 5 labelled",
    "dice_12_subjects": "network, 12 labelled",
    "dice_all_subjects": "network, all labelled",
}
SIZES = ("5 subjects", "12 subjects", "all subjects")

Row = dict[str, Any]


def page(path: Path = RESULT) -> str:
    empty: Row = {"facts": {}, "summary": {}, "lengths": [], "rows": []}
    kept = measured(path, empty)
    of = kept["summary"]
    made: dict[str, Callable[[], str]] = {
        "facts": lambda: facts(kept),
        "targets": lambda: targets(of),
        "trainings": lambda: trainings(of),
        "lengths": lambda: lengths(kept["lengths"]),
        "calibration": lambda: calibration(of.get("ece", {})),
        "coverage": lambda: coverage(of.get("volume_interval_coverage", {})),
        "geometric": lambda: differences(of.get("geometric_gain", {})),
        "retrieval": lambda: differences(of.get("retrieval_gain", {})),
        "retrieved-labels": lambda: retrieved(of.get("retrieval_gain", {})),
        "router": lambda: router(of.get("router_gain", {})),
        "curves": lambda: curves(of.get("suggestive_share_for_full_dice", {})),
        "suggestive": lambda: suggestive(of.get("suggestive_gain", {})),
        "chosen": lambda: chosen(kept["rows"]),
        "effort": lambda: effort(of.get("effort_rank_correlation", {})),
        "work": lambda: work(of.get("work_saved_by_tissue", {})),
        "colin": lambda: colin(of.get("colin27", {})),
    }
    return filled(HERE / "brain-tissue.md.in", {name: make() for name, make in made.items()})


def spread(value: Mapping[str, Any], digits: int = 3, *, sign: bool = False) -> str:
    """Return a mean with its interval."""
    form = f"{'+' if sign else ''}.{digits}f"
    return f"{value['mean']:{form}} ({value['low']:{form}} to {value['high']:{form}})"


def reading(value: Mapping[str, Any]) -> str:
    """Return what an interval of a difference says."""
    if value["low"] > 0:
        return "better"
    return "worse" if value["high"] < 0 else "no difference seen"


def facts(kept: Row) -> str:
    told = kept["facts"]
    if not told:
        return MISSING
    seeds: dict[str, int] = {}
    for row in kept["rows"]:
        seeds[row["arm"]] = seeds.get(row["arm"], 0) + 1
    minutes = sum(row["cpu_seconds"] for row in kept["rows"]) / 60
    return (
        f"VoxResNet in 2-D, width {told['width']}, {told['steps']} steps of {told['batch']} patches of "
        f"{told['patch']} x {told['patch']} voxels of {told['spacing_mm']:.0f} mm; {told['pool']} subjects to train "
        f"on, {told['hold']} to calibrate with, {told['judge']} to judge by. {min(seeds.values())} to "
        f"{max(seeds.values())} seeds an arm; {minutes:.0f} minutes of one core in all."
    )


def targets(of: Row) -> str:
    rows: list[tuple[str, ...]] = []
    space = of.get("in_space", {})
    for name, said, wanted in (
        ("dice_5_subjects", "mean Dice, 5 labelled", "0.88 in space"),
        ("dice_all_subjects", "mean Dice, all labelled", "0.92 in space"),
    ):
        if name in of:
            inside = "; ".join(
                f"{arm}: {number(each['mean'], 3)}" for arm, each in space.get(name, {}).items()
            )
            rows.append((said, wanted, spread(of[name]), inside or "-"))
    if "over untrained chosen" in of.get("dice_5_subjects", {}):
        above = of["dice_5_subjects"]["over untrained chosen"]
        rows.append(("5 labelled over the untrained method at its best", "above 0", spread(above, sign=True)))
    if "suggestive_share_for_full_dice" in of:
        rows.append(
            (
                "share of labels for the Dice of all less 0.005",
                "0.50 or less",
                share(of["suggestive_share_for_full_dice"][SUGGESTIVE]),
            )
        )
        above = of["suggestive_gain"][SUGGESTIVE]["average"]
        rows.append(("suggestive over a choice by lot, Dice", "above 0", spread(above, 4, sign=True)))
    if "effort_rank_correlation" in of:
        inside = spread(space["effort_rank_correlation"], 2) if "effort_rank_correlation" in space else "-"
        rows.append(("effort, rank correlation", "0.80", spread(of["effort_rank_correlation"], 2), inside))
    if "work_saved_by_tissue" in of:
        saved = of["work_saved_by_tissue"]
        for criterion in ("voxels", "edge"):
            least = min(saved[SUGGESTIVE][criterion][tissue]["total"] for tissue in TISSUES)
            rows.append((f"work saved, {criterion}, the least tissue", "40 %", percent(least)))
    if "volume_interval_coverage" in of:
        for size, each in of["volume_interval_coverage"].items():
            told = each["by_held_out"]
            ends = f"{percent(told['low'])} to {percent(told['high'])}"
            rows.append(
                (
                    f"volume intervals hold the truth, {size}",
                    "92 to 98 %",
                    f"{percent(told['mean'])} ({ends})",
                )
            )
    if "volume_interval_coverage" in space:
        inside = f"{100 * space['volume_interval_coverage']['mean']:.1f} %"
        rows.append(("volume intervals hold the truth, all networks", "92 to 98 %", "-", inside))
    if "ece" in of:
        largest = max(each["after"]["largest"] for each in of["ece"].values())
        inside = number(space["ece"]["largest"], 3) if "ece" in space else "-"
        rows.append(("ECE after temperatures, the largest of any seed", "0.020", number(largest, 3), inside))
    if "router_gain" in of:
        told = of["router_gain"][ROUTER]
        rows.append(
            (
                "router over the best single network",
                "0 or more",
                spread(told["over_best_single"], 4, sign=True),
            )
        )
        rows.append(("router below the oracle", "0 or more", spread(told["less_than_oracle"], 4, sign=True)))
    columns = ["target", "wanted", "found in slices", "in space"]
    return table(columns, [(*row, *["-"] * (len(columns) - len(row))) for row in rows])


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def trainings(of: Row) -> str:
    rows = [
        [said, of[name]["seeds"], spread(of[name]), *(number(of[name][tissue], 3) for tissue in TISSUES)]
        for name, said in TRAININGS.items()
        if name in of
    ]
    return table(["", "seeds", "mean Dice", *HEAD], rows)


def lengths(rows: Sequence[Row]) -> str:
    steps = sorted({row["steps"] for row in rows})

    def mean(subjects: int, length: int) -> str:
        some = [row["dice"] for row in rows if (row["subjects"], row["steps"]) == (subjects, length)]
        values = [sum(each.values()) / len(each) for each in some]
        return number(sum(values) / len(values), 4)

    sizes = sorted({row["subjects"] for row in rows})
    return table(
        ["labelled", *(f"{length} steps" for length in steps)],
        ([size, *(mean(size, length) for length in steps)] for size in sizes),
    )


def calibration(of: Row) -> str:
    return table(
        ["labelled", "", "equal width", "equal mass", "class-wise", "debiased", "largest seed"],
        (
            [
                size,
                when,
                *(
                    number(each[when][kind], 4)
                    for kind in ("equal_width", "equal_mass", "class_wise", "debiased")
                ),
                number(each[when]["largest"], 4),
            ]
            for size, each in of.items()
            for when in ("before", "after")
        ),
    )


def coverage(of: Row) -> str:
    names = {"by_held_out": "held-out subjects", "by_probability": "probabilities alone"}
    rows = []
    for size, each in of.items():
        for kind, said in names.items():
            told = each[kind]
            ends = f"{percent(told['low'])} to {percent(told['high'])}"
            cells = [f"{percent(told[tissue])}, {percent(told['width'][tissue])}" for tissue in TISSUES]
            rows.append([size, said, f"{percent(told['mean'])} ({ends})", *cells])
        told = each["over_splits"]
        cells = [percent(told[tissue]) for tissue in TISSUES]
        rows.append([size, "held-out subjects, drawn anew", percent(told["mean"]), *cells])
    return table(["labelled", "interval from", "holds the truth", *HEAD], rows)


def differences(of: Row) -> str:
    rows = [
        [
            name,
            told["seeds"],
            spread(told, 4, sign=True),
            *(f"{told[tissue]:+.4f}" for tissue in TISSUES),
            reading(told),
        ]
        for name, told in of.items()
        if "low" in told
    ]
    return table(["", "seeds", "difference of mean Dice", *HEAD, ""], rows)


def retrieved(of: Row) -> str:
    return table(
        ["retrieved labels, Dice with the truth", "those that train", "those that judge"],
        (
            [arm, number(each["training"], 3), number(each["judge"], 3)]
            for arm, each in of.get("dice_of_retrieved_labels", {}).items()
        ),
    )


def router(of: Row) -> str:
    if not of:
        return MISSING
    rows = [[f"network of the {half} half", number(value, 4), "", ""] for half, value in of["single"].items()]
    rows.append(["the better of the two, seed by seed", number(of["best_single"], 4), "", ""])
    rows.append(["a choice by lot", number(of["by_lot"], 4), "", ""])
    told = of["average_over_best_single"]
    rows.append(["their average", number(of["average"], 4), spread(told, 4, sign=True), ""])
    for way, each in of.items():
        if isinstance(each, dict) and "over_best_single" in each:
            cells = (spread(each[key], 4, sign=True) for key in ("over_best_single", "over_average"))
            rows.append([f"router ({way})", number(each["dice"], 4), *cells])
    told = of["oracle_over_best_single"]
    rows.append(["oracle", number(of["oracle"], 4), spread(told, 4, sign=True), ""])
    return table(["", "mean Dice", "over the better single", "over the average"], rows)


def share(told: Row) -> str:
    """Return the share that was enough; an upper end of 1 means that no budget tried was."""
    found = "none that was tried" if told["share"] is None else number(told["share"])
    return f"{found} ({told['low']:.2f} to {told['high']:.2f})"


def named(way: str) -> str:
    return way.removeprefix("campaign ")


def curves(of: Row) -> str:
    rows = []
    for way in (name for name in WAYS if name in of):
        told = of[way]
        cells = [
            f"{value:.4f}" + (f" ({count:.1f})" if way == BY_MINUTES else "")
            for value, count in zip(told["dice"], told["labelled"], strict=True)
        ]
        rows.append([named(way), told["seeds"], *cells, number(told["dice_all"], 4), share(told)])
    if not rows:
        return MISSING
    counts = [f"{count:.0f}" for count in of[LOT]["labelled"]]
    return table(
        ["labelled", "seeds", *counts, f"all {of['pool']}", "share for that of all less 0.005"], rows
    )


def suggestive(of: Row) -> str:
    rows = [
        [
            named(way),
            told["average"]["seeds"],
            *(spread(each, 4, sign=True) for each in told["rounds"]),
            spread(told["average"], 4, sign=True),
            reading(told["average"]),
            spread(told["over_lot_aside"], 4, sign=True) if "over_lot_aside" in told else "-",
        ]
        for way, told in of.items()
    ]
    rounds = len(rows[0]) - 5 if rows else 0
    columns = ["less a choice by lot", "seeds", *(f"round {n + 1}" for n in range(rounds)), "all rounds", ""]
    columns.append("less the lot with unlike aside")
    return table(columns, rows)


def chosen(rows: Sequence[Row]) -> str:
    """Return what each way had annotated at the end, and the minutes that it took."""
    found = []
    for way in WAYS:
        last = [row["rounds"][-1] for row in rows if row["arm"] == way]
        if last:
            kinds = [
                sum(one["kinds"][kind] for one in last) / len(last)
                for kind in ("own", "near duplicate", "outlier")
            ]
            minutes = sum(one["minutes"] for one in last) / len(last)
            aside = [row["effort"][-1].get("aside", []) for row in rows if row["arm"] == way]
            spoilt = sum(kinds.count("outlier") for kinds in aside) / len(aside)
            other = sum(map(len, aside)) / len(aside) - spoilt
            found.append(
                [named(way), len(last), *(number(value, 1) for value in kinds), number(minutes, 0),
                 f"{spoilt:.1f} + {other:.1f}"]
            )  # fmt: skip
    kinds = ["heads of their own", "near duplicates", "outliers"]
    return table(["way", "seeds", *kinds, "minutes (prior's)", "set aside, outliers + others"], found)


def effort(of: Row) -> str:
    if not of:
        return MISSING
    rounds = ", ".join(number(value) for value in of["rounds"])
    scale = ", ".join(f"{name}: {value:.2f}" for name, value in of["real_by_predicted"].items())
    rows = [
        ["minutes by logs of earlier rounds", spread(of, 2)],
        ["the same, outliers left out", spread(of["without_outliers"], 2)],
        ["minutes by the prior alone", spread(of["by_prior"], 2)],
    ]
    return (
        table(["Spearman's correlation with real work", "mean over rounds and seeds"], rows)
        + f"\n\nRound by round: {rounds}. Real by predicted minutes, all candidates together, median over seeds: {scale}."
    )


def work(of: Row) -> str:
    rows = []
    for way in (name for name in (SUGGESTIVE, BY_MINUTES, LOT) if name in of):
        for criterion in ("voxels", "edge"):
            each = of[way][criterion]
            cells = [
                f"{percent(each[tissue]['total'])} ({percent(each[tissue]['least_seed'])})"
                for tissue in TISSUES
            ]
            corrected = " / ".join(percent(each[tissue]["by_correction"]) for tissue in TISSUES)
            rows.append(
                [named(way), of[way]["seeds"], number(of[way]["labelled"], 1), criterion, *cells,
                 percent(each["csf"]["by_selection"]), corrected]
            )  # fmt: skip
    columns = ["way", "seeds", "labelled", "criterion", *HEAD, "by choosing alone", "by correcting alone"]
    return table(columns, rows)


def colin(of: Row) -> str:
    names = {"network": "network, all simulated subjects", "untrained": "hidden Markov field, as it comes"}
    return table(
        ["", "grey matter with AAL's regions", *(f"{name}, proxy" for name in HEAD)],
        (
            [said, number(of[name]["gm_regions"], 3), *(number(of[name][tissue], 3) for tissue in TISSUES)]
            for name, said in names.items()
            if of
        ),
    )
