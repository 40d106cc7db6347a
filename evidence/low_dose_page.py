"""Make docs/low-dose-ct.md from low-dose-ct.md.in and the JSON of evidence/low_dose_ct.py.

A part that has not been measured is said to be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import ct_memory_page
import ct_speed_page
import ct_uncertainty_page
import numpy as np
from pages import MISSING, filled, measured, number, table

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "low-dose-ct.md"
RESULT = HERE / "results" / "low_dose_ct.json"
PHANTOM, REAL = "analytic phantom", "real slice"
CENTRE = (60, 1e5)
OURS, CORRECTED = "edge-preserving-tv", "edge-preserving-tv, edges in bins"
TARGETS = ((PHANTOM, "tv", 0.6), (PHANTOM, "fbp", 0.25), (REAL, "tv", 1.0), (REAL, "tv", 0.9))
SEEN = ("Shepp-Logan", "smooth regions", "head, Cranium slice 40")
"""Images that judge, and that the form of our energy was worked out with."""

NAMES = {
    CORRECTED: "edge-preserving-tv corrected for edges in bins",
    "tv, finer voxels": "tv on finer voxels",
    "edge-preserving-tv, the paper's": "edge-preserving-tv as in the paper",
    "astra-fbp": "ASTRA FBP",
    "astra-sirt": "ASTRA SIRT",
    "astra-cgls": "ASTRA CGLS",
    "skimage-iradon": "scikit-image iradon",
    "skimage-iradon-tv": "the same, then denoise_tv_chambolle",
    "svmbir": "svmbir, q-GGMRF",
}

Row = dict[str, Any]


def page(path: Path = RESULT) -> str:
    empty: Row = {"facts": {}, "tuning": [], "rows": [], "modules": [], "resolution": []}
    kept = measured(path, empty)
    made: dict[str, Callable[[Row], str]] = {
        "split": split,
        "draws": draws,
        "module-draws": module_draws,
        "targets": targets,
        "phantoms": lambda kept: of_kind(kept, PHANTOM),
        "real": lambda kept: of_kind(kept, REAL),
        "phantom-grid": lambda kept: by_cell(kept, PHANTOM),
        "real-grid": lambda kept: by_cell(kept, REAL),
        "edges": lambda kept: module(kept, "edges", lambda value: number(value, 2)),
        "bars": lambda kept: module(kept, "line pairs", lambda value: number(value, 2)),
        "discs": lambda kept: module(kept, "low contrast", recovered),
        "matched": matched,
        "settings": settings,
        "others": others,
        "doubt": lambda _: ct_uncertainty_page.section(),
        "memory": lambda _: ct_memory_page.section(),
        "speed": lambda _: ct_speed_page.section(),
    }
    return filled(HERE / "low-dose-ct.md.in", {name: make(kept) for name, make in made.items()})


def name(method: str) -> str:
    return NAMES.get(method, method)


def dose(photons: float) -> str:
    return f"{photons:.0e}".replace("e+0", "e")


def at(kept: Row, kind: str, cell_: tuple[float, float]) -> dict[str, dict[str, Row]]:
    """Return the rows of a kind of data at one number of views and dose, by method and image."""
    found: dict[str, dict[str, Row]] = {}
    for row in kept["rows"]:
        if row["data"] == kind and (row["views"], row["photons"]) == cell_:
            found.setdefault(row["method"], {})[row["image"]] = row
    return found


def ratios(rows: dict[str, dict[str, Row]], method: str, other: str) -> list[float] | None:
    """Return how the error of a method is to another's, noise by noise: the geometric mean over images."""
    mine, theirs = rows.get(method), rows.get(other)
    if not mine or not theirs or set(mine) != set(theirs):
        return None
    seeds = min(len(row["rmse"]) for row in [*mine.values(), *theirs.values()])
    logs = [
        np.log(np.asarray(mine[image]["rmse"][:seeds]) / np.asarray(theirs[image]["rmse"][:seeds]))
        for image in mine
    ]
    return [float(value) for value in np.exp(np.mean(logs, axis=0))]


def interval(values: Sequence[float], draws: int = 4000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median over draws of noise."""
    chosen = np.random.default_rng(0).choice(np.asarray(values), size=(draws, len(values)))
    low, high = np.quantile(np.median(chosen, axis=1), [0.025, 0.975])
    return float(low), float(high)


def ratio(values: Sequence[float] | None) -> str:
    if not values:
        return "-"
    low, high = interval(values)
    return f"{median(values):.2f} ({low:.2f} to {high:.2f})"


def split(kept: Row) -> str:
    facts, rows = kept["facts"], []
    for kind, sides in ((PHANTOM, facts.get("split", {}).get(PHANTOM)), (REAL, facts.get("real_split"))):
        if sides:
            rows.append([kind, *(", ".join(sides[side]) for side in ("tune", "judge"))])
    return table(["kind of data", "tuned on", "judged by"], rows)


def draws(kept: Row) -> str:
    """Say how many draws of noise there are, at each number of views and dose."""
    numbers: dict[tuple[float, float], set[int]] = {}
    for row in kept["rows"]:
        numbers.setdefault((row["views"], row["photons"]), set()).add(len(row["rmse"]))
    said = [f"{place(where)}: {' or '.join(map(str, sorted(each)))}" for where, each in numbers.items()]
    return "; ".join(sorted(said)) or MISSING


def module_draws(kept: Row) -> str:
    return " or ".join(sorted({str(len(row["rmse"])) for row in kept["modules"]})) or "no"


def place(where: tuple[float, float]) -> str:
    return f"{where[0]:g} views, {dose(where[1])}"


def targets(kept: Row) -> str:
    rows = []
    for kind, other, least in TARGETS:
        found = at(kept, kind, CENTRE)
        for image in found.get(OURS, {}):
            one = {method: {image: images[image]} for method, images in found.items() if image in images}
            values = ratios(one, OURS, other)
            if values:
                reached = "yes" if median(values) <= least else "no"
                seen = "yes" if image in SEEN else "no"
                corrected = ratio(ratios(one, CORRECTED, other) if kind == PHANTOM else None)
                rows.append([kind, image, seen, other, f"{least:g}", ratio(values), reached, corrected])
    columns = ["kind of data", "image", "looked at before", "error, of that of", "wanted, at most", "found"]
    return table([*columns, "reached", "corrected for edges in bins"], rows)


def of_kind(kept: Row, kind: str) -> str:
    rows = at(kept, kind, CENTRE)
    images = sorted({image for those in rows.values() for image in those})
    lines = []
    for method, those in rows.items():
        line = [name(method), *(middle(those, image, "rmse", 1) for image in images)]
        line += [ratio(ratios(rows, method, "tv")), ratio(ratios(rows, method, "fbp"))]
        line += [over(those, "ssim", 3), over(those, "edge_rmse", 0), over(those, "flat_noise", 1)]
        lines.append([*line, over(those, "seconds", 2)])
    columns = ["method", *(f"RMSE, {image}" for image in images), "of tv's", "of fbp's"]
    return table([*columns, "SSIM", "RMSE at edges", "flat noise", "seconds"], lines)


def middle(rows: dict[str, Row], image: str, measure: str, digits: int) -> str:
    value = rows.get(image, {}).get(measure)
    return number(median(value) if value else None, digits)


def over(rows: dict[str, Row], measure: str, digits: int) -> str:
    """Return the mean over images of the median over noise."""
    values = [row[measure] for row in rows.values() if row[measure] is not None]
    each = [median(value) if isinstance(value, list) else value for value in values]
    return number(sum(each) / len(each) if each else None, digits)


def cells(kept: Row, kind: str) -> list[tuple[float, float]]:
    return sorted({(row["views"], row["photons"]) for row in kept["rows"] if row["data"] == kind})


def by_cell(kept: Row, kind: str) -> str:
    """Compare our method with each other, at every number of views and dose."""
    places = cells(kept, kind)
    found = {where: at(kept, kind, where) for where in places}
    methods = dict.fromkeys(method for rows in found.values() for method in rows if method != OURS)
    lines = [
        [name(method), *(ratio(ratios(found[where], OURS, method)) for where in places)] for method in methods
    ]
    return table(["against", *map(place, places)], lines)


def module(kept: Row, image: str, show: Callable[[Any], str]) -> str:
    rows = [row for row in kept["modules"] if row["image"] == image]
    if not rows:
        return MISSING
    columns = list(rows[0]["measured"])
    return table(
        ["method", *columns],
        [[name(row["method"]), *(show(row["measured"][column]) for column in columns)] for row in rows],
    )


def recovered(value: Sequence[float | None]) -> str:
    return number(value[0], 2) + ("" if value[1] is None else f" ± {value[1]:.2f}")


def matched(kept: Row) -> str:
    """Compare noise where every method is at least as sharp as the sharpest FBP with a Hann window."""
    by_method = {row["method"]: row for row in kept["resolution"]}
    if "fbp" not in by_method:
        return MISSING
    most = float(by_method["fbp"]["width_mm"][HANN])
    lines = []
    for method, row in by_method.items():
        pairs = zip(row["flat_noise"], row["width_mm"], strict=True)
        sharp = [(noise, width) for noise, width in pairs if width is not None and width <= most + 1e-9]
        noise, width = min(sharp, default=(None, None))
        lines.append([name(method), number(noise, 2), number(width, 2), len(sharp)])
    return table(["method", "flat noise, HU", "width of its edge, mm", "settings as sharp"], lines)


HANN = 6
"""Which of the settings of fbp has a Hann window that ends with the detector's highest frequency."""


def settings(kept: Row) -> str:
    lines = []
    for row in kept["tuning"]:
        if (row["views"], row["photons"]) == CENTRE:
            chosen = ", ".join(f"{key} {value}" for key, value in row["options"].items())
            lines.append(
                [row["data"], name(row["method"]), chosen, f"{median(row['rmse'][row['best']]):.1f}"]
            )
    return table(["kind of data", "method", "chosen", "RMSE on what it was chosen by, HU"], lines)


def others(kept: Row) -> str:
    facts = kept["facts"]
    lines = [f"- {package} was not run: {why}" for package, why in facts.get("without", {}).items()]
    lines += [f"- {note}" for note in facts.get("notes", [])]
    if "astra_differs" in facts:
        lines.append(
            f"- ASTRA's projection of `smooth regions` differs from ours by {facts['astra_differs']:.1e} of it."
        )
    return "\n".join(lines)
