"""A model that reads packed states gives what it gives with the same cache and sdpa."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
)

from sagittal.core.errors import InputError, ModelError
from sagittal.language import (
    CachePlan,
    Coding,
    LowBitCache,
    LowBitLayer,
    Sinks,
    attention,
    use_low_bit_attention,
)
from sagittal.language.attention import NAME, handle

pytestmark = pytest.mark.usefixtures("one_thread")
PAGED: dict[str, Any] = {"residual": 8, "page": 8}
MEAN, SPREAD = np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 16), np.full((2, 16), 1.5, np.float32)
STATIC = Coding(bits=4, scale="static", levels="gaussian", gain=True, mean=MEAN, spread=SPREAD)
PLANS = {
    "uniform": CachePlan.uniform(3, 3, group=8, sinks=Sinks(count=2), **PAGED),
    "exact keys": CachePlan.uniform(16, 3, group=8, sinks=Sinks(count=2), **PAGED),
    "before RoPE": CachePlan(
        keys=(dataclasses.replace(STATIC, before_rope=True),), values=(STATIC,), **PAGED
    ),
}
UNIFORM = PLANS["uniform"]
NEAR = 0.02
"""Of logits with a spread of about 3 (0.7 for gemma3): what other kernels' rounding may come to."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the tokens attended to at each call of ``attend``."""
    seen: list[int] = []
    plain = attention.attend

    def counting(query: Tensor, keys: Any, values: Any, **how: Any) -> Tensor:
        seen.append(len(keys))
        return plain(query, keys, values, **how)

    monkeypatch.setattr(attention, "attend", counting)
    return seen


def _step(model: Any, cache: Any, ids: Tensor, **more: Any) -> Tensor:
    with torch.no_grad():
        return model(ids, past_key_values=cache, use_cache=True, **more).logits


def _near(first: Any, second: Any) -> bool:
    return torch.equal(first.sequences, second.sequences) and all(
        torch.allclose(a, b, atol=NEAR, rtol=0) for a, b in zip(first.logits, second.logits, strict=True)
    )


def _both(model: Any, run: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Run with sdpa and with packed states."""
    model.set_attn_implementation("sdpa")
    plain = run(model)
    use_low_bit_attention(model)
    return plain, run(model)


@pytest.mark.parametrize("kernel", [None, "reference"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma3", "phi3", "gpt2"])
def test_greedy_search_of_each_kind_of_model(
    make_model: Callable[..., Any],
    prompt: Tensor,
    generate: Callable[..., Any],
    kind: str,
    kernel: str | None,
    calls: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kernel is not None:
        monkeypatch.setenv("SAGITTAL_KERNEL", kernel)
    model = make_model(kind)
    found = _both(model, lambda m: generate(m, prompt, LowBitCache(m.config, UNIFORM), tokens=30))
    assert _near(*found)
    layers = {"mistral": 0, "gemma3": 1}.get(kind, 3)  # sliding layers keep transformers' own cache
    assert sorted(calls) == sorted(layers * list(range(76, 76 + 29)))


@pytest.mark.parametrize("how", ["beams", "sampling", "assisted"])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("plan", PLANS)
def test_other_searches(
    make_model: Callable[..., Any],
    prompt: Tensor,
    generate: Callable[..., Any],
    kind: str,
    how: str,
    plan: str,
    calls: list[int],
) -> None:
    if (kind, how) == ("gemma3", "assisted"):
        pytest.skip("transformers' sliding layers cannot be cropped")
    model = make_model(kind)
    assert _near(
        *_both(model, lambda m: generate(m, prompt, LowBitCache(m.config, PLANS[plan]), how, tokens=30))
    )
    assert calls or how == "assisted"  # which may guess in every step


@pytest.mark.parametrize("how", ["greedy", "beams"])
@pytest.mark.parametrize("kind", ["llama", "gemma3", "phi3"])
@pytest.mark.parametrize("plan", PLANS)
def test_left_padded_batch(
    make_model: Callable[..., Any],
    generate: Callable[..., Any],
    padded: Callable[..., Any],
    kind: str,
    how: str,
    plan: str,
    calls: list[int],
) -> None:
    batch, mask = padded((0, 20, 9))
    found = _both(
        make_model(kind),
        lambda m: generate(m, batch, LowBitCache(m.config, PLANS[plan]), how, attention_mask=mask, tokens=20),
    )
    assert _near(*found)
    assert calls


def test_row_of_padding_alone(
    make_model: Callable[..., Any], generate: Callable[..., Any], padded: Callable[..., Any]
) -> None:
    batch, mask = padded((0, 75, 20))
    found = _both(
        make_model(),
        lambda m: generate(m, batch, LowBitCache(m.config, UNIFORM), attention_mask=mask, tokens=30),
    )
    assert torch.equal(found[0].sequences[[0, 2]], found[1].sequences[[0, 2]])
    assert torch.isfinite(found[1].logits[-1]).all()


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_prompt_is_used_again(
    make_model: Callable[..., Any], prompt: Tensor, generate: Callable[..., Any], kind: str
) -> None:
    def run(model: Any) -> Any:
        cache = LowBitCache(model.config, UNIFORM)
        first = generate(model, prompt, cache, tokens=12)
        fork = cache.fork()
        longer = torch.cat([first.sequences, prompt[:, :7]], dim=1)
        again = generate(model, longer, cache, tokens=12)
        assert _near(again, generate(model, longer, fork, tokens=12))
        return again

    assert _near(*_both(make_model(kind), run))


def test_several_tokens_and_crops(make_model: Callable[..., Any], prompt: Tensor, calls: list[int]) -> None:
    """Chunks are attended to densely, single tokens packed, whatever came before."""
    model = make_model()
    use_low_bit_attention(model)
    packed, dense = LowBitCache(model.config, UNIFORM), LowBitCache(model.config, UNIFORM)
    for layer in dense.layers:
        layer.config = None
    for start, end, cut in ((0, 40, 0), (40, 41, 0), (41, 44, 2), (42, 43, 0), (43, 60, 25), (35, 36, 0)):
        before = len(calls)
        first, second = (_step(model, cache, prompt[:, start:end]) for cache in (packed, dense))
        assert torch.allclose(first, second, atol=NEAR)
        assert len(calls) - before == (3 if end - start == 1 else 0)
        if cut:
            packed.crop(-cut)
            dense.crop(-cut)
    for cache in (packed, dense):
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([1, 0]))
    first, second = (_step(model, cache, prompt[:, :1].repeat(2, 1)) for cache in (packed, dense))
    assert torch.allclose(first, second, atol=NEAR)


def test_implementation_may_change_at_any_time(
    make_model: Callable[..., Any], prompt: Tensor, calls: list[int]
) -> None:
    model = make_model()
    cache, plain = LowBitCache(model.config, UNIFORM), LowBitCache(model.config, UNIFORM)
    for i, name in enumerate(("sdpa", NAME, "eager", NAME, "sdpa")):
        model.set_attn_implementation(name)
        part = prompt[:, :30] if i == 0 else prompt[:, 30 + i : 31 + i]
        found = _step(model, cache, part)
        model.set_attn_implementation("sdpa")
        assert torch.allclose(found, _step(model, plain, part), atol=NEAR)
    assert calls == [31, 31, 31, 33, 33, 33]


def test_nothing_packed_is_asked_for_nothing(
    make_model: Callable[..., Any], prompt: Tensor, generate: Callable[..., Any], calls: list[int]
) -> None:
    """Exact plans, texts within the window and other caches take the dense route, and lose nothing."""
    model = make_model()
    for make in (
        lambda m: LowBitCache(m.config, CachePlan.uniform(16, 16)),
        lambda m: LowBitCache(m.config, CachePlan.uniform(2, 2, residual=300)),
        lambda m: DynamicCache(config=m.config),
        lambda m: LowBitCache(type(m.config)(**m.config.to_dict()), UNIFORM),
    ):
        assert _near(*_both(model, lambda m, make=make: generate(m, prompt, make(m), tokens=30)))
    assert calls == []


def test_a_handle_takes_no_memory_and_holds_the_states(prompt: Tensor) -> None:
    class Config:
        _attn_implementation = NAME

    layer = LowBitLayer(UNIFORM, config=Config())
    states = torch.randn(2, 3, 2, 40, 16, generator=torch.Generator().manual_seed(1))
    layer.update(*states[..., :39, :])
    key, value = layer.update(*states[..., 39:, :])
    assert layer.states is not None
    for found, held in zip((key, value), layer.states, strict=True):
        assert found.shape == (3, 2, 40, 16)
        assert found.untyped_storage().nbytes() == 4
        assert torch.isnan(found).all()  # so that nobody reads it unnoticed
        assert found._sagittal_packed.states is held
    assert layer.update(*states[..., :2, :])[0].untyped_storage().nbytes() > 1000


def test_keys_changed_between_cache_and_attention_are_refused(
    make_model: Callable[..., Any], prompt: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    use_low_bit_attention(model)
    cache = LowBitCache(model.config, UNIFORM)
    _step(model, cache, prompt)
    update = cache.update
    monkeypatch.setattr(cache, "update", lambda *given: tuple(t[:, :, :] for t in update(*given)))
    with pytest.raises(ModelError, match=r"changes keys or values.*sdpa"):
        _step(model, cache, prompt[:, :1])


def test_a_prompt_is_attended_to_by_heads_whose_rows_follow_each_other(
    make_model: Callable[..., Any], prompt: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a plain cache hands them out: rows among those of other heads are read more slowly."""
    model, seen = make_model(), []
    plain = attention.sdpa_attention_forward

    def watching(module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **how: Any) -> Any:
        seen.append(key.is_contiguous() and value.is_contiguous())
        return plain(module, query, key, value, *rest, **how)

    monkeypatch.setattr(attention, "sdpa_attention_forward", watching)
    use_low_bit_attention(model)
    model(prompt, past_key_values=LowBitCache(model.config, UNIFORM), use_cache=True)
    assert seen == [True] * model.config.num_hidden_layers


def test_gradients_are_those_of_sdpa(make_model: Callable[..., Any], prompt: Tensor) -> None:
    def run(model: Any) -> Tensor:
        cache = LowBitCache(model.config, UNIFORM)
        _step(model, cache, prompt)
        model.zero_grad()
        model(prompt[:, :1], past_key_values=cache).logits.square().mean().backward()
        return model.model.layers[1].self_attn.q_proj.weight.grad.clone()

    plain, packed = _both(make_model(), run)
    assert float(plain.abs().max()) > 0
    assert torch.allclose(plain, packed, rtol=1e-3, atol=1e-6)


def test_double_precision_is_dense(
    make_model: Callable[..., Any], prompt: Tensor, generate: Callable[..., Any], calls: list[int]
) -> None:
    assert _near(
        *_both(make_model().double(), lambda m: generate(m, prompt, LowBitCache(m.config, UNIFORM), tokens=4))
    )
    assert calls == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(
    make_model: Callable[..., Any], prompt: Tensor, dtype: torch.dtype, calls: list[int]
) -> None:
    def run(model: Any) -> Tensor:
        cache = LowBitCache(model.config, UNIFORM)
        _step(model, cache, prompt)
        return torch.cat([_step(model, cache, prompt[:, i : i + 1]) for i in range(12)], dim=1).float()

    plain, packed = _both(make_model().to(dtype), run)
    assert calls
    assert float((plain - packed).norm() / plain.norm()) < 0.05


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_mask_of_four_axes(
    make_model: Callable[..., Any], prompt: Tensor, dtype: torch.dtype, calls: list[int]
) -> None:
    """A bool mask goes to the packed states; one that is added to logits only sdpa understands."""
    seen = torch.rand(1, 1, 1, 76, generator=torch.Generator().manual_seed(2)) > 0.5
    mask = seen if dtype == torch.bool else torch.where(seen, 0.3, -5.0)

    def run(model: Any) -> Tensor:
        cache = LowBitCache(model.config, UNIFORM)
        _step(model, cache, prompt)
        return _step(model, cache, prompt[:, :1], attention_mask=mask)

    plain, packed = _both(make_model(), run)
    assert torch.allclose(plain, packed, atol=NEAR)
    assert len(calls) == (3 if dtype == torch.bool else 0)


SMALL_MODEL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "vocab_size": 300,
    "sliding_window": 12,
    "layer_types": ["sliding_attention", "full_attention"],
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WITHOUT_SDPA: dict[str, Callable[[], Any]] = {
    "capped logits": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL_MODEL, attn_logit_softcapping=2.0, query_pre_attn_scalar=16)
    ),
    "learnt sinks": lambda: GptOssForCausalLM(
        GptOssConfig(**SMALL_MODEL, num_local_experts=2, num_experts_per_tok=1)
    ),
}


@pytest.mark.parametrize("kind", WITHOUT_SDPA)
@pytest.mark.parametrize("pads", [(0,), (0, 20)])
def test_models_that_sdpa_does_not_know_are_as_eager(
    generate: Callable[..., Any],
    padded: Callable[..., Any],
    kind: str,
    pads: tuple[int, ...],
    calls: list[int],
) -> None:
    torch.manual_seed(7)
    model = WITHOUT_SDPA[kind]().eval()
    batch, mask = padded(pads)
    found = []
    for name in ("eager", NAME):
        model.set_attn_implementation(name)
        cache = LowBitCache(model.config, UNIFORM)
        found.append(generate(model, batch, cache, attention_mask=mask, tokens=20))
    assert _near(*found)
    assert calls == list(range(76, 76 + 19))


def test_compiled_model_reads_packed_states_outside_the_graph(
    make_model: Callable[..., Any], prompt: Tensor, calls: list[int]
) -> None:
    model = make_model(num_hidden_layers=2)
    use_low_bit_attention(model)
    compiled = torch.compile(model, backend="eager")
    caches = [LowBitCache(model.config, UNIFORM) for _ in range(2)]
    for part in (prompt, prompt[:, :1], prompt[:, 1:2]):
        first, second = (_step(m, c, part) for m, c in zip((model, compiled), caches, strict=True))
        assert torch.allclose(first, second, atol=1e-4)
    assert calls == [76, 76] * 2 + [77, 77] * 2


def test_models_of_one_process_choose_on_their_own(
    make_model: Callable[..., Any], prompt: Tensor, generate: Callable[..., Any], calls: list[int]
) -> None:
    one, other = make_model(), make_model()
    use_low_bit_attention(one)
    generate(other, prompt, LowBitCache(other.config, UNIFORM), tokens=4)
    assert calls == []
    assert one.config._attn_implementation == NAME


def test_unknown_kernel_is_named(
    make_model: Callable[..., Any],
    prompt: Tensor,
    generate: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SAGITTAL_KERNEL", "abacus")
    model = make_model()
    use_low_bit_attention(model)
    with pytest.raises(InputError, match=r"SAGITTAL_KERNEL.*abacus"):
        generate(model, prompt, LowBitCache(model.config, UNIFORM))


def test_model_whose_attention_cannot_be_chosen() -> None:
    class Stubborn:
        class Config:
            _attn_implementation = "eager"

            def get_text_config(self, decoder: bool) -> Any:
                return self

        config = Config()

        def set_attn_implementation(self, name: str) -> None:
            pass

    with pytest.raises(ModelError, match="Stubborn"):
        use_low_bit_attention(Stubborn())


def test_handle_keeps_dtype_and_device() -> None:
    layer = LowBitLayer(UNIFORM)
    layer.update(*torch.randn(2, 1, 2, 30, 16, dtype=torch.bfloat16))
    assert layer.states is not None
    found = handle(layer.states[0], torch.zeros(1, dtype=torch.int64))
    assert (found.dtype, found.device) == (torch.bfloat16, torch.device("cpu"))
