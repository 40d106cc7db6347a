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
    found = [line.split(" | ") for line in made.targets(kept).splitlines()[2:]]
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
    ]
    assert "| - | - | 66.7 % |" in made.doubt(kept)


def test_what_was_not_measured_is_said_to_be_missing(made: ModuleType, tmp_path: Path) -> None:
    assert made.page(tmp_path / "none.json").count(made.MISSING) == 4
    (tmp_path / "one.json").write_text(json.dumps({"facts": {}, "rows": [row(made.FLOOR, 0, 0.9)]}))
    assert made.page(tmp_path / "one.json").count(made.MISSING) == 2
