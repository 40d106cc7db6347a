"""The keys, or the values, of one layer: tokens kept exact, quantised pages, and recent tokens.

Everything here is immutable: an operation returns new objects and shares the tensors it does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sagittal.language.codec import Codec, Page

__all__ = ["PagedStates"]

_LARGEST = 1024
"""Tokens of a page to which none are added: adding copies what the page holds."""


@dataclass(frozen=True, eq=False)
class PagedStates:
    """Keys or values of one layer.

    Args:
        codec: How pages are written and read; None to keep every token exact.
        residual: Most recent tokens that stay exact, at the least.
        kept_at: Where in the text the tokens belong that stay exact though their page is quantised, int32,
            ``(B, n)``, rising, with -1 after a sequence's last.
        kept: Those tokens, ``(B, H, n, D)``.
        pages: Quantised tokens, in order. A page grows to ``_LARGEST`` tokens, or until a crop cuts it.
        recent: Exact last tokens, ``(B, H, n, D)``.
    """

    codec: Codec | None
    residual: int
    kept_at: Tensor
    kept: Tensor
    pages: tuple[Page, ...]
    recent: Tensor

    @classmethod
    def empty(cls, codec: Codec | None, residual: int, like: Tensor) -> PagedStates:
        """Return states without a token, with the batch, heads, width, dtype and device of ``like``."""
        nothing = like.new_empty((*like.shape[:2], 0, like.shape[-1]))
        nowhere = torch.empty((like.shape[0], 0), dtype=torch.int32, device=like.device)
        return cls(codec, residual, nowhere, nothing, (), nothing)

    @cached_property
    def quantised(self) -> int:
        """Tokens in pages."""
        return sum(page.tokens for page in self.pages)

    @cached_property
    def worked_out(self) -> dict[Any, Any]:
        """What readers have worked out from all but the recent tokens: it outlives an appended token."""
        return {}

    def __len__(self) -> int:
        return self.quantised + self.recent.shape[-2]

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in vars(self).items() if name != "worked_out"
        }  # a copy works it out anew

    @property
    def tensors(self) -> Iterator[Tensor]:
        """Everything held, exact and quantised, and the tables to read it."""
        yield self.kept_at
        yield self.kept
        for page in self.pages:
            yield from page.tensors
        yield self.recent
        if self.codec is not None:
            yield from self.codec.tensors

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def append(self, states: Tensor) -> PagedStates:
        """Add tokens at the end, exact."""
        longer = replace(self, recent=torch.cat([self.recent, states], dim=-2))
        vars(longer).update(quantised=self.quantised, worked_out=self.worked_out)
        return longer

    @property
    def ready(self) -> int:
        """Tokens that :meth:`settle` would quantise: whole pages beyond ``residual`` recent tokens.

        None until more than ``residual + page`` tokens are exact.
        """
        if self.codec is None:
            return 0
        recent, page = self.recent.shape[-2], self.codec.page
        return (recent - self.residual) // page * page if recent > self.residual + page else 0

    def settle(self, pads: Tensor, kept: Tensor | None = None) -> PagedStates:
        """Quantise the tokens that are :attr:`ready`.

        Args:
            pads: Padding tokens before each text, ``(B,)``: a token's position is its place less these.
            kept: Which of the ready tokens stay exact, bool, ``(B, ready)``.
        """
        count = self.ready
        if not count or self.codec is None:
            return self
        block = self.codec.page
        pages = list(self.pages)
        step = max(_LARGEST // block, 1) * block
        new = [
            self._encode(at, min(at + step, count), pads, None if kept is None else kept[:, at : at + step])
            for at in range(0, count, step)
        ]
        for page in new:
            last = pages[-1] if pages else None
            if last is not None and last.tokens % block == 0 and last.tokens + page.tokens <= _LARGEST:
                pages[-1] = last.join(page)
            else:
                pages.append(page)
        kept_at, saved = self.kept_at, self.kept
        if kept is not None and bool(kept.any()):
            places = torch.arange(self.quantised, self.quantised + count, device=kept.device)
            kept_at, saved = _gather(
                [
                    (kept_at, saved),
                    (torch.where(kept, places, -1).to(torch.int32), self.recent[:, :, :count]),
                ]
            )
        return replace(
            self,
            kept_at=kept_at,
            kept=saved,
            pages=tuple(pages),
            recent=self.recent[:, :, count:].clone(),
        )

    def _encode(self, start: int, end: int, pads: Tensor, kept: Tensor | None) -> Page:
        assert self.codec is not None
        positions = _positions(self.quantised + start, end - start, pads)
        return self.codec.encode(self.recent[:, :, start:end].contiguous(), positions, kept)

    def dense(self, pads: Tensor) -> Tensor:
        """Return all tokens, ``(B, H, tokens, D)``: quantised ones as their codes say, kept ones exact."""
        if not self.pages or self.codec is None:
            return self.recent
        parts, start = [], 0
        for page in self.pages:
            positions = _positions(start, page.tokens, pads)
            parts.append(self.codec.decode(page, positions, self.recent.dtype))
            start += page.tokens
        states = torch.cat([*parts, self.recent], dim=-2)
        if self.kept_at.shape[1]:
            row, column = (self.kept_at >= 0).nonzero(as_tuple=True)
            states[row, :, self.kept_at[row, column].long()] = self.kept[row, :, column]
        return states

    def crop(self, tokens: int) -> PagedStates:
        """Drop the last ``tokens`` tokens. A page that is cut within a block grows no more."""
        recent = self.recent.shape[-2]
        if tokens <= 0:
            return self
        if tokens <= recent or self.codec is None:
            return replace(self, recent=self.recent[:, :, : max(recent - tokens, 0)].clone())
        left = keep = max(len(self) - tokens, 0)
        pages: list[Page] = []
        for page in self.pages:
            if left <= 0:
                break
            pages.append(page.truncate(left, self.codec.page))
            left -= page.tokens
        kept_at, kept = _gather([(torch.where(self.kept_at < keep, self.kept_at, -1), self.kept)])
        return replace(
            self,
            kept_at=kept_at,
            kept=kept,
            pages=tuple(pages),
            recent=self.recent[:, :, :0].clone(),
        )

    def map(self, operation: Callable[[Tensor], Tensor]) -> PagedStates:
        """Apply an operation on the batch axis, or a move to a device, to every tensor of tokens."""
        return replace(
            self,
            kept_at=operation(self.kept_at),
            kept=operation(self.kept),
            pages=tuple(page.map(operation) for page in self.pages),
            recent=operation(self.recent),
        )

    def select(self, indices: Tensor) -> PagedStates:
        """Keep the batch entries ``indices``, in that order."""
        return self.map(lambda tensor: tensor.index_select(0, indices.to(tensor.device)))

    def repeat_interleave(self, repeats: int) -> PagedStates:
        """Repeat each batch entry ``repeats`` times."""
        return self.map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))


def _positions(start: int, count: int, pads: Tensor) -> Tensor:
    return (torch.arange(start, start + count, device=pads.device) - pads[:, None]).clamp_min(0)


def _gather(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Join tokens with their places, drop those at -1, and close the gaps of each sequence."""
    at = torch.cat([places for places, _ in parts], dim=1)
    states = torch.cat([tokens for _, tokens in parts], dim=2)
    order = (at < 0).to(torch.int8).argsort(dim=1, stable=True)[:, : int((at >= 0).sum(1).max())]
    where = order[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
    return at.gather(1, order), states.gather(2, where)
