"""Integer codes of 1 to 8 bits, stored without a gap.

Eight codes of ``b`` bits take ``b`` bytes. They form one little-endian bit stream: code ``i`` of such a run
holds the bits ``i*b`` to ``i*b + b - 1``, and bit 0 is the lowest bit of the first byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor

from sagittal.core.errors import InputError

__all__ = ["look_up", "pack", "pack_planes", "packed_width", "unpack"]


def packed_width(length: int, bits: int) -> int:
    """Return how many bytes ``length`` codes of ``bits`` bits take, whole runs of eight codes."""
    _check_bits(bits)
    return -(-length // 8) * bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes along the last axis.

    Args:
        codes: Whole numbers from 0 to ``2**bits - 1``, any integer dtype, shape ``(..., n)``. When ``n`` is
            no multiple of eight, zeros fill the last run.
        bits: 1 to 8.

    Returns:
        Bytes, uint8, shape ``(..., packed_width(n, bits))``.

    Raises:
        InputError: ``bits`` is out of range, the codes are no integers, or one does not fit.
    """
    _check_bits(bits)
    if codes.is_floating_point() or codes.is_complex() or codes.ndim == 0:
        raise InputError(
            "codes cannot be packed", value=f"{codes.dtype}, {codes.ndim} axes", expected="an integer array"
        )
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= 1 << bits):
        raise InputError(
            "a code does not fit its bits",
            value=f"codes from {int(codes.min())} to {int(codes.max())}",
            expected=f"0 to {(1 << bits) - 1} for {bits} bits",
        )
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % 8))
    rows = codes.reshape(1, math.prod(codes.shape[:-1]), codes.shape[-1])
    widths = torch.full(rows.shape[1:2], bits, device=codes.device)
    (plane,) = pack_planes(rows, widths, [(bits, torch.arange(rows.shape[1], device=codes.device))])
    return plane.view(*codes.shape[:-1], codes.shape[-1] // 8 * bits)


def pack_planes(codes: Tensor, bits: Tensor, planes: Iterable[tuple[int, Tensor]]) -> tuple[Tensor, ...]:
    """Pack components of several widths, each as :func:`pack` does, in few steps for all of them.

    Args:
        codes: ``(B, C, T)``, T a multiple of eight, each code within its component's bits, which is not
            looked at.
        bits: Of each component, 0 to 8, ``(C,)``.
        planes: For each width wanted, the components that have it.

    Returns:
        For each width, bytes of its components, ``(B, n, T * width / 8)``.
    """
    words, shift = codes.to(torch.int64), bits.to(torch.int64)[:, None]
    for _ in range(3):  # pairs, fours, eights
        words = words[..., ::2] | words[..., 1::2] << shift
        shift = 2 * shift
    run = words[..., None].view(torch.uint8)  # its lowest byte first, as on every machine that torch runs on
    return tuple(run[:, at, :, :width].flatten(-2) for width, at in planes)


def unpack(packed: Tensor, bits: int, length: int) -> Tensor:
    """Undo :func:`pack`.

    Args:
        packed: Bytes, uint8, shape ``(..., packed_width(length, bits))``.
        bits: 1 to 8, as given to :func:`pack`.
        length: Codes in the last axis before packing.

    Returns:
        Codes, uint8, shape ``(..., length)``.

    Raises:
        InputError: ``bits`` is out of range, or the last axis has not the width of ``length`` codes.
    """
    _check_bits(bits)
    return look_up(packed, torch.arange(1 << bits, dtype=torch.uint8, device=packed.device), bits, length)


def look_up(packed: Tensor, levels: Tensor, bits: int, length: int) -> Tensor:
    """Return ``levels[unpack(packed, bits, length)]``, in one step.

    Several codes are looked up at once, as one word: a byte of 1-, 2- or 4-bit codes, 12 bits of 3- or 6-bit
    ones, 10 bits of 5-bit ones.

    Args:
        packed: As for :func:`unpack`.
        levels: One for each code, ``(2**bits,)``.
        bits: As for :func:`unpack`.
        length: As for :func:`unpack`.

    Raises:
        InputError: As for :func:`unpack`.
    """
    width = packed_width(length, bits)
    if packed.dtype != torch.uint8 or packed.shape[-1] != width:
        raise InputError(
            "packed codes have another width",
            value=f"{packed.shape[-1]} {packed.dtype}",
            expected=f"{width} torch.uint8 for {length} codes of {bits} bits",
        )
    size = _WORD[bits]
    if size == 8:
        words = packed.to(torch.int32)
    else:
        runs = packed.to(torch.int32).unflatten(-1, (width // bits, bits))
        words = torch.stack([_word(runs, start, size) for start in range(0, 8 * bits, size)], dim=-1)
    table = levels[_codes_of_words(bits).to(levels.device)]  # (words, codes a word)
    found = table.index_select(0, words.flatten())
    return found.view(*packed.shape[:-1], 8 * width // bits)[..., :length]


_WORD = {1: 8, 2: 8, 3: 12, 4: 8, 5: 10, 6: 12, 7: 7, 8: 8}


def _word(runs: Tensor, start: int, size: int) -> Tensor:
    """Return the ``size`` bits from bit ``start`` of each run of bytes."""
    byte, shift = divmod(start, 8)
    word = runs[..., byte] >> shift
    if shift + size > 8:
        word = word | (runs[..., byte + 1] << (8 - shift))
    return word & ((1 << size) - 1)


@lru_cache
def _codes_of_words(bits: int) -> Tensor:
    size = _WORD[bits]
    words = torch.arange(1 << size)[:, None]
    return (words >> torch.arange(0, size, bits)) & ((1 << bits) - 1)


def _check_bits(bits: int) -> None:
    if bits not in range(1, 9):
        raise InputError("codes of this width cannot be packed", value=bits, expected="1 to 8 bits")
