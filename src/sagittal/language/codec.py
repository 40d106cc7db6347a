"""Turns keys or values of one layer into packed pages, and back, as a coding of the plan says.

The layout is made for reading: components first, tokens last. All components of one bit width lie together in
a *plane*, and within it the codes of a component's successive tokens lie next to each other, so that a reader
unpacks many tokens of one component at once, with one scale and one small table of levels.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sagittal.core.errors import InputError
from sagittal.language.packing import look_up, pack_planes, unpack
from sagittal.language.plan import Coding
from sagittal.language.quantise import (
    Codebooks,
    Levels,
    Quantised,
    dequantise,
    gaussian_levels,
    quantise,
)
from sagittal.language.rope import Rope
from sagittal.language.rotation import rotate_heads
from sagittal.language.writing import Writer, writes

__all__ = ["Codec", "Page"]

_GAIN_STEPS = 16
"""Gains to a factor of two; a gain is off by at most 2.2 %, and lies between 1/256 and 240."""


@dataclass(frozen=True, eq=False)
class Page:
    """Quantised tokens of one layer, in order; written once.

    Args:
        tokens: Tokens it stands for: all it holds, or fewer after a crop.
        planes: For each bit width of the coding, in rising order, codes as uint8,
            ``(B, n, held * bits / 8)``: n components, each with its tokens packed one after the other.
        scale: float16, ``(B, C or C / group, held or held / page)``; for a static coding with gains uint8,
            ``(B, H, held)``; for one without them None.
        offset: float16, of the shape of ``scale``, or None for a static coding.
        places: Where exact outliers belong, int16 or int32, ``(B, blocks, n)``: ``component * page + token``
            within their block of tokens.
        outliers: float16, of the shape of ``places``.
    """

    tokens: int
    planes: tuple[Tensor, ...]
    scale: Tensor | None = None
    offset: Tensor | None = None
    places: Tensor | None = None
    outliers: Tensor | None = None

    @property
    def tensors(self) -> Iterator[Tensor]:
        """Everything the page holds."""
        yield from self.planes
        for tensor in (self.scale, self.offset, self.places, self.outliers):
            if tensor is not None:
                yield tensor

    def map(self, operation: Callable[[Tensor], Tensor]) -> Page:
        """Apply an operation on the batch axis, or a move to a device, to every tensor."""
        rest: dict[str, Any] = {
            name: None if (tensor := getattr(self, name)) is None else operation(tensor)
            for name in ("scale", "offset", "places", "outliers")
        }
        return replace(self, planes=tuple(operation(plane) for plane in self.planes), **rest)

    def truncate(self, tokens: int, block: int) -> Page:
        """Keep the first ``tokens`` tokens. A block of which some stay keeps its codes."""
        if tokens >= self.tokens:
            return self
        held, keep = -(-self.tokens // block), -(-tokens // block)
        cut = self.map(lambda tensor: tensor[..., : tensor.shape[-1] * keep // held].clone())
        places, outliers = (
            None if tensor is None else tensor[:, :keep].clone() for tensor in (self.places, self.outliers)
        )
        return replace(cut, tokens=tokens, places=places, outliers=outliers)

    def join(self, other: Page) -> Page:
        """Return the tokens of both; this page must hold whole blocks."""

        def cat(first: Tensor | None, second: Tensor | None, dim: int) -> Any:
            return None if first is None or second is None else torch.cat([first, second], dim=dim)

        return Page(
            tokens=self.tokens + other.tokens,
            planes=tuple(cat(a, b, -1) for a, b in zip(self.planes, other.planes, strict=True)),
            scale=cat(self.scale, other.scale, -1),
            offset=cat(self.offset, other.offset, -1),
            places=cat(self.places, other.places, 1),
            outliers=cat(self.outliers, other.outliers, 1),
        )


class Codec:
    """A coding of the plan, fitted to one layer.

    Args:
        coding: How states are held; not an exact one.
        heads: H.
        width: D.
        page: Tokens of a block, a multiple of 8.
        rope: The model's position embedding, for a coding of keys before it.
        device: Where the tables lie.

    Raises:
        InputError: The coding has arrays for other heads or another width, or its groups do not divide them.
    """

    def __init__(
        self,
        coding: Coding,
        *,
        heads: int,
        width: int,
        page: int,
        rope: Rope | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.coding, self.heads, self.width, self.page = coding, heads, width, page
        self.rope = rope if coding.before_rope else None
        self.components = width if coding.basis is None else coding.basis.shape[-1]
        _check(coding, heads, width, self.components)

        def table(array: Any, dtype: torch.dtype | None = None) -> Tensor | None:
            return None if array is None else torch.tensor(np.asarray(array), dtype=dtype, device=device)

        self._mean = table(coding.mean, torch.float32)
        self._weight = table(coding.weight, torch.float16)
        self._spread = table(coding.spread, torch.float16)
        self._order = table(coding.order, torch.int16)
        self._basis, self._basis_scale = table(coding.basis), table(coding.basis_scale, torch.float16)
        bits = np.broadcast_to(np.asarray(coding.bits, dtype=np.uint8), (heads, self.components))
        flat = torch.tensor(bits.copy(), device=device).flatten()
        self._bits = flat
        self.widths = [int(b) for b in flat.unique() if b]
        self._plane = [(flat == b).nonzero().flatten() for b in self.widths]
        self._levels = _levels(coding, self.widths)
        if coding.scale == "static":
            assert self._levels is not None
            shared = coding.levels == "gaussian"
            self._codebooks = (
                _normal(tuple(self.widths), device) if shared else Codebooks(self._levels, device)
            )

    @property
    def tensors(self) -> Iterator[Tensor]:
        """The tables that reading a page needs."""
        tables = (self._mean, self._weight, self._spread, self._order, self._basis, self._basis_scale)
        yield from (tensor for tensor in tables if tensor is not None)

    # ------------------------------------------------------------------ writing

    def encode(self, states: Tensor, positions: Tensor, kept: Tensor | None = None) -> Page:
        """Quantise tokens.

        Args:
            states: ``(B, H, T, D)``, T a multiple of ``page``.
            positions: Positions of the tokens, ``(B or 1, T)``.
            kept: Tokens that are held exactly elsewhere, bool, ``(B, T)``: they take part in no statistics,
                and their codes stand for nothing.

        Raises:
            InputError: A state is NaN, infinite, or beyond what float16 scales hold.
        """
        given = components = self.turned(states.float(), positions)
        if kept is not None and bool(kept.any()):
            components = self._without(components, kept)
        if writes(self.coding, components):
            written = _writer(self).write(components)
            if written is not None:
                return Page(states.shape[-2], *written)
        _refuse_infinite(given)
        if components is not given:  # a mean of finite numbers may be beyond float32
            _refuse_infinite(components)
        places, outliers, components = self.outliers(components)
        static = self.coding.scale == "static"
        codes, scale, offset = self._static(components) if static else self._measured(components)
        planes = pack_planes(codes, self._bits, zip(self.widths, self._plane, strict=True))
        return Page(states.shape[-2], planes, scale, offset, places, outliers)

    def writer(self) -> Writer:
        """Return what quantises the components of a static coding in the extension."""
        assert self._spread is not None
        assert self._levels is not None
        return Writer(
            self._bits.view(self.heads, -1),
            self._levels,
            self._spread.float(),
            _gain_table() if self.coding.gain else None,
        )

    def turned(self, states: Tensor, positions: Tensor) -> Tensor:
        """Return the components of states, ``(B, C, T)``."""
        if self.rope is not None:
            states = self.rope.undo(states, positions)
        if self._mean is not None:
            states = states - self._mean[:, None]
        if self._weight is not None:
            states = states * self._weight.float()[:, None]
        if self._basis is not None:
            columns = self._columns()
            found = torch.einsum("bhtd,hdr->bhrt", states, columns)
            # rounded columns are not quite orthogonal: what the strong ones leave would hide the weak ones
            missed = states - torch.einsum("bhrt,hdr->bhtd", found, columns)
            return (found + torch.einsum("bhtd,hdr->bhrt", missed, columns)).flatten(1, 2)
        flat = states.transpose(1, 2).flatten(2)  # (B, T, H * D)
        if self.coding.rotation == "hadamard" and not self.coding.order_first:
            flat = rotate_heads(flat, self.coding.heads, self.width)
        if self._order is not None:
            flat = flat[..., self._order.long()]
        if self.coding.rotation == "hadamard" and self.coding.order_first:
            flat = rotate_heads(flat, self.coding.heads, self.width)
        return flat.transpose(1, 2)

    def _without(self, components: Tensor, kept: Tensor) -> Tensor:
        """Put the mean of its block in the place of each token that is held elsewhere."""
        blocks = components.unflatten(-1, (-1, self.page))
        here = (~kept).to(components.dtype).unflatten(-1, (-1, self.page))[:, None]
        mean = (blocks * here).sum(-1, keepdim=True) / here.sum(-1, keepdim=True).clamp_min(1)
        return torch.where(here.bool(), blocks, mean).flatten(-2)

    def outliers(self, components: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Take the numbers furthest from their component's block mean out of each block of tokens.

        KVQuant (arXiv 2401.18079) takes a share of both tails of every vector; here a block has a fixed
        number of them, wherever they are, so that memory is known beforehand [inference].
        """
        if not self.coding.outliers:
            return None, None, components
        blocks = components.unflatten(-1, (-1, self.page)).transpose(1, 2)  # (B, blocks, C, page)
        mean = blocks.mean(-1, keepdim=True)
        far = (blocks - mean).abs()
        if self.coding.scale == "token":  # as the vectors lie along which a range is measured
            far = far / far.square().mean(2, keepdim=True).sqrt().clamp_min(1e-12)
        else:
            far = far / far.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
        flat = blocks.flatten(-2)
        count = max(1, round(self.coding.outliers * flat.shape[-1]))
        places = far.flatten(-2).topk(count, dim=-1).indices.sort(dim=-1).values
        values = flat.gather(-1, places)
        dense = flat.scatter(-1, places, mean.expand_as(blocks).flatten(-2).gather(-1, places))
        narrow = torch.int16 if flat.shape[-1] <= 1 << 15 else torch.int32
        return (
            places.to(narrow),
            _half(values),
            dense.unflatten(-1, blocks.shape[-2:]).transpose(1, 2).flatten(-2),
        )

    def _measured(self, components: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        along, group = self._groups()
        return quantise(
            components, bits=self._bits, along=along, group=group, clip=self.coding.clip, levels=self._levels
        )

    def _static(self, components: Tensor) -> tuple[Tensor, Tensor | None, None]:
        assert self._spread is not None
        spread = self._spread.float().flatten()
        units = components / spread.clamp_min(_TINY)[:, None]
        heads = units.unflatten(1, (self.heads, -1))  # (B, H, r, T)
        scaled = heads
        if self.coding.gain:
            live = (self._bits > 0).to(units.dtype).unflatten(0, (self.heads, -1))[..., None]
            power = (heads.square() * live).sum(2, keepdim=True) / live.sum(1, keepdim=True).clamp_min(1)
            scaled = heads / power.sqrt().clamp_min(_TINY)
        codes, shape = self._codebooks.nearest(scaled.flatten(1, 2), self._bits)
        if not self.coding.gain:
            return codes, None, None
        shape = shape.unflatten(1, (self.heads, -1))
        weight = spread.square().unflatten(0, (self.heads, -1))[..., None]
        best = (weight * heads * shape).sum(2) / (weight * shape.square()).sum(2).clamp_min(_TINY)
        steps = ((best.clamp_min(_TINY).log2() * _GAIN_STEPS).round() + 128).clamp(0, 255).to(torch.uint8)
        scaled = heads / _gains(steps)[:, :, None]  # again: a gain that is held is rounded
        codes, _ = self._codebooks.nearest(scaled.flatten(1, 2), self._bits)
        return codes, steps, None

    # ------------------------------------------------------------------ reading

    def decode(self, page: Page, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the states that a page's codes stand for, ``(B, H, T, D)``.

        Args:
            page: The page.
            positions: Positions of its tokens, ``(B or 1, page.tokens)``.
            dtype: Dtype of the result; numbers are computed in float32.
        """
        held = -(-page.tokens // self.page) * self.page
        shape = (page.planes[0].shape[0], len(self._bits), held)
        if self.coding.scale == "static":
            components = self._static_components(page, shape)
        else:
            codes = torch.zeros(shape, dtype=torch.uint8, device=page.planes[0].device)
            for plane, b, at in zip(page.planes, self.widths, self._plane, strict=True):
                codes.index_copy_(1, at, unpack(plane, b, held))
            assert page.scale is not None
            assert page.offset is not None
            along, group = self._groups()
            components = dequantise(
                Quantised(codes, page.scale, page.offset),
                bits=self._bits,
                along=along,
                group=group,
                levels=self._levels,
            )
        if page.places is not None and page.outliers is not None:
            blocks = components.unflatten(-1, (-1, self.page)).transpose(1, 2)
            flat = blocks.flatten(-2).scatter(-1, page.places.long(), page.outliers.float())
            components = flat.unflatten(-1, blocks.shape[-2:]).transpose(1, 2).flatten(-2)
        return self._back(components[..., : page.tokens], positions).to(dtype)

    def _static_components(self, page: Page, shape: tuple[int, int, int]) -> Tensor:
        assert self._spread is not None
        assert self._levels is not None
        gains, device = page.scale, page.planes[0].device
        components = torch.zeros(shape, device=device)
        for plane, b, at in zip(page.planes, self.widths, self._plane, strict=True):
            components.index_copy_(1, at, look_up(plane, self._levels[b].to(device), b, shape[-1]))
        components *= self._spread.float().flatten()[:, None]
        if gains is None:
            return components
        components.unflatten(1, (self.heads, -1)).mul_(_gains(gains)[:, :, None])
        return components

    def _back(self, components: Tensor, positions: Tensor) -> Tensor:
        if self._basis is not None:
            heads = components.unflatten(1, (self.heads, -1))
            states = torch.einsum("bhrt,hdr->bhtd", heads, self._columns())
        else:
            flat = components.transpose(1, 2)
            if self.coding.rotation == "hadamard" and self.coding.order_first:
                flat = rotate_heads(flat, self.coding.heads, self.width)
            if self._order is not None:
                flat = flat[..., self._order.long().argsort()]
            if self.coding.rotation == "hadamard" and not self.coding.order_first:
                flat = rotate_heads(flat, self.coding.heads, self.width)
            states = flat.unflatten(2, (self.heads, self.width)).transpose(1, 2)
        if self._weight is not None:
            states = states / self._weight.float()[:, None]
        if self._mean is not None:
            states = states + self._mean[:, None]
        return states if self.rope is None else self.rope.turn(states, positions)

    def _columns(self) -> Tensor:
        assert self._basis is not None
        assert self._basis_scale is not None
        columns = self._basis.float() * self._basis_scale.float()[:, None]
        return columns.expand(self.heads, -1, -1)

    def _groups(self) -> tuple[Any, int]:
        if self.coding.scale == "channel":
            return "tokens", self.page
        return "components", min(self.coding.group, len(self._bits))


_TINY = 1e-12


@lru_cache
def _normal(widths: tuple[int, ...], device: torch.device | None) -> Codebooks:
    return Codebooks({b: gaussian_levels(b) for b in widths}, device)


def _gain_table() -> Tensor:
    # all at once: the last bit of exp2 depends on how many numbers it is given
    return torch.exp2((torch.arange(256) - 128) / _GAIN_STEPS)


def _gains(steps: Tensor) -> Tensor:
    return _gain_table().to(steps.device)[steps.long()]


_writers: weakref.WeakKeyDictionary[Codec, Writer] = weakref.WeakKeyDictionary()


def _writer(codec: Codec) -> Writer:
    if codec not in _writers:
        _writers[codec] = codec.writer()
    return _writers[codec]


def _refuse_infinite(components: Tensor) -> None:
    if not bool(torch.isfinite(torch.stack(torch.aminmax(components))).all()):  # both carry a NaN on
        kind = "NaN" if bool(torch.isnan(components).any()) else "infinity"
        raise InputError(
            "states to quantise are not finite", value=kind, expected="finite numbers in every key and value"
        )


def _half(values: Tensor) -> Tensor:
    half = values.half()
    if not bool(torch.isfinite(half).all()):
        raise InputError(
            "an outlier is beyond float16",
            value=f"{float(values.abs().max()):.6g}",
            expected="a magnitude of at most 65504",
        )
    return half


def _levels(coding: Coding, widths: list[int]) -> Levels | None:
    if coding.levels == "uniform":
        return None
    if coding.levels == "gaussian":
        return {b: gaussian_levels(b) for b in widths}
    assert not isinstance(coding.levels, str)
    missing = [b for b in widths if len(coding.levels.get(b, ())) != 1 << b]
    if missing:
        raise InputError("a codebook lacks levels", value=f"{missing[0]} bits", expected="2**bits numbers")
    levels = {b: torch.tensor(coding.levels[b], dtype=torch.float32) for b in widths}
    for b, numbers in levels.items():
        if not bool(torch.isfinite(numbers).all() & (numbers.diff() >= 0).all()):
            raise InputError("a codebook does not rise", value=f"{b} bits", expected="finite, rising numbers")
    return levels


def _check(coding: Coding, heads: int, width: int, components: int) -> None:
    wanted: dict[str, tuple[tuple[int, ...], ...]] = {
        "mean": ((heads, width),),
        "weight": ((heads, width),),
        "order": ((heads * width,),),
        "basis": ((heads, width, components), (1, width, components)),
        "basis_scale": ((heads, components), (1, components)),
        "spread": ((heads, components),),
    }
    if isinstance(coding.bits, np.ndarray):
        wanted["bits"] = ((heads, components),)
    for name, shapes in wanted.items():
        array = getattr(coding, name)
        if array is not None and array.shape not in shapes:
            raise InputError(
                f"the plan's {name} is of another model", value=array.shape, expected=f"{shapes[0]}"
            )
        if array is not None and not np.isfinite(array).all():
            raise InputError(f"the plan's {name} is not finite", expected="finite numbers")
    for name, positive in (("weight", True), ("spread", False), ("basis_scale", False)):
        array = getattr(coding, name)
        half = torch.tensor(0.0 if array is None else np.asarray(array), dtype=torch.float16)
        if not bool(torch.isfinite(half).all() & (half >= 0).all()):
            raise InputError(f"the plan's {name} is beyond float16", expected="0 to 65504")
        if array is not None and positive and not bool((half > 0).all()):
            raise InputError(f"the plan's {name} is not positive", expected="6e-8 to 65504")
    if coding.order is not None and not np.array_equal(np.sort(coding.order), np.arange(heads * width)):
        raise InputError(
            "the plan's order is no permutation", expected=f"0 to {heads * width - 1}, each once"
        )
    if coding.scale == "token" and heads * width % min(coding.group, heads * width):
        raise InputError(
            f"group does not divide {heads} heads of width {width}",
            value=f"group {coding.group}",
            expected=f"a divisor of {heads * width}",
        )
    if not np.any(coding.bits):
        raise InputError("a coding drops every component", value=0, expected="at least one bit in a layer")
    if coding.rotation == "hadamard" and heads % coding.heads:
        raise InputError("heads to rotate do not divide the heads", value=coding.heads, expected=f"{heads}")
