"""What a low-bit cache spends its bits on, as data: no torch here, and a plan can be a file."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from sagittal.core.errors import FormatError, InputError
from sagittal.core.files import write_text

__all__ = ["EXACT", "CachePlan", "Coding", "Sinks", "load_plan", "save_plan"]

EXACT = 16
"""The bit width that stands for "kept as it came": nothing is quantised."""

Scale = Literal["channel", "token", "static"]
Array = npt.NDArray[Any]

_FORMAT = "sagittal cache plan 1"
_DTYPES = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
_DTYPES += ["float16", "float32", "float64"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Coding:
    """How the keys, or the values, of one layer are held. H heads of width D; ``r`` components a head.

    States pass, in this order: RoPE undone; ``mean`` taken off; ``weight`` multiplied; rotated; then each
    component is quantised. Reading goes the same way back.

    Args:
        bits: Bits a component: one number, or an array ``(H, r)``. 1 to 8, 0 for a component that is dropped
            (``static`` only), or 16 to hold states as they come.
        scale: Where scale and offset come from: measured for each ``channel`` of a page, measured for each
            ``group`` of components of a ``token``, or ``static``, that is ``spread``.
        group: Components of a token that share a scale.
        clip: Factor on both ends of a measured range.
        levels: ``uniform``, ``gaussian`` (Lloyd-Max; static only), or for each bit width the levels
            themselves: from 0 to 1 of a measured range, in units of ``spread`` when static.
        gain: A static coding multiplies each token of each head by its own gain, 8 bits, fitted by least
            squares to the codes it was given.
        outliers: Share of a page's numbers that are held exactly beside their codes.
        before_rope: Keys are coded as they are before the position embedding.
        mean: ``(H, D)``.
        weight: Positive, ``(H, D)``.
        rotation: ``none``; ``hadamard``, heads together in groups (see ``heads``); or ``basis``.
        heads: Heads that a Hadamard rotation mixes.
        order: ``(H * D,)``: component i is channel ``order[i]`` after the rotation, or before it with
            ``order_first``.
        order_first: Reorder, then rotate.
        basis: Orthonormal columns as whole numbers times ``basis_scale``, int8, ``(H or 1, D, r)``.
        basis_scale: float16, ``(H or 1, r)``.
        spread: ``(H, r)``: standard deviation of each component of a static coding.

    Raises:
        InputError: A number is out of its range or an array is missing; the message names the field.
    """

    bits: int | Array = 4
    scale: Scale = "channel"
    group: int = 64
    clip: float = 1.0
    levels: str | Mapping[int, tuple[float, ...]] = "uniform"
    gain: bool = False
    outliers: float = 0.0
    before_rope: bool = False
    mean: Array | None = None
    weight: Array | None = None
    rotation: Literal["none", "hadamard", "basis"] = "none"
    heads: int = 1
    order: Array | None = None
    order_first: bool = False
    basis: Array | None = None
    basis_scale: Array | None = None
    spread: Array | None = None

    def __post_init__(self) -> None:
        for name, known in (("scale", get_args(Scale)), ("rotation", ("none", "hadamard", "basis"))):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is unknown", value=getattr(self, name), expected=", ".join(known))
        for name in ("mean", "weight", "order", "basis", "basis_scale", "spread"):
            if not isinstance(getattr(self, name), np.ndarray | None):
                raise InputError(f"{name} is no array", value=getattr(self, name))
        widths = np.unique(np.asarray(self.bits))
        allowed = [EXACT, *range(1, 9)] if self.scale != "static" else [EXACT, *range(9)]
        if widths.dtype.kind not in "iu" or not isinstance(self.bits, int | np.ndarray):
            raise InputError("bits are no whole numbers", value=self.bits)
        if not np.isin(widths, allowed).all() or (EXACT in widths and len(widths) > 1):
            raise InputError(
                "bits cannot be stored", value=widths.tolist(), expected="1 to 8, or 16 throughout for exact"
            )
        _whole("group", self.group, 1)
        _whole("heads", self.heads, 1)
        if not 0 < self.clip <= 1:
            raise InputError("clip is out of range", value=self.clip, expected="more than 0, at most 1")
        if not 0 <= self.outliers < 0.5:
            raise InputError("outliers are out of range", value=self.outliers, expected="a share below 0.5")
        if not isinstance(self.levels, Mapping) and self.levels not in ("uniform", "gaussian"):
            raise InputError("levels are unknown", value=self.levels, expected="uniform, gaussian or numbers")
        if self.scale == "static" and self.spread is None and not self.exact:
            raise InputError("a static coding has no spread", expected="the spread of each component")
        if self.scale == "static" and self.levels == "uniform" and not self.exact:
            raise InputError("a static coding has no levels", value="uniform", expected="gaussian or numbers")
        if (self.rotation == "basis") != (self.basis is not None and self.basis_scale is not None):
            raise InputError("a basis and the rotation do not agree", value=self.rotation)

    @cached_property
    def exact(self) -> bool:
        """Whether nothing is quantised."""
        return bool(np.all(np.equal(self.bits, EXACT)))


@dataclass(frozen=True, kw_only=True)
class Sinks:
    """Which tokens stay exact for good, because the model lays much of its attention there.

    Args:
        count: With ``first``, how many tokens from the start of each text (Xiao et al., Efficient streaming
            language models with attention sinks, 2023). With ``predict``, the most that are kept of a text;
            0 for no bound.
        rule: ``first`` tokens of a text, or those that a ``profile`` predicts (KVSink, arXiv 2508.04257).
        profile: What :func:`sagittal.language.sinks.profile_sinks` measured on the model, as JSON.
        reads: The full-attention layer whose values the profile reads, counted among these; None for the
            profile's own number.
        layers: Full-attention layers that keep predicted sinks; None for all from ``reads`` on.
        first: With ``predict``, tokens from the start of each text that every layer keeps besides.
    """

    count: int = 4
    rule: Literal["first", "predict"] = "first"
    profile: Mapping[str, Any] | None = None
    reads: int | None = None
    layers: tuple[int, ...] | None = None
    first: int = 0

    def __post_init__(self) -> None:
        _whole("count of sinks", self.count, 0)
        _whole("first of sinks", self.first, 0)
        if self.rule not in ("first", "predict") or (self.rule == "predict") != (self.profile is not None):
            raise InputError(
                "sinks are predicted from a profile", value=self.rule, expected="rule and profile"
            )


def _whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(
            f"{name} is no such number", value=value, expected=f"a whole number, at least {least}"
        )


def _keys(bits: int = 4) -> tuple[Coding, ...]:
    return (Coding(bits=bits, scale="channel"),)


def _values(bits: int = 4) -> tuple[Coding, ...]:
    return (Coding(bits=bits, scale="token"),)


@dataclass(frozen=True, kw_only=True, eq=False)
class CachePlan:
    """What a :class:`~sagittal.language.cache.LowBitCache` keeps exact and how it codes the rest.

    Args:
        keys: How keys are held: one coding for every full-attention layer, or one for each.
        values: How values are held, likewise.
        sinks: Tokens that stay exact for good.
        residual: Most recent tokens that stay exact, at the least.
        page: Tokens quantised together, a multiple of 8.
        made_for: What the model must be: names of figures and their values; empty for any model.
        reasons: Why the plan is what it is, and what was measured: for people, not read by the cache.

    Raises:
        InputError: A number is out of its range; the message names the field.

    Left as it is, the plan has the layout of Liu et al., KIVI (2024), at four bits: keys by channel, values
    by token. The exact parts cost 16 bits a number, so a short text gains nothing;
    ``LowBitCache.effective_bits`` tells the truth.
    """

    keys: tuple[Coding, ...] = field(default_factory=_keys)
    values: tuple[Coding, ...] = field(default_factory=_values)
    sinks: Sinks = field(default_factory=Sinks)
    residual: int = 64
    page: int = 64
    made_for: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _whole("residual", self.residual, 0)
        _whole("page", self.page, 1)
        if not isinstance(self.made_for, Mapping) or not isinstance(self.reasons, Mapping):
            raise InputError("made_for and reasons are no tables", value=self.made_for)
        if self.page % 8:
            raise InputError("page cannot be packed", value=self.page, expected="a multiple of 8")
        if not self.keys or not self.values or len({1, len(self.keys), len(self.values)}) > 2:
            raise InputError(
                "a plan needs codings for keys and values",
                value=f"{len(self.keys)} and {len(self.values)}",
                expected="one each, or one for each layer",
            )

    @classmethod
    def uniform(cls, key_bits: int = 4, value_bits: int = 4, *, group: int = 64, **rest: Any) -> CachePlan:
        """Return a plan of the default layout with other bits; ``group`` is of a value's channels."""
        keys = Coding(bits=key_bits, scale="channel")
        return cls(keys=(keys,), values=(Coding(bits=value_bits, scale="token", group=group),), **rest)

    @cached_property
    def exact(self) -> bool:
        """Whether nothing is quantised anywhere."""
        return all(coding.exact for coding in (*self.keys, *self.values))

    def codings(self, layer: int) -> tuple[Coding, Coding]:
        """Return how the keys and the values of a full-attention layer are held, counted from 0."""
        return self.keys[min(layer, len(self.keys) - 1)], self.values[min(layer, len(self.values) - 1)]


def save_plan(plan: CachePlan, path: Path) -> None:
    """Write a plan to a file, whole or not at all."""
    held = {
        "format": _FORMAT,
        "reasons": plan.reasons,
        "made_for": plan.made_for,
        "residual": plan.residual,
        "page": plan.page,
        "sinks": asdict(plan.sinks),
        "keys": [_coding_json(coding) for coding in plan.keys],
        "values": [_coding_json(coding) for coding in plan.values],
    }
    write_text(Path(path), json.dumps(held, indent=1, allow_nan=False) + "\n")


def load_plan(path: Path) -> CachePlan:
    """Read a plan that :func:`save_plan` wrote.

    Raises:
        FormatError: The file is no plan, or is damaged; what is wrong is named.
        InputError: The file does not exist, or a number in it is out of range.
    """
    path = Path(path)
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError("the plan does not exist", source=path) from error
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError("the plan cannot be read as JSON", source=path, value=str(error)) from error
    if not isinstance(held, dict) or held.get("format") != _FORMAT:
        value = held.get("format") if isinstance(held, dict) else type(held).__name__
        raise FormatError("the file is no plan", source=path, value=value, expected=_FORMAT)
    try:
        return CachePlan(
            keys=tuple(_coding(item) for item in held["keys"]),
            values=tuple(_coding(item) for item in held["values"]),
            sinks=_sinks(held["sinks"]),
            residual=held["residual"],
            page=held["page"],
            made_for=held["made_for"],
            reasons=held["reasons"],
        )
    except InputError as error:
        raise _located(error, path) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            "the plan is damaged", source=path, value=f"{type(error).__name__}: {error}"
        ) from error


def _located(error: InputError, path: Path) -> InputError:
    """Return the error with the file it came from."""
    return InputError(error.problem, source=path, value=error.value, expected=error.expected)


def _sinks(held: Mapping[str, Any]) -> Sinks:
    layers = held.get("layers")
    return Sinks(**{**held, "layers": None if layers is None else tuple(layers)})


def _coding_json(coding: Coding) -> dict[str, Any]:
    default = Coding()
    items = {item.name: getattr(coding, item.name) for item in fields(coding)}
    return {
        name: _array_json(value) if isinstance(value, np.ndarray) else value
        for name, value in items.items()
        if isinstance(value, np.ndarray) or value != getattr(default, name) or name == "bits"
    }


def _coding(held: Mapping[str, Any]) -> Coding:
    items: dict[str, Any] = {
        name: _array(value) if _is_array(value) else value for name, value in held.items()
    }
    if isinstance(items.get("levels"), dict):
        items["levels"] = {int(bits): tuple(map(float, levels)) for bits, levels in items["levels"].items()}
    return Coding(**items)


def _array_json(array: Array) -> dict[str, Any]:
    plain = np.ascontiguousarray(array)
    data = base64.b64encode(plain.astype(plain.dtype.newbyteorder("<")).tobytes()).decode("ascii")
    return {"dtype": plain.dtype.name, "shape": list(plain.shape), "base64": data}


def _is_array(value: Any) -> bool:
    return isinstance(value, dict) and "base64" in value


def _array(held: Mapping[str, Any]) -> Array:
    if held["dtype"] not in _DTYPES:  # numpy reads far more into a text: shapes, fields, objects
        raise ValueError(f"an array of {str(held['dtype'])[:40]} is not expected")
    dtype = np.dtype(held["dtype"])
    data = base64.b64decode(held["base64"], validate=True)
    array = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(held["shape"])
    if not np.isfinite(array).all():
        raise ValueError("an array is not finite")
    return array
