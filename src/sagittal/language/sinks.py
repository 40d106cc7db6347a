"""Attention sinks: which tokens of a text are one, told from what a key-value cache is given.

A sink is a token to which heads give attention whatever it says. Where a sink stands, the residual stream
carries a massive activation: one channel hundreds of times above the rest (Sun et al., Massive activations in
large language models, 2024). KVSink (arXiv 2508.04257) predicts sinks from such stable outliers at the layer
where they first appear, and keeps their keys and values exact. Its formula was not to be had: what is taken
from it is the idea, the definition of a sink, the stable channels and the fixed emergence layer; the figures
and the rules below are our own inference, and say so.

Everything is a pure function of a model and of tokens. The cache never sees the residual stream, so a profile
also holds a read-out of the score from the values of the first layer that reads the massive activation:
values know no position, and after the norm such a token is nearly one constant vector (our inference).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from sagittal.core.errors import FormatError, InputError, ModelError

__all__ = [
    "GAP",
    "MIN_LATER",
    "NoSinks",
    "SinkProfile",
    "attention_sinks",
    "first_n",
    "judged",
    "oracle",
    "precision",
    "profile_sinks",
    "random_k",
    "recall",
]

GAP = 16
"""Queries right after a token that do not count: what they give is local attention, not a sink's."""
MIN_LATER = 64
"""Queries beyond the gap that a token needs before it can be called a sink, or no sink."""

_FORMAT = "sagittal sink profile 1"
_READOUT_LAYERS = 3
_RIDGE = 1e-4


@dataclass(frozen=True)
class NoSinks:
    """What :func:`profile_sinks` returns when sinks cannot be predicted; keep the first tokens instead.

    Args:
        reason: Why, in one clause.
    """

    reason: str


@dataclass(frozen=True, kw_only=True)
class SinkProfile:
    """How the sinks of one model are told from its residual stream, and from the values of one layer.

    Scores of both kinds are in units of the residual stream: the size of the massive activation, and what the
    values let one guess of it.

    Args:
        emergence: Decoder layer, from 0, whose output first holds the massive activations.
        last: Last layer whose output still holds them in nine of ten sinks, without a break.
        channels: Channels of the residual stream that carry them, the most frequent first.
        signs: 1 or -1 a channel.
        hidden_threshold: Score of the residual stream above which a token is massive.
        hidden_gap: Smallest score of a sink divided by the 99th percentile of the other tokens.
        hidden_overlap: Largest score of another token divided by the smallest of a sink; below 1 the two do
            not overlap.
        layer: Decoder layer, from 0, whose values are read.
        direction: Read-out of the logarithm of the score from values of unit length, one number for each of
            H * D channels, heads first.
        bias: Added to the read-out.
        threshold: Read score above which a token is predicted to be a sink.
        gap: Smallest read score of a massive token divided by the largest of the others, while calibrating;
            near 1 where massive activations come in all sizes, as in SmolLM2-135M.
        sinks: Sinks in the calibration text.
        massive: Tokens above ``hidden_threshold`` among those that could be judged.
        tokens: Tokens of the calibration text that could be judged.
        heads: H, heads of keys and values.
        width: D, channels of a head.
    """

    emergence: int
    last: int
    channels: tuple[int, ...]
    signs: tuple[int, ...]
    hidden_threshold: float
    hidden_gap: float
    hidden_overlap: float
    layer: int
    direction: tuple[float, ...]
    bias: float
    threshold: float
    gap: float
    sinks: int
    massive: int
    tokens: int
    heads: int
    width: int

    def scores_from_hidden(self, hidden: Tensor) -> Tensor:
        """Return the score of the paper: the largest signed activation in the stable channels.

        Args:
            hidden: Output of decoder layer ``emergence``, ``(B, T, hidden size)``.

        Returns:
            float32, ``(B, T)``.

        Raises:
            InputError: ``hidden`` has not three axes, or not these channels.
        """
        if hidden.ndim != 3 or hidden.shape[-1] <= max(self.channels):
            raise InputError(
                "hidden states do not fit the profile",
                value=tuple(hidden.shape),
                expected=f"(B, T, more than {max(self.channels)})",
            )
        return _hidden_scores(hidden, self.channels, self.signs)

    def scores(self, values: Tensor, *, attention_mask: Tensor | None = None) -> Tensor:
        """Return the score as the values tell it.

        Args:
            values: Values of decoder layer ``layer``, ``(B, H, T, D)``.
            attention_mask: ``(B, T)``, zero at padding, whose score becomes -inf. A padding token has values
                like any other, and the first of a left-padded row looks like a sink: without the mask it is
                taken for one.

        Returns:
            float32, ``(B, T)``; zero where all values of a token are zero.

        Raises:
            InputError: Values or mask are not of this shape.
        """
        if values.ndim != 4 or (values.shape[1], values.shape[3]) != (self.heads, self.width):
            raise InputError(
                "values do not fit the profile",
                value=tuple(values.shape),
                expected=f"(B, {self.heads}, T, {self.width})",
            )
        weights = torch.tensor(self.direction, device=values.device).view(1, self.heads, 1, self.width)
        states = values.float()
        length = states.square().sum(dim=(1, 3)).sqrt()
        read = (states * weights).sum(dim=(1, 3)) / length.clamp(min=torch.finfo(torch.float32).tiny)
        found = torch.where(length > 0, (read + self.bias).exp(), 0.0)
        if attention_mask is None:
            return found
        if attention_mask.shape != found.shape:
            raise InputError(
                "the mask is not one of these tokens",
                value=tuple(attention_mask.shape),
                expected=str(tuple(found.shape)),
            )
        return found.masked_fill(attention_mask == 0, -math.inf)

    def predict(
        self, values: Tensor, *, k_max: int | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Return which tokens are predicted to be sinks.

        Args:
            values: As for :meth:`scores`.
            k_max: At most so many in each row, those of the highest score; None for no bound.
            attention_mask: As for :meth:`scores`.

        Returns:
            bool, ``(B, T)``.

        Raises:
            InputError: Values or mask are not of the right shape, or ``k_max`` is negative.
        """
        found = self.scores(values, attention_mask=attention_mask)
        chosen = found > self.threshold
        if k_max is None or k_max >= found.shape[-1]:
            return chosen
        if k_max < 0:
            raise InputError("k_max is no number of tokens", value=k_max, expected="at least 0")
        top = torch.zeros_like(chosen)
        top.scatter_(-1, found.topk(k_max, dim=-1).indices, torch.ones_like(chosen[:, :k_max]))
        return chosen & top

    def to_json(self) -> dict[str, Any]:
        """Return the profile in plain numbers and lists."""
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {"format": _FORMAT, **plain}

    @classmethod
    def from_json(cls, data: Any) -> SinkProfile:
        """Return the profile that :meth:`to_json` wrote.

        Raises:
            FormatError: Something is missing, too much, of the wrong kind, not finite, or contradictory.
        """
        if not isinstance(data, Mapping) or data.get("format") != _FORMAT:
            found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise FormatError("this is no sink profile", value=found, expected=_FORMAT)
        names = {field.name: str(field.type) for field in fields(cls)}
        if odd := sorted(set(names) ^ (set(data) - {"format"})):
            raise FormatError("the fields of a sink profile are not these", value=odd[0])
        profile = cls(**{name: _plain(name, kind, data[name]) for name, kind in names.items()})
        for name, good in profile._sound().items():
            if not good:
                raise FormatError(f"{name} of a sink profile is impossible", value=data[name])
        return profile

    def _sound(self) -> dict[str, bool]:
        return {
            "emergence": 0 <= self.emergence < self.layer,
            "last": self.last >= self.emergence,
            "channels": len(self.channels) > 0 and min(self.channels) >= 0,
            "signs": len(self.signs) == len(self.channels) and set(self.signs) <= {1, -1},
            "hidden_threshold": self.hidden_threshold > 0,
            "threshold": self.threshold > 0,
            "heads": self.heads > 0,
            "width": self.width > 0,
            "direction": len(self.direction) == self.heads * self.width,
        }


def profile_sinks(
    model: Any,
    sequences: Sequence[Tensor],
    *,
    tau_abs: float = 100.0,
    tau_rel: float = 100.0,
    max_channels: int = 4,
) -> SinkProfile | NoSinks:
    """Find how a model's sinks can be predicted.

    Runs each sequence twice: once with attention maps (see :func:`attention_sinks`), for the sinks and for
    the outliers of every layer, and once for the values of a few layers. Deterministic.

    An outlier is an activation beyond ``tau_abs`` and beyond ``tau_rel`` times the median of its layer. The
    literature has 1000 for the second figure; the late sinks of SmolLM2-135M reach 190 to 770 at a median of
    0.9 to 1.6 and need 100, while most of its tokens and of Qwen2.5-Coder-0.5B's stay below 70.
    The emergence layer is the first in which nine of ten sinks hold an outlier and from which they keep it
    for an eighth of the layers; the late ones of SmolLM2 live for 7 of 30, so a third would be too long.
    The threshold is the geometric mean of the smallest score of a sink and the 99th percentile of the others:
    not their largest, because how much attention a token draws grows smoothly with its activation, so the
    two overlap at the border, and a sink that is lost costs more than a token that is kept.
    The read-out is a ridge regression of the logarithm of the score, cut off below at that percentile, on
    values of unit length. Of the first three layers after the emergence the one that errs least is taken.
    All of this paragraph is our inference.

    Args:
        model: A causal language model of transformers with decoder layers; its attention implementation is
            switched for the time of the call.
        sequences: Token numbers, each ``(1, T)`` with more than ``GAP + MIN_LATER`` tokens; 8 to 32 sequences
            of 512 or more, of the kind of text and with the start that is used later.
        tau_abs: In units of the residual stream.
        tau_rel: In medians of a layer.
        max_channels: Most stable channels to keep.

    Returns:
        The profile, or why there is none.

    Raises:
        InputError: There is no sequence, or one of the wrong shape or too short.
        ModelError: The model has no decoder layers that can be looked into, or gives no attention maps.
    """
    if not sequences:
        raise InputError("there is no sequence to calibrate on")
    shares, truth = [], []
    counted = torch.zeros(len(_layers(model)))
    for ids in sequences:
        outliers: list[Tensor] = []
        truth.append(_look(model, ids, _outliers_into(outliers, tau_abs, tau_rel)))
        shares.append(torch.stack(outliers)[:, truth[-1]])
    sinks = sum(int(mask.sum()) for mask in truth)
    if not sinks:
        return NoSinks("no token of the calibration text is an attention sink")
    counted = torch.cat(shares, dim=1).float().mean(dim=1)
    span = max(2, len(counted) // 8)
    holds = counted >= 0.9
    starts = [i for i in range(len(holds) - span + 1) if bool(holds[i : i + span].all())]
    if not starts or starts[0] + 1 >= len(counted):
        return NoSinks(
            f"no massive activations at the {sinks} attention sinks: at most {float(counted.max()):.0%} of "
            f"them hold |h| above {tau_abs:g} and {tau_rel:g} medians in a layer, or not for {span} layers"
        )
    emergence = starts[0]
    last = next((i - 1 for i in range(emergence, len(holds)) if not holds[i]), len(holds) - 1)
    readable = range(emergence + 1, min(emergence + 1 + _READOUT_LAYERS, len(counted)))
    hidden, values = _states(model, sequences, emergence, readable)
    where = torch.cat(truth)
    known = torch.cat([judged(len(mask)) for mask in truth])
    channels, signs = _stable_channels(hidden[where], tau_abs, tau_rel * _median(hidden), max_channels)
    if not channels:
        return NoSinks(f"the outliers of layer {emergence} lie in no channel that half of the sinks share")
    score = _hidden_scores(hidden[None], channels, signs)[0]
    least = float(score[where].min())
    others = score[known & ~where]
    edge = max(float(others.quantile(0.99)), _median(hidden), torch.finfo(torch.float32).tiny)
    if least <= edge:
        return NoSinks(f"the outliers of layer {emergence} do not tell sinks from other tokens")
    hidden_threshold = math.sqrt(least * edge)
    massive = score > hidden_threshold
    target = (score.clamp(min=edge)).log()
    fits = {layer: _fit(states, target, massive, where) for layer, states in values.items()}
    layer = min(fits, key=lambda number: fits[number].errors)  # the first of equals
    fit = fits[layer]
    if fit.lost > 0.05:
        return NoSinks(f"the values of layers {[*fits]} do not tell sinks from other tokens")
    return SinkProfile(
        emergence=emergence,
        last=last,
        channels=channels,
        signs=signs,
        hidden_threshold=hidden_threshold,
        hidden_gap=least / edge,
        hidden_overlap=float(others.max()) / least,
        layer=layer,
        direction=tuple(fit.direction),
        bias=fit.bias,
        threshold=math.exp(fit.threshold),
        gap=math.exp(fit.gap),
        sinks=sinks,
        massive=int((massive & known).sum()),
        tokens=int(known.sum()),
        heads=values[layer].shape[1],
        width=values[layer].shape[2],
    )


def attention_sinks(
    model: Any, ids: Tensor, *, ratio: float = 10.0, share: float = 0.95, layers: int = 3
) -> Tensor:
    """Return which tokens of a text are sinks, as the attention maps tell.

    Token ``i`` is a sink when in at least ``layers`` layers the attention it gets, as a mean over the heads,
    exceeds ``ratio`` times the uniform ``1 / (t + 1)`` at a share of ``share`` or more of the queries
    ``t > i + GAP``. This is KVSink's definition, p >> 1/t for all t, with ">>" read as ten times and "all" as
    95 %, with the heads averaged, and in three layers instead of any: a union over single heads and layers
    also has delimiters near the end of a text, at which one head or one layer happens to look for as long as
    the text lasts. [The figures and the mean are our inference, taken on the manual of Python.]

    The other definition in use, a mean received from later queries above 0.3 (Gu et al., When attention sink
    emerges in language models, 2024), sees the first token alone: sinks share what there is, so that a dozen
    of them get 0.02 to 0.3 each in SmolLM2-135M, 17 to 160 times what is uniform.

    Layers are looked at one after another, so one map is held at a time.

    Args:
        model: A causal language model of transformers; its attention implementation is switched to eager for
            the time of the call, and back.
        ids: Token numbers, ``(1, T)``.
        ratio: In uniform shares.
        share: Of later queries.
        layers: In how many layers.

    Returns:
        bool, ``(T,)``; False for the last tokens, which :func:`judged` leaves out.

    Raises:
        InputError: The tokens are not ``(1, T)``, or too few to judge any.
        ModelError: The model has no decoder layers that can be looked into, or gives no attention maps.
    """
    return _look(model, ids, None, ratio=ratio, share=share, least=layers)


def judged(tokens: int) -> Tensor:
    """Return which of so many tokens have enough later ones for :func:`attention_sinks`; bool, ``(T,)``."""
    return torch.arange(tokens) < tokens - GAP - MIN_LATER


def oracle(model: Any, ids: Tensor) -> Tensor:
    """Return the sinks of each row by its attention maps, ``(B, T)``; see :func:`attention_sinks`."""
    return torch.stack([attention_sinks(model, row[None]) for row in ids])


def first_n(batch: int, tokens: int, n: int) -> Tensor:
    """Return a mask ``(B, T)`` of the first ``n`` tokens of each row."""
    return (torch.arange(tokens) < n).repeat(batch, 1)


def random_k(batch: int, tokens: int, k: int, *, seed: int) -> Tensor:
    """Return a mask ``(B, T)`` of ``k`` tokens of each row, drawn without order or preference."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(batch)])
    return order < k


def recall(predicted: Tensor, truth: Tensor) -> float:
    """Return the share of true sinks that are predicted; NaN when there is none."""
    return _share(predicted & truth, truth)


def precision(predicted: Tensor, truth: Tensor) -> float:
    """Return the share of predicted sinks that are true; NaN when none is predicted.

    Tokens that are not :func:`judged` should be left out of both.
    """
    return _share(predicted & truth, predicted)


def _share(part: Tensor, whole: Tensor) -> float:
    total = int(whole.sum())
    return int(part.sum()) / total if total else math.nan


def _plain(name: str, kind: str, value: Any) -> Any:
    """Take a JSON value for a field of this type, or refuse it."""
    if kind.startswith("tuple"):
        if not isinstance(value, list):
            raise FormatError(f"{name} of a sink profile is no list", value=type(value).__name__)
        return tuple(_plain(name, kind[6:].partition(",")[0], item) for item in value)
    right = (int,) if kind == "int" else (int, float)
    if isinstance(value, bool) or not isinstance(value, right) or not math.isfinite(value):
        raise FormatError(f"{name} of a sink profile is no finite {kind}", value=repr(value))
    return value if kind == "int" else float(value)


def _layers(model: Any) -> Any:
    layers = getattr(model.get_decoder(), "layers", None) if hasattr(model, "get_decoder") else None
    if layers is None or not len(layers) or not all(hasattr(layer, "self_attn") for layer in layers):
        raise ModelError(
            "the model cannot be looked into",
            value=type(model).__name__,
            expected="a decoder with layers, each with self_attn",
        )
    return layers


@contextmanager
def _hooked(hooks: Sequence[tuple[Any, Callable[..., None]]]) -> Iterator[None]:
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _output(output: Any) -> Tensor:
    """Return what a decoder layer hands on, in whichever way this version of transformers hands it."""
    found = output[0] if isinstance(output, tuple) else output
    assert isinstance(found, Tensor)
    return found


def _outliers_into(found: list[Tensor], tau_abs: float, tau_rel: float) -> Callable[..., None]:
    def hook(module: Any, given: Any, output: Any) -> None:
        size = _output(output)[0].abs().float()
        found.append(size.amax(-1) > max(tau_abs, tau_rel * _median(size)))

    return hook


def _median(states: Tensor) -> float:
    return float(states.abs().median())


def _look(
    model: Any,
    ids: Tensor,
    hook: Callable[..., None] | None,
    *,
    ratio: float = 10.0,
    share: float = 0.95,
    least: int = 3,
) -> Tensor:
    """Run a text with attention maps and a hook on each layer; return its sinks."""
    layers = _layers(model)
    if ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] <= GAP + MIN_LATER:
        raise InputError(
            "sinks cannot be looked for in these tokens",
            value=tuple(ids.shape),
            expected=f"(1, more than {GAP + MIN_LATER})",
        )
    tokens = ids.shape[1]
    place = torch.arange(tokens, device=ids.device)
    later = place[:, None] > place[None, :] + GAP
    many = later.sum(0)
    uniform = ratio / (place[:, None] + 1)
    found = torch.zeros(tokens, dtype=torch.int32, device=ids.device)  # layers in which it is a sink

    def judge(module: Any, given: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if not isinstance(weights, Tensor) or weights.ndim != 4:
            raise ModelError("the model gives no attention maps", value=type(module).__name__)
        high = (weights[0].mean(0, dtype=torch.float32) > uniform) & later
        found.add_((high.sum(0) >= share * many) & (many >= MIN_LATER))

    hooks = [(layer.self_attn, judge) for layer in layers]
    if hook is not None:
        hooks += [(layer, hook) for layer in layers]
    with _eager(model), _hooked(hooks), torch.inference_mode():
        model(ids, use_cache=False, logits_to_keep=1)
    return (found >= least).cpu()


def _states(
    model: Any, sequences: Sequence[Tensor], emergence: int, wanted: range
) -> tuple[Tensor, dict[int, Tensor]]:
    """Return the output of a layer, ``(N, hidden)``, and values of others, each ``(N, H, D)``, float32."""
    hidden: list[Tensor] = []
    values: dict[int, list[Tensor]] = {layer: [] for layer in wanted}

    def keep(module: Any, given: Any, output: Any) -> None:
        hidden.append(_output(output)[0].float().cpu())

    with _hooked([(_layers(model)[emergence], keep)]), torch.inference_mode():
        for ids in sequences:
            cache = DynamicCache()  # without a configuration no layer slides, so all tokens are there
            model(ids, past_key_values=cache, logits_to_keep=1)
            for layer, kept in values.items():
                kept.append(cache.layers[layer].values[0].transpose(0, 1).float().cpu())
    return torch.cat(hidden), {layer: torch.cat(kept) for layer, kept in values.items()}


def _stable_channels(
    states: Tensor, tau_abs: float, tau_rel: float, most: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return channels, with their signs, that hold an outlier of one sign in at least half of the sinks."""
    bar = max(tau_abs, tau_rel)
    up, down = (states > bar).float().mean(0), (states < -bar).float().mean(0)
    share = torch.maximum(up, down)
    best = [int(c) for c in share.argsort(descending=True, stable=True)[:most] if share[c] >= 0.5]
    return tuple(best), tuple(1 if up[c] >= down[c] else -1 for c in best)


def _hidden_scores(hidden: Tensor, channels: Sequence[int], signs: Sequence[int]) -> Tensor:
    sign = torch.tensor(signs, dtype=torch.float32, device=hidden.device)
    return (hidden[..., list(channels)].float() * sign).amax(-1)


@dataclass(frozen=True)
class _Fit:
    """A read-out of a logarithm, with the cut between massive tokens and others and the gap there.

    ``errors`` counts tokens on the wrong side of the cut, ``lost`` is the share of the sinks below it.
    """

    direction: list[float]
    bias: float
    threshold: float
    gap: float
    errors: int
    lost: float


def _fit(values: Tensor, target: Tensor, massive: Tensor, sinks: Tensor) -> _Fit:
    flat = torch.nn.functional.normalize(values.flatten(1).double(), dim=-1)
    mean, middle = flat.mean(0), target.double().mean()
    centred = flat - mean
    square = centred.T @ centred
    square += _RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    direction = torch.linalg.solve(square, centred.T @ (target.double() - middle))
    bias = middle - mean @ direction
    read = flat @ direction + bias
    low, high = float(read[massive].min()), float(read[~massive].max())
    cut = (low + high) / 2
    errors, lost = int(((read > cut) != massive).sum()), float((read[sinks] <= cut).double().mean())
    return _Fit(direction.tolist(), float(bias), cut, low - high, errors, lost)
