"""Transformer language models with a low-bit key-value cache; needs ``pip install sagittal[language]``.

Importing this package imports neither torch nor transformers: a name is loaded when it is first used.
The pieces under the cache stand in the modules ``packing``, ``quantise``, ``rope`` and ``rotation``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagittal.language.attention import use_low_bit_attention
    from sagittal.language.cache import LowBitCache, LowBitLayer, cache_bytes, cache_bytes_16bit
    from sagittal.language.calibration import Calibration, calibrate
    from sagittal.language.codec import Codec, Page
    from sagittal.language.evaluation import Result, Window, evaluate, windows_of
    from sagittal.language.models import LanguageModel, convert_gguf, load_language_model
    from sagittal.language.pages import PagedStates
    from sagittal.language.plan import CachePlan, Coding, Sinks, load_plan, save_plan
    from sagittal.language.planner import fit_plan, plan_cache
    from sagittal.language.reading import Answer, Reading, read, split_text
    from sagittal.language.sinks import NoSinks, SinkProfile, profile_sinks
    from sagittal.language.specs import Spec, parse_spec

_HOME = {
    "Answer": "reading",
    "CachePlan": "plan",
    "Calibration": "calibration",
    "Codec": "codec",
    "Coding": "plan",
    "LanguageModel": "models",
    "LowBitCache": "cache",
    "LowBitLayer": "cache",
    "NoSinks": "sinks",
    "Page": "codec",
    "PagedStates": "pages",
    "Reading": "reading",
    "Result": "evaluation",
    "SinkProfile": "sinks",
    "Sinks": "plan",
    "Spec": "specs",
    "Window": "evaluation",
    "cache_bytes": "cache",
    "cache_bytes_16bit": "cache",
    "calibrate": "calibration",
    "convert_gguf": "models",
    "evaluate": "evaluation",
    "fit_plan": "planner",
    "load_language_model": "models",
    "load_plan": "plan",
    "parse_spec": "specs",
    "plan_cache": "planner",
    "profile_sinks": "sinks",
    "read": "reading",
    "save_plan": "plan",
    "split_text": "reading",
    "use_low_bit_attention": "attention",
    "windows_of": "evaluation",
}
__all__ = [
    "Answer",
    "CachePlan",
    "Calibration",
    "Codec",
    "Coding",
    "LanguageModel",
    "LowBitCache",
    "LowBitLayer",
    "NoSinks",
    "Page",
    "PagedStates",
    "Reading",
    "Result",
    "SinkProfile",
    "Sinks",
    "Spec",
    "Window",
    "cache_bytes",
    "cache_bytes_16bit",
    "calibrate",
    "convert_gguf",
    "evaluate",
    "fit_plan",
    "load_language_model",
    "load_plan",
    "parse_spec",
    "plan_cache",
    "profile_sinks",
    "read",
    "save_plan",
    "split_text",
    "use_low_bit_attention",
    "windows_of",
]

_EXTRA = frozenset({"gguf", "safetensors", "torch", "transformers"})


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        from sagittal.core.errors import MissingDependencyError

        raise MissingDependencyError(
            f"{name} needs the package {error.name}", expected="pip install sagittal[language]"
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
