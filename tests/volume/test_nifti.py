from __future__ import annotations

import gzip
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagittal.core.errors import FormatError, GeometryError, InputError, MissingDependencyError
from sagittal.volume import Geometry, Volume, read_nifti, write_nifti

nib: Any = pytest.importorskip("nibabel")
DTYPES = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]


def plain(path: Path, array: Any = None, affine: Any = None, **header: Any) -> Path:
    """A NIfTI file without sidecar, with header fields overwritten."""
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4) if array is None else array
    image = nib.Nifti1Image(array, np.diag([2.0, 3.0, 4.0, 1.0]) if affine is None else affine)
    content = image.to_bytes()
    raw = nib.Nifti1Header(content[:348], endianness="<", check=False)
    for name, value in header.items():
        raw[name] = value
    content = raw.binaryblock + content[348:]
    path.write_bytes(gzip.compress(content, mtime=0) if path.name.endswith(".gz") else content)
    return path


def refused(path: Path, *named: str, kind: type[InputError] = FormatError, **options: Any) -> None:
    with pytest.raises(kind) as caught:
        read_nifti(path, **options)
    message = str(caught.value)
    assert str(path) in message
    for word in named:
        assert word in message, message


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_round_trip_is_exact(tmp_path: Path, volume: Volume, name: str) -> None:
    written = write_nifti(volume, tmp_path / name)
    assert {path.name for path in written} == {
        name,
        "scan.json",
        "scan_variance.nii.gz",
        "scan_probabilities.nii.gz",
    }
    back = read_nifti(tmp_path / name)
    assert back.content_hash == volume.content_hash
    assert back.array.dtype == volume.array.dtype
    assert np.array_equal(back.geometry.affine, volume.geometry.affine)  # float64, through float32 on disk
    assert back.facts == volume.facts


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(DTYPES), st.integers(0, 2**32 - 1))
def test_round_trip_of_any_dtype_and_affine(dtype: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3] = random.normal(size=(3, 4)) * 10.0 ** random.integers(-2, 3)
    shape = tuple(int(n) for n in random.integers(1, 5, 3))
    array = (random.normal(size=shape) * 100).astype(np.int64).astype(dtype)
    volume = Volume(array, Geometry((shape[0], shape[1], shape[2]), affine), unit="a.u.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v.nii.gz"
        write_nifti(volume, path)
        assert read_nifti(path).content_hash == volume.content_hash


def test_the_same_volume_gives_the_same_bytes(tmp_path: Path, volume: Volume) -> None:
    (tmp_path / "b").mkdir()
    first = [path.read_bytes() for path in write_nifti(volume, tmp_path / "v.nii.gz")]
    second = [path.read_bytes() for path in write_nifti(volume, tmp_path / "b" / "v.nii.gz")]
    assert first == second


def test_other_programs_find_voxels_and_place(tmp_path: Path, volume: Volume) -> None:
    write_nifti(volume, tmp_path / "v.nii.gz")
    image = nib.load(tmp_path / "v.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), volume.array)
    assert np.allclose(image.get_sform(), volume.geometry.affine, atol=1e-5)
    assert np.allclose(image.get_qform(), volume.geometry.affine, atol=1e-4)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_an_image_changed_by_another_program_is_not_given_the_old_doubt(
    tmp_path: Path, volume: Volume
) -> None:
    path = tmp_path / "v.nii.gz"
    write_nifti(volume, path)
    plain(path, volume.array + 1, volume.geometry.affine)
    refused(path, "do not belong together", "v.json")
    plain(
        path, volume.array, volume.geometry.affine + np.eye(4)[:, [3, 0, 1, 2]] * 0.01 * [[1], [1], [1], [0]]
    )
    refused(path, "do not belong together")
    (tmp_path / "v.json").unlink()
    assert read_nifti(path).unit == "1"


def test_a_missing_part_and_a_damaged_sidecar_are_named(tmp_path: Path, volume: Volume) -> None:
    path = tmp_path / "v.nii.gz"
    write_nifti(volume, path)
    (tmp_path / "v_variance.nii.gz").unlink()
    refused(path, "v_variance.nii.gz")
    record = json.loads((tmp_path / "v.json").read_text())
    del record["sagittal"]["unit"]
    del record["sagittal"]["variance"]
    (tmp_path / "v.json").write_text(json.dumps(record))
    refused(path, "damaged", "unit")
    (tmp_path / "v.json").write_text("{")
    with pytest.raises(FormatError, match=r"v\.json.*not JSON"):
        read_nifti(path)


def test_keys_of_another_tool_survive_and_are_ignored(tmp_path: Path, volume: Volume) -> None:
    sidecar = tmp_path / "v.json"
    sidecar.write_text('{"EchoTime": 0.03}')
    plain(tmp_path / "v.nii")
    assert read_nifti(tmp_path / "v.nii").facts == {}
    write_nifti(volume, tmp_path / "v.nii")
    assert json.loads(sidecar.read_text())["EchoTime"] == 0.03
    sidecar.write_text("[1]")
    with pytest.raises(InputError, match=r"v\.json"):
        write_nifti(volume, tmp_path / "v.nii")


def test_parts_of_an_older_volume_are_removed(tmp_path: Path, volume: Volume) -> None:
    write_nifti(volume, tmp_path / "v.nii.gz")
    write_nifti(volume.with_array(volume.array), tmp_path / "v.nii.gz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.json", "v.nii.gz"]
    assert read_nifti(tmp_path / "v.nii.gz").variance is None


def test_real_images(nibabel_file: Callable[[str], Path]) -> None:
    path = nibabel_file("anatomical.nii")
    image = nib.load(path)
    volume = read_nifti(path, unit="a.u.")
    assert np.array_equal(volume.array, np.asarray(image.dataobj))
    assert np.array_equal(volume.geometry.affine, image.affine)
    assert volume.geometry.axis_codes == ("L", "A", "S")
    refused(nibabel_file("example4d.nii.gz"), "(128, 96, 24, 2)", "3-D")
    refused(nibabel_file("example_nifti2.nii.gz"), "(32, 20, 12, 2)")
    bad = nibabel_file("resampled_anat_moved.nii")
    refused(bad, "not finite", "153 of 1071", "(0, 0, 0)")
    filled = read_nifti(bad, nonfinite=-1.0)
    assert filled.facts["nonfinite_replaced"] == 153
    assert filled.array[0, 0, 0] == -1
    refused(nibabel_file("analyze.hdr"), "not a NIfTI")
    refused(nibabel_file("nifti1.hdr"), "pair")


def test_slope_and_intercept(tmp_path: Path) -> None:
    exact = read_nifti(plain(tmp_path / "a.nii", scl_slope=1, scl_inter=-1024))
    assert exact.array.dtype == np.int16
    assert exact.array[1, 2, 3] == 23 - 1024
    rounded = read_nifti(plain(tmp_path / "b.nii", scl_slope=0.5, scl_inter=1))
    assert rounded.array.dtype == np.float32
    assert rounded.array[1, 2, 3] == 12.5
    big = read_nifti(plain(tmp_path / "c.nii", np.full((2, 2, 2), 30000, np.int16), scl_slope=4))
    assert big.array.max() == 120000


def test_big_endian_file(tmp_path: Path) -> None:
    array = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    image = nib.Nifti1Image(array, np.eye(4), header)
    (tmp_path / "b.nii").write_bytes(image.to_bytes())
    assert (tmp_path / "b.nii").read_bytes()[:4] == b"\0\0\x01\x5c"
    assert np.array_equal(read_nifti(tmp_path / "b.nii").array, array)


@pytest.mark.parametrize(("code", "scale"), [(1, 1000.0), (2, 1.0), (3, 1e-3), (0, 1.0)])
def test_units_of_length_become_mm(tmp_path: Path, code: int, scale: float) -> None:
    volume = read_nifti(plain(tmp_path / "a.nii", xyzt_units=code))
    assert volume.geometry.spacing == pytest.approx((2 * scale, 3 * scale, 4 * scale))


def test_an_unknown_unit_of_length(tmp_path: Path) -> None:
    refused(plain(tmp_path / "a.nii", xyzt_units=5), "code 5")


def test_sform_comes_before_qform(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), None)
    image.set_sform(np.diag([2.0, 2, 2, 1]), code=1)
    image.set_qform(np.diag([3.0, 3, 3, 1]), code=1)
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    assert read_nifti(tmp_path / "a.nii").geometry.spacing == (2, 2, 2)
    image.set_sform(None, code=0)
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    assert read_nifti(tmp_path / "a.nii").geometry.spacing == (3, 3, 3)


def test_no_position_in_space(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.nii", sform_code=0, qform_code=0)
    refused(path, "no position", "sform_code 0", kind=GeometryError)
    volume = read_nifti(path, allow_unplaced=True)
    assert volume.facts["unplaced"] is True
    assert volume.geometry.spacing == (2, 3, 4)


def test_singular_and_impossible_positions(tmp_path: Path) -> None:
    refused(plain(tmp_path / "a.nii", srow_x=[0, 0, 0, 0]), "singular", kind=GeometryError)
    refused(plain(tmp_path / "b.nii", srow_x=[np.nan, 0, 0, 0]), "finite", kind=GeometryError)
    path = plain(tmp_path / "c.nii", sform_code=0, qform_code=1, quatern_b=3.0)
    refused(path, "qform", kind=GeometryError)


def test_a_trailing_axis_of_one_is_dropped(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4, 1, 1)
    assert np.array_equal(read_nifti(plain(tmp_path / "a.nii", array)).array, array[..., 0, 0])
    refused(plain(tmp_path / "b.nii", np.zeros((2, 3), np.int16)), "(2, 3)")


def test_numbers_that_are_not_real_or_too_wide(tmp_path: Path) -> None:
    complex_numbers = np.zeros((2, 2, 2), np.complex64)
    refused(plain(tmp_path / "a.nii", complex_numbers), "complex", "complex64", "datatype code 32")
    refused(plain(tmp_path / "b.nii", datatype=1536), "1536")


def test_colours_and_unknown_types(tmp_path: Path) -> None:
    colour = np.zeros((2, 2, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(plain(tmp_path / "a.nii", colour), "colours", "128")
    refused(plain(tmp_path / "b.nii", datatype=7777), "7777")


def test_not_finite(tmp_path: Path) -> None:
    array = np.zeros((2, 3, 4), np.float32)
    array[1, 2, 3] = np.inf
    path = plain(tmp_path / "a.nii", array)
    refused(path, "1 of 24", "inf", "(1, 2, 3)")
    with pytest.raises(FormatError, match="nan"):
        read_nifti(path, nonfinite=float("nan"))


def test_empty_foreign_missing_and_folder(tmp_path: Path) -> None:
    empty = tmp_path / "a.nii"
    empty.touch()
    refused(empty, "empty", "0 bytes")
    empty.write_bytes(b"hello, this is text" * 40)
    refused(empty, "not a NIfTI", "hell")
    empty.write_bytes(b"\x5c\x01\0\0" + bytes(100))
    refused(empty, "header is truncated", "104")
    empty.write_bytes(b"\x5c\x01\0\0" + bytes(500))
    refused(empty, "magic")
    refused(tmp_path / "nothing.nii", "no such file", kind=InputError)
    refused(tmp_path, "folder", kind=InputError)


def test_truncated(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 30000, (20, 20, 20)).astype(np.int16)
    path = plain(tmp_path / "a.nii", array)
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, "truncated", f"{352 + 16000 - 100} bytes", f"{352 + 16000}")
    packed = plain(tmp_path / "b.nii.gz", array)
    whole = packed.read_bytes()
    packed.write_bytes(whole[:-200])
    refused(packed, "gzip stream is truncated")
    packed.write_bytes(gzip.compress(gzip.decompress(whole)[:-100]))
    refused(packed, "truncated", "15900 bytes")
    packed.write_bytes(whole[:-8] + b"\0\0\0\0" + whole[-4:])  # a wrong checksum
    refused(packed, "gzip stream is damaged")
    packed.write_bytes(whole[:3000] + bytes(50) + whole[3050:])
    refused(packed)


def test_promises_are_not_believed(tmp_path: Path) -> None:
    dims = [3, 30000, 30000, 30000, 1, 1, 1, 1]
    refused(plain(tmp_path / "a.nii", dim=dims), "promises more", "54000000000000 bytes")
    refused(plain(tmp_path / "b.nii.gz", dim=[3, 1000, 1000, 1000, 1, 1, 1, 1]), "truncated", "2000000352")
    refused(plain(tmp_path / "c.nii", dim=[3, -5, 3, 4, 1, 1, 1, 1]), "-5")
    refused(plain(tmp_path / "d.nii", dim=[9, 2, 3, 4, 1, 1, 1, 1]), "9")
    refused(plain(tmp_path / "e.nii", vox_offset=10), "offset", "10")
    refused(plain(tmp_path / "f.nii"), "max_bytes=399", max_bytes=399)
    assert read_nifti(tmp_path / "f.nii", max_bytes=400).shape == (2, 3, 4)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    small = plain(tmp_path / "a.nii").read_bytes()
    bomb = tmp_path / "bomb.nii.gz"
    bomb.write_bytes(gzip.compress(small + bytes(64 << 20), 9))
    assert bomb.stat().st_size < 100_000
    import tracemalloc

    tracemalloc.start()
    refused(bomb, "more data than its header promises")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    honest = plain(tmp_path / "zeros.nii.gz", np.zeros((200, 200, 100), np.int16))
    refused(honest, "8000000 bytes", "max_bytes=1000000", max_bytes=1_000_000)


def test_names_other_than_nifti_are_not_written(tmp_path: Path, volume: Volume) -> None:
    for name in ("a.mha", ".nii.gz", "a.gz"):
        with pytest.raises(InputError, match="NIfTI file name"):
            write_nifti(volume, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_sheared_grid_is_written_without_qform(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[1, 2] = 0.4
    volume = Volume(np.zeros((2, 2, 2), np.uint8), Geometry((2, 2, 2), affine))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_nifti(volume, tmp_path / "a.nii")
        assert read_nifti(tmp_path / "a.nii").content_hash == volume.content_hash
    assert int(nib.load(tmp_path / "a.nii").header["qform_code"]) == 0


def test_without_nibabel(tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(MissingDependencyError, match=r"nibabel.*sagittal\[imaging\]"):
        read_nifti(plain(tmp_path / "a.nii"))


def test_an_image_for_another_program_stands_alone(tmp_path: Path) -> None:
    labels = Volume(
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4), Geometry.from_spacing((2, 3, 4), (1, 2, 3))
    )
    assert write_nifti(labels, tmp_path / "labels.nii.gz", sidecar=False) == [tmp_path / "labels.nii.gz"]
    assert [path.name for path in tmp_path.iterdir()] == ["labels.nii.gz"]
    back = read_nifti(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(back.array, labels.array)
    assert back.array.dtype == np.uint8
    assert back.geometry.is_aligned(labels.geometry)
    with pytest.raises(InputError, match="not a NIfTI file name"):
        write_nifti(labels, tmp_path / "labels.mha", sidecar=False)
