"""What the options of a spec say about the keys, or the values, made a coding of one layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from sagittal.core.errors import InputError
from sagittal.core.randomness import generator
from sagittal.language.calibration import Moments
from sagittal.language.codec import Codec
from sagittal.language.plan import EXACT, Coding
from sagittal.language.quantise import gaussian_levels
from sagittal.language.rope import Rope
from sagittal.language.rotation import heads_together, rotate_heads

__all__ = ["REORDERED", "Axis", "Side", "coding_of", "group_of"]

Array = npt.NDArray[Any]
Axis = Literal["channel", "token", "static", "unit"]

REORDERED = ("reorder", "reorder-first")
"""Rotations that sort channels by their calibrated mean."""
_UNIT_SPREAD = {"keys": 1.0, "values": 1 / 16}  # gains reach from 1/256 to 240 of it
_FIT_NUMBERS = 1 << 18
_FIT_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Side:
    """How the keys, or the values, are held: the options of a spec that concern them.

    Args:
        name: ``keys`` or ``values``.
        bits: Bits of a code; 16 for exact.
        axis: What shares a scale.
        rotation: How channels are mixed.
        before_rope: Keys are coded before the position embedding.
        group: Channels of a token that share a scale; ``head`` or ``all`` for as many as those have.
        codebook: ``uniform``, ``gaussian`` or ``nuq``.
        outliers: Share of exact numbers, 0 to 0.5.
        clip: Factor on both ends of a measured range.
        centred: The calibrated mean is taken off.
    """

    name: Literal["keys", "values"]
    bits: int
    axis: Axis
    rotation: str
    before_rope: bool
    group: int | Literal["head", "all"]
    codebook: str
    outliers: float
    clip: float
    centred: bool

    @property
    def calibrated(self) -> bool:
        """Whether a calibration is needed."""
        if self.bits == EXACT:
            return False
        return self.axis == "static" or self.codebook == "nuq" or self.centred or self.rotation in REORDERED


def group_of(side: Side, heads: int, width: int) -> int:
    """Return how many channels of a token share a scale, in a layer of so many heads of a width."""
    if side.group == "head":
        return width
    return heads * width if side.group == "all" else side.group


def coding_of(
    side: Side, moments: Moments | None, heads: int, width: int, page: int, rope: Rope | None
) -> Coding:
    """Return the coding of one layer; ``rope`` is None for values."""
    if side.bits == EXACT:
        return Coding(bits=EXACT)
    mean = moments.mean if side.centred and moments is not None else None
    coding = Coding(
        bits=side.bits,
        scale="token" if side.axis == "token" else "channel",
        group=min(group_of(side, heads, width), heads * width),
        clip=side.clip,
        outliers=side.outliers,
        before_rope=side.before_rope,
        mean=None if mean is None else mean.astype(np.float32),
        **_rotation(side, moments, heads, width),
    )
    if side.axis == "unit":
        spread = np.full((heads, width), _UNIT_SPREAD[side.name])
        return replace(coding, scale="static", levels="gaussian", gain=True, spread=spread)
    if side.axis == "static":
        assert moments is not None
        return _static(side, coding, moments, heads, width, page, rope)
    if side.codebook == "gaussian":
        members = page if side.axis == "channel" else coding.group
        return replace(coding, levels={side.bits: _gaussian_in_range(side.bits, members)})
    if side.codebook == "nuq":
        assert moments is not None
        components, fisher, kept = _components(coding, moments, heads, width, page, rope)
        low, high = _range(components, side, coding.group, page)
        levels = _fitted(
            (components - low) / (high - low), kept * (fisher[:, None] * (high - low) ** 2), side.bits
        )
        return replace(coding, levels={side.bits: levels})
    return coding


def _rotation(side: Side, moments: Moments | None, heads: int, width: int) -> dict[str, Any]:
    if side.rotation == "none":
        return {}
    if side.rotation == "hadamard":
        return {"rotation": "hadamard", "heads": 1}
    if side.rotation == "random":
        basis, scale = _random_basis(width)
        return {"rotation": "basis", "basis": basis, "basis_scale": scale}
    together = heads_together(heads)
    if side.rotation == "grouped":
        return {"rotation": "hadamard", "heads": together}
    assert moments is not None
    first = side.rotation == "reorder-first"
    mean = torch.from_numpy(np.asarray(moments.mean, dtype=np.float64).reshape(-1).copy())
    if not first:
        mean = rotate_heads(mean, together, width)
    order = mean.argsort(stable=True).numpy().astype(np.int16 if len(mean) <= 1 << 15 else np.int32)
    return {"rotation": "hadamard", "heads": together, "order": order, "order_first": first}


def _random_basis(width: int) -> tuple[Array, Array]:
    """Return a seeded random rotation as int8 columns, ``(1, D, D)``, and their scales, ``(1, D)``."""
    drawn = generator(0, "specs", "rotation").standard_normal((width, width))
    basis, upper = np.linalg.qr(drawn)
    basis = basis * np.sign(np.diag(upper))  # uniform over all rotations and reflections
    scale = (np.abs(basis).max(0) / 127).astype(np.float16)
    whole = np.clip(np.round(basis / scale.astype(np.float64)), -127, 127).astype(np.int8)
    return whole[None], scale[None]


def _static(
    side: Side, coding: Coding, moments: Moments, heads: int, width: int, page: int, rope: Rope | None
) -> Coding:
    """Return a coding with thresholds that are fixed beforehand.

    A Gaussian codebook is laid out by mean and standard deviation, another one between two percentiles, which
    leave out half of the outliers' share on either side.
    """
    still = side.name == "values" or side.before_rope  # the mean does not turn with the position
    if still:
        coding = replace(coding, mean=np.asarray(moments.mean, dtype=np.float32))
    components, fisher, kept = _components(coding, moments, heads, width, page, rope)
    if side.codebook == "gaussian":
        spread = np.sqrt((components**2 * kept).sum(1) / kept.sum(1).clip(1)).clip(_TINY)
        levels: str | dict[int, tuple[float, ...]] = "gaussian"
    else:
        low, high = np.quantile(components, [side.outliers / 2, 1 - side.outliers / 2], axis=1)
        if still and side.rotation == "none":
            middle = (low + high) / 2
            assert coding.mean is not None
            coding = replace(coding, mean=coding.mean + middle.reshape(heads, width).astype(np.float32))
            components = components - middle[:, None]
            low, high = low - middle, high - middle
        spread = np.maximum(-low, high).clip(_TINY)
        if side.codebook == "uniform":
            levels = {side.bits: tuple(np.linspace(-1, 1, 1 << side.bits).tolist())}
        else:
            weights = kept * (fisher * spread**2)[:, None]
            levels = {side.bits: _fitted(components / spread[:, None], weights, side.bits)}
    return replace(coding, scale="static", levels=levels, spread=spread.reshape(heads, -1))


_TINY = 1e-6


def _components(
    coding: Coding, moments: Moments, heads: int, width: int, page: int, rope: Rope | None
) -> tuple[Array, Array, Array]:
    """Return what the sampled states become before they are coded.

    Returns:
        The components, ``(C, T)``; the Fisher information of each, ``(C,)``; and 0 or 1, ``(C, T)``, for
        numbers that are held as outliers.
    """
    tokens = moments.sample.shape[1]
    block = min(page, tokens // 8 * 8)
    if not block:
        raise InputError("the calibration holds too few tokens", value=tokens, expected="at least 8")
    codec = Codec(coding, heads=heads, width=width, page=block, rope=rope)
    used = tokens // block * block
    positions = torch.arange(used)[None]
    states = torch.from_numpy(np.ascontiguousarray(moments.sample[:, :used]))[None]
    if rope is not None:  # a sample of keys is from before RoPE, and a codec is given them after it
        states = rope.turn(states, positions)
    components = codec.turned(states, positions)
    places, _, dense = codec.outliers(components)
    kept = torch.ones_like(dense)
    if places is not None:
        blocks = kept.reshape(1, heads * width, -1, block).transpose(1, 2)  # (1, blocks, C, page)
        flat = blocks.flatten(-2).scatter(-1, places.long(), 0.0)
        kept = flat.reshape(blocks.shape).transpose(1, 2).flatten(-2)
    fisher = _mixed_fisher(coding, np.asarray(moments.fisher, dtype=np.float64), rope)
    return dense[0].double().numpy(), fisher, kept[0].double().numpy()


def _mixed_fisher(coding: Coding, fisher: Array, rope: Rope | None) -> Array:
    """Return the Fisher information of each component; where channels are mixed, the mean over them."""
    if coding.rotation != "none":
        return np.full(fisher.size, fisher.mean())
    if rope is not None and not coding.before_rope:
        half = len(rope.frequencies)
        pairs = (fisher[:, :half] + fisher[:, half : 2 * half]) / 2
        fisher = np.concatenate([pairs, pairs, fisher[:, 2 * half :]], axis=1)
    return fisher.reshape(-1)


def _range(components: Array, side: Side, group: int, page: int) -> tuple[Array, Array]:
    """Return both ends of the range of each number's group, ``(C, T)``."""
    size, tokens = components.shape
    if side.axis == "token":
        grouped = components.reshape(size // group, group, tokens)
        low, high = grouped.min(1, keepdims=True), grouped.max(1, keepdims=True)
    else:
        grouped = components.reshape(size, -1, min(page, tokens))
        low, high = grouped.min(2, keepdims=True), grouped.max(2, keepdims=True)
    low, high = side.clip * low, side.clip * np.maximum(high, low + _TINY)
    return tuple(np.broadcast_to(end, grouped.shape).reshape(size, tokens) for end in (low, high))  # type: ignore[return-value]


def _gaussian_in_range(bits: int, members: int) -> tuple[float, ...]:
    """Return Lloyd-Max levels as parts of the range that so many normal numbers are expected to have.

    The expected largest of n is by Blom's formula (Statistical estimates and transformed beta-variables,
    1958). [inference: that a range measured on a group stands for its standard deviation]
    """
    n = max(members, 2)
    largest = float(torch.special.ndtri(torch.tensor((n - 0.375) / (n + 0.25), dtype=torch.float64)))
    levels = 0.5 + gaussian_levels(bits).double() / (2 * largest)
    return tuple(levels.clamp(0, 1).tolist())


def _fitted(numbers: Array, weights: Array, bits: int) -> tuple[float, ...]:
    """Return the ``2**bits`` levels of least weighted squared error, by k-means from even quantiles."""
    flat, weight = numbers.reshape(-1), np.broadcast_to(weights, numbers.shape).reshape(-1)
    step = max(1, flat.size // _FIT_NUMBERS)
    step += 1 - step % 2  # odd, so that no channel is passed over
    flat, weight = flat[::step], weight[::step]
    order = np.argsort(flat, kind="stable")
    flat, weight = flat[order], weight[order]
    mass = np.concatenate([[0.0], np.cumsum(weight)])
    moment = np.concatenate([[0.0], np.cumsum(weight * flat)])
    count = 1 << bits
    places = np.searchsorted(mass, (np.arange(count) + 0.5) / count * mass[-1]).clip(0, len(flat) - 1)
    levels = flat[places]
    for _ in range(_FIT_STEPS):
        edges = np.searchsorted(flat, (levels[1:] + levels[:-1]) / 2)
        ends = np.concatenate([[0], edges, [len(flat)]])
        share, total = np.diff(mass[ends]), np.diff(moment[ends])
        better = np.where(share > 0, total / np.where(share > 0, share, 1.0), levels)
        if np.abs(better - levels).max() < 1e-7:
            break
        levels = better
    return tuple(float(level) for level in np.sort(levels))
