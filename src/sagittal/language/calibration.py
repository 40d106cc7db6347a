"""What a plan is fitted to: how a model's keys and values spread, and how much it minds their errors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import get_layer_types_and_kwargs

from sagittal.core.errors import InputError, ModelError
from sagittal.core.randomness import derive_seed
from sagittal.language.cache import fingerprint
from sagittal.language.rope import Rope, rope_of
from sagittal.language.sinks import NoSinks, SinkProfile, profile_sinks

__all__ = [
    "Calibration",
    "Moments",
    "calibrate",
    "calibration_text",
    "own_windows",
    "text_windows",
    "tokenizer_sha256",
]

_SAMPLE = 2048
_LOUDEST = 20.0
"""Most that one token's squared gradient counts for, in means: a few must not fit a basis alone."""
_SINK_WINDOWS = 8

_TINY = 1e-300

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Moments:
    """Keys before RoPE, or values, of one layer. H heads of width D; sink tokens are left out.

    Mean and covariance are weighted: a token counts half as any other and half by its squared gradient,
    because an error matters where the model looks [our own].

    Args:
        mean: ``(H, D)``.
        covariance: About the mean, ``(H, D, D)``.
        fisher: Mean squared gradient of the log likelihood of a window's tokens, drawn from the model itself,
            by each channel of each token: the diagonal of the Fisher information, in nats per unit squared,
            ``(H, D)``. An error e costs about ``fisher * e**2 / 2`` nats, summed over what follows.
        sample: States of some tokens in the order of the text, float32, ``(H, n, D)``.
        sink_states: States of the tokens that are predicted sinks, but for the first of a window,
            ``(n, H, D)``.
        sink_gradients: Gradients at them, of the same shape.
    """

    mean: Array
    covariance: Array
    fisher: Array
    sample: Array
    sink_states: Array
    sink_gradients: Array


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was measured on one model with one text.

    Args:
        keys: One for each full-attention layer, before RoPE.
        values: One for each full-attention layer.
        sinks: How the model's sinks are predicted, or why they cannot be.
        reads: The full-attention layer whose values tell the sinks, counted among these layers; None without.
        tokens: Tokens in all windows.
        length: Tokens of a window.
        text_sha256: sha256 of the token numbers of the text's windows.
        own: How many more windows the model wrote itself.
        made_for: What a plan made from this is made for.
    """

    keys: tuple[Moments, ...]
    values: tuple[Moments, ...]
    sinks: SinkProfile | NoSinks
    reads: int | None
    tokens: int
    length: int
    text_sha256: str
    own: int
    made_for: dict[str, Any]


def calibration_text() -> str:
    """Return English prose that comes with every Python: its manual, as ``pydoc`` carries it."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def tokenizer_sha256(tokenizer: Any) -> str:
    """Return a digest of a tokenizer's vocabulary: of its tokens and their numbers."""
    held = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(held.encode("ascii")).hexdigest()


def text_windows(tokenizer: Any, text: str, count: int, length: int) -> list[Tensor]:
    """Cut windows of token numbers, each ``(1, length)``, spread evenly over a text.

    Raises:
        InputError: The text holds fewer than ``count * length`` tokens.
    """
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False, verbose=False)["input_ids"]
    if ids.shape[1] < count * length:
        raise InputError(
            "the text is too short to calibrate on",
            value=f"{ids.shape[1]} tokens",
            expected=f"at least {count * length}, {count} windows of {length}",
        )
    step = (ids.shape[1] - length) // max(count - 1, 1)
    return [ids[:, i * step : i * step + length] for i in range(count)]


def own_windows(model: Any, count: int, length: int, generator: torch.Generator) -> list[Tensor]:
    """Let a model write windows of token numbers, each ``(1, length)``: samples of what it takes for text.

    Each starts with a token drawn evenly from the vocabulary and goes on as the model would, unaltered
    [as LLM-QAT, arXiv 2305.17888, makes training data; that it was meant for fitting a cache is our own].
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (count, 1), generator=generator)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        while ids.shape[1] < length:
            logits = model(ids[:, -1:].to(model.device), past_key_values=cache).logits[:, -1]
            ids = torch.cat([ids, _draw(logits.float().softmax(-1).cpu(), generator)], dim=1)
    return list(ids.split(1))


def _draw(chances: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one of each row of chances ``(n, m)``, as ``(n, 1)``, by one random number a row.

    :func:`torch.multinomial` draws one for each chance, which took a quarter of measuring a window.
    """
    drawn = []
    for row in chances:  # summed in float64, row by row: an unlikely token must not be lost in rounding
        summed = row.cumsum(0, dtype=torch.float64)
        level = torch.rand(1, generator=generator, dtype=torch.float64) * summed[-1]
        drawn.append(torch.searchsorted(summed, level, right=True).clamp_max(len(row) - 1))
    return torch.stack(drawn)


def calibrate(
    model: Any,
    tokenizer: Any,
    *,
    text: str | None = None,
    windows: int = 16,
    length: int = 512,
    own: int = 8,
    report: Callable[[str], None] | None = None,
) -> Calibration:
    """Measure a model on a text: moments, sensitivities and sinks.

    One forward and one backward pass a window, and two more forward passes for each of the first eight.
    Beside the text stands what the model writes itself, see :func:`own_windows`: a plan fitted to a text of
    one kind carries over badly to another kind, and this is of all kinds that the model knows.
    Deterministic for a number of threads: what is drawn comes from a fixed seed.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        text: Text of the kind that will be read; None for :func:`calibration_text`. Never text that judges.
        windows: How many windows.
        length: Tokens of each.
        own: How many windows more the model writes.
        report: Told what is being done.

    Raises:
        InputError: The text is too short.
        ModelError: The model has no full-attention layer.
    """
    decoder = model.config.get_text_config(decoder=True)
    kinds, _ = get_layer_types_and_kwargs(decoder)
    full = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    if not full:
        raise ModelError("the model has no full-attention layer", value=sorted(set(kinds)))
    say = report or (lambda _: None)
    ids = text_windows(tokenizer, calibration_text() if text is None else text, windows, length)
    say("looking for attention sinks")
    sinks: SinkProfile | NoSinks
    try:
        with _frozen(model):
            sinks = profile_sinks(model, ids[:_SINK_WINDOWS])
    except (InputError, ModelError) as error:  # windows too short to judge, or no attention maps
        sinks = NoSinks(str(error))
    if isinstance(sinks, SinkProfile) and sinks.layer not in full:
        sinks = NoSinks(f"layer {sinks.layer}, whose values tell the sinks, is not one of full attention")
    sums = [(_Sums(), _Sums()) for _ in full]
    generator = torch.Generator(device="cpu").manual_seed(derive_seed(0, "calibration"))
    with _frozen(model):
        if own:
            say(f"writing {own} windows of its own")
        every = ids + (own_windows(model, own, length, generator) if own else [])
        for number, window in enumerate(every):
            say(f"measuring sensitivities, window {number + 1} of {len(every)}")
            _measure(model, window, sinks, full, sums, generator, _SAMPLE // len(every))
    found = [(keys.moments(), values.moments()) for keys, values in sums]
    joined = torch.cat(ids)
    return Calibration(
        keys=tuple(keys for keys, _ in found),
        values=tuple(values for _, values in found),
        sinks=sinks,
        reads=full.index(sinks.layer) if isinstance(sinks, SinkProfile) else None,
        tokens=len(every) * length,
        length=length,
        text_sha256=hashlib.sha256(joined.numpy().tobytes()).hexdigest(),
        own=own,
        made_for={**fingerprint(model.config), "tokenizer_sha256": tokenizer_sha256(tokenizer)},
    )


class _Recorder(DynamicCache):  # type: ignore[misc]  # transformers has no types
    """A cache that keeps what each layer is given, with its gradient."""

    def __init__(self) -> None:
        super().__init__()  # without a configuration no layer slides, so all tokens are there
        self.given: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        key_states.retain_grad()
        value_states.retain_grad()
        self.given[layer_idx] = key_states, value_states
        return key_states, value_states


class _Sums:
    """Running sums over tokens of the states of one layer."""

    def __init__(self) -> None:
        self.count = 0
        self.weight: Any = 0.0
        self.total: Any = 0.0
        self.square: Any = 0.0
        self.fisher: Any = 0.0
        self.samples: list[Array] = []
        self.sinks: list[Array] = []
        self.gradients: list[Array] = []

    def add(self, states: Tensor, gradients: Tensor, kept: Tensor, late: Tensor, sample: int) -> None:
        """Add ``(H, T, D)`` states; ``kept`` and ``late`` sinks are bool, ``(T,)``."""
        plain, slope = states[:, ~kept].double(), gradients[:, ~kept].double()
        power = slope.square().sum(2)
        loud = power / power.mean(1, keepdim=True).clamp_min(_TINY)
        weight = (1 + loud.clamp_max(_LOUDEST)) / 2
        self.count += plain.shape[1]
        self.weight = self.weight + weight.sum(1).numpy()
        self.total = self.total + torch.einsum("ht,htd->hd", weight, plain).numpy()
        self.square = self.square + torch.einsum("ht,htd,hte->hde", weight, plain, plain).numpy()
        self.fisher = self.fisher + slope.square().sum(1).numpy()
        self.samples.append(plain[:, :: max(1, plain.shape[1] // max(sample, 1))].float().numpy())
        self.sinks.append(states[:, late].transpose(0, 1).float().numpy())
        self.gradients.append(gradients[:, late].transpose(0, 1).float().numpy())

    def moments(self) -> Moments:
        mean = self.total / self.weight[:, None]
        return Moments(
            mean=mean,
            covariance=self.square / self.weight[:, None, None] - np.einsum("hd,he->hde", mean, mean),
            fisher=self.fisher / self.count,
            sample=np.concatenate(self.samples, axis=1),
            sink_states=np.concatenate(self.sinks),
            sink_gradients=np.concatenate(self.gradients),
        )


def _measure(
    model: Any,
    ids: Tensor,
    sinks: SinkProfile | NoSinks,
    full: list[int],
    sums: list[tuple[_Sums, _Sums]],
    generator: torch.Generator,
    sample: int,
) -> None:
    cache = _Recorder()
    with torch.enable_grad():
        embedded = model.get_input_embeddings()(ids.to(model.device)).detach().requires_grad_(True)
        logits = model(inputs_embeds=embedded, past_key_values=cache).logits[0].float().log_softmax(-1)
        drawn = _draw(logits.detach().cpu().exp(), generator)
        logits.gather(1, drawn.to(logits.device)).sum().backward()
    kept = torch.zeros(ids.shape[1], dtype=torch.bool)
    if isinstance(sinks, SinkProfile):
        kept = sinks.predict(cache.given[sinks.layer][1].detach())[0].cpu()
    late = kept.clone()
    late[0] = False
    kept[0] = True  # the first token of a text is unlike all others in any model
    positions = torch.arange(ids.shape[1])[None]
    rope = rope_of(model.config.get_text_config(decoder=True), cache.given[full[0]][0].shape[-1])
    for layer, (keys, values) in zip(full, sums, strict=True):
        for states, total, turn in (
            (cache.given[layer][0], keys, rope),
            (cache.given[layer][1], values, None),
        ):
            assert states.grad is not None
            total.add(
                _undo(turn, states.detach(), positions),
                _undo(turn, states.grad, positions),
                kept,
                late,
                sample,
            )


def _undo(rope: Rope | None, states: Tensor, positions: Tensor) -> Tensor:
    """Take RoPE back from states of one sequence, or from gradients at them: it is orthogonal."""
    plain = states.float().cpu()
    return (plain if rope is None else rope.undo(plain, positions))[0]


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Let gradients flow through a model without computing those of its weights, and without dropout."""
    before = [(weight, weight.requires_grad) for weight in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for weight, _ in before:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight, needed in before:
            weight.requires_grad_(needed)
        for module, training in modes:
            module.training = training
