"""Codings of every kind, written and read back."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sagittal.core.errors import InputError
from sagittal.language.codec import Codec, Page
from sagittal.language.plan import Coding
from sagittal.language.quantise import gaussian_distortion
from sagittal.language.rope import Rope

pytestmark = pytest.mark.usefixtures("one_thread")
HEADS, WIDTH, PAGE = 2, 16, 16
ROPE = Rope(1e4 ** -(torch.arange(8) / 8))
SIZES = np.linspace(0.3, 4, HEADS * WIDTH, dtype=np.float32).reshape(HEADS, WIDTH)  # of each channel


def _states(tokens: int = 32, batch: int = 2, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, HEADS, tokens, WIDTH, generator=draw) * torch.tensor(SIZES)[:, None]


def _positions(tokens: int = 32, start: int = 0) -> Tensor:
    return torch.arange(start, start + tokens)[None]


def _codec(coding: Coding, page: int = PAGE) -> Codec:
    return Codec(coding, heads=HEADS, width=WIDTH, page=page, rope=ROPE)


def _basis(columns: int = WIDTH, shared: bool = False, seed: int = 0) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    heads = 1 if shared else HEADS
    exact = np.stack(
        [np.linalg.qr(draw.standard_normal((WIDTH, WIDTH)))[0][:, :columns] for _ in range(heads)]
    )
    scale = np.abs(exact).max(1) / 127
    whole = np.round(exact / scale[:, None]).astype(np.int8)
    return {"rotation": "basis", "basis": whole, "basis_scale": scale.astype(np.float16)}


def _static(bits: Any = 4, **more: Any) -> Coding:
    columns = more["basis"].shape[-1] if "basis" in more else WIDTH
    if "spread" not in more:
        more["spread"] = SIZES[:, :columns]
    return Coding(**{"bits": bits, "scale": "static", "levels": "gaussian", **more})


def _order(seed: int = 1) -> Any:
    return np.random.default_rng(seed).permutation(HEADS * WIDTH)


def _suited(way: dict[str, Any], states: Tensor, start: int = 0, size: float = 1.0) -> Tensor:
    """Give states the mean that a coding takes off, where it takes it off."""
    if way.get("mean") is not None:
        states = states + size * torch.tensor(10 * SIZES)[:, None]
    return ROPE.turn(states, _positions(states.shape[2], start)) if way.get("before_rope") else states


def _through(codec: Codec, states: Tensor, start: int = 0, kept: Tensor | None = None) -> Tensor:
    positions = _positions(states.shape[2], start)
    return codec.decode(codec.encode(states, positions, kept), positions, torch.float32)


_PER_HEAD = np.array([[2] * WIDTH, [5] * WIDTH])
_MIXED = np.tile([1, 2, 3, 4, 5, 6, 7, 8], (HEADS, WIDTH // 8))

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "hadamard of one head": {"rotation": "hadamard"},
    "hadamard of two heads": {"rotation": "hadamard", "heads": 2},
    "order": {"order": _order()},
    "hadamard, then order": {"rotation": "hadamard", "heads": 2, "order": _order()},
    "order, then hadamard": {"rotation": "hadamard", "heads": 2, "order": _order(), "order_first": True},
    "basis": _basis(),
    "one basis": _basis(shared=True),
    "weight": {"weight": SIZES[::-1].copy()},
    "mean": {"mean": 10 * SIZES},
    "before the embedding": {"before_rope": True},
    "outliers": {"outliers": 0.02},
    "clip": {"clip": 0.97},
    "levels": {"levels": {8: tuple(np.linspace(0, 1, 256))}},
    "all": {
        **_basis(shared=True),
        "before_rope": True,
        "mean": 10 * SIZES,
        "weight": SIZES[::-1].copy(),
        "outliers": 0.01,
    },
    "all but a basis": {
        "rotation": "hadamard",
        "heads": 2,
        "order": _order(2),
        "before_rope": True,
        "mean": 10 * SIZES,
        "weight": SIZES[::-1].copy(),
        "outliers": 0.01,
    },
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("scale", ["channel", "token"])
def test_eight_bits_bring_the_states_back(name: str, scale: Any) -> None:
    states = _suited(WAYS[name], _states(), start=1000)
    found = _through(_codec(Coding(bits=8, scale=scale, group=16, **WAYS[name])), states, start=1000)
    error = (found - states).square().mean() / _states().square().mean()
    assert float(error) < (1e-3 if name == "clip" else 5e-4)  # 2e-5 plain, 2e-4 with a basis of int8
    assert float(error) > 0


@pytest.mark.parametrize("name", [way for way in WAYS if way not in ("levels", "clip")])
@pytest.mark.parametrize("gain", [False, True])
def test_static_error_falls_with_the_bits(name: str, gain: bool) -> None:
    """Along a normal number the error is that of a Lloyd-Max quantiser, a quarter for each bit."""
    way = WAYS[name]
    states = _suited(way, _states(tokens=64, batch=4))
    codec = _codec(Coding(bits=8, **{**way, "outliers": 0.0}))
    turned = codec.turned(states, _positions(64))
    spread = turned.square().mean((0, 2)).sqrt().reshape(HEADS, WIDTH).numpy()
    errors = []
    for bits in (1, 2, 4, 6):
        found = _codec(_static(bits, gain=gain, **way, spread=spread))
        page = found.encode(states, _positions(64))
        back = found.turned(found.decode(page, _positions(64), torch.float32), _positions(64))
        units = torch.tensor(spread).flatten()[:, None]
        errors.append(float(((back - turned) / units).square().mean()))
    assert errors == sorted(errors, reverse=True)
    for bits, error in zip((1, 2, 4), errors, strict=False):
        assert error < 1.25 * gaussian_distortion(bits) + 2e-3
        if not gain and "outliers" not in way:
            assert error > 0.8 * gaussian_distortion(bits)


@pytest.mark.parametrize("bits", [_MIXED, _PER_HEAD], ids=["mixed", "per head"])
@pytest.mark.parametrize("scale", ["channel", "static"])
def test_bits_of_each_component(bits: Any, scale: str) -> None:
    coding = _static(bits) if scale == "static" else Coding(bits=bits, scale="channel")
    states = _states(tokens=256)
    codec = _codec(coding)
    page = codec.encode(states, _positions(256))
    found = codec.decode(page, _positions(256), torch.float32)
    error = ((found - states) / torch.tensor(SIZES)[:, None]).square().mean((0, 2))
    for width in np.unique(bits):
        here = float(error[torch.tensor(bits == width)].mean())
        # Measured ranges of 16 normal numbers are some 3.5 wide.
        steps = 3.5 / ((1 << int(width)) - 1)
        wanted = gaussian_distortion(int(width)) if scale == "static" else steps**2 / 12
        assert wanted / 2 < here < 2 * wanted
    widths = np.unique(bits)
    assert len(page.planes) == len(widths)
    for plane, width in zip(page.planes, widths, strict=True):
        assert plane.shape == (2, int((bits == width).sum()), 256 * int(width) // 8)


@pytest.mark.parametrize("gain", [False, True])
def test_components_of_no_bits_are_dropped_and_cost_nothing(gain: bool) -> None:
    bits = np.array([[8] * 12 + [0] * 4, [0] * 10 + [8] * 6])
    states = _states()
    codec = _codec(_static(bits, gain=gain))
    page = codec.encode(states, _positions())
    assert [tuple(plane.shape) for plane in page.planes] == [(2, 18, 32)]
    found = codec.decode(page, _positions(), torch.float32)
    dropped = torch.tensor(bits == 0)[:, None].expand_as(found[0])
    assert not found[:, dropped].any()
    assert float((found - states)[:, ~dropped].square().mean()) < 0.01 * float(states.square().mean())


def test_a_head_of_no_bits_beside_another() -> None:
    bits = np.array([[0] * WIDTH, [4] * WIDTH])
    found = _through(_codec(_static(bits, gain=True)), _states())
    assert not found[:, 0].any()
    assert bool(torch.isfinite(found).all())


def test_basis_of_few_columns_projects() -> None:
    columns = _basis(4)
    codec = _codec(_static(8, **columns, spread=np.full((HEADS, 4), 2.0)))
    exact = columns["basis"] * columns["basis_scale"].astype(np.float32)[:, None]
    states = _states()
    wanted = torch.einsum("bhtd,hdr,her->bhte", states, torch.tensor(exact), torch.tensor(exact))
    found = _through(codec, states)
    assert float((found - wanted).square().mean()) < 2e-3 * float(wanted.square().mean())
    assert codec.encode(states, _positions()).planes[0].shape == (2, HEADS * 4, 32)


def test_a_rounded_gain_does_not_blur_eight_bits() -> None:
    states = _states(tokens=256)
    error = [_through(_codec(_static(8, gain=gain)), states) - states for gain in (True, False)]
    with_gain, without = (float(each.square().mean()) for each in error)
    assert with_gain < 1.3 * without  # 4.3 times, were codes not chosen for the gain that is held


def test_rounded_columns_do_not_spill_strong_components_into_weak_ones() -> None:
    columns = _basis()
    basis = torch.tensor(columns["basis"] * columns["basis_scale"].astype(np.float32)[:, None])
    spread = np.tile(np.geomspace(1000, 0.1, WIDTH, dtype=np.float32), (HEADS, 1))
    draw = torch.Generator().manual_seed(4)
    units = torch.randn(1, HEADS, 256, WIDTH, generator=draw) * torch.tensor(spread)[:, None]
    states = torch.einsum("bhtr,hdr->bhtd", units, basis)
    found = _codec(_static(8, **columns, spread=spread)).turned(states, _positions(256))
    wanted = units.transpose(2, 3).flatten(1, 2)
    weakest = torch.arange(HEADS) * WIDTH + WIDTH - 1
    assert float((found - wanted)[:, weakest].square().mean()) < 0.01 * 0.1**2


def test_gain_follows_the_size_of_a_token() -> None:
    sizes = torch.tensor([0.01, 0.1, 1.0, 10.0, 100.0, 0.0, 1.0, 1.0]).repeat(2)
    states = _states(tokens=16) * sizes[:, None]
    with_gain, without = (_through(_codec(_static(4, gain=gain)), states) for gain in (True, False))
    for token in range(5):
        relative = (with_gain - states)[:, :, token].square().sum() / states[:, :, token].square().sum()
        assert float(relative) < 0.03
    assert float(with_gain[:, :, 5].abs().max()) < 0.1
    assert float((without - states)[:, :, 4].square().sum()) > 0.5 * float(states[:, :, 4].square().sum())


@pytest.mark.parametrize("scale", ["channel", "token", "static"])
def test_outliers_are_exact_and_leave_the_ranges(scale: Any) -> None:
    states = _states()
    wild = {(0, 0, 3, 5): 500.0, (0, 1, 20, 0): -800.0, (1, 0, 31, 15): 400.0}
    for place, value in wild.items():
        states[place] = value
    more: dict[str, Any] = {"outliers": 2 / (HEADS * WIDTH * PAGE)}

    def coding(**given: Any) -> Coding:
        return _static(4, **given) if scale == "static" else Coding(bits=4, scale=scale, group=16, **given)

    codec = _codec(coding(**more))
    page = codec.encode(states, _positions())
    assert page.places is not None
    assert page.outliers is not None
    assert page.places.shape == page.outliers.shape == (2, 2, 2)
    assert page.places.dtype == torch.int16
    found = codec.decode(page, _positions(), torch.float32)
    for place, value in wild.items():
        assert float(found[place]) == value
    calm = torch.ones(states.shape, dtype=torch.bool)
    for place in wild:
        calm[place] = False
    with_them = float((found - states)[calm].square().mean())
    without = float((_through(_codec(coding()), states) - states)[calm].square().mean())
    assert with_them < 0.1
    assert scale == "static" or without > 5 * with_them


def test_outlier_beyond_float16_is_refused() -> None:
    states = _states()
    states[0, 0, 0, 0] = 1e5
    with pytest.raises(InputError, match=r"outlier is beyond float16.*100000"):
        _through(_codec(Coding(bits=4, outliers=0.01)), states)


EVERY: dict[str, Coding] = {
    "channel": Coding(bits=3),
    "token": Coding(bits=3, scale="token", group=8),
    "static": _static(3),
    "gain": _static(3, gain=True),
    "outliers": Coding(bits=3, outliers=0.03),
    "mixed": Coding(bits=_MIXED),
    "zeros": _static(np.where(_MIXED > 4, _MIXED, 0), gain=True, outliers=0.01),
    "all": Coding(bits=3, **{**WAYS["all but a basis"], "outliers": 0.02}),
    "basis": _static(3, gain=True, before_rope=True, **_basis(8)),
}


def _same(first: Page, second: Page) -> bool:
    pairs = zip(first.tensors, second.tensors, strict=True)
    return first.tokens == second.tokens and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", EVERY)
def test_joined_parts_are_the_whole(name: str) -> None:
    codec, states = _codec(EVERY[name]), _states(tokens=128)
    whole = codec.encode(states, _positions(128))
    first = codec.encode(states[:, :, :64], _positions(64))
    second = codec.encode(states[:, :, 64:], _positions(64, 64))
    assert _same(first.join(second), whole)
    assert [type(tensor) for tensor in first.join(second).tensors] == [type(t) for t in whole.tensors]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("keep", [1, 15, 16, 17, 40, 48, 99])
def test_truncated_page_is_the_start_of_the_whole(name: str, keep: int) -> None:
    codec = _codec(EVERY[name])
    page = codec.encode(_states(tokens=48), _positions(48))
    cut = page.truncate(keep, PAGE)
    tokens = min(keep, 48)
    assert cut.tokens == tokens
    whole = codec.decode(page, _positions(48), torch.float32)
    equal = partial(torch.allclose, rtol=1e-5, atol=1e-6) if "basis" in name else torch.equal
    assert equal(codec.decode(cut, _positions(tokens), torch.float32), whole[:, :, :tokens])
    again = cut.truncate(min(9, tokens), PAGE)
    short = min(9, tokens)
    assert equal(codec.decode(again, _positions(short), torch.float32), whole[:, :, :short])
    held = -(-tokens // PAGE) * PAGE
    assert sum(t.untyped_storage().nbytes() for t in cut.tensors) * 48 == held * sum(
        t.nbytes for t in page.tensors
    )


@pytest.mark.parametrize("name", EVERY)
def test_batch_operations_commute_with_decoding(name: str) -> None:
    codec = _codec(EVERY[name])
    page = codec.encode(_states(batch=3), _positions())
    dense = codec.decode(page, _positions(), torch.float32)
    order = torch.tensor([2, 0, 0, 1])
    picked = page.map(lambda tensor: tensor.index_select(0, order))
    assert torch.equal(codec.decode(picked, _positions(), torch.float32), dense[order])


@pytest.mark.parametrize("name", EVERY)
def test_kept_tokens_do_not_change_the_others(name: str) -> None:
    codec, states = _codec(EVERY[name]), _states()
    kept = torch.zeros(2, 32, dtype=torch.bool)
    kept[0, [0, 1, 17]] = True
    kept[1, 5] = True
    wild = torch.where(kept[:, None, :, None], 1000 * _states(seed=5), states)
    calm, found = _through(codec, states, kept=kept), _through(codec, wild, kept=kept)
    others = ~kept[:, None, :, None].expand_as(states)
    assert torch.equal(found[others], calm[others])
    without = _through(codec, wild)
    token_alone = EVERY[name].scale == "token" or (EVERY[name].scale == "static" and not EVERY[name].outliers)
    assert torch.equal(without[others], found[others]) == token_alone


def test_page_of_kept_tokens_only() -> None:
    for coding in EVERY.values():
        found = _through(_codec(coding), 1e6 * _states(), kept=torch.ones(2, 32, dtype=torch.bool))
        assert bool(torch.isfinite(found).all())


def test_states_before_the_embedding_do_not_turn_with_it() -> None:
    """A constant before the embedding costs no bits, wherever the text stands."""
    mean = 50 * SIZES
    constant = torch.tensor(mean)[None, :, None].expand(1, HEADS, 32, WIDTH)
    for start in (0, 5000):
        keys = ROPE.turn(constant, _positions(32, start))
        found = _through(_codec(Coding(bits=2, before_rope=True, mean=mean)), keys, start=start)
        assert torch.allclose(found, keys, atol=0.01)
        after = _through(_codec(Coding(bits=2)), keys, start=start)
        assert float((after - keys).abs().max()) > 5


def test_bytes_by_hand() -> None:
    """2 texts, 2 heads of 16 channels, 32 tokens in blocks of 16."""
    numbers = 2 * 2 * 16 * 32
    wanted = {
        "channel": numbers * 3 // 8 + (2 * 32 * 2) * 4,
        "token": numbers * 3 // 8 + (numbers // 8) * 4,
        "static": numbers * 3 // 8,
        "gain": numbers * 3 // 8 + 2 * 2 * 32,
        "outliers": numbers * 3 // 8 + (2 * 32 * 2) * 4 + 2 * 2 * round(0.03 * 512) * 4,
        "mixed": 2 * 4 * (1 + 2 + 3 + 4 + 5 + 6 + 7 + 8) * 32 // 8 + (2 * 32 * 2) * 4,
        "basis": numbers // 2 * 3 // 8 + 2 * 2 * 32,
    }
    for name, count in wanted.items():
        page = _codec(EVERY[name]).encode(_states(), _positions())
        assert sum(tensor.nbytes for tensor in page.tensors) == count, name
        assert sum(tensor.untyped_storage().nbytes() for tensor in page.tensors) == count, name


def test_tables_are_counted() -> None:
    tables = {
        "static": HEADS * WIDTH * 2,
        "basis": HEADS * WIDTH * 8 + HEADS * 8 * 2 + HEADS * 8 * 2,
        "all": HEADS * WIDTH * (4 + 2 + 2),  # mean, weight, order
        "channel": 0,
    }
    for name, count in tables.items():
        assert sum(tensor.nbytes for tensor in _codec(EVERY[name]).tensors) == count, name


@settings(max_examples=60)
@given(
    scale=st.sampled_from(["channel", "token", "static"]),
    bits=st.integers(4, 8),
    way=st.sampled_from(sorted(WAYS)),
    gain=st.booleans(),
    outliers=st.sampled_from([0.0, 0.01]),
    seed=st.integers(0, 2**31),
    start=st.integers(0, 20_000),
    size=st.floats(-3, 2),
)
def test_any_combination_is_close(
    scale: Any, bits: int, way: str, gain: bool, outliers: float, seed: int, start: int, size: float
) -> None:
    states = _suited(WAYS[way], _states(seed=seed) * 10**size, start, 10**size)
    given = {"gain": gain, "outliers": outliers, **WAYS[way]}
    given["mean"] = None if given.get("mean") is None else given["mean"] * 10**size
    if scale == "static":
        given["levels"] = "gaussian"
        plain = _codec(Coding(**{**given, "levels": "uniform", "outliers": 0.0}))
        size_of = plain.turned(states, _positions(32, start)).square().mean((0, 2)).sqrt()
        given["spread"] = size_of.reshape(HEADS, WIDTH).numpy()
    elif way == "levels":
        given["levels"] = {bits: tuple(np.linspace(0, 1, 1 << bits))}
    found = _through(_codec(Coding(**{"bits": bits, "scale": scale, "group": 16, **given})), states, start)
    assert float((found - states).square().mean()) < 0.05 * float(
        (_states(seed=seed) * 10**size).square().mean()
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", EVERY)
def test_what_is_not_finite_is_refused(name: str, value: float) -> None:
    states = _states()
    states[1, 0, 9, 3] = value
    with pytest.raises(InputError, match=r"not finite; got (NaN|infinity)"):
        _through(_codec(EVERY[name]), states)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"mean": np.zeros((3, WIDTH))}, "mean is of another model.*3, 16"),
        ({"weight": np.ones((HEADS, 8))}, "weight is of another model"),
        ({"order": np.arange(WIDTH)}, "order is of another model"),
        ({**_basis(), "basis": np.zeros((3, WIDTH, WIDTH), np.int8)}, "basis is of another model"),
        ({**_basis(), "basis_scale": np.ones((2, 8), np.float16)}, "basis_scale is of another model"),
        ({"scale": "static", "levels": "gaussian", "spread": np.ones((2, 8))}, "spread is of another model"),
        ({"bits": np.full((3, WIDTH), 4)}, "bits is of another model"),
        ({"mean": np.full((HEADS, WIDTH), np.nan)}, "mean is not finite"),
        ({"weight": np.full((HEADS, WIDTH), 1e6)}, "weight"),
        ({"weight": np.zeros((HEADS, WIDTH))}, "weight"),
        ({"weight": np.full((HEADS, WIDTH), -1.0)}, "weight"),
        ({"weight": np.full((HEADS, WIDTH), 1e-9)}, "weight"),
        ({"scale": "static", "levels": "gaussian", "spread": np.full((2, WIDTH), 1e6)}, "spread"),
        ({"scale": "static", "levels": "gaussian", "spread": np.full((2, WIDTH), -1.0)}, "spread"),
        ({"order": np.zeros(HEADS * WIDTH, int)}, "order"),
        ({"scale": "token", "group": 24}, "group does not divide 2 heads of width 16"),
        ({"rotation": "hadamard", "heads": 3}, "heads to rotate"),
        ({"levels": {4: (0.0, 1.0)}}, "codebook lacks levels.*4 bits"),
        ({"levels": {3: (0.0,) * 8}}, "codebook lacks levels.*4 bits"),
        ({"levels": {4: (1.0, *(0.5,) * 15)}}, "codebook"),
        ({"levels": {4: (float("nan"),) * 16}}, "codebook"),
        ({"scale": "static", "levels": "gaussian", "spread": SIZES, "bits": 0}, "drops every component"),
    ],
)
def test_tables_that_do_not_fit_are_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        _codec(Coding(**change))
