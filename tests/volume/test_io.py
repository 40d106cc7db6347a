from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sagittal.core.errors import FormatError, GeometryError, InputError, StorageError
from sagittal.volume import (
    Geometry,
    Volume,
    image_format,
    read_volume,
    write_dicom_series,
    write_itk,
    write_nifti,
)

for library in ("nibabel", "pydicom", "SimpleITK"):
    pytest.importorskip(library)


def test_the_content_decides_not_the_name(tmp_path: Path, volume: Volume) -> None:
    paths = {
        "NIfTI": write_nifti(volume, tmp_path / "a.nii.gz")[0],
        "NRRD": write_itk(volume, tmp_path / "a.nrrd"),
        "MetaImage": write_itk(volume, tmp_path / "a.mha"),
        "DICOM": write_dicom_series(volume, tmp_path / "s", modality="CT")[0],
    }
    (tmp_path / "misnamed").mkdir()
    for number, (kind, path) in enumerate(paths.items()):
        misnamed = tmp_path / "misnamed" / f"{number}.jpg"
        misnamed.write_bytes(path.read_bytes())
        assert image_format(misnamed) == kind
        back = read_volume(misnamed, unit="HU")
        assert back.unit == "HU"
        assert np.array_equal(back.array, volume.array[:, :, : back.shape[2]])
        assert np.allclose(back.geometry.affine[:, :3], volume.geometry.affine[:, :3], atol=1e-5)


def test_a_folder_is_a_dicom_series(tmp_path: Path, volume: Volume) -> None:
    write_dicom_series(volume, tmp_path / "s", modality="CT")
    assert np.array_equal(read_volume(tmp_path / "s").array, volume.array)


def test_a_plain_nifti_and_options(tmp_path: Path, nibabel_file: Callable[[str], Path]) -> None:
    assert read_volume(nibabel_file("anatomical.nii"), unit="a.u.").unit == "a.u."
    with pytest.raises(FormatError, match="not finite"):
        read_volume(nibabel_file("resampled_anat_moved.nii"))
    assert (
        read_volume(nibabel_file("resampled_anat_moved.nii"), nonfinite=0).facts["nonfinite_replaced"] == 153
    )
    path = tmp_path / "a"
    path.write_bytes(b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 1 1 1\nencoding: raw\n\n\1")
    with pytest.raises(GeometryError, match="no position"):
        read_volume(path)
    assert read_volume(path, allow_unplaced=True).array.item() == 1


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "PNG"),
        (b"%PDF-1.7", "PDF"),
        (b"PK\x03\x04abc", "ZIP"),
        (b"some words that are no image", "some words"),
        (gzip.compress(b"a table of numbers"), "gzip of first bytes b'a table of numbe'"),
        (gzip.compress(bytes(5000))[:-20], "truncated"),
        (b"\x5c\x01\0\0" + bytes(344), "Analyze"),
    ],
    ids=["empty", "png", "pdf", "zip", "text", "packed-text", "truncated-gzip", "analyze"],
)
def test_unknown_content_is_named_with_what_is_supported(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)
    assert named in str(caught.value)
    if content and named != "truncated":
        assert "NIfTI" in str(caught.value)
        assert "MetaImage" in str(caught.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_volume(tmp_path / "none")


def test_a_full_disk_is_said_and_leaves_nothing(small_disk: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 30_000, (128, 128, 150)).astype(np.int16)
    big = Volume(array, Geometry.from_spacing(array.shape, (1, 1, 1), (0, 0, 0)))
    small = big.with_array(np.zeros_like(array))
    write_nifti(small, small_disk / "a.nii.gz")
    before = {path.name: path.read_bytes() for path in small_disk.iterdir()}
    for write in (
        lambda: write_nifti(big, small_disk / "a.nii.gz"),
        lambda: write_nifti(big, small_disk / "b.nii"),
        lambda: write_dicom_series(big, small_disk / "series", modality="MR"),
        lambda: write_itk(big, small_disk / "c.nrrd"),
        lambda: write_itk(big, small_disk / "c.mha"),
    ):
        with pytest.raises(StorageError, match="disk is full|could not be written"):
            write()
        assert {path.name: path.read_bytes() for path in small_disk.iterdir()} == before
