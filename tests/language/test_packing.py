from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sagittal.core.errors import InputError
from sagittal.language.packing import pack, pack_planes, packed_width, unpack


@settings(max_examples=80, deadline=None)
@given(bits=st.integers(1, 8), rows=st.integers(0, 3), length=st.integers(0, 37), seed=st.integers(0, 2**31))
def test_round_trip(bits: int, rows: int, length: int, seed: int) -> None:
    codes = torch.randint(0, 1 << bits, (2, rows, length), generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, rows, packed_width(length, bits))
    assert torch.equal(unpack(packed, bits, length).long(), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_layout_is_one_little_endian_bit_stream(bits: int) -> None:
    codes = torch.randint(0, 1 << bits, (16,), generator=torch.Generator().manual_seed(bits))
    stream = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    assert bytes(pack(codes, bits).tolist()) == stream.to_bytes(2 * bits, "little")


def test_eight_codes_take_as_many_bytes_as_a_code_has_bits() -> None:
    assert [packed_width(64, bits) for bits in range(1, 9)] == [8, 16, 24, 32, 40, 48, 56, 64]
    assert packed_width(9, 3) == 6


@pytest.mark.parametrize(("codes", "bits"), [([4], 2), ([-1], 2), ([256], 8)])
def test_code_that_does_not_fit_is_refused(codes: list[int], bits: int) -> None:
    with pytest.raises(InputError, match="does not fit"):
        pack(torch.tensor(codes), bits)


def test_wrong_bits_dtype_and_width_are_refused() -> None:
    with pytest.raises(InputError, match="9"):
        pack(torch.tensor([1]), 9)
    with pytest.raises(InputError, match="integer"):
        pack(torch.tensor([1.0]), 4)
    with pytest.raises(InputError, match="another width"):
        unpack(torch.zeros(4, dtype=torch.uint8), 4, 9)


@given(
    widths=st.lists(st.integers(0, 8), min_size=1, max_size=12),
    runs=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_planes_are_packed_as_each_alone(widths: list[int], runs: int, seed: int) -> None:
    bits = torch.tensor(widths, dtype=torch.uint8)
    draw = torch.rand(2, len(widths), 8 * runs, generator=torch.Generator().manual_seed(seed))
    codes = (draw * (1 << bits.int())[:, None]).int()
    planes = [(b, (bits == b).nonzero().flatten()) for b in sorted({*widths} - {0})]
    found = pack_planes(codes, bits, planes)
    assert len(found) == len(planes)
    for plane, (b, at) in zip(found, planes, strict=True):
        assert torch.equal(plane, pack(codes[:, at], b))
        assert plane.is_contiguous()
