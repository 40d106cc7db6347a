"""What the layers of one cache know together about its texts: where each begins, and its sink tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sagittal.core.errors import InputError
from sagittal.language.plan import Sinks
from sagittal.language.sinks import SinkProfile

__all__ = ["Sequences"]


class Sequences:
    """Padding and sinks of the texts in a batch, seen by one layer of the cache and used by all.

    A cache is told neither the attention mask nor the hidden states. Padding shows in the keys of the first
    layer: ``generate`` gives all padding tokens of a text one position, so their keys are equal, while equal
    tokens of a text stand at different positions. Sinks show in the values of the first layer behind the one
    in which massive activations emerge (see :mod:`sagittal.language.sinks`).

    Args:
        sinks: Which tokens stay exact.

    A batch whose only padding is a single token is taken as unpadded: what follows is coded for positions one
    too high, which costs sharpness and nothing else.
    """

    def __init__(self, sinks: Sinks) -> None:
        self.sinks = sinks
        self._profile = None if sinks.profile is None else SinkProfile.from_json(sinks.profile)
        self._reads = None
        if self._profile is not None:
            self._reads = self._profile.layer if sinks.reads is None else sinks.reads
        self._pads: Tensor | None = None
        self._marked: Tensor | None = None  # (B, T): tokens of which the deciding layer has seen the values

    @property
    def pads(self) -> Tensor:
        """Padding tokens before each text, ``(B,)``; of shape ``(1,)`` where nobody looked for any."""
        return torch.zeros(1, dtype=torch.int64) if self._pads is None else self._pads

    @property
    def tensors(self) -> Iterator[Tensor]:
        """Everything held."""
        yield from (tensor for tensor in (self._pads, self._marked) if tensor is not None)

    def observe(self, layer: int, keys: Tensor, values: Tensor, *, fresh: bool) -> None:
        """Take note of new tokens as they come to a full-attention layer."""
        if layer == 0 and fresh:
            self._pads = leading_pads(keys)
        elif self._pads is None:  # a layer on its own
            self._pads = torch.zeros(keys.shape[0], dtype=torch.int64, device=keys.device)
        if layer == self._reads:
            self._mark(values, fresh)

    def kept(self, layer: int, start: int, end: int) -> Tensor:
        """Return which of the tokens ``start`` to ``end`` a layer keeps exact, bool, ``(B, n)``."""
        places = torch.arange(start, end, device=self.pads.device)
        count = self.sinks.count if self._reads is None else self.sinks.first
        first = (places >= self._starts) & (places < self.pads[:, None] + count) & (count > 0)
        layers = self.sinks.layers
        if self._reads is None or self._marked is None or layer < self._reads:
            return first  # before the layer that tells them, sinks are tokens like any other
        return first if layers is not None and layer not in layers else first | self._marked[:, start:end]

    @property
    def _starts(self) -> Tensor:
        """Where each text begins, ``(B, 1)``, or one earlier after padding.

        A text that begins with the token it is padded with begins there: the two look alike, and that token
        is a sink like any first one.
        """
        return (self.pads - (self.pads > 0).long())[:, None]

    def _mark(self, values: Tensor, fresh: bool) -> None:
        assert self._profile is not None
        scores = self._profile.scores(values)
        places = torch.arange(scores.shape[1], device=scores.device)
        before = 0 if fresh or self._marked is None else self._marked.shape[1]
        real = places + before >= self._starts
        found = (scores > self._profile.threshold) & real
        if self.sinks.count:
            room = self.sinks.count - (0 if not before or self._marked is None else self._marked.sum(1))
            ranks = scores.masked_fill(~found, -torch.inf).argsort(dim=1, descending=True).argsort(dim=1)
            found &= ranks < torch.as_tensor(room, device=ranks.device).reshape(-1, 1)
        self._marked = found if not before else torch.cat([self._marked, found], dim=1)  # type: ignore[list-item]

    def _decides(self, layer: int) -> tuple[bool, bool]:
        """Return whether padding, and whether the marked sinks, follow what happens to this layer."""
        return layer == 0, layer == self._reads

    def crop(self, layer: int, tokens: int) -> None:
        """Forget what lies behind ``tokens`` tokens."""
        if self._decides(layer)[1] and self._marked is not None:
            self._marked = self._marked[:, :tokens].clone()

    def map(self, layer: int, operation: Callable[[Tensor], Tensor]) -> None:
        """Apply an operation on the batch axis."""
        padding, sinks = self._decides(layer)
        if padding and self._pads is not None:
            self._pads = operation(self._pads)
        if sinks and self._marked is not None:
            self._marked = operation(self._marked)

    def reset(self, layer: int) -> None:
        """Forget the texts."""
        padding, sinks = self._decides(layer)
        if padding:
            self._pads = None
        if sinks:
            self._marked = None

    @property
    def known(self) -> tuple[Tensor | None, Tensor | None]:
        """What :meth:`restore` goes back to."""
        return self._pads, self._marked

    def restore(self, known: tuple[Tensor | None, Tensor | None]) -> None:
        """Go back to what was known."""
        self._pads, self._marked = known

    def fork(self) -> Sequences:
        """Return an independent object that shares the tensors, none of which is ever written to."""
        return copy.copy(self)


def leading_pads(keys: Tensor) -> Tensor:
    """Return how many padding tokens each text begins with, from its keys after RoPE, ``(B, H, T, D)``.

    Raises:
        InputError: There is no token.
    """
    batch, tokens = keys.shape[0], keys.shape[2]
    if not tokens:
        raise InputError("there are no tokens to hold", value=0, expected="at least 1 token")
    flat = keys.detach().transpose(1, 2).flatten(2).float()
    none = torch.zeros(batch, dtype=torch.int64, device=keys.device)
    if batch == 1 or tokens == 1:
        return none
    near = 1e-3 * flat[:, :1].square().mean(-1, keepdim=True).sqrt()

    def same(others: Tensor, first: Tensor) -> Tensor:
        return ((others - first).abs() <= near + 1e-2 * first.abs()).all(-1)

    run = same(flat[:, 1:], flat[:, :1]).long().cumprod(1).sum(1)
    longest = int(run.argmax())
    if not int(run[longest]):
        return none
    single = same(flat[:, :1], flat[longest, :1])[:, 0]
    return torch.where(run > 0, run + 1, single.long())
