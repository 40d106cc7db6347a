from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagittal.core.errors import GeometryError, InputError
from sagittal.volume import Geometry, Volume, read_dicom, read_nifti, reorient, write_dicom_series

pydicom: Any = pytest.importorskip("pydicom")


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(["?", "i1", "u1", "i2", "u2", "i8", "u8", "f4"]), st.integers(0, 2**32 - 1))
def test_whole_numbers_and_place_come_back_exactly(dtype: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(random.normal(size=(3, 3)))
    axes *= np.sign(np.linalg.det(axes))
    geometry = Geometry.from_spacing(
        (3, 4, 2), random.uniform(0.2, 5, 3).tolist(), (random.normal(size=3) * 300).tolist(), axes
    )
    low = {"?": 0, "i1": -128, "u1": 0, "i2": -32768, "u2": 0, "i8": -(10**9), "u8": 10**12, "f4": -500}[
        dtype
    ]
    width = {"?": 2, "i1": 256, "u1": 256, "f4": 1000}.get(dtype, 65536)
    volume = Volume((low + random.integers(0, width, geometry.shape)).astype(dtype), geometry, unit="a.u.")
    with tempfile.TemporaryDirectory() as folder:
        write_dicom_series(volume, Path(folder) / "s", modality="MR")
        back = read_dicom(Path(folder) / "s")
    assert np.array_equal(back.array.astype(np.float64), volume.array.astype(np.float64))
    assert back.geometry.is_aligned(geometry, 1e-6)
    assert back.unit == "a.u."


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-6, 0.0), (1e5, -3e4), (1.0, 1e6), (0.0, 0.3)])
def test_floats_come_back_within_half_a_step(
    tmp_path: Path, geometry: Geometry, scale: float, offset: float
) -> None:
    array = np.random.default_rng(3).normal(size=geometry.shape) * scale + offset
    write_dicom_series(Volume(array, geometry), tmp_path / "s", modality="MR")
    step = (array.max() - array.min()) / 65535
    error = np.abs(read_dicom(tmp_path / "s").array - array).max()
    assert error <= 0.51 * step + 1e-7 * (scale == 0)


def test_a_left_handed_grid_comes_back_flipped_in_the_same_place(tmp_path: Path, geometry: Geometry) -> None:
    array = np.arange(120, dtype=np.int16).reshape(geometry.shape)
    right = Volume(array, Geometry(geometry.shape, np.diag([2.0, 3.0, 4.0, 1.0])))
    left = reorient(right, "LAS")
    write_dicom_series(left, tmp_path / "s", modality="MR")
    back = read_dicom(tmp_path / "s")
    assert np.array_equal(reorient(back, "RAS").array, array)
    assert reorient(back, "RAS").geometry.is_aligned(right.geometry)
    assert not back.geometry.is_aligned(left.geometry)


def test_a_sheared_stack_survives(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[1, 2] = 1.2
    volume = Volume(np.arange(60, dtype=np.int16).reshape(4, 5, 3), Geometry((4, 5, 3), affine), unit="HU")
    write_dicom_series(volume, tmp_path / "s", modality="CT")
    back = read_dicom(tmp_path / "s", allow_tilt=True)
    assert back.geometry.is_aligned(volume.geometry, 1e-6)
    assert np.array_equal(back.array, volume.array)
    affine[1, 0] = 0.5
    with pytest.raises(GeometryError, match="perpendicular"):
        write_dicom_series(Volume(volume.array, Geometry((4, 5, 3), affine)), tmp_path / "t", modality="MR")


def test_a_real_brain_as_a_series(tmp_path: Path, nibabel_file: Callable[[str], Path]) -> None:
    volume = reorient(read_nifti(nibabel_file("anatomical.nii")), "LPS")
    write_dicom_series(volume, tmp_path / "s", modality="MR")
    back = read_dicom(tmp_path / "s")
    assert np.array_equal(back.array, volume.array)
    assert back.geometry.is_aligned(volume.geometry, 1e-6)


def test_the_same_call_gives_the_same_files(tmp_path: Path, volume: Volume) -> None:
    paths = write_dicom_series(volume, tmp_path / "a", modality="CT")
    again = write_dicom_series(volume, tmp_path / "b", modality="CT")
    other = write_dicom_series(volume, tmp_path / "c", modality="CT", description="other")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    uids = {str(pydicom.dcmread(path).SOPInstanceUID) for path in [*paths, *other]}
    assert len(uids) == 2 * volume.shape[2]


def test_what_the_files_say(tmp_path: Path, volume: Volume) -> None:
    path = write_dicom_series(
        volume,
        tmp_path / "a",
        modality="CT",
        description="aligned",
        study_uid="1.2.3",
        frame_of_reference_uid="1.2.4",
        series_number=5,
    )[1]
    dataset = pydicom.dcmread(path)
    assert (dataset.StudyInstanceUID, dataset.FrameOfReferenceUID) == ("1.2.3", "1.2.4")
    assert (dataset.SeriesDescription, dataset.SeriesNumber, dataset.PatientID) == ("aligned", 5, "anonymous")
    assert (dataset.RescaleType, dataset.InstanceNumber) == ("HU", 2)
    assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
    assert dataset.StudyDate == ""
    assert str(dataset.PatientName) == ""
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        assert all(len(str(value)) <= 16 for value in dataset[name].value)


def test_another_reader_finds_the_same_place(tmp_path: Path, volume: Volume) -> None:
    sitk: Any = pytest.importorskip("SimpleITK")
    paths = write_dicom_series(volume, tmp_path / "a", modality="CT")
    image = sitk.ReadImage([str(path) for path in paths])
    for index in [(0, 0, 0), (5, 0, 0), (0, 4, 0), (2, 3, 3)]:
        place = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        assert np.allclose(place, volume.geometry.index_to_world(index), atol=1e-4)
        assert image[index] == volume.array[index]


def test_the_folder_appears_whole_or_not_at_all(
    tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = pydicom.Dataset.save_as

    def failing(self: Any, path: Any, **options: Any) -> None:
        if Path(path).name == "slice_00003.dcm":
            raise RuntimeError("power cut")
        saved(self, path, **options)

    monkeypatch.setattr(pydicom.Dataset, "save_as", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        write_dicom_series(volume, tmp_path / "a", modality="CT")
    assert list(tmp_path.iterdir()) == []


def test_refusals(tmp_path: Path, volume: Volume) -> None:
    def refused(named: str, changed: Volume = volume, folder: Path = tmp_path / "a", **options: Any) -> None:
        with pytest.raises(InputError, match=named):
            write_dicom_series(changed, folder, **{"modality": "CT", **options})

    refused("US", modality="US")
    refused("a.u.", volume.replace(unit="a.u."))
    refused("description", description="x" * 65)
    refused("patient_id", patient_id="a\\b")
    refused("1.2.x", study_uid="1.2.x")
    refused("0 to 70000", volume.with_array(np.arange(120).reshape(volume.shape) % 2 * 70000))
    refused("too little", volume.with_array(1e12 + np.random.default_rng(0).random(volume.shape) * 1e-3))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    refused("holds something", folder=tmp_path / "full")
    assert not (tmp_path / "a").exists()
