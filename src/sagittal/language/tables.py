"""What a kernel knows of a codec to read its pages: plain arrays, the same for every kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sagittal.language.codec import Codec
from sagittal.language.quantise import gaussian_levels

__all__ = ["Tables", "tables_of"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Tables:
    """Arrays of one codec; H heads of width D, C components a head.

    A state is ``mean + inverse * (basis @ (factor * component))``, turned by the position if the codec says
    so; a component is ``offset + scale * level`` as measured in the page, or, static, ``gain * level``.

    Args:
        bits: Of each component, uint8, ``(H, C)``.
        levels: Of each plane, by rising width, what its codes stand for, float32: for a measured scale in
            steps of it.
        factor: Spread and scale of the basis, float32, ``(H, C)``.
        inverse: One over the weight, float32, ``(H, D)``.
        mean: float32, ``(H, D)``.
        basis: int8, ``(H or 1, D, C)``: the plan's own array; None if component i is channel i.
        group: Components of a token that share a measured scale.
    """

    bits: Array
    levels: list[Array]
    factor: Array
    inverse: Array
    mean: Array
    basis: Array | None
    group: int


def tables_of(codec: Codec) -> Tables:
    """Return the tables of a codec, every number rounded as the codec rounds it."""
    coding, heads = codec.coding, codec.heads
    inner, outer = (heads, codec.components), (heads, codec.width)
    static = coding.scale == "static"

    def table(array: Any, shape: tuple[int, int], rounded: bool = True) -> Array:
        numbers = np.asarray(1.0 if array is None else array, np.float16 if rounded else np.float32)
        return np.broadcast_to(numbers.astype(np.float32), shape)

    def levels(bits: int) -> Array:
        if coding.levels == "uniform":
            return np.arange(1 << bits, dtype=np.float32)
        if coding.levels == "gaussian":
            return gaussian_levels(bits).numpy()
        assert not isinstance(coding.levels, str)
        steps = 1 if static else (1 << bits) - 1
        return np.asarray(coding.levels[bits], dtype=np.float32) * np.float32(steps)

    factor = table(coding.spread if static else None, inner) * table(coding.basis_scale, inner)
    return Tables(
        bits=np.ascontiguousarray(np.broadcast_to(np.asarray(coding.bits, dtype=np.uint8), inner)),
        levels=[levels(bits) for bits in codec.widths],
        factor=np.ascontiguousarray(factor),
        inverse=np.ascontiguousarray(1 / table(coding.weight, outer)),
        mean=np.ascontiguousarray(table(0.0 if coding.mean is None else coding.mean, outer, rounded=False)),
        basis=None if coding.basis is None else np.ascontiguousarray(coding.basis),
        group=min(coding.group, heads * codec.components),
    )
