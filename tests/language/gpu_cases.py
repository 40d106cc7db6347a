"""The kernel for GPUs beside the reference: on a GPU, or in Triton's interpreter if TRITON_INTERPRET=1.

Run by test_gpu.py, in processes of their own: Triton reads that variable when it is imported.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packed_layers import error, layer
from sagittal.core.errors import InputError
from sagittal.language import CachePlan, LowBitCache, use_low_bit_attention
from sagittal.language.attend import attend, kernels, reference
from sagittal.language.pages import PagedStates

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
ENOUGH = 1e-5 if INTERPRETED else 1e-4  # relative; the latter is a guess, no GPU has told
READ = ("channel", "token", "before rope", "static", "basis", "shared basis", "after rope", "fitted")


@pytest.fixture(autouse=True)
def _no_reference(request, monkeypatch):
    """Nothing is left to the reference, but where a test says so."""
    torch.manual_seed(11)
    if "left" not in request.fixturenames:
        monkeypatch.setattr(sys.modules["sagittal.language.attend"], "reference", _refuse)


def _refuse(*given, **rest):
    raise AssertionError("left to the reference")


@pytest.fixture
def left(monkeypatch):
    """Calls of the reference."""
    calls = []

    def counted(*given, **rest):
        calls.append(1)
        return reference(*given, **rest)

    monkeypatch.setattr(sys.modules["sagittal.language.attend"], "reference", counted)
    return calls


def _error(query, keys, values, **rest):
    return error(query, keys, values, "triton", DEVICE, **rest)


def test_it_runs_here():
    assert "triton" in kernels()


@pytest.mark.parametrize("layout", READ)
def test_agrees_with_the_reference(layout):
    keys, values = layer((layout, layout))
    assert keys.kept_at.shape[1]
    assert len(keys.pages) > 0
    assert _error(torch.randn(1, 6, 1, 32), keys, values) < ENOUGH


@pytest.mark.parametrize("layouts", [("static", "basis"), ("basis", "token"), ("channel", "static")])
def test_keys_and_values_of_different_layouts(layouts):
    keys, values = layer(layouts, seed=3)
    assert _error(torch.randn(1, 4, 1, 32), keys, values) < ENOUGH


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_bit_width(bits):
    keys, values = layer(("channel", "token"), bits=bits, tokens=150)
    assert _error(torch.randn(1, 4, 1, 32), keys, values) < ENOUGH
    keys, values = layer(("fitted", "fitted"), bits=bits, tokens=150)
    assert _error(torch.randn(1, 4, 1, 32), keys, values) < ENOUGH


@pytest.mark.parametrize("bits", [4, 2])
def test_error_beside_quantisation(bits):
    """With logits so far apart that few tokens count."""
    keys, values = layer(("basis", "static"), width=64, tokens=1200, bits=bits, heads=1)
    assert len(keys.pages) > 1
    assert _error(3 * torch.randn(1, 3, 1, 64), keys, values) < ENOUGH


@pytest.mark.parametrize(
    ("width", "group", "page"),
    [(32, 1, 16), (48, 2, 64), (80, 3, 48), (96, 8, 128), (128, 4, 64), (256, 17, 96)],
)
@pytest.mark.parametrize("layouts", [("before rope", "token"), ("basis", "basis"), ("after rope", "channel")])
def test_shapes(layouts, width, group, page):
    keys, values = layer(layouts, width=width, page=page, tokens=200, heads=2 if width < 96 else 1)
    query = torch.randn(1, group * keys.recent.shape[1], 1, width)
    assert _error(query, keys, values) < ENOUGH


@pytest.mark.parametrize("turned", [1, 5, 12])
@pytest.mark.parametrize("layout", ["before rope", "basis"])
def test_part_of_a_head_turns(layout, turned):
    keys, values = layer((layout, "channel"), turned=turned, tokens=200)
    assert _error(torch.randn(1, 2, 1, 32), keys, values) < ENOUGH


def test_positions_far_out():
    """Turning in two steps adds little: angles of float32 are off by as much."""
    pads = torch.tensor([-100_000])
    keys, values = layer(("basis", "static"), width=64, pads=pads)
    assert _error(torch.randn(1, 6, 1, 64), keys, values, pads=pads) < 2e-3


def test_padding_masks_caps_and_sinks_together():
    pads = torch.tensor([0, 37, 90])
    keys, values = layer(("static", "basis"), batch=3, heads=1, pads=pads, tokens=200, crop=23, grow=100)
    visible = torch.arange(len(keys)) >= pads[:, None]
    visible[1, 100:140] = False
    query, sinks = 2 * torch.randn(3, 3, 1, 32), torch.randn(3)
    for rest in (
        {"pads": pads},  # padding is seen
        {"pads": pads, "visible": visible[1:2], "sinks": sinks},
        {"pads": pads, "visible": visible, "sinks": sinks, "softcap": 3.0},
    ):
        assert _error(query, keys, values, **rest) < ENOUGH


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_shape(data):
    draw = data.draw
    layouts = draw(st.sampled_from(READ)), draw(st.sampled_from(READ))
    batch, heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 9))
    width, page = draw(st.sampled_from([32, 40, 64])), draw(st.sampled_from([16, 48, 64, 128]))
    tokens, grow = draw(st.integers(1, 400)), draw(st.integers(0, 200))
    pads = torch.tensor([draw(st.integers(0, min(40, tokens - 1))) for _ in range(batch)])
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    keys, values = layer(
        layouts, batch=batch, heads=heads, width=width, tokens=tokens, page=page, pads=pads, dtype=dtype,
        turned=draw(st.sampled_from([width // 2, 5])), crop=draw(st.integers(0, tokens - 1)) if grow else 0,
        grow=grow, seed=draw(st.integers(0, 99)),
    )  # fmt: skip
    visible = torch.arange(len(keys)) >= pads[:, None]
    if draw(st.booleans()):  # a window
        visible &= torch.arange(len(keys)) >= len(keys) - draw(st.integers(1, 100))
    visible[:, -1] = True
    sinks = torch.randn(heads * group) if draw(st.booleans()) else None
    softcap = draw(st.sampled_from([None, 3.0, 50.0]))
    query = 2 * torch.randn(batch, heads * group, 1, width)
    assert _error(query, keys, values, pads=pads, visible=visible, sinks=sinks, softcap=softcap) < ENOUGH


@pytest.mark.parametrize("sinks", [None, torch.zeros(2)])
def test_nothing_visible_gives_zeros(sinks):
    keys, values = (states.map(lambda t: t.to(DEVICE)) for states in layer(("static", "static"), batch=2))
    visible = torch.ones(2, len(keys), dtype=torch.bool, device=DEVICE)
    visible[1] = False
    found = attend(
        torch.randn(2, 2, 1, 32).to(DEVICE), keys, values, scaling=1.0, visible=visible, kernel="triton",
        sinks=None if sinks is None else sinks.to(DEVICE),
    )  # fmt: skip
    assert found[0].abs().sum() > 0
    assert torch.equal(found[1], torch.zeros_like(found[1]))


@pytest.mark.parametrize("layouts", [("exact", "exact"), ("static", "token")])
def test_no_page_yet(layouts):
    keys, values = layer(layouts, tokens=40)
    assert not keys.pages
    assert _error(torch.randn(1, 4, 1, 32), keys, values, sinks=torch.randn(4), softcap=2.0) < ENOUGH


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_result_has_the_dtype_of_the_query(dtype):
    keys, values = layer(("channel", "token"), dtype=dtype)
    assert _error(torch.randn(1, 4, 1, 32).to(dtype), keys, values) < 4e-3  # what rounding the result adds


def test_pages_that_come_and_go_are_seen():
    """Where pages lie is remembered; another page, before or after, is another place."""
    keys, values = layer(("static", "token"), tokens=1100, heads=1, page=512)
    query = torch.randn(1, 2, 1, 32)
    more, pads = torch.randn(1, 1, 700, 32), torch.zeros(1, dtype=torch.int64)
    assert len(keys.pages) == 1
    assert _error(query, keys, values) < ENOUGH
    for _ in range(2):
        keys, values = (held.append(more).settle(pads) for held in (keys, values))
        assert _error(query, keys, values) < ENOUGH
    assert len(keys.pages) > 1
    keys, values = (held.crop(1300) for held in (keys, values))
    assert _error(query, keys, values) < ENOUGH
    assert len(keys.pages) > 1
    assert _error(query, keys, values) < ENOUGH  # as remembered
    other = torch.zeros_like(keys.pages[0].planes[0])
    changed = replace(keys.pages[0], planes=(other, *keys.pages[0].planes[1:]))
    keys = replace(keys, pages=(changed, *keys.pages[1:]))
    assert _error(query, keys, values) < ENOUGH


def test_pages_that_do_not_lie_in_one_piece():
    keys, values = layer(("static", "token"))

    def apart(states: PagedStates) -> PagedStates:
        return states.map(lambda t: t.mT.contiguous().mT if t.ndim > 2 else t)

    keys, values = apart(keys), apart(values)
    assert not keys.pages[0].planes[0].is_contiguous()
    assert _error(torch.randn(1, 4, 1, 32), keys, values) < ENOUGH


@pytest.mark.parametrize("part", ["planes", "scale", "none"])
def test_a_page_that_is_cut_short_is_refused(part):
    """Whatever a page says, nothing outside its tensors is read."""
    keys, values = (states.map(lambda t: t.to(DEVICE)) for states in layer(("static", "static")))
    page = keys.pages[0]
    less = {
        "planes": {"planes": (page.planes[0][..., :-2], *page.planes[1:])},
        "scale": {"scale": page.scale[..., :-1]},
        "none": {"scale": None},
    }[part]
    broken = replace(keys, pages=(replace(page, **less), *keys.pages[1:]))
    with pytest.raises(InputError, match="have another size|lacks a tensor"):
        attend(torch.randn(1, 4, 1, 32).to(DEVICE), broken, values, scaling=1.0, kernel="triton")


@pytest.mark.parametrize(
    "layouts", [("hadamard", "token"), ("channel", "outliers"), ("exact", "static"), ("basis", "exact")]
)
def test_other_layouts_are_left_to_the_reference(layouts, left):
    keys, values = layer(layouts)
    assert _error(torch.randn(1, 4, 1, 32), keys, values) < ENOUGH
    assert left


def test_a_model_writes_what_it_writes_with_sdpa(make_model, padded, generate, monkeypatch):
    """A padded batch; the cache hands packed states to the kernel, on its device."""
    monkeypatch.setenv("SAGITTAL_KERNEL", "triton")
    model, (batch, mask) = make_model("llama").to(DEVICE), padded((0, 20))
    plan = CachePlan.uniform(3, 3, group=8, residual=16, page=16)
    calls, plain = [], sys.modules["sagittal.language.attend"].attend_pages

    def counted(*given, **rest):
        calls.append(1)
        return plain(*given, **rest)

    monkeypatch.setattr(sys.modules["sagittal.language.attend"], "attend_pages", counted)
    found = []
    for packed in (False, True):
        model.set_attn_implementation("sdpa")
        if packed:
            use_low_bit_attention(model)
        cache = LowBitCache(model.config, plan)
        found.append(generate(model, batch.to(DEVICE), cache, attention_mask=mask.to(DEVICE), tokens=8))
    assert torch.equal(found[0].sequences, found[1].sequences)
    for first, second in zip(found[0].logits, found[1].logits, strict=True):
        assert torch.allclose(first, second, atol=1e-3, rtol=0)
    assert len(calls) == 3 * 7  # layers, and steps but the prefill
