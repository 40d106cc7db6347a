"""The figures of docs/language.md: the bound, KL against bits, and growth; drawing them needs matplotlib."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from language_results import HERE, KIND, MODELS, Results, by_spec, load, setting

IMAGES = HERE.parent / "docs" / "images"


def picture(name: str, words: str) -> str:
    """Return a figure, once it has been drawn."""
    return f"![{words}](images/{name})\n" if (IMAGES / name).is_file() else ""


def pictures(results: Results) -> str:
    drawn = [
        picture(f"kv_rate_{name}.png", f"KL against bits a number, {name}, all caches of the table above")
        for name in results
    ]
    return "\n".join(line for line in drawn if line)


def _lifts(
    rows: Sequence[dict[str, Any]], near: float = 0.6, line: float = 8, decade: float = 90
) -> list[float]:
    """Return points to lift each label by, so that those of neighbours do not lie on each other."""
    places: list[tuple[float, float]] = []
    lifts = {}
    for row in sorted(rows, key=lambda row: float(row["kl_mean"])):
        bits, height = row["effective_bits"], decade * math.log10(row["kl_mean"])
        start = height
        while any(abs(bits - x) < near and abs(height - y) < line for x, y in places):
            height += line / 3
        places.append((bits, height))
        lifts[row["spec"]] = height - start
    return [lifts[row["spec"]] for row in rows]


def figure(folder: Path = HERE / "results", out: Path = IMAGES) -> list[Path]:
    """Draw the bound, and KL against bits for each model that has been measured; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawn = []
    results = {name: result for name, result in load(folder).items() if result.get("bound")}
    colours = dict(zip(MODELS, ("#1f5fa8", "#c8501e"), strict=True))

    def keep(figure: Any, axes: Any, name: str) -> None:
        axes.set_yscale("log")
        axes.set_xlabel("bits a number")
        axes.grid(alpha=0.25)
        out.mkdir(parents=True, exist_ok=True)
        figure.savefig(out / name, dpi=130, metadata={"Software": None})
        plt.close(figure)
        drawn.append(out / name)

    if results:
        picture, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
        for name, result in results.items():
            curve = result["bound"]
            bits = [row["bits"] for row in curve]
            axes.plot(
                bits, [row["bound"] for row in curve], "--", color=colours[name], label=f"{name}: bound"
            )
            axes.plot(
                bits,
                [row["whole_bits"] for row in curve],
                color=colours[name],
                label=f"{name}: whole bits, Lloyd-Max",
            )
        axes.set_ylabel("predicted nats a token, codes alone")
        axes.legend(frameon=False)
        keep(picture, axes, "kv_bound.png")
    for name, result in results.items():
        rows = by_spec(result, "main")
        if not rows:
            continue
        picture, axes = plt.subplots(figsize=(7.2, 4.8), layout="constrained")
        kind = {spec: row for spec, row in rows.items() if spec.endswith(KIND)}
        own = {spec: row for spec, row in rows.items() if spec.startswith("plan ") and spec not in kind}
        rivals = {spec: row for spec, row in rows.items() if spec not in kind and spec not in own}
        for group, colour, form, label in (
            (own, colours[name], "o-", "plans"),
            (kind, colours[name], "o:", "plans fitted on text of its kind"),
            (rivals, "#777777", "s", "rivals"),
        ):
            chosen = list(group.values())
            chosen.sort(key=lambda row: float(row["effective_bits"]))
            bits, kl = [row["effective_bits"] for row in chosen], [row["kl_mean"] for row in chosen]
            spread = [[row["kl_mean"] - row["kl_interval"][0] for row in chosen]]
            spread.append([row["kl_interval"][1] - row["kl_mean"] for row in chosen])
            axes.errorbar(
                bits,
                kl,
                yerr=spread,
                fmt=form,
                markerfacecolor="white" if group is kind else colour,
                color=colour,
                markersize=5,
                capsize=2,
                label=label,
            )
            for row, lift in [] if group is kind else zip(chosen, _lifts(chosen), strict=True):
                axes.annotate(
                    row["spec"],
                    (row["effective_bits"], row["kl_mean"]),
                    xytext=(5, 4 + lift) if group is rivals else (-6, -11),
                    ha="left" if group is rivals else "right",
                    textcoords="offset points",
                    fontsize=7.5,
                    color=colour,
                )
        curve = result["bound"]
        axes.plot(
            [row["bits"] for row in curve],
            [row["bound"] for row in curve],
            "--",
            color="black",
            linewidth=1,
            label="bound (predicted; codes alone)",
        )
        axes.set_ylabel("KL to the 16-bit cache, nats a token")
        axes.set_title(f"{name}: {setting(result['main'])}", fontsize=8)
        axes.margins(x=0.1)
        axes.legend(frameon=False)
        keep(picture, axes, f"kv_rate_{name}.png")
    return drawn


def growth_figure(
    path: Path = HERE.parent / "benchmarks" / "results" / "sweep.json", out: Path = IMAGES
) -> list[Path]:
    """Draw how a step and a cache grow with the text, with the floor that memory sets; needs matplotlib."""
    if not path.is_file():
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = json.loads(path.read_text(encoding="utf-8"))["sweep"]
    tokens = [row["context"] for row in rows]
    picture, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    for kind, colour, label in (
        ("dynamic", "#777777", "DynamicCache"),
        ("sagittal", "#1f5fa8", "low-bit cache"),
    ):
        left.plot(tokens, [row["step_ms"][kind] for row in rows], "o-", color=colour, label=label)
        left.plot(
            tokens, [row["floor_ms"][kind] for row in rows], "--", color=colour, label=f"{label}: floor"
        )
        right.plot(
            tokens, [row["cache_bytes"][kind] / 2**20 for row in rows], "o-", color=colour, label=label
        )
    left.set_ylabel("a step, milliseconds")
    right.set_ylabel("cache, MiB")
    for axes in (left, right):
        axes.set_xlabel("tokens held")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
    out.mkdir(parents=True, exist_ok=True)
    picture.savefig(out / "kv_growth.png", dpi=130, metadata={"Software": None})
    plt.close(picture)
    return [out / "kv_growth.png"]
