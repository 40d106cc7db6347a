"""How many bits a cache spends, and on what."""

from __future__ import annotations

from dataclasses import dataclass

from sagittal.core.errors import InputError

__all__ = ["EXACT", "CachePlan"]

EXACT = 16
"""The bit width that stands for "kept as it came": nothing is quantised."""


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """What a :class:`~sagittal.language.cache.LowBitCache` keeps exact and what it quantises.

    Args:
        key_bits: Bits a key code, 1 to 8, or 16 to keep keys as they come.
        value_bits: Bits a value code, 1 to 8, or 16 to keep values as they come.
        sinks: First positions of the cache that stay exact for good, because many models lay most of
            their attention there (Xiao et al., Efficient streaming language models with attention sinks,
            2023).
        residual: Most recent tokens that stay exact, at the least.
        page: Tokens quantised together. A key channel has one scale and one offset a page.
        value_group: Channels of one value token that share a scale and an offset; must divide the width of
            a head.

    Raises:
        InputError: A number is out of its range; the message names the field.

    The layout, keys by channel and values by token, is that of Liu et al., KIVI (2024). The three exact parts
    cost 16 bits an element, so a short text gains nothing; ``LowBitCache.effective_bits`` tells the truth.
    """

    key_bits: int = 4
    value_bits: int = 4
    sinks: int = 4
    residual: int = 64
    page: int = 64
    value_group: int = 64

    def __post_init__(self) -> None:
        for name in ("key_bits", "value_bits"):
            bits = getattr(self, name)
            if bits != EXACT and bits not in range(1, 9):
                raise InputError(f"{name} cannot be stored", value=bits, expected="1 to 8, or 16 for exact")
        for name, least in (("sinks", 0), ("residual", 0), ("page", 1), ("value_group", 1)):
            if getattr(self, name) < least:
                raise InputError(
                    f"{name} is too small", value=getattr(self, name), expected=f"at least {least}"
                )
