"""Which files of a model folder may be opened: safetensors, whole, and no pickle. Reads no weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sagittal.core.errors import ChecksumError, ModelError
from sagittal.core.files import sha256_file

__all__ = ["check_model_folder", "check_safetensors", "verify_sha256"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
_HEADER_LIMIT = 100_000_000  # bytes, the limit of the safetensors format
_SAFE = "weights as safetensors, which hold numbers and no code"


def check_model_folder(path: Path) -> tuple[Path, ...]:
    """Return the weight files of a model folder, in order of their names, after looking at each.

    A pickle is refused by its name alone, or by its first bytes; nothing is unpickled or executed.

    Raises:
        ModelError: The path is no folder, the folder holds a pickle or lacks a file, or a weight file is
            damaged. The message names the file.
    """
    path = Path(path)
    if path.suffix.lower() in PICKLES:
        raise ModelError("a pickle is not opened", source=path, expected=_SAFE)
    if not path.is_dir():
        problem = "the model is no folder" if path.exists() else "the model folder does not exist"
        raise ModelError(problem, source=path, expected="a local folder with config.json and safetensors")
    for file in sorted(path.iterdir()):
        if file.suffix.lower() in PICKLES:
            raise ModelError("a pickle is not opened", source=file, expected=_SAFE)
    if not (path / "config.json").is_file():
        raise ModelError("the model folder lacks a file", source=path / "config.json")
    _read_json(path / "config.json")
    weights = _weight_files(path)
    for file in weights:
        if file.suffix != ".safetensors":
            raise ModelError("weights of another kind are not opened", source=file, expected=_SAFE)
        if not file.is_file():
            raise ModelError("the model folder lacks a file", source=file)
        check_safetensors(file)
    return weights


def check_safetensors(path: Path) -> None:
    """Check that a file is a whole safetensors file, from its header and its size.

    Raises:
        ModelError: It is a pickle or a zip archive under another name, cut short, or damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        header = stream.read(length) if 2 <= length <= min(size - 8, _HEADER_LIMIT) else b""
    if not header.startswith(b"{"):
        if start.startswith(b"PK") or (start[:1] == b"\x80" and start[1:2] <= b"\x05"):
            raise ModelError("a pickle under another name is not opened", source=path, expected=_SAFE)
        raise ModelError(
            "the weights are damaged or cut short", source=path, value=f"{size} bytes", expected=_SAFE
        )
    try:
        ends = [
            entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"
        ]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError("the header of the weights is damaged", source=path) from error
    if size != expected:
        raise ModelError(
            "the weights are damaged or cut short",
            source=path,
            value=f"{size} bytes",
            expected=f"{expected} bytes",
        )


def verify_sha256(path: Path, expected: Mapping[str, str]) -> None:
    """Check files of a folder against pinned digests.

    Args:
        path: The folder.
        expected: File name to sha256, 64 hexadecimal digits.

    Raises:
        ChecksumError: A file is missing or has another digest.
    """
    for name, digest in expected.items():
        file = path / name
        found = sha256_file(file) if file.is_file() else "no such file"
        if found != digest.lower():
            raise ChecksumError("the file is not the pinned one", source=file, value=found, expected=digest)


def _weight_files(path: Path) -> tuple[Path, ...]:
    if (path / SINGLE).exists() or not (path / INDEX).is_file():
        return (path / SINGLE,)
    index = _read_json(path / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise ModelError("the index of the weights names none", source=path / INDEX)
    names = {str(name) for name in index.values()}
    for name in names:
        if Path(name).name != name:
            raise ModelError("the index of the weights leaves its folder", source=path / INDEX, value=name)
    return tuple(path / name for name in sorted(names))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError("the file is no JSON", source=path) from error
    if not isinstance(content, dict):
        raise ModelError("the file holds no JSON object", source=path)
    return content
