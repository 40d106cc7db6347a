"""Attention of one new token to packed pages by Triton, for NVIDIA GPUs.

The tokens in pages are split into chunks, each the work of one program (flash-decoding: Dao et al., 2023): it
unpacks the codes once for all query heads of a key-value head and writes for each its largest logit, the sum
of its exponentials and the components of the values so weighted. Plain torch attends to the tokens held
exactly, adds the parts up, and applies a basis of the values once to the sum. No decoded token is written to
memory. [inference: which keys are turned back to no position and which turn the query is ours.]

It computes in float32; products take three of tf32 each. It has been checked in Triton's interpreter and
compiled for GPUs, and never yet run on one.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sagittal.core.errors import InputError
from sagittal.language.codec import Codec, Page
from sagittal.language.pages import PagedStates
from sagittal.language.rope import Rope
from sagittal.language.tables import tables_of

__all__ = ["attend_pages"]

_SCALES = ("static", "channel", "token")  # in the order of the kernel's numbers
_NEAR = 128
"""Tokens of a chunk, at most."""
_ROWS = 16  # of a step; twice as many fill the registers of a program
_TINY = 1e-30


def attend_pages(
    query: Tensor,
    keys: PagedStates,
    values: PagedStates,
    *,
    scaling: float,
    pads: Tensor | None = None,
    visible: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Return what :func:`~sagittal.language.attend.attend` returns, in float32.

    Arguments are as for that function, which has checked them, on a GPU or, in Triton's interpreter, on a
    CPU. Keys and values are both in pages, of the same lengths and with the same tokens kept, or neither is;
    their layouts are those that :func:`~sagittal.language.attend.attend` hands to a kernel.

    Raises:
        InputError: A page's tensors are not of the sizes that its codec writes.
    """
    batch, heads, _, width = keys.recent.shape
    grouped = (query.float() * scaling).reshape(batch, heads, -1, width)
    exact, mask = _exact(keys, visible)
    logits = grouped @ exact.transpose(-1, -2)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None], -torch.inf)
    if sinks is not None:
        column = sinks.float().reshape(1, heads, -1, 1).expand(batch, -1, -1, -1)
        logits = torch.cat([logits, column], dim=-1)
    parts = _parts(grouped, keys, values, pads, visible, softcap) if keys.pages else None
    largest = logits if parts is None else torch.cat([logits, parts.most], dim=-1)
    most = largest.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)
    shares = torch.exp(logits - most)  # (B, H, G, tokens)
    total = shares.sum(-1)
    states, _ = _exact(values, None)
    found = shares[..., : states.shape[2]] @ states
    if parts is not None:
        weights = torch.exp(parts.most - most)  # (B, H, G, chunks)
        here = (weights * parts.sums).sum(-1)
        total = total + here
        found = found + _back(values.codec, torch.einsum("bhgn,bhngc->bhgc", weights, parts.values), here)
    return (found / total.clamp_min(_TINY)[..., None]).reshape(batch, query.shape[1], 1, -1)


@dataclass(frozen=True, eq=False)
class _Parts:
    """What the programs write, n chunks of G queries.

    ``most`` and ``sums`` are ``(B, H, G, n)``, ``values`` is ``(B, H, n, G, C)``.
    """

    most: Tensor
    sums: Tensor
    values: Tensor


def _exact(states: PagedStates, visible: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the tokens held exactly, ``(B, H, n, D)`` float32, and which of them count, ``(B or 1, n)``."""
    if not states.pages or not states.kept_at.shape[1]:
        recent = visible if visible is None else visible[:, states.quantised :]
        return states.recent.float(), recent
    kept = states.kept_at >= 0
    rest = torch.ones_like(states.kept_at[:1, :1], dtype=torch.bool).expand(1, states.recent.shape[2])
    if visible is not None:
        seen = visible.expand(len(kept), -1)
        kept, rest = kept & seen.gather(1, states.kept_at.clamp_min(0).long()), seen[:, states.quantised :]
    mask = torch.cat([kept, rest.expand(len(kept), -1)], dim=1)
    return torch.cat([states.kept, states.recent], dim=2).float(), mask


def _back(codec: Codec | None, components: Tensor, sums: Tensor) -> Tensor:
    """Return weighted sums of values, ``(B, H, G, D)``, from those of their components and of the weights."""
    assert codec is not None
    side = _side(codec, components.device)
    states = components * side.factor[:, None]
    if side.basis is not None:
        states = torch.einsum("bhgc,hdc->bhgd", states, side.basis.float().expand(codec.heads, -1, -1))
    return states * side.inverse[:, None] + side.mean[:, None] * sums[..., None]


# ---------------------------------------------------------------------- what the kernel reads


@dataclass(frozen=True, eq=False)
class _Side:
    """Tables of one codec on one device.

    Args:
        layout: Of each component: its plane, its row there, the plane's rows, its bits; int32, ``(4, H, C)``.
        levels: ``256 * bits + code`` to what it stands for, float32, ``(9 * 256,)``.
        factor: As in :class:`~sagittal.language.tables.Tables`, and so the rest.
        whole: Codes stand for themselves, as whole numbers.
    """

    layout: Tensor
    levels: Tensor
    factor: Tensor
    basis: Tensor | None
    inverse: Tensor
    mean: Tensor
    group: int
    whole: bool


@dataclass(frozen=True, eq=False)
class _Laid:
    """Where the pages of one layer lie.

    Args:
        of: The pages of keys and values, and the places of the kept tokens, that this was made for.
        keys: Address of each tensor of a page, 0 for one that it has not, int64, ``(pages, planes + 2)``.
        values: Likewise.
        held: Tokens that a page has codes for, int32, ``(pages,)``.
        chunks: Page, first token there, tokens, and place of the first token, int32, ``(chunks, 4)``.
        live: Which tokens in pages are not kept elsewhere, bool, ``(B, tokens)``; None if none is kept.
        copies: Tensors that must live as long, because a page's own do not lie in one piece.
    """

    of: tuple[weakref.ref[Any], ...]
    keys: Tensor
    values: Tensor
    held: Tensor
    chunks: Tensor
    live: Tensor | None
    copies: list[Tensor]


_sides: weakref.WeakKeyDictionary[Codec, dict[torch.device, _Side]] = weakref.WeakKeyDictionary()
_laid: weakref.WeakKeyDictionary[Page, _Laid] = weakref.WeakKeyDictionary()
_turns: weakref.WeakKeyDictionary[Rope, dict[torch.device, tuple[Tensor, Tensor]]] = (
    weakref.WeakKeyDictionary()
)


def _side(codec: Codec, device: torch.device) -> _Side:
    known = _sides.setdefault(codec, {})
    if device not in known:
        known[device] = _new_side(codec, device)
    return known[device]


def _new_side(codec: Codec, device: torch.device) -> _Side:
    tables, widths = tables_of(codec), codec.widths
    bits = torch.tensor(tables.bits).int()
    layout = torch.zeros(4, *bits.shape, dtype=torch.int32)
    levels = torch.zeros(9, 256)
    for plane, (width, held) in enumerate(zip(widths, tables.levels, strict=True)):
        at = bits == width
        rows = int(at.sum())
        layout[0][at] = plane
        layout[1][at] = torch.arange(rows, dtype=torch.int32)
        layout[2][at] = rows
        levels[width, : 1 << width] = torch.tensor(held)
    layout[3] = bits

    def there(array: Any) -> Tensor:
        return torch.tensor(array, device=device)

    return _Side(
        layout=layout.to(device),
        levels=levels.flatten().to(device),
        factor=there(tables.factor),
        basis=None if tables.basis is None else there(tables.basis),
        inverse=there(tables.inverse),
        mean=there(tables.mean),
        group=tables.group,
        whole=codec.coding.levels == "uniform",
    )


def _turn(rope: Rope, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return frequencies, ``(pairs,)``, and cosines and sines of positions from 0, ``(2, pairs, _NEAR)``."""
    known = _turns.setdefault(rope, {})
    if device not in known:
        frequencies = rope.frequencies.float().cpu()
        angles = frequencies[:, None] * torch.arange(_NEAR, dtype=torch.float32)
        near = torch.stack([angles.cos(), angles.sin()])
        known[device] = frequencies.to(device), near.to(device)
    return known[device]


def _lay(keys: PagedStates, values: PagedStates, size: int) -> _Laid:
    """Return where the pages lie, in chunks of ``size`` tokens; made anew only when a page is."""
    things = (*keys.pages, *values.pages, keys.kept_at)
    known = _laid.get(keys.pages[-1])
    if (
        known is None
        or len(known.of) != len(things)
        or any(a() is not b for a, b in zip(known.of, things, strict=True))
    ):
        known = _new_laid(keys, values, size, things)
        if not known.copies:
            _laid[keys.pages[-1]] = known
    return known


def _new_laid(keys: PagedStates, values: PagedStates, size: int, things: tuple[Any, ...]) -> _Laid:
    assert keys.codec is not None
    device, block = keys.recent.device, keys.codec.page
    copies: list[Tensor] = []
    chunks, start = [], 0
    for number, page in enumerate(keys.pages):
        for first in range(0, page.tokens, size):
            chunks.append((number, first, min(size, page.tokens - first), start + first))
        start += page.tokens
    live = None
    if keys.kept_at.shape[1]:
        live = torch.ones((len(keys.kept_at), start + 1), dtype=torch.bool, device=device)
        at = torch.where(keys.kept_at >= 0, keys.kept_at, start).long()  # one place more, for none
        live = live.scatter_(1, at, False)[:, :start].contiguous()
    return _Laid(
        of=tuple(map(weakref.ref, things)),
        keys=torch.tensor([_addresses(keys, page, copies) for page in keys.pages], device=device),
        values=torch.tensor([_addresses(values, page, copies) for page in values.pages], device=device),
        held=torch.tensor([_held(page, block) for page in keys.pages], dtype=torch.int32, device=device),
        chunks=torch.tensor(chunks, dtype=torch.int32, device=device),
        live=live,
        copies=copies,
    )


def _held(page: Page, block: int) -> int:
    return -(-page.tokens // block) * block


def _addresses(states: PagedStates, page: Page, copies: list[Tensor]) -> list[int]:
    """Return where a page's planes, scale and offset lie, each checked against what the codec writes."""
    codec = states.codec
    assert codec is not None
    batch, held, inner = states.recent.shape[0], _held(page, codec.page), codec.heads * codec.components
    bits = tables_of(codec).bits
    wanted: list[tuple[Tensor | None, tuple[int, ...] | None, torch.dtype]] = [
        (plane, (batch, int((bits == width).sum()), held // 8 * width), torch.uint8)
        for plane, width in zip(page.planes, codec.widths, strict=True)
    ]
    scale: tuple[int, ...] | None
    if codec.coding.scale == "static":
        scale, dtype = ((batch, codec.heads, held) if codec.coding.gain else None), torch.uint8
    else:
        measured = (
            (inner, held // codec.page)
            if codec.coding.scale == "channel"
            else (inner // _side(codec, states.recent.device).group, held)
        )
        scale, dtype = (batch, *measured), torch.float16
    wanted += [(page.scale, scale, dtype), (page.offset, scale if dtype == torch.float16 else None, dtype)]
    found = []
    for tensor, shape, kind in wanted:
        if tensor is None or shape is None:
            if tensor is not None or shape is not None:
                raise InputError("a page lacks a tensor, or has one more than its coding")
            found.append(0)
            continue
        if tuple(tensor.shape) != shape or tensor.dtype != kind or tensor.device != states.recent.device:
            raise InputError(
                "a page's tensors have another size",
                value=f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}",
                expected=f"{shape} {kind} on {states.recent.device}",
            )
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
            copies.append(tensor)
        found.append(tensor.data_ptr())
    return found


def _constants(prefix: str, codec: Codec, tensors: int, side: _Side, size: int, rows: int) -> dict[str, Any]:
    """Return the kernel's constants about keys or values; ``rows`` is 0 where rows are of several groups."""
    scale = codec.coding.scale
    aligned = rows and side.group % rows == 0 and codec.components % rows == 0
    shared = codec.page % size == 0 if scale == "channel" else bool(aligned)
    numbers = {
        "C": codec.components,
        "TENSORS": tensors,
        "SCALE": _SCALES.index(scale),
        "BLOCK": codec.page,
        "GROUP": side.group,
        "WHOLE": side.whole,
        "SHARED": shared,
        "GAIN": scale == "static" and codec.coding.gain,
    }
    return {f"{prefix}_{name}": number for name, number in numbers.items()}


def _parts(
    query: Tensor,
    keys: PagedStates,
    values: PagedStates,
    pads: Tensor | None,
    visible: Tensor | None,
    softcap: float | None,
) -> _Parts:
    """Attend to the tokens in pages; ``query`` is ``(B, H, G, D)``, float32, scaled."""
    from sagittal.language.triton_kernel import attend_chunk

    codec, coded = keys.codec, values.codec
    assert codec is not None
    assert coded is not None
    device, (batch, heads, group, width) = query.device, query.shape
    size = _chunk(codec, coded)
    laid = _lay(keys, values, size)
    side, other = _side(codec, device), _side(coded, device)
    rope = codec.rope
    same = query  # not read where keys turn
    if rope is None:
        same = torch.einsum("bhgd,hd->bhg", query, side.mean).contiguous()
        query = query * side.inverse[:, None]
        if side.basis is not None:
            query = torch.einsum("bhgd,hdc->bhgc", query, side.basis.float().expand(heads, -1, -1))
        query = query * side.factor[:, None]
    frequencies, near = (side.mean, side.mean) if rope is None else _turn(rope, device)
    pairs = 0 if rope is None else len(frequencies)
    chunks = len(laid.chunks)
    most, sums = (torch.empty((batch, heads, chunks, group), device=device) for _ in range(2))
    found = torch.empty((batch, heads, chunks, group, coded.components), device=device)
    seen = None if visible is None else visible.contiguous()
    turned_alone = rope is not None and side.basis is None
    with torch.cuda.device(device if device.type == "cuda" else -1):
        attend_chunk[chunks, batch * heads](
            query.contiguous(), same, laid.chunks, laid.keys, laid.values, laid.held,
            side.layout, side.levels, side.factor, side.factor if side.basis is None else side.basis,
            side.inverse, side.mean, other.layout, other.levels,
            frequencies, near, laid.held if pads is None else pads,
            laid.held if laid.live is None else laid.live.view(torch.uint8),
            laid.held if seen is None else seen.view(torch.uint8), most, sums, found,
            chunks, keys.quantised, int(pads is not None and len(pads) > 1),
            len(keys) if seen is not None and len(seen) > 1 else 0,
            float(softcap or 1.0), 1.0 if rope is None else float(rope.scaling),
            H=heads, G=group, D=width, PAIRS=pairs, TURNED=rope is not None,
            BASIS=side.basis is not None, ONE=side.basis is not None and len(side.basis) == 1,
            CAPPED=softcap is not None, PADDED=pads is not None,
            KEPT=laid.live is not None, MASKED=seen is not None,
            **_constants("K", codec, laid.keys.shape[1], side, size, 0 if turned_alone else _ROWS),
            **_constants("V", coded, laid.values.shape[1], other, size, _ROWS),
            Q=_power(group), P=_power(pairs), REST=_power(width - 2 * pairs), R=_ROWS, T=size, NEAR=_NEAR,
            num_warps=8 if rope is not None else 4,
        )  # fmt: skip
    return _Parts(most.transpose(2, 3), sums.transpose(2, 3), found)


def _power(number: int) -> int:
    """Return the power of two that holds so many rows of a product, at least 16."""
    return max(16, 1 << (number - 1).bit_length()) if number > 1 else 16


def _chunk(codec: Codec, coded: Codec) -> int:
    """Return tokens of a chunk: fewer for wide heads, and for channels scaled in short blocks of tokens."""
    measured = "channel" in (codec.coding.scale, coded.coding.scale)
    short = max(codec.width, coded.width) > 128 or (measured and codec.page % _NEAR != 0)
    return _NEAR // 2 if short else _NEAR
