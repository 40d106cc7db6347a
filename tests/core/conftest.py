"""A cache folder of its own for each test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SAGITTAL_CACHE", str(folder))
    monkeypatch.delenv("SAGITTAL_OFFLINE", raising=False)
    return folder
