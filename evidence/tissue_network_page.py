"""Make docs/tissue-network.md from tissue-network.md.in and the JSON of tissue_network.py and tissue_effort.py.

An arm that has not been measured is left out, and a target without its arm is said to be missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import tissue_space
from pages import MISSING, filled, measured, number, table
from tables import NAMES, bootstrap
from tissue_space import FLOOR

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "tissue-network.md"
RESULT = HERE / "results" / "tissue_network.json"
SPEED = HERE.parent / "benchmarks" / "results" / "segment_inference.json"
FEW, ALL = "5 subjects, ", "24 subjects, "
FEW_DICE, ALL_DICE, ECE, COVERAGE, RANK = 0.88, 0.92, 0.02, (0.92, 0.98), 0.8
"""What is wanted: of 5 subjects and of all, of the calibration error, of the intervals of 95 %, and of how the
work that is foreseen ranks with the real."""

Row = dict[str, Any]


def page(path: Path = RESULT, effort_path: Path = tissue_space.EFFORT) -> str:
    empty: Row = {"facts": {}, "rows": []}
    kept, heads = measured(path, empty), measured(effort_path, empty)
    work = tissue_space.effort(heads["rows"]) if heads["rows"] else {}
    made: dict[str, Callable[[Row], str]] = {
        "cohort": cohort,
        "targets": lambda kept: targets(kept, work),
        "overlap": overlap,
        "doubt": doubt,
        "effort-facts": lambda _: effort_facts(heads["facts"]),
        "effort": lambda _: effort(work),
        "speed": lambda _: speed(),
    }
    return filled(HERE / "tissue-network.md.in", {name: make(kept) for name, make in made.items()})


def arms(kept: Row) -> list[str]:
    return list(dict.fromkeys(row["arm"] for row in kept["rows"]))


def of(kept: Row, arm: str) -> list[Row]:
    return [row for row in kept["rows"] if row["arm"] == arm]


def held(rows: list[Row], kind: str) -> float:
    return mean(mean(row[kind]) for row in rows)


def cohort(kept: Row) -> str:
    facts = kept["facts"]
    if not facts:
        return MISSING
    numbers = facts["subjects"]
    patch = " x ".join(map(str, facts["patch"]))
    return (
        f"Voxels are {facts['spacing_mm']:g} mm wide. {numbers['train']} subjects are there for training, "
        f"{numbers['calibrate']} for calibration, and {numbers['judge']} judge. The network is VoxResNet with "
        f"{facts['width']} channels at full resolution, trained for {facts['steps']} steps of {facts['batch']} "
        f"patches of {patch} voxels."
    )


def targets(kept: Row, work: Row) -> str:
    rows = []
    there = arms(kept)
    floor = mean(row["dice_mean"] for row in of(kept, FLOOR)) if FLOOR in there else None
    for start, wanted in ((FEW, FEW_DICE), (ALL, ALL_DICE)):
        for arm in there:
            if arm.startswith(start):
                found = mean(row["dice_mean"] for row in of(kept, arm))
                rows.append([arm, f"Dice {wanted:g} or more", f"{found:.3f}", said(found >= wanted)])
                if floor is not None:
                    above = f"{found - floor:+.3f}"
                    rows.append([arm, "above the hidden Markov field", above, said(found > floor)])
    low, high = COVERAGE
    for arm in there:
        if arm != FLOOR:
            error, share = mean(row["ece"] for row in of(kept, arm)), held(of(kept, arm), "held")
            rows.append([arm, f"calibration error at most {ECE:g}", f"{error:.4f}", said(error <= ECE)])
            wanted_share = f"95 % intervals hold {100 * low:.0f} to {100 * high:.0f} %"
            rows.append([arm, wanted_share, f"{100 * share:.1f} %", said(low <= share <= high)])
    together = [row for arm in there if arm != FLOOR for row in of(kept, arm)]
    if together:
        share = held(together, "held")
        count = sum(len(row["held"]) for row in together)
        wanted_share = f"95 % intervals hold {100 * low:.0f} to {100 * high:.0f} %"
        found_share = f"{100 * share:.1f} % of {count}"
        rows.append(["all networks together", wanted_share, found_share, said(low <= share <= high)])
    if work:
        wanted_rank = f"work foreseen, rank correlation {RANK:g} or more"
        rows.append(["ensembles of 5 subjects, T1", wanted_rank, spread(work), said(work["mean"] >= RANK)])
    return table(["network", "wanted", "found", "reached"], rows)


def spread(value: Row) -> str:
    return f"{value['mean']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def effort_facts(facts: Row) -> str:
    if not facts:
        return MISSING
    return (
        f"{facts['labelled']} of the {facts['of']} heads that train are drawn for each seed; {facts['members']} "
        f"networks of bootstrap draws of them, {facts['steps']} steps each, propose the tissues of the "
        f"{facts['judge']} that judge."
    )


def effort(work: Row) -> str:
    if not work:
        return MISSING
    seeds = ", ".join(number(value) for value in work["by_seed"])
    criteria: Sequence[tuple[str, str]] = (
        ("components", "regions to mend"),
        ("edge_mm", "outline to draw again, mm"),
        ("slices", "slices to visit"),
    )
    rows = [
        ["minutes, by the prior's coefficients", spread(work)],
        *([f"its {name}, with the real", number(work["of"][key])] for key, name in criteria),
        ["mean entropy of the voxels, with real minutes", number(work["entropy"])],
        ["size of the brain, with real minutes", number(work["size"])],
    ]
    return (
        table(
            [f"over {work['subjects']} heads, mean of {work['seeds']} seeds", "Spearman's correlation"], rows
        )
        + f"\n\nSeed by seed: {seeds}. Real minutes go from {work['least_real']:.0f} to {work['most_real']:.0f}. All "
        f"heads together take {work['real_by_predicted']:.1f} times what is foreseen without a log: minutes by the prior "
        f"are off by {100 * work['error_by_prior']:.0f} % (median). After the minutes of five heads were logged, those of "
        f"the others are off by {100 * work['error_after_logs']:.0f} %, and {100 * work['held_after_logs']:.0f} % of them "
        f"lie in their interval of {100 * work['level']:.0f} %."
    )


def said(reached: bool) -> str:
    return "yes" if reached else "no"


def overlap(kept: Row) -> str:
    rows = []
    for arm in arms(kept):
        mine = of(kept, arm)
        values = [row["dice_mean"] for row in mine]
        low, high = bootstrap(values)
        each = [f"{mean(row['dice'][name] for row in mine):.3f}" for name in NAMES]
        apart = [f"{mean(row['hd95_mm'][name] for row in mine):.1f}" for name in NAMES]
        seconds = f"{mean(row['cpu_seconds'] for row in mine):.1f}"
        rows.append([arm, *each, f"{mean(values):.3f} ({low:.3f} to {high:.3f})", " / ".join(apart), seconds])
    names = [f"Dice, {name}" for name in NAMES.values()]
    return table(["method", *names, "mean", "HD95 of each, mm", "CPU seconds a head"], rows)


def speed(path: Path = SPEED) -> str:
    found = json.loads(path.read_text(encoding="utf-8"))
    names = {"sagittal": f"sagittal, {found['precision']}", "sagittal float32": "sagittal, float32"}
    names["monai float32"] = f"MONAI's sliding window of {found['window']} voxels as it comes, float32"
    rows = [
        [
            names[name],
            f"{seconds:.1f}",
            f"{found['of_monai'][name]:.2f}",
            f"{100 * found['same_label'][name]:.1f} %",
        ]
        for name, seconds in found["seconds"].items()
    ]
    machine = (
        f"{found['machine']['processor']}, {found['threads']} threads, least of {found['rounds']} rounds"
    )
    columns = ["network of the same weights", "seconds", "of MONAI's", "voxels with MONAI's label"]
    return f"{machine}:\n\n{table(columns, rows)}"


def doubt(kept: Row) -> str:
    rows = []
    for arm in arms(kept):
        mine = of(kept, arm)
        fitted = f"{100 * held(mine, 'held'):.1f} %" if "held" in mine[0] else "-"
        width = (
            " / ".join(
                f"{100 * mean(row['width_share'][n] for row in mine):.0f} %" for n in range(len(NAMES))
            )
            if "held" in mine[0]
            else "-"
        )
        alone = f"{100 * held(mine, 'held_by_voxels'):.1f} %"
        rows.append([arm, f"{mean(row['ece'] for row in mine):.4f}", fitted, width, alone])
    columns = [
        "calibration error",
        "fitted interval holds",
        "its width, of the volume (fluid / grey / white)",
    ]
    return table(["method", *columns, "interval from probabilities alone holds"], rows)
