"""Make docs/language.md from language.md.in and the JSON that kv_cache.py writes, and draw its figures.

    python evidence/language_page.py            the page
    python evidence/language_page.py --figures  the figures as well; needs matplotlib

The prose stands in language.md.in; every number, and every verdict, is made here from the JSON. A part that
has not been measured is said to be missing. A figure stands on the page once it has been drawn.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tables import table

HERE = Path(__file__).parent
SPEED = HERE.parent / "benchmarks" / "results"
PAGE = HERE.parent / "docs" / "language.md"
IMAGES = HERE.parent / "docs" / "images"
MODELS = ("SmolLM2-135M", "Qwen2.5-Coder-0.5B")
MISSING = "not measured"
KIND = ", of its kind"
"""Marks a plan that was fitted on other articles of the encyclopedia that judges."""

Results = dict[str, dict[str, Any]]


def load(folder: Path = HERE / "results") -> Results:
    """Return what was measured on each model; nothing for a model without a file."""
    found: Results = {}
    for name in MODELS:
        path = folder / f"kv_cache_{name}.json"
        found[name] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


# ---------------------------------------------------------------------- figures in words


def _rows(result: dict[str, Any], part: str) -> dict[str, dict[str, Any]]:
    return {row["spec"]: row for row in result.get(part, {}).get("rows", [])}


def _span(value: float, low: float, high: float, form: str = ".3g") -> str:
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def _ratio(row: dict[str, Any], other: str) -> str:
    if row["spec"] == other:
        return "1"
    return _span(*row["ratios"][other], ".3f") if other in row["ratios"] else "-"


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def _setting(part: dict[str, Any]) -> str:
    tokens = part["rows"][0]["tokens"] if part["rows"] else 0
    return (
        f"{part['text'].capitalize()}, {part['windows']} windows of {part['prefill']} tokens read exactly and "
        f"{part['decode']} fed and scored, {tokens} scored in all"
    )


def _name(spec: str) -> str:
    return f"`{spec}`" if re.fullmatch(r"[a-z0-9.:=,-]+", spec) else spec


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "bits": lambda row: f"{row['effective_bits']:.2f}",
    "KL, nats a token": lambda row: _span(row["kl_mean"], *row["kl_interval"]),
    "95th percentile": lambda row: f"{row['kl_p95']:.3g}",
    "same top token": lambda row: f"{100 * row['same_top']:.1f} %",
    "perplexity": lambda row: f"{row['perplexity']:.2f}",
    "KL / `kivi2`'s": lambda row: _ratio(row, "kivi2"),
    "KL / `kivi4`'s": lambda row: _ratio(row, "kivi4"),
}
SHORT = ("bits", "KL, nats a token", "95th percentile", "same top token")


def measured(results: Results, part: str, columns: Sequence[str], *, first: str = "cache") -> str:
    """Return a table for each model, each with what it was measured on."""
    parts = []
    for name, result in results.items():
        rows = list(_rows(result, part).values())
        if not rows:
            parts.append(f"**{name}**: {MISSING}.\n")
            continue
        cells = [[_name(row["spec"]), *(COLUMNS[column](row) for column in columns)] for row in rows]
        parts.append(f"**{name}.** {_setting(result[part])}.\n\n{table([first, *columns], cells)}")
    return "\n".join(parts)


# ---------------------------------------------------------------------- claims


Verdict = tuple[str, str]  # held or not, and the figures


def _judge(ratio: Sequence[float], bar: float) -> str:
    if ratio[0] > bar:
        return "not held"
    return "held" if ratio[2] <= bar else "held, but the interval reaches beyond"


def _plan(rows: dict[str, dict[str, Any]], most: float) -> dict[str, Any] | None:
    """Return the plan of the most bits that has at most so many."""
    plans = [row for spec, row in rows.items() if spec.startswith("plan ") and row["effective_bits"] <= most]
    return max(plans, key=lambda row: float(row["effective_bits"]), default=None)


def _against(other: str, bar: float, most: float = math.inf, plan: str | None = None) -> Callable[..., str]:
    """Claim a ratio to a rival of at most ``bar``, at no more than ``most`` bits nor than the rival's."""

    def judge(result: dict[str, Any]) -> str:
        rows = _rows(result, "main")
        if other not in rows:
            return MISSING
        limit = min(most, rows[other]["effective_bits"])
        row = rows.get(plan) if plan else _plan(rows, limit)
        if row is None:
            return MISSING if plan else f"not held: no plan at {limit:.2f} bits or fewer"
        told = f"{row['spec']}, {row['effective_bits']:.2f} bits against {rows[other]['effective_bits']:.2f}"
        verdict = _judge(row["ratios"][other], bar)
        if row["effective_bits"] > limit:
            verdict = "not held, for it has more bits"
        return f"**{verdict}**: {_span(*row['ratios'][other], '.3f')}; {told}"

    return judge


def _perplexity(bar: float) -> Callable[..., str]:
    """Claim a perplexity of at most ``1 + bar`` times the 16-bit cache's, for the plan of at most 2.7 bits."""

    def judge(result: dict[str, Any]) -> str:
        row = _plan(_rows(result, "main"), 2.7)
        if row is None:
            return MISSING
        low, high = (100 * math.expm1(end) for end in row["interval"])
        if "perplexity_16bit" in row:
            change = 100 * (row["perplexity"] / row["perplexity_16bit"] - 1)
            verdict, told = (
                _judge((change, low, high), 100 * bar),
                f"{change:+.2f} % ({low:+.2f} to {high:+.2f})",
            )
        else:
            verdict = "held" if high <= 100 * bar else "not held" if low > 100 * bar else "not decided"
            told = f"{low:+.2f} to {high:+.2f} % (95 % interval)"
        return f"**{verdict}**: {told}; {row['spec']}, perplexity {row['perplexity']:.2f}"

    return judge


def _every_rival(result: dict[str, Any]) -> str:
    rows = _rows(result, "main")
    rivals = [row for spec, row in rows.items() if not spec.startswith("plan ")]
    if not rivals or len(rivals) == len(rows):
        return MISSING
    lost = []
    for rival in rivals:
        mine = _plan(rows, rival["effective_bits"])
        if mine is None:
            lost.append(f"`{rival['spec']}`, {rival['effective_bits']:.2f} bits: no plan at so few")
        elif mine["kl_mean"] >= rival["kl_mean"]:
            lost.append(
                f"`{rival['spec']}`, {rival['effective_bits']:.2f} bits, KL {rival['kl_mean']:.3g}: "
                f"{mine['spec']} has {mine['kl_mean']:.3g}"
            )
    told = f"{len(rivals) - len(lost)} of {len(rivals)} rivals"
    return f"**held**: {told}" if not lost else f"**not held**: {told}; {'; '.join(lost)}"


def _recall(result: dict[str, Any]) -> str:
    found = {text: row for text, row in result.get("sinks", {}).items() if "recall" in row}
    if not found:
        return MISSING if "sinks" not in result else "not held: sinks cannot be predicted"
    verdict = "held" if min(row["recall"] for row in found.values()) >= 0.95 else "not held"
    return f"**{verdict}**: " + ", ".join(
        f"{row['recall']:.3f} of {row['sinks']} on {text.capitalize()}" for text, row in found.items()
    )


def _overhead(result: dict[str, Any]) -> str:
    found = [row["share_of_prefill_time"] for row in result.get("sinks", {}).values() if "recall" in row]
    if not found:
        return MISSING
    return f"**{'held' if max(found) < 0.01 else 'not held'}**: at most {100 * max(found):.3f} %"


BARS = {"SmolLM2-135M": 0.17, "Qwen2.5-Coder-0.5B": 0.10}


def claims(results: Results) -> str:
    """Return the bars, and for each model whether it is held."""
    small, other = (
        f"{BARS[name]:g} (SmolLM2)" if i == 0 else f"{BARS[name]:g} (Qwen)" for i, name in enumerate(MODELS)
    )
    halves = " and ".join(f"{BARS[name] / 2:g}" for name in MODELS)
    bars: list[tuple[str, Callable[[str], Callable[..., str]]]] = [
        (
            f"at most 2.7 bits, and no more than `kivi2`: at most {small} and {other} of its KL",
            lambda name: _against("kivi2", BARS[name], 2.7),
        ),
        (f"the goal, half of that: {halves}", lambda name: _against("kivi2", BARS[name] / 2, 2.7)),
        (
            "at most 2.7 bits: perplexity within 1.5 % of the 16-bit cache's (asked of Qwen)",
            lambda _: _perplexity(0.015),
        ),
        ("no more bits than `kivi3`: at most 0.3 of its KL", lambda _: _against("kivi3", 0.3)),
        ("no more bits than `kivi4`: at most 0.5 of its KL", lambda _: _against("kivi4", 0.5)),
        ("no more bits than `hf-quanto4`: at most 0.2 of its KL", lambda _: _against("hf-quanto4", 0.2)),
        ("plan 1.8 is no worse than `kivi2`", lambda _: _against("kivi2", 1.0, plan="plan 1.8")),
        ("plan 3.7 is no worse than `kivi4`", lambda _: _against("kivi4", 1.0, plan="plan 3.7")),
        ("a lower mean KL than every rival, at no more bits than it has", lambda _: _every_rival),
        ("recall of attention's sinks at least 0.95", lambda _: _recall),
        ("predicting sinks takes less than 1 % of the prefill", lambda _: _overhead),
    ]
    views = [(name, *view) for name, result in results.items() for view in _views(name, result)]
    rows = [[claim, *(judge(name)(result) for name, _, result in views)] for claim, judge in bars]
    return table(["claim", *(title for _, title, _ in views)], rows)


def _views(name: str, result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return results with the plans fitted on the manual only, and with those of its kind in their place."""
    found = []
    for kind, title in ((False, name), (True, f"{name}, plans of its kind")):
        rows = []
        for row in result.get("main", {}).get("rows", []):
            if not row["spec"].startswith("plan "):
                rows.append(row)
            elif row["spec"].endswith(KIND) == kind:
                rows.append({**row, "spec": row["spec"].removesuffix(KIND)})
        found.append((title, {**result, "main": {**result.get("main", {}), "rows": rows}}))
    return found


# ---------------------------------------------------------------------- the other parts


def setup(results: Results) -> str:
    rows = []
    for name, result in results.items():
        fits = [result[part] for part in ("calibration", "calibration of its kind") if part in result]
        if not fits:
            rows.append([name, MISSING, "-", "-", "-"])
        for fit in fits:
            rows.append(
                [
                    name,
                    f"`{result['weights_sha256'][:12]}`",
                    f"{fit['tokens'] - fit['own']} tokens of {fit['text']}",
                    f"{fit['own']} tokens",
                    f"`{fit['text_sha256'][:12]}`",
                ]
            )
    columns = [
        "model",
        "sha256 of its weights",
        "fitted on",
        "and written by itself",
        "sha256 of the text's tokens",
    ]
    return table(columns, rows)


def parts(results: Results) -> str:
    """Return what the method is without each of its parts, beside the whole."""
    said = []
    for name, result in results.items():
        rows = _rows(result, "parts")
        if not rows:
            said.append(f"**{name}**: {MISSING}.\n")
            continue
        whole = rows.get("the whole method", {}).get("kl_mean")
        cells = [
            [
                _name(spec),
                *(COLUMNS[column](row) for column in SHORT[:2]),
                f"{row['kl_mean'] / whole:.2f}" if whole else "-",
                COLUMNS["KL / `kivi2`'s"](row),
            ]
            for spec, row in rows.items()
        ]
        columns = ["cache", *SHORT[:2], "KL / the whole method's", "KL / `kivi2`'s"]
        said.append(f"**{name}.** {_setting(result['parts'])}.\n\n{table(columns, cells)}")
    return "\n".join(said)


def sinks(results: Results) -> str:
    rows = []
    for name, result in results.items():
        for text, row in result.get("sinks", {}).items() or [("", None)]:
            if row is None:
                rows.append([name, MISSING, *"-----"])
            elif "none" in row:
                rows.append([name, text.capitalize(), f"not to be predicted: {row['none']}", *"----"])
            else:
                rows.append(
                    [
                        name,
                        f"{text.capitalize()}, {row['windows']} windows",
                        row["sinks"],
                        row["predicted"],
                        f"{row['recall']:.3f}",
                        f"{row['precision']:.3f}",
                        f"{row['recall_first_5']:.3f}",
                    ]
                )
    columns = [
        "model",
        "text",
        "sinks",
        "predicted",
        "recall",
        "precision",
        "recall of the first five tokens",
    ]
    return table(columns, rows)


def bound(results: Results) -> str:
    known = {name: {row["bits"]: row for row in result.get("bound", [])} for name, result in results.items()}
    wanted = [
        bits for bits in (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5) if any(bits in rows for rows in known.values())
    ]
    if not wanted:
        return f"{MISSING.capitalize()}.\n"
    columns, cells = ["bits a number"], [[f"{bits:g}"] for bits in wanted]
    for name, rows in known.items():
        columns += [f"{name}: bound", "whole bits"]
        for line, bits in zip(cells, wanted, strict=True):
            row = rows.get(bits)
            line += [MISSING] * 2 if row is None else [f"{row[k]:.3g}" for k in ("bound", "whole_bits")]
    return table(columns, cells)


def _bits_at_bound(curve: list[dict[str, float]], nats: float) -> float | None:
    """Return the bits at which the bound reaches so many nats; None outside of what was computed."""
    bits, least = [row["bits"] for row in curve], [row["bound"] for row in curve]
    if not least[-1] <= nats <= least[0]:
        return None
    return float(np.interp(-math.log(nats), [-math.log(x) for x in least], bits))


def distance(results: Results) -> str:
    """Return how many bits each cache of the main table holds beyond those of the bound at the same KL."""
    specs = list(dict.fromkeys(spec for result in results.values() for spec in _rows(result, "main")))
    if not specs:
        return f"{MISSING.capitalize()}.\n"
    cells = []
    for spec in specs:
        line = [_name(spec)]
        for result in results.values():
            row, curve = _rows(result, "main").get(spec), result.get("bound")
            if row is None or not curve:
                line.append(MISSING)
                continue
            at = _bits_at_bound(curve, row["kl_mean"])
            if at is not None:
                line.append(f"{row['effective_bits'] - at:+.2f}")
            elif row["kl_mean"] > curve[0]["bound"]:
                line.append(f"more than {row['effective_bits'] - curve[0]['bits']:+.2f}")
            else:
                line.append("beyond the curve")
        cells.append(line)
    return table(["cache", *(f"{name}: bits beyond the bound" for name in results)], cells)


def needles(results: Results) -> str:
    cells, details = [], []
    for name, result in results.items():
        rows = result.get("needles", [])
        if not rows:
            cells.append([name, MISSING, *"---"])
            continue
        seeds = sorted({row["seed"] for row in rows})
        tokens = [row["tokens"] for row in rows]
        for cache in (key for key, value in rows[0].items() if isinstance(value, dict)):
            same = sum(row[cache]["answer"] == row["16bit"]["answer"] for row in rows)
            cells.append(
                [
                    name,
                    _name(cache),
                    f"{sum(row[cache]['right'] for row in rows)} of {len(rows)}",
                    "-" if cache == "16bit" else f"{same} of {len(rows)}",
                    ", ".join(
                        f"{depth:g}: {sum(r[cache]['right'] for r in rows if r['depth'] == depth)}"
                        for depth in sorted({row["depth"] for row in rows})
                    ),
                ]
            )
        details.append(
            f"{name}: {len(rows)} prompts of {_range(tokens)} tokens, simulated records of "
            f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}."
        )
    columns = ["model", "cache", "code right", "same answer as `16bit`", "right by depth"]
    return table(columns, cells) + ("\n" + " ".join(details) + "\n" if details else "")


def attention_speed(folder: Path = SPEED) -> str:
    """Return how long attention to packed pages takes, beside torch's and ONNX Runtime's."""
    path = folder / "decode_attention.json"
    if not path.is_file():
        return f"{MISSING.capitalize()}.\n"
    found = json.loads(path.read_text(encoding="utf-8"))
    ratios = ("ratio_to_sdpa_bf16", "ratio_to_floor", "ratio_to_ort_int8", "ratio_to_ort_int4")
    cells = [
        [
            row["layout"],
            f"{row['head_dim']}, {row['gqa']}",
            row["threads"],
            f"{row['effective_bits']:.2f}",
            *("-" if row[name] is None else f"{row[name]:.2f}" for name in ratios),
        ]
        for row in found["rows"]
    ]
    columns = ["layout", "width, queries a head", "threads", "bits", "of torch's bfloat16", "of the floor"]
    columns += ["of ONNX Runtime int8", "of int4"]
    first = found["rows"][0]
    where = f"{first['context']} tokens, kernel `{first['kernel']}`, {found['machine']['processor']}"
    return f"{where}.\n\n{table(columns, cells)}"


def step_speed(folder: Path = SPEED) -> str:
    """Return how long a step of a model takes, beside transformers' own cache."""
    path = folder / "generate.json"
    if not path.is_file():
        return f"{MISSING.capitalize()}.\n"
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        ["a step", f"{found['step_ratio_to_dynamic']:.2f}"],
        ["reading the text", f"{found['prefill_ratio']:.2f}"],
        ["bytes of the cache", f"{found['cache_bytes']['sagittal'] / found['cache_bytes']['dynamic']:.2f}"],
    ]
    peaks = found.get("peak_bytes", {})
    if peaks.get("dynamic") and peaks.get("sagittal"):
        rows.append(["most memory of the process", f"{peaks['sagittal'] / peaks['dynamic']:.2f}"])
    rows.append(["the longest step, of the median one", f"{found['longest_step_over_median']:.2f}"])
    rows.append(["the same of `DynamicCache`", f"{found['longest_step_over_median_dynamic']:.2f}"])
    threads = f"{found['threads']} {'thread' if found['threads'] == 1 else 'threads'}"
    where = (
        f"{found['model']}, {found['context']} tokens, {found['effective_bits']:.2f} bits, {threads}, "
        f"{found['machine']['processor']}"
    )
    return f"{where}.\n\n{table(['', 'of `DynamicCache`'], rows)}"


def picture(name: str, words: str) -> str:
    """Return a figure, once it has been drawn."""
    return f"![{words}](images/{name})\n" if (IMAGES / name).is_file() else ""


def pictures(results: Results) -> str:
    drawn = [
        picture(f"kv_rate_{name}.png", f"KL against bits a number, {name}, all caches of the table above")
        for name in results
    ]
    return "\n".join(line for line in drawn if line)


def page(folder: Path = HERE / "results") -> str:
    results = load(folder)
    made = {
        "setup": setup(results),
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
    }
    template = (HERE / "language.md.in").read_text(encoding="utf-8")
    wanted = re.findall(r"\{\{(.+?)\}\}", template)
    if sorted(wanted) != sorted(made):
        raise ValueError(f"language.md.in and the tables do not agree: {sorted(set(wanted) ^ set(made))}")
    text = re.sub(r"\{\{(.+?)\}\}", lambda found: made[found[1]].rstrip("\n"), template)
    return re.sub(r"\n{3,}", "\n\n", text)


# ---------------------------------------------------------------------- pictures


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
        rows = _rows(result, "main")
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
        axes.set_title(f"{name}: {_setting(result['main'])}", fontsize=8)
        axes.margins(x=0.1)
        axes.legend(frameon=False)
        keep(picture, axes, f"kv_rate_{name}.png")
    return drawn


if __name__ == "__main__":
    if "--figures" in sys.argv[1:]:
        for path in figure():
            print(path)
    PAGE.write_text(page(), encoding="utf-8")
