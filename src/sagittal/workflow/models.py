"""Language models and assets by name: fetched, converted once, models loaded once a process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sagittal.core import assets
from sagittal.core.places import cache_folder
from sagittal.core.progress import Report, silent

if TYPE_CHECKING:
    from sagittal.language.models import LanguageModel

__all__ = ["DEFAULT_MODEL", "ModelShelf", "model_folder"]

DEFAULT_MODEL = "smollm2-135m-instruct"


class ModelShelf:
    """Loads language models and keeps them for this process.

    Args:
        offline: Fetch nothing; by default as ``SAGITTAL_OFFLINE`` says.
    """

    def __init__(self, *, offline: bool | None = None) -> None:
        self._offline = offline
        self._loaded: dict[str, LanguageModel] = {}

    def get(self, name: str, *, report: Report = silent) -> LanguageModel:
        """Return the model called ``name``: an asset, or a folder with safetensors and tokenizer."""
        if name not in self._loaded:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")  # loading never asks a hub
            from sagittal.language import load_language_model

            folder = model_folder(name, offline=self._offline, report=report)
            report(f"loading the language model {name}")
            self._loaded[name] = load_language_model(folder, packed=True)
        return self._loaded[name]

    def file(self, name: str, *, report: Report = silent) -> Path:
        """Return the file called ``name``: an asset, or a path."""
        if name not in assets.REGISTRY:
            return Path(name)
        report(f"fetching {name}, once")
        return assets.fetch(assets.REGISTRY[name], offline=self._offline)


def model_folder(name: str, *, offline: bool | None = None, report: Report = silent) -> Path:
    """Return the folder of a model in safetensors, fetching and converting an asset when needed."""
    if name not in assets.REGISTRY:
        return Path(name)
    wanted = assets.REGISTRY[name]
    folder = cache_folder() / "models" / f"{name}-{wanted.sha256[:12]}"
    if not folder.is_dir():
        from sagittal.language import convert_gguf

        report(f"fetching {name} ({wanted.size / 1e6:.0f} MB) and converting it once")
        convert_gguf(assets.fetch(wanted, offline=offline), folder)
    return folder
