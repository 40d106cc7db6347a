"""Transformer language models with a low-bit key-value cache; needs ``pip install sagittal[language]``.

Importing this package imports neither torch nor transformers: a name is loaded when it is first used.
The pieces under the cache stand in :mod:`sagittal.language.packing` and :mod:`sagittal.language.quantise`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagittal.language.cache import LowBitCache, LowBitLayer, cache_bytes, cache_bytes_16bit
    from sagittal.language.models import LanguageModel, convert_gguf, load_language_model
    from sagittal.language.pages import Page, PagedStates
    from sagittal.language.plan import CachePlan
    from sagittal.language.reading import Answer, Reading, read, split_text

__all__ = [
    "Answer",
    "CachePlan",
    "LanguageModel",
    "LowBitCache",
    "LowBitLayer",
    "Page",
    "PagedStates",
    "Reading",
    "cache_bytes",
    "cache_bytes_16bit",
    "convert_gguf",
    "load_language_model",
    "read",
    "split_text",
]

_HOME = {
    "Answer": "reading",
    "CachePlan": "plan",
    "LanguageModel": "models",
    "LowBitCache": "cache",
    "LowBitLayer": "cache",
    "Page": "pages",
    "PagedStates": "pages",
    "Reading": "reading",
    "cache_bytes": "cache",
    "cache_bytes_16bit": "cache",
    "convert_gguf": "models",
    "load_language_model": "models",
    "read": "reading",
    "split_text": "reading",
}
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
