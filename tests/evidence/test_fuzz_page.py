from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

EVIDENCE = Path(__file__).parents[2] / "evidence"


def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_page", EVIDENCE / "fuzz_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result(**changes: Any) -> dict[str, Any]:
    row = {"seconds": 600, "executions": 12345, "coverage": 7, "findings": [], "kept": []}
    return {"version": "1.2", "targets": {"itk": {**row, **changes}}}


def test_what_is_still_found_is_counted_from_the_run_and_from_what_was_kept() -> None:
    finding = {"kind": "crash", "where": "itk", "count": 3, "input": "MetaImage, 9 bytes"}
    kept = [{"name": "a", "kind": "crash", "fixed": False}, {"name": "b", "kind": "hang", "fixed": True}]
    text = page().section(result(findings=[finding], kept=kept))
    assert "| NRRD and MetaImage | 10 | 12 345 | 7 | 2 |" in text
    assert "1 of 2 do no longer happen" in text
    assert "| the process ended | 1 |" in text


def test_the_committed_run_is_of_every_reader_and_found_nothing_more() -> None:
    committed = json.loads(page().RESULT.read_text())["targets"]
    assert set(committed) >= {"nifti", "dicom", "itk", "archive"}
    for name, row in committed.items():
        assert row["seconds"] >= 600 or name == "plan"
        assert row["findings"] == []
        assert all(case["fixed"] for case in row["kept"])
    assert "still found" in page().section(json.loads(page().RESULT.read_text()))
