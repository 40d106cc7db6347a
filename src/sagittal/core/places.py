"""Where sagittal keeps things on this machine."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder", "store_folder"]


def cache_folder() -> Path:
    """Folder of pinned downloads and what is made from them; ``SAGITTAL_CACHE`` overrides it."""
    return _folder("SAGITTAL_CACHE", "XDG_CACHE_HOME", ".cache")


def store_folder() -> Path:
    """Folder of the case store; ``SAGITTAL_STORE`` overrides it."""
    return _folder("SAGITTAL_STORE", "XDG_DATA_HOME", ".local/share")


def _folder(own: str, xdg: str, fallback: str) -> Path:
    if named := os.environ.get(own):
        return Path(named).expanduser().absolute()
    base = os.environ.get(xdg)
    return (Path(base) if base else Path.home() / fallback) / "sagittal"
