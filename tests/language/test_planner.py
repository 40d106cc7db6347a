"""Plans: bits where they save most, never more of them than the budget, and a cache that follows."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from sagittal.core.errors import InputError
from sagittal.language import CachePlan, LowBitCache
from sagittal.language.cache import LowBitLayer, cache_bytes, cache_bytes_16bit
from sagittal.language.calibration import Calibration, Moments, calibrate
from sagittal.language.plan import Sinks, load_plan, save_plan
from sagittal.language.planner import fit_plan, plan_cache, water_fill
from sagittal.language.quantise import gaussian_distortion
from sagittal.language.rope import rope_of
from sagittal.language.sinks import SinkProfile

pytestmark = pytest.mark.usefixtures("one_thread")
BUDGETS, CONTEXTS = (1.8, 2.7, 3.7), (600, 2000)
TRIGGER = 5  # "#" in the tokenizer of these tests


def _measured(model: Any, tokenizer: Any, **changes: Any) -> Calibration:
    return calibrate(model, tokenizer, **{"windows": 3, "length": 192, "own": 0, **changes})


@pytest.fixture(scope="module")
def calibration(llama: Any, tokenizer: Any) -> Calibration:
    return _measured(llama, tokenizer)


@pytest.fixture(scope="module")
def planted(plant_sinks: Callable[..., Any]) -> Any:
    return plant_sinks(TRIGGER)


@pytest.fixture(scope="module")
def with_sinks(planted: Any, tokenizer: Any) -> Calibration:
    drawn = np.random.default_rng(3).integers(0, 26, 4 * 256)
    letters = [chr(97 + number) for number in drawn]
    for place in (0, 40, 256, 256 + 17, 256 + 131, 512, 512 + 3, 512 + 99, 768):
        letters[place] = "#"
    found = calibrate(planted, tokenizer, text="".join(letters), windows=4, length=256, own=0)
    assert isinstance(found.sinks, SinkProfile)
    return found


def _draw(moments: Moments, tokens: int, generator: np.random.Generator) -> Tensor:
    """Draw states with the mean and the covariance that were measured, ``(1, H, tokens, D)``."""
    power, columns = np.linalg.eigh(moments.covariance)
    root = columns * np.sqrt(power.clip(0))[:, None]
    normal = generator.standard_normal((len(root), tokens, root.shape[1]))
    states = np.einsum("htr,hdr->htd", normal, root) + moments.mean[:, None]
    return torch.tensor(states, dtype=torch.float32)[None]


def _states(model: Any, calibration: Calibration, tokens: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = np.random.default_rng(seed)
    decoder = model.config.get_text_config(decoder=True)
    rope = rope_of(decoder, calibration.keys[0].mean.shape[1])
    found = []
    for keys, values in zip(calibration.keys, calibration.values, strict=True):
        drawn = _draw(keys, tokens, generator)
        turned = drawn if rope is None else rope.turn(drawn, torch.arange(tokens)[None])
        found.append((turned, _draw(values, tokens, generator)))
    return found


def _filled(
    model: Any, plan: CachePlan, states: list[tuple[Tensor, Tensor]], single: int = 0
) -> tuple[LowBitCache, list[tuple[Tensor, Tensor]]]:
    """Return a cache of these states, the last ``single`` of them added one by one, and what it gave last."""
    cache = LowBitCache(model.config, plan)
    layers = [i for i, layer in enumerate(cache.layers) if isinstance(layer, LowBitLayer)]
    tokens = states[0][0].shape[2]
    cuts = [0, *range(tokens - single, tokens + 1)]
    given: list[tuple[Tensor, Tensor]] = []
    for start, end in itertools.pairwise(cuts):
        given = [
            cache.update(keys[:, :, start:end], values[:, :, start:end], layer)
            for layer, (keys, values) in zip(layers, states, strict=True)
        ]
    return cache, given


def _bits(cache: LowBitCache) -> float:
    """Return bits a number of a cache under a 16-bit model."""
    return 16 * cache_bytes(cache, exact_bytes=2) / cache_bytes_16bit(cache)


# --- water-filling ---


def _distortion(variances: Any, bits: Any) -> float:
    return sum(float(v) * gaussian_distortion(int(b)) for v, b in zip(variances, bits, strict=True))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_dealt_bits_are_the_best_there_are(seed: int, bits: int) -> None:
    variances = np.random.default_rng(seed).lognormal(0, 1.5, 4)
    dealt, price = water_fill(variances, bits, most=3)
    every = [way for way in itertools.product(range(4), repeat=4) if sum(way) == bits]
    best = min(_distortion(variances, way) for way in every)
    assert dealt.sum() == bits
    assert _distortion(variances, dealt) == pytest.approx(best, rel=1e-12)
    before, _ = water_fill(variances, bits - 1, most=3)
    assert price == pytest.approx(_distortion(variances, before) - best, rel=1e-9)


def test_of_equal_components_the_first_get_more() -> None:
    dealt, price = water_fill(np.ones((2, 2)), 6)
    assert dealt.tolist() == [[2, 2], [1, 1]]
    assert dealt.dtype == np.uint8
    assert price == gaussian_distortion(1) - gaussian_distortion(2)


def test_ties_never_deal_more_than_there_is() -> None:
    for variances in (np.zeros(3), np.ones(5), np.array([1.0, 0, 1, 0]), np.array([2.0, 2, 1])):
        for bits in range(20):
            dealt, _ = water_fill(variances, bits)
            assert dealt.sum() <= bits
            if variances.all():
                assert dealt.sum() == bits


@pytest.mark.parametrize("bits", [0, -3])
def test_no_bits_to_deal(bits: int) -> None:
    dealt, price = water_fill(np.array([[1.0, 4.0]]), bits)
    assert dealt.tolist() == [[0, 0]]
    assert price == 4 * (1 - gaussian_distortion(1))  # what the first bit would save


def test_more_bits_than_places() -> None:
    variances = np.array([1.0, 5.0, 0.1])
    dealt, price = water_fill(variances, 10**6, most=4)
    assert dealt.tolist() == [4, 4, 4]
    assert price == pytest.approx(0.1 * (gaussian_distortion(3) - gaussian_distortion(4)))
    assert water_fill(variances, 12, most=4)[0].tolist() == [4, 4, 4]


# --- the budget ---


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_what_a_cache_holds_is_the_budget_and_no_more(
    make_model: Callable[..., Any], tokenizer: Any, kind: str, context: int
) -> None:
    model = make_model(kind)
    found = _measured(model, tokenizer)
    states = _states(model, found, context)
    for budget in BUDGETS:
        plan = fit_plan(found, budget, context)
        for single in (0, 40):
            cache, _ = _filled(model, plan, states, single)
            slack = 16 * (plan.residual + plan.page) / context  # recent tokens: none need be there
            slack += plan.reasons["bits"]["padding and marks"]  # of sinks that are not predicted here
            assert 0.97 * budget - slack <= _bits(cache) <= budget, (budget, context, single)


@pytest.mark.parametrize("context", CONTEXTS)
def test_late_sinks_are_within_the_budget(planted: Any, with_sinks: Calibration, context: int) -> None:
    """A text with as many sinks as the calibration's."""
    ids = torch.randint(6, 256, (1, context), generator=torch.Generator().manual_seed(5))
    ids[0, 0] = TRIGGER
    late = with_sinks.values[0].sink_states.shape[0] * context // with_sinks.tokens
    ids[0, torch.linspace(20, context - 200, late).long()] = TRIGGER
    given = DynamicCache()
    with torch.no_grad():
        planted(ids, past_key_values=given)
    states = [(layer.keys, layer.values) for layer in given.layers]
    for budget in BUDGETS:
        plan = fit_plan(with_sinks, budget, context)
        cache, back = _filled(planted, plan, states, single=20)
        assert 0.97 * budget - 16 * (plan.residual + plan.page) / context <= _bits(cache) <= budget
        for layer, (keys, values) in enumerate(states):
            kept = torch.tensor([layer in (plan.sinks.layers or ())])
            at = (ids[0] == TRIGGER).nonzero().flatten()[1:]
            assert torch.equal(back[layer][0][:, :, at], keys[:, :, at]) == kept
            assert torch.equal(back[layer][1][:, :, at], values[:, :, at]) == kept
            assert torch.equal(back[layer][0][:, :, 0], keys[:, :, 0])
    assert fit_plan(with_sinks, 2.7, context).sinks.layers, "no layer keeps sinks: nothing was tested"


def test_planned_bits_are_within_the_budget(calibration: Calibration) -> None:
    for context in CONTEXTS:
        for budget in np.arange(1.7, 5, 0.1):
            # a few thousandths above at the most, which codes of the exact recent tokens leave free
            assert fit_plan(calibration, float(budget), context).reasons["bits_in_all"] < budget + 0.005


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_budget_below_what_is_fixed_is_refused_with_the_least(
    llama: Any, calibration: Calibration, context: int
) -> None:
    with pytest.raises(InputError, match="the budget is below what") as refused:
        fit_plan(calibration, 0.5, context)
    assert "0.5 bits" in str(refused.value)
    told = re.search(r"at least (\d+\.\d\d) bits", str(refused.value))
    assert told
    least = float(told[1])
    plan = fit_plan(calibration, least, context)
    cache, _ = _filled(llama, plan, _states(llama, calibration, context))
    assert _bits(cache) <= least
    with pytest.raises(InputError, match=f"at least {least:.2f} bits"):
        fit_plan(calibration, least - 0.02, context)


def test_the_least_with_late_sinks_is_accepted(with_sinks: Calibration) -> None:
    with pytest.raises(InputError) as refused:
        fit_plan(with_sinks, 0.5, 1000)
    told = re.search(r"at least (\d+\.\d\d) bits", str(refused.value))
    assert told
    assert fit_plan(with_sinks, float(told[1]), 1000).reasons["budget"] == float(told[1])


@pytest.mark.parametrize(
    ("budget", "context", "message"),
    [
        (0, 600, "no plan for this budget; got 0;"),
        (-1, 600, "no plan for this budget"),
        (17, 600, "no plan for this budget; got 17"),
        (float("nan"), 600, "no plan for this budget; got nan"),
        (3, 2049, "no plan for this context; got 2049; expected 1 to 2048 tokens"),
        (3, 0, "no plan for this context; got 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(
    llama: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, budget: float, context: int, message: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("measured with bad input")

    monkeypatch.setattr("sagittal.language.planner.calibrate", fail)
    with pytest.raises(InputError, match=message):
        plan_cache(llama, tokenizer, budget, context)


# --- what a plan says ---


def _same(first: CachePlan, second: CachePlan, tmp_path: Path) -> bool:
    files = [tmp_path / "first.json", tmp_path / "second.json"]
    for plan, path in zip((first, second), files, strict=True):
        save_plan(plan, path)
    return files[0].read_bytes() == files[1].read_bytes()


def test_the_same_measurements_give_the_same_plan(
    llama: Any, tokenizer: Any, calibration: Calibration, tmp_path: Path
) -> None:
    plan = fit_plan(calibration, 2.7, 600)
    assert _same(plan, fit_plan(_measured(llama, tokenizer), 2.7, 600), tmp_path)
    assert not _same(plan, fit_plan(calibration, 2.8, 600), tmp_path)


def test_more_bits_mean_fewer_nats(calibration: Calibration) -> None:
    for context in CONTEXTS:
        nats = [
            fit_plan(calibration, budget, context).reasons["predicted_nats_a_token"]
            for budget in (1.6, 1.8, 2.2, 2.7, 3.2, 3.7, 5, 7)
        ]
        assert nats == sorted(nats, reverse=True)
        assert nats[0] > 20 * nats[-1] > 0


def test_a_layer_the_model_minds_more_gets_more_bits(calibration: Calibration) -> None:
    loud = replace(calibration.keys[1], fisher=100 * calibration.keys[1].fisher)
    changed = replace(calibration, keys=(calibration.keys[0], loud, calibration.keys[2]))
    before, after = (fit_plan(each, 2.7, 600).reasons["layers"] for each in (calibration, changed))
    assert after[1]["key_bits"] > before[1]["key_bits"] + 1
    assert after[0]["key_bits"] < before[0]["key_bits"]


def test_mixing_keys_or_values(calibration: Calibration) -> None:
    plan = fit_plan(calibration, 2.7, 600)
    assert {coding.rotation for coding in plan.keys} == {"basis"}
    assert {coding.rotation for coding in plan.values} == {"none"}
    assert "principal components of each head's keys, channels of values" in plan.reasons["coding"]
    both = fit_plan(calibration, 2.7, 600, mix_values=True)
    assert {coding.rotation for coding in (*both.keys, *both.values)} == {"basis"}
    neither = fit_plan(calibration, 2.7, 600, mix_keys=False)
    assert {coding.rotation for coding in (*neither.keys, *neither.values)} == {"none"}
    assert "principal" not in neither.reasons["coding"]
    tables = [each.reasons["bits"]["tables"] for each in (neither, plan, both)]
    assert tables[0] < tables[1] < tables[2]


def test_a_plan_says_what_reading_it_costs(calibration: Calibration) -> None:
    plan, neither = fit_plan(calibration, 2.7, 600), fit_plan(calibration, 2.7, 600, mix_keys=False)
    found = re.search(
        r"unpacks (\d+) codes of keys and (\d+) of values.* (\d+) products", plan.reasons["reading"]
    )
    assert found
    codes = [
        np.mean([(np.asarray(coding.bits) > 0).sum(-1).mean() for coding in side])
        for side in (plan.keys, plan.values)
    ]
    assert [int(found[1]), int(found[2])] == [round(count) for count in codes]
    assert int(found[3]) == round(calibration.keys[0].mean.shape[1] * codes[0])
    assert "products" not in neither.reasons["reading"]


def test_gains(calibration: Calibration) -> None:
    plan, without = (fit_plan(calibration, 2.7, 600, gain=gain) for gain in (True, False))
    assert all(coding.gain for coding in (*plan.keys, *plan.values))
    assert not any(coding.gain for coding in (*without.keys, *without.values))
    uncoded = plan.residual + plan.page + 1  # just before a page is written
    assert plan.reasons["bits"]["gains"] == pytest.approx(8 / 16 * (600 - uncoded) / 600, abs=1e-4)
    assert without.reasons["bits"]["gains"] == 0
    assert without.reasons["bits"]["codes"] > plan.reasons["bits"]["codes"] + 0.4
    assert "no gains" in without.reasons["coding"]


def test_sensitivities(calibration: Calibration) -> None:
    plan, without = (fit_plan(calibration, 2.7, 600, sensitivity=on) for on in (True, False))
    assert np.ptp(np.asarray(plan.keys[0].weight, float)) > 0.1
    assert np.ptp(np.asarray(without.keys[0].weight, float)) == 0
    bits = [[row["key_bits"] for row in each.reasons["layers"]] for each in (plan, without)]
    assert bits[0] != bits[1]
    assert "all channels weighted alike" in without.reasons["coding"]


def test_sinks(with_sinks: Calibration, calibration: Calibration) -> None:
    plan, without = (fit_plan(with_sinks, 2.7, 600, sinks=on) for on in (True, False))
    assert (plan.sinks.rule, plan.sinks.first, plan.sinks.count) == ("predict", 4, 0)
    assert plan.sinks.reads == with_sinks.reads
    assert plan.sinks.layers
    assert [row["layer"] for row in plan.reasons["layers"] if row["keeps_late_sinks"]] == [*plan.sinks.layers]
    assert plan.reasons["bits"]["late sinks"] > 0
    assert f"{list(plan.sinks.layers)}" in plan.reasons["sinks"]
    assert without.sinks == Sinks(count=4)
    assert without.reasons["bits"]["late sinks"] == 0
    assert "first four tokens" in without.reasons["sinks"]
    none = fit_plan(calibration, 2.7, 600)
    assert none.sinks == Sinks(count=4)
    assert "no token of the calibration text is an attention sink" in none.reasons["sinks"]


def test_sinks_nobody_minds_are_coded_like_any_token(with_sinks: Calibration) -> None:
    def deaf(moments: Moments) -> Moments:
        return replace(moments, sink_gradients=0 * moments.sink_gradients)

    quiet = replace(
        with_sinks,
        keys=tuple(deaf(moments) for moments in with_sinks.keys),
        values=tuple(deaf(moments) for moments in with_sinks.values),
    )
    plan = fit_plan(quiet, 2.7, 600)
    assert plan.sinks == Sinks(count=4)
    assert "worth less" in plan.reasons["sinks"]


def test_window(calibration: Calibration) -> None:
    for context, window in ((600, (0, 8)), (2000, (16, 16)), (10**5, (64, 16))):
        plan = fit_plan(calibration, 2.7, context)
        assert (plan.residual, plan.page) == window
        assert "the widest choice" in plan.reasons["window"]
    asked = fit_plan(calibration, 2.7, 2000, window=(24, 8))
    assert (asked.residual, asked.page) == (24, 8)
    assert asked.reasons["window"] == "24 recent tokens stay exact and pages hold 8: as asked for"
    assert "though it takes more" in fit_plan(calibration, 1.8, 600).reasons["window"]


def test_reasons_tell_a_person_what_was_measured_and_why(calibration: Calibration) -> None:
    reasons = fit_plan(calibration, 2.7, 600).reasons
    assert json.loads(json.dumps(reasons, allow_nan=False)) == reasons
    assert (reasons["budget"], reasons["context"]) == (2.7, 600)
    assert sum(reasons["bits"].values()) == pytest.approx(reasons["bits_in_all"], abs=1e-3)
    assert {"codes", "gains", "tables", "recent tokens", "late sinks"} < set(reasons["bits"])
    assert all(isinstance(reasons[name], str) for name in ("sinks", "window", "coding"))
    assert reasons["nats_saved_by_the_last_bit"] > 0
    assert reasons["calibration"]["tokens"] == 3 * 192
    assert reasons["calibration"]["text_sha256"] == calibration.text_sha256
    assert [row["layer"] for row in reasons["layers"]] == [0, 1, 2]
    nats = 0.0
    for row in reasons["layers"]:
        for side in ("key", "value"):
            assert np.mean(row[f"{side}_bits_by_head"]) == pytest.approx(row[f"{side}_bits"], abs=1e-3)
            assert 0 < row[f"{side}_nats"] <= row[f"{side}_nats_if_dropped"]
            nats += row[f"{side}_nats"]
    assert reasons["predicted_nats_a_token"] == pytest.approx(nats)
    assert nats < sum(
        row[f"{side}_nats_if_dropped"] for row in reasons["layers"] for side in ("key", "value")
    )


# --- a cache that follows a plan ---


def test_a_plan_from_a_file_decodes_the_same(
    llama: Any, planted: Any, calibration: Calibration, with_sinks: Calibration, tmp_path: Path
) -> None:
    for model, found in ((llama, calibration), (planted, with_sinks)):
        plan = fit_plan(found, 2.7, 600)
        save_plan(plan, tmp_path / "plan.json")
        again = load_plan(tmp_path / "plan.json")
        assert again.reasons == plan.reasons
        states = _states(model, found, 150)
        first, second = (_filled(model, each, states, single=30)[1] for each in (plan, again))
        for (keys, values), (keys_again, values_again) in zip(first, second, strict=True):
            assert torch.equal(keys, keys_again)
            assert torch.equal(values, values_again)
        assert not torch.equal(first[0][0], states[0][0])


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"num_hidden_layers": 4}, "layers"),
        ({"hidden_size": 48}, "hidden_size"),
        ({"num_key_value_heads": 4}, "key_value_heads"),
        ({"vocab_size": 400}, "vocabulary"),
    ],
)
def test_a_plan_of_another_model_is_refused(
    make_model: Callable[..., Any], calibration: Calibration, changes: dict[str, Any], name: str
) -> None:
    plan = fit_plan(calibration, 2.7, 600)
    with pytest.raises(InputError, match=f"the plan was made for another model: {name} differs"):
        LowBitCache(make_model(**changes).config, plan)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3", "gpt2"])
def test_planned_and_generated_with(
    make_model: Callable[..., Any],
    tokenizer: Any,
    prompt: Tensor,
    generate: Callable[..., Any],
    kind: str,
) -> None:
    model = make_model(kind)
    said: list[str] = []
    text = topics["types"][:9000]
    plan = plan_cache(model, tokenizer, 6, 600, text=text, report=said.append)
    assert said
    assert plan.made_for["model_type"] == model.config.model_type
    for beams in (1, 3):
        cache = LowBitCache(model.config, plan)
        found = generate(model, prompt, cache, tokens=30, num_beams=beams).sequences
        assert found.shape == (1, 75 + 30)
        assert cache.get_seq_length() == 75 + 29
        assert any(states.quantised > 40 for layer in _low(cache) for states in layer.states or ())
    pads = torch.tensor([0, 20, 9])
    batch = torch.cat([prompt, prompt.roll(9), prompt.roll(18)])
    mask = (torch.arange(75) >= pads[:, None]).long()
    padded = torch.where(mask == 1, batch, 0)
    cache = LowBitCache(model.config, plan)
    found = generate(model, padded, cache, attention_mask=mask, tokens=30)
    assert cache.sequences.pads.tolist() == pads.tolist()
    # each row goes on as it does alone, but for the order of sums
    for row, pad in enumerate(pads.tolist()):
        own = LowBitCache(model.config, plan)
        alone = generate(model, batch[row : row + 1, pad:], own, tokens=30)
        assert torch.allclose(alone.logits[0][0], found.logits[0][row], atol=1e-3)
        assert torch.isfinite(found.logits[-1][row]).all()


def _low(cache: LowBitCache) -> list[LowBitLayer]:
    return [layer for layer in cache.layers if isinstance(layer, LowBitLayer)]


def _divergence(model: Any, ids: Tensor, cache: LowBitCache, prefix: int) -> float:
    """Return mean KL to a plain cache over what follows an exact prefill, in steps of 8 tokens."""

    def read(cache: Any) -> Tensor:
        with torch.no_grad():
            model(ids[:, :prefix], past_key_values=cache, logits_to_keep=1)
            steps = [model(part, past_key_values=cache).logits[0] for part in ids[:, prefix:].split(8, dim=1)]
        return torch.cat(steps).float().log_softmax(-1)

    exact = read(DynamicCache(config=model.config))
    return float((exact.exp() * (exact - read(cache))).sum(-1).mean())


def test_a_key_bias_costs_no_bits(make_model: Callable[..., Any], tokenizer: Any) -> None:
    """Keys of a huge bias turn with their position; before RoPE it is one constant, and comes off exactly."""
    text = topics["types"]
    losses, plans = {}, {}
    for size in (0.0, 60.0):
        model = make_model("qwen2", initializer_range=0.12)
        with torch.no_grad():
            for layer in model.model.layers:
                bias = layer.self_attn.k_proj.bias
                bias += size * torch.randn(bias.shape, generator=torch.Generator().manual_seed(2))
        plan = fit_plan(_measured(model, tokenizer), 4.5, 1200)
        ids = tokenizer(text[20_000:21_200], return_tensors="pt")["input_ids"]
        caches = {
            "plan": LowBitCache(model.config, plan),
            "by channel": LowBitCache(model.config, CachePlan.uniform(4, 4, group=16)),
        }
        for name, cache in caches.items():
            losses[name, size] = _divergence(model, ids, cache, 1000)
        plans[size] = plan
        assert _bits(caches["plan"]) < _bits(caches["by channel"])
    assert np.abs(np.asarray(plans[60.0].keys[0].mean)).max() > 60
    assert losses["plan", 60.0] < losses["by channel", 60.0] / 3, losses
    assert losses["by channel", 60.0] > 3 * losses["by channel", 0.0], losses


@pytest.mark.model
def test_a_real_model_at_fewer_bits_than_kivi(language_model_path: Path) -> None:
    """SmolLM2-135M on English prose of the Python manual, calibrated on other pages of it."""
    from sagittal.language import load_language_model, split_text

    loaded = load_language_model(language_model_path)
    held_out = ("objects", "types")
    own = "\n\n".join(text for name, text in sorted(topics.items()) if name not in held_out)
    found = calibrate(loaded.model, loaded.tokenizer, text=own, windows=4, length=256)
    text = split_text(loaded, topics["objects"] + topics["types"], 1200)[0]
    ids = loaded.tokenizer(text, return_tensors="pt")["input_ids"]
    config = loaded.model.config
    caches = {
        "plan": LowBitCache(config, fit_plan(found, 2.7, 1200)),
        "kivi2": LowBitCache(config, CachePlan.uniform(2, 2, sinks=Sinks(count=5))),
    }
    losses = {name: _divergence(loaded.model, ids, cache, 1096) for name, cache in caches.items()}
    assert _bits(caches["plan"]) <= min(2.7, _bits(caches["kivi2"]))
    assert 0 < losses["plan"] < 0.6 * losses["kivi2"], losses
