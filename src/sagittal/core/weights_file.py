"""Weights as bytes: safetensors, with a header in JSON of everything that is not a weight.

Nothing is unpickled. The header holds the sha256 of the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal import __version__
from sagittal.core.errors import FormatError
from sagittal.core.optional import optional_import
from sagittal.core.provenance import hash_array, hash_json

__all__ = ["packed_weights", "unpacked_weights"]


def packed_weights(
    kind: str, form: int, arrays: Mapping[str, NDArray[Any]], header: Mapping[str, Any]
) -> bytes:
    """Return arrays and a header as the content of a file.

    Args:
        kind: What the file holds, such as "registration-network".
        form: Version of the header and of what the weights mean.
        arrays: By name.
        header: JSON values.

    Raises:
        MissingDependencyError: safetensors is not installed.
    """
    kept = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    whole = {"format": form, "version": __version__, **header, "sha256": _digest(kept)}
    save = optional_import("safetensors.numpy", "language").save
    found: bytes = save(kept, metadata={_key(kind): json.dumps(whole)})
    return found


def unpacked_weights(
    kind: str, form: int, content: bytes, source: object = None, *, what: str, made_by: str
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the arrays and the header that :func:`packed_weights` wrote.

    Args:
        kind: As it was written.
        form: The version that is understood.
        content: The whole file.
        source: What to call it in an error.
        what: What the file should hold, in words.
        made_by: The command that writes such files.

    Raises:
        FormatError: Another kind of file, one that was cut short or changed, or one of another version.
    """
    wanted = f"a {what} that {made_by} has written"
    load = optional_import("safetensors.numpy", "language").load
    try:
        length = int.from_bytes(content[:8], "little")
        header: Any = json.loads(content[8 : 8 + length])["__metadata__"][_key(kind)]
        header = dict(json.loads(header))
    except (ValueError, LookupError, TypeError) as error:
        raise FormatError(f"this is no {what}", source=source, expected=wanted) from error
    if header.get("format") != form:
        raise FormatError(
            f"the {what.split()[-1]} is of another format",
            source=source,
            value=f"{header.get('format')}, from version {header.get('version')}",
            expected=f"{form}, as version {__version__} writes it",
        )
    try:
        arrays = load(content)
    except Exception as error:  # safetensors has an error class of its own
        raise FormatError(f"the {what.split()[-1]} is damaged", source=source, expected=wanted) from error
    if _digest(arrays) != header.get("sha256"):
        raise FormatError("the weights are damaged", source=source, expected=wanted)
    return arrays, header


def _key(kind: str) -> str:
    return f"sagittal.{kind}"


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    return hash_json({name: hash_array(array) for name, array in arrays.items()})
