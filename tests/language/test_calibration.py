"""What is measured on a model, against hooks on its projections and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sagittal.core.errors import InputError
from sagittal.core.randomness import derive_seed
from sagittal.language import calibration
from sagittal.language.calibration import (
    Calibration,
    Moments,
    _draw,
    calibrate,
    calibration_text,
    own_windows,
    text_windows,
    tokenizer_sha256,
)
from sagittal.language.sinks import NoSinks, SinkProfile

pytestmark = pytest.mark.usefixtures("one_thread")
FULL = {"llama": [0, 1, 2], "qwen2": [0, 1, 2], "gemma3": [1], "gpt2": [0, 1, 2]}
TRIGGER = 5  # "#" in the tokenizer of these tests


def _prose(tokens: int, seed: int = 0) -> str:
    drawn = np.random.default_rng(seed).integers(0, 26, tokens)
    return "".join(chr(97 + number) for number in drawn)


def _measure(model: Any, tokenizer: Any, **changes: Any) -> Calibration:
    return calibrate(
        model, tokenizer, **{"text": _prose(700), "windows": 3, "length": 192, "own": 0, **changes}
    )


def _projected(model: Any, ids: list[Tensor], layer: int) -> tuple[Tensor, Tensor]:
    """Return keys before RoPE and values as the modules of one layer make them, each ``(N, T, H, D)``."""
    found: dict[str, list[Tensor]] = {"keys": [], "values": []}

    def keep(name: str, take: Callable[[Tensor], Tensor]) -> Callable[..., None]:
        return lambda module, given, output: found[name].append(take(output).detach().double())

    def heads(output: Tensor) -> Tensor:
        return output.unflatten(-1, (-1, 16))

    if model.config.model_type == "gpt2":
        both = model.transformer.h[layer].attn.c_attn
        hooks = [
            both.register_forward_hook(keep("keys", lambda out: heads(out[..., 64:128]))),
            both.register_forward_hook(keep("values", lambda out: heads(out[..., 128:]))),
        ]
    else:
        attention = model.model.layers[layer].self_attn
        hooks = [attention.v_proj.register_forward_hook(keep("values", heads))]
        if hasattr(attention, "k_norm"):
            hooks.append(
                attention.k_norm.register_forward_hook(keep("keys", lambda out: out.transpose(1, 2)))
            )
        else:
            hooks.append(attention.k_proj.register_forward_hook(keep("keys", heads)))
    with torch.no_grad():
        for window in ids:
            model(window)
    for hook in hooks:
        hook.remove()
    return torch.cat(found["keys"]), torch.cat(found["values"])


def _agrees(moments: Moments, states: Tensor) -> None:
    """Compare mean and covariance with those of tokens, ``(n, H, D)``."""
    mean = states.mean(0)
    centred = states - mean
    covariance = torch.einsum("nhd,nhe->hde", centred, centred) / len(states)
    scale = float(covariance.abs().max())
    np.testing.assert_allclose(moments.mean, mean.numpy(), atol=1e-4 * (scale**0.5 + float(mean.abs().max())))
    np.testing.assert_allclose(moments.covariance, covariance.numpy(), atol=1e-4 * scale)


@pytest.fixture
def alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tokens count alike in mean and covariance."""
    monkeypatch.setattr("sagittal.language.calibration._LOUDEST", 0.0)


def test_tokens_where_the_model_looks_count_more() -> None:
    random = torch.Generator().manual_seed(3)
    sums = calibration._Sums()
    weights, held = [], []
    for tokens in (30, 50):
        states = torch.randn((2, tokens, 4), generator=random)
        slope = torch.randn((2, tokens, 4), generator=random)
        slope[0, 7] *= 100  # one token must not fit all by itself
        sums.add(
            states, slope, torch.zeros(tokens, dtype=torch.bool), torch.zeros(tokens, dtype=torch.bool), 8
        )
        power = slope.double().square().sum(-1)
        weights.append(0.5 + 0.5 * (power / power.mean(1, keepdim=True)).clamp(max=20))
        held.append(states.double())
    weight, states = torch.cat(weights, dim=1).numpy(), torch.cat(held, dim=1).numpy()
    assert weight.max() == 10.5
    found = sums.moments()
    for head in range(2):
        mean = np.average(states[head], axis=0, weights=weight[head])
        np.testing.assert_allclose(found.mean[head], mean, rtol=1e-9)
        expected = np.cov(states[head], rowvar=False, aweights=weight[head], ddof=0)
        np.testing.assert_allclose(found.covariance[head], expected, rtol=1e-9, atol=1e-12)
    assert np.abs(found.mean - states.mean(1)).max() > 0.05  # or the weights would not show


@pytest.mark.parametrize("kind", FULL)
@pytest.mark.usefixtures("alike")
def test_moments_are_those_of_the_projections(
    make_model: Callable[..., Any], tokenizer: Any, kind: str
) -> None:
    model = make_model(kind)
    found = _measure(model, tokenizer)
    heads = 4 if kind == "gpt2" else 2
    assert len(found.keys) == len(found.values) == len(FULL[kind])
    assert (found.tokens, found.length) == (3 * 192, 192)
    ids = text_windows(tokenizer, _prose(700), 3, 192)
    for layer, keys, values in zip(FULL[kind], found.keys, found.values, strict=True):
        for moments, states in zip((keys, values), _projected(model, ids, layer), strict=True):
            assert moments.mean.shape == moments.fisher.shape == (heads, 16)
            assert moments.covariance.shape == (heads, 16, 16)
            assert moments.sample.shape == (heads, 3 * 191, 16)  # all but the first of each window
            assert moments.sink_states.shape == moments.sink_gradients.shape == (0, heads, 16)
            assert (moments.fisher > 0).all()
            _agrees(moments, states[:, 1:].flatten(0, 1))
            sampled = states[:, 1:].flatten(0, 1).transpose(0, 1).numpy()
            np.testing.assert_allclose(moments.sample, sampled, atol=1e-3 * np.abs(sampled).max())


@pytest.mark.usefixtures("alike")
def test_a_bias_of_keys_shows_in_their_mean(make_model: Callable[..., Any], tokenizer: Any) -> None:
    model = make_model("qwen2")
    plain = _measure(model, tokenizer)
    bias = torch.linspace(-9, 9, 32)
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.bias += bias  # what comes into the first layer stays the same
    moved = _measure(model, tokenizer)
    shift = moved.keys[0].mean - plain.keys[0].mean
    np.testing.assert_allclose(shift, bias.unflatten(0, (2, 16)).numpy(), atol=1e-4)
    np.testing.assert_allclose(moved.keys[0].covariance, plain.keys[0].covariance, atol=2e-3)


@pytest.mark.parametrize("kind", FULL)
def test_measuring_twice_gives_the_same(make_model: Callable[..., Any], tokenizer: Any, kind: str) -> None:
    model = make_model(kind)
    first = _measure(model, tokenizer)
    torch.manual_seed(99)  # nobody else's seed matters
    second = _measure(model, tokenizer)
    for one, two in zip((*first.keys, *first.values), (*second.keys, *second.values), strict=True):
        for name in vars(one):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert (first.sinks, first.text_sha256, first.made_for) == (
        second.sinks,
        second.text_sha256,
        second.made_for,
    )
    other = _measure(model, tokenizer, text=_prose(700, seed=1))
    assert other.text_sha256 != first.text_sha256
    assert not np.array_equal(other.keys[0].fisher, first.keys[0].fisher)


@pytest.mark.parametrize(("kind", "layer"), [("llama", 0), ("qwen2", 1), ("gpt2", 1)])
@pytest.mark.parametrize(("side", "head", "channel"), [("keys", 1, 3), ("keys", 0, 8), ("values", 1, 5)])
def test_sensitivities_are_what_a_small_push_does(
    make_model: Callable[..., Any], tokenizer: Any, kind: str, layer: int, side: str, head: int, channel: int
) -> None:
    """One channel of each token is pushed where it is made, before RoPE; the log likelihood follows."""
    tokens, push = 40, 1e-2  # norms are computed in float32: a smaller push drowns
    model = make_model(kind, initializer_range=0.12).double()
    found = _measure(model, tokenizer, windows=1, length=tokens)
    (ids,) = text_windows(tokenizer, _prose(700), 1, tokens)
    rows = torch.arange(2 * tokens)
    at = rows // 2
    sign = 1.0 - 2.0 * (rows % 2).double()
    place = head * 16 + channel
    if kind == "gpt2":
        module, place = model.transformer.h[layer].attn.c_attn, place + (64 if side == "keys" else 128)
    else:
        module = getattr(model.model.layers[layer].self_attn, "k_proj" if side == "keys" else "v_proj")

    def shove(module: Any, given: Any, output: Tensor) -> Tensor:
        pushed = output.clone()
        pushed[rows, at, place] += push * sign
        return pushed

    with torch.no_grad():
        plain = model(ids).logits[0].float().softmax(-1)
        generator = torch.Generator().manual_seed(derive_seed(0, "calibration"))
        drawn = _draw(plain, generator)
        hook = module.register_forward_hook(shove)
        likely = model(ids.expand(2 * tokens, -1)).logits.double().log_softmax(-1)
        hook.remove()
    total = likely.gather(-1, drawn.expand(2 * tokens, -1, -1)).sum((1, 2))
    slopes = (total[0::2] - total[1::2]) / (2 * push)
    expected = float(slopes[1:].square().mean())  # the first token is kept, so it does not count
    assert expected > 0
    assert getattr(found, side)[layer].fisher[head, channel] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(
    make_model: Callable[..., Any], tokenizer: Any, kind: str, training: bool
) -> None:
    model = make_model(kind).train(training)
    first = next(model.parameters())
    first.requires_grad_(False)
    flags = [weight.requires_grad for weight in model.parameters()]
    modes = [module.training for module in model.modules()]
    attention = model.config._attn_implementation
    weights = [weight.clone() for weight in model.parameters()]
    _measure(model, tokenizer)
    assert flags.count(False) == 1
    assert [weight.requires_grad for weight in model.parameters()] == flags
    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == attention != "eager"
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_dropout_of_a_model_in_training_does_not_disturb(
    make_model: Callable[..., Any], tokenizer: Any
) -> None:
    model = make_model("gpt2")
    assert model.config.attn_pdrop > 0
    still = _measure(model, tokenizer)
    moving = _measure(model.train(), tokenizer)
    np.testing.assert_array_equal(still.keys[1].fisher, moving.keys[1].fisher)


def test_the_model_is_left_as_it_was_by_a_failure(
    make_model: Callable[..., Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama").train()

    def fail(*args: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("sagittal.language.calibration._measure", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        _measure(model, tokenizer)
    assert model.training
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("text", ["", _prose(3 * 192 - 1)])
def test_a_text_too_short_is_refused(llama: Any, tokenizer: Any, text: str) -> None:
    with pytest.raises(
        InputError, match=rf"too short to calibrate on; got {len(text)} tokens; expected at least 576"
    ):
        _measure(llama, tokenizer, text=text)


def test_a_text_of_just_enough_tokens_is_used_whole(llama: Any, tokenizer: Any) -> None:
    text = _prose(3 * 192)
    ids = torch.cat(text_windows(tokenizer, text, 3, 192), dim=1)
    assert tokenizer.decode(ids[0]) == text
    assert _measure(llama, tokenizer, text=text).tokens == 576


def test_without_a_text_the_manual_of_python_is_read(llama: Any, tokenizer: Any) -> None:
    own = calibrate(llama, tokenizer, windows=2, length=128, own=0)
    given = calibrate(llama, tokenizer, text=calibration_text(), windows=2, length=128, own=0)
    assert own.text_sha256 == given.text_sha256
    assert "statement" in calibration_text()
    np.testing.assert_array_equal(own.values[2].fisher, given.values[2].fisher)


def _certain(make_model: Callable[..., Any]) -> Any:
    """A model that is sure that token n is followed by token n + 1."""
    model = make_model("llama")
    embedding, head = model.get_input_embeddings().weight, model.lm_head.weight
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        unit = torch.nn.functional.normalize(torch.randn(embedding.shape), dim=1)
        embedding.copy_(unit)
        head.copy_(4 * unit.roll(1, 0))  # what comes out of the last norm is 8 long
    return model


def test_a_model_writes_what_it_takes_for_text(make_model: Callable[..., Any]) -> None:
    model = _certain(make_model)
    windows = own_windows(model, 5, 40, torch.Generator().manual_seed(1))
    assert [tuple(window.shape) for window in windows] == [(1, 40)] * 5
    assert len({int(window[0, 0]) for window in windows}) > 1
    follows = torch.cat([(window[0, 1:] - window[0, :-1]) % 300 == 1 for window in windows])
    assert float(follows.float().mean()) > 0.9
    again = own_windows(model, 5, 40, torch.Generator().manual_seed(1))
    assert all(torch.equal(one, other) for one, other in zip(windows, again, strict=True))
    assert not torch.equal(windows[0], own_windows(model, 5, 40, torch.Generator().manual_seed(2))[0])


def test_what_a_model_writes_is_drawn_by_its_chances(make_model: Callable[..., Any]) -> None:
    model = make_model("llama", initializer_range=0.3)
    count = 20_000
    windows = torch.cat(own_windows(model, count, 2, torch.Generator().manual_seed(1)))
    with torch.no_grad():
        chances = model(torch.arange(model.config.vocab_size)[:, None]).logits[:, 0].double().softmax(-1)
    starts = torch.bincount(windows[:, 0], minlength=len(chances)).double()
    expected = starts @ chances  # how often each token should follow
    seen = torch.bincount(windows[:, 1], minlength=len(chances)).double()
    spread = (starts @ (chances * (1 - chances))).sqrt()
    off = (seen - expected) / spread.clamp_min(1)
    assert float(off.abs().max()) < 5
    assert 0.7 < float(off[expected > 5].square().mean()) < 1.3
    assert float(expected.max()) > 3 * count / len(chances)  # so an even draw would not pass


def test_windows_of_its_own_are_measured_with_the_text(llama: Any, tokenizer: Any) -> None:
    plain, found = _measure(llama, tokenizer), _measure(llama, tokenizer, own=2)
    assert (plain.own, plain.tokens, found.own, found.tokens) == (0, 3 * 192, 2, 5 * 192)
    assert found.text_sha256 == plain.text_sha256
    assert found.keys[0].sample.shape[1] == 5 * 191
    assert np.abs(found.keys[0].covariance - plain.keys[0].covariance).max() > 0
    said: list[str] = []
    _measure(llama, tokenizer, own=2, report=said.append)
    assert said[1:3] == ["writing 2 windows of its own", "measuring sensitivities, window 1 of 5"]


def test_it_says_which_model_and_tokenizer_it_is_of(llama: Any, tokenizer: Any) -> None:
    said: list[str] = []
    found = _measure(llama, tokenizer, report=said.append)
    assert found.made_for["model_type"] == "llama"
    assert found.made_for["tokenizer_sha256"] == tokenizer_sha256(tokenizer)
    assert isinstance(found.sinks, NoSinks)
    assert "no token of the calibration text" in found.sinks.reason
    assert found.reads is None
    assert said[-1] == "measuring sensitivities, window 3 of 3"


@pytest.mark.usefixtures("alike")
def test_planted_sinks_are_left_out_of_the_moments(plant_sinks: Callable[..., Any], tokenizer: Any) -> None:
    model = plant_sinks(TRIGGER)
    letters = list(_prose(4 * 256))
    places = [0, 40, 256, 256 + 17, 256 + 131, 512, 512 + 3, 512 + 99, 768]
    for place in places:
        letters[place] = "#"
    found = _measure(model, tokenizer, text="".join(letters), windows=4, length=256)
    assert isinstance(found.sinks, SinkProfile), found.sinks
    assert found.reads == found.sinks.layer
    ids = text_windows(tokenizer, "".join(letters), 4, 256)
    sinks = torch.cat(ids).flatten() == TRIGGER
    assert int(sinks.sum()) == len(places)
    late = [place for place in places if place % 256]
    for layer in (0, found.reads, 5):
        for moments, states in zip(
            (found.keys[layer], found.values[layer]), _projected(model, ids, layer), strict=True
        ):
            flat = states.flatten(0, 1)
            _agrees(moments, flat[~sinks])
            assert moments.sample.shape[1] == 4 * 256 - len(places)
            np.testing.assert_allclose(moments.sink_states, flat[late].numpy(), atol=1e-4)
            assert moments.sink_gradients.shape == (len(late), 2, 16)
            assert np.abs(moments.sink_gradients).max() > 0
    keys, _ = _projected(model, ids, 5)
    with pytest.raises(AssertionError):  # or the sinks would be too few to show
        _agrees(found.keys[5], keys.flatten(0, 1))
