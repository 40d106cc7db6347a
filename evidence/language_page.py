"""Make docs/language.md from language.md.in and the JSON that kv_cache.py writes, and draw its figures.

    python evidence/language_page.py            the page
    python evidence/language_page.py --figures  the figures as well; needs matplotlib

The prose stands in language.md.in; every number, and every verdict, is made from the JSON by the modules
beside this one. A part that has not been measured is said to be missing. A figure stands on the page once it
has been drawn.
"""

from __future__ import annotations

import sys
from pathlib import Path

from language_claims import claims
from language_figures import figure, growth_figure, picture, pictures
from language_results import HERE, load
from language_speed import attention_speed, growth, step_speed
from language_tables import SHORT, bound, distance, earlier, measured, needles, parts, setup, sinks
from pages import filled

PAGE = HERE.parent / "docs" / "language.md"


def page(folder: Path = HERE / "results") -> str:
    results = load(folder)
    made = {
        "setup": setup(results),
        "earlier": earlier(results, folder),
        "claims": claims(results),
        "main": measured(results, "main", [*SHORT, "perplexity", "KL / `kivi2`'s"]),
        "pictures": pictures(results),
        **{
            name.replace(" ", "-"): measured(results, name, [*SHORT, "KL / `kivi2`'s", "KL / `kivi4`'s"])
            for name in ("shakespeare", "1k", "8k")
        },
        "parts": parts(results),
        **{
            name.replace(" ", "-"): measured(results, name, SHORT)
            for name in ("key bias", "rotation", "kept")
        },
        "sinks": sinks(results),
        "bound": bound(results),
        "bound-picture": picture("kv_bound.png", "Least nats a token against bits a number, both models"),
        "distance": distance(results),
        "needles": needles(results),
        "attention-speed": attention_speed(),
        "step-speed": step_speed(),
        "growth": growth(),
        "growth-picture": picture(
            "kv_growth.png", "Milliseconds of a step, and MiB of the cache, against tokens held"
        ),
    }
    return filled(HERE / "language.md.in", made)


if __name__ == "__main__":
    if "--figures" in sys.argv[1:]:
        for path in figure() + growth_figure():
            print(path)
    PAGE.write_text(page(), encoding="utf-8")
