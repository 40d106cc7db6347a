"""The kernels that read and write packed pages, and which of them computes.

Those of the extension ``sagittal._native`` compute on a CPU; what was installed without a compiler has none
of them. ``triton`` computes on an NVIDIA GPU where Triton is installed; with ``TRITON_INTERPRET=1``, set
before anything imports Triton, its interpreter does so on a CPU, to try it and not to be fast. Plain torch,
the reference, runs everywhere.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec

import torch

from sagittal.core.errors import InputError
from sagittal.core.native import load_extension

__all__ = ["REFERENCE", "TRITON", "chosen", "computes", "kernels", "native", "natives"]

REFERENCE = "reference"
"""The name of plain torch among the kernels."""

TRITON = "triton"
"""The name of the kernel for GPUs."""


native = load_extension()


def natives() -> tuple[str, ...]:
    """Return the kernels of the extension that run on this processor, the fastest last."""
    return tuple(native.kernels()) if native else ()


def kernels() -> tuple[str, ...]:
    """Return the kernels that run here: ``reference``, ``triton`` where it can, and the extension's."""
    triton = (TRITON,) if computes(TRITON, "cuda") or computes(TRITON, "cpu") else ()
    return (REFERENCE, *triton, *natives())


def computes(kernel: str, device: str) -> bool:
    """Tell whether a kernel reads tensors of this type of device, ``cpu`` or ``cuda``, here."""
    if kernel == TRITON:
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return _has_triton() and (device == "cpu" if interpreted else device == "cuda" and _has_gpu())
    return kernel == REFERENCE or device == "cpu"


def chosen(given: str | None = None, device: str = "cpu") -> str:
    """Return the kernel that is asked for, here or by the variable ``SAGITTAL_KERNEL``, or the fastest.

    Args:
        given: Its name.
        device: The type of device that the fastest is looked for on; a name is returned whatever the device.

    Raises:
        InputError: It is unknown, or does not run here.
    """
    known = kernels()
    name = given or os.environ.get("SAGITTAL_KERNEL") or _fastest(device)
    if name not in known:
        source = None if given else "SAGITTAL_KERNEL"
        raise InputError(
            "this kernel does not run here", source=source, value=name, expected=", ".join(known)
        )
    return name


def _fastest(device: str) -> str:
    """Return the fastest that has been run on such a device: Triton's, which has not, has to be asked for."""
    return natives()[-1] if device == "cpu" and native else REFERENCE


@lru_cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@lru_cache
def _has_gpu() -> bool:
    return torch.cuda.is_available()
