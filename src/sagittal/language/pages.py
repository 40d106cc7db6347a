"""Quantised pages of a key-value cache, and the keys or values of one layer that are made of them.

Everything here is immutable: an operation returns new objects and shares the tensors it does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sagittal.language.packing import pack, unpack
from sagittal.language.plan import EXACT
from sagittal.language.quantise import Axis, Quantised, dequantise, quantise

__all__ = ["Layout", "Page", "PagedStates"]


@dataclass(frozen=True, eq=False)
class Page:
    """Keys or values of successive tokens of one layer, quantised once and for all.

    A page is made of whole groups of tokens; truncating may leave its last group with fewer tokens.

    Args:
        packed: Codes, uint8, shape ``(B, H, tokens, packed_width(channels, bits))``.
        scale: float16, ``(B, H, tokens, channels / group)`` by token and ``(B, H, groups, channels)`` by
            channel.
        offset: float16, of the shape of ``scale``.
        bits: Bits a code, 1 to 8.
        axis: Where a group lies.
        group: Members of a group.
        channels: Width of a head.
    """

    packed: Tensor
    scale: Tensor
    offset: Tensor
    bits: int
    axis: Axis
    group: int
    channels: int

    @classmethod
    def encode(cls, states: Tensor, *, bits: int, axis: Axis, group: int) -> Page:
        """Quantise states of shape ``(B, H, tokens, channels)``; see :mod:`sagittal.language.quantise`."""
        quantised = quantise(states, bits=bits, axis=axis, group=group)
        packed = pack(quantised.codes, bits)
        return cls(packed, quantised.scale, quantised.offset, bits, axis, group, states.shape[-1])

    def __len__(self) -> int:
        return self.packed.shape[-2]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Everything the page holds."""
        return self.packed, self.scale, self.offset

    @property
    def nbytes(self) -> int:
        """Bytes of the page's tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """Return the numbers the codes stand for, shape ``(B, H, tokens, channels)``."""
        codes = unpack(self.packed, self.bits, self.channels)
        return dequantise(
            Quantised(codes, self.scale, self.offset), axis=self.axis, group=self.group, dtype=dtype
        )

    def truncate(self, tokens: int) -> Page:
        """Keep the first ``tokens`` tokens; their codes stay as they are."""
        if tokens >= len(self):
            return self
        groups = tokens if self.axis == "token" else -(-tokens // self.group)
        return replace(
            self,
            packed=self.packed[:, :, :tokens].clone(),
            scale=self.scale[:, :, :groups].clone(),
            offset=self.offset[:, :, :groups].clone(),
        )

    def map(self, operation: Callable[[Tensor], Tensor]) -> Page:
        """Apply an operation on the batch axis, or a move to a device, to every tensor."""
        packed, scale, offset = (operation(tensor) for tensor in self.tensors)
        return replace(self, packed=packed, scale=scale, offset=offset)

    def select(self, indices: Tensor) -> Page:
        """Keep the batch entries ``indices``, in that order."""
        return self.map(lambda tensor: tensor.index_select(0, indices.to(tensor.device)))

    def repeat_interleave(self, repeats: int) -> Page:
        """Repeat each batch entry ``repeats`` times."""
        return self.map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one layer's keys, or its values, are held; ``bits`` 16 keeps everything exact."""

    bits: int
    axis: Axis
    group: int
    sinks: int
    residual: int
    page: int


@dataclass(frozen=True, eq=False)
class PagedStates:
    """Keys or values of one layer: first tokens exact, then pages, then recent tokens exact.

    Args:
        layout: What is exact and what is quantised.
        first: Exact first tokens, ``(B, H, at most layout.sinks, D)``.
        pages: Quantised tokens, in order.
        recent: Exact last tokens, ``(B, H, n, D)``.
    """

    layout: Layout
    first: Tensor
    pages: tuple[Page, ...]
    recent: Tensor

    @classmethod
    def empty(cls, layout: Layout, like: Tensor) -> PagedStates:
        """Return states without a token, with the batch, heads, width, dtype and device of ``like``."""
        nothing = like.new_empty((*like.shape[:2], 0, like.shape[-1]))
        return cls(layout, nothing, (), nothing)

    @cached_property
    def _quantised_length(self) -> int:
        return sum(len(page) for page in self.pages)

    def __len__(self) -> int:
        return self.first.shape[-2] + self._quantised_length + self.recent.shape[-2]

    @property
    def tensors(self) -> Iterator[Tensor]:
        """Everything held, exact and quantised."""
        yield self.first
        for page in self.pages:
            yield from page.tensors
        yield self.recent

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def append(self, states: Tensor) -> PagedStates:
        """Add tokens at the end, exact; the first ones fill the sinks. Nothing is quantised here."""
        room = 0
        if self.layout.bits != EXACT and not self.pages and not self.recent.shape[-2]:
            room = self.layout.sinks - self.first.shape[-2]
        return replace(
            self,
            first=torch.cat([self.first, states[:, :, :room]], dim=-2) if room else self.first,
            recent=torch.cat([self.recent, states[:, :, room:]], dim=-2),
        )

    def settle(self) -> PagedStates:
        """Quantise whole pages when more than ``residual + page`` recent tokens are exact.

        At least ``residual`` of them stay exact, and fewer than ``residual + page``.
        """
        layout, recent = self.layout, self.recent.shape[-2]
        if layout.bits == EXACT or recent <= layout.residual + layout.page:
            return self
        count = (recent - layout.residual) // layout.page * layout.page
        page = Page.encode(self.recent[:, :, :count], bits=layout.bits, axis=layout.axis, group=layout.group)
        return replace(self, pages=(*self.pages, page), recent=self.recent[:, :, count:].clone())

    def dense(self) -> Tensor:
        """Return all tokens, shape ``(B, H, tokens, D)``; the quantised ones as their codes say."""
        if not self.pages and not self.first.shape[-2]:
            return self.recent
        pages = [page.dequantise(self.recent.dtype) for page in self.pages]
        return torch.cat([self.first, *pages, self.recent], dim=-2)

    def crop(self, tokens: int) -> PagedStates:
        """Drop the last ``tokens`` tokens. A page that is cut keeps its codes."""
        recent = self.recent.shape[-2]
        if tokens <= 0:
            return self
        if tokens <= recent:
            return replace(self, recent=self.recent[:, :, : recent - tokens].clone())
        keep = max(len(self) - tokens, 0)
        first = self.first[:, :, :keep].clone() if keep < self.first.shape[-2] else self.first
        pages: list[Page] = []
        left = keep - first.shape[-2]
        for page in self.pages:
            if left <= 0:
                break
            pages.append(page.truncate(left))
            left -= len(page)
        return replace(self, first=first, pages=tuple(pages), recent=self.recent[:, :, :0].clone())

    def map(self, operation: Callable[[Tensor], Tensor]) -> PagedStates:
        """Apply an operation on the batch axis, or a move to a device, to every tensor."""
        pages = tuple(page.map(operation) for page in self.pages)
        return replace(self, first=operation(self.first), pages=pages, recent=operation(self.recent))

    def select(self, indices: Tensor) -> PagedStates:
        """Keep the batch entries ``indices``, in that order."""
        return self.map(lambda tensor: tensor.index_select(0, indices.to(tensor.device)))

    def repeat_interleave(self, repeats: int) -> PagedStates:
        """Repeat each batch entry ``repeats`` times."""
        return self.map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))
