"""Names of caches: one line of text says how keys and values are held.

============================  ======================================================================
``16bit``                     transformers' own cache, nothing quantised
``kNvM``, ``kNvM:option=...``  keys in N bits, values in M bits, 1 to 8, or 16 for exact; options below
``kivi2``, ``kivi3``, ...     a published method at 2, 3 or 4 bits, see :data:`METHODS`; options may follow
``hf-quanto2``, ...           another library's cache, see :mod:`sagittal.language.rivals`
a path that ends in ``.json`` a plan that :func:`~sagittal.language.plan.save_plan` wrote
============================  ======================================================================

Options follow a colon, with commas between them. Without any the layout is KIVI's (Liu et al., 2024): keys
after RoPE in pages of 64 tokens a channel, values in groups of 64 channels a token.

============  ==================  ====================================================================
``sinks``     ``first:4``         tokens that stay exact: ``none``; ``first:N``; ``predict``, the first and
                                  all that the calibrated profile finds; ``predict:N``, at most N of these
                                  (see :class:`~sagittal.language.plan.Sinks`)
``rotation``  ``none``            of keys: ``hadamard``, head by head; ``grouped``, up to four heads
                                  together; ``reorder``, that and then channels sorted by their signed mean
                                  over the calibration text, all heads of a layer together (RotateKV);
                                  ``reorder-first``, sorted and then rotated; ``random``, one seeded random
                                  rotation for every head
``vrotation`` ``none``            of values: ``none``, ``hadamard`` or ``random``
``rope``      ``after``           keys are coded ``before`` or ``after`` the position embedding; ``before``
                                  when rotated by heads together or with ``bias=remove``
``axis``      ``channel``         what shares a scale, for keys: the tokens of a page in one ``channel``;
                                  ``token``, a group of one token's channels, the default of rotated keys;
                                  ``static``, scales from the calibration text; ``unit``, one gain of 8 bits
                                  for each head of a token
``vaxis``     ``token``           the same for values
``group``     ``64``              channels of a token that share a scale: a number, ``head`` for one head's,
                                  ``all`` for a layer's
``residual``  ``64``              most recent tokens that stay exact, at the least
``page``      ``64``              tokens quantised together, a multiple of 8
``codebook``  ``uniform``         ``gaussian``, Lloyd-Max levels; ``nuq``, levels of each layer fitted by
                                  k-means to the calibration text
``outliers``  ``0``               percent of the numbers that are held exactly beside the codes
``clip``      ``1``               factor on both ends of a measured range
``bias``      ``keep``            ``remove``: keys are coded before RoPE without their calibrated mean
============  ==================  ====================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers.cache_utils import Cache

from sagittal.core.errors import InputError
from sagittal.language.cache import LowBitCache, check_plan, fingerprint
from sagittal.language.calibration import Calibration, Moments, tokenizer_sha256
from sagittal.language.evaluation import sixteen_bit
from sagittal.language.models import LanguageModel
from sagittal.language.plan import EXACT, CachePlan, Coding, Sinks, load_plan
from sagittal.language.rivals import RIVALS, rival
from sagittal.language.rope import rope_of
from sagittal.language.sides import REORDERED, Axis, Side, coding_of, group_of
from sagittal.language.sinks import SinkProfile

__all__ = ["FALLBACK_SINKS", "METHODS", "Spec", "parse_spec"]

FALLBACK_SINKS = 5
"""First tokens that ``sinks=predict`` keeps in a model whose sinks cannot be predicted."""

METHODS: Mapping[str, str] = {
    "kivi": "sinks=first:5",
    "kvquant": "rope=before,axis=static,codebook=nuq,outliers=1,group=all,residual=0,sinks=first:1",
    "quarot": "rotation=hadamard,vrotation=hadamard,axis=token,group=head,clip=0.95,residual=0,sinks=none",
    "turbo": "rotation=random,vrotation=random,axis=unit,vaxis=unit,codebook=gaussian,residual=0,sinks=none",
    "rotatekv": "rotation=reorder,rope=before,vrotation=hadamard,axis=token,group=head,"
    "residual=0,sinks=predict",
}
"""Published methods by their options. ``NAMEb`` is ``kbvb`` with them, for 2, 3 and 4 bits.

Pages of 64 tokens throughout, so up to 64 tokens more than the residual are exact at any time; the methods
that quantise each token at once have no residual.

- ``kivi``: Liu et al., KIVI (2024), in groups of 64 and with a residual of 64, and the first five tokens
  exact.
- ``kvquant``: Hooper et al., KVQuant (2024). Keys before RoPE by channel, with thresholds and a codebook
  fixed beforehand; values by token, a layer's heads together, with a codebook; one percent of outliers; the
  first token exact. k-means is weighted by the Fisher information, as there. Ours: thresholds are percentiles
  of the calibration text; a page has a fixed number of outliers, wherever they lie. Left out: Q-Norm, which
  turns codes into other levels than those that chose them.
- ``quarot``: Ashkboos et al., QuaRot (2024): each head rotated, keys after RoPE, one head of a token a group,
  ranges clipped to 0.95. Its random signs are left out: they change no range's expected width.
- ``turbo``: Zandieh et al., TurboQuant (2025), in the form that minimises squared error: a random rotation,
  Lloyd-Max levels, and each vector's length; the length is a gain of 8 bits fitted to the codes by least
  squares, in place of a norm of 16.
- ``rotatekv``: Su et al., RotateKV (arXiv 2501.16383): see ``rotation=reorder``; values rotated head by head;
  groups as wide as a head (its 128 is one head of the models it was tried on); ranges clipped to 0.8 at two
  bits. Its sinks are those of the largest activations before each layer; here they are predicted once.
"""

_NUMBER = r"(\d+(?:\.\d+)?)"
_ALLOWED: Mapping[str, tuple[str, str]] = {  # pattern, and what to say of it
    "sinks": (r"none|first:\d+|predict(?::\d+)?", "none, first:N, predict or predict:N"),
    "rotation": (
        "none|hadamard|grouped|reorder|reorder-first|random",
        "none, hadamard, grouped, reorder, reorder-first or random",
    ),
    "vrotation": ("none|hadamard|random", "none, hadamard or random"),
    "rope": ("before|after", "before or after"),
    "axis": ("channel|token|static|unit", "channel, token, static or unit"),
    "vaxis": ("channel|token|static|unit", "channel, token, static or unit"),
    "group": (r"[1-9]\d*|head|all", "a number of channels, head or all"),
    "residual": (r"\d+", "a number of tokens, at least 0"),
    "page": (r"[1-9]\d*", "a multiple of 8"),
    "codebook": ("uniform|gaussian|nuq", "uniform, gaussian or nuq"),
    "outliers": (_NUMBER + "%?", "percent, at least 0 and below 50"),
    "clip": (_NUMBER, "a factor, more than 0 and at most 1"),
    "bias": ("keep|remove", "keep or remove"),
}
_DEFAULTS = {
    "sinks": "first:4",
    "rotation": "none",
    "vrotation": "none",
    "vaxis": "token",
    "group": "64",
    "residual": "64",
    "page": "64",
    "codebook": "uniform",
    "outliers": "0",
    "clip": "1",
    "bias": "keep",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Spec:
    """A cache by its name; made by :func:`parse_spec`.

    Args:
        text: The name.
        kind: ``16bit``; ``codes``, described by ``keys``, ``values`` and what follows; ``plan``, a file; or
            ``library``, the cache of another one.
        keys: How keys are held, for ``codes``.
        values: How values are held, for ``codes``.
        sinks: ``none``, ``first:N``, ``predict`` or ``predict:N``.
        residual: Most recent tokens that stay exact.
        page: Tokens quantised together.
        loaded: The plan that was read from a file.
    """

    text: str
    kind: Literal["16bit", "codes", "plan", "library"]
    keys: Side | None = None
    values: Side | None = None
    sinks: str = "none"
    residual: int = 64
    page: int = 64
    loaded: CachePlan | None = None

    @property
    def calibrated(self) -> bool:
        """Whether :meth:`plan` and :meth:`cache` need a calibration."""
        sides = [side for side in (self.keys, self.values) if side is not None]
        return self.sinks.startswith("predict") or any(side.calibrated for side in sides)

    def check(self, model: LanguageModel) -> None:
        """Refuse a cache that cannot hold this model; quick, and without a calibration.

        Raises:
            InputError: Groups do not divide the model's heads, a plan was made for another model or another
                tokenizer, or a library's cache cannot hold its layers; the spec is named.
            MissingDependencyError: The library is not installed.
        """
        config = model.model.config
        if self.kind == "library":
            rival(self.text)(config)
        elif self.kind == "plan":
            self.plan(model)
        elif self.kind == "codes":
            heads, width = _shape(config)
            for side in self._sides():
                group = group_of(side, heads, width)
                if side.axis == "token" and side.bits != EXACT and heads * width % min(group, heads * width):
                    raise InputError(
                        f"group does not divide {heads} heads of width {width}",
                        source=self.text,
                        value=f"group={side.group}",
                        expected=f"a divisor of {heads * width}",
                    )

    def plan(self, model: LanguageModel, calibration: Calibration | None = None) -> CachePlan:
        """Return what the cache spends its bits on, for this model.

        ``reasons`` of the plan holds the spec, and under ``sinks`` which tokens stay exact and why: also that
        sinks cannot be predicted in this model, so that the first tokens are kept in their place.

        Args:
            model: The model; only its configuration and its tokenizer are looked at.
            calibration: What :func:`~sagittal.language.calibration.calibrate` measured on it.

        Raises:
            InputError: The spec needs a calibration and there is none, it has no plan, or the plan or the
                calibration is of another model.
        """
        config = model.model.config
        if self.kind == "library":
            raise InputError("the cache of another library has no plan", source=self.text)
        if self.kind == "16bit":
            return CachePlan.uniform(EXACT, EXACT, sinks=Sinks(count=0))
        if self.loaded is not None:
            wanted = self.loaded.made_for.get("tokenizer_sha256")
            if wanted is not None and wanted != (found := tokenizer_sha256(model.tokenizer)):
                raise InputError(
                    "the plan was made for another tokenizer",
                    source=self.text,
                    value=found,
                    expected=str(wanted),
                )
            plan = self.loaded
        else:
            if self.calibrated and calibration is None:
                raise InputError("the cache needs a calibration", source=self.text, expected="calibrate(...)")
            self.check(model)
            plan = self._built(config, calibration)
        try:
            check_plan(plan, config)
        except InputError as error:
            raise _located(error, self.text) from error
        return plan

    def cache(self, model: LanguageModel, calibration: Calibration | None = None) -> Callable[[Any], Cache]:
        """Return what makes a new, empty cache from the model's configuration.

        Raises:
            InputError: As for :meth:`plan`; also that a library's cache cannot hold the model's layers.
            MissingDependencyError: The library is not installed.
        """
        if self.kind == "16bit":
            return sixteen_bit
        if self.kind == "library":
            self.check(model)
            return rival(self.text)
        plan = self.plan(model, calibration)
        return lambda config: LowBitCache(config, plan)

    def _sides(self) -> tuple[Side, Side]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def _built(self, config: Any, calibration: Calibration | None) -> CachePlan:
        heads, width = _shape(config)
        keys, values = self._sides()
        sinks, why = _sinks(self.sinks, calibration)
        rope = rope_of(config.get_text_config(decoder=True), width)

        def codings(side: Side, moments: tuple[Moments, ...] | None) -> tuple[Coding, ...]:
            turn = rope if side.name == "keys" else None
            if moments is None or not side.calibrated:
                return (coding_of(side, None, heads, width, self.page, turn),)
            return tuple(coding_of(side, each, heads, width, self.page, turn) for each in moments)

        return CachePlan(
            keys=codings(keys, None if calibration is None else calibration.keys),
            values=codings(values, None if calibration is None else calibration.values),
            sinks=sinks,
            residual=self.residual,
            page=self.page,
            made_for=dict(calibration.made_for) if self.calibrated and calibration is not None else {},
            reasons={"spec": self.text, "sinks": why},
        )


def parse_spec(text: str) -> Spec:
    """Return the cache of this name; see the module's description for what can be said.

    A plan file is read here, and nothing else is.

    Raises:
        InputError: There is no cache of that name, an option is unknown, given twice or cannot be, or two
            of them contradict each other; the message names the spec, the option and what is allowed.
        FormatError: The plan file is none.
    """
    spec = text.strip()
    if spec.lower().endswith(".json"):
        return Spec(text=spec, kind="plan", loaded=load_plan(Path(spec)))
    name, colon, rest = spec.partition(":")
    bits = re.fullmatch(r"k(\d+)v(\d+)", name)
    method = re.fullmatch(rf"({'|'.join(METHODS)})([234])", name)
    if name in ("16bit", *RIVALS):
        if colon:
            raise InputError("the cache has no options", source=spec, value=rest, expected=name)
        return Spec(text=spec, kind="16bit" if name == "16bit" else "library")
    if bits is None and method is None:
        raise InputError("there is no such cache", value=repr(text), expected=_names())
    given = _options(spec, rest) if colon else {}
    if bits is not None:
        widths, base = (int(bits[1]), int(bits[2])), {}
        if any(width not in (*range(1, 9), EXACT) for width in widths):
            raise InputError(
                "bits cannot be stored", source=spec, value=name, expected="1 to 8, or 16 for exact"
            )
    else:
        assert method is not None
        widths = int(method[2]), int(method[2])
        base = _options(spec, METHODS[method[1]])
        if method[1] == "rotatekv" and widths[0] == 2:
            base["clip"] = "0.8"
    return _spec(spec, widths, base, given)


def _names() -> str:
    methods = ", ".join(f"{name}2" for name in METHODS)
    return f"16bit, kNvM such as k2v2, {methods} (also 3 and 4), {', '.join(RIVALS)} or a plan's .json"


def _options(spec: str, rest: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in rest.split(","):
        name, equals, value = item.strip().partition("=")
        if name not in _ALLOWED:
            raise InputError(
                "there is no such option", source=spec, value=repr(name), expected=", ".join(_ALLOWED)
            )
        if name in found:
            raise InputError(f"{name} is given twice", source=spec, value=item.strip())
        pattern, allowed = _ALLOWED[name]
        good = bool(equals) and re.fullmatch(pattern, value) is not None
        if good and name == "page":
            good = int(value) % 8 == 0
        if good and name == "outliers":
            good = float(value.rstrip("%")) < 50
        if good and name == "clip":
            good = 0 < float(value) <= 1
        if not good:
            raise InputError(f"{name} cannot be this", source=spec, value=repr(value), expected=allowed)
        found[name] = value
    return found


def _spec(spec: str, bits: tuple[int, int], base: dict[str, str], given: dict[str, str]) -> Spec:
    """Build a spec from options that are good one by one; those of a person come before a method's."""
    chosen = {**_DEFAULTS, **base, **given}
    rotation, bias = chosen["rotation"], chosen["bias"]
    together = rotation in ("grouped", *REORDERED)
    if "rope" not in chosen:
        chosen["rope"] = "before" if together or bias == "remove" else "after"
    if "axis" not in chosen:
        chosen["axis"] = "channel" if rotation == "none" else "token"
    if rotation in REORDERED and chosen["rope"] == "after":
        _contradiction(
            spec, "rope=after", f"rope=before: rotation={rotation} sorts means, and RoPE turns them"
        )
    if bias == "remove" and chosen["rope"] == "after":
        _contradiction(spec, "rope=after", "rope=before: bias=remove takes off a mean, and RoPE turns it")
    if bias == "remove" and rotation in REORDERED:
        _contradiction(
            spec, "bias=remove", f"bias=keep: rotation={rotation} sorts the means that it takes off"
        )
    if "unit" in (chosen["axis"], chosen["vaxis"]) and chosen["codebook"] != "gaussian":
        _contradiction(
            spec, f"codebook={chosen['codebook']}", "codebook=gaussian, with which axis=unit is defined"
        )
    group = chosen["group"]
    common: dict[str, Any] = {
        "group": group if group in ("head", "all") else int(group),
        "codebook": chosen["codebook"],
        "outliers": float(chosen["outliers"].rstrip("%")) / 100,
        "clip": float(chosen["clip"]),
    }
    return Spec(
        text=spec,
        kind="codes",
        keys=Side(
            name="keys",
            bits=bits[0],
            axis=_axis(chosen["axis"]),
            rotation=rotation,
            before_rope=chosen["rope"] == "before",
            centred=bias == "remove",
            **common,
        ),
        values=Side(
            name="values",
            bits=bits[1],
            axis=_axis(chosen["vaxis"]),
            rotation=chosen["vrotation"],
            before_rope=False,
            centred=False,
            **common,
        ),
        sinks=chosen["sinks"],
        residual=int(chosen["residual"]),
        page=int(chosen["page"]),
    )


def _contradiction(spec: str, value: str, expected: str) -> None:
    raise InputError("two options contradict each other", source=spec, value=value, expected=expected)


def _axis(name: str) -> Axis:
    assert name in ("channel", "token", "static", "unit")
    return name  # type: ignore[return-value]


def _located(error: InputError, source: str) -> InputError:
    return InputError(error.problem, source=source, value=error.value, expected=error.expected)


def _shape(config: Any) -> tuple[int, int]:
    found = fingerprint(config)
    return int(found["key_value_heads"] or 0), int(found["head_width"] or 0)


def _sinks(wanted: str, calibration: Calibration | None) -> tuple[Sinks, str]:
    """Return which tokens stay exact, and why in words."""
    rule, _, number = wanted.partition(":")
    if rule == "none":
        return Sinks(count=0), "none"
    if rule == "first":
        return Sinks(count=int(number)), f"the first {number} tokens"
    assert calibration is not None
    if isinstance(calibration.sinks, SinkProfile):
        bound = f", at most {number}" if number else ""
        found = Sinks(
            rule="predict",
            count=int(number or 0),
            profile=calibration.sinks.to_json(),
            reads=calibration.reads,
            first=1,
        )
        layer = calibration.sinks.layer
        return found, f"the first token, and those predicted from the values of layer {layer}{bound}"
    count = int(number or FALLBACK_SINKS)
    why = f"the first {count} tokens, because sinks cannot be predicted: {calibration.sinks.reason}"
    return Sinks(count=count), why
