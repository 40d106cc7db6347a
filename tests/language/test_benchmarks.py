"""The benchmarks run, and write what they say; how fast anything is, no test can tell."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def _run(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
    found = folder / "found.json"
    command = [sys.executable, str(BENCHMARKS / name), *arguments, "--json", str(found)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    held = json.loads(found.read_text(encoding="utf-8"))
    assert held["machine"]["processor"]
    assert isinstance(held, dict)
    return held


def _positive(number: Any) -> bool:
    return isinstance(number, float) and math.isfinite(number) and number > 0


def test_decode_attention(tmp_path: Path) -> None:
    arguments = "--context 256 --shapes 64x2x3 --threads 1,2 --rounds 2 --spread-mib 0.1 --planned-bits 6"
    rows = _run("decode_attention.py", tmp_path, *arguments.split())["rows"]
    layouts = ["uniform", "planned", "planned-mixed"]
    assert [(row["layout"], row["threads"]) for row in rows] == [
        (name, n) for n in (1, 2) for name in layouts
    ]
    for row in rows:
        assert (row["head_dim"], row["gqa"], row["kv_heads"], row["context"]) == (64, 3, 2, 256)
        assert all(
            _positive(row[name]) for name in ("ratio_to_sdpa_bf16", "ratio_to_floor", "ms", "floor_ms")
        )
        for name in ("ratio_to_ort_int8", "ratio_to_ort_int4"):
            assert _positive(row[name]) or (row[name] is None and row["without_ort"])


@pytest.mark.parametrize("plan", ["--plan uniform", "--bits 9"])
def test_generate(tmp_path: Path, model_folder: Path, plan: str) -> None:
    arguments = f"--model {model_folder} --context 200 --steps 4 {plan} --caches sagittal"
    found = _run("generate.py", tmp_path, *arguments.split())
    names = "step_ratio_to_dynamic longest_step_over_median longest_phase_over_median prefill_ratio"
    assert all(_positive(found[name]) for name in names.split())
    assert found["steps"] == 4
    assert found["peak_bytes"]["sagittal"] >= found["model_bytes"]["sagittal"] > 0
    assert found["failed"] == {}
    assert 2 < found["effective_bits"] < 16.5


def test_generate_at_several_lengths(tmp_path: Path, model_folder: Path) -> None:
    arguments = f"--model {model_folder} --sweep 100,300 --steps 2 --plan uniform"
    rows = _run("generate.py", tmp_path, *arguments.split())["sweep"]
    assert [row["context"] for row in rows] == [100, 300]
    for row in rows:
        assert (
            set(row["step_ms"]) == set(row["floor_ms"]) == set(row["cache_bytes"]) == {"dynamic", "sagittal"}
        )
        assert all(map(_positive, [*row["step_ms"].values(), *row["floor_ms"].values()]))
