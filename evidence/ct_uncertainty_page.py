"""Make the section on variance maps of docs/low-dose-ct.md from the JSON of evidence/ct_uncertainty.py.

``section`` is the whole of it, with its heading; a part that has not been measured is said to be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pages import MISSING, measured, table

RESULT = Path(__file__).parent / "results" / "ct_uncertainty.json"
LOW, HIGH = 0.92, 0.98
PLACES = ("flat", "edges", "low contrast")

Row = dict[str, Any]


def section(path: Path = RESULT) -> str:
    """Return the section."""
    rows = measured(path, {"rows": []})["rows"]
    return f"""## How sure each voxel is

`evidence/ct_uncertainty.py`. A voxel's variance is the expected square of its error: photon noise, and what the method
gets wrong ([`uncertainty`](api.md)). The scans are fan beams with 60 views of 80 x 80 pixels, other sizes and images than
the tables above. Every image is scanned with 50 draws of noise. What is counted is how often 1.96 standard deviations
hold the truth, where the truth is flat (no step of 6 HU between neighbours within two pixels; 20 HU in the slices, which
have noise of their own), at edges (within a pixel of steps of 60 HU) and at low contrast (steps between the two, away from
edges).
Air is left out of flat and low contrast. The slice of 693_J2KI was looked at while the method was made; the other images
were not. The goal is 92 to 98 % in flat regions; elsewhere the share is stated.

{target(rows)}

*By noise alone* leaves out what the method gets wrong: it should hold the mean of the 50 images 95 times in 100, and does
not hold the truth. *Noise, of that of the scans* is the noise of the map by that of the 50 images, in flat regions. The
last three columns are the map's standard deviation by the true error. Rows of the bootstrap are of one draw of noise.

{coverage(rows)}

What it takes:

{cost(rows)}

What the map does not know:

- A detail that the prior took out raises the variance only where the scan still shows it beyond its noise. The facts of
  the image (`doubt`, `unseen_disc`) have the contrast below which a disc of four voxels across may be gone without a
  trace.
- Edges that lie between voxels. There the error of total variation is several times what the map says, and the quick kind
  finds less noise than the bootstrap, because it stops early.
- Scatter, beam hardening, motion and what else the scan's line integrals have wrong.
"""


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
