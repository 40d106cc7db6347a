"""What this machine has for sagittal."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

from sagittal import __version__
from sagittal.case.engines import is_url, shown
from sagittal.case.location import resolve
from sagittal.core import assets
from sagittal.core.places import cache_folder

__all__ = ["diagnose"]

_EXTRAS = {
    "language": ("torch", "transformers", "safetensors", "gguf", "accelerate"),
    "imaging": (
        "nibabel",
        "pydicom",
        "simpleitk",
        "highdicom",
        "dipy",
        "scikit-learn",
        "scipy",
        "pillow",
        "fhir.resources",
    ),
    "web": ("fastapi", "httpx", "jinja2", "python-multipart", "uvicorn"),
    "all": ("monai", "torchio"),
}
_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "i8mm")


def diagnose() -> dict[str, dict[str, str]]:
    """Return what is installed, which assets are here, the processor, and the places with their free disk."""
    found: dict[str, dict[str, str]] = {
        "sagittal": {"version": __version__, "python": platform.python_version()}
    }
    for extra, names in _EXTRAS.items():
        found[f"extra {extra}"] = {name: _version(name, extra) for name in names}
    found["assets"] = {
        a.name: str(a.path) if assets.locate(a) else f"not here: sagittal assets get {a.name}"
        for a in assets.REGISTRY.values()
    }
    found["processor"] = {
        "machine": platform.machine(),
        "cores for this process": str(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ),
        "features": " ".join(_cpu_features()) or "unknown",
        "memory": _memory(),
    }
    store = resolve(None)
    found["places"] = {
        "cache": f"{cache_folder()} ({_free(cache_folder())})",
        "store": shown(store) if is_url(store) else f"{store} ({_free(Path(store))})",
    }
    return found


def _version(name: str, extra: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"not installed: pip install 'sagittal[{extra}]'"


def _cpu_features() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "").split()
    return [flag for flag in _CPU_FLAGS if flag in flags]


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB"
    except (ValueError, OSError):
        return "unknown"


def _free(folder: Path) -> str:
    place = folder
    while not place.exists():
        place = place.parent
    writable = "" if os.access(place, os.W_OK) else ", not writable"
    return f"{shutil.disk_usage(place).free / 1e9:.1f} GB free{writable}"
