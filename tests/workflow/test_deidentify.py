from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset

from sagittal.core.errors import FormatError, InputError
from sagittal.volume import Geometry, Volume, read_dicom, write_dicom_series
from sagittal.workflow._deidentify_rules import _IDENTIFIERS, TABLE, Pseudonyms
from sagittal.workflow.deidentify import MANIFEST, deidentify

MARK = "ZQXMARK"
PERSON = "VWYNAME"
"""Stands in the patient's own name and numbers, so that no search for these words finds MARK."""
_VALUES: dict[str, Any] = {
    "AE": MARK, "CS": MARK, "LO": MARK, "LT": MARK, "PN": f"{MARK}^Jörg", "SH": MARK, "ST": MARK, "UC": MARK,
    "UT": MARK, "UR": f"http://{MARK}", "AS": "093Y", "DA": "19870605", "DT": "19870605040302",
    "TM": "040302", "DS": "987654.25", "IS": "9876543", "UI": "1.2.99.9876543", "OB": MARK.encode() + b"\0",
    "UN": MARK.encode(), "US": 45678,
}  # fmt: skip
_TRACES = (MARK, PERSON, "19870605", "987654", "093Y", "1.2.99.9876543", "Jörg", "040302")


def table_tags() -> list[tuple[int, int]]:
    from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector

    table = dicom_anonymization_database_selector(TABLE)
    return sorted({tag for name in table for tag in table[name] if len(tag) == 2 and tag[0] >= 8})


def _filled(dataset: Any, depth: int = 1) -> None:
    """Put a traceable value into every attribute of the profile's table, and into sequences at two depths."""
    for tag in table_tags():
        keyword = keyword_for_tag(tag)
        if not keyword:
            dataset.add_new(tag, "LO", MARK)
            continue
        vr = dictionary_VR(tag)
        if vr == "SQ":
            if depth:
                item = Dataset()
                _filled(item, 0)
                dataset.add_new(tag, "SQ", [item])
        elif tag not in {(0x0020, 0x000D), (0x0020, 0x000E), (0x0008, 0x0018), (0x0020, 0x0052)}:
            value = PERSON if depth and keyword in _IDENTIFIERS else _VALUES[vr]
            dataset.add_new(tag, vr, value if dictionary_VM(tag) == "1" or vr == "UI" else [value])


@pytest.fixture
def volume() -> Volume:
    array = np.random.default_rng(3).integers(0, 900, (12, 10, 6)).astype(np.int16)
    return Volume(array, Geometry.from_spacing(array.shape, (1, 1.5, 3), (-4, 5, 6)), unit="a.u.")


@pytest.fixture
def write(tmp_path: Path, volume: Volume) -> Callable[..., Path]:
    """A function that writes the volume as a series, changed by what it is given, and returns the folder."""

    def series(change: Callable[[Any, int], None] = lambda *_: None, name: str = "originals") -> Path:
        paths = write_dicom_series(volume, tmp_path / name, modality="MR", patient_id="4711")
        for number, path in enumerate(paths):
            dataset = pydicom.dcmread(path)
            change(dataset, number)
            dataset.save_as(path, enforce_file_format=True)
        return tmp_path / name

    return series


def _all(folder: Path) -> list[Any]:
    return [pydicom.dcmread(path) for path in sorted(folder.rglob("*.dcm"))]


def test_nothing_of_the_profiles_table_is_left_in_the_bytes(
    write: Callable[..., Path], volume: Volume, tmp_path: Path
) -> None:
    def identify(dataset: Any, number: int) -> None:
        _filled(dataset)
        dataset.PatientName = dataset.PatientID = PERSON
        dataset.SequenceName = f"t1 of {PERSON.lower()}"
        dataset.SpecificCharacterSet = "ISO_IR 192"
        block = dataset.private_block(0x0099, f"{MARK} CREATOR", create=True)
        block.add_new(1, "LO", MARK)
        nested = Dataset()
        nested.PatientName = f"{MARK}^Nested"
        nested.private_block(0x0099, "X", create=True).add_new(1, "LT", MARK)
        inner = Dataset()
        inner.PatientID = MARK
        nested.SharedFunctionalGroupsSequence = [inner]
        dataset.PerformedProtocolCodeSequence = [nested]
        dataset.add_new((0x5000, 0x3000), "OW", MARK.encode() + b"\0")
        dataset.add_new((0x6000, 0x3000), "OW", MARK.encode() + b"\0")
        dataset.add_new((0x6000, 0x4000), "LT", MARK)
        dataset.add_new((0x0008, 0x9FFE), "LO", MARK)
        dataset.SecondaryReviewerName = MARK
        dataset.preamble = (MARK.encode() * 20)[:128]
        dataset.file_meta.SourceApplicationEntityTitle = MARK
        dataset.file_meta.PrivateInformationCreatorUID = "1.2.99.9876543"
        dataset.file_meta.PrivateInformation = MARK.encode() + b"\0"

    originals = write(identify)
    (originals / f"{MARK}^Jörg.txt").write_text("notes")
    (originals / "slice_00001.dcm").rename(originals / f"{MARK}.dcm")
    traces = [trace.encode() for trace in _TRACES] + [np.uint16(45678).tobytes()]
    assert all(any(trace in path.read_bytes() for path in originals.glob("*.dcm")) for trace in traces)
    done = deidentify(originals, tmp_path / "out", secret=b"no chance in it: ")
    assert done.files == 6
    for path in (tmp_path / "out").rglob("*"):
        assert MARK not in str(path.relative_to(tmp_path))
        if path.is_file():
            content = path.read_bytes()
            header = (
                content.replace(pydicom.dcmread(path).PixelData, b"") if path.suffix == ".dcm" else content
            )
            assert [trace for trace in traces if trace in header] == []
    again = read_dicom(tmp_path / "out")
    assert again.geometry.is_aligned(volume.geometry)
    np.testing.assert_array_equal(again.array, volume.array)


def test_uids_agree_within_a_run_and_not_between_runs(write: Callable[..., Path], tmp_path: Path) -> None:
    def refer(dataset: Any, number: int) -> None:
        item = Dataset()
        item.ReferencedSOPClassUID = dataset.SOPClassUID
        item.ReferencedSOPInstanceUID = first if number else dataset.SOPInstanceUID
        dataset.ReferencedImageSequence = [item]

    first = str(pydicom.dcmread(next(iter(sorted(write(name="probe").iterdir())))).SOPInstanceUID)
    originals = write(refer)
    for name in ("one", "two"):
        deidentify(originals, tmp_path / name)
    one, two = _all(tmp_path / "one"), _all(tmp_path / "two")
    for datasets in (one, two):
        assert {d.ReferencedImageSequence[0].ReferencedSOPInstanceUID for d in datasets} == {
            datasets[0].SOPInstanceUID
        }
        assert (
            len({d.FrameOfReferenceUID for d in datasets}) == len({d.StudyInstanceUID for d in datasets}) == 1
        )
        assert all(d.file_meta.MediaStorageSOPInstanceUID == d.SOPInstanceUID for d in datasets)
        assert all(d.ReferencedImageSequence[0].ReferencedSOPClassUID == d.SOPClassUID for d in datasets)
    old = {str(d.SOPInstanceUID) for d in _all(originals)}
    sets = [old, *({str(d.SOPInstanceUID) for d in datasets} for datasets in (one, two))]
    assert len(set.union(*sets)) == 18
    assert one[0].PatientID != two[0].PatientID


def test_a_secret_links_runs(write: Callable[..., Path], tmp_path: Path) -> None:
    originals = write()
    for name in ("one", "two"):
        deidentify(originals, tmp_path / name, secret=b"a secret of this study")
    one, two = _all(tmp_path / "one"), _all(tmp_path / "two")
    assert [d.SOPInstanceUID for d in one] == [d.SOPInstanceUID for d in two]
    assert one[0].PatientID == two[0].PatientID != "4711"
    with pytest.raises(InputError, match="the secret can be guessed"):
        deidentify(originals, tmp_path / "three", secret=b"short")


def test_new_uids_are_valid_and_the_standards_own_stay() -> None:
    names = Pseudonyms(b"x" * 16)
    made = names.uid("1.2.3")
    assert pydicom.uid.UID(made).is_valid
    assert made.startswith("2.25.")
    assert names.uid("1.2.840.10008.1.2.1") == "1.2.840.10008.1.2.1"


def test_the_files_say_what_was_done(write: Callable[..., Path], tmp_path: Path) -> None:
    done = deidentify(write(), tmp_path / "out", keep=["dates", "device"])
    dataset = _all(tmp_path / "out")[0]
    assert dataset.PatientIdentityRemoved == "YES"
    codes = [item.CodeValue for item in dataset.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113106", "113109"]
    assert dataset.LongitudinalTemporalInformationModified == "UNMODIFIED"
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["files"] == done.files == 6
    assert manifest["profile"] == "Basic Application Confidentiality Profile"
    assert manifest["linkable"] is False
    assert manifest["done"]["new uid SOPInstanceUID"] == 6
    assert "4711" not in (tmp_path / "out" / MANIFEST).read_text()


def test_options_keep_what_they_name_and_no_more(write: Callable[..., Path], tmp_path: Path) -> None:
    def describe(dataset: Any, number: int) -> None:
        dataset.PatientBirthDate, dataset.StudyDate, dataset.SeriesTime = "19550505", "20240131", "101112"
        dataset.PatientSex, dataset.PatientAge, dataset.StationName = "F", "068Y", "MR-3"

    originals = write(describe)
    kept = {}
    for option in ("", "dates", "characteristics", "device", "uids"):
        deidentify(originals, tmp_path / (option or "none"), keep=[option] if option else [])
        kept[option] = _all(tmp_path / (option or "none"))[0]
    names = ("PatientBirthDate", "StudyDate", "SeriesTime", "PatientSex", "PatientAge", "StationName")

    def values(option: str) -> dict[str, str]:
        return {name: str(kept[option].get(name) or "") for name in names}

    given = dict(zip(names, ("19550505", "20240131", "101112", "F", "068Y", "MR-3"), strict=True))
    expected = {
        "": set(),
        "dates": {"StudyDate", "SeriesTime"},
        "characteristics": {"PatientSex", "PatientAge"},
        "device": {"StationName"},
        "uids": set(),
    }
    for option, names_kept in expected.items():
        assert {name for name in names if values(option)[name] == given[name]} == names_kept
    old = {str(d.SOPInstanceUID) for d in _all(originals)}
    assert str(kept["uids"].SOPInstanceUID) in old
    with pytest.raises(InputError, match="no such option of the profile; got faces"):
        deidentify(originals, tmp_path / "x", keep=["faces"])


def test_a_name_in_an_attribute_that_the_table_leaves_is_taken_out(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    def hide(dataset: Any, number: int) -> None:
        dataset.PatientName = "Żółć^Łukasz"
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.SequenceName = "t1 żółć"
        dataset.ManufacturerModelName = "Prisma"

    deidentify(write(hide), tmp_path / "out")
    dataset = _all(tmp_path / "out")[0]
    assert not dataset.get("SequenceName")
    assert dataset.ManufacturerModelName == "Prisma"


@pytest.mark.parametrize(
    ("name", "keyword", "text"),
    [
        ("Li^Wei=李^伟", "SequenceName", "李 伟 seq"),
        ("DOE^JANE", "BodyPartExamined", "DOE JANE"),
        ("DOE^JANE", "ScanOptions", "JANE"),
    ],
)
def test_short_names_of_other_scripts_and_names_in_codes_are_taken_out(
    write: Callable[..., Path], tmp_path: Path, name: str, keyword: str, text: str
) -> None:
    def hide(dataset: Any, number: int) -> None:
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.PatientName = name
        setattr(dataset, keyword, text)

    deidentify(write(hide), tmp_path / "out")
    assert not _all(tmp_path / "out")[0].get(keyword)


@pytest.mark.parametrize(
    ("keep", "inside"), [([], "1.2.840.10008./../../../escaped"), (["uids"], "/escaped")]
)
def test_a_uid_leads_no_file_out_of_the_folder(
    write: Callable[..., Path], tmp_path: Path, keep: list[str], inside: str
) -> None:
    wanted = str(tmp_path) + inside if inside.startswith("/") else inside

    def lead(dataset: Any, number: int) -> None:
        dataset.StudyInstanceUID = wanted

    originals = write(lead)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    made = deidentify(originals, tmp_path / "a" / "b" / "out", keep=keep)
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(tmp_path / "a" / "b" / "out") for path in written)
    assert len(written) == made.files + 1


def test_a_name_in_a_uid_is_taken_out() -> None:
    pseudonyms = Pseudonyms(b"0" * 32)
    assert pseudonyms.uid("1.2.840.10008.DOE.JANE.19700101").startswith("2.25.")
    assert pseudonyms.uid("1.2.840.10008.1.2.1") == "1.2.840.10008.1.2.1"
    assert pseudonyms.uid("1.2.840.10008.5.1.4.1.1.2") == "1.2.840.10008.5.1.4.1.1.2"


def _burned(dataset: Any, number: int) -> None:
    dataset.BurnedInAnnotation = "YES"


def _ultrasound(dataset: Any, number: int) -> None:
    dataset.Modality = "US"
    del dataset.BurnedInAnnotation


def _capture(dataset: Any, number: int) -> None:
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    del dataset.BurnedInAnnotation


@pytest.mark.parametrize("change", [_burned, _ultrasound, _capture])
def test_pixels_that_may_show_a_name_are_refused_unless_looked_at(
    write: Callable[..., Path], tmp_path: Path, change: Callable[[Any, int], None]
) -> None:
    originals = write(change)
    with pytest.raises(InputError, match="cannot be made safe.*--pixels-checked"):
        deidentify(originals, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert deidentify(originals, tmp_path / "out", pixels_checked=True).files == 6


def _report(dataset: Any, number: int) -> None:
    if number == 2:
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.22"


def _embedded_overlay(dataset: Any, number: int) -> None:
    if number == 2:
        dataset.add_new((0x6000, 0x0102), "US", 12)


@pytest.mark.parametrize("change", [_report, _embedded_overlay])
def test_what_cannot_be_made_safe_is_refused_or_left_out(
    write: Callable[..., Path], tmp_path: Path, change: Callable[[Any, int], None]
) -> None:
    originals = write(change)
    with pytest.raises(InputError, match="cannot be made safe.*--leave-out"):
        deidentify(originals, tmp_path / "out", pixels_checked=True)
    assert [path.name for path in tmp_path.iterdir()] == ["originals"]
    done = deidentify(originals, tmp_path / "out", leave_out=True)
    assert done.files == 5
    assert sum(done.left_out.values()) == 1


def test_the_originals_stay_as_they_are(write: Callable[..., Path], tmp_path: Path) -> None:
    originals = write()
    before = {path: path.read_bytes() for path in originals.iterdir()}
    deidentify(originals, tmp_path / "out")
    assert {path: path.read_bytes() for path in originals.iterdir()} == before
    mode = stat.S_IMODE((tmp_path / "out").stat().st_mode)
    assert mode == 0o700


@pytest.mark.parametrize("length", [140, 300, 700, -1, -100])
def test_a_damaged_file_leaves_no_folder(write: Callable[..., Path], tmp_path: Path, length: int) -> None:
    originals = write()
    bad = sorted(originals.iterdir())[3]
    bad.write_bytes(bad.read_bytes()[:length])
    with pytest.raises(FormatError):
        deidentify(originals, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["originals"]


def test_places_that_would_mix_old_and_new_are_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    originals = write()
    with pytest.raises(InputError, match="among the originals"):
        deidentify(originals, originals / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="holds something already"):
        deidentify(originals, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no DICOM file to write"):
        deidentify(tmp_path / "full", tmp_path / "empty")
    with pytest.raises(InputError, match="no such file"):
        deidentify(tmp_path / "nowhere", tmp_path / "empty")


def test_a_compressed_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file

    path = get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False)
    assert path is not None
    (tmp_path / "cut.dcm").write_bytes(Path(path).read_bytes()[:-3000])
    with pytest.raises(FormatError):
        deidentify(tmp_path / "cut.dcm", tmp_path / "out")


def test_a_name_inside_compressed_pixels_is_refused(tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file
    from pydicom.encaps import encapsulate, generate_frames

    path = get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False)
    assert path is not None
    dataset = pydicom.dcmread(path)
    dataset.PatientName = "Musterfrau^Erika"
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([frame[:100] + b"\xff\x64\x00\x0eMUSTERFRAU" + frame[100:]])
    dataset.save_as(tmp_path / "named.dcm")
    with pytest.raises(InputError, match="inside its compressed pixel data"):
        deidentify(tmp_path / "named.dcm", tmp_path / "out")


def test_a_compressed_image_keeps_its_pixels(tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file

    path = get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False)
    assert path is not None
    deidentify(Path(path), tmp_path / "out")
    (new,) = _all(tmp_path / "out")
    old = pydicom.dcmread(path)
    assert new.PixelData == old.PixelData
    assert new.file_meta.TransferSyntaxUID == old.file_meta.TransferSyntaxUID
    assert new.PatientID != old.PatientID


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jörg"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 144", "Люкceмбypг"),
        ("GB18030", "王^小东"),
    ],
)
def test_names_in_any_script_are_gone(
    write: Callable[..., Path], tmp_path: Path, charset: Any, name: str
) -> None:
    encoded: list[bytes] = []

    def call(dataset: Any, number: int) -> None:
        dataset.SpecificCharacterSet = charset
        dataset.PatientName = name

    originals = write(call)
    stored = pydicom.dcmread(sorted(originals.iterdir())[0]).PatientName.original_string
    encoded += [part for part in stored.replace(b"=", b"^").split(b"^") if len(part) > 2]
    deidentify(originals, tmp_path / "out")
    for path in (tmp_path / "out").rglob("*.dcm"):
        content = path.read_bytes()
        assert not any(part in content for part in encoded)
    assert encoded
