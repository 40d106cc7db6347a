"""Rotary position embedding, undone and done again.

A cache is handed keys after RoPE (Su et al., RoFormer, 2021). What is constant before it, such as the bias of
a key projection, turns with the position after it; so calibrated codings take keys back first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Rope", "rope_of"]


@dataclass(frozen=True, eq=False)
class Rope:
    """Turns the pairs ``(i, i + n)`` of a key's first ``2n`` channels by ``position * frequencies[i]``.

    The turn is orthogonal but for a factor, so undoing and doing it loses nothing, whatever the frequencies:
    were they not the model's own, a coding would fit less well and still return what it was given.

    Args:
        frequencies: Radians a position, float32, shape ``(n,)``.
        scaling: Factor on the turned channels (YaRN and LongRoPE have one).
    """

    frequencies: Tensor
    scaling: float = 1.0

    def turn(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Apply the embedding to ``keys`` ``(B, H, T, D)`` at ``positions`` ``(B or 1, T)``."""
        return self._turn(keys, positions, 1.0)

    def undo(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Take the embedding back from ``keys`` ``(B, H, T, D)`` at ``positions`` ``(B or 1, T)``."""
        return self._turn(keys, positions, -1.0)

    def _turn(self, keys: Tensor, positions: Tensor, sign: float) -> Tensor:
        half = len(self.frequencies)
        angles = positions.to(torch.float32)[:, None, :, None] * self.frequencies.to(keys.device)
        scaling = self.scaling**sign
        cos, sin = scaling * angles.cos(), scaling * sign * angles.sin()
        first, second, rest = keys[..., :half], keys[..., half : 2 * half], keys[..., 2 * half :]
        turned = [first * cos - second * sin, second * cos + first * sin]
        return torch.cat([*turned, rest] if rest.shape[-1] else turned, dim=-1)


def rope_of(config: Any, width: int) -> Rope | None:
    """Return the embedding of a model's full-attention layers, or None for a model without one.

    Args:
        config: The model's configuration (of its text decoder).
        width: Width of a head.

    Frequencies that depend on the length of the text (``dynamic``, ``longrope``) are taken as for a short
    one: see :class:`Rope` for why that is harmless.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    given = getattr(config, "rope_parameters", None) or {}
    nested = given.get("full_attention")
    parameters = nested if isinstance(nested, dict) else given
    kind, theta = parameters.get("rope_type", "default"), parameters.get("rope_theta")
    if theta is None:
        return None
    scaling = 1.0
    if kind in ROPE_INIT_FUNCTIONS:
        layer = {"layer_type": "full_attention"} if isinstance(nested, dict) else {}
        frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), **layer)
    else:
        turned = int(width * parameters.get("partial_rotary_factor", 1.0)) // 2 * 2
        frequencies = 1.0 / theta ** (torch.arange(0, turned, 2, dtype=torch.float32) / turned)
    return Rope(frequencies.float()[: width // 2], float(scaling))
