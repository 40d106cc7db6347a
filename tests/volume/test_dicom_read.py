from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import FormatError, GeometryError, InputError, MissingDependencyError
from sagittal.volume import Geometry, Volume, read_dicom, write_dicom_series

pydicom: Any = pytest.importorskip("pydicom")
pytest.importorskip("pydicom.pixels")
Finder = Callable[[str], Path]
Edit = Callable[[int, Any], None]


def series(folder: Path, count: int = 5, edit: Edit | None = None, **grid: Any) -> list[Path]:
    """A small CT series with slices 2.5 mm apart; ``edit`` changes each data set in place."""
    array = np.arange(4 * 3 * count, dtype=np.int16).reshape(4, 3, count)
    geometry = Geometry.from_spacing((4, 3, count), (0.5, 0.75, 2.5), **grid)
    paths = write_dicom_series(Volume(array, geometry, unit="HU"), folder, modality="CT")
    for number, path in enumerate(paths):
        if edit is not None:
            dataset = pydicom.dcmread(path)
            edit(number, dataset)
            dataset.save_as(path)
    return paths


def refused(path: Any, *named: str, kind: type[Exception] = FormatError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        read_dicom(path, **options)
    message = str(caught.value)
    for word in named:
        assert word in message, message
    return message


def test_one_real_slice(dicom_file: Finder) -> None:
    path = dicom_file("CT_small.dcm")
    dataset = pydicom.dcmread(path)
    volume = read_dicom(path)
    assert volume.shape == (128, 128, 1)
    assert volume.unit == "HU"
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array[:, :, 0], dataset.pixel_array.T.astype(int) - 1024)
    # Pixel in row 7, column 3 lies where the standard says (PS3.3 C.7.6.2.1.1), with x and y negated.
    expected = np.add(dataset.ImagePositionPatient, [3 * 0.661468, 7 * 0.661468, 0])
    assert np.allclose(volume.geometry.index_to_world((3, 7, 0)), expected * [-1, -1, 1])
    assert volume.geometry.axis_codes == ("L", "P", "S")
    assert volume.facts["kvp"] == 120
    assert volume.facts["kernel"] == "STANDARD"
    assert volume.facts["transfer_syntax"] == "Explicit VR Little Endian"


def test_a_tilted_head_ct(dicom_file: Finder) -> None:
    volume = read_dicom(dicom_file("J2K_pixelrep_mismatch.dcm"))
    assert volume.facts["gantry_tilt_deg"] == -22
    assert volume.facts["body_part"] == "HEAD"
    normal = volume.geometry.direction[:, 2]
    assert np.degrees(np.arccos(normal[2])) == pytest.approx(22, abs=0.05)
    assert int(volume.array.min()) == -2000


def test_encodings_of_one_image_agree(dicom_file: Finder) -> None:
    plain = read_dicom(dicom_file("MR_small.dcm"))
    for name in ("MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm"):
        assert read_dicom(dicom_file(name)).content_hash == plain.content_hash


def test_lossy_compression_is_stated(dicom_file: Finder) -> None:
    volume = read_dicom(dicom_file("693_J2KI.dcm"))
    assert volume.facts["lossy_compressed"] is True
    assert volume.facts["lossy_compression_ratio"] == pytest.approx(338.687, abs=1e-3)
    assert "lossy_compressed" not in read_dicom(dicom_file("CT_small.dcm")).facts


def test_facts_identify_nobody(dicom_file: Finder) -> None:
    for name in ("CT_small.dcm", "MR_small.dcm", "J2K_pixelrep_mismatch.dcm", "examples_overlay.dcm"):
        path = dicom_file(name)
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        text = json.dumps(dict(read_dicom(path).facts))
        for element in dataset.iterall():
            private = element.VR in ("PN", "UI", "DA", "TM", "DT") or element.keyword in (
                "PatientID",
                "StudyID",
            )
            if private and len(str(element.value)) > 3:
                assert str(element.value) not in text, element.keyword


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("MR_truncated.dcm", "truncated or damaged"),
        ("rtplan_truncated.dcm", "RT Plan Storage"),
        ("badVR.dcm", "RTDOSE"),
        ("liver_1frame.dcm", "SEG"),
        ("SC_rgb_rle.dcm", "RGB, 3 samples"),
        ("examples_palette.dcm", "PALETTE COLOR"),
        ("no_meta.dcm", "not a DICOM file"),
        ("JPEG-lossy.dcm", "ImagePositionPatient"),
        ("image_dfl.dcm", "ImagePositionPatient"),
    ],
)
def test_real_files_that_are_refused(dicom_file: Finder, name: str, named: str) -> None:
    refused(dicom_file(name), name, named)


def test_a_series_is_sorted_by_position_not_by_name(tmp_path: Path) -> None:
    paths = series(tmp_path / "s")
    straight = read_dicom(tmp_path / "s")
    shuffled = read_dicom([paths[3], paths[0], paths[4], paths[2], paths[1]])
    assert shuffled.content_hash == straight.content_hash
    # RAS+ grid: the first slice written is the lowest one.
    assert straight.geometry.spacing == pytest.approx((0.5, 0.75, 2.5))


def test_instance_numbers_against_position(tmp_path: Path) -> None:
    def edit(number: int, dataset: Any) -> None:
        dataset.InstanceNumber = 100 - number

    series(tmp_path / "s", edit=edit)
    series(tmp_path / "t")
    assert read_dicom(tmp_path / "s").content_hash == read_dicom(tmp_path / "t").content_hash


def test_missing_slices_are_counted_and_placed(tmp_path: Path) -> None:
    paths = series(tmp_path / "s", 8)
    refused(
        [path for number, path in enumerate(paths) if number not in (2, 5, 6)],
        "slices are missing",
        "1 between 2.500 and 7.500 mm",
        "2 between 10.000 and 17.500 mm",
        "every 2.5 mm",
        str(tmp_path / "s"),
        kind=GeometryError,
    )
    refused([paths[0], paths[2], paths[3]], "1 between 0.000 and 5.000", kind=GeometryError)


def test_duplicate_positions(tmp_path: Path) -> None:
    def edit(number: int, dataset: Any) -> None:
        if number == 3:
            dataset.ImagePositionPatient = [0, 0, 5]

    series(tmp_path / "s", edit=edit)
    refused(tmp_path / "s", "one position", "5.000 mm", "slice_00004.dcm", kind=GeometryError)


def test_uneven_spacing(tmp_path: Path) -> None:
    def edit(number: int, dataset: Any) -> None:
        if number == 4:
            dataset.ImagePositionPatient = [0, 0, 11.0]

    series(tmp_path / "s", edit=edit)
    refused(tmp_path / "s", "unevenly spaced", "2.5 to 3.5 mm", "after 7.500 mm", kind=GeometryError)


def test_rounded_positions_are_accepted(tmp_path: Path) -> None:
    def edit(number: int, dataset: Any) -> None:
        dataset.ImagePositionPatient = [0, 0, round(number * 2.5 + 0.004 * (-1) ** number, 3)]

    series(tmp_path / "s", edit=edit)
    assert read_dicom(tmp_path / "s").geometry.spacing[2] == pytest.approx(2.5, abs=0.003)


def test_slices_off_the_line(tmp_path: Path) -> None:
    def edit(number: int, dataset: Any) -> None:
        dataset.ImagePositionPatient = [4.0 if number == 2 else 0, 0, number * 2.5]

    series(tmp_path / "s", edit=edit)
    refused(tmp_path / "s", "one line", "4 mm off", "slice_00003.dcm", kind=GeometryError)


def test_gantry_tilt_gives_a_sheared_grid_when_allowed(tmp_path: Path) -> None:
    tangent = np.tan(np.radians(22.0))

    def edit(number: int, dataset: Any) -> None:
        dataset.ImagePositionPatient = [0, round(number * 2.5 * tangent, 6), number * 2.5]

    series(tmp_path / "s", edit=edit)
    refused(
        tmp_path / "s", "gantry tilt", "22.00 degrees", "allow_tilt=True", str(tmp_path), kind=GeometryError
    )
    volume = read_dicom(tmp_path / "s", allow_tilt=True)
    assert volume.facts["stacking_angle_deg"] == pytest.approx(22, abs=1e-3)
    for k in range(5):  # each slice lies where its header says
        expected = [0, -k * 2.5 * tangent, k * 2.5]
        assert np.allclose(volume.geometry.index_to_world((0, 0, k)), expected, atol=1e-5)
    assert volume.geometry.voxel_volume_ml == pytest.approx(0.5 * 0.75 * 2.5 / 1000)


def test_two_series_are_listed_and_one_can_be_picked(tmp_path: Path) -> None:
    first = series(tmp_path / "all" / "a")
    other = Volume(np.zeros((4, 3, 2), np.int16), Geometry.from_spacing((4, 3, 2)), unit="HU")
    write_dicom_series(other, tmp_path / "all" / "b", modality="CT")
    uid = str(pydicom.dcmread(first[0]).SeriesInstanceUID)
    refused(tmp_path / "all", "several series", uid, "5 files", "2 files", "series_uid=", kind=InputError)
    assert read_dicom(tmp_path / "all", series_uid=uid).shape == (4, 3, 5)
    refused(tmp_path / "all", "1.2.3", uid, series_uid="1.2.3", kind=InputError)


def test_another_patients_slice_is_refused_without_naming_anybody(tmp_path: Path) -> None:
    def edit(number: int, dataset: Any) -> None:
        dataset.PatientID = "SECRET-77" if number == 2 else "HIDDEN-11"
        dataset.PatientName = "Doe^Jane"

    series(tmp_path / "s", edit=edit)
    message = refused(
        tmp_path / "s", "patient identifiers differ", "slice_00001.dcm", "slice_00003.dcm", kind=InputError
    )
    for secret in ("SECRET", "HIDDEN", "Doe", "Jane"):
        assert secret not in message


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("PixelSpacing", [0.5, 0.5], "pixel spacing"),
        ("ImageOrientationPatient", [0, 1, 0, -1, 0, 0], "orientation"),
        ("Rows", 2, "rows and columns"),
        ("FrameOfReferenceUID", "1.2.3", "FrameOfReferenceUID"),
        ("Modality", "PT", "Modality"),
    ],
)
def test_mixed_slices(tmp_path: Path, name: str, value: Any, named: str) -> None:
    def edit(number: int, dataset: Any) -> None:
        if number == 2:
            setattr(dataset, name, value)

    series(tmp_path / "s", edit=edit)
    refused(tmp_path / "s", named, "slice_00003.dcm", kind=GeometryError)


@pytest.mark.parametrize(
    "name",
    [
        "Rows",
        "Columns",
        "PixelSpacing",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "RescaleSlope",
        "RescaleIntercept",
        "PhotometricInterpretation",
        "SamplesPerPixel",
        "BitsAllocated",
        "PixelRepresentation",
    ],
)
def test_missing_attributes(tmp_path: Path, name: str) -> None:
    def edit(number: int, dataset: Any) -> None:
        if number == 1:
            delattr(dataset, name)

    paths = series(tmp_path / "s", 3, edit)
    refused(tmp_path / "s", "required attribute is missing", name, str(paths[1]))


@pytest.mark.parametrize(
    ("name", "value", "kind", "named"),
    [
        ("PixelSpacing", [0.0, 0.5], GeometryError, "positive"),
        ("PixelSpacing", [0.5], FormatError, "malformed"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], GeometryError, "perpendicular"),
        ("RescaleSlope", 0, FormatError, "slope is zero"),
        ("Rows", 0, FormatError, "no pixels"),
        ("NumberOfFrames", 4, FormatError, "4 frames"),
        ("Rows", 60000, FormatError, "truncated"),
    ],
)
def test_impossible_attributes(
    tmp_path: Path, name: str, value: Any, kind: type[Exception], named: str
) -> None:
    path = series(tmp_path / "s", 1, lambda number, dataset: setattr(dataset, name, value))[0]
    refused(path, named, str(path), kind=kind)


def test_one_slice_without_thickness(tmp_path: Path) -> None:
    def edit(number: int, dataset: Any) -> None:
        del dataset.SliceThickness, dataset.SpacingBetweenSlices

    path = series(tmp_path / "s", 1, edit)[0]
    refused(path, "SliceThickness", str(path), kind=GeometryError)


def test_damaged_files(tmp_path: Path) -> None:
    paths = series(tmp_path / "s", 3)
    whole = paths[1].read_bytes()
    paths[1].write_bytes(b"")
    refused(tmp_path / "s", str(paths[1]), "empty")
    paths[1].write_bytes(b"no image at all" * 20)
    refused(tmp_path / "s", str(paths[1]), "not a DICOM file", "no image")
    paths[1].write_bytes(whole[:-6])
    refused(tmp_path / "s", str(paths[1]), "pixel data")
    for length in (132, 300, 500, 700, 900, len(whole) - 30):
        paths[1].write_bytes(whole[:length])
        refused(tmp_path / "s", str(paths[1]))
    refused(tmp_path / "none", "no such file", kind=InputError)
    refused([], "empty", kind=InputError)
    (tmp_path / "bare").mkdir()
    refused(tmp_path / "bare", "no DICOM file", kind=InputError)
    paths[1].write_bytes(whole)
    refused(tmp_path / "s", "max_bytes=71", "72 bytes", max_bytes=71)


def test_other_files_in_the_folder_are_counted(tmp_path: Path, dicom_file: Finder) -> None:
    series(tmp_path / "s")
    (tmp_path / "s" / "readme.txt").write_text("hello")
    (tmp_path / "s" / ".hidden").write_text("hello")
    (tmp_path / "s" / "DICOMDIR").write_bytes(b"x")
    (tmp_path / "s" / "plan.dcm").write_bytes(dicom_file("rtplan_truncated.dcm").read_bytes())
    facts = read_dicom(tmp_path / "s").facts
    assert (facts["files_ignored"], facts["objects_without_pixels"]) == (1, 1)


def test_slope_that_differs_between_slices(tmp_path: Path) -> None:
    def edit(number: int, dataset: Any) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 + number, -number

    def whole(number: int, dataset: Any) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 1000 * number + 1, -number

    stored = np.arange(60).reshape(4, 3, 5)
    k = np.arange(5)
    series(tmp_path / "s", edit=edit)
    volume = read_dicom(tmp_path / "s")
    assert volume.array.dtype == np.float32
    assert np.allclose(volume.array, stored * (0.5 + k) - k)
    series(tmp_path / "t", edit=whole)
    volume = read_dicom(tmp_path / "t")
    assert volume.array.dtype == np.int32
    assert np.array_equal(volume.array, stored * (1000 * k + 1) - k)


def test_padding(tmp_path: Path) -> None:
    def edit(number: int, dataset: Any) -> None:
        dataset.add_new("PixelPaddingValue", "SS", 7)
        dataset.add_new("PixelPaddingRangeLimit", "SS", 9)

    series(tmp_path / "s", edit=edit)
    volume = read_dicom(tmp_path / "s")
    stored = np.arange(60).reshape(4, 3, 5)
    padded = (stored >= 7) & (stored <= 9)
    assert volume.facts["padding_voxels"] == 3
    assert np.array_equal(volume.array, np.where(padded, -1024, stored))
    assert np.array_equal(read_dicom(tmp_path / "s", padding=0.5).array, np.where(padded, 0.5, stored))
    assert "padding_voxels" not in read_dicom(series(tmp_path / "t")).facts


def test_padding_written_without_its_sign(tmp_path: Path) -> None:
    def edit(number: int, dataset: Any) -> None:
        dataset.add_new("PixelPaddingValue", "US", 65536 - 2000)
        dataset.PixelData = np.full((3, 4), -2000, "<i2").tobytes() if number == 0 else dataset.PixelData

    series(tmp_path / "s", edit=edit)
    volume = read_dicom(tmp_path / "s")
    assert volume.facts["padding_voxels"] == 12
    assert np.all(volume.array[:, :, 0] == -1024)


def test_padding_of_an_mr_is_counted_and_kept(tmp_path: Path) -> None:
    paths = series(tmp_path / "s", edit=lambda number, dataset: dataset.add_new("PixelPaddingValue", "SS", 7))
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.Modality = "MR"
        del dataset.RescaleType
        dataset.save_as(path)
    volume = read_dicom(tmp_path / "s")
    assert volume.facts["padding_voxels"] == 1
    assert np.array_equal(volume.array, np.arange(60).reshape(4, 3, 5))


def test_facts_that_vary_are_all_given(tmp_path: Path) -> None:
    series(
        tmp_path / "s",
        edit=lambda number, dataset: setattr(dataset, "XRayTubeCurrent", 200 + 10 * (number % 2)),
    )
    assert read_dicom(tmp_path / "s").facts["tube_current_ma"] == [200, 210]


def test_a_missing_decoder_is_named(dicom_file: Finder, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = pydicom.pixels.get_decoder("1.2.840.10008.1.2.4.90")
    monkeypatch.setattr(decoder, "_available", {})
    path = dicom_file("J2K_pixelrep_mismatch.dcm")
    refused(
        path,
        str(path),
        "JPEG 2000 Image Compression (Lossless Only)",
        "1.2.840.10008.1.2.4.90",
        "sagittal[imaging]",
        "pylibjpeg-openjpeg",
        kind=MissingDependencyError,
    )


def test_an_unknown_transfer_syntax(tmp_path: Path) -> None:
    path = series(tmp_path / "s", 1)[0]
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.77", 1))
    refused(path, str(path), "not supported", "1.2.840.10008.1.2.77")


def test_without_pydicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    refused(tmp_path, "pydicom", "sagittal[imaging]", kind=MissingDependencyError)


def enhanced(folder: Path, edit: Callable[[Any], None] | None = None) -> Path:
    """The slices of a small series as one enhanced CT, frames stored out of order."""
    slices = [pydicom.dcmread(path) for path in series(folder / "frames")]
    order = [2, 0, 4, 1, 3]
    dataset = slices[0]
    pixels = b"".join(slices[number].PixelData for number in order)
    groups = []
    for number in order:
        group = pydicom.Dataset()
        plane, values = pydicom.Dataset(), pydicom.Dataset()
        plane.ImagePositionPatient = slices[number].ImagePositionPatient
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, -1000, "HU"
        group.PlanePositionSequence = [plane]
        group.PixelValueTransformationSequence = [values]
        groups.append(group)
    shared, orientation, measures = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    orientation.ImageOrientationPatient = dataset.ImageOrientationPatient
    measures.PixelSpacing = dataset.PixelSpacing
    measures.SliceThickness = 2.5
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelMeasuresSequence = [measures]
    for name in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "SpacingBetweenSlices",
        "RescaleSlope",
        "RescaleIntercept",
        "RescaleType",
    ):
        delattr(dataset, name)
    uid = "1.2.840.10008.5.1.4.1.1.2.1"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid
    dataset.NumberOfFrames = 5
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.add_new("PixelData", "OW", pixels)
    if edit is not None:
        edit(dataset)
    path = folder / "enhanced.dcm"
    dataset.save_as(path)
    return path


def test_an_enhanced_multi_frame_image(tmp_path: Path) -> None:
    path = enhanced(tmp_path)
    volume = read_dicom(path)
    single = read_dicom(tmp_path / "frames")
    assert np.array_equal(volume.array, single.array.astype(int) - 1000)
    assert volume.geometry == single.geometry
    assert volume.unit == "HU"
    assert volume.facts["slice_thickness_mm"] == 2.5


def test_other_multi_frame_images(tmp_path: Path) -> None:
    def ultrasound(dataset: Any) -> None:
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.6.2"

    def short(dataset: Any) -> None:
        dataset.NumberOfFrames = 4

    def repeated(dataset: Any) -> None:
        groups = dataset.PerFrameFunctionalGroupsSequence
        groups[1].PlanePositionSequence = groups[0].PlanePositionSequence

    for number, (edit, named, kind) in enumerate(
        [
            (ultrasound, "Enhanced US Volume Storage", FormatError),
            (short, "5 groups for 4 frames", FormatError),
            (repeated, "one position", GeometryError),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = enhanced(folder, edit)
        refused(path, named, str(path), kind=kind)
