"""Make pages of docs/ from JSON that scripts have measured: evidence, language and others.

Nothing in the first page is typed by hand; the prose of the others stands in files ending in .md.in. With --figures
the second page's figures are drawn again as well, which needs matplotlib.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from pages import table

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "evidence.md"
NAMES = {"csf": "cerebrospinal fluid", "gm": "grey matter", "wm": "white matter"}


def tissue(result: dict) -> str:
    reference, level = result["real"]["reference_ml"], 100 * result["level"]
    real = []
    for row in result["real"]["rows"]:
        cells = [row["variant"]]
        for k in NAMES:
            a = row["amounts"][k]
            cells.append(f"{a['value']:.0f} ({a['low']:.0f} to {a['high']:.0f})")
        real.append([*cells, f"{row['dice']['gm']:.3f}", f"{row['dice']['wm']:.3f}"])
    real.append(["reference maps", "-", f"{reference['gm']:.0f}", f"{reference['wm']:.0f}", "-", "-"])
    default = result["real"]["rows"][0]["amounts"]
    widths = [default[k]["independent_high"] - default[k]["independent_low"] for k in NAMES]
    simulated = result["simulated"]
    rows = [
        [
            NAMES[k],
            f"{s['median_error_percent']:+.0f} %",
            f"{s['covered']} of {simulated['seeds']}",
            f"{100 * s['median_width_share']:.0f} %",
            f"{s['covered_independent']} of {simulated['seeds']}",
        ]
        for k, s in simulated["summary"].items()
    ]
    return f"""## Tissue volumes and their intervals

`evidence/tissue_volumes.py`, method `MarkovFieldSegmenter`, {level:.0f} % intervals. The start and
the stopping rule were chosen on the template below, by how its amounts settle and not by agreement with the
maps; the simulated images come from the same template and were not looked at before.

**Real image** (the MNI152 template: an average of 152 people, not a person). Millilitres with interval, and
Dice against the grey- and white-matter maps that come with the template, cut at one half. Those maps are
estimates too, not the work of a reader.

{table(["variant", "fluid", "grey matter", "white matter", "Dice grey", "Dice white"], real)}

If every voxel erred by itself, the default's intervals would be {min(widths):.1f} to {max(widths):.1f} ml wide. The maps
differ from the estimates by {abs(reference["gm"] - default["gm"]["value"]):.0f} ml of grey matter: such intervals would be false precision.

**Simulated images** ({simulated["seeds"]} seeds; made from the same maps at 2 mm with known amounts; folds,
contrast, blur, non-uniformity and noise drawn for each seed). How often the interval held the true amount,
beside the interval of voxels that err apart:

{table(["tissue", "median error", "interval holds the truth", "median width, of the truth", "independent voxels' interval holds it"], rows)}

What this says: the interval carries the doubt that is in the probabilities, and no more. The method takes
voxels that fluid and grey matter share for fluid, is sure of it, and no interval from its probabilities can
know. The report says so beside both numbers.
"""


def bootstrap(differences: Sequence[float], draws: int = 10_000) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    samples = rng.choice(np.asarray(differences), size=(draws, len(differences)))
    low, high = np.quantile(samples.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def reading(result: dict) -> str:
    rows, caches = result["rows"], list(dict.fromkeys(row["cache"] for row in result["rows"]))
    seeds = list(dict.fromkeys(row["seed"] for row in rows))

    def share(cache: str, outcome: str, seed: int | None = None) -> float:
        mine = [r for r in rows if r["cache"] == cache and seed in (None, r["seed"])]
        return mean(r["outcome"] == outcome for r in mine)

    cells = []
    for cache in caches:
        mine = [r for r in rows if r["cache"] == cache]
        difference = "-"
        if cache != caches[0]:
            low, high = bootstrap([share(cache, "right", s) - share(caches[0], "right", s) for s in seeds])
            change = share(cache, "right") - share(caches[0], "right")
            difference = f"{100 * change:+.0f} ({100 * low:+.0f} to {100 * high:+.0f})"
        cells.append(
            [
                cache,
                f"{100 * mean(r['bytes'] / r['bytes_16bit'] for r in mine):.0f} %",
                *[f"{100 * share(cache, o):.0f} %" for o in ("right", "wrong", "refused")],
                difference,
            ]
        )
    questions = []
    for question in dict.fromkeys(row["question"] for row in rows):
        line = [question]
        for cache in caches:
            mine = [r["outcome"] for r in rows if r["question"] == question and r["cache"] == cache]
            line.append(f"{mine.count('right')} / {mine.count('wrong')} / {mine.count('refused')}")
        questions.append(line)
    tokens = [r["tokens"] for r in rows]
    return f"""## Finding facts in a long record

`evidence/record_reading.py`: {len(seeds)} simulated records of {min(tokens)} to {max(tokens)} tokens with five planted facts
each, read whole by {result["model"]} (4-bit weights), greedy. *Right*: the line that holds the answer is the
planted one. *Wrong*: another line holds it. *Refused*: no line holds it, nothing is reported. The difference is
in percentage points of right answers against 16 bits, paired by record, with a 95 % bootstrap interval.

{table(["cache", "memory, of 16 bits", "right", "wrong", "refused", "right, against 16 bits"], cells)}

By question, right / wrong / refused:

{table(["question", *caches], questions)}

The model is small and not medical, and the questions were written for these records: the table compares
caches, and says nothing about real notes.
"""


def page() -> str:
    parts = [
        "# Evidence\n\nMade by `make docs` from the JSON in `evidence/results`, which `make evidence` measures "
        "again. Real, simulated and synthetic data are never in one column.\n"
    ]
    for name, write in (("tissue_volumes", tissue), ("record_reading", reading)):
        parts.append(write(json.loads((HERE / "results" / f"{name}.json").read_text())))
    return "\n".join(parts)


if __name__ == "__main__":
    import atlas_page
    import language_figures
    import language_page
    import low_dose_page
    import registration_network_page
    import registration_page
    import reliability_page
    import tissue_network_page

    if "--figures" in sys.argv[1:]:
        language_figures.figure()
        language_figures.growth_figure()
    PAGE.write_text(page())
    pages = (atlas_page, language_page, low_dose_page, registration_network_page, registration_page)
    for made in (*pages, reliability_page, tissue_network_page):
        made.PAGE.write_text(made.page(), encoding="utf-8")
