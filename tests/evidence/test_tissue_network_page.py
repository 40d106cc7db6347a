"""The page on the tissue network in space says what its file says."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EVIDENCE = Path(__file__).parents[2] / "evidence"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EVIDENCE))
    return importlib.import_module("tissue_network_page")


def row(arm: str, subject: int, dice: float, **more: Any) -> dict[str, Any]:
    each = dict.fromkeys(("csf", "gm", "wm"), dice)
    told = {"arm": arm, "seed": 0, "subject": subject, "dice": each, "hd95_mm": each, "dice_mean": dice}
    return told | {"held_by_voxels": [True, True, False], "ece": 0.01, "cpu_seconds": 2.0} | more


def test_the_page_is_what_the_measurements_say(made: ModuleType) -> None:
    assert made.PAGE.read_text(encoding="utf-8") == made.page()


def test_a_target_is_reached_where_the_rows_reach_it(made: ModuleType) -> None:
    held = {"held": [True, True, True], "width_share": [0.2, 0.1, 0.1]}
    missed = {"held": [True, True, False], "width_share": [0.2, 0.1, 0.1]}
    kept = {
        "facts": {},
        "rows": [
            row("24 subjects, T1", 0, 0.93, **held),
            row("5 subjects, T1", 0, 0.87, **missed),
            row(made.FLOOR, 0, 0.88),
        ],
    }
    work = {"mean": 0.79, "low": 0.7, "high": 0.85}
    found = [line.split(" | ") for line in made.targets(kept, work).splitlines()[2:]]
    assert [(cells[0][2:], cells[1], cells[2], cells[3][:-2]) for cells in found] == [
        ("5 subjects, T1", "Dice 0.88 or more", "0.870", "no"),
        ("5 subjects, T1", "above the hidden Markov field", "-0.010", "no"),
        ("24 subjects, T1", "Dice 0.92 or more", "0.930", "yes"),
        ("24 subjects, T1", "above the hidden Markov field", "+0.050", "yes"),
        ("24 subjects, T1", "calibration error at most 0.02", "0.0100", "yes"),
        ("24 subjects, T1", "95 % intervals hold 92 to 98 %", "100.0 %", "no"),
        ("5 subjects, T1", "calibration error at most 0.02", "0.0100", "yes"),
        ("5 subjects, T1", "95 % intervals hold 92 to 98 %", "66.7 %", "no"),
        ("all networks together", "95 % intervals hold 92 to 98 %", "83.3 % of 6", "no"),
        (
            "ensembles of 5 subjects, T1",
            "work foreseen, rank correlation 0.8 or more",
            "0.79 (0.70 to 0.85)",
            "no",
        ),
    ]
    assert "| - | - | 66.7 % |" in made.doubt(kept)


def test_what_was_not_measured_is_said_to_be_missing(made: ModuleType, tmp_path: Path) -> None:
    none = tmp_path / "none.json"
    assert made.page(none, none).count(made.MISSING) == 6
    (tmp_path / "one.json").write_text(json.dumps({"facts": {}, "rows": [row(made.FLOOR, 0, 0.9)]}))
    assert made.page(tmp_path / "one.json", none).count(made.MISSING) == 4


def head(seed: int, number: int, told: float, real: float, *, logged: bool = False) -> dict[str, Any]:
    def work(minutes: float) -> dict[str, float]:
        return {"minutes": minutes, "components": -minutes, "edge_mm": minutes, "slices": number}

    after = {"minutes": 1.1 * real, "low": 0.9 * real, "high": (1.2 if number else 0.95) * real, "level": 0.9}
    return {
        "seed": seed,
        "subject": f"judge {number}",
        "expected": work(told),
        "real": work(real),
        "entropy": -real,
        "brain_ml": 1000.0 + number,
        "logged": logged,
        "after_logs": after,
    }


def test_work_that_is_foreseen_is_compared_with_the_real(made: ModuleType) -> None:
    """By ranks within a seed; minutes by those that were not logged."""
    space = importlib.import_module("tissue_space")
    rows = [head(0, n, told, real) for n, (told, real) in enumerate([(1, 2), (2, 4), (3, 5), (4, 8)])]
    rows += [head(1, n, told, real) for n, (told, real) in enumerate([(4, 20), (3, 30), (2, 40), (1, 50)])]
    rows[3]["logged"] = True
    found = space.effort(rows)
    assert found["by_seed"] == pytest.approx([1, -1])
    assert found["mean"] == pytest.approx(0)
    assert found["of"]["components"] == pytest.approx(0)
    assert found["of"]["slices"] == pytest.approx(1)
    assert found["entropy"] == pytest.approx(-1)
    assert found["size"] == pytest.approx(1)
    assert found["real_by_predicted"] == pytest.approx((1.9 + 14) / 2)
    assert found["error_by_prior"] == pytest.approx(0.8)
    assert found["error_after_logs"] == pytest.approx(0.1)
    assert found["held_after_logs"] == pytest.approx(5 / 7)
    assert found["low"] <= found["mean"] <= found["high"]


def test_what_the_networks_in_space_reach_stands_beside_the_slices(made: ModuleType) -> None:
    space = importlib.import_module("tissue_space")
    kept = json.loads((EVIDENCE / "results" / "brain_tissue.json").read_text(encoding="utf-8"))["summary"]
    assert kept["in_space"] == json.loads(json.dumps(space.summary()))
    rows = space.rows_of(space.NETWORKS)
    small = [one["dice_mean"] for one in rows if one["arm"] == "5 subjects, T1"]
    assert kept["in_space"]["dice_5_subjects"]["T1"]["mean"] == pytest.approx(sum(small) / len(small))
