"""Make docs/registration.md from registration.md.in and the JSON of evidence/registration.py.

A part that has not been measured is said to be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from pages import MISSING, filled, measured, number, table

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "registration.md"
RESULT = HERE / "results" / "registration.json"
OURS = "diffeomorphic"
DEFAULT = "diffeomorphic, as it comes"
FLOORS = ("identity", "affine")
STRENGTHS = ("small", "medium", "large")
KNOWN, PROXY, SPEED = "known-fields", "colin27-mni", "speed"
COHORT, SLICES = "cohort", "slices"

Row = dict[str, Any]


def page(path: Path = RESULT) -> str:
    empty: Row = {"facts": {}, "tuning": [], "rows": []}
    kept = measured(path, empty)
    made: dict[str, Callable[[Row], str]] = {
        "tuning-pairs": tuning_pairs,
        "versions": versions,
        "targets": targets,
        "known": lambda kept: known(kept, KNOWN),
        "cohort": lambda kept: known(kept, COHORT),
        "slices": slices,
        "strengths": strengths,
        "proxy": proxy,
        "speed": speed,
        "confidence": confidence,
        "settings": lambda kept: settings(kept["tuning"]),
        "cohort-settings": lambda kept: settings(of_set(kept, COHORT)),
        "slice-settings": lambda kept: settings(of_set(kept, SLICES)),
        "person-command": person_command,
        "person-settings": lambda kept: settings(of_set(kept, PROXY), "dice_mean"),
        "default": default,
    }
    return filled(HERE / "registration.md.in", {name: make(kept) for name, make in made.items()})


def of(kept: Row, part: str) -> dict[str, list[Row]]:
    """Return the rows of a set by their method, ours first, then rivals, then floors: of pairs that all have."""
    found: dict[str, list[Row]] = {}
    for row in kept["rows"]:
        if row["set"] == part:
            found.setdefault(row["method"], []).append(row)
    shared = set.intersection(*({pair(row) for row in rows} for rows in found.values())) if found else set()
    found = {name: [row for row in rows if pair(row) in shared] for name, rows in found.items()}
    rank = {OURS: -1, DEFAULT: 0} | dict.fromkeys(FLOORS, 2)
    return dict(sorted(found.items(), key=lambda item: (rank.get(item[0], 1), item[0])))


def pair(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("image", "strength", "seed", "threads"))


def middle(rows: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return median(values) if values else None


def rivals(methods: dict[str, list[Row]]) -> dict[str, list[Row]]:
    return {name: rows for name, rows in methods.items() if name not in (OURS, DEFAULT, *FLOORS)}


def tuning_pairs(kept: Row) -> str:
    pairs = [f"{strength} ({seed})" for strength, seed in kept["facts"].get("tuning_pairs", [])]
    return " and ".join(pairs) or MISSING


def versions(kept: Row) -> str:
    found = kept["facts"].get("versions", {})
    return (
        "Versions: " + ", ".join(f"{name} {found[name]}" for name in sorted(found)) + "."
        if found
        else MISSING
    )


def targets(kept: Row) -> str:
    lines = []
    methods, overlaps, fast = of(kept, KNOWN), of(kept, PROXY), of(kept, SPEED)
    others = rivals(methods)
    if OURS in methods and others:
        best = min(others, key=lambda name: middle(others[name], "tre_mm") or 0.0)
        mine, theirs = (middle(rows, "tre_mm") or 0.0 for rows in (methods[OURS], others[best]))
        pairs = zip(methods[OURS], others[best], strict=True)
        ratio = median(a["cpu_seconds"] / b["cpu_seconds"] for a, b in pairs)
        lines.append(("median error, of that of the best other", "1.00", f"{mine / theirs:.2f} ({best})"))
        lines.append(("processor time, of the same", "0.50", f"{ratio:.2f}"))
    if OURS in overlaps and rivals(overlaps):
        scores = {name: rows[0]["dice_mean"] for name, rows in rivals(overlaps).items()}
        best = max(scores, key=lambda name: scores[name])
        lines.append(
            (
                "proxy Dice, of that of the best other",
                "1.000",
                f"{overlaps[OURS][0]['dice_mean'] / scores[best]:.3f} ({best})",
            )
        )
    if OURS in fast:
        seconds = max(row["wall_seconds"] for row in fast[OURS] if row["threads"] == 2)
        lines.append(("1 mm on two cores, seconds", "180", f"{seconds:.0f}"))
    mine_all = [row for part in (KNOWN, PROXY, COHORT, SLICES, SPEED) for row in of(kept, part).get(OURS, [])]
    if mine_all:
        lines.append(("folds", "0", str(sum(row["folds"] for row in mine_all))))
        worst = max(row["inverse_consistency_mm"] for row in mine_all)
        lines.append(("inverse consistency, mm, the worst", "below 0.2", f"{worst:.4g}"))
    return table(["target", "wanted", "found"], lines)


def known(kept: Row, part: str) -> str:
    return table(
        ["method", "pairs", "median, mm", "95 %, mm", "Dice", "CPU s", "folds", "own inverse, mm"],
        (
            [
                name,
                len(rows),
                number(middle(rows, "tre_mm"), 3),
                number(middle(rows, "tre_95_mm")),
                number(middle(rows, "dice_mean"), 3),
                number(middle(rows, "cpu_seconds"), 1),
                sum(row["folds"] for row in rows),
                number(middle(rows, "inverse_consistency_mm"), 3),
            ]
            for name, rows in of(kept, part).items()
        ),
    )


def strengths(kept: Row) -> str:
    def cells(rows: list[Row]) -> list[str]:
        parts = ([row for row in rows if row["strength"] == strength] for strength in STRENGTHS)
        return [number(middle(part, "tre_mm"), 3) for part in parts]

    return table(["method", *STRENGTHS], ([name, *cells(rows)] for name, rows in of(kept, KNOWN).items()))


def proxy(kept: Row) -> str:
    return table(
        ["method", "mean Dice", "CPU s", "folds", "own inverse, mm"],
        (
            [
                name,
                number(row["dice_mean"], 3),
                number(row["cpu_seconds"], 1),
                row["folds"],
                number(row["inverse_consistency_mm"], 3),
            ]
            for name, rows in of(kept, PROXY).items()
            for row in rows
        ),
    )


def slices(kept: Row) -> str:
    return table(
        ["method", "pairs", "median Dice", "the worst", "CPU s", "folds", "own inverse, mm"],
        (
            [
                name,
                len(rows),
                number(middle(rows, "dice_mean"), 3),
                number(min(row["dice_mean"] for row in rows), 3),
                number(middle(rows, "cpu_seconds"), 2),
                sum(row["folds"] for row in rows),
                number(middle(rows, "inverse_consistency_mm"), 3),
            ]
            for name, rows in of(kept, SLICES).items()
        ),
    )


def speed(kept: Row) -> str:
    return table(
        ["method", "threads", "wall s", "CPU s", "mean Dice (proxy)", "folds"],
        (
            [
                name,
                row["threads"],
                number(row["wall_seconds"], 0),
                number(row["cpu_seconds"], 0),
                number(row["dice_mean"], 3),
                row["folds"],
            ]
            for name, rows in of(kept, SPEED).items()
            for row in rows
        ),
    )


def confidence(kept: Row) -> str:
    rows = [row["confidence"] for row in of(kept, KNOWN).get(OURS, []) if "confidence" in row]
    places = ("flat", "textured")
    return table(
        ["where", "below the expected", "below twice that", "rank correlation", "expected / true error"],
        (
            [
                place,
                f"{100 * mean(row[place]['below'] for row in rows):.0f} %",
                f"{100 * mean(row[place]['below_twice'] for row in rows):.0f} %",
                number(mean(row[place]["rank"] for row in rows)),
                number(mean(row[place]["ratio"] for row in rows)),
            ]
            for place in places
            if rows
        ),
    )


def of_set(kept: Row, part: str) -> list[Row]:
    return [row for row in kept.get("tuning_others", []) if row["set"] == part]


def settings(tuned: Sequence[Row], by: str = "tre_mm") -> str:
    def said(options: Row) -> str:
        return ", ".join(f"{name} {value}" for name, value in options.items()) or "-"

    measure = {"tre_mm": "median error when chosen, mm", "dice_mean": "Dice when chosen"}[by]
    return table(
        ["method", "chosen", "among", "first or last", measure],
        (
            [
                row["method"],
                said(row["options"][row["best"]]),
                len(row["options"]),
                "yes" if row["best"] in (0, len(row["options"]) - 1) else "no",
                number(median(row[by][row["best"]]), 3),
            ]
            for row in tuned
            if row["method"] not in (DEFAULT, *FLOORS)
        ),
    )


def person_command(kept: Row) -> str:
    row = next((row for row in of_set(kept, PROXY) if row["method"] == OURS), None)
    if row is None:
        return MISSING
    options = row["options"][row["best"]]
    named = [("smoothing", "update_smoothing"), ("field-smoothing", "field_smoothing")]
    words = [f"--{name} {options[key]}" for name, key in named if key in options]
    if "iterations" in options:
        words.append(f"--iterations {','.join(map(str, options['iterations']))}")
    return f"Ours as it was chosen is `sagittal register {' '.join(words)}`."


def default(kept: Row) -> str:
    row = next((row for row in kept["tuning"] if row["method"] == OURS), None)
    if row is None:
        return MISSING
    return (
        f"The setting chosen here was {row['options'][row['best']]}; *as it comes* is the default, 3.5, with which "
        "folded anatomy is followed further, and noise too. `--smoothing` sets it."
    )
