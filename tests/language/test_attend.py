from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packed_layers import LAYOUTS, error, layer
from sagittal.core.errors import InputError
from sagittal.language import extension
from sagittal.language.attend import attend, kernels

NATIVE = extension.natives()


ENOUGH = 2e-3  # error beyond that of quantisation, relative: what 4 bits may add


@pytest.fixture(autouse=True)
def _same_queries() -> None:
    torch.manual_seed(11)


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("layout", LAYOUTS)
def test_agrees_with_the_reference(layout, kernel):
    keys, values = layer((layout, layout))
    assert error(torch.randn(1, 6, 1, 32), keys, values, kernel) < ENOUGH


@pytest.mark.parametrize("kernel", NATIVE)
@pytest.mark.parametrize(
    "layouts", [("exact", "static"), ("basis", "exact"), ("static", "basis"), ("basis", "token")]
)
def test_keys_and_values_of_different_layouts(layouts, kernel):
    keys, values = layer(layouts)
    assert error(torch.randn(1, 4, 1, 32), keys, values, kernel) < ENOUGH


@pytest.mark.parametrize("kernel", NATIVE)
def test_an_appended_token_of_a_wider_dtype(kernel):
    """What is known of the pages outlives an appended token, and the dtype of the recent ones need not."""
    keys, values = layer(("channel", "token"), dtype=torch.bfloat16, kept=False)
    query = torch.randn(1, 4, 1, 32)
    assert error(query, keys, values, kernel) < ENOUGH
    new = torch.randn(1, 2, 1, 32)
    longer = keys.append(new), values.append(new)
    assert longer[0].recent.dtype == torch.float32
    assert error(query, *longer, kernel) < ENOUGH


@pytest.mark.parametrize("kernel", NATIVE)
def test_a_copy_of_states_that_were_read(kernel):
    keys, values = layer(("channel", "token"))
    query = torch.randn(1, 4, 1, 32)
    before = attend(query, keys, values, scaling=1.0, kernel=kernel)
    copies = deepcopy((keys, values))
    del keys, values
    assert torch.equal(attend(query, *copies, scaling=1.0, kernel=kernel), before)


@pytest.mark.parametrize("kernel", NATIVE)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("layout", ["channel", "token", "static", "basis"])
def test_every_bit_width(layout, bits, kernel):
    keys, values = layer((layout, layout), bits=bits)
    assert error(torch.randn(1, 4, 1, 32), keys, values, kernel) < ENOUGH


@pytest.mark.parametrize("kernel", NATIVE)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_shape(kernel, data):
    draw = data.draw
    layout = draw(st.sampled_from(LAYOUTS))
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    width, group = draw(st.sampled_from([32, 48, 64, 80, 128, 256])), draw(st.integers(1, 16))
    page = draw(st.sampled_from([16, 32, 48, 64, 24, 128]))
    tokens, grow = draw(st.integers(1, 700)), draw(st.integers(0, 200))
    pads = torch.tensor([draw(st.integers(0, min(40, tokens - 1))) for _ in range(batch)])
    crop = draw(st.integers(0, tokens - 1)) if grow else 0
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    turned = draw(st.sampled_from([width // 2, width // 4, 5]))
    keys, values = layer(
        (layout, layout), batch=batch, heads=heads, width=width, tokens=tokens, page=page, pads=pads,
        dtype=dtype, turned=turned, crop=crop, grow=grow, seed=draw(st.integers(0, 99)),
    )  # fmt: skip
    visible = torch.arange(len(keys)) >= pads[:, None]
    if draw(st.booleans()):  # a window
        visible &= torch.arange(len(keys)) >= len(keys) - draw(st.integers(1, 100))
    visible[:, -1] = True
    sinks = torch.randn(heads * group) if draw(st.booleans()) else None
    query = 2 * torch.randn(batch, heads * group, 1, width)
    softcap = draw(st.sampled_from([None, 3.0, 50.0]))
    rest = {"pads": pads, "visible": visible, "sinks": sinks, "softcap": softcap}
    assert error(query, keys, values, kernel, **rest) < 5e-3


@pytest.mark.parametrize("kernel", NATIVE)
@pytest.mark.parametrize(
    ("width", "group", "page", "tokens"), [(48, 3, 64, 300), (80, 11, 128, 1700), (256, 8, 192, 900)]
)
@pytest.mark.parametrize("mixed", [(2,), (4, 2), (8, 4, 2), (2, 3)])
def test_whole_numbers_of_mixed_widths(mixed, width, group, page, tokens, kernel):
    """Codes that lie in whole bytes, which a kernel may take as they are; 3 bits do not."""
    bits = np.resize(np.array(mixed, np.uint8), (2, width))
    keys, _ = layer(("channel", "exact"), bits=bits, width=width, page=page, tokens=tokens)
    _, values = layer(("exact", "token"), bits=mixed[0], width=width, page=page, tokens=tokens)
    visible = torch.arange(len(keys)) % 5 != 3
    assert error(torch.randn(1, 2 * group, 1, width), keys, values, kernel, visible=visible[None]) < ENOUGH


@pytest.mark.parametrize("kernel", NATIVE)
@pytest.mark.parametrize("width", [32, 48, 64, 80, 128, 256])
@pytest.mark.parametrize(("group", "tokens"), [(1, 257), (3, 1100), (4, 511), (7, 64), (8, 1039), (16, 390)])
def test_keys_in_a_basis_with_widths_of_their_own(group, tokens, width, kernel):
    """Components of 0 to 8 bits, some far stronger than others: what the planner makes, and less even."""
    columns = width * 3 // 4
    for bits in (4, 2, np.random.default_rng(width).integers(0, 9, (2, columns))):
        keys, _ = layer(("basis", "exact"), width=width, tokens=tokens, page=16, bits=bits)
        _, values = layer(("exact", "static"), width=width, tokens=tokens, page=16)
        visible = torch.arange(len(keys)) % 7 != 2
        query = torch.randn(1, 2 * group, 1, width)
        assert error(query, keys, values, kernel, visible=visible[None]) < 1e-3


@pytest.mark.parametrize("kernel", NATIVE)
def test_sums_of_many_components(kernel):
    """So many that sums of their levels, as whole numbers, come near what 32 bits hold."""
    keys, values = layer(("shared basis", "exact"), heads=1, width=1024, tokens=70, page=16, bits=8)
    assert error(torch.randn(1, 2, 1, 1024), keys, values, kernel) < ENOUGH


@pytest.mark.parametrize("kernel", NATIVE)
def test_values_leave_what_is_known_of_keys(kernel):
    """Spans of one head share what is prepared for its keys, whatever is computed for values in between."""
    keys, _ = layer(("basis", "exact"), heads=1, width=64, tokens=2500, page=64)
    _, values = layer(("exact", "token"), heads=1, width=64, tokens=2500, page=64, bits=4)
    assert error(torch.randn(1, 6, 1, 64), keys, values, kernel) < ENOUGH


@pytest.mark.parametrize("kernel", NATIVE)
def test_a_long_text(kernel):
    """Positions far out: turning in two steps adds little."""
    keys, values = layer(("basis", "static"), heads=1, width=64, tokens=33_000)
    assert error(torch.randn(1, 3, 1, 64), keys, values, kernel) < 2e-3


@pytest.mark.parametrize("kernel", NATIVE)
@pytest.mark.parametrize(("bits", "bound"), [(4, 2e-3), (2, 5e-3)])
def test_error_beside_quantisation(bits, bound, kernel):
    keys, values = layer(("basis", "static"), width=64, tokens=2000, bits=bits)
    assert error(3 * torch.randn(1, 6, 1, 64), keys, values, kernel) < bound


@pytest.mark.parametrize("kernel", NATIVE)
def test_threads_change_no_bit(kernel):
    keys, values = layer(("basis", "static"), batch=2, width=64, tokens=3000)
    query, threads = torch.randn(2, 6, 1, 64), torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(attend(query, keys, values, scaling=0.1, kernel=kernel))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("kernel", kernels())
def test_nothing_visible_gives_zeros(kernel):
    keys, values = layer(("static", "static"), batch=2)
    visible = torch.ones(2, len(keys), dtype=torch.bool)
    visible[1] = False
    found = attend(torch.randn(2, 2, 1, 32), keys, values, scaling=1.0, visible=visible, kernel=kernel)
    assert found[0].abs().sum() > 0
    assert torch.equal(found[1], torch.zeros_like(found[1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_result_has_the_dtype_of_the_query(dtype):
    keys, values = layer(("channel", "token"), dtype=dtype)
    assert attend(torch.randn(1, 4, 1, 32).to(dtype), keys, values, scaling=1.0).dtype == dtype


def test_kernels_begin_with_the_reference(monkeypatch):
    assert kernels()[0] == "reference"
    monkeypatch.setattr(extension, "native", None)
    assert kernels() == ("reference",)
    keys, values = layer(("static", "static"))
    assert attend(torch.randn(1, 4, 1, 32), keys, values, scaling=1.0).shape == (1, 4, 1, 32)


def test_the_environment_chooses(monkeypatch):
    keys, values = layer(("static", "static"))
    monkeypatch.setenv("SAGITTAL_KERNEL", "abacus")
    with pytest.raises(InputError, match="SAGITTAL_KERNEL: this kernel does not run here; got abacus"):
        attend(torch.randn(1, 4, 1, 32), keys, values, scaling=1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": "abacus"}, "does not run here"),
        ({"query": torch.randn(1, 4, 2, 32)}, "one new token"),
        ({"query": torch.randn(1, 4, 1, 32).double()}, "one new token"),
        ({"query": torch.randn(1, 4, 1, 16)}, "not of these keys"),
        ({"query": torch.randn(1, 5, 1, 32)}, "not of these keys"),
        ({"query": torch.randn(2, 4, 1, 32)}, "not of these keys"),
        ({"visible": torch.ones(1, 7, dtype=torch.bool)}, "visible has another shape"),
        ({"visible": torch.ones(1, 300)}, "visible has another dtype"),
        ({"pads": torch.zeros(3, dtype=torch.int64)}, "pads has another shape"),
        ({"pads": torch.zeros(1, dtype=torch.int32)}, "pads has another dtype"),
        ({"sinks": torch.zeros(3)}, "sinks has another shape"),
        ({"softcap": -1.0}, "softcap is out of range"),
        ({"scaling": float("nan")}, "scaling is not finite"),
        ({"values": layer(("static", "static"), tokens=299)[1]}, "keys and values disagree"),
        ({"values": layer(("static", "static"), heads=1)[1]}, "keys and values disagree"),
    ],
)
def test_bad_input_is_named(change, message):
    keys, values = layer(("static", "static"))
    given = {"query": torch.randn(1, 4, 1, 32), "keys": keys, "values": values, "scaling": 1.0, **change}
    with pytest.raises(InputError, match=message):
        attend(**given)


@pytest.mark.parametrize("kernel", NATIVE[-1:])
@pytest.mark.parametrize("part", ["planes", "scale"])
def test_a_page_that_is_cut_short_is_refused(part, kernel):
    """Whatever a page says, nothing outside its tensors is read."""
    keys, values = layer(("static", "static"))
    page = keys.pages[0]
    less = {"scale": page.scale[..., :-1], "planes": (page.planes[0][..., :-2], *page.planes[1:])}[part]
    broken = replace(keys, pages=(replace(page, **{part: less}), *keys.pages[1:]))
    with pytest.raises(InputError, match="has another size|have another size"):
        attend(torch.randn(1, 4, 1, 32), broken, values, scaling=1.0, kernel=kernel)
