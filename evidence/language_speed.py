"""The tables of speed, from the JSON that the benchmarks write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from language_results import HERE, MISSING
from pages import table

SPEED = HERE.parent / "benchmarks" / "results"


def attention_speed(folder: Path = SPEED) -> str:
    """Return how long attention to packed pages takes, beside torch's and ONNX Runtime's, by machine."""
    return _each(folder, "decode_attention", _one_attention)


def step_speed(folder: Path = SPEED) -> str:
    """Return how long a step of a model takes, beside transformers' own cache, by machine."""
    return _each(folder, "generate", _one_step)


def growth(folder: Path = SPEED) -> str:
    """Return how a step and a cache grow with the text, and the slopes of a line through the steps, by
    machine."""
    return _each(folder, "sweep", _one_growth)


def _each(folder: Path, name: str, make: Callable[[dict[str, Any]], str]) -> str:
    """Return what is made of each file of this name, with whatever end, one below the other."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{name}*.json"))]
    return "\n\n".join(map(make, found)) or f"{MISSING.capitalize()}.\n"


def _one_attention(found: dict[str, Any]) -> str:
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


def _one_step(found: dict[str, Any]) -> str:
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


def _one_growth(found: dict[str, Any]) -> str:
    rows: list[dict[str, Any]] = found["sweep"]
    cells = [
        [
            f"{row['context']:,}",
            *(f"{row['step_ms'][kind]:.1f}" for kind in ("dynamic", "sagittal")),
            f"{row['step_ratio_to_dynamic']:.2f}",
            *(f"{row['floor_ms'][kind]:.1f}" for kind in ("dynamic", "sagittal")),
            *(f"{row['cache_bytes'][kind] / 2**20:.1f}" for kind in ("dynamic", "sagittal")),
        ]
        for row in rows
    ]
    columns = ["tokens", "step, `DynamicCache`", "step, low-bit", "ratio", "floor", "floor, low-bit"]
    columns += ["cache, MiB", "low-bit, MiB"]
    slope = {kind: slope_of(rows, kind) for kind in ("dynamic", "sagittal")}
    threads = f"{rows[0]['threads']} {'thread' if rows[0]['threads'] == 1 else 'threads'}"
    return (
        f"{threads}, {found['machine']['processor']}, milliseconds.\n\n{table(columns, cells)}\n\n"
        f"A line through the steps rises by {slope['dynamic']:.2f} ms for 1,000 tokens with `DynamicCache` and by "
        f"{slope['sagittal']:.2f} with the low-bit cache, {slope['sagittal'] / slope['dynamic']:.2f} of it.\n"
    )


def slope_of(rows: list[dict[str, Any]], kind: str) -> float:
    """Return milliseconds that a step takes longer for 1,000 more tokens, by least squares."""
    tokens, times = [row["context"] for row in rows], [row["step_ms"][kind] for row in rows]
    return 1000 * float(np.polyfit(tokens, times, 1)[0])
