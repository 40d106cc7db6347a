"""The tables of what was measured on the caches of language models."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from language_results import HERE, MISSING, Results, by_spec, setting, span
from pages import table


def _ratio(row: dict[str, Any], other: str) -> str:
    if row["spec"] == other:
        return "1"
    return span(*row["ratios"][other], ".3f") if other in row["ratios"] else "-"


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def _name(spec: str) -> str:
    return f"`{spec}`" if re.fullmatch(r"[a-z0-9.:=,-]+", spec) else spec


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "bits": lambda row: f"{row['effective_bits']:.2f}",
    "KL, nats a token": lambda row: span(row["kl_mean"], *row["kl_interval"]),
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
        rows = list(by_spec(result, part).values())
        if not rows:
            parts.append(f"**{name}**: {MISSING}.")
            continue
        cells = [[_name(row["spec"]), *(COLUMNS[column](row) for column in columns)] for row in rows]
        parts.append(f"**{name}.** {setting(result[part])}.\n\n{table([first, *columns], cells)}")
    return "\n\n".join(parts)


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
        rows = by_spec(result, "parts")
        if not rows:
            said.append(f"**{name}**: {MISSING}.")
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
        said.append(f"**{name}.** {setting(result['parts'])}.\n\n{table(columns, cells)}")
    return "\n\n".join(said)


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
    specs = list(dict.fromkeys(spec for result in results.values() for spec in by_spec(result, "main")))
    if not specs:
        return f"{MISSING.capitalize()}.\n"
    cells = []
    for spec in specs:
        line = [_name(spec)]
        for result in results.values():
            row, curve = by_spec(result, "main").get(spec), result.get("bound")
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
        every = result.get("needles", [])
        if not every:
            cells.append([name, MISSING, *"----"])
            continue
        for asked in sorted({row["asked"] for row in every}):
            rows = [row for row in every if row["asked"] == asked]
            for cache in (key for key, value in rows[0].items() if isinstance(value, dict)):
                same = sum(row[cache]["answer"] == row["16bit"]["answer"] for row in rows)
                right = [f"{row['depth']:g}" for row in rows if row[cache]["right"]]
                cells.append(
                    [
                        name,
                        _range([row["tokens"] for row in rows]),
                        _name(cache),
                        f"{len(right)} of {len(rows)}",
                        "-" if cache == "16bit" else f"{same} of {len(rows)}",
                        ", ".join(right) or "none",
                    ]
                )
        seeds = sorted({row["seed"] for row in every})
        details.append(
            f"{name}: {len(every)} prompts, simulated records of "
            f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}."
        )
    columns = ["model", "tokens", "cache", "code right", "same answer as `16bit`", "right at depth"]
    return table(columns, cells) + ("\n\n" + " ".join(details) if details else "")


def _judged(found: dict[str, Any] | None) -> str:
    return f"{span(*found['ratio_to_kivi2'], '.3f')}, {found['windows']} windows" if found else MISSING


def earlier(results: Results, folder: Path = HERE / "results") -> str:
    """Return what earlier whole runs on the same windows found: plans that differ in what the model wrote."""
    path = folder / "kv_cache_earlier.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["earlier"] if path.is_file() else []
    rows: list[list[str]] = []
    for run in runs:
        where = f"results at `{run['results']}`" if "results" in run else f"code at `{run['code']}`"
        found = run["plan 2.7"]
        rows.append([f"{run['own']}; {where}", *(_judged(found.get(name)) for name in results)])
    now = []
    for result in results.values():
        ratio = by_spec(result, "main").get("plan 2.7", {"ratios": {}})["ratios"].get("kivi2")
        now.append(ratio and {"ratio_to_kivi2": ratio, "windows": result["main"]["windows"]})
    rows.append(["8 windows of 512 tokens, drawn in another way; this run", *map(_judged, now)])
    return (
        "The windows below have judged these whole runs, whose plans differ in what the model happened to write for the "
        "calibration. KL of the plan of 2.7 bits by that of `kivi2`:\n\n"
        + table(["the model wrote", *results], rows)
    )
