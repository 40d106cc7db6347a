"""What a key-value cache costs: true decode against it, compared with a 16-bit cache on the same text.

A window of text is a prompt and the tokens that follow it. The prompt is read once, exactly. Each cache is
handed the keys and values of that prefill; then the following tokens are fed to the model one after the
other, whatever it would have said itself, and each predicted distribution is compared with the one that
transformers' ``DynamicCache`` gives.

Two things a cache may say of itself:

- ``run_length``: how many tokens the next update may carry with the same outcome as one update each,
  because nothing is quantised in between, or None for any number. They are then fed in one pass. A layer may
  say it too. The dynamic and quantised layers of transformers are known; any other cache is fed token by
  token.
- ``needs_prefill``: true for a cache that looks at more than the keys and values it is given. It then gets a
  forward pass over the prompt of its own.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    QuantizedLayer,
    get_layer_types_and_kwargs,
)

from sagittal.core.errors import InputError
from sagittal.core.randomness import generator
from sagittal.language.cache import cache_bytes, cache_bytes_16bit
from sagittal.language.models import LanguageModel
from sagittal.language.plan import EXACT

__all__ = ["Result", "Window", "compare_logits", "evaluate", "paired_ratio", "sixteen_bit", "windows_of"]

_LARGEST_RUN = 128  # tokens in one pass, so that their logits stay small
_ROWS = 16  # rows of logits turned to float64 at a time
_RESAMPLES = 2000
_BLOCK = 16  # tokens that a resample takes together, because neighbours depend on each other


@dataclass(frozen=True, eq=False)
class Window:
    """A prompt and the text that follows it.

    Args:
        prompt: Token ids of the prompt, ``(1, P)``.
        targets: Token ids that follow, ``(1, D + 1)``. The first D are fed to the model, the last D are
            scored: what is predicted for the first comes from the exact prefill alone, whatever the cache.
        characters: Characters of the text that the last D target tokens stand for.

    Raises:
        InputError: A shape is another one, or there is no character.
    """

    prompt: Tensor
    targets: Tensor
    characters: int

    def __post_init__(self) -> None:
        for name, least in (("prompt", 1), ("targets", 2)):
            shape = tuple(getattr(self, name).shape)
            if len(shape) != 2 or shape[0] != 1 or shape[1] < least:
                raise InputError(
                    f"the {name} of a window has another shape",
                    value=shape,
                    expected=f"(1, n) with n at least {least}",
                )
        if self.characters < 1:
            raise InputError("a window stands for no text", value=f"characters {self.characters}")

    @property
    def decode(self) -> int:
        """Tokens fed after the prompt, which are as many as are scored: D."""
        return int(self.targets.shape[1]) - 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """One cache, measured on some windows.

    Args:
        spec: Name of the cache.
        perplexity: exp of the mean negative log-likelihood of the scored tokens.
        kl_mean: Mean Kullback-Leibler divergence from the 16-bit cache's distribution, KL(16-bit ‖ cache), in
            nats a token.
        kl_p95: 95th percentile of the same, over tokens.
        same_top: Share of tokens for which both caches find the same token the most probable.
        bits_per_character: Negative log-likelihood of the scored tokens in bits, over their characters.
        effective_bits: 16 × ``held_bytes`` over what the same tokens take at 16 bits a number.
        held_bytes: Memory the cache holds at the end of a window, in bytes, mean over windows; for a float32
            model see :func:`evaluate`.
        windows: Number of windows.
        tokens: Scored tokens, of all windows.
        interval: 95 % interval of the mean difference in negative log-likelihood, cache minus 16-bit, in nats
            a token; see :func:`evaluate`.
        kl_interval: 95 % interval of ``kl_mean``.
        seconds: Time of feeding and comparing the tokens after the prefill, all windows together.
        kl: Divergence of each scored token, ``(windows, D)``.
        nll: Negative log-likelihood of each scored token in nats, ``(windows, D)``.
        nll_exact: The same with the 16-bit cache.
    """

    spec: str
    perplexity: float
    kl_mean: float
    kl_p95: float
    same_top: float
    bits_per_character: float
    effective_bits: float
    held_bytes: int
    windows: int
    tokens: int
    interval: tuple[float, float]
    kl_interval: tuple[float, float]
    seconds: float
    kl: NDArray[np.float64]
    nll: NDArray[np.float64]
    nll_exact: NDArray[np.float64]

    def row(self) -> dict[str, Any]:
        """Return the figures as JSON takes them, without the numbers of each token."""
        return {
            "spec": self.spec,
            "perplexity": self.perplexity,
            "kl_mean": self.kl_mean,
            "kl_p95": self.kl_p95,
            "same_top": self.same_top,
            "bits_per_character": self.bits_per_character,
            "effective_bits": self.effective_bits,
            "bytes": self.held_bytes,
            "windows": self.windows,
            "tokens": self.tokens,
            "interval": list(self.interval),
            "kl_interval": list(self.kl_interval),
            "seconds": self.seconds,
        }


def windows_of(
    tokenizer: Any, text: str, *, prefill: int, decode: int, count: int, source: object = None
) -> list[Window]:
    """Cut windows out of a text: apart from each other, and spread evenly over it.

    The text is tokenised once, without special tokens. It is divided into ``count`` equal parts and a window
    of ``prefill + decode + 1`` tokens taken from the middle of each.

    Args:
        tokenizer: A fast tokenizer of transformers, which knows the characters of each token.
        text: The text.
        prefill: Tokens of a prompt, P.
        decode: Tokens scored after it, D.
        count: Number of windows.
        source: Where the text came from, for messages.

    Returns:
        The windows, in the order of the text.

    Raises:
        InputError: A number is below one, or the text is empty or too short.
    """
    for name, value in (("prefill", prefill), ("decode", decode), ("count", count)):
        if value < 1:
            raise InputError(f"{name} is too small", value=value, expected="at least 1")
    if not text:
        raise InputError("the text is empty", source=source, expected="a text to evaluate on")
    encoded = tokenizer(text, add_special_tokens=False, verbose=False)
    ids = encoded["input_ids"]
    size = prefill + decode + 1
    if len(ids) < count * size:
        raise InputError(
            "the text is too short",
            source=source,
            value=f"{len(ids)} tokens",
            expected=f"at least {count * size} ({count} windows of {prefill} + {decode} + 1)",
        )
    windows = []
    for number in range(count):
        start = ((2 * number + 1) * len(ids) - count * size) // (2 * count)
        part = torch.tensor([ids[start : start + size]], dtype=torch.long)
        before, last = (encoded.token_to_chars(start + i).end for i in (prefill, size - 1))
        windows.append(Window(part[:, :prefill], part[:, prefill:], last - before))
    return windows


def sixteen_bit(config: Any) -> Cache:
    """Return the cache that all others are compared with: transformers' ``DynamicCache``."""
    return DynamicCache(config=config)


def evaluate(
    model: LanguageModel,
    windows: Sequence[Window],
    caches: Mapping[str, Callable[[Any], Cache]],
    *,
    single_steps: bool = False,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
) -> list[Result]:
    """Measure caches on the same windows.

    The prefill is exact for every cache, and made once for all of them where all layers of the model have
    full attention and the cache returns what it is given at its first update. Otherwise each cache has a
    forward pass over the prompt of its own. Then the windows' targets are fed, see :class:`Window`.

    Intervals are of 2000 paired resamples: windows are drawn with replacement, and in each of them blocks of
    16 consecutive tokens (around the end to the beginning), so that few windows still tell something of the
    spread. With both levels an interval is rather too wide than too narrow. [inference]

    What a pass puts out depends a little on how many tokens it carries, so a cache without any loss differs
    from the 16-bit one unless both are fed in the same runs; ``single_steps`` sees to that, slowly. The
    difference is a KL of some 0.001 nats with SmolLM2-135M in bfloat16, and 1e-11 in float32: small losses
    are measured in float32, ``model.model.float()``. What a cache holds exactly counts two bytes a number
    whatever the model's dtype; codes, scales and tables count as they are.

    Args:
        model: The model, used in the dtype it was loaded in.
        windows: Windows with the same number of targets.
        caches: Name of each cache to what makes one from the model's configuration, such as
            :func:`sixteen_bit`.
        single_steps: Feed all tokens one by one, those of the 16-bit cache too.
        seed: Seed of the resampling; the rest is deterministic.
        report: Called with a line of text for each cache in each window.

    Returns:
        A result for each cache, in the order given.

    Raises:
        InputError: There are no windows or no caches, the windows differ in their number of targets, one is
            longer than the model's context, or a cache makes the model put out NaN.
    """
    windows = list(windows)
    _check(model, windows, caches)
    tallies = {spec: _Tally() for spec in caches}
    nll_exact: list[NDArray[np.float64]] = []
    with torch.no_grad():
        for number, window in enumerate(windows, start=1):
            prompt, targets = (ids.to(model.model.device) for ids in (window.prompt, window.targets))
            base = sixteen_bit(model.model.config)
            _forward(model, prompt, base, last_only=True)
            prefill = _states(model, base)
            reference = torch.cat(
                [logits for _, logits in _decode(model, base, targets[:, :-1], single_steps)]
            )
            bytes_16bit = cache_bytes_16bit(base)
            nll_exact.append(compare_logits(reference, reference, targets[0, 1:])[1])
            for spec, make in caches.items():
                cache = _filled(model, make, prefill, prompt)
                start = time.perf_counter()
                scores = [
                    compare_logits(reference[at : at + len(logits)], logits, targets[0, at + 1 :])
                    for at, logits in _decode(model, cache, targets[:, :-1], single_steps)
                ]
                tally = tallies[spec]
                tally.seconds += time.perf_counter() - start
                tally.add(scores)
                tally.held.append(cache_bytes(cache, exact_bytes=2))
                tally.held_16bit.append(bytes_16bit)
                if np.isnan(tally.kl[-1]).any():
                    raise InputError(
                        "the model puts out NaN with this cache", source=spec, value=f"window {number}"
                    )
                if report is not None:
                    report(f"window {number} of {len(windows)}, {spec}: KL {tally.kl[-1].mean():.4g}")
    characters = sum(window.characters for window in windows)
    return [_result(spec, tally, np.stack(nll_exact), characters, seed) for spec, tally in tallies.items()]


def compare_logits(
    reference: Tensor, logits: Tensor, targets: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Compare predicted distributions, in float64.

    Args:
        reference: Logits ``(n, vocabulary)`` to compare with.
        logits: Logits of the same shape.
        targets: Token ids that really come, at least ``(n,)``; the rest is not looked at.

    Returns:
        For each of the n tokens KL(reference ‖ logits) in nats, the negative log-likelihood of the target
        under ``logits`` in nats, and whether the most probable token is the same.
    """
    kl, nll = [], []
    for start in range(0, len(logits), _ROWS):
        rows = slice(start, min(start + _ROWS, len(logits)))
        p, q = (part[rows].double().log_softmax(-1) for part in (reference, logits))
        kl.append(torch.where(p > -math.inf, p.exp() * (p - q), 0.0).sum(-1))
        nll.append(-q.gather(-1, targets[rows, None])[:, 0])
    same = reference.argmax(-1) == logits.argmax(-1)
    return torch.cat(kl).cpu().numpy(), torch.cat(nll).cpu().numpy(), same.cpu().numpy()


def paired_ratio(first: Result, second: Result, *, seed: int = 0) -> tuple[float, float, float]:
    """Return the ratio of two mean divergences and its 95 % interval, resampled as in :func:`evaluate`.

    Args:
        first: A result.
        second: Another on the same windows.
        seed: Seed of the resampling.

    Returns:
        ``first.kl_mean / second.kl_mean``, the lower and the upper end of the interval.

    Raises:
        InputError: The results are not of the same windows, or the second has no divergence at all.
    """
    if first.nll_exact.shape != second.nll_exact.shape or not np.allclose(
        first.nll_exact, second.nll_exact, rtol=0.05, atol=0.05
    ):
        raise InputError(
            "the results are not of the same windows",
            value=f"{first.spec} on {first.kl.shape}, {second.spec} on {second.kl.shape}",
            expected="two results of one evaluation",
        )
    if not second.kl_mean:
        raise InputError("there is no divergence to compare with", source=second.spec)
    means = _resampled_means(np.stack([first.kl, second.kl]), seed)
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may hold none of the second's losses
        low, high = np.quantile(means[0] / means[1], [0.025, 0.975])
    return first.kl_mean / second.kl_mean, float(low), float(high)


@dataclass(eq=False)
class _Tally:
    """Numbers of each token and bytes of each window, as they come in."""

    kl: list[NDArray[np.float64]] = field(default_factory=list)
    nll: list[NDArray[np.float64]] = field(default_factory=list)
    same: list[NDArray[np.bool_]] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    held_16bit: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def add(
        self, scores: Sequence[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]]
    ) -> None:
        """Add the runs of one window."""
        kl, nll, same = zip(*scores, strict=True)
        self.kl.append(np.concatenate(kl))
        self.nll.append(np.concatenate(nll))
        self.same.append(np.concatenate(same))


def _result(spec: str, tally: _Tally, nll_exact: NDArray[np.float64], characters: int, seed: int) -> Result:
    kl, nll = np.stack(tally.kl), np.stack(tally.nll)
    intervals = np.quantile(_resampled_means(np.stack([nll - nll_exact, kl]), seed), [0.025, 0.975], axis=1)
    return Result(
        spec=spec,
        perplexity=float(np.exp(nll.mean())),
        kl_mean=float(kl.mean()),
        kl_p95=float(np.quantile(kl, 0.95)),
        same_top=float(np.mean(tally.same)),
        bits_per_character=float(nll.sum() / math.log(2) / characters),
        effective_bits=EXACT * sum(tally.held) / sum(tally.held_16bit),
        held_bytes=round(float(np.mean(tally.held))),
        windows=len(kl),
        tokens=kl.size,
        interval=(float(intervals[0, 0]), float(intervals[1, 0])),
        kl_interval=(float(intervals[0, 1]), float(intervals[1, 1])),
        seconds=tally.seconds,
        kl=kl,
        nll=nll,
        nll_exact=nll_exact,
    )


def _resampled_means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Return means ``(K, resamples)`` of numbers ``(K, windows, D)``; all K are resampled alike."""
    _, windows, tokens = values.shape
    block = min(_BLOCK, tokens)
    around = np.concatenate([values, values[..., : block - 1]], axis=-1)
    blocks = np.lib.stride_tricks.sliding_window_view(around, block, axis=-1).mean(-1)  # (K, windows, D)
    random = generator(seed, "evaluation", "bootstrap")
    drawn = random.integers(windows, size=(_RESAMPLES, windows, 1))
    starts = random.integers(tokens, size=(_RESAMPLES, windows, -(-tokens // block)))
    means: NDArray[np.float64] = np.stack([each[drawn, starts].mean((1, 2)) for each in blocks])
    return means


def _check(model: LanguageModel, windows: Sequence[Window], caches: Mapping[str, Any]) -> None:
    if not windows or not caches:
        raise InputError(f"there are no {'caches' if windows else 'windows'} to evaluate")
    decode = windows[0].decode
    for window in windows:
        if window.decode != decode:
            raise InputError(
                "windows differ in their number of targets",
                value=window.decode + 1,
                expected=f"{decode + 1}, as in the first",
            )
        prefill = window.prompt.shape[1]
        if prefill + decode > model.context_length:
            raise InputError(
                "prefill and decode are longer than the model's context",
                source=model.name,
                value=f"{prefill} + {decode} tokens",
                expected=f"at most {model.context_length} tokens",
            )


def _forward(model: LanguageModel, ids: Tensor, cache: Cache, *, last_only: bool = False) -> Tensor:
    """Return the logits ``(tokens, vocabulary)`` of a pass over ids ``(1, tokens)``."""
    output = model.model(
        input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1 if last_only else 0
    )
    logits: Tensor = output.logits[0]
    return logits


def _states(model: LanguageModel, cache: Cache) -> list[tuple[Tensor, Tensor]] | None:
    """Return keys and values of each layer, or None where a layer does not keep all of them."""
    kinds, _ = get_layer_types_and_kwargs(model.model.config.get_text_config(decoder=True))
    if set(kinds) != {"full_attention"}:
        return None
    return [(layer.keys, layer.values) for layer in cache.layers]


def _filled(
    model: LanguageModel,
    make: Callable[[Any], Cache],
    states: Sequence[tuple[Tensor, Tensor]] | None,
    prompt: Tensor,
) -> Cache:
    """Return a new cache that has seen the prompt."""
    cache = make(model.model.config)
    if states is not None and not getattr(cache, "needs_prefill", False):
        given = (
            torch.equal(held, state)
            for number, pair in enumerate(states)
            for held, state in zip(cache.update(*pair, number), pair, strict=True)
        )
        if all(given):
            return cache
        cache = make(model.model.config)
    _forward(model, prompt, cache, last_only=True)
    return cache


def _decode(
    model: LanguageModel, cache: Cache, ids: Tensor, single_steps: bool
) -> Iterator[tuple[int, Tensor]]:
    """Feed ids ``(1, D)``; yield where each run begins and its logits ``(run, vocabulary)``."""
    start = 0
    while start < ids.shape[1]:
        run = 1 if single_steps else min(_run_length(cache), _LARGEST_RUN)
        logits = _forward(model, ids[:, start : start + run], cache)
        yield start, logits
        start += len(logits)


def _run_length(cache: Cache) -> int:
    """Return how many tokens one update may carry with the same outcome as one update each."""
    if hasattr(cache, "run_length"):
        return _known(cache.run_length)
    return min(map(_layer_run_length, cache.layers))


def _layer_run_length(layer: Any) -> int:
    if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer):  # not what is derived from them
        return sys.maxsize
    if isinstance(layer, QuantizedLayer):  # all is quantised anew after the update that fills the residual
        return _known(layer.residual_length - (layer.keys.shape[-2] if layer.keys.dim() == 4 else 0))
    return _known(getattr(layer, "run_length", 1))


def _known(run_length: int | None) -> int:
    return sys.maxsize if run_length is None else max(1, int(run_length))
