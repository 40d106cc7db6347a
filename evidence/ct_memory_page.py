"""Make the section on memory of docs/low-dose-ct.md from the JSON of benchmarks/ct_memory.py.

``section`` is the whole of it, with its heading; where nothing has been measured, that is said.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pages import number, table

RESULT = Path(__file__).parent.parent / "benchmarks" / "results" / "ct_memory.json"
MOST = 4.0
"""Copies of the volume that a reconstruction may take beside its scan's sinogram."""


def section(path: Path = RESULT) -> str:
    """Return the section."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    columns = ["scan", "voxels", "method", "peak", "the scan's sinogram", f"at most {MOST:.0f}"]
    return f"""## Memory

`benchmarks/ct_memory.py`, {threads(rows)}. The scans are of random numbers: what is held does not depend on them. *Peak*
is by how much the memory of the process grows from before a reconstruction to its peak, in copies of the volume that is
asked for, as float32; the scan's own sinogram was there before, and is in no peak. {MOST:.0f} copies were to be enough.

{table(columns, [cells(row) for row in rows])}

What a cone beam's reconstruction by `tv` must hold is two images, half of one for each axis, and one and a half
sinograms: what is left of the scan, and by how much it last moved. `edge-preserving-tv` has its weights beside that, a
quarter of an image, and the rays' weights with the doubt of edges, another sinogram; `directional-tv` has three quarters
of an image. On *finer* voxels the same is held for four in place of each one.
"""


def threads(rows: list[dict[str, Any]]) -> str:
    counts = sorted({row["threads"] for row in rows})
    return " and ".join(f"{count} thread{'s' * (count != 1)}" for count in counts) or "not yet run"


def cells(row: dict[str, Any]) -> list[str]:
    kind = f"{row['kind']}, {row['views']} views" + (", finer voxels" if row.get("finer") else "")
    voxels = " x ".join(str(row[name]) for name in ("size", "size", "slices"))
    peak = row["copies_of_volume"]
    reached = "yes" if peak <= MOST else "no"
    return [kind, voxels, row["method"], number(peak), number(row["sinogram_in_volumes"]), reached]
