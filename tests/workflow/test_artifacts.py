from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sagittal.case.objects import ObjectStore
from sagittal.case.record import Artifact
from sagittal.core.errors import InputError, StorageError
from sagittal.volume import Geometry, Volume
from sagittal.workflow.artifacts import Kind, SourceFiles, load, save, volume_manifest


def test_every_kind_comes_back_exactly(tmp_path: Path) -> None:
    objects = ObjectStore(tmp_path)
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 1], size=(3, 4, 2)).astype(np.float32)
    volume = Volume(
        rng.integers(0, 9, (3, 4, 2)).astype(np.int16),
        Geometry.from_spacing((3, 4, 2), (0.1, 0.7, 3.0), (1 / 3, 2.0, -5.0)),
        unit="HU",
        variance=rng.random((3, 4, 2)),
        probabilities=probabilities,
        classes=("a", "b"),
        facts={"kvp": 120.0},
    )
    values = {
        Kind.FILES: SourceFiles((("a.dcm", b"\x00\x01"), ("b.dcm", b""))),
        Kind.TEXT: "Grüße\n",
        Kind.JSON: {"b": [1, None], "a": 0.1},
    }
    for kind, value in values.items():
        assert load(objects, save(objects, "role", kind, value)) == value
    artifact = save(objects, "image", Kind.VOLUME, volume)
    again = load(objects, artifact)
    assert again.content_hash == volume.content_hash
    assert again.facts == volume.facts
    assert again.array.dtype == volume.array.dtype
    assert save(objects, "image", Kind.VOLUME, again) == artifact


def test_a_value_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="report.*a text artifact cannot hold this.*dict"):
        save(ObjectStore(tmp_path), "report", Kind.TEXT, {})


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("volume", b"{}"),
        ("volume", b"no json"),
        ("volume", b"[]"),
        ("json", b"[]"),
        ("files", b"[7]"),
        ("text", b"\xff"),
        ("nonsense", b"{}"),
    ],
)
def test_a_content_that_is_not_what_the_record_says_is_named(
    tmp_path: Path, kind: str, content: bytes
) -> None:
    objects = ObjectStore(tmp_path)
    artifact = Artifact(role="tissue", kind=kind, content=objects.put_bytes(content))
    with pytest.raises(StorageError, match="tissue: the content is not what the record says it is"):
        load(objects, artifact)
    if kind == "volume":
        with pytest.raises(StorageError, match="tissue"):
            volume_manifest(objects, artifact)
