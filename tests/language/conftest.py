"""Small random models, and a folder as a converted model leaves it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sagittal.language import LanguageModel

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 300,
    "max_position_embeddings": 2048,
    "initializer_range": 0.35,  # wide, so that another cache shows in the tokens
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),  # norms of queries and keys
    "phi3": (
        Phi3Config,
        Phi3ForCausalLM,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "gpt2": (GPT2Config, GPT2LMHeadModel, {"num_key_value_heads": 4}),  # positions are added, not turned
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 12}),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "initializer_range": 0.08,
        },
    ),
}
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampling": {"do_sample": True, "temperature": 1.3, "top_k": 0},
    "assisted": {"do_sample": False, "prompt_lookup_num_tokens": 3},
}


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """Return a function from a kind of model to one with random weights, always the same."""

    def make(kind: str = "llama", **changes: Any) -> Any:
        config, model, own = KINDS[kind]
        torch.manual_seed(7)
        return model(config(**{**COMMON, **own, **changes})).eval()

    return make


@pytest.fixture(scope="session")
def llama(make_model: Callable[..., Any]) -> Any:
    return make_model("llama")


@pytest.fixture(scope="session")
def plant_sinks(make_model: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function from a token to a model in which it is a sink wherever it stands.

    The token grows a massive activation and then draws attention. One unit of an early MLP answers to the
    token's mark and writes to channel ``massive``, one of three channels of the residual stream that nothing
    else writes to. Later keys turn that into a step along the slowest of the rotary pairs, on which every
    query stands, by channel ``constant``, the same in all tokens.
    """

    def plant(trigger: int, mark: int = 60, massive: int = 61, constant: int = 62, emergence: int = 1) -> Any:
        model = make_model(num_hidden_layers=6, initializer_range=0.05)
        with torch.no_grad():
            own = [mark, massive, constant]
            embedding = model.model.embed_tokens.weight
            embedding[:, own] = 0
            embedding[trigger, mark] = 8
            embedding[:, constant] = 1
            for number, layer in enumerate(model.model.layers):
                layer.self_attn.o_proj.weight[own] = 0
                layer.mlp.down_proj.weight[own] = 0
                if number == emergence:
                    for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
                        projection.weight[0] = 0
                        projection.weight[0, mark] = 1
                    layer.mlp.down_proj.weight[:, 0] = 0
                    layer.mlp.down_proj.weight[massive, 0] = -5
                for projection, channel, sign in (
                    (layer.self_attn.q_proj, constant, 1),
                    (layer.self_attn.k_proj, massive, -1),
                ):
                    heads = projection.weight.view(-1, 16, 64)
                    heads[:, 7] = 0
                    heads[:, 7, channel] = 0.85 * sign
        return model

    return plant


@pytest.fixture(scope="session")
def prompt() -> torch.Tensor:
    return torch.randint(3, 300, (1, 75), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def padded(prompt: torch.Tensor) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Return a function from the padding before each text to a batch of such texts and its mask."""

    def batch(pads: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        texts = torch.cat([prompt.roll(9 * i) for i in range(len(pads))])
        mask = (torch.arange(prompt.shape[1]) >= torch.tensor(pads)[:, None]).long()
        return torch.where(mask == 1, texts, 5), mask

    return batch


@pytest.fixture(scope="session")
def generate() -> Callable[..., Any]:
    """Return a function that writes so many tokens by a search of SEARCHES, and gives their logits too."""

    def written(
        model: Any, ids: torch.Tensor, cache: Any, how: str = "greedy", tokens: int = 40, **more: Any
    ) -> Any:
        torch.manual_seed(11)
        return model.generate(
            ids,
            past_key_values=cache,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            return_dict_in_generate=True,
            output_logits=True,
            **SEARCHES[how],
            **more,
        )

    return written


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with one merge, of the two line ends that may stand before a question."""
    roles = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    return make_tokenizer("<|end|>", *roles.values(), merges=[("Ċ", "Ċ")], chat_template=CHAT, **roles)


@pytest.fixture(scope="session")
def wrap(tokenizer: PreTrainedTokenizerFast) -> Callable[[Any], LanguageModel]:
    """Return a function from a model to the same with the tokenizer."""

    def wrapped(model: Any) -> LanguageModel:
        return LanguageModel(model, tokenizer, "tiny", model.config.max_position_embeddings, "0" * 64)

    return wrapped


@pytest.fixture(scope="session")
def model(wrap: Callable[[Any], LanguageModel], llama: Any) -> LanguageModel:
    return wrap(llama)


@pytest.fixture
def model_folder(tmp_path: Path, llama: Any, tokenizer: Any) -> Path:
    folder = tmp_path / "tiny-llama"
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
