"""Quantised caches of other libraries, each under one name; needs ``pip install sagittal[rivals]``."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import QuantizedCache
from transformers.cache_utils import Cache, get_layer_types_and_kwargs

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import

__all__ = ["RIVALS", "rival"]

_BACKENDS = {"hf-quanto2": ("quanto", 2), "hf-quanto4": ("quanto", 4), "hf-hqq2": ("hqq", 2)}
RIVALS = tuple(_BACKENDS)
"""The names that :func:`rival` knows."""


def rival(name: str) -> Callable[[Any], Cache]:
    """Return what makes a rival's cache from a model's configuration.

    All are the ``QuantizedCache`` of transformers with its defaults: groups of 64 numbers, axis 0, and up to
    127 recent tokens exact, which are quantised together with everything before them once there are 128 (so
    an old token is quantised again and again). The prompt is quantised whole, after an exact prefill.

    - ``hf-quanto2``, ``hf-quanto4``: 2 and 4 bits by optimum-quanto. A layer's heads × tokens × width must be
      a multiple of 64.
    - ``hf-hqq2``: 2 bits by hqq, which fits offsets to the numbers (Badri and Shaji, Half-Quadratic
      Quantization, 2023). The same multiple.

    Args:
        name: One of :data:`RIVALS`.

    Returns:
        A function from the configuration to a new, empty cache. It raises InputError for a model with layers
        of any other kind than full attention.

    Raises:
        InputError: There is no rival of that name.
        MissingDependencyError: Its library is not installed.
    """
    if name not in _BACKENDS:
        raise InputError("there is no such rival", value=name, expected=", ".join(RIVALS))
    backend, bits = _BACKENDS[name]
    if backend == "quanto":
        _uncompiled_quanto()
    else:
        optional_import("hqq.core.quantize", "rivals")

    def make(config: Any) -> Cache:
        kinds, _ = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
        others = sorted(set(kinds) - {"full_attention"})
        if others:
            raise InputError(
                "the cache cannot hold this model's layers",
                source=name,
                value=", ".join(others),
                expected="full_attention only",
            )
        return QuantizedCache(backend, config=config, nbits=bits)

    return make


def _uncompiled_quanto() -> None:
    """Let optimum-quanto unpack codes on the CPU by torch operations.

    It would otherwise compile the same operations as a C++ extension at first use, into its own folder, which
    takes a compiler and a minute or two and saves nothing.
    """
    optional_import("optimum.quanto", "rivals")
    extension = optional_import("optimum.quanto.library.extensions.cpp", "rivals").ext
    if extension._lib is None:
        extension._lib = SimpleNamespace(unpack=_unpack)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """Return codes of ``bits`` bits from bytes ``(n, ...)``: the lowest bits of all bytes first."""
    return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])
