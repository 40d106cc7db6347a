"""Make the section on speed of docs/low-dose-ct.md from the JSON of benchmarks/ct_projectors.py and ct_methods.py.

``section`` is the whole of it, with its heading; where nothing has been measured, that is said.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pages import MISSING, measured, number, table

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
PAIR_OF_ASTRA, PAIR_OF_SKIMAGE, METHOD_OF_ASTRA = 0.25, 0.05, 1.0
"""What was wanted: a projection and its backprojection, and edge-preserving total variation of SIRT's time."""
METHODS = ("edge-preserving-tv", "edge-preserving-tv, subdivision 1", "tv")

Row = dict[str, Any]


def section(results: Path = RESULTS) -> str:
    """Return the section."""
    pairs = measured(results / "ct_projectors.json", {"rows": []})
    methods = measured(results / "ct_methods.json", {"rows": []})
    return f"""## Speed

Contestants take turns in one process{machine(pairs)}, and ratios are of the least times. ASTRA and scikit-image use one
thread, ours as many as said: time of the processor with one, of the clock with two. What was wanted stands in brackets.
No image here is real: projections are of random numbers, reconstructions of one synthetic phantom of smooth regions, with
noise of 1e5 photons.

```console
pip install '.[imaging]' scikit-image astra-toolbox
python benchmarks/ct_projectors.py --cone 256 --json benchmarks/results/ct_projectors.json
python benchmarks/ct_methods.py --json benchmarks/results/ct_methods.json
```

A projection and its backprojection (`benchmarks/ct_projectors.py`), {size(pairs)}, float32. ASTRA's is the faster of its
projectors on a processor, scikit-image's `radon` and `iradon` without a filter:

{table(["rays", "threads", "projection, ms", "backprojection, ms", "of ASTRA's", "of scikit-image's"], projections(pairs))}

{cone(pairs)}

Whole reconstructions of one slice to their own stopping rule (`benchmarks/ct_methods.py`), beside 100 iterations of
ASTRA's SIRT:

{table(["method", "threads", "seconds", "of ASTRA SIRT's"], reconstructions(methods))}
"""


def machine(pairs: Row) -> str:
    if "machine" not in pairs:
        return ""
    return f" ({pairs['machine']['processor']}, {pairs['machine']['processors']} processors)"


def size(pairs: Row) -> str:
    if not pairs["rows"]:
        return "not yet run"
    row = pairs["rows"][0]
    return f"{row['size']} x {row['size']} pixels, {row['shape'][0]} views"


def projections(pairs: Row) -> list[list[str]]:
    ours = [row for row in pairs["rows"] if not row["name"].startswith(("astra", "skimage"))]
    found = []
    for kind in dict.fromkeys(row["geometry"] for row in ours):
        for threads in sorted({row["threads"] for row in ours}):
            row = [r for r in ours if (r["geometry"], r["threads"]) == (kind, threads)][-1]
            ratios = [
                beside(row["ratio_to_astra"], PAIR_OF_ASTRA),
                beside(row["ratio_to_skimage"], PAIR_OF_SKIMAGE),
            ]
            times = [number(row[name], 1) for name in ("forward_ms", "back_ms")]
            found.append([f"{kind}, {row['name']}", str(threads), *times, *ratios])
    return found


def beside(ratio: float | None, wanted: float) -> str:
    return "-" if ratio is None else f"{ratio:.3f} (at most {wanted:g})"


def cone(pairs: Row) -> str:
    if "cone" not in pairs:
        return MISSING
    found = pairs["cone"]
    return (
        f"A cone beam's pair of {found['size']} voxels along each axis and {found['shape'][0]} views takes "
        f"{found['pair_ms'] / 1e3:.1f} s of one thread: {found['times_the_floor']:.0f} times what its products alone "
        f"would take at the speed of numpy's product of matrices."
    )


def reconstructions(methods: Row) -> list[list[str]]:
    return [
        [
            row["name"],
            str(row["beside_threads"]),
            number(row["ms"] / 1e3),
            beside(row["ratio_to_astra"], METHOD_OF_ASTRA),
        ]
        for row in methods["rows"]
        if row["name"] in METHODS
    ]
