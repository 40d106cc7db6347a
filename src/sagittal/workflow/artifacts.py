"""How the values that steps exchange are kept in the store, and had back exactly."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from numpy.typing import NDArray

from sagittal.case.objects import ObjectStore
from sagittal.case.record import Artifact
from sagittal.core.errors import InputError, SagittalError, StorageError
from sagittal.core.provenance import canonical_json
from sagittal.volume import Geometry, Volume

__all__ = ["Kind", "SourceFiles", "load", "save", "volume_manifest"]


class Kind(StrEnum):
    """Kinds of value that a step reads or writes."""

    FILES = "files"
    VOLUME = "volume"
    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True)
class SourceFiles:
    """Files as they were received: name (no folder) and content, in the order given."""

    files: tuple[tuple[str, bytes], ...]


def save(objects: ObjectStore, role: str, kind: Kind, value: Any) -> Artifact:
    """Keep ``value`` in the store and return the artifact that names it.

    Raises:
        InputError: The value is not of this kind.
        StorageError: The store cannot be written.
    """
    expected, encode, _ = _CODECS[kind]
    if not isinstance(value, expected):
        raise InputError(
            f"a {kind} artifact cannot hold this",
            source=role,
            value=type(value).__name__,
            expected=str(expected),
        )
    kept = _Kept(objects)
    content = objects.put_bytes(encode(kept, value))
    return Artifact(role=role, kind=kind.value, content=content, parts=tuple(kept.digests))


def load(objects: ObjectStore, artifact: Artifact) -> Any:
    """Return the value that an artifact names; its content is checked against its hash."""
    with _readable(artifact):
        _, _, decode = _CODECS[Kind(artifact.kind)]
        return decode(objects, objects.get_bytes(artifact.content))


def volume_manifest(objects: ObjectStore, artifact: Artifact) -> dict[str, Any]:
    """Return what is known of a volume without its arrays: classes, geometry, unit, facts, hashes."""
    with _readable(artifact):
        manifest: dict[str, Any] = json.loads(objects.get_bytes(artifact.content))
        return {name: manifest[name] for name in _VOLUME}


@contextlib.contextmanager
def _readable(artifact: Artifact) -> Iterator[None]:
    """Name the artifact whose content is not what the record says it is, as that of an import may be."""
    try:
        yield
    except SagittalError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise StorageError(
            "the content is not what the record says it is",
            source=artifact.role,
            value=type(error).__name__,
            expected=f"a {artifact.kind}",
        ) from error


_VOLUME = ("array", "variance", "probabilities", "classes", "geometry", "unit", "facts")


class _Kept:
    """Keeps contents and remembers which: the parts of an artifact."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self.digests: dict[str, None] = {}

    def put_bytes(self, content: bytes) -> str:
        return self._note(self._objects.put_bytes(content))

    def put_array(self, array: NDArray[Any]) -> str:
        return self._note(self._objects.put_array(array))

    def _note(self, digest: str) -> str:
        self.digests[digest] = None
        return digest


def _object(content: bytes) -> dict[str, Any]:
    found = json.loads(content)
    if not isinstance(found, dict):
        raise TypeError("no object")
    return found


def _encode_files(objects: _Kept, value: SourceFiles) -> bytes:
    return canonical_json([[name, objects.put_bytes(content)] for name, content in value.files]).encode()


def _decode_files(objects: ObjectStore, content: bytes) -> SourceFiles:
    return SourceFiles(tuple((name, objects.get_bytes(digest)) for name, digest in json.loads(content)))


def _encode_volume(objects: _Kept, volume: Volume) -> bytes:
    manifest = {
        "array": objects.put_array(volume.array),
        "variance": None if volume.variance is None else objects.put_array(volume.variance),
        "probabilities": None if volume.probabilities is None else objects.put_array(volume.probabilities),
        "classes": list(volume.classes),
        "geometry": volume.geometry.to_json(),
        "unit": volume.unit,
        "facts": dict(volume.facts),
    }
    return canonical_json(manifest).encode()


def _decode_volume(objects: ObjectStore, content: bytes) -> Volume:
    manifest = json.loads(content)

    def array(name: str) -> Any:
        return None if manifest[name] is None else objects.get_array(manifest[name])

    return Volume(
        array("array"),
        Geometry.from_json(manifest["geometry"]),
        unit=manifest["unit"],
        variance=array("variance"),
        probabilities=array("probabilities"),
        classes=tuple(manifest["classes"]),
        facts=manifest["facts"],
    )


_Encode = Callable[[_Kept, Any], bytes]
_Decode = Callable[[ObjectStore, bytes], Any]
_CODECS: dict[Kind, tuple[type, _Encode, _Decode]] = {
    Kind.FILES: (SourceFiles, _encode_files, _decode_files),
    Kind.VOLUME: (Volume, _encode_volume, _decode_volume),
    Kind.TEXT: (str, lambda _, text: text.encode(), lambda _, content: content.decode()),
    Kind.JSON: (
        dict,
        lambda _, value: canonical_json(value).encode(),
        lambda _, content: _object(content),
    ),
}
