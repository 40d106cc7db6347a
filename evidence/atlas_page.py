"""Make docs/atlas.md from atlas.md.in and the JSON of evidence/atlas.py.

A part that has not been measured is said to be missing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

from pages import MISSING, filled, measured, table

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "atlas.md"
RESULT = HERE / "results" / "atlas.json"

PARTS = {
    "averages": ("random, 64 x 64", "random, 24 x 24 x 24", "true fields of 8 heads, 4 mm"),
    "cohorts": ("slices, cohort 1", "heads", "slices, cohort 2"),
}
"""What evidence/atlas.py measures."""

Kept = dict[str, Any]


def page(path: Path = RESULT) -> str:
    empty: Kept = {"averages": {}, "cohorts": {}}
    kept = measured(path, empty)
    made: dict[str, Callable[[Kept], str]] = {
        "targets": targets,
        "averages": averages,
        "middle": middle,
        "starts": starts,
        "sharp": sharp,
        "time": seconds,
    }
    return filled(HERE / "atlas.md.in", {name: make(kept) for name, make in made.items()})


def ratios(rows: list[Kept]) -> list[float]:
    return [row["jacobian_error"] / row["euclidean_error"] for row in rows]


def alone(run: Kept, key: str = "displacement_mm") -> list[float]:
    return [row[key] for row in run["single"]]


def targets(kept: Kept) -> str:
    rows: list[list[str]] = []

    def add(text: str, found: str, met: bool) -> None:
        rows.append([text, found, "yes" if met else "**no**"])

    for name, seeds in kept["averages"].items():
        found = ratios(seeds)
        text = f"determinant's error at most 1/5 of the Euclidean mean's: {name}"
        add(text, f"{median(found):.3f} (worst {max(found):.3f})", max(found) <= 0.2)
    for name, run in kept["cohorts"].items():
        found = [one["centred"]["log_jacobian"] for one in run["starts"]]
        worst = max(found, key=abs)
        add(f"mean log-Jacobian within 0.05 of 0: {name}", f"{worst:.3f}", abs(worst) <= 0.05)
        away = max(one["centred"]["displacement_mm"] for one in run["starts"])
        text = f"nearer to the subjects than any one of them: {name}"
        add(text, f"{away:.2f} mm against {min(alone(run)):.2f} mm", away < min(alone(run)))
    for part, names in PARTS.items():
        rows += [[name, MISSING, "-"] for name in names if name not in kept[part]]
    return table(["what", "measured", "reached"], rows)


def averages(kept: Kept) -> str:
    rows = []
    for name, seeds in kept["averages"].items():
        found = ratios(seeds)
        cells = [
            f"{median([row[key] for row in seeds]):.2g}" for key in ("jacobian_error", "euclidean_error")
        ]
        curl = median([row["jacobian_curl_error"] for row in seeds])
        least = min(row["jacobian_least"] for row in seeds)
        rows.append(
            [
                name,
                len(seeds),
                *cells,
                f"{median(found):.3f}",
                f"{max(found):.3f}",
                f"{curl:.2g}",
                f"{least:.2f}",
            ]
        )
    columns = ["fields", "seeds", "by determinant and curl", "Euclidean", "ratio", "largest", "curl's error"]
    return table([*columns, "least determinant"], rows)


def middle(kept: Kept) -> str:
    rows = []
    for name, run in kept["cohorts"].items():
        title = f"{name} ({run['subjects']}, {run['spacing_mm']:g} mm)"
        keys = ("displacement_mm", "deformation_mm")
        cells = [f"{mean(alone(run, key)):.2f} (least {min(alone(run, key)):.2f})" for key in keys]
        growth = [row["log_jacobian"] for row in run["single"]]
        rows.append([title, "a subject", *cells, f"{min(growth):.3f} to {max(growth):.3f}", "-"])
        for number in range(len(run["starts"][0]["rounds"]) - 1):
            rows.append(
                ["", f"template {number + 2}", *figures([one["rounds"][number + 1] for one in run["starts"]])]
            )
        last = figures([one["centred"] for one in run["starts"]])
        rows.append(["", "atlas", *last[:-1], "-"])
    columns = [
        "cohort",
        "template",
        "distance, mm",
        "without affine, mm",
        "log-Jacobian",
        "moved by the average, mm",
    ]
    return table(columns, rows)


def figures(rounds: list[Kept]) -> list[str]:
    keys = ("displacement_mm", "deformation_mm", "log_jacobian", "moved_mm")
    digits = (2, 2, 3, 2)
    return [f"{mean(one[key] for one in rounds):.{count}f}" for key, count in zip(keys, digits, strict=True)]


def starts(kept: Kept) -> str:
    rows = []
    for name, run in kept["cohorts"].items():
        for count, pairs in ((run["subjects"], run["apart"]), (2, [run["pair_apart"]])):
            worst = [max(pair[key] for pair in pairs) for key in ("mm", "intensity")]
            least = min(pair["correlation"] for pair in pairs)
            rows.append([name, count, len(pairs), f"{worst[0]:.2f}", f"{worst[1]:.3f}", f"{least:.4f}"])
    columns = ["cohort", "subjects", "pairs of starts", "apart, mm (most)", "in intensity (most)"]
    return table([*columns, "correlation (least)"], rows)


def sharp(kept: Kept) -> str:
    rows = []
    for name, run in kept["cohorts"].items():
        first, plain = run["starts"][0], run["euclidean"]
        rows.append(
            [
                name,
                f"{first['sharpness'] / first['sharpness_affine']:.3f}",
                f"{plain['sharpness'] / plain['sharpness_affine']:.3f}",
                f"{first['sd_affine']:.3f}",
                f"{first['sd']:.3f}",
                f"{plain['sd']:.3f}",
            ]
        )
    columns = ["cohort", "atlas", "Euclidean", "SD after affine", "SD, atlas", "SD, Euclidean"]
    return table(columns, rows)


def seconds(kept: Kept) -> str:
    rows = [
        [
            name,
            run["registrations"],
            f"{run['registration_cpu_seconds'] / run['registrations']:.2f}",
            f"{run['cpu_seconds'] - run['registration_cpu_seconds']:.0f}",
        ]
        for name, run in kept["cohorts"].items()
    ]
    columns = ["cohort", "registrations", "CPU seconds each", "CPU seconds of the rest, all atlases together"]
    return table(columns, rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
