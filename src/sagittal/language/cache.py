"""A key-value cache for transformers that holds most of its tokens in few bits."""

from __future__ import annotations

import copy
import ctypes
import sys
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
from sagittal.language.attention import NAME, handle
from sagittal.language.codec import Codec
from sagittal.language.pages import PagedStates
from sagittal.language.plan import EXACT, CachePlan, Coding
from sagittal.language.rope import Rope, rope_of
from sagittal.language.sequences import Sequences

__all__ = ["LowBitCache", "LowBitLayer", "cache_bytes", "cache_bytes_16bit", "check_plan", "fingerprint"]


_LARGE, _TRIMMED = 1 << 20, 5
"""Bytes of new keys, and layers, after which freed memory is handed back to the system."""


class LowBitLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """Keys and values of one full-attention layer: sinks exact, pages quantised, recent tokens exact.

    An update that meets an empty layer returns what it was given, so a prefill is exact. Later updates
    return the dequantised pages with the sinks in their places, and everything newer as it came. Pages are
    quantised after an update of more than ``plan.residual`` tokens, or one into an empty layer, and otherwise
    before the next update: so a guess of a few tokens that is cropped away leaves no trace. A token is
    quantised at most once, and never decoded and encoded again.

    Args:
        plan: What is kept exact and how the rest is coded.
        index: Which of the model's full-attention layers this is, from 0.
        rope: The model's position embedding, if it has one.
        sequences: What the layers of one cache know together about its texts.
        config: The configuration the model's attention goes by, which tells whether it reads packed states
            (see :func:`~sagittal.language.attention.use_low_bit_attention`).
    """

    is_sliding = False
    is_croppable = True
    is_compileable = False

    def __init__(
        self,
        plan: CachePlan | None = None,
        index: int = 0,
        rope: Rope | None = None,
        sequences: Sequences | None = None,
        config: Any = None,
    ) -> None:
        super().__init__()
        self.plan, self.index, self.rope, self.config = plan or CachePlan(), index, rope, config
        self.sequences = sequences or Sequences(self.plan.sinks)
        self._states: tuple[PagedStates, PagedStates] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take batch, heads, width, dtype and device from states of shape ``(B, H, any, D)``.

        Raises:
            InputError: A coding of the plan does not fit the heads or their width.
        """

        def empty(coding: Coding, like: Tensor) -> PagedStates:
            codec = None
            if not coding.exact:
                codec = Codec(
                    coding,
                    heads=like.shape[1],
                    width=like.shape[3],
                    page=self.plan.page,
                    rope=self.rope,
                    device=like.device,
                )
            return PagedStates.empty(codec, self.plan.residual, like)

        keys, values = self.plan.codings(self.index)
        self._states = empty(keys, key_states), empty(values, value_states)
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
        yield from self.sequences.tensors

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

    @property
    def run_length(self) -> int | None:
        """Tokens that may be added in one update with the same outcome as one by one; None for any number."""
        rooms = [
            self.plan.residual + self.plan.page - (states.recent.shape[-2] - states.ready) + 1
            for states in self._states or ()
            if states.codec is not None
        ]
        return max(1, min(rooms)) if rooms else None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
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
            Keys and values of all tokens so far; where one token is new and the model's attention reads
            packed states, handles to them.

        Raises:
            InputError: A page to quantise holds NaN, infinity, or numbers beyond float16; the layer is named.
        """
        if self._states is None:
            self.lazy_initialization(key_states, value_states)
        assert self._states is not None
        before, known = self._states, self.sequences.known
        try:
            return self._update(key_states, value_states)
        except InputError:
            self._states = before  # a refused update leaves the layer as it was
            self.sequences.restore(known)
            raise

    def _update(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        assert self._states is not None
        fresh = not len(self._states[0])
        if not self.plan.exact:  # else nothing is ever asked of them
            self.sequences.observe(self.index, key_states, value_states, fresh=fresh)
        if not fresh:
            self._settle()
        keys, values = self._states[0].append(key_states), self._states[1].append(value_states)
        self._states = keys, values
        pads = self.sequences.pads
        if fresh:
            attended = key_states, value_states
        elif key_states.shape[-2] == 1 and (keys.pages or values.pages) and self._read_packed:
            attended = handle(keys, pads), handle(values, pads)
        else:
            attended = keys.dense(pads), values.dense(pads)
        if fresh or key_states.shape[-2] > self.plan.residual:
            self._settle()
            if key_states.nbytes >= _LARGE and self.index % _TRIMMED == _TRIMMED - 1:
                _give_back()
        return attended

    @property
    def _read_packed(self) -> bool:
        return getattr(self.config, "_attn_implementation", None) == NAME

    def _settle(self) -> None:
        assert self._states is not None
        settled = []
        for name, states in zip(("keys", "values"), self._states, strict=True):
            try:
                settled.append(self._settled(states))
            except InputError as error:
                raise InputError(
                    error.problem,
                    source=error.source or f"{name} of full-attention layer {self.index}",
                    value=error.value,
                    expected=error.expected,
                ) from error
        self._states = settled[0], settled[1]

    def _settled(self, states: PagedStates) -> PagedStates:
        if not (count := states.ready):
            return states
        kept = self.sequences.kept(self.index, states.quantised, states.quantised + count)
        return states.settle(self.sequences.pads, kept)

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
            self.sequences.crop(self.index, self.get_seq_length())

    def reset(self) -> None:
        """Forget all tokens."""
        self._states = None
        self.is_initialized = False
        self.sequences.reset(self.index)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let batch entry ``i`` go on from what entry ``beam_idx[i]`` held."""
        if not torch.equal(beam_idx, torch.arange(len(beam_idx), device=beam_idx.device)):
            self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the batch entries ``indices``, given by number or by a mask."""
        if self._states is not None:
            numbers = indices.nonzero().flatten() if indices.dtype == torch.bool else indices
            self._states = self._states[0].select(numbers), self._states[1].select(numbers)
            self.sequences.map(self.index, lambda t: t.index_select(0, numbers.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each batch entry ``repeats`` times."""
        if self._states is not None:
            keys, values = self._states
            self._states = keys.repeat_interleave(repeats), values.repeat_interleave(repeats)
            self.sequences.map(self.index, lambda t: t.repeat_interleave(repeats, dim=0))

    def offload(self) -> None:
        """Move everything held to the CPU."""
        self._move(torch.device("cpu"))

    def prefetch(self) -> None:
        """Move everything held back to the device it came from."""
        if self._states is not None:
            self._move(self.device)

    def fork(self, sequences: Sequences | None = None) -> LowBitLayer:
        """Return an independent layer that shares the tensors, none of which is ever written to."""
        twin = copy.copy(self)
        twin.sequences = sequences or self.sequences.fork()
        return twin

    def _move(self, device: torch.device) -> None:
        if self._states is not None:
            keys, values = self._states
            self._states = keys.map(lambda t: t.to(device)), values.map(lambda t: t.to(device))


class LowBitCache(Cache):  # type: ignore[misc]  # transformers has no types
    """A cache for ``model.generate(past_key_values=...)`` that follows a plan.

    Full-attention layers are held in few bits; layers of another kind (sliding, chunked, linear) keep
    transformers' own cache, so hybrid models work.

    Args:
        config: The model's configuration.
        plan: What is kept exact and how the rest is coded.

    Raises:
        InputError: The plan was made for another model, has codings for another number of layers, or its
            groups do not divide the heads; what differs is named.
    """

    def __init__(self, config: Any, plan: CachePlan | None = None) -> None:
        self.plan = plan or CachePlan()
        decoder = config.get_text_config(decoder=True)
        check_plan(self.plan, decoder)
        kinds, arguments = get_layer_types_and_kwargs(decoder)
        self.sequences = Sequences(self.plan.sinks)
        rope = rope_of(decoder, _width(decoder)) if _before_rope(self.plan) else None
        layers: list[Any] = []
        for kind, given in zip(kinds, arguments, strict=True):
            if kind == "full_attention":
                index = sum(isinstance(layer, LowBitLayer) for layer in layers)
                layers.append(LowBitLayer(self.plan, index, rope, self.sequences, decoder))
            else:
                layers.append(DYNAMIC_LAYER_TYPE_MAPPING[kind](**given))
        super().__init__(layers=layers)

    def fork(self) -> LowBitCache:
        """Return an independent cache. Low-bit layers share their tensors; other layers are copied."""
        twin = copy.copy(self)
        twin.sequences = self.sequences.fork()
        twin.layers = [
            layer.fork(twin.sequences) if isinstance(layer, LowBitLayer) else copy.deepcopy(layer)
            for layer in self.layers
        ]
        return twin

    @property
    def run_length(self) -> int | None:
        """Tokens that may be added in one update with the same outcome as one by one; None for any number."""
        runs = [run for layer in self.layers if (run := getattr(layer, "run_length", None)) is not None]
        return min(runs) if runs else None

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
        """Bits held for each number of the cache, with scales, tables and exact tokens; NaN while empty."""
        exact = self.nbytes_16bit
        return EXACT * self.nbytes / exact if exact else float("nan")


def cache_bytes(cache: Cache, *, exact_bytes: int | None = None) -> int:
    """Return the memory a cache of any kind keeps alive, in bytes.

    Counts whole storages, each once: a view into a larger tensor counts as that tensor. The tables of a plan,
    bases and spreads, count too, though caches of one plan could share them.

    Args:
        cache: The cache.
        exact_bytes: Count at most so many bytes for each number that is held exactly, in the dtype of the
            model: 2 tells what a float32 model's cache would take in 16 bits. None counts what is there.
    """
    storages = {}
    for layer in cache.layers:
        own = _exact(layer)
        for tensor in _tensors(layer):
            storage = tensor.untyped_storage()
            place = str(tensor.device), storage.data_ptr()
            size = storage.nbytes()
            if exact_bytes is not None and any(tensor is other for other in own):
                size = size * min(exact_bytes, tensor.element_size()) // tensor.element_size()
            storages[place] = size
    return sum(storages.values())


def cache_bytes_16bit(cache: Cache) -> int:
    """Return the bytes that the tokens of a cache of any kind take when every number takes 16 bits."""
    return sum(
        layer.nbytes_16bit
        if isinstance(layer, LowBitLayer)
        else sum(2 * tensor.numel() for tensor in _tensors(layer) if tensor.is_floating_point())
        for layer in cache.layers
    )


def fingerprint(config: Any) -> dict[str, Any]:
    """Return the figures of a model's decoder that a plan is made for."""
    decoder = config.get_text_config(decoder=True)
    kinds, _ = get_layer_types_and_kwargs(decoder)
    heads = getattr(decoder, "num_key_value_heads", None) or getattr(decoder, "num_attention_heads", None)
    return {
        "model_type": decoder.model_type,
        "hidden_size": getattr(decoder, "hidden_size", None),
        "layers": len(kinds),
        "full_attention_layers": kinds.count("full_attention"),
        "key_value_heads": heads,
        "head_width": _width(decoder),
        "vocabulary": getattr(decoder, "vocab_size", None),
    }


def check_plan(plan: CachePlan, config: Any) -> None:
    """Refuse a plan that was made for another model.

    Raises:
        InputError: A figure differs; it is named, with what the model has and what the plan was made for.
    """
    found = fingerprint(config)
    for name, wanted in plan.made_for.items():
        if name in found and found[name] != wanted:
            raise InputError(
                f"the plan was made for another model: {name} differs",
                value=found[name],
                expected=str(wanted),
            )
    layers = found["full_attention_layers"]
    for name, codings in (("keys", plan.keys), ("values", plan.values)):
        if len(codings) not in (1, layers):
            raise InputError(
                f"the plan codes the {name} of another number of layers",
                value=len(codings),
                expected=f"{layers} full-attention layers",
            )
    heads, width = found["key_value_heads"], found["head_width"]
    for coding in (*plan.keys, *plan.values):
        size = heads * width if heads and width else 0
        if size and not coding.exact and coding.scale == "token" and size % min(coding.group, size):
            raise InputError(
                f"group does not divide {heads} heads of width {width}",
                value=f"group {coding.group}",
                expected=f"a divisor of {size}",
            )


def _width(decoder: Any) -> int:
    width = getattr(decoder, "head_dim", None)
    if width is None and getattr(decoder, "num_attention_heads", None):
        width = decoder.hidden_size // decoder.num_attention_heads
    return int(width or 0)


def _give_back() -> None:
    """Hand freed memory back to the system, where the C library can.

    Small pages are written into gaps that the large tensors of a prefill leave, so that the next ones find no
    gap: with glibc as it is, a process grows by more than the cache saves.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _before_rope(plan: CachePlan) -> bool:
    return any(coding.before_rope for coding in plan.keys)


def _exact(layer: Any) -> list[Tensor]:
    """Return the tensors of a layer that hold keys and values as they came."""
    if isinstance(layer, LowBitLayer):
        return [tensor for states in layer.states or () for tensor in (states.kept, states.recent)]
    held = (getattr(layer, "keys", None), getattr(layer, "values", None))
    return [tensor for tensor in held if isinstance(tensor, Tensor)]


def _tensors(layer: Any) -> Iterator[Tensor]:
    """Yield the tensors of a layer: of a low-bit one, or of another kind, also where they are wrapped."""
    if isinstance(layer, LowBitLayer):
        yield from layer.tensors
        return
    found: list[Any] = list(vars(layer).values())
    while found:
        item = found.pop()
        if hasattr(item, "__tensor_flatten__"):  # a tensor without numbers of its own
            found.extend(getattr(item, name) for name in item.__tensor_flatten__()[0])
        elif isinstance(item, Tensor):
            yield item
        elif isinstance(item, list | tuple):
            found.extend(item)
        elif isinstance(item, dict):
            found.extend(item.values())
