"""Integer codes of 1 to 8 bits, stored without a gap.

Eight codes of ``b`` bits take ``b`` bytes. They form one little-endian bit stream: code ``i`` of such a run
holds the bits ``i*b`` to ``i*b + b - 1``, and bit 0 is the lowest bit of the first byte.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sagittal.core.errors import InputError

__all__ = ["pack", "packed_width", "unpack"]


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
    if bits < 8 or codes.shape[-1] % 8:
        codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % 8))
    if bits == 8:
        return codes.to(torch.uint8)
    runs = codes.to(torch.int64).reshape(*codes.shape[:-1], codes.shape[-1] // 8, 8)
    words = (runs << (torch.arange(8, device=codes.device) * bits)).sum(-1, keepdim=True)
    return ((words >> (torch.arange(bits, device=codes.device) * 8)) & 0xFF).to(torch.uint8).flatten(-2)


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
    width = packed_width(length, bits)
    if packed.dtype != torch.uint8 or packed.shape[-1] != width:
        raise InputError(
            "packed codes have another width",
            value=f"{packed.shape[-1]} {packed.dtype}",
            expected=f"{width} torch.uint8 for {length} codes of {bits} bits",
        )
    if bits == 8:
        return packed[..., :length]
    mask = (1 << bits) - 1
    if 8 % bits == 0:  # a code lies within one byte
        codes = torch.stack([(packed >> shift) & mask for shift in range(0, 8, bits)], dim=-1)
        return codes.flatten(-2)[..., :length]
    runs = packed.to(torch.int64).reshape(*packed.shape[:-1], width // bits, bits)
    words = (runs << (torch.arange(bits, device=packed.device) * 8)).sum(-1, keepdim=True)
    codes = (words >> (torch.arange(8, device=packed.device) * bits)) & mask
    return codes.to(torch.uint8).flatten(-2)[..., :length]


def _check_bits(bits: int) -> None:
    if bits not in range(1, 9):
        raise InputError("codes of this width cannot be packed", value=bits, expected="1 to 8 bits")
