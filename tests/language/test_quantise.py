from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sagittal.core.errors import InputError
from sagittal.language.quantise import (
    Along,
    Codebooks,
    Quantised,
    dequantise,
    gaussian_distortion,
    gaussian_levels,
    nearest,
    quantise,
)

BOTH: list[Along] = ["tokens", "components"]
DISTORTION = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}  # Max, Quantizing for minimum distortion, 1960


def _bits(bits: int, components: int = 16) -> Tensor:
    return torch.full((components,), bits)


def _draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _spread(found: Quantised, along: Along, group: int) -> tuple[Tensor, Tensor]:
    at = -1 if along == "tokens" else -2
    return tuple(part.float().repeat_interleave(group, dim=at) for part in found[1:])  # type: ignore[return-value]


@settings(max_examples=80)
@given(
    bits=st.integers(1, 8),
    along=st.sampled_from(BOTH),
    magnitude=st.floats(-6, 4),
    shift=st.floats(-100, 100),
    seed=st.integers(0, 2**31),
)
def test_error_is_at_most_half_a_step(
    bits: int, along: Along, magnitude: float, shift: float, seed: int
) -> None:
    states = _draw(seed, 2, 16, 8) * 10**magnitude + shift
    found = quantise(states, bits=_bits(bits), along=along, group=4)
    assert int(found.codes.max()) < 1 << bits
    back = dequantise(found, bits=_bits(bits), along=along, group=4)
    step, offset = _spread(found, along, 4)
    float32 = 1e-6 * (offset.abs() + step * ((1 << bits) - 1))
    assert bool(((back - states).abs() <= step / 2 + float32).all())


@settings(max_examples=60)
@given(seed=st.integers(0, 2**31), clip=st.floats(0.3, 1))
def test_clipped_range_bounds_what_lies_in_it(seed: int, clip: float) -> None:
    states = _draw(seed, 2, 16, 8)
    found = quantise(states, bits=_bits(3), along="tokens", group=8, clip=clip)
    back = dequantise(found, bits=_bits(3), along="tokens", group=8)
    low, high = (clip * end for end in states.aminmax(dim=-1, keepdim=True))
    step, _ = _spread(found, "tokens", 8)
    inside = (states >= low) & (states <= high)
    slack = 0.003 * (1 + step)  # offset and scale are float16
    assert bool(((back - states).abs() <= step / 2 + slack)[inside].all())
    assert bool((back >= low - slack).all() & (back <= high + 8 * slack).all())
    nearest_end = torch.where(states > high, high, low)
    assert bool(((back - nearest_end).abs() <= step / 2 + 8 * slack)[~inside].all())


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), widths=st.lists(st.integers(1, 8), min_size=6, max_size=6))
def test_each_component_has_its_own_bits_along_tokens(seed: int, widths: list[int]) -> None:
    states, bits = _draw(seed, 1, 6, 16), torch.tensor(widths)
    together = quantise(states, bits=bits, along="tokens", group=8)
    back = dequantise(together, bits=bits, along="tokens", group=8)
    for i, width in enumerate(widths):
        alone = quantise(states[:, i : i + 1], bits=_bits(width, 1), along="tokens", group=8)
        assert torch.equal(together.codes[:, i : i + 1], alone.codes)
        one = dequantise(alone, bits=_bits(width, 1), along="tokens", group=8)
        assert torch.equal(back[:, i : i + 1], one)


def test_mixed_bits_within_a_group_of_components_are_refused() -> None:
    bits = torch.tensor([2, 2, 4, 4, 2, 4])
    quantise(torch.zeros(1, 4, 3), bits=bits[:4], along="components", group=2)
    with pytest.raises(InputError, match="bits differ within a group"):
        quantise(torch.zeros(1, 6, 3), bits=bits, along="components", group=2)


@pytest.mark.parametrize("along", BOTH)
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_levels_of_a_codebook_are_what_comes_back(along: Along, bits: int) -> None:
    levels = {bits: torch.linspace(0, 1, 1 << bits) ** 2}
    states = _draw(3, 2, 16, 8)
    found = quantise(states, bits=_bits(bits), along=along, group=8, levels=levels)
    back = dequantise(found, bits=_bits(bits), along=along, group=8, levels=levels)
    step, offset = _spread(found, along, 8)
    places = offset[..., None] + step[..., None] * ((1 << bits) - 1) * levels[bits]
    assert torch.allclose((back[..., None] - places).abs().amin(-1), torch.zeros(()), atol=1e-5)
    best = (states[..., None] - places).abs().amin(-1)
    assert torch.allclose((back - states).abs(), best, atol=1e-5)  # the nearest of them


@pytest.mark.parametrize("along", BOTH)
def test_evenly_spaced_levels_are_the_uniform_ones(along: Along) -> None:
    states, levels = _draw(4, 2, 16, 8), {3: torch.linspace(0, 1, 8)}
    plain = quantise(states, bits=_bits(3), along=along, group=8)
    listed = quantise(states, bits=_bits(3), along=along, group=8, levels=levels)
    assert torch.equal(plain.codes, listed.codes)
    back = dequantise(listed, bits=_bits(3), along=along, group=8, levels=levels)
    assert torch.allclose(back, dequantise(plain, bits=_bits(3), along=along, group=8), atol=1e-6)


@pytest.mark.parametrize(("along", "shape"), [("tokens", (2, 16, 2)), ("components", (2, 4, 8))])
def test_one_float16_pair_a_group(along: Along, shape: tuple[int, ...]) -> None:
    found = quantise(_draw(0, 2, 16, 8), bits=_bits(3), along=along, group=4)
    assert found.scale.shape == found.offset.shape == shape
    assert found.scale.dtype == found.offset.dtype == torch.float16
    assert int(found.codes.max()) == 7
    assert int(found.codes.min()) == 0


def test_an_outlier_component_spoils_only_itself_along_tokens() -> None:
    wild = _draw(3, 1, 16, 64)
    wild[:, 5] *= 100
    others = [c for c in range(16) if c != 5]

    def error(along: Along, group: int) -> float:
        found = quantise(wild, bits=_bits(4), along=along, group=group)
        back = dequantise(found, bits=_bits(4), along=along, group=group)
        return float((back - wild)[:, others].pow(2).mean())

    assert error("components", 16) > 20 * error("tokens", 64)


@pytest.mark.parametrize("along", BOTH)
@pytest.mark.parametrize("value", [0.0, 1.5, -3.0, 0.1, 1e-9])
def test_constant_group(along: Along, value: float) -> None:
    states = torch.full((1, 4, 4), value)
    found = quantise(states, bits=_bits(2, 4), along=along, group=4)
    back = dequantise(found, bits=_bits(2, 4), along=along, group=4)
    assert torch.allclose(back, states, rtol=1e-6, atol=1e-7)
    if float(torch.tensor(value).half()) == value:
        assert torch.equal(back, states)


@pytest.mark.parametrize(
    ("value", "name"), [(torch.nan, "NaN"), (torch.inf, "infinity"), (-torch.inf, "infinity")]
)
@pytest.mark.parametrize("along", BOTH)
def test_what_is_not_finite_is_refused(along: Along, value: float, name: str) -> None:
    states = torch.zeros(1, 4, 4)
    states[0, 2, 1] = value
    with pytest.raises(InputError, match=name):
        quantise(states, bits=_bits(4, 4), along=along, group=4)


@pytest.mark.parametrize(("low", "high"), [(-7e4, 0.0), (-8e4, -7e4), (-6e4, 6e4)])
def test_what_float16_cannot_hold_is_refused(low: float, high: float) -> None:
    states = torch.tensor([low, high, low, high]).reshape(1, 1, 4)
    with pytest.raises(InputError, match="65504"):
        quantise(states, bits=_bits(1, 1), along="tokens", group=4)


def test_wide_range_is_held_when_its_step_is_small_enough() -> None:
    states = torch.tensor([-6e4, 6e4, 0.0, 1.0]).reshape(1, 1, 4)
    found = quantise(states, bits=_bits(8, 1), along="tokens", group=4)
    back = dequantise(found, bits=_bits(8, 1), along="tokens", group=4)
    assert float((back - states).abs().max()) <= 120_000 / 255


def test_group_must_divide_its_axis() -> None:
    with pytest.raises(InputError, match=r"components.*groups of 5.*divisor of 16"):
        quantise(torch.zeros(1, 16, 8), bits=_bits(4), along="components", group=5)
    with pytest.raises(InputError, match=r"tokens.*groups of 5.*divisor of 8"):
        quantise(torch.zeros(1, 16, 8), bits=_bits(4), along="tokens", group=5)


@pytest.mark.parametrize("bits", [0, 9, 16])
def test_bits_out_of_range(bits: int) -> None:
    with pytest.raises(InputError, match=str(bits)):
        quantise(torch.zeros(1, 16, 8), bits=_bits(bits), along="components", group=4)


@pytest.mark.parametrize("bits", range(1, 9))
def test_gaussian_levels_have_the_least_error(bits: int) -> None:
    levels = gaussian_levels(bits)
    assert levels.shape == (1 << bits,)
    assert bool((levels.diff() > 0).all())
    assert torch.allclose(levels, -levels.flip(0), atol=1e-6)
    assert gaussian_distortion(bits) == pytest.approx(DISTORTION.get(bits, 2.7207 * 4.0**-bits), rel=0.08)
    if bits in DISTORTION:
        assert gaussian_distortion(bits) == pytest.approx(DISTORTION[bits], rel=1e-3)
    numbers = _draw(bits, 200_000)
    found = levels[nearest(numbers, levels).long()]
    assert float((found - numbers).square().mean()) == pytest.approx(gaussian_distortion(bits), rel=0.05)


def test_no_bits_keep_nothing_of_a_normal_number() -> None:
    assert gaussian_distortion(0) == 1


def test_nearest_is_nearest() -> None:
    levels = torch.tensor([-3.0, -1.0, 0.0, 4.0])
    numbers = torch.linspace(-6, 6, 101) + 1e-3
    assert torch.equal(nearest(numbers, levels).long(), (numbers[:, None] - levels).abs().argmin(-1))


@settings(max_examples=60)
@given(
    books=st.dictionaries(
        st.integers(1, 8), st.tuples(st.floats(0, 5), st.floats(-1e4, 1e4), st.booleans()), min_size=1
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_codebooks_find_what_bisection_finds(books: dict[int, tuple[float, float, bool]], seed: int) -> None:
    """Levels near together and far apart, equal ones too; numbers on edges, beside them, and far away."""
    levels = {}
    for bits, (power, middle, gaussian) in books.items():
        steps = _draw(seed + bits, 1 << bits).abs() ** power
        levels[bits] = gaussian_levels(bits) if gaussian else (steps.cumsum(0) + middle)
    rows = [*levels, 0]
    edges = [(table[1:] + table[:-1]) / 2 for table in levels.values()]
    near = torch.cat([*edges, _draw(seed, 50), torch.tensor([0.0, 3e38, -3e38])])
    near = torch.cat([torch.nextafter(near, near + way) for way in (-1, 0, 1)])
    numbers = near.repeat(2, len(rows), 1)
    codes, found = Codebooks(levels).nearest(numbers, torch.tensor(rows, dtype=torch.uint8))
    for at, bits in enumerate(levels):
        wanted = nearest(near, levels[bits])
        assert torch.equal(codes[0, at], wanted.int())
        assert torch.equal(codes[1, at], wanted.int())
        assert torch.equal(found[1, at], levels[bits][wanted.long()])
    assert not codes[:, -1].any()
    assert not found[:, -1].any()
