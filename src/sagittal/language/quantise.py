"""Asymmetric uniform quantisation in groups, as pure functions.

A group keeps two float16 numbers: ``offset``, its smallest value rounded down, and ``scale``, the step
between two levels rounded up. So every value of the group lies between the lowest and the highest level, and
none comes back further than half a step away, save for the rounding of the returned dtype. [inference: which
way the two numbers are rounded; a real-valued offset is that of Hooper et al., KVQuant (2024).]
Rounding to a level is to the nearest, ties to even.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sagittal.core.errors import InputError

__all__ = ["Axis", "Quantised", "dequantise", "quantise"]

Axis = Literal["token", "channel"]
"""Where a group lies: along one token's channels, or along one channel's tokens."""


class Quantised(NamedTuple):
    """Codes with what turns them back into numbers.

    ``codes`` is uint8 of shape ``(..., tokens, channels)``. ``scale`` and ``offset`` are float16 of shape
    ``(..., tokens, channels / group)`` by token and ``(..., tokens / group, channels)`` by channel.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor


def quantise(states: Tensor, *, bits: int, axis: Axis, group: int) -> Quantised:
    """Quantise an array of tokens and channels.

    Args:
        states: Finite floating-point numbers, shape ``(..., tokens, channels)``.
        bits: 1 to 8.
        axis: ``"token"`` puts ``group`` neighbouring channels of one token in a group, ``"channel"`` puts
            ``group`` successive tokens of one channel in a group.
        group: Members of a group; must divide the axis it lies along.

    Returns:
        Codes, scale and offset. A constant group has scale zero when float16 holds its value exactly.

    Raises:
        InputError: Something is not finite, a group does not divide its axis, or a group's offset or scale is
            beyond what float16 holds (65504): such states are refused and not clipped, because clipping would
            silently change the model.
    """
    if bits not in range(1, 9):
        raise InputError("states cannot be quantised to this width", value=bits, expected="1 to 8 bits")
    if not states.is_floating_point() or states.ndim < 2:
        raise InputError(
            "states cannot be quantised",
            value=f"{states.dtype}, {states.ndim} axes",
            expected="floating-point numbers with a token and a channel axis",
        )
    grouped, dim = _grouped(states.detach().float(), axis, group)
    if not grouped.numel():
        empty = torch.zeros(_per_group_shape(states, axis, group), dtype=torch.float16, device=states.device)
        return Quantised(torch.zeros_like(states, dtype=torch.uint8), empty, empty.clone())
    low, high = torch.aminmax(grouped, dim=dim, keepdim=True)
    if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):  # both carry a NaN on
        kind = "NaN" if bool(torch.isnan(states).any()) else "infinity"
        raise InputError(
            "states to quantise are not finite", value=kind, expected="finite numbers in every key and value"
        )
    levels = (1 << bits) - 1
    offset = _half_below(low)
    scale = _half_above((high - offset.float()) / levels)
    if not bool(torch.isfinite(offset).all() & torch.isfinite(scale).all()):
        raise InputError(
            "states to quantise are beyond float16",
            value=f"{float(low.min()):.6g} to {float(high.max()):.6g}",
            expected="a magnitude, and a step between two levels, of at most 65504",
        )
    step = torch.where(scale == 0, torch.ones_like(scale), scale).float()
    codes = ((grouped - offset.float()) / step).round_().clamp_(0, levels).to(torch.uint8)
    return Quantised(codes.reshape(states.shape), scale.squeeze(dim), offset.squeeze(dim))


def dequantise(quantised: Quantised, *, axis: Axis, group: int, dtype: torch.dtype) -> Tensor:
    """Turn codes back into numbers, ``offset + code * scale``, computed in float32.

    Args:
        quantised: As :func:`quantise` returned it. By channel the last group may have lost its last tokens.
        axis: As given to :func:`quantise`.
        group: As given to :func:`quantise`.
        dtype: Dtype of the result.

    Returns:
        Numbers of shape ``(..., tokens, channels)``.
    """
    codes, scale, offset = quantised
    tokens = codes.shape[-2]
    if axis == "channel" and tokens % group:
        codes = torch.nn.functional.pad(codes, (0, 0, 0, -tokens % group))
    grouped, dim = _grouped(codes, axis, group)
    numbers = torch.addcmul(offset.float().unsqueeze(dim), grouped.float(), scale.float().unsqueeze(dim))
    return numbers.to(dtype).reshape(codes.shape)[..., :tokens, :]


def _grouped(states: Tensor, axis: Axis, group: int) -> tuple[Tensor, int]:
    """Return the array with its group axis split off, and that axis."""
    along = -1 if axis == "token" else -2
    size = states.shape[along]
    if group < 1 or size % group:
        name = "channels" if axis == "token" else "tokens"
        raise InputError(
            f"groups do not divide the {name}", value=f"groups of {group}", expected=f"a divisor of {size}"
        )
    shape = list(states.shape)
    at = len(shape) + along
    return states.reshape(*shape[:at], size // group, group, *shape[at + 1 :]), along


def _per_group_shape(states: Tensor, axis: Axis, group: int) -> list[int]:
    shape = list(states.shape)
    shape[-1 if axis == "token" else -2] //= group
    return shape


def _half_below(numbers: Tensor) -> Tensor:
    """Round float32 to the float16 number at or below it."""
    half = numbers.half()
    return torch.where(half.float() > numbers, torch.nextafter(half, torch.full_like(half, -torch.inf)), half)


def _half_above(numbers: Tensor) -> Tensor:
    """Round float32 to the float16 number at or above it."""
    return -_half_below(-numbers)
