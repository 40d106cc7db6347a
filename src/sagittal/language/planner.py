"""Chooses how a cache spends its bytes, by what each byte is worth to one model.

The measure is one for the whole model: nats of divergence. To second order an error e in a channel costs
``fisher * e**2 / 2`` nats (see :class:`~sagittal.language.calibration.Moments`), whatever layer, head, key or
value it is in; so bits are worth comparing everywhere, and go where a bit saves most.

The coding is a transform coding. States, keys before RoPE, have their mean taken off, which removes a key
bias exactly; channels are weighted by the root of their sensitivity; for keys a principal-component basis of
each head makes components that do not depend on each other, values are held as channels; each component is
held in whole bits by a Lloyd-Max codebook; a gain for each token and head, fitted by least squares, takes up
what the fixed scales miss. Bits are dealt one at a
time to the component in which the next one saves most: reverse water-filling (Cover and Thomas, Elements of
Information Theory, 10.3) in whole bits. [The combination is our own; its parts are KVQuant's keys before RoPE
and sensitivities (arXiv 2401.18079), TurboQuant's codebooks (arXiv 2504.19874), KVSink's tokens (arXiv
2508.04257).]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sagittal.core.errors import InputError
from sagittal.language.calibration import Calibration, Moments, calibrate
from sagittal.language.codec import Codec
from sagittal.language.plan import EXACT, CachePlan, Coding, Sinks
from sagittal.language.quantise import gaussian_distortion
from sagittal.language.sinks import NoSinks, SinkProfile

__all__ = ["fit_plan", "plan_cache", "rate_bound", "water_fill"]

_MOST_BITS = 8
_RIDGE = 0.02
"""Share of a head's mean sensitivity that is added to each channel's: what was measured on few tokens."""
_GAIN_BITS = 8
_WINDOWS = ((64, 16), (48, 16), (32, 16), (16, 16), (0, 16), (0, 8))
"""Residual and page, the widest first."""
_WINDOW_SHARE = 0.1
"""Of the budget, what exact recent tokens may take at the context asked for, just before a page is written.

Chosen on text of the manual of Python, 3000 tokens of prefill: with SmolLM2-135M 32 to 64 exact tokens do
equally well at the same bits in all, 16 are worse; with Qwen2.5-Coder-0.5B it makes no difference."""

Array = npt.NDArray[Any]


def plan_cache(
    model: Any,
    tokenizer: Any,
    budget: float,
    context: int,
    *,
    text: str | None = None,
    report: Callable[[str], None] | None = None,
) -> CachePlan:
    """Measure a model and plan its cache; deterministic.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        budget: Bits for each number of the cache when it holds ``context`` tokens, with everything counted:
            codes, gains, exact tokens, tables.
        context: Tokens.
        text: Text of the kind that will be read, to measure on; None for the manual of Python. Never text
            that the plan is judged by.
        report: Told what is being done.

    Returns:
        The plan; ``plan.reasons`` says what was measured and why it is so.

    Raises:
        InputError: The budget is below what the parts that are not codes cost, or above 16; the context is
            beyond the model's positions; or the text is too short.
        ModelError: The model has no full-attention layer.
    """
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if context < 1 or (isinstance(limit, int) and context > limit):
        raise InputError("no plan for this context", value=context, expected=f"1 to {limit} tokens")
    if not 0 < budget <= EXACT:
        raise InputError("no plan for this budget", value=budget, expected="more than 0, at most 16 bits")
    return fit_plan(calibrate(model, tokenizer, text=text, report=report), budget, context)


def fit_plan(
    calibration: Calibration,
    budget: float,
    context: int,
    *,
    mix_keys: bool = True,
    mix_values: bool = False,
    gain: bool = True,
    sensitivity: bool = True,
    sinks: bool = True,
    window: tuple[int, int] | None = None,
) -> CachePlan:
    """Plan a cache from what was measured; arguments as for :func:`plan_cache`.

    The switches change one part of the method, to see what it is worth: no basis for keys, a basis for values
    as well, no gains, no sensitivities (all channels alike), no predicted sinks. ``window`` is the residual
    and the page, else the widest whose exact tokens take at most a tenth of the budget.

    Values have no basis: on text of another kind than the calibration's it gains nothing with SmolLM2-135M,
    loses with Qwen2.5-Coder-0.5B, and costs tables and time to read (docs/language.md has the figures).
    """
    heads, width = calibration.keys[0].mean.shape
    layers = len(calibration.keys)
    residual, page = window or _window(budget, context)
    bases = [
        _Basis.of(moments, mixed=mixed, sensitivity=sensitivity)
        for moments, mixed in _sides(calibration, mix_keys, mix_values)
    ]
    numbers = 2 * layers * heads * width
    # just before a page is written; codes and gains are only of the tokens before these
    recent = min(residual + page + 1, context)
    coded = max(context - recent, 1) / context
    fixed, parts = _fixed_bits(bases, numbers, context, recent, coded if gain else 0.0)
    kept = _first_guess(calibration, context, sinks)
    for _ in range(8):  # what sinks cost and what a bit is worth depend on each other
        room = budget - fixed - kept.bits(numbers, context, heads * width)
        if room <= 0:
            least = fixed + kept.bits(numbers, context, heads * width) + 1 / context
            raise InputError(
                "the budget is below what sinks, recent tokens, gains and tables cost",
                value=f"{budget:g} bits at {context} tokens",
                expected=f"at least {math.ceil(100 * least) / 100:.2f} bits",
            )
        dealt, price = _deal(bases, room / coded, numbers, coded * context)
        after = _worth_keeping(calibration, bases, dealt, price, context, gain) if sinks else kept
        if after.layers == kept.layers:
            break
        kept = _Kept(tuple(sorted(set(kept.layers) & set(after.layers))), kept.share)  # shrinks: so it ends
    codings = [basis.coding(bits, gain) for basis, bits in zip(bases, dealt, strict=True)]
    keys = tuple(replace(coding, before_rope=True) for coding in codings[:layers])
    plan = CachePlan(
        keys=keys,
        values=tuple(codings[layers:]),
        sinks=_sinks(calibration, kept, sinks),
        residual=residual,
        page=page,
        made_for=calibration.made_for,
    )
    reasons = _reasons(calibration, plan, bases, dealt, budget, context, parts, kept, price, coded)
    reasons |= {
        "sinks": _why_sinks(calibration, kept, sinks),
        "window": _why_window(plan, budget, context, chosen=window is None),
        "coding": _why_coding(mix_keys, mix_values, gain, sensitivity),
        "reading": _what_reading_costs(dealt[:layers], dealt[layers:], mix_keys, mix_values),
    }
    return replace(plan, reasons=reasons)


def water_fill(variances: Array, bits: int, most: int = _MOST_BITS) -> tuple[Array, float]:
    """Deal whole bits to components, one at a time, each where it saves most squared error.

    Args:
        variances: Of each component, not negative, any shape, in units that may be compared.
        bits: How many to deal.
        most: Most that one component gets.

    Returns:
        Bits of each component, uint8, of the shape of ``variances``; and what the last bit saved.

    A bit saves less than the one before it in the same component, so that the greedy choice is the best one.
    """
    flat = variances.reshape(-1)
    steps = np.array([gaussian_distortion(b) - gaussian_distortion(b + 1) for b in range(most)])
    saved = flat[:, None] * steps
    bits = min(bits, saved.size)
    if bits <= 0:
        return np.zeros(variances.shape, np.uint8), float(saved.max(initial=0.0))
    last = np.partition(saved.reshape(-1), saved.size - bits)[saved.size - bits]
    dealt = (saved > last).sum(1)
    for index in np.flatnonzero((saved == last).any(1))[: bits - int(dealt.sum())]:  # ties: the first ones
        dealt[index] += 1
    return dealt.astype(np.uint8).reshape(variances.shape), float(last)


def rate_bound(calibration: Calibration, bits: float) -> tuple[float, float]:
    """Return how few nats codes of so many bits a number can cost: the bound, and this planner's codes.

    The bound is reverse water-filling of independent normal components, over all heads of all layers, on the
    covariances weighted by sensitivity (Cover and Thomas, 10.3). The second figure is what whole bits and
    Lloyd-Max codebooks make of this planner's components, values as channels. Codes alone: no gains, no
    tables, nothing exact.

    Args:
        calibration: What was measured.
        bits: A number of the cache.
    """

    def powers(keys: bool, values: bool) -> Array:
        bases = [
            _Basis.of(moments, mixed=mixed, sensitivity=True)
            for moments, mixed in _sides(calibration, keys, values)
        ]
        return np.concatenate([basis.variances.ravel() for basis in bases])

    variances = powers(True, True).clip(1e-300)
    low, high = math.log(variances.min()) - 2 * math.log(2) * bits, math.log(variances.max())
    for _ in range(100):
        level = math.exp((low + high) / 2)
        rate = np.maximum(0, np.log2(variances / level) / 2).mean()
        low, high = ((low + high) / 2, high) if rate > bits else (low, (low + high) / 2)
    least = float(np.minimum(variances, level).sum())
    variances = powers(True, False)
    dealt, _ = water_fill(variances, math.floor(bits * variances.size))
    table = np.array([gaussian_distortion(b) for b in range(_MOST_BITS + 1)])
    return least, float((variances * table[dealt]).sum())


@dataclass(frozen=True, eq=False)
class _Basis:
    """Components of one layer's keys or values: all D of each head, the strongest first."""

    mean: Array  # (H, D)
    weight: Array  # (H, D)
    columns: Array | None  # (H, D, D), orthonormal
    variances: Array  # (H, D), in nats: half of fisher times square
    spread: Array  # (H, D)

    @classmethod
    def of(cls, moments: Moments, *, mixed: bool, sensitivity: bool) -> _Basis:
        fisher = moments.fisher if sensitivity else np.full_like(moments.fisher, moments.fisher.mean())
        fisher = fisher + _RIDGE * fisher.mean(1, keepdims=True) + 1e-30
        # the scale of a weight is free: near 1, it keeps float16 tables in range
        scale = fisher.mean()
        weight = np.sqrt(fisher / scale).astype(np.float16).astype(np.float64)
        weighted = moments.covariance * weight[:, :, None] * weight[:, None, :]
        if mixed:
            found, columns = np.linalg.eigh(weighted)
            power, columns = found[:, ::-1].clip(0), columns[:, :, ::-1]
        else:
            power, columns = np.einsum("hdd->hd", weighted).clip(0), None
        return cls(moments.mean, weight, columns, scale * power / 2, np.sqrt(power))

    def table_bits(self, bits: Array) -> int:
        """Bits that the tables of a coding take."""
        heads, width = self.mean.shape
        live = int((bits > 0).sum(1).max()) if self.columns is not None else width
        basis = 0 if self.columns is None else heads * live * (8 * width + 16)
        return int(heads * width * (32 + 16) + heads * live * 16 + basis)

    def coding(self, bits: Array, gain: bool) -> Coding:
        live = int((bits > 0).sum(1).max()) if self.columns is not None else bits.shape[1]
        bits = bits[:, :live].copy()
        basis, scale = (None, None) if self.columns is None else _whole(self.columns[:, :, :live])
        return Coding(
            bits=bits,
            scale="static",
            levels="gaussian",
            gain=gain,
            mean=self.mean.astype(np.float32),
            weight=self.weight.astype(np.float16),
            rotation="none" if basis is None else "basis",
            basis=basis,
            basis_scale=scale,
            spread=np.maximum(self.spread[:, :live], 2e-7).astype(np.float16),
        )


@dataclass(frozen=True)
class _Kept:
    """Layers that keep late sinks, and the share of tokens that are late sinks."""

    layers: tuple[int, ...]
    share: float

    def bits(self, numbers: int, context: int, row: int) -> float:
        """Bits a number that late sinks cost in all."""
        exact = len(self.layers) * self.share * context * 2 * (16 * row + 32)
        return exact / (numbers * context)


def _sides(calibration: Calibration, keys: bool, values: bool) -> Iterable[tuple[Moments, bool]]:
    yield from ((moments, keys) for moments in calibration.keys)
    yield from ((moments, values) for moments in calibration.values)


def _window(budget: float, context: int) -> tuple[int, int]:
    for residual, page in _WINDOWS:
        if EXACT * (residual + page) / context <= _WINDOW_SHARE * budget:
            return residual, page
    return _WINDOWS[-1]


def _fixed_bits(
    bases: list[_Basis], numbers: int, context: int, recent: int, with_gains: float
) -> tuple[float, dict[str, float]]:
    """Return bits a number, at the context, of all that is no code and no late sink; at most, for tables.

    ``recent`` tokens are exact, and a share ``with_gains`` of all has gains.
    """
    held = numbers * context
    heads, _ = bases[0].mean.shape
    parts = {
        "recent tokens": EXACT * recent / context,
        "first tokens": _FIRST * (EXACT * numbers + 32 * len(bases)) / held,
        "gains": _GAIN_BITS * heads * len(bases) / numbers * with_gains,
        "tables": sum(basis.table_bits(np.ones(basis.mean.shape)) for basis in bases) / held,
        "padding and marks": 8 / numbers,
    }
    return sum(parts.values()), parts


_FIRST = 4
"""Tokens at the start that stay exact in every layer, as many as StreamingLLM keeps (arXiv 2309.17453)."""


def _deal(bases: list[_Basis], room: float, numbers: int, context: float) -> tuple[list[Array], float]:
    """Deal bits to all components of a model, and give back what tables turn out not to need.

    ``room`` is in bits for each of ``numbers`` numbers of a token, over ``context`` tokens.
    """
    variances = np.stack([basis.variances for basis in bases])
    most = sum(basis.table_bits(np.ones(basis.mean.shape)) for basis in bases)
    used = spare = 0.0
    for _ in range(4):
        used = spare
        dealt, price = _fill(variances, math.floor((room + used) * numbers))
        tables = sum(basis.table_bits(bits) for basis, bits in zip(bases, dealt, strict=True))
        again = (most - tables) / (numbers * context)
        if abs(again - spare) < 1e-3:
            break
        spare = min(again, spare + 0.5 * (again - spare)) if again < spare else again
    while tables > most - used * numbers * context:  # never beyond the budget
        used -= 1e-3
        dealt, price = _fill(variances, math.floor((room + used) * numbers))
        tables = sum(basis.table_bits(bits) for basis, bits in zip(bases, dealt, strict=True))
    return list(dealt), price


def _fill(variances: Array, bits: int) -> tuple[Array, float]:
    """Deal bits to components ``(bases, H, D)``, one at least to each basis: a page must hold something."""
    needed = 0
    while True:
        dealt, price = water_fill(variances, bits - needed)
        bare = np.flatnonzero(~dealt.any(axis=(1, 2)))
        if len(bare) <= needed:
            break
        needed = len(bare)
    for index in bare:
        dealt[index].flat[variances[index].argmax()] = 1
    return dealt, price


def _first_guess(calibration: Calibration, context: int, sinks: bool) -> _Kept:
    if not sinks or calibration.reads is None:
        return _Kept((), 0.0)
    late = len(calibration.values[calibration.reads].sink_states)
    share = late / calibration.tokens
    return _Kept(tuple(range(calibration.reads, len(calibration.keys))) if late else (), share)


def _worth_keeping(
    calibration: Calibration,
    bases: list[_Basis],
    dealt: list[Array],
    price: float,
    context: int,
    gain: bool,
) -> _Kept:
    """Return the layers in which an exact late sink saves more than its bits would save elsewhere."""
    guess = _first_guess(calibration, context, True)
    if not guess.layers:
        return guess
    layers = len(calibration.keys)
    worth = []
    for layer in guess.layers:
        cost = 0.0
        for side, moments in ((layer, calibration.keys[layer]), (layers + layer, calibration.values[layer])):
            cost += _error(bases[side].coding(dealt[side], gain), moments)
        row = 2 * (EXACT * calibration.keys[layer].mean.size + 32)
        if cost > price * row:
            worth.append(layer)
    return _Kept(tuple(worth), guess.share)


def _error(coding: Coding, moments: Moments) -> float:
    """Return nats that coding a late sink costs, as the gradients at the sinks tell, a mean over them."""
    states = torch.tensor(moments.sink_states).transpose(0, 1)[None]  # (1, H, n, D)
    count = states.shape[2]
    if not count:
        return 0.0
    codec = Codec(coding, heads=states.shape[1], width=states.shape[3], page=8)
    padded = torch.nn.functional.pad(states, (0, 0, 0, -count % 8))
    nowhere = torch.zeros((1, padded.shape[2]), dtype=torch.int64)
    back = codec.decode(codec.encode(padded, nowhere), nowhere, torch.float32)[:, :, :count]
    slope = torch.tensor(moments.sink_gradients).transpose(0, 1)[None]
    return float((slope * (back - states)).sum((1, 3)).square().mean()) / 2


def _sinks(calibration: Calibration, kept: _Kept, wanted: bool) -> Sinks:
    if not wanted or not isinstance(calibration.sinks, SinkProfile) or not kept.layers:
        return Sinks(count=_FIRST)
    return Sinks(
        rule="predict",
        count=0,
        profile=calibration.sinks.to_json(),
        reads=calibration.reads,
        layers=kept.layers,
        first=_FIRST,
    )


def _whole(columns: Array) -> tuple[Array, Array]:
    """Round columns to whole numbers from -127 to 127 times a float16 scale each."""
    scale = (np.abs(columns).max(1) / 127).astype(np.float16)
    return np.rint(columns / scale.astype(np.float64)[:, None]).clip(-127, 127).astype(np.int8), scale


def _reasons(
    calibration: Calibration,
    plan: CachePlan,
    bases: list[_Basis],
    dealt: list[Array],
    budget: float,
    context: int,
    parts: dict[str, float],
    kept: _Kept,
    price: float,
    coded: float,
) -> dict[str, Any]:
    heads, width = calibration.keys[0].mean.shape
    layers, numbers = len(plan.keys), len(bases) * heads * width
    parts = dict(parts)
    parts["tables"] = sum(b.table_bits(bits) for b, bits in zip(bases, dealt, strict=True)) / (
        numbers * context
    )
    parts["late sinks"] = kept.bits(numbers, context, heads * width)
    parts["codes"] = coded * sum(int(bits.sum()) for bits in dealt) / numbers
    table = np.array([gaussian_distortion(b) for b in range(_MOST_BITS + 1)])
    rows: list[dict[str, Any]] = [
        {
            "layer": layer,
            **{
                f"{name}_{what}": value
                for name, at in (("key", layer), ("value", layers + layer))
                for what, value in (
                    ("bits", round(float(dealt[at].mean()), 3)),
                    ("bits_by_head", [round(float(x), 3) for x in dealt[at].mean(1)]),
                    ("nats_if_dropped", float(bases[at].variances.sum())),
                    ("nats", float((bases[at].variances * table[dealt[at]]).sum())),
                )
            },
            "keeps_late_sinks": layer in kept.layers,
        }
        for layer in range(layers)
    ]
    return {
        "budget": budget,
        "context": context,
        "bits": {name: round(value, 4) for name, value in parts.items()},
        "bits_in_all": round(sum(parts.values()), 4),
        "nats_saved_by_the_last_bit": price,
        "predicted_nats_a_token": float(sum(row["key_nats"] + row["value_nats"] for row in rows)),
        "calibration": {
            "tokens": calibration.tokens,
            "window": calibration.length,
            "windows_of_its_own": calibration.own,
            "text_sha256": calibration.text_sha256,
            "late_sink_share": kept.share,
        },
        "layers": rows,
    }


def _why_sinks(calibration: Calibration, kept: _Kept, wanted: bool) -> str:
    if not wanted:
        return "the first four tokens are kept everywhere, and no late sinks, as asked for"
    if isinstance(calibration.sinks, NoSinks):
        return f"the first four tokens are kept everywhere, because {calibration.sinks.reason}"
    if not kept.layers:
        return (
            "the first four tokens are kept everywhere; late sinks are worth less than their bits elsewhere"
        )
    return (
        "the first four tokens are kept everywhere; late sinks, as the values of full-attention layer "
        f"{calibration.reads} tell them, in the layers where their bits save most: {list(kept.layers)}"
    )


def _why_window(plan: CachePlan, budget: float, context: int, *, chosen: bool) -> str:
    share = f"{_WINDOW_SHARE:.0%} of the budget at {context} tokens"
    if not chosen:
        why = "as asked for"
    elif EXACT * (plan.residual + plan.page) / context <= _WINDOW_SHARE * budget:
        why = f"the widest choice that takes at most {share}"
    else:
        why = f"the narrowest choice there is, though it takes more than {share}"
    return f"{plan.residual} recent tokens stay exact and pages hold {plan.page}: {why}"


def _why_coding(mix_keys: bool, mix_values: bool, gain: bool, sensitivity: bool) -> str:
    mixed = {
        (True, True): "principal components of each head",
        (True, False): "principal components of each head's keys, channels of values",
        (False, True): "channels of keys, principal components of each head's values",
        (False, False): "channels",
    }[mix_keys, mix_values]
    weighted = "channels weighted by sensitivity" if sensitivity else "all channels weighted alike"
    return (
        f"keys before RoPE with their mean taken off, and values; {weighted}; {mixed} in whole bits, dealt "
        f"where the next bit saves most{'' if gain else '; no gains'}"
    )


def _what_reading_costs(keys: list[Array], values: list[Array], mix_keys: bool, mix_values: bool) -> str:
    """Say what a step does for each token; ``keys`` and ``values`` are bits dealt, ``(H, C)`` a layer."""
    unpacked = [float(np.mean([(bits > 0).sum(1).mean() for bits in side])) for side in (keys, values)]
    width = keys[0].shape[1]
    mixed = f", makes {width * unpacked[0]:.0f} products with the keys' basis" if mix_keys else ""
    after = "; the values' basis is applied once a step" if mix_values else ""
    return (
        f"for each token and head of a layer a step unpacks {unpacked[0]:.0f} codes of keys and "
        f"{unpacked[1]:.0f} of values, on average{mixed}, and with RoPE turns each key to its place{after}"
    )
