from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sagittal.case.objects import ObjectStore, check_file
from sagittal.core.errors import StorageError
from sagittal.core.provenance import hash_array


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "objects")


def files(objects: ObjectStore) -> list[Path]:
    return sorted(path for path in objects.folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("content", [b"", b"\x00\xff", bytes(100_000)])
def test_bytes_come_back_under_their_sha256(objects: ObjectStore, content: bytes) -> None:
    digest = objects.put_bytes(content)
    assert digest == hashlib.sha256(content).hexdigest()
    assert objects.get_bytes(digest) == content


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "f4", "f8", "?"])
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 4, 5)])
def test_arrays_come_back_with_dtype_shape_and_values(
    objects: ObjectStore, dtype: str, shape: tuple[int, ...]
) -> None:
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    digest = objects.put_array(array)
    assert digest == hash_array(array)
    again = objects.get_array(digest)
    assert again.shape == array.shape
    assert again.dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
    assert np.array_equal(again, array)


def test_equal_content_is_kept_once(objects: ObjectStore) -> None:
    array = np.arange(12).reshape(3, 4)
    assert objects.put_array(array) == objects.put_array(np.asfortranarray(array))
    assert objects.put_bytes(b"x") == objects.put_bytes(b"x")
    assert len(files(objects)) == 2


def test_missing_content_is_named(objects: ObjectStore) -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    for get in (objects.get_bytes, objects.get_array):
        with pytest.raises(StorageError, match=f"{digest[2:]}.*does not hold this content; got {digest}"):
            get(digest)


def test_changed_content_is_named(objects: ObjectStore) -> None:
    array = np.zeros((10, 10))
    digests = {
        objects.put_bytes(b"some text"): objects.get_bytes,
        objects.put_array(array): objects.get_array,
    }
    for path in files(objects):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    for digest, get in digests.items():
        with pytest.raises(StorageError, match=f"{digest[2:]}.*has changed; got .*; expected {digest}"):
            get(digest)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(300_000, dtype=np.int64).reshape(3, -1),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(5, dtype=">f4"),
        np.array(7, dtype=np.uint8),
        np.zeros((0, 3), dtype=bool),
    ],
    ids=["large", "fortran", "big-endian", "scalar", "empty"],
)
@pytest.mark.parametrize("by_numpy", [False, True])
def test_an_array_is_compared_as_it_lies(
    objects: ObjectStore, tmp_path: Path, array: NDArray[Any], by_numpy: bool
) -> None:
    digest = hash_array(array)
    path = tmp_path / "lying.npy"
    if by_numpy:
        np.save(path, array)
    else:
        objects.put_array(array)
        path.write_bytes(objects.check(digest).read_bytes())
    check_file(path, digest)
    with pytest.raises(StorageError, match="changed"):
        check_file(path, "0" * 64)


@pytest.mark.parametrize("length", [0, 5, 60, 128, 500])
def test_a_truncated_array_is_named(objects: ObjectStore, length: int) -> None:
    digest = objects.put_array(np.arange(100.0))
    (path,) = files(objects)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(StorageError, match=f"{digest[2:]}.npy: the content on disk is damaged"):
        objects.get_array(digest)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 127), byte=st.integers(0, 255))
def test_a_damaged_header_gives_the_array_or_a_refusal(objects: ObjectStore, place: int, byte: int) -> None:
    array = np.arange(100, dtype=np.int16)
    digest = objects.put_array(array)
    (path,) = files(objects)
    intact = path.read_bytes()
    damaged = bytearray(intact)
    damaged[place] = byte
    path.write_bytes(damaged)
    refusal = None
    try:
        assert np.array_equal(objects.get_array(digest), array)
    except StorageError as error:
        refusal = str(error)
    finally:
        path.write_bytes(intact)
    assert refusal is None or refusal.startswith(f"{path}: the content on disk ")


def test_an_array_is_never_unpickled(objects: ObjectStore) -> None:
    digest = objects.put_array(np.arange(3))
    (path,) = files(objects)
    np.save(path, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(StorageError, match="damaged; got Object arrays cannot be loaded"):
        objects.get_array(digest)


def test_a_full_disk_leaves_nothing_half_written(small_disk: Path) -> None:
    objects = ObjectStore(small_disk / "objects")
    digest = objects.put_bytes(b"before")
    for put, content in ((objects.put_bytes, bytes(4 << 20)), (objects.put_array, np.ones(1 << 19))):
        with pytest.raises(StorageError, match="the disk is full; expected free space"):
            put(content)
    assert len(files(objects)) == 1
    assert objects.get_bytes(digest) == b"before"
