"""The extension ``sagittal._native``, which rooms share, and how many threads they may use."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

__all__ = ["load_extension", "thread_count", "vector_kernels"]


def load_extension() -> Any:
    """Return the extension; None where the package was installed without a compiler."""
    try:
        return import_module("sagittal._native")
    except ImportError:
        return None


def vector_kernels() -> tuple[str, ...]:
    """Return the instruction sets for which the extension's work on images runs here, the fastest last."""
    extension = load_extension()
    return tuple(extension.vector_kernels()) if extension else ()


def thread_count() -> int:
    """Return how many threads to use: what ``OMP_NUM_THREADS`` says, or one for each core of this process."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
