"""Attention of a transformers model to a low-bit cache, read as it lies in memory.

With :func:`use_low_bit_attention` a model asks the function below for its attention. Where one new token
comes to a full-attention layer of a :class:`~sagittal.language.cache.LowBitCache`, the cache then hands out
no dequantised tensors but *handles*: tensors of the right shape that take the memory of one number, with the
packed states as an attribute, which go to :func:`~sagittal.language.attend.attend`. Everything else is
attended to densely, as transformers' ``sdpa`` does: a prefill, several new tokens, sliding layers, other
caches.

A handle lives from the cache's update to the attention call of the same layer. Its number is NaN, and keys
that have lost the attribute on the way are refused, so a model that changes keys in between cannot go on
unnoticed. ``torch.compile`` runs both ends outside its graphs, with a break in each layer, because pages come
and go as the text grows: a compiled model is right, and its graphs end at the cache.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sagittal.core.errors import ModelError
from sagittal.language.attend import attend
from sagittal.language.extension import REFERENCE, chosen, computes
from sagittal.language.pages import PagedStates

__all__ = ["NAME", "use_low_bit_attention"]

NAME = "sagittal"
"""What transformers calls this attention: ``from_pretrained(..., attn_implementation="sagittal")``."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ROWS = 256  # of a map of attention at a time


def use_low_bit_attention(model: Any) -> None:
    """Let a model read a low-bit cache as it is packed; ``model.set_attn_implementation("sdpa")`` undoes it.

    It serves a CPU, and an NVIDIA GPU where ``SAGITTAL_KERNEL=triton`` asks for it, which has been tried in
    Triton's interpreter only. Elsewhere, and where gradients are asked for, attention is dense as before. The
    cache must be made from the model's own ``config``, which tells it what the model asks for.

    Args:
        model: A model of transformers.

    Raises:
        ModelError: The model's attention cannot be chosen.
    """
    model.set_attn_implementation(NAME)
    if model.config.get_text_config(decoder=True)._attn_implementation != NAME:
        raise ModelError("the model's attention cannot be chosen", value=type(model).__name__)


class Packed(NamedTuple):
    """What a handle stands for: keys or values of a layer, and the padding before each text, ``(B,)``."""

    states: PagedStates
    pads: Tensor


def handle(states: PagedStates, pads: Tensor) -> Tensor:
    """Return a tensor of the shape of ``states.dense(pads)`` that holds one number."""
    batch, heads, _, width = states.recent.shape
    empty = _nan(states.recent.dtype, states.recent.device).expand(batch, heads, len(states), width)
    empty._sagittal_packed = Packed(states, pads)  # type: ignore[attr-defined]
    return empty


@lru_cache
def _nan(dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # or no gradient could ever flow beside it
        return torch.full((), torch.nan, dtype=dtype, device=device)


def _packed(tensor: Tensor) -> Packed | None:
    found: Packed | None = getattr(tensor, "_sagittal_packed", None)
    if found is None and tensor.numel() > 1 and not any(tensor.stride()):
        raise ModelError(
            "the model changes keys or values between cache and attention",
            expected='model.set_attn_implementation("sdpa")',
        )
    return found


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Follow the contract of transformers' attention functions: ``(B, Hq, n, D)`` to ``(B, n, Hq, D)``."""
    keys, values = _packed(key), _packed(value)
    if keys is not None and values is not None:
        if _readable(query, keys.states, values.states, attention_mask, kwargs):
            found = attend(
                query,
                keys.states,
                values.states,
                scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
                pads=keys.pads,
                visible=None if attention_mask is None else attention_mask[:, 0, 0],
                softcap=softcap,
                sinks=s_aux,
            )
            return found.transpose(1, 2).contiguous(), None
        key, value = keys.states.dense(keys.pads), values.states.dense(values.pads)
    if softcap is not None or s_aux is not None:
        dropout = kwargs.get("dropout", 0.0)
        return _eager(module, query, key, value, attention_mask, scaling, softcap, s_aux, dropout), None
    if query.shape[2] == 1 and attention_mask is None and _plain(kwargs):
        # sdpa itself would ask for grouped heads here, which takes up to twice as long on a CPU
        batch, heads, _, width = query.shape
        grouped = query.reshape(batch, key.shape[1], -1, width)
        found = scaled_dot_product_attention(grouped, key, value, scale=scaling)
        return found.reshape(batch, 1, heads, value.shape[-1]), None
    # rows of a head one behind the other, as a cache that copies what it is given hands them out: a CPU is
    # slower where they lie among those of other heads
    return sdpa_attention_forward(  # type: ignore[no-any-return]
        module, query, key.contiguous(), value.contiguous(), attention_mask, scaling=scaling, **kwargs
    )


def _plain(kwargs: dict[str, Any]) -> bool:
    """Whether nothing is asked for that only transformers' own function knows of."""
    return not kwargs.get("dropout") and all(kwargs.get(name) is None for name in ("position_bias", "cache"))


def _readable(
    query: Tensor, keys: PagedStates, values: PagedStates, mask: Tensor | None, kwargs: dict[str, Any]
) -> bool:
    """Whether packed states can be attended to as they lie."""
    if mask is not None and (mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[1:3] != (1, 1)):
        return False
    wants_gradient = query.requires_grad or keys.recent.requires_grad or values.recent.requires_grad
    return (
        _kernel_on(query.device.type)
        and query.dtype in _DTYPES
        and query.shape[2] == 1
        and _plain(kwargs)
        and not (torch.is_grad_enabled() and wants_gradient)
    )


def _kernel_on(device: str) -> bool:
    """Whether packed states are attended to faster than unpacked: off a CPU, only by a kernel made for it."""
    if device == "cpu":
        return True
    kernel = chosen(device=device)
    return kernel != REFERENCE and computes(kernel, device)


def _eager(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
    dropout: float,
) -> Tensor:
    """Attend densely with capped logits, or with sinks that bring no value: sdpa knows neither."""
    batch, heads, tokens, width = query.shape
    groups = heads // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scaling = width**-0.5 if scaling is None else scaling
    if mask is None and tokens > 1 and getattr(module, "is_causal", True):
        mask = torch.ones(tokens, key.shape[2], dtype=torch.bool, device=query.device).tril()[None, None]
    found = []
    for start in range(0, tokens, _ROWS):
        logits = scaling * query[:, :, start : start + _ROWS] @ key.transpose(-1, -2)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if mask is not None:
            part = mask[:, :, start : start + _ROWS]
            least = torch.finfo(logits.dtype).min
            logits = logits.masked_fill(~part, least) if part.dtype == torch.bool else logits + part
        if sinks is not None:
            column = sinks.to(logits).reshape(1, -1, 1, 1).expand(batch, -1, logits.shape[2], 1)
            logits = torch.cat([logits, column], dim=-1)
        shares = logits.softmax(-1, dtype=torch.float32)[..., : key.shape[2]]
        found.append(torch.dropout(shares, dropout, train=True).to(value.dtype) @ value)
    return torch.cat(found, dim=2).transpose(1, 2).contiguous()


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)  # else every mask is None, and padding is attended to
