"""Libraries that only an extra brings."""

from __future__ import annotations

import importlib
from typing import Any

from sagittal.core.errors import MissingDependencyError

__all__ = ["optional_import"]


def optional_import(name: str, extra: str = "imaging") -> Any:
    """Import a library that only an extra brings.

    Raises:
        MissingDependencyError: The library is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = (getattr(error, "name", None) or name).partition(".")[0]
        raise MissingDependencyError(
            f"{package} is not installed", expected=f"pip install 'sagittal[{extra}]'"
        ) from error
