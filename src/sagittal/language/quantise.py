"""Quantisation of components over tokens, as pure functions.

Everything here lies component by component: arrays are ``(..., C, T)``, tokens last, because a page's codes
lie that way in memory. A *group* shares an offset and a scale, both float16: ``offset``, its smallest value
rounded down, and ``scale``, the width of its range rounded up and divided by the steps. So every value lies
between the lowest and the highest level, and with uniform levels none comes back further than half a step
away.
[inference: which way the two numbers are rounded; a real-valued offset is that of Hooper et al., KVQuant
(2024).] Rounding to a level is to the nearest, ties to even.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sagittal.core.errors import InputError

__all__ = [
    "Along",
    "Codebooks",
    "Quantised",
    "dequantise",
    "gaussian_distortion",
    "gaussian_levels",
    "nearest",
    "quantise",
]

Along = Literal["tokens", "components"]
"""Where a group lies: along one component's tokens, or along one token's components."""

Levels = Mapping[int, Tensor]
"""For each bit width, its levels from 0 to 1 in rising order."""


class Quantised(NamedTuple):
    """Codes with what turns them back into numbers.

    ``codes`` is uint8, ``(..., C, T)``. ``scale`` and ``offset`` are float16, ``(..., C, T / group)`` along
    tokens and ``(..., C / group, T)`` along components.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor


def quantise(
    states: Tensor, *, bits: Tensor, along: Along, group: int, clip: float = 1.0, levels: Levels | None = None
) -> Quantised:
    """Quantise an array of components and tokens.

    Args:
        states: Finite floating-point numbers, ``(..., C, T)``.
        bits: 1 to 8 for each component, ``(C,)``; one number within a group along components.
        along: Where a group lies.
        group: Members of a group; must divide the axis it lies along.
        clip: Both ends of a range are multiplied by this before the levels are laid out (RotateKV: 0.8 at
            2 bits); 1 clips nothing.
        levels: Levels of another codebook than the uniform one.

    Raises:
        InputError: A number is out of range or not finite, a group does not divide its axis or mixes bits, or
            an offset or a scale is beyond what float16 holds (65504): such states are refused and not
            clipped, because clipping would silently change the model.
    """
    if int(bits.min()) < 1 or int(bits.max()) > 8:
        raise InputError("states cannot be quantised to this width", value=bits.tolist(), expected="1 to 8")
    grouped, dim = _grouped(states.detach().float(), along, group)
    low, high = torch.aminmax(grouped, dim=dim, keepdim=True)
    if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):  # both carry a NaN on
        kind = "NaN" if bool(torch.isnan(states).any()) else "infinity"
        raise InputError(
            "states to quantise are not finite", value=kind, expected="finite numbers in every key and value"
        )
    low, high = clip * low, clip * high
    steps = _per_group((1 << bits.to(torch.int64)) - 1, along, group).float()
    offset = _half_below(low)
    scale = _half_above((high - offset.float()) / steps)
    if not bool(torch.isfinite(offset).all() & torch.isfinite(scale).all()):
        raise InputError(
            "states to quantise are beyond float16",
            value=f"{float(low.min()):.6g} to {float(high.max()):.6g}",
            expected="a magnitude, and a step between two levels, of at most 65504",
        )
    safe = torch.where(scale == 0, torch.ones_like(scale), scale).float()
    place = (grouped - offset.float()) / safe  # in steps
    if levels is None:
        codes = place.round_().clamp_(min=0).minimum(steps)
    else:
        codes = _nearest_of(place / steps, bits, levels, along, group)
    return Quantised(codes.to(torch.uint8).reshape(states.shape), scale.squeeze(dim), offset.squeeze(dim))


def dequantise(
    quantised: Quantised, *, bits: Tensor, along: Along, group: int, levels: Levels | None = None
) -> Tensor:
    """Turn codes back into float32 numbers ``(..., C, T)``; arguments as for :func:`quantise`."""
    codes, scale, offset = quantised
    grouped, dim = _grouped(codes, along, group)
    place = grouped.float()
    if levels is not None:
        steps = _per_group((1 << bits.to(torch.int64)) - 1, along, group).float()
        place = steps * _level_of(codes, bits, levels).reshape(grouped.shape)
    return torch.addcmul(offset.float().unsqueeze(dim), place, scale.float().unsqueeze(dim)).reshape(
        codes.shape
    )


def nearest(numbers: Tensor, levels: Tensor) -> Tensor:
    """Return the code, uint8, of the nearest of the rising ``levels`` for each number."""
    return torch.bucketize(numbers.contiguous(), (levels[1:] + levels[:-1]) / 2).to(torch.uint8)


class Codebooks:
    """Levels of several widths, looked up for components of unlike width in the same few steps.

    What :func:`nearest` finds by bisection, number by number, is found here by a table: the line is cut into
    cells, a cell knows how many edges between levels lie before it, and the few in it are compared.

    Args:
        levels: For each width, rising levels.
        device: Where the tables lie.
    """

    _CELLS = 2048

    def __init__(self, levels: Levels, device: torch.device | None = None) -> None:
        self._most = 1 << max(levels)
        rows = max(levels) + 1
        self._levels = torch.zeros(rows, self._most, device=device)
        self._edges = torch.full((rows, self._most), torch.inf, device=device)
        before = torch.zeros(rows, self._CELLS, dtype=torch.int32)
        self._low, self._cells = torch.zeros(rows, device=device), torch.zeros(rows, device=device)
        self._inside = 0
        for bits, table in levels.items():
            edges = (table[1:] + table[:-1]) / 2
            self._levels[bits, : 1 << bits] = table
            self._edges[bits, : len(edges)] = edges
            low, width = float(edges[0]), float(edges[-1] - edges[0])
            per = (self._CELLS - 4) / width if width > 0 else 0.0
            self._low[bits], self._cells[bits] = low - (2 / per if per else 0.0), per
            # a number may be taken for one of the next cell by rounding: so much is left to compare
            cell = (edges.double() - float(self._low[bits])) * per
            at = torch.arange(self._CELLS)
            before[bits] = torch.searchsorted(cell, at - 0.5).to(torch.int32)
            after = torch.searchsorted(cell, at + 1.5)
            self._inside = max(self._inside, int((after - before[bits]).max()))
        first = self._most * torch.arange(rows, dtype=torch.int32)[:, None]  # where a row of levels begins
        self._before = (before + first).flatten().to(device=device)

    def nearest(self, numbers: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes of the nearest levels, int32, and those levels.

        Args:
            numbers: Finite, ``(..., C, n)``.
            bits: Of each component, a width of the codebooks, or 0 for code and level 0, ``(C,)``.
        """
        row = bits.long()
        place = (numbers - self._low[row, None]).mul_(self._cells[row, None]).clamp_(0, self._CELLS - 1)
        cell = place.to(torch.int32).add_(self._CELLS * row.int()[:, None]).flatten()
        code = self._before.index_select(0, cell)
        flat = numbers.flatten()
        for _ in range(self._inside):
            code += flat > self._edges.view(-1).index_select(0, code)
        level = self._levels.view(-1).index_select(0, code)
        return (code & (self._most - 1)).view(numbers.shape), level.view(numbers.shape)


@lru_cache
def gaussian_levels(bits: int) -> Tensor:
    """Return the ``2**bits`` levels that give a standard normal number the least squared error, float32.

    The Lloyd-Max quantiser (Max, 1960; Lloyd, 1982): each level is the mean of what is nearest to it. Found
    by Newton's method on these conditions: fixed-point iteration takes tens of thousands of steps for 8 bits.
    """
    count = 1 << bits
    middle = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    levels = 3**0.5 * torch.special.ndtri(middle)  # the density of good levels goes as a third power
    for _ in range(100):
        edges = torch.cat([-_INFINITY, (levels[1:] + levels[:-1]) / 2, _INFINITY])
        density = torch.exp(-(edges**2) / 2) / (2 * torch.pi) ** 0.5
        share = torch.special.ndtr(edges).diff()
        mean = -density.diff() / share
        lower = (density[:-1] * (mean - edges[:-1]) / share / 2).nan_to_num()  # the slope by the level below
        upper = (density[1:] * (edges[1:] - mean) / share / 2).nan_to_num()
        slopes = torch.diag(lower + upper - 1) + torch.diag(lower[1:], -1) + torch.diag(upper[:-1], 1)
        step = torch.linalg.solve(slopes, mean - levels)
        levels = levels - step
        if float(step.abs().max()) < 1e-9:
            break
    found: Tensor = levels.float()
    return found


@lru_cache
def gaussian_distortion(bits: int) -> float:
    """Return the mean squared error of a standard normal number coded by :func:`gaussian_levels`."""
    if bits == 0:
        return 1.0
    levels = gaussian_levels(bits).double()
    edges = torch.cat([-_INFINITY, (levels[1:] + levels[:-1]) / 2, _INFINITY])
    return float(1 - (torch.special.ndtr(edges).diff() * levels**2).sum())  # levels are centroids


_INFINITY = torch.tensor([torch.inf], dtype=torch.float64)


def _grouped(states: Tensor, along: Along, group: int) -> tuple[Tensor, int]:
    """Return the array with its group axis split off, and that axis."""
    at = -1 if along == "tokens" else -2
    size = states.shape[at]
    if group < 1 or size % group:
        raise InputError(
            f"groups do not divide the {along}", value=f"groups of {group}", expected=f"a divisor of {size}"
        )
    shape = list(states.shape)
    at += len(shape)
    return states.reshape(*shape[:at], size // group, group, *shape[at + 1 :]), at + 1


def _per_group(each: Tensor, along: Along, group: int) -> Tensor:
    """Spread a number for each component over a grouped array: ``(C, 1, 1)`` or ``(C / group, 1, 1)``."""
    if along == "tokens":
        return each[:, None, None]
    grouped = each.reshape(-1, group)
    if bool((grouped != grouped[:, :1]).any()):
        raise InputError("bits differ within a group", value=each.tolist(), expected="one width a group")
    return grouped[:, :1, None]


def _nearest_of(place: Tensor, bits: Tensor, levels: Levels, along: Along, group: int) -> Tensor:
    each = _per_group(bits, along, group)
    codes = torch.zeros_like(place, dtype=torch.uint8)
    for width in bits.unique().tolist():
        codes = torch.where(each == width, nearest(place, levels[width].to(place)), codes)
    return codes


def _level_of(codes: Tensor, bits: Tensor, levels: Levels) -> Tensor:
    found = torch.zeros(codes.shape, device=codes.device)
    for width in bits.unique().tolist():
        table = torch.zeros(256, device=codes.device)
        table[: 1 << width] = levels[width].to(table)
        found = torch.where((bits == width)[:, None], table[codes.long()], found)
    return found


def _half_below(numbers: Tensor) -> Tensor:
    """Round float32 to the float16 number at or below it."""
    half = numbers.half()
    return torch.where(half.float() > numbers, torch.nextafter(half, torch.full_like(half, -torch.inf)), half)


def _half_above(numbers: Tensor) -> Tensor:
    """Round float32 to the float16 number at or above it."""
    return -_half_below(-numbers)
