"""Where texts begin, told from keys, and which of their tokens stay exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from sagittal.core.errors import InputError
from sagittal.language.plan import Sinks
from sagittal.language.sequences import Sequences, leading_pads

pytestmark = pytest.mark.usefixtures("one_thread")
PAD = 5  # not the models' own, whose embedding is zero


def _first_keys(model: Any, ids: Tensor, mask: Tensor | None, layer: int = 0) -> Tensor:
    """Return the keys that a cache is given by ``generate``."""
    cache = DynamicCache()
    model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=1, do_sample=False)
    keys: Tensor = cache.layers[layer].keys
    return keys


def _batch(pads: list[int], prompt: Tensor, start: list[int] | None = None) -> tuple[Tensor, Tensor]:
    ids = torch.cat([prompt.roll(5 * i) for i in range(len(pads))])
    mask = (torch.arange(ids.shape[1]) >= torch.tensor(pads)[:, None]).long()
    for row, count in enumerate(pads):
        ids[row, :count] = PAD
        if start is not None and count < ids.shape[1]:
            ids[row, count] = start[row]
    return ids, mask


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "phi3", "gpt2", "mistral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pads", [[0, 20], [3, 0, 1], [7, 2, 0, 74], [5, 5], [1, 2]])
def test_padding_of_a_generated_batch(
    make_model: Callable[..., Any], prompt: Tensor, kind: str, dtype: torch.dtype, pads: list[int]
) -> None:
    ids, mask = _batch(pads, prompt)
    keys = _first_keys(make_model(kind).to(dtype), ids, mask)
    assert leading_pads(keys).tolist() == pads


def test_padding_shows_in_a_deeper_layer(make_model: Callable[..., Any], prompt: Tensor) -> None:
    ids, mask = _batch([20, 0, 4], prompt)
    keys = _first_keys(make_model("gemma3"), ids, mask, layer=1)  # the first that is not sliding
    assert leading_pads(keys).tolist() == [20, 0, 4]


@pytest.mark.parametrize("pads", [[0, 0], [0], [30]])
def test_no_padding_is_seen_where_nothing_tells(
    make_model: Callable[..., Any], prompt: Tensor, pads: list[int]
) -> None:
    """Neither in an unpadded batch nor in a text of its own."""
    ids, mask = _batch(pads, prompt)
    assert leading_pads(_first_keys(make_model("llama"), ids, mask)).tolist() == [0] * len(pads)


def test_a_single_padding_token_is_known_by_a_longer_run(
    make_model: Callable[..., Any], prompt: Tensor
) -> None:
    model = make_model("llama")
    ids, mask = _batch([1, 0], prompt)
    assert leading_pads(_first_keys(model, ids, mask)).tolist() == [0, 0]  # as the docstring says
    ids, mask = _batch([1, 0, 2], prompt)
    assert leading_pads(_first_keys(model, ids, mask)).tolist() == [1, 0, 2]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "phi3", "gpt2"])
def test_repeated_tokens_are_no_padding(make_model: Callable[..., Any], prompt: Tensor, kind: str) -> None:
    ids = prompt.repeat(3, 1)
    ids[1, :30] = 9
    ids[2] = PAD
    mask = torch.ones_like(ids)
    assert leading_pads(_first_keys(make_model(kind), ids, mask)).tolist() == [0, 0, 0]


def test_tokens_given_without_positions_are_no_padding(
    make_model: Callable[..., Any], prompt: Tensor
) -> None:
    """``forward`` numbers padding too, unless it is told: then a token's place is its position."""
    ids, mask = _batch([0, 20], prompt)
    cache = DynamicCache()
    with torch.no_grad():
        make_model("llama")(ids, attention_mask=mask, past_key_values=cache)
    assert leading_pads(cache.layers[0].keys).tolist() == [0, 0]


@pytest.mark.parametrize("pads", [[0, 20], [4, 7]])
def test_start_of_text_that_is_also_the_padding_token(
    make_model: Callable[..., Any], prompt: Tensor, pads: list[int]
) -> None:
    """Models whose padding token is their first: its key is that of padding, and it is the sink of all."""
    ids, mask = _batch(pads, prompt, start=[PAD, PAD])
    keys = _first_keys(make_model("llama"), ids, mask)
    sequences = Sequences(Sinks(count=2))
    sequences.observe(0, keys, keys, fresh=True)
    kept = sequences.kept(0, 0, 75)
    for row, count in enumerate(pads):
        assert kept[row, count : count + 2].all()


def test_row_of_padding_alone(make_model: Callable[..., Any], prompt: Tensor) -> None:
    ids, mask = _batch([75, 0], prompt)
    assert leading_pads(_first_keys(make_model("llama"), ids, mask)).tolist() == [75, 0]


def test_no_tokens_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="no tokens"):
        leading_pads(torch.zeros(2, 2, 0, 16))


def test_first_tokens_of_each_text_are_kept() -> None:
    keys = torch.randn(3, 2, 12, 16, generator=torch.Generator().manual_seed(1))
    keys[1, :, :5] = keys[1, :, :1]
    keys[2, :, :1] = keys[1, :, :1]
    sequences = Sequences(Sinks(count=3))
    sequences.observe(0, keys, keys, fresh=True)
    assert sequences.pads.tolist() == [0, 5, 1]
    kept = sequences.kept(2, 0, 12)
    assert [row.nonzero().flatten().tolist() for row in kept] == [[0, 1, 2], [4, 5, 6, 7], [0, 1, 2, 3]]
    later = sequences.kept(2, 6, 12)
    assert torch.equal(later, kept[:, 6:])
    none = Sequences(Sinks(count=0))
    none.observe(0, keys, keys, fresh=True)
    assert not none.kept(0, 0, 12).any()


def test_forks_and_batch_operations() -> None:
    keys = torch.randn(2, 2, 12, 16, generator=torch.Generator().manual_seed(1))
    keys[1, :, :5] = keys[1, :, :1]
    sequences = Sequences(Sinks(count=3))
    sequences.observe(0, keys, keys, fresh=True)
    fork = sequences.fork()
    fork.map(1, lambda tensor: tensor.flip(0))  # a layer that decides nothing
    assert fork.pads.tolist() == [0, 5]
    fork.map(0, lambda tensor: tensor.flip(0))
    assert (fork.pads.tolist(), sequences.pads.tolist()) == ([5, 0], [0, 5])
    assert [tensor.data_ptr() for tensor in sequences.fork().tensors] == [
        tensor.data_ptr() for tensor in sequences.tensors
    ]
    fork.reset(0)
    assert not list(fork.tensors)
