"""Parts of volumes as NIfTI files, made once, kept on disk by their content, and sent in ranges."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from sagittal.core.errors import InputError
from sagittal.core.files import staging_folder, storage_errors
from sagittal.segmentation import entropy_bits
from sagittal.volume import Volume, write_nifti

__all__ = ["ServedVolumes", "VolumeResponse", "part_of"]

_CHUNK = 1 << 20
_RESTING_SECONDS = 300
_RANGE = re.compile(r"bytes=\s*(\d+-\d*|-\d+)(\s*,\s*(\d+-\d*|-\d+))*\s*")


def part_of(volume: Volume, part: str) -> Volume:
    """Return a part of a volume by its name, as an image of its own.

    ``"image"`` are the voxels, ``"probability-<class>"`` a class's probability, ``"doubt"`` the entropy of
    the classes in bits, or the standard deviation where there is a variance.

    Raises:
        InputError: The volume has no such part.
    """
    if part == "image":
        return volume.with_array(volume.array)
    name = part.removeprefix("probability-")
    if volume.probabilities is not None and part != name and name in volume.classes:
        return volume.with_array(volume.probabilities[..., volume.classes.index(name)], unit="1")
    if part == "doubt" and volume.probabilities is not None:
        return volume.with_array(entropy_bits(volume.probabilities), unit="bits")
    if part == "doubt" and volume.variance is not None:
        return volume.with_array(np.sqrt(volume.variance, dtype=np.float32))
    raise InputError("the volume has no such part", source="part", value=part)


class ServedVolumes:
    """A folder of NIfTI files made from contents; the oldest go when they take too much room.

    Args:
        folder: Where they lie. Nothing in it is needed: it can be deleted at any time.
        limit: Bytes that they may take.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, content: str, part: str, make: Callable[[], Volume]) -> Path:
        """Return the file of a content's part, made by ``make`` when it is not there.

        Raises:
            InputError: ``make`` refuses.
            StorageError: The disk is full or read-only.
        """
        name = hashlib.sha256(f"{content}/{part}".encode()).hexdigest()
        path = self.folder / f"{name}.nii.gz"
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with lock:  # two requests for one volume make it once
            if not path.is_file():
                volume = make()
                with staging_folder(path) as folder:
                    write_nifti(volume, folder / "part.nii.gz")
                    (folder / "part.nii.gz").replace(path)
                self._shrink(keep=path)
            with storage_errors(path):
                os.utime(path)
        return path

    def _shrink(self, keep: Path) -> None:
        with self._lock:
            held = sorted(
                (file.stat().st_mtime, file.stat().st_size, file) for file in self.folder.glob("*.gz")
            )
            total = sum(size for _, size, _ in held)
            for used, size, file in held:
                if total <= self.limit:
                    break
                if file != keep and time.time() - used > _RESTING_SECONDS:  # not one that is being sent
                    file.unlink(missing_ok=True)
                    total -= size


class VolumeResponse(FileResponse):
    """A file with validator and ranges as RFC 9110 has them; a range that is none is ignored."""

    chunk_size = _CHUNK

    def __init__(self, path: Path, etag: str, *, immutable: bool) -> None:
        keeps = "private, max-age=31536000, immutable" if immutable else "private, no-cache"
        headers = {"etag": f'"{etag}"', "cache-control": keeps}
        super().__init__(path, headers=headers, media_type="application/gzip", stat_result=path.stat())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = Headers(scope=scope)
        known = [tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")]
        if self.headers["etag"] in known or known == ["*"]:
            same = {name: self.headers[name] for name in ("etag", "cache-control")}
            await Response(status_code=304, headers=same)(scope, receive, send)
            return
        asked = headers.get("range")
        if asked is not None and not _is_range(asked):
            kept: list[Any] = [pair for pair in scope["headers"] if pair[0] != b"range"]
            scope = {**scope, "headers": kept}
        await super().__call__(scope, receive, send)


def _is_range(asked: str) -> bool:
    pairs = re.findall(r"(\d+)-(\d+)", asked)
    return bool(_RANGE.fullmatch(asked)) and all(int(first) <= int(last) for first, last in pairs)
