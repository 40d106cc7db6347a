"""The kernels of the extension ``sagittal._native``, and which of them computes.

What was installed without a compiler has none of them; plain torch, the reference, runs everywhere.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from sagittal.core.errors import InputError

__all__ = ["REFERENCE", "chosen", "kernels", "native"]

REFERENCE = "reference"
"""The name of plain torch among the kernels."""


def _extension() -> Any:
    try:
        return import_module("sagittal._native")
    except ImportError:
        return None


native = _extension()


def kernels() -> tuple[str, ...]:
    """Return the kernels that run here, the fastest last; ``reference`` always does."""
    return (REFERENCE, *(native.kernels() if native else ()))


def chosen(given: str | None = None) -> str:
    """Return the kernel that is asked for, here or by the variable ``SAGITTAL_KERNEL``, or the fastest.

    Raises:
        InputError: It is unknown, or does not run here.
    """
    known = kernels()
    name = given or os.environ.get("SAGITTAL_KERNEL") or known[-1]
    if name not in known:
        source = None if given else "SAGITTAL_KERNEL"
        raise InputError(
            "this kernel does not run here", source=source, value=name, expected=", ".join(known)
        )
    return name
