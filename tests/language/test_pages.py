"""Keys or values of one layer: exact ends, a quantised middle, tokens kept for good."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sagittal.language import pages
from sagittal.language.codec import Codec
from sagittal.language.pages import PagedStates
from sagittal.language.plan import Coding

pytestmark = pytest.mark.usefixtures("one_thread")
SPREAD = np.ones((2, 16), np.float32)
CODINGS: dict[str, Coding] = {
    "channel": Coding(bits=8),
    "token": Coding(bits=8, scale="token", group=8),
    "static": Coding(bits=8, scale="static", levels="gaussian", spread=SPREAD, gain=True),
    "outliers": Coding(bits=8, outliers=0.02, rotation="hadamard", heads=2),
}
NAMES = sorted(CODINGS)
NO_PADS = torch.zeros(2, dtype=torch.int64)


def _states(tokens: int, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 2, tokens, 16, generator=torch.Generator().manual_seed(seed))


def _empty(coding: Coding | None = None, residual: int = 4) -> PagedStates:
    coding = coding or Coding(bits=3)
    codec = None if coding.exact else Codec(coding, heads=2, width=16, page=8)
    return PagedStates.empty(codec, residual, _states(1))


def _kept(held: PagedStates, where: Tensor) -> Tensor | None:
    """Return the part of a mask ``(B, T)`` that belongs to the tokens that are ready."""
    return where[:, held.quantised : held.quantised + held.ready] if held.ready else None


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    name=st.sampled_from(NAMES),
    cut=st.integers(0, 60),
    sinks=st.lists(st.integers(0, 40), max_size=6),
)
def test_exact_ends_and_kept_tokens_quantised_middle(
    sizes: list[int], name: str, cut: int, sinks: list[int]
) -> None:
    total = sum(sizes)
    truth, where = _states(total), torch.zeros(2, total, dtype=torch.bool)
    for i, place in enumerate(sinks):
        where[i % 2, min(place, total - 1)] = True
    held = _empty(CODINGS[name])
    for part in truth.split(sizes, dim=-2):
        held = held.append(part)
        held = held.settle(NO_PADS, _kept(held, where))
        assert 4 <= held.recent.shape[-2] <= 12 or not held.pages
    assert len(held) == total
    assert len(held.pages) <= 1
    dense = held.dense(NO_PADS)
    recent = held.recent.shape[-2]
    exact = where.clone()
    exact[:, total - recent :] = True
    same = exact[:, None, :, None].expand_as(truth)
    assert torch.equal(dense[same], truth[same])
    assert int((held.kept_at >= 0).sum()) == int(where[:, : total - recent].sum())
    assert float((dense - truth).abs().max()) < 0.35  # the outer levels of a normal number are far apart
    cropped = held.crop(cut)
    keep = max(total - cut, 0)
    assert torch.equal(cropped.dense(NO_PADS), dense[:, :, :keep])
    assert int((cropped.kept_at >= 0).sum()) == int(where[:, : min(total - recent, keep)].sum())
    assert cropped.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in cropped.tensors)
    assert held.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in held.tensors)


@settings(max_examples=40)
@given(
    name=st.sampled_from(NAMES),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 25)),
            st.tuples(st.just("crop"), st.integers(1, 30)),
            st.tuples(st.just("select"), st.integers(0, 5)),
        ),
        min_size=3,
        max_size=14,
    ),
)
def test_a_code_once_written_stays_whatever_happens(name: str, steps: list[tuple[str, int]]) -> None:
    """Quantised tokens read the same for good, and other tokens are exact."""
    held, truth, pads = _empty(CODINGS[name]), _states(0), NO_PADS
    written = truth
    marks = torch.zeros(2, 0, dtype=torch.bool)
    for number, (what, amount) in enumerate(steps):
        if what == "append":
            part = _states(amount, batch=truth.shape[0], seed=number)
            truth = torch.cat([truth, part], dim=-2)
            marks = torch.cat([marks, part[:, 0, :, 0] > 1.5], dim=1)
            held = held.append(part)
            held = held.settle(pads, _kept(held, marks))
        elif what == "crop":
            keep = max(truth.shape[2] - amount, 0)
            held, truth, marks = held.crop(amount), truth[:, :, :keep], marks[:, :keep]
        elif truth.shape[2]:
            rows = torch.tensor([[0, 1], [1, 0], [0, 0], [1, 1], [1], [0]][amount]).clamp_max(
                truth.shape[0] - 1
            )
            held, truth, written, marks = held.select(rows), truth[rows], written[rows], marks[rows]
            pads = pads[rows]
        dense = held.dense(pads)
        assert dense.shape == truth.shape
        same = min(held.quantised, written.shape[2])
        assert torch.equal(dense[:, :, :same], written[:, :, :same])
        written = dense[:, :, : held.quantised]
        assert torch.equal(dense[:, :, held.quantised :], truth[:, :, held.quantised :])
        exact = marks[:, None, :, None].expand_as(truth)
        assert torch.equal(dense[exact], truth[exact])


def test_settling_waits_until_more_than_residual_and_page() -> None:
    held = _empty().append(_states(12))
    assert held.ready == 0
    assert not held.settle(NO_PADS).pages
    more = held.append(_states(1))
    assert more.ready == 8
    settled = more.settle(NO_PADS)
    assert [page.tokens for page in settled.pages] == [8]
    assert settled.recent.shape[-2] == 5
    assert settled.ready == 0


def test_page_grows_and_is_cut_only_by_a_crop_within_a_block() -> None:
    held = _empty().append(_states(60)).settle(NO_PADS)
    held = held.append(_states(60, seed=1)).settle(NO_PADS)
    assert [page.tokens for page in held.pages] == [112]
    at_edge = held.crop(120 - 64).append(_states(60)).settle(NO_PADS)
    assert [page.tokens for page in at_edge.pages] == [120]
    within = held.crop(120 - 61).append(_states(60)).settle(NO_PADS)
    assert [page.tokens for page in within.pages] == [61, 56]


def test_page_of_a_long_text_grows_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adding a block copies at most what a page may hold."""
    monkeypatch.setattr(pages, "_LARGEST", 32)
    truth = _states(93)
    held = _empty().append(truth[:, :, :61]).settle(NO_PADS)
    assert [page.tokens for page in held.pages] == [32, 24]
    first = held.pages[0]
    for part in truth[:, :, 61:].split(8, dim=-2):
        held = held.append(part).settle(NO_PADS)
    assert [page.tokens for page in held.pages] == [32, 32, 24]
    assert held.pages[0] is first
    monkeypatch.setattr(pages, "_LARGEST", 1024)
    whole = _empty().append(truth).settle(NO_PADS)
    assert [page.tokens for page in whole.pages] == [88]
    assert torch.equal(whole.dense(NO_PADS), held.dense(NO_PADS))
    cut = held.crop(93 - 50)
    assert [page.tokens for page in cut.pages] == [32, 18]
    assert torch.equal(cut.dense(NO_PADS), held.dense(NO_PADS)[:, :, :50])


def test_pages_of_blocks_larger_than_a_page_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_LARGEST", 4)
    held = _empty().append(_states(40)).settle(NO_PADS)
    assert [page.tokens for page in held.pages] == [8] * 4


@pytest.mark.parametrize("name", NAMES)
def test_bytes_by_hand(name: str) -> None:
    """100 tokens of 2 texts, 2 heads of 16 channels: 88 in pages of 8 at 8 bits, 3 of them kept."""
    held = _empty(CODINGS[name], residual=12).append(_states(100))
    where = torch.zeros(2, 100, dtype=torch.bool)
    where[0, [1, 30]] = where[1, 0] = True
    held = held.settle(NO_PADS, _kept(held, where))
    assert (held.quantised, held.recent.shape[2]) == (88, 12)
    exact = 2 * 32 * 12 * 4
    kept = 2 * 2 * 4 + 2 * 32 * 2 * 4  # two places a text, as wide as the text with most
    codes = 2 * 32 * 88
    scales = {
        "channel": 2 * 32 * 11 * 4,
        "token": 2 * 4 * 88 * 4,
        "static": 2 * 2 * 88 + 2 * 16 * 2,
        "outliers": 2 * 32 * 11 * 4 + 2 * 11 * 5 * 4,
    }
    assert held.nbytes == exact + kept + codes + scales[name]


def test_sixteen_bits_keep_everything_exact() -> None:
    held = _empty(Coding(bits=16)).append(_states(100)).settle(NO_PADS)
    assert not held.pages
    assert torch.equal(held.dense(NO_PADS), _states(100))


def test_positions_are_counted_from_the_start_of_each_text() -> None:
    asked: list[Tensor] = []

    class Noting(Codec):
        def encode(self, states: Tensor, positions: Tensor, kept: Tensor | None = None) -> Any:
            asked.append(positions)
            return super().encode(states, positions, kept)

        def decode(self, page: Any, positions: Tensor, dtype: torch.dtype) -> Tensor:
            asked.append(positions)
            return super().decode(page, positions, dtype)

    pads = torch.tensor([0, 3])
    held = PagedStates.empty(Noting(Coding(), heads=2, width=16, page=8), 0, _states(1))
    held = held.append(_states(9)).settle(pads).append(_states(8)).settle(pads)
    wanted = torch.tensor([[*range(8)], [0, 0, 0, *range(5)]])
    assert torch.equal(asked[0], wanted)
    assert torch.equal(asked[1], torch.tensor([[*range(8, 16)], [*range(5, 13)]]))
    held.dense(pads)
    assert torch.equal(asked[2], torch.cat(asked[:2], dim=1))


def test_everything_is_frozen_and_shared() -> None:
    held = _empty().append(_states(40)).settle(NO_PADS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        held.residual = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        held.pages[0].tokens = 2  # type: ignore[misc]
    copies = [tensor.clone() for tensor in held.tensors]
    longer = held.append(_states(3))
    assert longer.pages[0] is held.pages[0]
    longer.append(_states(60, seed=2)).settle(NO_PADS).crop(70).select(torch.tensor([1, 0]))
    assert all(torch.equal(a, b) for a, b in zip(held.tensors, copies, strict=True))
