"""The cache under a model: equal to a plain one while nothing is quantised, else to fake quantisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, DynamicLayer, DynamicSlidingWindowLayer

from sagittal.core.errors import InputError
from sagittal.language import CachePlan, LowBitCache, LowBitLayer, cache_bytes, cache_bytes_16bit
from sagittal.language.cache import fingerprint
from sagittal.language.codec import Codec
from sagittal.language.plan import Coding, Sinks
from sagittal.language.quantise import dequantise, quantise
from sagittal.language.sinks import SinkProfile

pytestmark = pytest.mark.usefixtures("one_thread")
PAGED: dict[str, Any] = {"residual": 8, "page": 8, "group": 8}
EXACT = CachePlan.uniform(16, 16)
WINDOW = CachePlan.uniform(2, 2, residual=200)  # all of a test lies in the window
SMALL = CachePlan.uniform(3, 3, sinks=Sinks(count=2), **PAGED)
FOUR = CachePlan.uniform(4, 4, sinks=Sinks(count=2), **PAGED)
HALF_EXACT = CachePlan.uniform(16, 3, sinks=Sinks(count=2), **PAGED)
KINDS = ["llama", "qwen2", "qwen3", "mistral", "gemma3", "phi3", "gpt2"]


def _profile(layer: int = 1, threshold: float = 1.2, seed: int = 3) -> SinkProfile:
    """A profile that takes about every ninth token for a sink, at random."""
    draw = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return SinkProfile(
        emergence=layer - 1,
        last=layer,
        channels=(0,),
        signs=(1,),
        hidden_threshold=1.0,
        hidden_gap=2.0,
        hidden_overlap=0.5,
        layer=layer,
        direction=tuple(draw.tolist()),
        bias=0.0,
        threshold=math.exp(threshold),
        gap=2.0,
        sinks=1,
        massive=1,
        tokens=1,
        heads=2,
        width=16,
    )


def _predicting(count: int = 0, **more: Any) -> CachePlan:
    sinks = Sinks(rule="predict", count=count, profile=_profile().to_json(), **more)
    return CachePlan.uniform(3, 3, sinks=sinks, **PAGED)


class FakeQuantised(DynamicLayer):  # type: ignore[misc]
    """Plain tensors, on which each page is replaced by what its codes stand for at the step it is due."""

    def __init__(
        self, plan: CachePlan, pads: Tensor, marks: dict[str, Tensor], reads: bool, keeps: bool
    ) -> None:
        super().__init__()
        self.plan, self.pads, self.marks, self.reads, self.keeps = plan, pads, marks, reads, keeps
        self.settled = 0

    def _free(self, row: int, start: int, end: int) -> Tensor:
        """Tokens that are not kept exact."""
        if self.plan.sinks.profile is not None:
            return (
                ~self.marks["all"][row, start:end]
                if self.keeps
                else torch.ones(end - start, dtype=torch.bool)
            )
        pads = self.pads.repeat_interleave(self.keys.shape[0] // len(self.pads))
        first = int(pads[row]) - int(pads[row] > 0)
        places = torch.arange(start, end)
        return (places < first) | (places >= pads[row] + self.plan.sinks.count)

    def _settle(self) -> None:
        plan, start = self.plan, self.settled
        recent = self.keys.shape[-2] - start
        if recent <= plan.residual + plan.page:
            return
        count = (recent - plan.residual) // plan.page * plan.page
        for name, coding in (("keys", plan.keys[0]), ("values", plan.values[0])):
            states = getattr(self, name).clone()
            for block in range(start, start + count if coding.bits != 16 else start, plan.page):
                for row in range(states.shape[0]):
                    free = self._free(row, block, block + plan.page)
                    part = states[row, :, block : block + plan.page][:, free]
                    flat = part.transpose(1, 2).flatten(0, 1)
                    how: dict[str, Any] = {
                        "bits": torch.full((len(flat),), coding.bits),
                        "along": "tokens" if name == "keys" else "components",
                        "group": int(free.sum()) if name == "keys" else coding.group,
                    }
                    if not free.any():
                        continue
                    back = (
                        dequantise(quantise(flat, **how), **how).unflatten(0, part.shape[::2]).transpose(1, 2)
                    )
                    states[row, :, block : block + plan.page][:, free] = back.to(states.dtype)
            setattr(self, name, states)
        self.settled += count

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.reads:
            profile = SinkProfile.from_json(self.plan.sinks.profile)
            found = profile.predict(value_states)
            self.marks["all"] = torch.cat([self.marks["all"], found], dim=1) if self.marks else found
        if fresh := self.get_seq_length() == 0:
            found = super().update(key_states, value_states)
        else:
            self._settle()
            found = super().update(key_states, value_states)
        if fresh or key_states.shape[-2] > self.plan.residual:
            self._settle()
        return found

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        if self.reads:
            self.marks["all"] = self.marks["all"][beam_idx]


def _fake(config: Any, plan: CachePlan, pads: tuple[int, ...] = (0,)) -> DynamicCache:
    cache = DynamicCache(config=config)
    marks: dict[str, Tensor] = {}
    reads = None if plan.sinks.profile is None else plan.sinks.profile["layer"]
    cache.layers = [
        FakeQuantised(plan, torch.tensor(pads), marks, i == reads, reads is not None and i >= reads)
        for i in range(len(cache.layers))
    ]
    return cache


def _same(first: Any, second: Any) -> bool:
    return torch.equal(first.sequences, second.sequences) and all(
        torch.equal(a, b) for a, b in zip(first.logits, second.logits, strict=True)
    )


@pytest.mark.parametrize("how", ["greedy", "beams", "sampling", "assisted"])
@pytest.mark.parametrize("plan", [EXACT, WINDOW], ids=["16 bits", "in the window"])
def test_bit_equal_to_a_plain_cache_where_nothing_is_quantised(
    llama: Any, prompt: Tensor, generate: Callable[..., Any], how: str, plan: CachePlan
) -> None:
    plain = generate(llama, prompt, DynamicCache(config=llama.config), how)
    assert _same(plain, generate(llama, prompt, LowBitCache(llama.config, plan), how))


@pytest.mark.parametrize("how", ["greedy", "beams", "sampling"])
@pytest.mark.parametrize("plan", [SMALL, HALF_EXACT], ids=["3 bits", "exact keys"])
def test_bit_equal_to_fake_quantisation_on_the_same_schedule(
    llama: Any, prompt: Tensor, generate: Callable[..., Any], how: str, plan: CachePlan
) -> None:
    fake = generate(llama, prompt, _fake(llama.config, plan), how)
    assert _same(fake, generate(llama, prompt, LowBitCache(llama.config, plan), how))
    plain = generate(llama, prompt, DynamicCache(config=llama.config), how)
    assert not _same(plain, fake)  # or the test could not tell one cache from another


def test_beam_scores_with_pages_are_those_of_fake_quantisation(
    llama: Any, prompt: Tensor, generate: Callable[..., Any]
) -> None:
    found = [
        generate(llama, prompt, cache, "beams", output_scores=True, num_return_sequences=3)
        for cache in (LowBitCache(llama.config, SMALL), _fake(llama.config, SMALL))
    ]
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert torch.equal(found[0].sequences_scores, found[1].sequences_scores)
    reordered = found[0].beam_indices[0]
    assert len(set(reordered.tolist())) > 1  # the beams did change places


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["greedy", "beams", "sampling", "assisted"])
def test_kinds_of_models_at_16_bits(
    make_model: Callable[..., Any], prompt: Tensor, generate: Callable[..., Any], kind: str, how: str
) -> None:
    model = make_model(kind)
    plain = generate(model, prompt, DynamicCache(config=model.config), how, tokens=12)
    cache = LowBitCache(model.config, EXACT)
    assert any(isinstance(layer, LowBitLayer) for layer in cache.layers) or kind == "mistral"
    assert _same(plain, generate(model, prompt, cache, how, tokens=12))


@pytest.mark.parametrize("kind", KINDS)
def test_left_padded_texts_of_different_lengths_at_16_bits(
    make_model: Callable[..., Any], generate: Callable[..., Any], padded: Callable[..., Any], kind: str
) -> None:
    model = make_model(kind)
    batch, mask = padded((0, 20, 71))
    for how in ("greedy", "beams", "sampling"):
        plain, low = (
            generate(model, batch, cache, how, tokens=6, attention_mask=mask)
            for cache in (DynamicCache(config=model.config), LowBitCache(model.config, EXACT))
        )
        assert _same(plain, low)


@pytest.mark.parametrize("kind", KINDS)
def test_operations_on_the_batch_at_16_bits(
    make_model: Callable[..., Any], prompt: Tensor, kind: str
) -> None:
    """Chunks, selection, repetition, reordering, moves, a crop and a second question."""
    model = make_model(kind)
    caches = [DynamicCache(config=model.config), LowBitCache(model.config, EXACT)]
    ids = torch.cat([prompt, prompt.roll(9), prompt.flip(1)])

    def both(part: Tensor) -> None:
        first, second = (_forward(model, cache, part) for cache in caches)
        assert torch.equal(first, second)

    for chunk in ids.split(25, dim=1):
        both(chunk)
    for cache in caches:
        cache.batch_select_indices(torch.tensor([2, 0]))
    both(ids[[2, 0], :3])
    for cache in caches:
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 1, 0, 0]))
    both(ids[[0, 2, 2, 2], :1])
    for layer in caches[1].layers:
        layer.offload()
        layer.prefetch()
    both(ids[[0, 2, 2, 2], 1:2])
    if all(layer.is_croppable and not layer.is_sliding for layer in caches[0].layers):
        for cache in caches:
            cache.crop(-5)
        both(ids[[0, 2, 2, 2], 5:9])


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_used_again_at_16_bits(
    make_model: Callable[..., Any], prompt: Tensor, generate: Callable[..., Any], kind: str
) -> None:
    model = make_model(kind)
    found = []
    for cache in (DynamicCache(config=model.config), LowBitCache(model.config, EXACT)):
        first = generate(model, prompt, cache, "greedy", tokens=4)
        longer = torch.cat([first.sequences, prompt[:, :7]], dim=1)
        found.append(generate(model, longer, cache, "greedy", tokens=4))
    assert _same(found[0], found[1])


def test_sliding_layers_keep_transformers_own(
    make_model: Callable[..., Any], prompt: Tensor, generate: Callable[..., Any]
) -> None:
    model = make_model("gemma3")
    cache = LowBitCache(model.config, SMALL)
    assert [type(layer) for layer in cache.layers] == [
        DynamicSlidingWindowLayer,
        LowBitLayer,
        DynamicSlidingWindowLayer,
    ]
    plain = DynamicCache(config=model.config)
    result = generate(model, prompt, cache, "beams")
    generate(model, prompt, plain, "beams")
    assert torch.isfinite(result.logits[-1]).all()
    assert cache.nbytes < cache_bytes(plain)
    assert cache.nbytes_16bit == cache_bytes_16bit(plain)
    assert cache.layers[1].get_seq_length() == cache.get_seq_length() == 75 + 39
    assert DYNAMIC_LAYER_TYPE_MAPPING["full_attention"] is DynamicLayer


@pytest.mark.parametrize("how", ["greedy", "beams"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_left_padded_batch(
    make_model: Callable[..., Any],
    generate: Callable[..., Any],
    padded: Callable[..., Any],
    how: str,
    attention: str,
) -> None:
    model = make_model("llama", attn_implementation=attention)
    pads = (0, 20, 9)
    batch, mask = padded(pads)
    found = [
        generate(model, batch, cache, how, tokens=20, attention_mask=mask)
        for cache in (LowBitCache(model.config, SMALL), _fake(model.config, SMALL, pads))
    ]
    assert _same(found[0], found[1])
    assert torch.isfinite(found[0].logits[-1]).all()


def test_row_of_padding_alone_harms_no_other(
    llama: Any, generate: Callable[..., Any], padded: Callable[..., Any]
) -> None:
    batch, mask = padded((0, 75, 20))
    for plan in (EXACT, SMALL):
        with_it = generate(llama, batch, LowBitCache(llama.config, plan), "greedy", attention_mask=mask)
        without = generate(
            llama, batch[[0, 2]], LowBitCache(llama.config, plan), "greedy", attention_mask=mask[[0, 2]]
        )
        assert torch.equal(with_it.sequences[[0, 2]], without.sequences)
        assert torch.isfinite(with_it.logits[-1][[0, 2]]).all()


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
    pads = torch.zeros(1, dtype=torch.int64)
    before = [tuple(states.dense(pads) for states in layer.states) for layer in cache.layers]
    cache.crop(-40)
    assert cache.get_seq_length() == 35
    for layer, dense in zip(cache.layers, before, strict=True):
        for states, whole in zip(layer.states, dense, strict=True):
            assert torch.equal(states.dense(pads), whole[:, :, :35])
    _forward(llama, cache, prompt[:, 35:])
    assert cache.get_seq_length() == 75
    with pytest.raises(InputError, match="12"):
        cache.crop(12)
    cache.crop(-1000)
    assert cache.get_seq_length() == 0


def test_each_token_is_quantised_once(
    llama: Any, prompt: Tensor, generate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens: list[int] = []
    encode = Codec.encode

    def counting(codec: Codec, states: Tensor, *rest: Any) -> Any:
        tokens.append(states.shape[-2])
        return encode(codec, states, *rest)

    monkeypatch.setattr(Codec, "encode", counting)
    cache = LowBitCache(llama.config, SMALL)
    generate(llama, prompt, cache, "greedy", tokens=60)
    held = [states for layer in cache.layers for states in layer.states]
    assert sum(tokens) == sum(states.quantised for states in held)
    assert sum(tokens) == 6 * 120  # of 134 tokens 14 are recent, in 3 layers' keys and values
    assert all(count % 8 == 0 for count in tokens)


def test_codes_never_change(llama: Any, prompt: Tensor) -> None:
    cache = LowBitCache(llama.config, SMALL)
    _forward(llama, cache, prompt)
    first = [states.pages[0] for layer in cache.layers for states in layer.states]
    copies = [[tensor.clone() for tensor in page.tensors] for page in first]
    for i in range(40):
        _forward(llama, cache, prompt[:, i : i + 1])
    now = [states.pages[0] for layer in cache.layers for states in layer.states]
    for page, later, old in zip(first, now, copies, strict=True):
        assert later.tokens > page.tokens
        for a, b, c in zip(page.tensors, later.tensors, old, strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b[..., : c.shape[-1]], c)


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


def test_reset_starts_anew(llama: Any, prompt: Tensor, generate: Callable[..., Any]) -> None:
    cache = LowBitCache(llama.config, SMALL)
    first = generate(llama, prompt, cache, "greedy")
    cache.reset()
    assert cache.nbytes == 0
    assert math.isnan(cache.effective_bits)
    assert _same(first, generate(llama, prompt, cache, "greedy"))


def test_bytes_are_those_of_the_storages(llama: Any, prompt: Tensor, generate: Callable[..., Any]) -> None:
    cache = LowBitCache(llama.config, SMALL)
    generate(llama, prompt, cache, "greedy", tokens=30)
    cache.crop(-13)
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for layer in cache.layers
        for tensor in layer.tensors
    }
    assert cache.nbytes == sum(storages.values())
    assert cache.nbytes == sum(layer.nbytes for layer in cache.layers) - 2 * 8  # the layers share this
    assert cache.nbytes_16bit == 3 * 2 * 2 * 16 * 2 * (75 + 29 - 13)
    assert cache.effective_bits == 16 * cache.nbytes / cache.nbytes_16bit


def test_effective_bits_of_a_long_text_approach_the_plan(make_model: Callable[..., Any]) -> None:
    model = make_model(head_dim=64).to(torch.bfloat16)
    cache = LowBitCache(model.config)
    ids = torch.randint(3, 300, (1, 1800), generator=torch.Generator().manual_seed(2))
    _forward(model, cache, ids)
    # 4 bits a code and a float16 pair for 64 codes make 4.5 bits; sinks, which have codes too, and the recent
    # tokens take 16; each sink has its place in 4 bytes, and the text its start in 8
    quantised = 64 * ((1800 - 64) // 64)
    numbers = 3 * 2 * 2 * 64
    bits = numbers * (quantised * 4.5 + (4 + 1800 - quantised) * 16) + 3 * 2 * 4 * 32 + 64
    assert cache.effective_bits == pytest.approx(bits / (numbers * 1800))
    assert cache.effective_bits < 5.3


def test_tables_of_a_plan_count(llama: Any, prompt: Tensor) -> None:
    spread = torch.ones(2, 16).numpy()
    values = Coding(bits=4, scale="static", levels="gaussian", spread=spread)
    plain = LowBitCache(llama.config, CachePlan.uniform(4, 16, **PAGED))
    tables = LowBitCache(llama.config, CachePlan(keys=plain.plan.keys, values=(values,), residual=8, page=8))
    for cache in (plain, tables):
        _forward(llama, cache, prompt)
    quantised, sinks = 64, 4
    numbers = 2 * 16
    saved = 3 * (numbers * (quantised - sinks) * 4 - numbers * quantised // 2 - 4 * sinks)
    assert plain.nbytes - tables.nbytes == saved - 3 * numbers * 2


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_error_of_what_is_attended_to_is_bounded(bits: int) -> None:
    layer = LowBitLayer(CachePlan.uniform(bits, bits, residual=16, page=16, group=16))
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


def test_group_that_does_not_divide_the_heads_is_refused(llama: Any) -> None:
    with pytest.raises(InputError, match=r"2 heads of width 16.*group 24"):
        LowBitCache(llama.config, CachePlan.uniform(group=24))
    layer = LowBitLayer(CachePlan.uniform(group=24))
    with pytest.raises(InputError, match=r"1 heads of width 16.*group 24|group"):
        layer.update(torch.zeros(1, 2, 2, 16), torch.zeros(1, 2, 2, 16))
    LowBitCache(llama.config, CachePlan.uniform(4, 16, group=24))  # exact values are in no group
    LowBitCache(llama.config)  # a group larger than a token is the token


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e6])
@pytest.mark.parametrize("which", ["keys", "values"])
def test_refused_update_leaves_the_layer_as_it_was(bad: float, which: str) -> None:
    draw = torch.Generator().manual_seed(1)
    good = torch.randn(2, 1, 2, 50, 16, generator=draw)
    wrong = good.clone()
    wrong[0 if which == "keys" else 1, 0, 0, 25, 3] = bad
    layer = LowBitLayer(_predicting(), index=1)
    with pytest.raises(InputError, match=rf"^{which} of full-attention layer 1: .*(finite|float16)"):
        layer.update(*wrong)
    assert layer.get_seq_length() == 0
    layer.update(*good[..., :20, :])
    held = [tensor.clone() for tensor in layer.tensors]
    with pytest.raises(InputError, match=r"finite|float16"):
        layer.update(*wrong[..., 20:, :])
    assert all(torch.equal(a, b) for a, b in zip(layer.tensors, held, strict=True))
    straight = LowBitLayer(_predicting(), index=1)
    straight.update(*good[..., :20, :])
    for states in (good[..., 20:40, :], good[..., 40:, :]):
        assert all(
            torch.equal(a, b) for a, b in zip(layer.update(*states), straight.update(*states), strict=True)
        )


def test_bad_token_is_found_late_and_can_be_cropped_away() -> None:
    layer = LowBitLayer(SMALL)
    states = torch.randn(2, 1, 2, 60, 16, generator=torch.Generator().manual_seed(1))
    layer.update(*states[..., :12, :])
    layer.update(*torch.full((2, 1, 2, 1, 16), torch.nan))  # among the recent tokens, which are not looked at
    for i in range(12, 24):
        layer.update(*states[..., i : i + 1, :])
    with pytest.raises(InputError, match="NaN"):
        layer.update(*states[..., 24:25, :])
    layer.crop(12 - layer.get_seq_length())
    for i in range(12, 60):
        keys, _ = layer.update(*states[..., i : i + 1, :])
        assert bool(torch.isfinite(keys).all())


def test_update_of_no_tokens() -> None:
    states = torch.randn(2, 2, 2, 30, 16, generator=torch.Generator().manual_seed(1))
    layer = LowBitLayer(SMALL)
    with pytest.raises(InputError, match="no tokens"):
        layer.update(*states[..., :0, :])
    layer.update(*states)
    keys, _ = layer.update(*states[..., :0, :])
    assert keys.shape[2] == layer.get_seq_length() == 30


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


def _random(cache: LowBitCache, tokens: int, batch: int = 2, seed: int = 0) -> list[Tensor]:
    """Return keys and values for each layer, ``(2, B, H, T, D)``."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(2, batch, 2, tokens, 16, generator=draw) for _ in cache.layers]


def _feed(cache: LowBitCache, states: list[Tensor], start: int, end: int) -> list[Tensor]:
    return [torch.stack(cache.update(*part[..., start:end, :], layer)) for layer, part in enumerate(states)]


@pytest.mark.parametrize("how", ["greedy", "beams", "sampling"])
def test_predicted_sinks_are_those_of_fake_quantisation(
    llama: Any, prompt: Tensor, generate: Callable[..., Any], how: str
) -> None:
    plan = _predicting()
    fake = generate(llama, prompt, _fake(llama.config, plan), how)
    assert _same(fake, generate(llama, prompt, LowBitCache(llama.config, plan), how))
    assert not _same(fake, generate(llama, prompt, LowBitCache(llama.config, SMALL), how))


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    cut=st.integers(1, 50),
    rows=st.lists(st.integers(0, 1), min_size=1, max_size=4),
)
def test_predicted_sinks_are_exact_through_chunks_crops_and_beams(
    llama: Any, sizes: list[int], cut: int, rows: list[int]
) -> None:
    cache = LowBitCache(llama.config, _predicting())
    total = sum(sizes)
    states = _random(cache, total + 40)
    at = 0
    for size in sizes:
        _feed(cache, states, at, at + size)
        at += size
    cut = min(cut, total - 1)
    cache.crop(-cut)
    chosen = torch.tensor(rows)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_select_indices(chosen)
    cache.batch_repeat_interleave(2)
    source = (1 - chosen).repeat_interleave(2)
    states = [part[:, source] for part in states]
    states = [torch.cat([part[..., : total - cut, :], part[..., total:, :]], dim=-2) for part in states]
    _feed(cache, states, total - cut, total - cut + 39)
    dense = _feed(cache, states, total - cut + 39, total - cut + 40)
    wanted = [part[..., : total - cut + 40, :] for part in states]
    sinks = _profile().predict(wanted[1][1])
    for layer in (1, 2):
        exact = sinks[None, :, None, :, None].expand_as(wanted[layer])
        assert torch.equal(dense[layer][exact], wanted[layer][exact])
    others = ~sinks[:, None, :, None].expand_as(wanted[2][0])
    others[:, :, cache.layers[2].states[0].quantised :] = False
    assert not torch.equal(dense[2][0][others], wanted[2][0][others])
    for layer in cache.layers[1:]:
        for held in layer.states:
            kept = int(sinks[:, : held.quantised].sum())
            assert int((held.kept_at >= 0).sum()) == kept
    assert cache.layers[0].states[0].kept_at.numel() == 0  # it comes before them


@pytest.mark.parametrize("sizes", [(120,), (50, 70), (30,) * 4])
@pytest.mark.parametrize("count", [1, 5])
def test_no_more_sinks_are_predicted_than_allowed(llama: Any, sizes: tuple[int, ...], count: int) -> None:
    cache = LowBitCache(llama.config, _predicting(count))
    states = _random(cache, 121)
    at = 0
    for size in sizes:
        _feed(cache, states, at, at + size)
        at += size
    _feed(cache, states, 120, 121)
    quantised, kept_at = cache.layers[2].states[0].quantised, cache.layers[2].states[0].kept_at
    kept = [row[row >= 0].tolist() for row in kept_at]
    found = [row.nonzero().flatten().tolist() for row in _profile().predict(states[1][1, :, :, :121])]
    assert all(len(few) <= count < len(all_of_them) for few, all_of_them in zip(kept, found, strict=True))
    assert all(set(few) <= set(all_of_them) for few, all_of_them in zip(kept, found, strict=True))
    if len(sizes) == 1:  # those of the highest score
        best = _profile().scores(states[1][1, :, :, :120]).topk(count, dim=1).indices.tolist()
        assert kept == [sorted(place for place in row if place < quantised) for row in best]


def test_predicted_sinks_take_no_padding(
    llama: Any, generate: Callable[..., Any], padded: Callable[..., Any]
) -> None:
    batch, mask = padded((0, 40))
    cache = LowBitCache(llama.config, _predicting())
    generate(llama, batch, cache, "greedy", attention_mask=mask)
    alone = LowBitCache(llama.config, _predicting())
    generate(llama, batch[:1], alone, "greedy")
    found = cache.layers[1].states[0].kept_at
    assert int(found[1][found[1] >= 0].min()) >= 39  # the last of the padding might be the text's first token
    first = found[0][found[0] >= 0]
    assert torch.equal(first, alone.layers[1].states[0].kept_at[0])


@settings(max_examples=15)
@given(
    prefill=st.integers(1, 60),
    residual=st.integers(0, 20),
    page=st.sampled_from([8, 16]),
    sinks=st.integers(0, 3),
)
def test_run_length_tokens_at_once_are_as_one_by_one(
    llama: Any, prefill: int, residual: int, page: int, sinks: int
) -> None:
    plan = CachePlan.uniform(3, 3, residual=residual, page=page, group=8, sinks=Sinks(count=sinks))
    at_once, single = LowBitCache(llama.config, plan), LowBitCache(llama.config, plan)
    states = _random(at_once, prefill + 120)
    for cache in (at_once, single):
        _feed(cache, states, 0, prefill)
    at = prefill
    while at < prefill + 100:
        run = min(at_once.run_length, prefill + 100 - at)
        assert run == 1 or run <= residual + page + 1
        together = _feed(at_once, states, at, at + run)
        for i in range(at, at + run):
            alone = _feed(single, states, i, i + 1)
        assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
        at += run
    both = [[t for layer in cache.layers for t in layer.tensors] for cache in (at_once, single)]
    later = [_feed(cache, states, at, at + 1) for cache in (at_once, single)]
    assert all(torch.equal(a, b) for a, b in zip(*later, strict=True))
    if residual >= page:
        assert len(both[0]) == len(both[1])


def test_run_length_of_a_model(llama: Any, make_model: Callable[..., Any], prompt: Tensor) -> None:
    model = make_model("llama").double()  # so that rounding differs in no code
    at_once, single = LowBitCache(model.config, SMALL), LowBitCache(model.config, SMALL)
    for cache in (at_once, single):
        _forward(model, cache, prompt[:, :30])
    at = 30
    while at < 75:
        run = min(at_once.run_length, 75 - at)
        whole = _forward(model, at_once, prompt[:, at : at + run])
        parts = [_forward(model, single, prompt[:, i : i + 1]) for i in range(at, at + run)]
        assert torch.allclose(whole, torch.cat(parts, dim=1), atol=1e-9)
        at += run
    for cache in (at_once, single):
        _forward(model, cache, prompt[:, :1])
    for first, second in zip(at_once.layers, single.layers, strict=True):
        for a, b in zip(first.states, second.states, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a.pages[0].planes, b.pages[0].planes, strict=True))
    assert LowBitCache(model.config, EXACT).run_length is None


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi3"])
def test_keys_before_the_embedding_of_a_padded_text_are_those_of_the_text_alone(
    make_model: Callable[..., Any], padded: Callable[..., Any], kind: str
) -> None:
    model = make_model(kind, num_hidden_layers=1)
    mean = torch.linspace(-3, 3, 32).reshape(2, 16).numpy()
    keys = Coding(
        bits=8, scale="static", levels="gaussian", spread=abs(mean) + 3, mean=mean, before_rope=True
    )
    plan = CachePlan(keys=(keys,), values=(Coding(bits=16),), sinks=Sinks(count=0), residual=0, page=8)
    batch, mask = padded((0, 26))
    caches = [LowBitCache(model.config, plan), LowBitCache(model.config, plan)]
    model.generate(batch, attention_mask=mask, past_key_values=caches[0], max_new_tokens=1, do_sample=False)
    model.generate(batch[1:, 26:], past_key_values=caches[1], max_new_tokens=1, do_sample=False)
    padded, alone = (cache.layers[0].states[0].dense(cache.sequences.pads) for cache in caches)
    assert caches[0].sequences.pads.tolist() == [0, 26]
    assert caches[0].layers[0].states[0].quantised == 72
    shared = min(72 - 26, caches[1].layers[0].states[0].quantised)
    assert shared > 40
    assert torch.allclose(padded[1, :, 26 : 26 + shared], alone[0, :, :shared], atol=1e-3)


def test_moves_take_along_all_tokens(llama: Any, prompt: Tensor) -> None:
    cache = LowBitCache(llama.config, SMALL)
    _forward(llama, cache, prompt)
    for layer in cache.layers:
        layer.device = torch.device("meta")
        layer.prefetch()
        for states in layer.states:
            held = [states.kept_at, states.kept, states.recent, *(t for p in states.pages for t in p.tensors)]
            assert all(tensor.device.type == "meta" for tensor in held)


def test_early_layers_codings_and_late_ones(llama: Any, prompt: Tensor) -> None:
    """A plan with a coding for each layer."""
    keys = tuple(Coding(bits=bits) for bits in (2, 16, 8))
    values = tuple(Coding(bits=bits, scale="token") for bits in (16, 4, 1))
    cache = LowBitCache(llama.config, CachePlan(keys=keys, values=values, residual=8, page=8))
    _forward(llama, cache, prompt)
    found = [[states.quantised for states in layer.states] for layer in cache.layers]
    assert found == [[64, 0], [0, 64], [64, 64]]
    widths = [[p.planes[0].shape[-1] for s in layer.states for p in s.pages] for layer in cache.layers]
    assert widths == [[16], [32], [64, 8]]
    for codings in (keys[:2], (*keys, keys[0])):
        with pytest.raises(InputError, match=r"keys of another number of layers.*3 full-attention"):
            LowBitCache(llama.config, CachePlan(keys=codings, values=values[:1]))


@pytest.mark.parametrize(
    ("name", "value"), [("hidden_size", 128), ("layers", 4), ("model_type", "qwen2"), ("head_width", 64)]
)
def test_plan_of_another_model_is_refused_by_name(llama: Any, name: str, value: Any) -> None:
    fit = fingerprint(llama.config)
    LowBitCache(llama.config, CachePlan(made_for=fit))
    with pytest.raises(InputError, match=rf"another model: {name} differs.*{value}"):
        LowBitCache(llama.config, CachePlan(made_for={**fit, name: value}))


def test_arrays_of_another_model_are_refused_with_the_layer_still_empty(llama: Any, prompt: Tensor) -> None:
    keys = Coding(mean=torch.zeros(4, 16).numpy())
    cache = LowBitCache(llama.config, CachePlan(keys=(keys,)))
    with pytest.raises(InputError, match=r"mean is of another model.*4, 16.*2, 16"):
        _forward(llama, cache, prompt)
    assert cache.get_seq_length() == 0
