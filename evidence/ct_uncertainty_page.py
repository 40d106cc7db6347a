"""Make the section on variance maps of docs/low-dose-ct.md from the JSON of evidence/ct_uncertainty.py.

``made`` has what stands for each placeholder; a part that has not been measured is said to be missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "ct_uncertainty.json"
MISSING = "*Not measured yet.*"
LOW, HIGH = 0.92, 0.98
PLACES = ("flat", "edges", "low contrast")

Row = dict[str, Any]


def made(path: Path = RESULT) -> dict[str, str]:
    """Return the text for each placeholder: ``doubt-target``, ``doubt-coverage``, ``doubt-cost``."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    return {"doubt-target": target(rows), "doubt-coverage": coverage(rows), "doubt-cost": cost(rows)}


def target(rows: Sequence[Row]) -> str:
    """Say how many rows reach the target, and name those that do not."""
    judged = [row for row in rows if row["doubt"] == "quick"]
    if not judged:
        return MISSING
    missed = [row for row in judged if not LOW <= row["flat"]["truth"] <= HIGH]
    said = (
        f"{len(judged) - len(missed)} of {len(judged)} lie between {LOW:.0%} and {HIGH:.0%} in flat regions"
    )
    if not missed:
        return f"{said}."
    each = "; ".join(f"{row['method']}, {image(row)}: {share(row['flat']['truth'])}" for row in missed)
    return f"{said}. Not among them: {each}."


def coverage(rows: Sequence[Row]) -> str:
    """Return a table for each image: how often intervals hold the truth, and the mean of all images."""

    def line(row: Row) -> list[str]:
        places = [row[place] for place in PLACES]
        return [
            row["method"],
            row["doubt"],
            *(share(place["truth"]) for place in places),
            share(row["flat"]["truth_by_noise"]),
            share(row["flat"]["mean"]),
            f"{row['flat']['noise_ratio']:.2f}",
            *(f"{place['error_ratio']:.2f}" for place in places),
        ]

    columns = [
        "method",
        "doubt",
        "truth, flat",
        "truth, edges",
        "truth, low contrast",
        "truth, flat, by noise alone",
        "mean, flat, by noise alone",
        "noise, of that of the scans",
        "flat: expected of true error",
        "edges",
        "low contrast",
    ]
    return by_image(rows, lambda found: table(columns, map(line, found)))


def cost(rows: Sequence[Row]) -> str:
    """Return a table of seconds with and without the variance, by method."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        found.setdefault((row["method"], row["doubt"]), []).append(row["seconds"] / row["seconds_without"])
    lines = [
        [method, doubt, f"{min(times):.1f} to {max(times):.1f}"] for (method, doubt), times in found.items()
    ]
    return table(["method", "doubt", "time, of that without"], lines)


def image(row: Row) -> str:
    photons = f"{row['photons']:.0e}".replace("e+0", "e")
    return f"{row['image']} at {photons} photons"


def share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def by_image(rows: Sequence[Row], write: Callable[[list[Row]], str]) -> str:
    parts = []
    for name in dict.fromkeys(image(row) for row in rows):
        mine = [row for row in rows if image(row) == name]
        first = mine[0]
        parts.append(f"**{name}** ({first['data']}, {first['views']} views)\n\n{write(mine)}")
    return "\n\n".join(parts) or MISSING


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    body = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    if not body:
        return MISSING
    return "\n".join(["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns), *body])
