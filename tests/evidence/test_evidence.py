"""The documentation shows the committed results, and a slice of them comes out again."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"evidence_{name}", ROOT / "evidence" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "evidence" / "results" / f"{name}.json").read_text())


def test_the_page_is_made_from_the_results() -> None:
    assert (ROOT / "docs" / "evidence.md").read_text() == script("tables").page()


def test_a_simulated_brain_gives_the_recorded_amounts() -> None:
    from sagittal.core import assets
    from sagittal.core.errors import AssetError
    from sagittal.volume import read_nifti

    evidence = script("tissue_volumes")
    try:
        paths = {k: assets.fetch(assets.asset(f"mni152-{k}")) for k in ("t1", "gm", "wm")}
    except AssetError as error:
        pytest.skip(f"the template cannot be had: {error}")
    t1 = read_nifti(paths["t1"])
    maps = {k: read_nifti(paths[k]).array.astype(np.float64) / 255 for k in ("gm", "wm")}
    maps["csf"] = np.where(t1.array > 0, np.clip(1 - maps["gm"] - maps["wm"], 0, 1), 0)
    (again,) = evidence.simulated(t1, maps, seeds=1)["rows"]
    recorded = results("tissue_volumes")["simulated"]["rows"][0]
    for tissue, amount in recorded["amounts"].items():
        assert again["truth"][tissue] == pytest.approx(recorded["truth"][tissue], rel=1e-6)
        assert again["amounts"][tissue] == pytest.approx(amount, rel=1e-3)


@pytest.mark.model
def test_a_simulated_record_gives_a_recorded_answer(language_model_path: Path) -> None:
    from sagittal.language import load_language_model

    rows = [row for row in results("record_reading")["rows"] if row["cache"] == "4 bits"]
    surest = max(rows, key=lambda row: row["probability"])
    model = load_language_model(language_model_path)
    (again,) = script("record_reading").ask(model, surest["seed"], "4 bits", [surest["question"]])
    assert {k: again[k] for k in ("tokens", "bytes", "bytes_16bit", "outcome")} == {
        k: surest[k] for k in ("tokens", "bytes", "bytes_16bit", "outcome")
    }
    assert again["probability"] == pytest.approx(surest["probability"], abs=0.05)
