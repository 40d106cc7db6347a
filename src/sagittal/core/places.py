"""Where sagittal keeps things on this machine."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder", "data_folder"]


def cache_folder() -> Path:
    """Folder of pinned downloads and what is made from them; ``SAGITTAL_CACHE`` overrides it."""
    if named := os.environ.get("SAGITTAL_CACHE"):
        return Path(named).expanduser().absolute()
    return _home("XDG_CACHE_HOME", ".cache")


def data_folder() -> Path:
    """Folder of what must be kept: by default the case store."""
    return _home("XDG_DATA_HOME", ".local/share")


def _home(xdg: str, fallback: str) -> Path:
    base = os.environ.get(xdg)
    return (Path(base) if base else Path.home() / fallback) / "sagittal"
