from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sagittal.language.pages import Layout, Page, PagedStates
from sagittal.language.quantise import Axis

AXES: list[Axis] = ["token", "channel"]


def _states(tokens: int, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 2, tokens, 16, generator=torch.Generator().manual_seed(seed))


def _layout(axis: Axis = "channel", bits: int = 3) -> Layout:
    return Layout(bits=bits, axis=axis, group=8, sinks=2, residual=4, page=8)


@pytest.mark.parametrize("axis", AXES)
def test_page_bytes_are_what_its_tensors_take(axis: Axis) -> None:
    page = Page.encode(_states(24), bits=4, axis=axis, group=8)
    groups = 2 * 2 * 24 * 16 // 8
    assert page.nbytes == 2 * 2 * 24 * 16 // 2 + groups * 4
    assert page.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in page.tensors)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("keep", [0, 1, 8, 13, 23, 24, 99])
def test_truncated_page_is_the_start_of_the_whole(axis: Axis, keep: int) -> None:
    page = Page.encode(_states(24), bits=3, axis=axis, group=8)
    cut = page.truncate(keep)
    assert len(cut) == min(keep, 24)
    assert torch.equal(cut.packed, page.packed[:, :, :keep])
    assert torch.equal(cut.dequantise(torch.float32), page.dequantise(torch.float32)[:, :, :keep])
    assert cut.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in cut.tensors)


@pytest.mark.parametrize("axis", AXES)
def test_batch_operations_commute_with_dequantising(axis: Axis) -> None:
    page = Page.encode(_states(8, batch=3), bits=5, axis=axis, group=8)
    dense = page.dequantise(torch.float32)
    order = torch.tensor([2, 0, 0, 1])
    assert torch.equal(page.select(order).dequantise(torch.float32), dense[order])
    twice = page.repeat_interleave(2).dequantise(torch.float32)
    assert torch.equal(twice, dense.repeat_interleave(2, dim=0))


def test_page_is_frozen() -> None:
    page = Page.encode(_states(8), bits=4, axis="token", group=8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        page.bits = 2  # type: ignore[misc]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    axis=st.sampled_from(AXES),
    cut=st.integers(0, 60),
)
def test_exact_ends_quantised_middle(sizes: list[int], axis: Axis, cut: int) -> None:
    total = sum(sizes)
    truth = _states(total)
    held = PagedStates.empty(_layout(axis, bits=8), truth)
    for part in truth.split(sizes, dim=-2):
        held = held.append(part).settle()
        assert 4 <= held.recent.shape[-2] <= 12 or not held.pages
    assert len(held) == total
    dense = held.dense()
    assert torch.equal(dense[:, :, :2], truth[:, :, :2])
    recent = held.recent.shape[-2]
    assert torch.equal(dense[:, :, total - recent :], truth[:, :, total - recent :])
    assert float((dense - truth).abs().max()) < 8 / 255  # half of a range of at most 8 sigma over 255 levels
    cropped = held.crop(cut)
    assert torch.equal(cropped.dense(), dense[:, :, : max(total - cut, 0)])
    assert cropped.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in cropped.tensors)


def test_cropped_into_the_sinks_fills_them_again() -> None:
    held = PagedStates.empty(_layout(), _states(1)).append(_states(40)).settle().crop(39)
    assert (held.first.shape[-2], len(held.pages), held.recent.shape[-2]) == (1, 0, 0)
    held = held.append(_states(3, seed=5))
    assert (held.first.shape[-2], held.recent.shape[-2]) == (2, 2)
    expected = torch.cat([_states(40)[:, :, :1], _states(3, seed=5)], dim=-2)
    assert torch.equal(held.dense(), expected)


def test_settling_waits_until_more_than_residual_and_page() -> None:
    held = PagedStates.empty(_layout(), _states(1)).append(_states(2 + 12))
    assert not held.settle().pages
    settled = held.append(_states(1)).settle()
    assert [len(page) for page in settled.pages] == [8]
    assert settled.recent.shape[-2] == 5


def test_sixteen_bits_keep_everything_exact() -> None:
    held = PagedStates.empty(_layout(bits=16), _states(1)).append(_states(100)).settle()
    assert not held.pages
    assert torch.equal(held.dense(), _states(100))


def test_tokens_of_a_page_keep_their_codes() -> None:
    held = PagedStates.empty(_layout(), _states(1)).append(_states(60)).settle()
    before = held.pages[0]
    later = held.append(_states(60, seed=2)).settle().select(torch.tensor([1, 0]))
    assert torch.equal(later.pages[0].packed, before.packed[[1, 0]])
