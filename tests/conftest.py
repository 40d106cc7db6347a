"""What every test shares: a store of its own, and the language model where a test asks for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sagittal.core.errors import AssetError


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the store of the person who runs it."""
    monkeypatch.setenv("SAGITTAL_STORE", str(tmp_path / "own-store"))


@pytest.fixture(scope="session")
def language_model_path() -> Path:
    """Folder of the real language model, fetched and converted once; on CI its absence is a failure."""
    pytest.importorskip("torch")
    from sagittal.workflow.models import DEFAULT_MODEL, model_folder

    try:
        return model_folder(DEFAULT_MODEL)
    except AssetError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the language model cannot be had: {error}")
