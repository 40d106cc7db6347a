from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import FormatError, GeometryError, InputError
from sagittal.volume import Geometry, Volume, from_sitk, read_itk, to_sitk, write_itk

sitk: Any = pytest.importorskip("SimpleITK")


def refused(path: Path, *named: str, kind: type[Exception] = FormatError, **options: Any) -> None:
    with pytest.raises(kind) as caught:
        read_itk(path, **options)
    message = str(caught.value)
    for word in (*named, str(path)):
        assert word in message, message


def test_itk_finds_each_voxel_at_the_same_place(volume: Volume) -> None:
    image = to_sitk(volume)
    for index in [(0, 0, 0), (5, 0, 0), (0, 4, 0), (1, 2, 3)]:
        place = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        assert np.allclose(place, volume.geometry.index_to_world(index))
        assert image[index] == volume.array[index]


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_round_trip_through_a_file(tmp_path: Path, geometry: Geometry, dtype: str, name: str) -> None:
    array = np.random.default_rng(1).integers(0, 100, geometry.shape).astype(dtype)
    path = write_itk(Volume(array, geometry), tmp_path / name)
    back = read_itk(path, unit="SUV")
    assert back.array.dtype == array.dtype
    assert np.array_equal(back.array, array)
    assert back.geometry.is_aligned(geometry, 1e-9)
    assert back.unit == "SUV"
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_bool_and_float16_become_what_itk_has(geometry: Geometry) -> None:
    mask = np.ones(geometry.shape, bool)
    assert from_sitk(to_sitk(Volume(mask, geometry))).array.dtype == np.uint8
    assert from_sitk(to_sitk(Volume(mask.astype("f2"), geometry))).array.dtype == np.float32


def test_a_sheared_grid_in_memory() -> None:
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[1, 2] = 1.2
    volume = Volume(np.zeros((2, 3, 4)), Geometry((2, 3, 4), affine))
    assert from_sitk(to_sitk(volume)).geometry.is_aligned(volume.geometry, 1e-12)


def written(path: Path, array: Any, **options: Any) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(array, **options), str(path))
    return path


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_pixels_that_are_refused(tmp_path: Path, ending: str) -> None:
    refused(written(tmp_path / f"v.{ending}", np.zeros((2, 2, 2, 3)), isVector=True), "3 components")
    refused(written(tmp_path / f"f.{ending}", np.zeros((2, 3, 4, 5)), isVector=False), "3-D", "(5, 4, 3, 2)")
    bad = np.zeros((4, 3, 2), np.float32)
    bad[3, 2, 1] = np.nan
    path = written(tmp_path / f"n.{ending}", bad)
    refused(path, "1 of 24", "nan", "(1, 2, 3)")
    assert read_itk(path, nonfinite=5).array[1, 2, 3] == 5
    assert read_itk(path, nonfinite=5).facts["nonfinite_replaced"] == 1
    one = written(tmp_path / f"o.{ending}", np.zeros((1, 3, 4, 5), np.uint8), isVector=False)
    assert read_itk(one).shape == (5, 4, 3)


def test_damaged_files(tmp_path: Path, volume: Volume) -> None:
    for name in ("a.nrrd", "a.mha"):
        path = write_itk(volume, tmp_path / name)
        refused(path, "max_bytes=239", "240 bytes", max_bytes=239)
        content = path.read_bytes()
        path.write_bytes(content[:-60])
        refused(path, "truncated or damaged")
        path.write_bytes(content[:40])
        refused(path, kind=InputError)
        path.write_bytes(b"")
        refused(path, "empty", "0 bytes")
        path.write_bytes(b"something else")
        refused(path, "neither", "something")
    refused(tmp_path / "none.mha", "no such file", kind=InputError)


def test_uncompressed_files_cut_short(tmp_path: Path) -> None:
    for ending in ("nrrd", "mha"):
        path = written(tmp_path / f"a.{ending}", np.ones((20, 20, 20), np.float32))
        path.write_bytes(path.read_bytes()[:-1000])
        refused(path, "truncated or damaged")


def test_data_in_another_file_are_refused(tmp_path: Path) -> None:
    for ending in ("nhdr", "mhd"):
        refused(written(tmp_path / f"a.{ending}", np.ones((2, 2, 2))), "detached")


def test_no_position_in_space(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    header = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n\n"
    path.write_bytes(header + bytes(range(8)))
    refused(path, "no position", kind=GeometryError)
    volume = read_itk(path, allow_unplaced=True)
    assert volume.facts["unplaced"] is True
    assert volume.array[1, 0, 1] == 5


def test_an_nrrd_in_ras_space(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    header = (
        b"NRRD0004\ntype: uint8\ndimension: 3\nspace: right-anterior-superior\nsizes: 2 2 2\n"
        b"space directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (10,20,30)\nencoding: raw\n\n"
    )
    path.write_bytes(header + bytes(8))
    geometry = read_itk(path).geometry
    assert np.allclose(geometry.affine, [[2, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])


def test_other_endings_are_not_written(tmp_path: Path, volume: Volume) -> None:
    with pytest.raises(InputError, match=r"\.png"):
        write_itk(volume, tmp_path / "a.png")
