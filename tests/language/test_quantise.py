from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sagittal.core.errors import InputError
from sagittal.language.quantise import Axis, dequantise, quantise

AXES: list[Axis] = ["token", "channel"]


@settings(max_examples=80, deadline=None)
@given(
    bits=st.integers(1, 8),
    axis=st.sampled_from(AXES),
    magnitude=st.floats(-6, 4),
    shift=st.floats(-100, 100),
    seed=st.integers(0, 2**31),
)
def test_error_is_at_most_half_a_step(
    bits: int, axis: Axis, magnitude: float, shift: float, seed: int
) -> None:
    states = torch.randn(2, 3, 8, 16, generator=torch.Generator().manual_seed(seed)) * 10**magnitude + shift
    found = quantise(states, bits=bits, axis=axis, group=4)
    back = dequantise(found, axis=axis, group=4, dtype=torch.float32)
    along = -1 if axis == "token" else -2
    step, offset = (part.float().repeat_interleave(4, dim=along) for part in found[1:])
    float32 = 1e-6 * (offset.abs() + step * ((1 << bits) - 1))
    assert bool(((back - states).abs() <= step / 2 + float32).all())


@pytest.mark.parametrize(("axis", "shape"), [("token", (2, 3, 8, 4)), ("channel", (2, 3, 2, 16))])
def test_one_float16_pair_a_group(axis: Axis, shape: tuple[int, ...]) -> None:
    found = quantise(torch.randn(2, 3, 8, 16), bits=3, axis=axis, group=4)
    assert found.scale.shape == found.offset.shape == shape
    assert found.scale.dtype == found.offset.dtype == torch.float16
    assert int(found.codes.max()) == 7
    assert int(found.codes.min()) == 0


def test_an_outlier_channel_spoils_only_itself_by_channel() -> None:
    states = torch.randn(1, 1, 64, 16, generator=torch.Generator().manual_seed(3))
    wild = states.clone()
    wild[..., 5] *= 100
    others = [c for c in range(16) if c != 5]

    def error(axis: Axis, group: int) -> float:
        back = dequantise(
            quantise(wild, bits=4, axis=axis, group=group), axis=axis, group=group, dtype=torch.float32
        )
        return float((back - wild)[..., others].pow(2).mean())

    assert error("token", 16) > 20 * error("channel", 64)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("value", [0.0, 1.5, -3.0, 0.1, 1e-9])
def test_constant_group(axis: Axis, value: float) -> None:
    states = torch.full((1, 1, 4, 4), value)
    found = quantise(states, bits=2, axis=axis, group=4)
    back = dequantise(found, axis=axis, group=4, dtype=torch.float32)
    assert torch.allclose(back, states, rtol=1e-6, atol=1e-7)
    if float(torch.tensor(value).half()) == value:
        assert torch.equal(back, states)


@pytest.mark.parametrize(
    ("value", "name"), [(torch.nan, "NaN"), (torch.inf, "infinity"), (-torch.inf, "infinity")]
)
@pytest.mark.parametrize("axis", AXES)
def test_what_is_not_finite_is_refused(axis: Axis, value: float, name: str) -> None:
    states = torch.zeros(1, 1, 4, 4)
    states[0, 0, 2, 1] = value
    with pytest.raises(InputError, match=name):
        quantise(states, bits=4, axis=axis, group=4)


@pytest.mark.parametrize(("low", "high"), [(-7e4, 0.0), (-8e4, -7e4), (-6e4, 6e4)])
def test_what_float16_cannot_hold_is_refused(low: float, high: float) -> None:
    states = torch.tensor([low, high, low, high]).reshape(1, 1, 1, 4)
    with pytest.raises(InputError, match="65504"):
        quantise(states, bits=1, axis="token", group=4)


def test_wide_range_is_held_when_its_step_is_small_enough() -> None:
    states = torch.tensor([-6e4, 6e4, 0.0, 1.0]).reshape(1, 1, 1, 4)
    found = quantise(states, bits=8, axis="token", group=4)
    back = dequantise(found, axis="token", group=4, dtype=torch.float32)
    assert float((back - states).abs().max()) <= 120_000 / 255


def test_group_must_divide_its_axis() -> None:
    with pytest.raises(InputError, match=r"groups of 5.*divisor of 16"):
        quantise(torch.zeros(1, 1, 8, 16), bits=4, axis="token", group=5)
    with pytest.raises(InputError, match=r"groups of 5.*divisor of 8"):
        quantise(torch.zeros(1, 1, 8, 16), bits=4, axis="channel", group=5)


@pytest.mark.parametrize("bits", [0, 9, 16])
def test_bits_out_of_range(bits: int) -> None:
    with pytest.raises(InputError, match=str(bits)):
        quantise(torch.zeros(1, 1, 8, 16), bits=bits, axis="token", group=4)


@pytest.mark.parametrize("axis", AXES)
def test_no_tokens(axis: Axis) -> None:
    found = quantise(torch.zeros(1, 2, 0, 16), bits=4, axis=axis, group=4)
    assert dequantise(found, axis=axis, group=4, dtype=torch.bfloat16).shape == (1, 2, 0, 16)
