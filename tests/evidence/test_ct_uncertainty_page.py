from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

EVIDENCE = Path(__file__).parents[2] / "evidence"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EVIDENCE))
    sys.modules.pop("ct_uncertainty_page", None)
    import ct_uncertainty_page

    return ct_uncertainty_page


def row(method: str, truth: float) -> dict[str, Any]:
    place = {"truth": truth, "truth_by_noise": 0.9, "mean": 0.95, "noise_ratio": 1.0, "error_ratio": 1.1}
    common = {"data": "synthetic", "image": "disc", "views": 60, "photons": 2e4, "doubt": "quick"}
    places = dict.fromkeys(("flat", "edges", "low contrast"), place)
    return {**common, **places, "method": method, "seconds": 3.0, "seconds_without": 1.0}


def test_rows_that_miss_the_target_are_named(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"rows": [row("tv", 0.95), row("sirt", 0.91)]}))
    text = page.section(path)
    assert "\n1 of 2 lie between" in text
    assert "sirt, disc at 2e4 photons: 91.0 %" in text
    assert "tv, disc" not in text
    assert "| tv | quick | 95.0 % |" in text
    assert "| tv | quick | 3.0 to 3.0 |" in text


def test_what_was_not_measured_is_said_to_be_missing(page: Any, tmp_path: Path) -> None:
    assert page.section(tmp_path / "none.json").count(page.MISSING) == 3
