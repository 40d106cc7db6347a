"""Keys before the position embedding are those that the model itself had there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

from sagittal.language.rope import Rope, rope_of

pytestmark = pytest.mark.usefixtures("one_thread")
BASE = {"rope_theta": 1e4}
LONG = {"original_max_position_embeddings": 512}
SCALED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "gemma3": ("gemma3", {}),
    "partial": ("phi3", {}),
    "linear": ("llama", {"rope_parameters": {**BASE, "rope_type": "linear", "factor": 4.0}}),
    "dynamic": ("llama", {"rope_parameters": {**BASE, "rope_type": "dynamic", "factor": 4.0}}),
    "llama3": (
        "llama",
        {
            "rope_parameters": {
                **BASE,
                **LONG,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            }
        },
    ),
    "yarn": ("qwen2", {"rope_parameters": {**BASE, **LONG, "rope_type": "yarn", "factor": 4.0}}),
    "longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 512,
            "rope_parameters": {
                **BASE,
                **LONG,
                "rope_type": "longrope",
                "short_factor": [1.0, 1.5, 2.0, 3.0],
                "long_factor": [2.0, 3.0, 4.0, 8.0],
                "partial_rotary_factor": 0.5,
            },
        },
    ),
}


def _before(model: Any, layer: int, ids: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    """Return keys of a layer before and after the position embedding, ``(B, H, T, D)``."""
    attention = model.model.layers[layer].self_attn
    width, heads = attention.head_dim, model.config.num_key_value_heads
    found: list[Tensor] = []
    norm = getattr(attention, "k_norm", None)
    source = norm or getattr(attention, "k_proj", None) or attention.qkv_proj
    handle = source.register_forward_hook(lambda *hooked: found.append(hooked[2]))
    cache = DynamicCache()
    with torch.no_grad():
        model(ids, past_key_values=cache, **given)
    handle.remove()
    keys = found[0]
    if hasattr(attention, "qkv_proj"):
        keys = keys[..., -2 * heads * width : -heads * width]
    if keys.ndim == 3:
        keys = keys.unflatten(-1, (heads, width))
    if keys.shape[1] != heads:
        keys = keys.transpose(1, 2)
    return keys, cache.layers[layer].keys


@pytest.mark.parametrize("name", SCALED)
def test_keys_are_the_models_own_before_the_embedding(
    make_model: Callable[..., Any], prompt: Tensor, name: str
) -> None:
    kind, changes = SCALED[name]
    model = make_model(kind, **changes)
    layer = 1
    before, after = _before(model, layer, prompt)
    rope = rope_of(model.config, 16)
    assert rope is not None
    positions = torch.arange(prompt.shape[1])[None]
    assert not torch.allclose(before, after, atol=0.1)
    assert torch.allclose(rope.undo(after, positions), before, atol=1e-5)
    assert torch.allclose(rope.turn(before, positions), after, atol=1e-5)


def test_each_row_has_its_own_positions(make_model: Callable[..., Any], prompt: Tensor) -> None:
    model = make_model("llama")
    positions = (torch.arange(75) - torch.tensor([[0], [20]])).clamp_min(0)
    before, after = _before(model, 2, prompt.repeat(2, 1), position_ids=positions)
    rope = rope_of(model.config, 16)
    assert rope is not None
    assert torch.allclose(rope.undo(after, positions), before, atol=1e-5)


@given(
    turned=st.integers(1, 8),
    theta=st.floats(10, 1e6),
    scaling=st.floats(0.8, 1.5),
    start=st.integers(0, 30_000),
    seed=st.integers(0, 999),
)
def test_undone_and_done_again_is_what_it_was(
    turned: int, theta: float, scaling: float, start: int, seed: int
) -> None:
    rope = Rope(theta ** -(torch.arange(turned) / turned), scaling)
    keys = torch.randn(2, 3, 5, 16, generator=torch.Generator().manual_seed(seed))
    positions = torch.arange(start, start + 5) + torch.tensor([[0], [3]])
    assert torch.allclose(rope.undo(rope.turn(keys, positions), positions), keys, atol=1e-5)
    assert torch.allclose(rope.turn(rope.undo(keys, positions), positions), keys, atol=1e-5)
    assert torch.equal(rope.turn(keys, positions)[..., 2 * turned :], keys[..., 2 * turned :])
    unscaled = Rope(rope.frequencies)
    assert torch.equal(unscaled.turn(keys, torch.zeros(1, 5)), keys)
    assert torch.allclose(unscaled.turn(keys, positions).norm(dim=-1), keys.norm(dim=-1), rtol=1e-5)


def test_model_without_rope_has_none(make_model: Callable[..., Any]) -> None:
    assert rope_of(make_model("gpt2").config, 16) is None
