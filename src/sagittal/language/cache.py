"""A key-value cache for transformers that holds most of its tokens in few bits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    Cache,
    CacheLayerMixin,
    get_layer_types_and_kwargs,
)

from sagittal.core.errors import InputError
from sagittal.language.pages import Layout, PagedStates
from sagittal.language.plan import EXACT, CachePlan

__all__ = ["LowBitCache", "LowBitLayer", "cache_bytes", "cache_bytes_16bit"]


class LowBitLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """Keys and values of one full-attention layer: sinks exact, pages quantised, recent tokens exact.

    An update that meets an empty layer returns what it was given, so a prefill is exact. Later updates
    return the sinks, the dequantised pages and everything newer as it came, the update's own tokens included.
    Pages are quantised after an update of more than ``plan.residual`` tokens, or one into an empty layer, and
    otherwise before the next update: so a guess of a few tokens that is cropped away leaves no trace. A token
    is quantised at most once, and never decoded and encoded again.

    Args:
        plan: What is kept exact and what is quantised.

    The sinks are the first positions of the cache. In a left-padded batch these are padding in the shorter
    texts, whose own first tokens then are quantised like any other.
    """

    is_sliding = False
    is_croppable = True
    is_compileable = False

    def __init__(self, plan: CachePlan | None = None) -> None:
        super().__init__()
        self.plan = plan or CachePlan()
        self._states: tuple[PagedStates, PagedStates] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take batch, heads, width, dtype and device from states of shape ``(B, H, any, D)``.

        Raises:
            InputError: ``plan.value_group`` does not divide the width of the values.
        """
        plan = self.plan
        _check_value_group(plan, value_states.shape[-1])
        kept = {"sinks": plan.sinks, "residual": plan.residual, "page": plan.page}
        keys = Layout(bits=plan.key_bits, axis="channel", group=plan.page, **kept)
        values = Layout(bits=plan.value_bits, axis="token", group=plan.value_group, **kept)
        self._states = PagedStates.empty(keys, key_states), PagedStates.empty(values, value_states)
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    @property
    def states(self) -> tuple[PagedStates, PagedStates] | None:
        """Keys and values as they are held, or None before the first update."""
        return self._states

    @property
    def tensors(self) -> Iterator[Tensor]:
        """Everything the layer holds."""
        for states in self._states or ():
            yield from states.tensors

    @property
    def nbytes(self) -> int:
        """Bytes of everything the layer holds."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def nbytes_16bit(self) -> int:
        """Bytes the same tokens take at 16 bits a number."""
        return sum(
            2 * len(states) * states.recent.shape[0] * states.recent.shape[1] * states.recent.shape[3]
            for states in self._states or ()
        )

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add tokens and return the keys and values to attend to.

        Args:
            key_states: Keys of the new tokens, ``(B, H, n, D)``.
            value_states: Values of the new tokens, ``(B, H, n, D_v)``.
            args: Ignored.
            kwargs: Ignored.

        Returns:
            Keys and values of all tokens so far.

        Raises:
            InputError: A page to quantise holds NaN, infinity, or numbers beyond float16.
        """
        if self._states is None:
            self.lazy_initialization(key_states, value_states)
        assert self._states is not None
        keys, values = self._states
        fresh = not len(keys)
        if not fresh:
            keys, values = keys.settle(), values.settle()
        keys, values = keys.append(key_states), values.append(value_states)
        attended = (key_states, value_states) if fresh else (keys.dense(), values.dense())
        if fresh or key_states.shape[-2] > self.plan.residual:
            keys, values = keys.settle(), values.settle()
        self._states = keys, values
        return attended

    def get_seq_length(self) -> int:
        """Return how many tokens are held."""
        return 0 if self._states is None else len(self._states[0])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys ``query_length`` new tokens will see, and the position of the first."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Return -1: the layer grows without a bound."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens.

        Raises:
            InputError: The number is positive, which transformers 5 does not allow either.
        """
        if tokens_to_remove > 0:
            raise InputError(
                "a cache is cropped by a negative number of tokens",
                value=tokens_to_remove,
                expected="minus the number of tokens to remove",
            )
        if self._states is not None and tokens_to_remove:
            self._states = self._states[0].crop(-tokens_to_remove), self._states[1].crop(-tokens_to_remove)

    def reset(self) -> None:
        """Forget all tokens."""
        self._states = None
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let batch entry ``i`` go on from what entry ``beam_idx[i]`` held."""
        if not torch.equal(beam_idx, torch.arange(len(beam_idx), device=beam_idx.device)):
            self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the batch entries ``indices``, given by number or by a mask."""
        if self._states is not None:
            numbers = indices.nonzero().flatten() if indices.dtype == torch.bool else indices
            self._states = self._states[0].select(numbers), self._states[1].select(numbers)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each batch entry ``repeats`` times."""
        if self._states is not None:
            self._states = (
                self._states[0].repeat_interleave(repeats),
                self._states[1].repeat_interleave(repeats),
            )

    def offload(self) -> None:
        """Move everything held to the CPU."""
        self._move(torch.device("cpu"))

    def prefetch(self) -> None:
        """Move everything held back to the device it came from."""
        if self._states is not None:
            self._move(self.device)

    def fork(self) -> LowBitLayer:
        """Return an independent layer that shares the tensors, none of which is ever written to."""
        return copy.copy(self)

    def _move(self, device: torch.device) -> None:
        if self._states is not None:
            keys, values = self._states
            self._states = keys.map(lambda t: t.to(device)), values.map(lambda t: t.to(device))


class LowBitCache(Cache):  # type: ignore[misc]  # transformers has no types
    """A cache for ``model(..., past_key_values=cache)`` and ``model.generate(..., past_key_values=cache)``.

    Full-attention layers become :class:`LowBitLayer`; any other kind (sliding window, chunked, linear,
    shared) keeps the layer transformers gives it: mixed models work, and their full-attention part shrinks.
    Works with greedy search, sampling, beams, assisted decoding, chunked prefill and left-padded batches.

    Args:
        config: The model's configuration.
        plan: What is kept exact and what is quantised.

    Raises:
        InputError: ``plan.value_group`` does not divide the width of a head; both are named.
    """

    def __init__(self, config: Any, plan: CachePlan | None = None) -> None:
        self.plan = plan or CachePlan()
        decoder = config.get_text_config(decoder=True)
        kinds, arguments = get_layer_types_and_kwargs(decoder)
        width = getattr(decoder, "head_dim", None)
        if width is None and getattr(decoder, "num_attention_heads", None):
            width = decoder.hidden_size // decoder.num_attention_heads
        if isinstance(width, int) and "full_attention" in kinds:
            _check_value_group(self.plan, width)
        super().__init__(
            layers=[
                LowBitLayer(self.plan)
                if kind == "full_attention"
                else DYNAMIC_LAYER_TYPE_MAPPING[kind](**given)
                for kind, given in zip(kinds, arguments, strict=True)
            ]
        )

    def fork(self) -> LowBitCache:
        """Return an independent cache. Low-bit layers share their tensors; other layers are copied."""
        twin = copy.copy(self)
        twin.layers = [
            layer.fork() if isinstance(layer, LowBitLayer) else copy.deepcopy(layer) for layer in self.layers
        ]
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes of everything held; see :func:`cache_bytes`."""
        return cache_bytes(self)

    @property
    def nbytes_16bit(self) -> int:
        """Bytes the same tokens take at 16 bits a number; see :func:`cache_bytes_16bit`."""
        return cache_bytes_16bit(self)

    @property
    def effective_bits(self) -> float:
        """Bits held for each number of the cache, scales and exact tokens included; NaN while it is empty."""
        exact = self.nbytes_16bit
        return EXACT * self.nbytes / exact if exact else float("nan")


def cache_bytes(cache: Cache) -> int:
    """Return the memory a cache of any kind keeps alive, in bytes.

    Counts whole storages, each once: a view into a larger tensor counts as that tensor.
    """
    storages = {}
    for layer in cache.layers:
        for tensor in _tensors(layer):
            storage = tensor.untyped_storage()
            storages[(str(tensor.device), storage.data_ptr())] = storage.nbytes()
    return sum(storages.values())


def cache_bytes_16bit(cache: Cache) -> int:
    """Return the bytes that the tokens of a cache of any kind take when every number takes 16 bits."""
    return sum(
        layer.nbytes_16bit
        if isinstance(layer, LowBitLayer)
        else sum(2 * tensor.numel() for tensor in _tensors(layer) if tensor.is_floating_point())
        for layer in cache.layers
    )


def _tensors(layer: Any) -> Iterator[Tensor]:
    """Yield the tensors of a layer: of a low-bit one, or of one of transformers' own."""
    if isinstance(layer, LowBitLayer):
        yield from layer.tensors
        return
    found: list[Any] = list(vars(layer).values())
    while found:
        item = found.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, list | tuple):
            found.extend(item)
        elif isinstance(item, dict):
            found.extend(item.values())


def _check_value_group(plan: CachePlan, width: int) -> None:
    if plan.value_bits != EXACT and width % plan.value_group:
        raise InputError(
            f"value_group does not divide head_dim {width}",
            value=f"value_group {plan.value_group}",
            expected=f"a divisor of {width}",
        )
