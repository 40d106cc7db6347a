"""The page on the atlas says what its JSON says, and what was missed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sagittal.registration import average_transformation
from sagittal.volume import Geometry

pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "evidence"))


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_the_page_is_made_from_the_json() -> None:
    assert (ROOT / "docs" / "atlas.md").read_text() == script("atlas_page").page()


def test_what_is_not_measured_is_said(tmp_path: Path) -> None:
    module = script("atlas_page")
    assert module.page(tmp_path / "none.json").count(module.MISSING) == 6 + 5


def test_the_page_knows_the_parts_that_are_measured() -> None:
    parts, measured = script("atlas_page").PARTS, script("atlas")
    assert set(parts["averages"]) == set(measured.AVERAGES)
    assert set(parts["cohorts"]) == set(measured.COHORTS)


def one_round(mm: float, growth: float) -> dict[str, Any]:
    return {
        "displacement_mm": mm,
        "deformation_mm": mm,
        "log_jacobian": growth,
        "moved_mm": 0.1,
        "left_out": {},
    }


def test_a_target_that_is_missed_is_said(tmp_path: Path) -> None:
    row = {f"{name}_{part}": 0.01 for name in ("jacobian", "euclidean") for part in ("curl_error", "least")}
    start = {"rounds": [one_round(5, 0.2)], "centred": one_round(3, 0.09)}
    start |= {"sharpness": 1.2, "sharpness_affine": 1.0, "sd": 0.1, "sd_affine": 0.2}
    near = {"mm": 0.2, "intensity": 0.01, "correlation": 0.99}
    run = {"subjects": 2, "spacing_mm": 3.0, "starts": [start], "euclidean": start, "apart": [near]}
    run |= {
        "pair_apart": near,
        "single": [one_round(4, 0.1)],
        "registrations": 4,
        "registration_cpu_seconds": 2,
    }
    kept = {
        "averages": {"fields": [{**row, "jacobian_error": 0.03, "euclidean_error": 0.1}]},
        "cohorts": {"slices": {**run, "cpu_seconds": 3}},
    }
    path = tmp_path / "atlas.json"
    path.write_text(json.dumps(kept))
    text = script("atlas_page").page(path)
    assert "fields | 0.300 (worst 0.300) | **no** |" in text
    assert "slices | 0.090 | **no** |" in text
    assert "slices | 3.00 mm against 4.00 mm | yes |" in text


def test_averages_come_out_again() -> None:
    module = script("atlas")
    fields = module.smooth_warps(3, Geometry.from_spacing((32, 32, 1), (1, 1, 1), (0, 0, 0)), 3)
    found = module.averaged(fields, lambda given: average_transformation(given).field)
    assert found["jacobian_error"] < 0.2 * found["euclidean_error"]
    assert found["euclidean_curl_error"] < 1e-6
