"""Walsh-Hadamard rotations over heads, and the order of channels, as RotateKV has them (arXiv 2501.16383)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sagittal.core.errors import InputError

__all__ = ["fwht", "heads_together", "rotate_heads"]


def fwht(states: Tensor) -> Tensor:
    """Return the orthonormal fast Walsh-Hadamard transform along the last axis; it is its own inverse.

    Raises:
        InputError: The axis is no power of two long.
    """
    width = states.shape[-1]
    if width < 1 or width & (width - 1):
        raise InputError("a Walsh-Hadamard transform needs a power of two", value=width)
    half = 1
    turned: Tensor = states
    while half < width:
        pairs = turned.reshape(*states.shape[:-1], width // (2 * half), 2, half)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        turned = torch.stack([first + second, first - second], dim=-2)
        half *= 2
    return turned.reshape(states.shape) / math.sqrt(width)


def heads_together(heads: int, wanted: int = 4) -> int:
    """Return how many key heads are rotated as one: the largest divisor of ``heads`` up to ``wanted``."""
    return max(n for n in range(1, min(heads, wanted) + 1) if heads % n == 0)


def rotate_heads(states: Tensor, heads: int, width: int) -> Tensor:
    """Rotate flattened heads in groups; its own inverse.

    Args:
        states: Shape ``(..., H * D)``.
        heads: Heads of a group; divides H.
        width: D.

    The published method needs a power of two in each group. Other groups are rotated in blocks of the largest
    power of two that divides ``heads * width`` [inference].
    """
    size = heads * width
    block = size & -size
    turned = fwht(states.reshape(*states.shape[:-1], states.shape[-1] // block, block))
    return turned.reshape(states.shape)
