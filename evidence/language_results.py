"""What kv_cache.py measured on each language model, and how it is put in words on the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODELS = ("SmolLM2-135M", "Qwen2.5-Coder-0.5B")
MISSING = "not measured"
KIND = ", of its kind"
"""Marks a plan that was fitted on other articles of the encyclopedia that judges."""

Results = dict[str, dict[str, Any]]


def load(folder: Path = HERE / "results") -> Results:
    """Return what was measured on each model; nothing for a model without a file."""
    found: Results = {}
    for name in MODELS:
        path = folder / f"kv_cache_{name}.json"
        found[name] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def by_spec(result: dict[str, Any], part: str) -> dict[str, dict[str, Any]]:
    return {row["spec"]: row for row in result.get(part, {}).get("rows", [])}


def span(value: float, low: float, high: float, form: str = ".3g") -> str:
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def setting(part: dict[str, Any]) -> str:
    tokens = part["rows"][0]["tokens"] if part["rows"] else 0
    return (
        f"{part['text'].capitalize()}, {part['windows']} windows of {part['prefill']} tokens read exactly and "
        f"{part['decode']} fed and scored, {tokens} scored in all"
    )
