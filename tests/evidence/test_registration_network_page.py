"""The page on registration by a network says what its file says."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

EVIDENCE = Path(__file__).parents[2] / "evidence"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EVIDENCE))
    return importlib.import_module("registration_network_page")


def row(arm: str, seed: int | None, subject: int, value: float, **more: Any) -> dict[str, Any]:
    told = {"part": "slices", "arm": arm, "seed": seed, "subject": subject, "dice": {"csf": value}}
    return told | {"dice_mean": value, "folds": 0, "sd_log_jacobian": 0.2, "cpu_seconds": 0.1} | more


def test_the_page_is_what_the_measurements_say(made: ModuleType) -> None:
    assert made.PAGE.read_text(encoding="utf-8") == made.page()


def test_without_measurements_the_page_says_so(made: ModuleType, tmp_path: Path) -> None:
    assert made.page(tmp_path / "none.json").count(made.MISSING) == 8


def test_a_stage_is_compared_pair_by_pair(made: ModuleType) -> None:
    rows = [row(made.STAGE, s, n, 0.7 + 0.01 * n + 0.002) for s in range(3) for n in range(4)]
    rows += [row(made.CONTROL, s, n, 0.7 + 0.01 * n) for s in range(3) for n in range(4)]
    line = made.stage({"rows": rows}).splitlines()[-1]
    assert "+0.0020 (+0.0020 to +0.0020)" in line
    assert line.endswith("gains |")


def test_an_interval_over_zero_is_no_gain(made: ModuleType) -> None:
    random = np.random.default_rng(0)
    rows = [row(arm, s, n, 0.7 + random.normal(0, 0.01)) for arm in (made.STAGE, made.CONTROL)
            for s in range(3) for n in range(6)]  # fmt: skip
    assert made.stage({"rows": rows}).splitlines()[-1].endswith("no difference seen |")


def test_a_target_is_reached_only_by_both_overlap_and_time(made: ModuleType) -> None:
    rows = [row("optimiser", None, n, 0.8, cpu_seconds=1.0) for n in range(4)]
    rows += [row("first", 0, n, 0.795, cpu_seconds=0.05) for n in range(4)]
    line = made.targets({"rows": rows}).splitlines()[-1]
    assert "| yes | 1/20.0 | no |" in line


def test_the_kept_rows_are_whole(made: ModuleType) -> None:
    kept = json.loads(made.RESULT.read_text(encoding="utf-8"))
    assert made.of(kept, "slices", "first")
    for part in ("slices", "pairs", "volumes"):
        counts = {len([r for r in made.of(kept, part, arm) if r["seed"] == seed])
                  for arm in {r["arm"] for r in kept["rows"] if r["part"] == part}
                  for seed in {r["seed"] for r in made.of(kept, part, arm)}}  # fmt: skip
        kind = "volumes" if part == "volumes" else "slices"
        assert counts <= {kept["facts"]["subjects"][kind]["judge"]}
