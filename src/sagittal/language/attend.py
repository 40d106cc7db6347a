"""Attention of one new token to a packed cache, computed on the pages as they lie.

A plain torch reference decodes all tokens first. The kernels of the extension ``sagittal._native``, for CPUs,
and the one in Triton, for NVIDIA GPUs, unpack a few tokens at a time and keep no decoded token;
:mod:`~sagittal.language.extension` says where they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sagittal.core.errors import InputError
from sagittal.language import extension
from sagittal.language.codec import Codec
from sagittal.language.extension import REFERENCE, TRITON, chosen, computes, kernels
from sagittal.language.gpu import attend_pages
from sagittal.language.pages import PagedStates
from sagittal.language.rope import Rope
from sagittal.language.tables import tables_of

__all__ = ["attend", "kernels", "reference"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # in the order of the extension's numbers
_SCALES = ("static", "channel", "token")
_TILE = 16
_WIDEST, _LONGEST_BLOCK = 1024, 4096


def attend(
    query: Tensor,
    keys: PagedStates,
    values: PagedStates,
    *,
    scaling: float,
    pads: Tensor | None = None,
    visible: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    kernel: str | None = None,
) -> Tensor:
    """Return the attention of one new token to all tokens held, ``(B, Hq, 1, Dv)``, in the query's dtype.

    Args:
        query: The new token's queries after RoPE, float32, bfloat16 or float16, ``(B, Hq, 1, D)``. Query
            heads ``i * Hq / H`` to ``(i + 1) * Hq / H - 1`` read key-value head ``i``.
        keys: The layer's keys, which already hold the new token.
        values: The layer's values, as many tokens.
        scaling: Factor on the products of query and key.
        pads: Padding tokens before each text, ``(B,)`` or ``(1,)``: a token's position is its place less
            these. They are attended to like any token that is visible.
        visible: Tokens to attend to, bool, ``(B or 1, tokens)``; None for all. A text that sees nothing gets
            zeros.
        softcap: Logits ``x`` become ``softcap * tanh(x / softcap)``.
        sinks: A logit for each query head, ``(Hq,)``, that takes part in the softmax and brings no value.
        kernel: One of :func:`kernels`; None for what the environment variable ``SAGITTAL_KERNEL`` says, or
            else the fastest that has been run on such a device. A layout or a device that a kernel does not
            read is left to ``reference``.

    Raises:
        InputError: The kernel is unknown or does not run here, or shapes, dtypes, devices or lengths
            disagree.
    """
    name = chosen(kernel, query.device.type)
    _check(query, keys, values, scaling, pads, visible, softcap, sinks)
    compute: Callable[..., Tensor] = reference
    if name != REFERENCE and _readable(name, keys, values):
        compute = attend_pages if name == TRITON else partial(_computed, name)
    return compute(
        query, keys, values, scaling=scaling, pads=pads, visible=visible, softcap=softcap, sinks=sinks
    ).to(query.dtype)


def reference(
    query: Tensor,
    keys: PagedStates,
    values: PagedStates,
    *,
    scaling: float,
    pads: Tensor | None = None,
    visible: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return what :func:`attend` returns, in plain torch, computed and returned in ``dtype``.

    Pages are decoded in float32 whatever the dtype. Arguments as for :func:`attend`, and not checked.
    """
    if pads is None:
        pads = torch.zeros(1, dtype=torch.int64, device=query.device)
    k, v = (
        replace(states, kept=states.kept.to(dtype), recent=states.recent.to(dtype)).dense(pads)
        for states in (keys, values)
    )
    batch, heads, tokens, _ = k.shape
    grouped = query.to(dtype).reshape(batch, heads, -1, query.shape[-1])
    logits = scaling * grouped @ k.transpose(-1, -2)  # (B, H, Hq / H, tokens)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if visible is not None:
        logits = logits.masked_fill(~visible[:, None, None, :], -torch.inf)
    if sinks is not None:
        column = sinks.to(dtype).reshape(1, heads, -1, 1).expand(batch, -1, -1, -1)
        logits = torch.cat([logits, column], dim=-1)
    shares = torch.softmax(logits, dim=-1)[..., :tokens]
    if visible is not None:
        shares = shares.masked_fill(~visible.any(-1)[:, None, None, None], 0.0)
    return (shares @ v).reshape(batch, query.shape[1], 1, v.shape[-1])


def _check(
    query: Tensor,
    keys: PagedStates,
    values: PagedStates,
    scaling: float,
    pads: Tensor | None,
    visible: Tensor | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> None:
    if query.ndim != 4 or query.shape[2] != 1 or query.dtype not in _DTYPES:
        raise InputError(
            "the query is not of one new token",
            value=f"{tuple(query.shape)} {query.dtype}",
            expected="(B, Hq, 1, D) float32, bfloat16 or float16",
        )
    batch, heads, _, width = keys.recent.shape
    if query.shape[0] != batch or query.shape[1] % heads or not query.shape[1] or query.shape[3] != width:
        raise InputError(
            "the query is not of these keys",
            value=tuple(query.shape),
            expected=f"({batch}, a multiple of {heads}, 1, {width})",
        )
    if values.recent.shape[:2] != (batch, heads) or len(values) != len(keys):
        raise InputError(
            "keys and values disagree",
            value=f"{tuple(values.recent.shape[:2])} with {len(values)} tokens",
            expected=f"{(batch, heads)} with {len(keys)} tokens",
        )
    if not len(keys):
        raise InputError("there is no token to attend to", value=0, expected="at least 1 token")
    if not (scaling == scaling and abs(scaling) < float("inf")):
        raise InputError("scaling is not finite", value=scaling)
    if softcap is not None and not 0 < softcap < float("inf"):
        raise InputError("softcap is out of range", value=softcap, expected="a positive number")
    others = {"keys": keys.recent, "values": values.recent, "pads": pads, "visible": visible, "sinks": sinks}
    for name, tensor in others.items():
        if tensor is not None and tensor.device != query.device:
            raise InputError(
                f"{name} and the query are on two devices", value=tensor.device, expected=str(query.device)
            )
    if pads is None and visible is None and sinks is None:
        return
    shapes = {
        "pads": (pads, ((batch,), (1,)), torch.int64),
        "visible": (visible, ((batch, len(keys)), (1, len(keys))), torch.bool),
        "sinks": (sinks, ((query.shape[1],),), None),
    }
    for name, (tensor, allowed, dtype) in shapes.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) not in allowed:
            raise InputError(f"{name} has another shape", value=tuple(tensor.shape), expected=f"{allowed[0]}")
        if (dtype is not None and tensor.dtype != dtype) or (
            dtype is None and not tensor.is_floating_point()
        ):
            raise InputError(
                f"{name} has another dtype", value=tensor.dtype, expected=str(dtype or "a floating-point one")
            )


# ---------------------------------------------------------------------- what a kernel reads


def _readable(kernel: str, keys: PagedStates, values: PagedStates) -> bool:
    """Tell whether a kernel other than the reference reads these layouts where they lie."""
    for states in (keys, values):
        if not computes(kernel, states.recent.device.type) or states.recent.dtype not in _DTYPES:
            return False
    known = keys.worked_out.get(kernel)
    if known is None or known[0] is not values.worked_out:
        known = keys.worked_out[kernel] = values.worked_out, _paired(kernel, keys, values)
    return bool(known[1])


def _paired(kernel: str, keys: PagedStates, values: PagedStates) -> bool:
    """Tell whether a kernel reads both, and both say alike where tokens are held."""
    if not all(states.codec is None or _plain(states.codec) for states in (keys, values)):
        return False
    if values.codec is not None and values.codec.rope is not None:
        return False  # values that turn
    if keys.codec is None or values.codec is None:
        return kernel != TRITON or keys.codec is values.codec  # pages beside exact tokens, or neither
    same = keys.codec.page == values.codec.page and keys.kept_at.shape == values.kept_at.shape
    tokens = [[page.tokens for page in states.pages] for states in (keys, values)]
    return same and tokens[0] == tokens[1] and torch.equal(keys.kept_at, values.kept_at)


def _plain(codec: Codec) -> bool:
    coding = codec.coding
    return (
        coding.rotation != "hadamard"
        and coding.order is None
        and not coding.outliers
        and codec.page % _TILE == 0
        and codec.page <= _LONGEST_BLOCK
        and max(codec.width, codec.components) <= _WIDEST
    )


def _computed(
    kernel: str,
    query: Tensor,
    keys: PagedStates,
    values: PagedStates,
    *,
    scaling: float,
    pads: Tensor | None,
    visible: Tensor | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    batch, heads, _, _ = keys.recent.shape
    held: list[Tensor] = []  # what must live until the call returns
    memory = partial(_memory, held)
    out = torch.empty((batch, query.shape[1], 1, values.recent.shape[-1]))
    rope = None
    if keys.codec is not None and keys.codec.rope is not None and keys.pages:
        coarse, fine = _turns(keys.codec.rope, keys.quantised)
        rope = len(keys.codec.rope.frequencies), memory(coarse), memory(fine)
    try:
        extension.native.attend(
            kernel=kernel,
            threads=torch.get_num_threads(),
            batch=batch,
            heads=heads,
            queries=query.shape[1] // heads,
            query=memory(query.float()),
            scaling=scaling,
            keys=_pages(keys),
            values=_pages(values),
            recent_keys=memory(keys.recent),
            recent_values=memory(values.recent),
            pads=None if pads is None else memory(pads),
            visible=None if visible is None else memory(visible),
            softcap=softcap or 0.0,
            sinks=None if sinks is None else memory(sinks.float()),
            rope=rope,
            out=(out.data_ptr(), out.nbytes),
        )
    except ValueError as error:
        raise InputError(str(error), expected="keys and values as a cache holds them") from error
    return out


def _memory(held: list[Tensor], tensor: Tensor) -> tuple[int, int]:
    """Return where a tensor lies and its bytes; what lies there is added to ``held``."""
    tensor = tensor.contiguous()
    held.append(tensor)
    return tensor.data_ptr(), tensor.nbytes


def _pages(states: PagedStates) -> Any:
    """Return the extension's view of all but the recent tokens, made once for the same pages and dtype."""
    dtype = states.recent.dtype
    known = states.worked_out.get(dtype)
    if known is None:
        held: list[Tensor] = []
        memory = partial(_memory, held)
        pages = [
            (
                page.tokens,
                [memory(plane) for plane in page.planes],
                *(None if tensor is None else memory(tensor) for tensor in (page.scale, page.offset)),
            )
            for page in states.pages
        ]
        batch, heads, _, width = states.recent.shape
        made = extension.native.Pages(
            batch=batch,
            heads=heads,
            width=width,
            number=_DTYPES.index(dtype),
            coding=_coding(states.codec) if states.codec is not None and states.pages else None,
            kept_at=memory(states.kept_at),
            kept=memory(states.kept),
            pages=pages,
        )
        known = states.worked_out[dtype] = made, held
    return known[0]


_codings: weakref.WeakKeyDictionary[Codec, Any] = weakref.WeakKeyDictionary()
_tables: weakref.WeakKeyDictionary[Rope, tuple[Tensor, Tensor]] = weakref.WeakKeyDictionary()


def _coding(codec: Codec) -> Any:
    """Return the extension's tables of a codec. The basis is the plan's own array, not a copy."""
    if codec not in _codings:
        _codings[codec] = _new_coding(codec)
    return _codings[codec]


def _new_coding(codec: Codec) -> Any:
    coding, tables = codec.coding, tables_of(codec)
    return extension.native.Coding(
        width=codec.width,
        page=codec.page,
        scale=_SCALES.index(coding.scale),
        group=tables.group,
        gain=coding.scale == "static" and coding.gain,
        turned=codec.rope is not None,
        bits=tables.bits,
        levels=tables.levels,
        factor=tables.factor,
        inverse=tables.inverse,
        mean=tables.mean,
        basis=tables.basis,
    )


def _turns(rope: Rope, tokens: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines: of every 16th position times the scaling, and of positions 0 to 31.

    A token's turn is that of the last 16th position before it, which is applied to the query, followed by one
    of at most 31: ``(rows, 2, pairs)``, its last axis filled with zeros to whole tiles, and
    ``(2, pairs, 32)``.
    """
    known = _tables.get(rope)
    rows = -(-tokens // _TILE) + 1
    if known is None or len(known[0]) < rows:
        frequencies = rope.frequencies.float().cpu()
        angles = torch.arange(0, 2 * rows * _TILE, _TILE, dtype=torch.float32)[:, None] * frequencies
        coarse = rope.scaling * torch.stack([angles.cos(), angles.sin()], dim=1)
        near = frequencies[:, None] * torch.arange(2 * _TILE, dtype=torch.float32)
        padded = torch.nn.functional.pad(coarse, (0, -len(frequencies) % _TILE))
        known = _tables[rope] = padded, torch.stack([near.cos(), near.sin()])
    return known
