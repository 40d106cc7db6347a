from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

from sagittal.core.errors import InputError
from sagittal.language import CachePlan, LanguageModel, LowBitCache
from sagittal.language.evaluation import (
    Result,
    Window,
    compare_logits,
    evaluate,
    paired_ratio,
    sixteen_bit,
    windows_of,
)
from sagittal.language.plan import Sinks

pytestmark = pytest.mark.usefixtures("one_thread")
PREFILL, DECODE = 40, 21
SMALL = CachePlan.uniform(3, 3, group=8, sinks=Sinks(count=2), residual=8, page=8)
EXACT = CachePlan.uniform(16, 16)


class CoarseLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """Rounds every number it holds, once the update is over that makes eight of them exact."""

    lie = 0

    def __init__(self) -> None:
        super().__init__()
        self.recent = 0

    @property
    def run_length(self) -> int:
        return 8 - self.recent + self.lie

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        fresh = self.get_seq_length() == 0
        found = super().update(key_states, value_states)
        self.recent += key_states.shape[-2]
        if fresh or self.recent >= 8:
            self.keys, self.values = (torch.round(states * 2) / 2 for states in (self.keys, self.values))
            self.recent = 0
        return found


class LyingLayer(CoarseLayer):
    lie = 5


class BreakingLayer(DynamicLayer):  # type: ignore[misc]
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        found = super().update(key_states, value_states)
        self.values = self.values * math.nan
        return found


def _of(layer: type[DynamicLayer]) -> Callable[[Any], DynamicCache]:
    def make(config: Any) -> DynamicCache:
        cache = DynamicCache(config=config)
        cache.layers = [layer() for _ in cache.layers]
        return cache

    return make


def _low_bit(config: Any) -> LowBitCache:
    return LowBitCache(config, SMALL)


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    random = torch.Generator().manual_seed(3)
    ids = [torch.randint(3, 300, (1, PREFILL + DECODE + 1), generator=random) for _ in range(3)]
    return [Window(part[:, :PREFILL], part[:, PREFILL:], 2 * DECODE) for part in ids]


def _steps(model: Any, window: Window, cache: Any) -> Tensor:
    """Read the prompt into this very cache, then decode token by token; log-probabilities ``(D, V)``."""
    with torch.no_grad():
        model(window.prompt, past_key_values=cache)
        parts = window.targets[:, :-1].split(1, dim=1)
        logits = torch.cat([model(part, past_key_values=cache).logits[0] for part in parts])
    return logits.double().log_softmax(-1)


# --- windows ---


def test_windows_stand_in_the_middle_of_equal_parts(tokenizer: Any) -> None:
    text = "abcdefghijklmnopqrst"  # a token a letter, so 20; two windows of 3 + 2 + 1
    first, second = windows_of(tokenizer, text, prefill=3, decode=2, count=2)
    assert tokenizer.decode(first.prompt[0]) == "cde"
    assert tokenizer.decode(first.targets[0]) == "fgh"
    assert tokenizer.decode(second.prompt[0]) + tokenizer.decode(second.targets[0]) == "mnopqr"
    assert (first.characters, first.decode) == (2, 2)
    assert first.prompt.shape == (1, 3)
    assert first.targets.shape == (1, 3)


def test_characters_are_those_of_the_scored_tokens(tokenizer: Any) -> None:
    # nine tokens: a b | c é é é é d [two line ends], where an é takes two
    (window,) = windows_of(tokenizer, "abcééd\n\n", prefill=2, decode=6, count=1)
    assert window.characters == 5
    (window,) = windows_of(tokenizer, "abcd\n\n", prefill=2, decode=2, count=1)
    assert window.characters == 3


@pytest.mark.parametrize(("tokens", "count"), [(24, 4), (25, 4), (29, 4), (6, 1), (107, 9)])
def test_windows_do_not_overlap(tokenizer: Any, tokens: int, count: int) -> None:
    text = "".join(chr(0x21 + i % 90) for i in range(tokens))
    whole = tokenizer(text)["input_ids"]
    found = windows_of(tokenizer, text, prefill=3, decode=2, count=count)
    starts, at = [], 0
    for window in found:
        ids = [*window.prompt[0].tolist(), *window.targets[0].tolist()]
        at = next(i for i in range(at, tokens) if whole[i : i + 6] == ids)
        starts.append(at)
        at += 6  # the next one is looked for after this one
    assert len(starts) == count
    gaps = np.diff([-6, *starts, tokens]) - 6
    assert gaps.min() >= 0
    assert max(gaps[1:-1], default=0) - min(gaps[1:-1], default=0) <= 1


def test_no_special_tokens_and_no_warning_of_a_long_text(
    tokenizer: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "model_max_length", 10)
    (window,) = windows_of(tokenizer, "x" * 40, prefill=35, decode=4, count=1)
    assert len(set(window.prompt[0].tolist()) | set(window.targets[0].tolist())) == 1
    assert capfd.readouterr().err == ""


def test_refuses_a_text_that_is_too_short(tokenizer: Any) -> None:
    with pytest.raises(
        InputError, match=r"tale\.txt: the text is too short; got 23 tokens; expected at least 24"
    ):
        windows_of(tokenizer, "x" * 23, prefill=3, decode=2, count=4, source="tale.txt")
    with pytest.raises(InputError, match=r"tale\.txt: the text is empty"):
        windows_of(tokenizer, "", prefill=3, decode=2, count=4, source="tale.txt")


@pytest.mark.parametrize("name", ["prefill", "decode", "count"])
def test_refuses_numbers_below_one(tokenizer: Any, name: str) -> None:
    numbers = {"prefill": 3, "decode": 2, "count": 1, name: 0}
    with pytest.raises(InputError, match=f"{name} is too small; got 0"):
        windows_of(tokenizer, "x" * 23, **numbers)


def test_a_window_has_a_prompt_and_two_targets() -> None:
    ids = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(InputError, match="prompt"):
        Window(ids[:, :0], ids, 3)
    with pytest.raises(InputError, match=r"targets .*\(1, 1\)"):
        Window(ids, ids[:, :1], 3)
    with pytest.raises(InputError, match="targets"):
        Window(ids, ids[0], 3)
    with pytest.raises(InputError, match="no text"):
        Window(ids, ids, 0)


# --- measures ---


def test_divergence_by_hand() -> None:
    half, quarter = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    kl, nll, same = compare_logits(half, quarter, torch.tensor([1]))
    assert kl == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3)], abs=1e-7)
    assert nll == pytest.approx([-math.log(0.75)], abs=1e-7)
    assert not same[0]  # of two equal ones the first counts
    kl, _, _ = compare_logits(
        quarter + 5, half - 3, torch.tensor([1])
    )  # the other way round is another number
    assert kl == pytest.approx([0.25 * math.log(0.5) + 0.75 * math.log(1.5)], abs=1e-6)


def test_an_impossible_token_adds_nothing_to_the_divergence() -> None:
    reference = torch.tensor([[0.0, -math.inf], [0.0, 0.0]])
    kl, _, _ = compare_logits(reference, torch.zeros(2, 2), torch.tensor([0, 0]))
    assert kl == pytest.approx([math.log(2), 0.0])


def test_many_rows_are_compared_like_one() -> None:
    random = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 41, 30, generator=random)
    targets = torch.randint(0, 30, (50,), generator=random)
    whole = compare_logits(p, q, targets)
    for i in (0, 15, 16, 40):
        alone = compare_logits(p[i : i + 1], q[i : i + 1], targets[i : i + 1])
        assert [part[i] for part in whole] == pytest.approx([part[0] for part in alone])


def test_the_16_bit_cache_predicts_what_the_model_does_without_a_cache(
    model: LanguageModel, windows: list[Window]
) -> None:
    (result,) = evaluate(model, windows, {"16bit": sixteen_bit})
    nll = []
    for window in windows:
        ids = torch.cat([window.prompt, window.targets], dim=1)
        with torch.no_grad():
            log_p = model.model(ids).logits[0].double().log_softmax(-1)
        nll.append([-float(log_p[at - 1, ids[0, at]]) for at in range(PREFILL + 1, PREFILL + 1 + DECODE)])
    assert result.nll == pytest.approx(np.array(nll), abs=1e-4)
    assert result.perplexity == pytest.approx(math.exp(np.mean(nll)), rel=1e-4)
    assert result.bits_per_character == pytest.approx(np.mean(nll) / math.log(2) / 2, rel=1e-4)
    assert (result.windows, result.tokens) == (3, 3 * DECODE)
    assert (result.kl_mean, result.kl_p95, result.same_top) == (0.0, 0.0, 1.0)
    assert result.interval == result.kl_interval == (0.0, 0.0)


def test_a_cache_given_the_prefill_is_one_that_read_the_prompt(
    model: LanguageModel, windows: list[Window]
) -> None:
    makers = {"coarse": _of(CoarseLayer), "low-bit": _low_bit}
    results = evaluate(model, windows[:2], makers, single_steps=True)
    for result, make in zip(results, makers.values(), strict=True):
        for window, kl, nll in zip(windows[:2], result.kl, result.nll, strict=True):
            exact = _steps(model.model, window, sixteen_bit(model.model.config))
            found = _steps(model.model, window, make(model.model.config))
            expected = torch.nn.functional.kl_div(found, exact, log_target=True, reduction="none").sum(-1)
            assert kl == pytest.approx(expected.numpy(), abs=1e-5)
            assert nll == pytest.approx(
                -found.gather(-1, window.targets[0, 1:, None])[:, 0].numpy(), abs=1e-5
            )
        assert result.kl_mean > 0.01  # or the cache could not be told from an exact one
        assert result.kl_mean == pytest.approx(result.kl.mean())
        assert result.kl_p95 == pytest.approx(np.quantile(result.kl, 0.95))
        assert result.same_top < 1


def test_runs_give_what_single_steps_give(model: LanguageModel, windows: list[Window]) -> None:
    passes = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    makers = {
        "16bit": sixteen_bit,
        "coarse": _of(CoarseLayer),
        "low-bit": _low_bit,
        "exact": lambda config: LowBitCache(config, EXACT),
    }
    runs = evaluate(model, windows[:1], makers)
    assert passes[:6] == [PREFILL, DECODE, DECODE, 8, 8, 5]
    assert 1 < len(passes[6:-1]) < DECODE  # the low-bit cache in some runs, and an exact one in one
    assert passes[-1] == DECODE
    passes.clear()
    singles = evaluate(model, windows[:1], makers, single_steps=True)
    hook.remove()
    assert passes == [PREFILL, *[1] * 5 * DECODE]
    for run, single in zip(runs, singles, strict=True):
        assert run.nll == pytest.approx(single.nll, abs=2e-4)
        assert run.kl == pytest.approx(single.kl, abs=2e-4)
    (lying,) = evaluate(model, windows[:1], {"lying": _of(LyingLayer)})
    assert np.abs(lying.kl - singles[1].kl).max() > 0.1


def test_a_cache_may_tell_its_run_length_itself(model: LanguageModel, windows: list[Window]) -> None:
    class Three(DynamicCache):  # type: ignore[misc]
        run_length = 3

    class Unbounded(DynamicCache):  # type: ignore[misc]
        run_length = None

    class Mute(DynamicLayer):  # type: ignore[misc]
        pass

    passes = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    makers = {
        "three": lambda config: Three(config=config),
        "unbounded": lambda config: Unbounded(config=config),
    }
    evaluate(model, windows[:1], {**makers, "mute": _of(Mute)})
    hook.remove()
    assert passes == [PREFILL, DECODE, *[3] * 7, DECODE, *[1] * DECODE]  # of the last one nothing is known


@pytest.mark.parametrize("kind", ["gemma3", "mistral"])
def test_sliding_windows_have_a_prefill_of_their_own(
    make_model: Callable[..., Any], wrap: Callable[[Any], LanguageModel], windows: list[Window], kind: str
) -> None:
    model = wrap(make_model(kind))
    makers = {"16bit": sixteen_bit, "low-bit": _low_bit}
    runs = evaluate(model, windows[:1], makers)
    singles = evaluate(model, windows[:1], makers, single_steps=True)
    for run, single in zip(runs, singles, strict=True):
        assert run.nll == pytest.approx(single.nll, abs=1e-4)
    exact = _steps(model.model, windows[0], DynamicCache(config=model.model.config))
    low = _steps(model.model, windows[0], _low_bit(model.model.config))
    expected = torch.nn.functional.kl_div(low, exact, log_target=True, reduction="none").sum(-1)
    assert singles[1].kl[0] == pytest.approx(expected.numpy(), rel=0.01, abs=1e-8)
    assert (singles[1].kl_mean > 1e-5) == (kind == "gemma3")  # Mistral has no layer for it


def test_other_caches_read_the_prompt_themselves(model: LanguageModel, windows: list[Window]) -> None:
    class Watching(DynamicCache):  # type: ignore[misc]
        needs_prefill = True

    def static(config: Any) -> StaticCache:  # returns more than it is given
        return StaticCache(config=config, max_cache_len=PREFILL + DECODE)

    passes = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    makers = {"watching": lambda config: Watching(config=config), "static": static}
    watching, fixed = evaluate(model, windows[:1], makers)
    hook.remove()
    assert passes == [PREFILL, DECODE, PREFILL, DECODE, PREFILL, *[1] * DECODE]
    assert watching.kl_mean == 0
    assert fixed.kl_mean == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_held_at_the_end(
    make_model: Callable[..., Any],
    wrap: Callable[[Any], LanguageModel],
    windows: list[Window],
    dtype: torch.dtype,
) -> None:
    model = wrap(make_model("llama").to(dtype))
    exact, low = evaluate(model, windows[:1], {"16bit": sixteen_bit, "low-bit": _low_bit})
    assert exact.held_bytes == 3 * 2 * 2 * 16 * (PREFILL + DECODE) * 2  # layers, K and V, heads, width
    assert exact.effective_bits == 16  # of a float32 model too
    cache = _low_bit(model.model.config)
    _steps(model.model.bfloat16(), windows[0], cache)
    assert low.held_bytes == cache.nbytes
    assert low.effective_bits == cache.effective_bits
    assert 3 < low.effective_bits < 16


# --- intervals ---


def test_equal_seeds_give_equal_figures(model: LanguageModel, windows: list[Window]) -> None:
    first, again, other = (
        evaluate(model, windows, {"coarse": _of(CoarseLayer)}, seed=seed)[0] for seed in (1, 1, 2)
    )
    assert {**first.row(), "seconds": 0} == {**again.row(), "seconds": 0}
    assert first.kl_interval != other.kl_interval
    assert first.kl_mean == other.kl_mean
    for interval, mean in (
        (first.interval, (first.nll - first.nll_exact).mean()),
        (first.kl_interval, first.kl_mean),
    ):
        assert interval[0] < mean < interval[1]


def test_a_row_is_json(model: LanguageModel, windows: list[Window]) -> None:
    lines: list[str] = []
    (result,) = evaluate(model, windows, {"coarse": _of(CoarseLayer)}, report=lines.append)
    row = json.loads(json.dumps(result.row(), allow_nan=False))
    wanted = "spec perplexity kl_mean kl_p95 bits_per_character effective_bits bytes windows tokens interval"
    assert set(row) == {*wanted.split(), "same_top", "kl_interval", "seconds"}
    assert row["spec"] == "coarse"
    assert len(row["interval"]) == 2
    assert [line.rpartition(":")[0] for line in lines] == [f"window {i} of 3, coarse" for i in (1, 2, 3)]


def _made(result: Result, kl: Any, spec: str = "made") -> Result:
    nll = np.zeros_like(kl)
    return replace(result, spec=spec, kl=kl, kl_mean=float(kl.mean()), nll=nll, nll_exact=nll)


@pytest.fixture(scope="module")
def result(model: LanguageModel, windows: list[Window]) -> Result:
    return evaluate(model, windows, {"coarse": _of(CoarseLayer)})[0]


def test_a_ratio_is_paired(result: Result) -> None:
    kl = np.random.default_rng(0).exponential(size=(6, 128))
    assert paired_ratio(_made(result, kl / 2), _made(result, kl)) == pytest.approx((0.5, 0.5, 0.5))
    other = np.random.default_rng(1).exponential(size=(6, 128))
    ratio, low, high = paired_ratio(_made(result, other), _made(result, kl))
    assert ratio == pytest.approx(other.mean() / kl.mean())
    assert 0.7 < low < ratio < high < 1.4
    assert paired_ratio(_made(result, other), _made(result, kl), seed=1) != (ratio, low, high)


def test_an_interval_spans_windows_and_tokens(result: Result) -> None:
    random = np.random.default_rng(2)

    def width(kl: Any) -> float:
        _, low, high = paired_ratio(_made(result, kl), _made(result, np.ones_like(kl)))
        return high - low

    tokens = 1 + random.normal(size=(6, 128))  # independent: a standard error of 1 / sqrt(768)
    expected = 2 * 1.96 / math.sqrt(tokens.size)
    assert 0.8 * expected < width(tokens) < 2 * expected
    shifts = np.repeat(random.normal(size=(6, 1)), 128, axis=1)  # as many numbers, of which 6 independent
    assert 0.5 < width(1 + shifts) / (2 * 1.96 * shifts.std() / math.sqrt(6)) < 1.5
    runs = 1 + np.repeat(random.normal(size=(6, 8)), 16, axis=1)  # neighbours alike
    assert width(runs) > 2 * width(tokens)
    assert width(tokens[:1]) > 0  # one window alone, and a window shorter than a block
    assert width(tokens[:, :3]) > 0


def test_a_ratio_needs_the_same_windows_and_a_divergence(result: Result) -> None:
    with pytest.raises(InputError, match="no divergence"):
        paired_ratio(result, replace(result, spec="16bit", kl_mean=0.0))
    with pytest.raises(InputError, match="same windows"):
        paired_ratio(result, replace(result, nll_exact=result.nll_exact[:, ::-1]))
    with pytest.raises(InputError, match="same windows"):
        paired_ratio(result, replace(result, nll_exact=result.nll_exact[:2]))


# --- refusals ---


def test_refuses_windows_beyond_the_context(model: LanguageModel, windows: list[Window]) -> None:
    narrow = replace(model, context_length=PREFILL + DECODE - 1)
    with pytest.raises(
        InputError, match=rf"tiny.*{PREFILL} \+ {DECODE} tokens.*at most {PREFILL + DECODE - 1}"
    ):
        evaluate(narrow, windows, {"16bit": sixteen_bit})
    evaluate(replace(model, context_length=PREFILL + DECODE), windows[:1], {"16bit": sixteen_bit})


def test_refuses_nothing_to_do_and_unequal_windows(model: LanguageModel, windows: list[Window]) -> None:
    with pytest.raises(InputError, match="no windows"):
        evaluate(model, [], {"16bit": sixteen_bit})
    with pytest.raises(InputError, match="no caches"):
        evaluate(model, windows, {})
    shorter = Window(windows[1].prompt, windows[1].targets[:, :-1], 5)
    with pytest.raises(InputError, match="differ"):
        evaluate(model, [windows[0], shorter], {"16bit": sixteen_bit})


def test_names_the_cache_that_breaks_the_model(model: LanguageModel, windows: list[Window]) -> None:
    with pytest.raises(InputError, match="broken: .*NaN.*window 1"):
        evaluate(model, windows, {"16bit": sixteen_bit, "broken": _of(BreakingLayer)})
