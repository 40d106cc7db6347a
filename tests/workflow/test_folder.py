from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sagittal.core.errors import InputError
from sagittal.volume import Geometry, Volume, write_dicom_series, write_nifti
from sagittal.workflow.folder import Listing, list_cases

BOTH = ["tissue", "ct", "record", "report"]
TISSUE = ["tissue", "report"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "cases"
    made.mkdir()
    return made


def small(shape: tuple[int, int, int] = (6, 6, 4)) -> Volume:
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    return Volume(array, Geometry.from_spacing(array.shape, (1, 1, 3), (0, 0, 0)), unit="a.u.")


@pytest.fixture
def nifti(tmp_path: Path) -> Callable[[Path], Path]:
    template = tmp_path / "template.nii.gz"
    write_nifti(small(), template)

    def put(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(template, path)
        return path

    return put


def series(folder: Path, modality: str = "MR") -> list[Path]:
    """Write four slices of a series; of a modality that cannot be written, as MR and then renamed."""
    import pydicom

    unit = "HU" if modality == "CT" else "a.u."
    kind = modality if modality in {"CT", "MR"} else "MR"
    paths = write_dicom_series(small().replace(unit=unit), folder, modality=kind)
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.Modality = modality
        dataset.save_as(path)
    return paths


def found(listing: Listing) -> dict[str, dict[str, int]]:
    """Name of each case to its roles, with the number of their files."""
    return {case.name: {role: len(files) for role, files in case.inputs.items()} for case in listing.cases}


def refused(listing: Listing) -> dict[str, str]:
    return {refusal.name: refusal.reason for refusal in listing.refused}


def test_each_image_and_each_folder_with_one_is_a_case(folder: Path, nifti: Callable[[Path], Path]) -> None:
    nifti(folder / "a.nii.gz")
    nifti(folder / "b" / "image.nii.gz")
    (folder / "b" / "notes.txt").write_text("well")
    series(folder / "c" / "deeper")
    listing = list_cases(folder, BOTH)
    assert found(listing) == {
        "a.nii.gz": {"t1.files": 1},
        "b": {"t1.files": 1, "record.files": 1},
        "c": {"t1.files": 4},
    }
    assert listing.refused == ()


def test_the_modality_or_the_name_says_what_an_image_shows(
    folder: Path, nifti: Callable[[Path], Path]
) -> None:
    series(folder / "a", "CT")
    nifti(folder / "ct.nii.gz")
    nifti(folder / "ct_012.nii.gz")
    nifti(folder / "ctrl-1.nii.gz")
    nifti(folder / "t1-b.nii.gz")
    assert {name: list(roles) for name, roles in found(list_cases(folder, BOTH)).items()} == {
        "a": ["ct.files"],
        "ct.nii.gz": ["ct.files"],
        "ct_012.nii.gz": ["ct.files"],
        "ctrl-1.nii.gz": ["t1.files"],
        "t1-b.nii.gz": ["t1.files"],
    }


def test_an_image_whose_name_says_nothing_is_what_the_steps_ask_for(
    folder: Path, nifti: Callable[[Path], Path]
) -> None:
    nifti(folder / "a.nii.gz")
    assert found(list_cases(folder, ["ct", "report"])) == {"a.nii.gz": {"ct.files": 1}}


def test_an_image_that_no_step_takes_is_refused(folder: Path, nifti: Callable[[Path], Path]) -> None:
    nifti(folder / "a.nii.gz")
    nifti(folder / "ct.nii.gz")
    series(folder / "d", "CT")
    series(folder / "e", "PT")
    nifti(folder / "f" / "t1.nii.gz")
    (folder / "f" / "record.txt").write_text("well")
    listing = list_cases(folder, TISSUE)
    assert list(found(listing)) == ["a.nii.gz", "f"]
    reasons = refused(listing)
    assert reasons["ct.nii.gz"] == "a CT image, and no step asked for takes one"
    assert reasons["f/record.txt"] == "a record, and no step asked for takes one"
    assert reasons["d"] == "no image in it that a step asked for takes"
    assert reasons["e: 4 files"] == "a DICOM object of modality PT, which no step takes"


def test_what_is_no_case_is_listed_with_the_reason(folder: Path, nifti: Callable[[Path], Path]) -> None:
    nifti(folder / "a.nii.gz")
    (folder / "notes.md").write_text("Patient: MUELLER")
    (folder / "empty").mkdir()
    nifti(folder / ".hidden.nii.gz")
    (folder / "gone.nii.gz").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.nii")
    (folder / "store").mkdir()
    (folder / "store" / "cases.sqlite").touch()
    nifti(folder / "two" / "x.nii.gz")
    nifti(folder / "two" / "y.nii.gz")
    reasons = refused(list_cases(folder, TISSUE))
    assert reasons == {
        "notes.md": "neither an image (NIfTI, DICOM, NRRD, MetaImage) nor a folder with one",
        "empty": "the folder is empty",
        ".hidden.nii.gz": "hidden: its name begins with a dot",
        "gone.nii.gz": "there is no such file",
        "pipe.nii": "not a file",
        "store": "a case store, not a case",
        "two": "more than one T1 image in one case: x.nii.gz, y.nii.gz",
    }


def test_a_damaged_file_with_an_image_s_name_is_a_case_that_will_fail(
    folder: Path, nifti: Callable[[Path], Path]
) -> None:
    (folder / "a.nii.gz").write_bytes(b"no image")
    (folder / "b.dcm").write_bytes(b"")
    paths = series(folder / "c")
    paths[1].write_bytes(b"no image")
    assert found(list_cases(folder, TISSUE)) == {
        "a.nii.gz": {"t1.files": 1},
        "b.dcm": {"t1.files": 1},
        "c": {"t1.files": 4},
    }


def test_loose_slices_of_a_series_are_no_cases(folder: Path, nifti: Callable[[Path], Path]) -> None:
    nifti(folder / "a.nii.gz")
    for path in series(folder.parent / "series"):
        shutil.copy(path, folder)
    listing = list_cases(folder, TISSUE)
    assert list(found(listing)) == ["a.nii.gz"]
    assert sum("folder of their own" in reason for reason in refused(listing).values()) == 4


def test_a_single_dicom_file_is_a_case(folder: Path) -> None:
    paths = series(folder / "all")
    shutil.copy(paths[0], folder / "one.dcm")
    assert found(list_cases(folder, TISSUE))["one.dcm"] == {"t1.files": 1}


def test_a_name_that_is_no_utf8_is_shown_with_escapes(folder: Path, nifti: Callable[[Path], Path]) -> None:
    nifti(folder / os.fsdecode(b"m\xfcller.nii.gz"))
    nifti(folder / "名前.nii.gz")
    assert set(found(list_cases(folder, TISSUE))) == {"m\\xfcller.nii.gz", "名前.nii.gz"}


def test_a_folder_without_cases_is_refused_and_says_what_was_found(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        list_cases(tmp_path / "nowhere", TISSUE)
    with pytest.raises(InputError, match="the folder is empty"):
        list_cases(folder, TISSUE)
    (folder / "notes.md").touch()
    with pytest.raises(InputError, match="not a folder"):
        list_cases(folder / "notes.md", TISSUE)
    with pytest.raises(InputError, match=r"nothing in the folder is a case.*1 refused \(notes.md: neither"):
        list_cases(folder, TISSUE)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["tisue"],
            "no step has this name; got 'tisue'; expected some of tissue, tissue-network, atlas, ct, "
            "simulated-ct, simulated-atlas, record, report",
        ),
        (
            ["report"],
            "no step takes a file; got report; expected one of tissue, tissue-network, atlas, ct, "
            "simulated-ct, simulated-atlas, record",
        ),
        ([], "no step takes a file; got none"),
    ],
)
def test_steps_that_cannot_be_are_named(folder: Path, names: list[str], message: str) -> None:
    with pytest.raises(InputError) as refusal:
        list_cases(folder, names)
    assert message in str(refusal.value)
