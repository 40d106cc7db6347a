from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, DynamicLayer, DynamicSlidingWindowLayer

from sagittal.core.errors import InputError
from sagittal.language import CachePlan, LowBitCache, LowBitLayer, cache_bytes, cache_bytes_16bit, pages
from sagittal.language.quantise import dequantise, quantise

EXACT = CachePlan(key_bits=16, value_bits=16)
WINDOW = CachePlan(key_bits=2, value_bits=2, residual=200, value_group=16)  # all of a test lies in the window
SMALL = CachePlan(key_bits=3, value_bits=3, sinks=2, residual=8, page=8, value_group=8)
HALF_EXACT = CachePlan(key_bits=16, value_bits=3, sinks=2, residual=8, page=8, value_group=8)
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampling": {"do_sample": True, "temperature": 1.3, "top_k": 0},
    "assisted": {"do_sample": False, "prompt_lookup_num_tokens": 3},
}


class FakeQuantised(DynamicLayer):  # type: ignore[misc]
    """Plain tensors, on which each page is replaced by what its codes stand for at the step it is due."""

    def __init__(self, plan: CachePlan) -> None:
        super().__init__()
        self.plan, self.settled = plan, 0

    def _settle(self) -> None:
        plan = self.plan
        start = plan.sinks + self.settled
        recent = self.keys.shape[-2] - start
        if recent <= plan.residual + plan.page:
            return
        count = (recent - plan.residual) // plan.page * plan.page
        for name, axis, group, bits in (
            ("keys", "channel", plan.page, plan.key_bits),
            ("values", "token", plan.value_group, plan.value_bits),
        ):
            states = getattr(self, name).clone()
            if bits != 16:
                part = states[:, :, start : start + count]
                coded = quantise(part, bits=bits, axis=axis, group=group)  # type: ignore[arg-type]
                part.copy_(dequantise(coded, axis=axis, group=group, dtype=part.dtype))  # type: ignore[arg-type]
            setattr(self, name, states)
        self.settled += count

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if fresh := self.get_seq_length() == 0:
            found = super().update(key_states, value_states)
        else:
            self._settle()
            found = super().update(key_states, value_states)
        if fresh or key_states.shape[-2] > self.plan.residual:
            self._settle()
        return found


def _fake(config: Any, plan: CachePlan) -> DynamicCache:
    cache = DynamicCache(config=config)
    cache.layers = [FakeQuantised(plan) for _ in cache.layers]
    return cache


def _generate(model: Any, ids: Tensor, cache: Any, how: str, tokens: int = 40, **more: Any) -> Any:
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


def _same(first: Any, second: Any) -> bool:
    return torch.equal(first.sequences, second.sequences) and all(
        torch.equal(a, b) for a, b in zip(first.logits, second.logits, strict=True)
    )


@pytest.mark.parametrize("how", SEARCHES)
@pytest.mark.parametrize("plan", [EXACT, WINDOW], ids=["16 bits", "in the window"])
def test_bit_equal_to_a_plain_cache_where_nothing_is_quantised(
    llama: Any, prompt: Tensor, how: str, plan: CachePlan
) -> None:
    plain = _generate(llama, prompt, DynamicCache(config=llama.config), how)
    assert _same(plain, _generate(llama, prompt, LowBitCache(llama.config, plan), how))


@pytest.mark.parametrize("how", ["greedy", "beams", "sampling"])
@pytest.mark.parametrize("plan", [SMALL, HALF_EXACT], ids=["3 bits", "exact keys"])
def test_bit_equal_to_fake_quantisation_on_the_same_schedule(
    llama: Any, prompt: Tensor, how: str, plan: CachePlan
) -> None:
    fake = _generate(llama, prompt, _fake(llama.config, plan), how)
    assert _same(fake, _generate(llama, prompt, LowBitCache(llama.config, plan), how))
    plain = _generate(llama, prompt, DynamicCache(config=llama.config), how)
    assert not _same(plain, fake)  # or the test could not tell one cache from another


def test_beam_scores_with_pages_are_those_of_fake_quantisation(llama: Any, prompt: Tensor) -> None:
    found = [
        _generate(llama, prompt, cache, "beams", output_scores=True, num_return_sequences=3)
        for cache in (LowBitCache(llama.config, SMALL), _fake(llama.config, SMALL))
    ]
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert torch.equal(found[0].sequences_scores, found[1].sequences_scores)
    reordered = found[0].beam_indices[0]
    assert len(set(reordered.tolist())) > 1  # the beams did change places


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma3"])
@pytest.mark.parametrize("how", ["greedy", "beams"])
def test_kinds_of_models_at_16_bits(
    make_model: Callable[..., Any], prompt: Tensor, kind: str, how: str
) -> None:
    model = make_model(kind)
    plain = _generate(model, prompt, DynamicCache(config=model.config), how)
    assert _same(plain, _generate(model, prompt, LowBitCache(model.config, EXACT), how))


def test_sliding_layers_keep_transformers_own(make_model: Callable[..., Any], prompt: Tensor) -> None:
    model = make_model("gemma3")
    cache = LowBitCache(model.config, SMALL)
    assert [type(layer) for layer in cache.layers] == [
        DynamicSlidingWindowLayer,
        LowBitLayer,
        DynamicSlidingWindowLayer,
    ]
    plain = DynamicCache(config=model.config)
    result = _generate(model, prompt, cache, "beams")
    _generate(model, prompt, plain, "beams")
    assert torch.isfinite(result.logits[-1]).all()
    assert cache.nbytes < cache_bytes(plain)
    assert cache.nbytes_16bit == cache_bytes_16bit(plain)
    assert cache.layers[1].get_seq_length() == cache.get_seq_length() == 75 + 39
    assert DYNAMIC_LAYER_TYPE_MAPPING["full_attention"] is DynamicLayer


@pytest.mark.parametrize("how", ["greedy", "beams"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_left_padded_batch(make_model: Callable[..., Any], prompt: Tensor, how: str, attention: str) -> None:
    model = make_model("llama", attn_implementation=attention)
    batch = torch.cat([prompt, prompt.roll(9)])
    batch[1, :20] = 0
    mask = (torch.arange(75) >= torch.tensor([[0], [20]])).long()
    found = [
        _generate(model, batch, cache, how, attention_mask=mask)
        for cache in (
            DynamicCache(config=model.config),
            LowBitCache(model.config, EXACT),
            LowBitCache(model.config, SMALL),
            _fake(model.config, SMALL),
        )
    ]
    assert _same(found[0], found[1])
    assert _same(found[2], found[3])
    assert torch.isfinite(found[2].logits[-1]).all()


def _forward(model: Any, cache: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids, past_key_values=cache, use_cache=True).logits


def test_prefill_is_exact_and_what_follows_is_not(llama: Any, prompt: Tensor) -> None:
    plain, low = DynamicCache(config=llama.config), LowBitCache(llama.config, SMALL)
    assert torch.equal(_forward(llama, plain, prompt), _forward(llama, low, prompt))
    assert not torch.equal(_forward(llama, plain, prompt[:, :1]), _forward(llama, low, prompt[:, :1]))


@pytest.mark.parametrize("plan", [EXACT, SMALL])
def test_chunked_prefill(llama: Any, prompt: Tensor, plan: CachePlan) -> None:
    reference = _fake(llama.config, plan) if plan is SMALL else DynamicCache(config=llama.config)
    low = LowBitCache(llama.config, plan)
    for chunk in prompt.split(20, dim=1):
        assert torch.equal(_forward(llama, reference, chunk), _forward(llama, low, chunk))


@pytest.mark.parametrize("guess", [1, 3, 8])
def test_a_guess_cropped_away_leaves_no_trace(llama: Any, prompt: Tensor, guess: int) -> None:
    straight, detour = LowBitCache(llama.config, SMALL), LowBitCache(llama.config, SMALL)
    _forward(llama, straight, prompt[:, :30])
    _forward(llama, detour, prompt[:, :30])
    for i in range(30, 60):  # past several pages
        _forward(llama, detour, prompt[:, i : i + guess])
        detour.crop(-guess)
        wanted = _forward(llama, straight, prompt[:, i : i + 1])
        assert torch.equal(_forward(llama, detour, prompt[:, i : i + 1]), wanted)
    assert detour.nbytes == straight.nbytes


def test_crop_into_pages_keeps_what_came_before(llama: Any, prompt: Tensor) -> None:
    cache = LowBitCache(llama.config, SMALL)
    _forward(llama, cache, prompt)
    before = [tuple(states.dense() for states in layer.states) for layer in cache.layers]
    cache.crop(-40)
    assert cache.get_seq_length() == 35
    for layer, dense in zip(cache.layers, before, strict=True):
        for states, whole in zip(layer.states, dense, strict=True):
            assert torch.equal(states.dense(), whole[:, :, :35])
    _forward(llama, cache, prompt[:, 35:])
    assert cache.get_seq_length() == 75
    with pytest.raises(InputError, match="12"):
        cache.crop(12)
    cache.crop(-1000)
    assert cache.get_seq_length() == 0


def test_each_token_is_quantised_once(llama: Any, prompt: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[int] = []

    def counting(states: Tensor, **how: Any) -> Any:
        tokens.append(states.shape[-2])
        return quantise(states, **how)

    monkeypatch.setattr(pages, "quantise", counting)
    cache = LowBitCache(llama.config, SMALL)
    _generate(llama, prompt, cache, "greedy", tokens=60)
    held = [states for layer in cache.layers for states in layer.states]
    assert sum(tokens) == sum(len(page) for states in held for page in states.pages)
    assert sum(tokens) == 6 * 120  # of 134 tokens 2 are sinks and 12 recent, in 3 layers' keys and values
    assert all(count % 8 == 0 for count in tokens)


def test_codes_never_change(llama: Any, prompt: Tensor) -> None:
    cache = LowBitCache(llama.config, SMALL)
    _forward(llama, cache, prompt)
    first = [states.pages[0] for layer in cache.layers for states in layer.states]
    copies = [page.packed.clone() for page in first]
    for i in range(40):
        _forward(llama, cache, prompt[:, i : i + 1])
    now = [states.pages[0] for layer in cache.layers for states in layer.states]
    assert all(a is b for a, b in zip(first, now, strict=True))
    assert all(torch.equal(page.packed, codes) for page, codes in zip(now, copies, strict=True))


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_forks_are_independent_and_share_pages(
    make_model: Callable[..., Any], prompt: Tensor, kind: str
) -> None:
    model = make_model(kind)
    cache = LowBitCache(model.config, SMALL)
    _forward(model, cache, prompt)
    wanted = _forward(model, cache.fork(), prompt[:, :3])
    size = cache.nbytes
    left, right = cache.fork(), cache.fork()
    left.batch_repeat_interleave(4)
    _forward(model, left, prompt[:, 40:60].repeat(4, 1))
    left.reset()
    assert (cache.nbytes, cache.get_seq_length(), left.get_seq_length()) == (size, 75, 0)
    assert torch.equal(_forward(model, right, prompt[:, :3]), wanted)
    assert torch.equal(_forward(model, cache, prompt[:, :3]), wanted)
    a, b = (next(layer for layer in c.layers if isinstance(layer, LowBitLayer)) for c in (cache, right))
    assert a.states is not None
    assert b.states is not None
    assert a.states[0].pages[0] is b.states[0].pages[0]


def test_reset_starts_anew(llama: Any, prompt: Tensor) -> None:
    cache = LowBitCache(llama.config, SMALL)
    first = _generate(llama, prompt, cache, "greedy")
    cache.reset()
    assert cache.nbytes == 0
    assert math.isnan(cache.effective_bits)
    assert _same(first, _generate(llama, prompt, cache, "greedy"))


def test_bytes_are_those_of_the_storages(llama: Any, prompt: Tensor) -> None:
    cache = LowBitCache(llama.config, SMALL)
    _generate(llama, prompt, cache, "greedy", tokens=30)
    cache.crop(-13)
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for layer in cache.layers
        for tensor in layer.tensors
    }
    assert cache.nbytes == sum(storages.values()) == sum(layer.nbytes for layer in cache.layers)
    assert cache.nbytes_16bit == 3 * 2 * 2 * 16 * 2 * (75 + 29 - 13)
    assert cache.effective_bits == 16 * cache.nbytes / cache.nbytes_16bit


def test_effective_bits_of_a_long_text_approach_the_plan(make_model: Callable[..., Any]) -> None:
    model = make_model(head_dim=64).to(torch.bfloat16)
    cache = LowBitCache(model.config)
    ids = torch.randint(3, 300, (1, 1800), generator=torch.Generator().manual_seed(2))
    _forward(model, cache, ids)
    # 4 bits a code and a float16 pair for 64 codes make 4.5 bits; the sinks and the recent tokens take 16
    quantised = 64 * ((1800 - 4 - 64) // 64)
    assert cache.effective_bits == pytest.approx((quantised * 4.5 + (1800 - quantised) * 16) / 1800)
    assert cache.effective_bits < 5.3


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_error_of_what_is_attended_to_is_bounded(bits: int) -> None:
    plan = CachePlan(key_bits=bits, value_bits=bits, sinks=4, residual=16, page=16, value_group=16)
    layer = LowBitLayer(plan)
    draw = torch.Generator().manual_seed(4)
    keys = torch.randn(2, 2, 200, 16, generator=draw) * torch.linspace(0.1, 30, 16)
    values = torch.randn(2, 2, 200, 16, generator=draw)
    layer.update(keys[:, :, :199], values[:, :, :199])
    found_keys, found_values = layer.update(keys[:, :, 199:], values[:, :, 199:])
    levels = (1 << bits) - 1
    key_range = keys.amax(-2, keepdim=True) - keys.amin(-2, keepdim=True)
    value_range = values.amax(-1, keepdim=True) - values.amin(-1, keepdim=True)
    assert bool(((found_keys - keys).abs() <= 0.502 * key_range / levels).all())
    assert bool(((found_values - values).abs() <= 0.502 * value_range / levels).all())
    assert float((found_keys - keys).abs().max()) > 0
    assert torch.equal(found_keys[:, :, :4], keys[:, :, :4])
    assert torch.equal(found_values[:, :, -16:], values[:, :, -16:])


def test_batch_select_by_number_and_by_mask(llama: Any, prompt: Tensor) -> None:
    cache = LowBitCache(llama.config, SMALL)
    _forward(llama, cache, torch.cat([prompt, prompt.flip(1), prompt.roll(5)]))
    masked = cache.fork()
    cache.batch_select_indices(torch.tensor([0, 2]))
    masked.batch_select_indices(torch.tensor([True, False, True]))
    whole = _forward(llama, cache, prompt[:, :2].repeat(2, 1))
    assert torch.equal(whole, _forward(llama, masked, prompt[:, :2].repeat(2, 1)))


def test_group_that_does_not_divide_the_head_is_refused(llama: Any) -> None:
    with pytest.raises(InputError, match=r"head_dim 16.*value_group 64"):
        LowBitCache(llama.config)
    layer = LowBitLayer(CachePlan(value_group=24))
    with pytest.raises(InputError, match=r"head_dim 16.*value_group 24"):
        layer.update(torch.zeros(1, 1, 2, 16), torch.zeros(1, 1, 2, 16))
    LowBitCache(llama.config, CachePlan(value_bits=16))  # exact values are in no group


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e6])
def test_states_that_cannot_be_quantised_are_refused(bad: float) -> None:
    keys = torch.zeros(1, 1, 40, 16)
    keys[0, 0, 10, 3] = bad
    layer = LowBitLayer(SMALL)
    with pytest.raises(InputError, match=r"finite|65504"):
        layer.update(keys, torch.zeros(1, 1, 40, 16))


def test_early_initialisation_and_moves(llama: Any, prompt: Tensor) -> None:
    cache = LowBitCache(llama.config, SMALL)
    cache.early_initialization(1, 2, 16, torch.float32, torch.device("cpu"))
    assert cache.is_initialized
    plain = LowBitCache(llama.config, SMALL)
    assert torch.equal(_forward(llama, cache, prompt), _forward(llama, plain, prompt))
    for layer in cache.layers:
        layer.offload()
        layer.prefetch()
    assert torch.equal(_forward(llama, cache, prompt), _forward(llama, plain, prompt))
    assert cache.is_croppable
    assert not cache.is_compileable
