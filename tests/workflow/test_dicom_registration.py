"""A registration in DICOM, read back by the standard's own equations and not by our code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from atlas_phantom import head, head_labels, oblique, upright
from known_fields import bump, centred, on_grid, swirl, turn
from sagittal.case.store import CaseStore
from sagittal.core.errors import GeometryError
from sagittal.volume import (
    DisplacementField,
    Geometry,
    read_field,
    read_nifti,
    write_dicom_series,
    write_nifti,
)
from sagittal.workflow.export import export_case
from sagittal.workflow.export.dicom_reg import atlas_frame_of_reference, write_registrations
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.runner import Runner
from sagittal.workflow.steps import DraftReport, ReadImage
from sagittal.workflow.steps.registration import image_hash, to_atlas

pytest.importorskip("torch")
pytest.importorskip("scipy")

LPS = np.diag([-1.0, -1.0, 1.0])
WHEN = "2024-05-06T07:08:09+00:00"


def source_of(dataset: pydicom.Dataset, index: tuple[int, int, int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """A point of the grid in the registered frame and where it lies in the source: PS3.3 C.20.3.1.1, LPS."""
    (item,) = dataset.DeformableRegistrationSequence
    assert "PreDeformationMatrixRegistrationSequence" not in item
    assert "PostDeformationMatrixRegistrationSequence" not in item
    (grid,) = item.DeformableRegistrationGridSequence
    row, column = np.array(grid.ImageOrientationPatient, dtype=float).reshape(2, 3)
    axes = np.stack([row, column, np.cross(row, column)], axis=1)
    start = np.array(grid.ImagePositionPatient, dtype=float)
    here = start + axes @ (np.array(index) * np.array(grid.GridResolution))
    width, height, _ = grid.GridDimensions
    place = 3 * (index[0] + width * (index[1] + height * index[2]))
    vector = np.frombuffer(grid.VectorGridData, dtype="<f4")[place : place + 3]
    return here, here + vector


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Runner, str]:
    """An oblique, anisotropic, left-handed head received as DICOM, registered to an atlas and exported."""
    folder = tmp_path_factory.mktemp("made")
    write_nifti(head(upright()), folder / "atlas.nii.gz")
    write_nifti(head_labels(upright()), folder / "labels.nii.gz")
    image = head(oblique(), bump(12.0, [70, 75, 65], seed=4))
    received = write_dicom_series(image, folder / "received", modality="MR", study_uid="1.2.3.4")
    for path in received:
        dataset = pydicom.dcmread(path)
        dataset.PatientName, dataset.PatientID = "Doe^Jane", "4711"
        dataset.save_as(path)
    runner = Runner(store=CaseStore(folder / "store"), shelf=ModelShelf(offline=True), seed=7)
    case_id = runner.store.create_case("head")
    runner.receive(case_id, "t1.files", received)
    runner.run(case_id, ReadImage(role="t1", title="T1 image"))
    step = to_atlas(str(folder / "atlas.nii.gz"), str(folder / "labels.nii.gz"))
    runner.run(case_id, replace(step, spacing_mm=6.0))
    runner.run(case_id, DraftReport(model=""))
    export_case(runner.store, case_id, folder / "out")
    return folder, runner, case_id


@pytest.fixture(scope="module")
def objects(made: tuple[Path, Runner, str]) -> dict[str, pydicom.Dataset]:
    folder = made[0] / "out" / "dicom" / "t1-registration"
    return {kind: pydicom.dcmread(folder / f"{kind}.dcm") for kind in ("affine", "deformable")}


@pytest.fixture(scope="module")
def field(made: tuple[Path, Runner, str]) -> DisplacementField:
    return read_field(made[0] / "out" / "nifti" / "to-atlas.nii.gz")


def test_the_grid_leads_from_the_patient_to_the_atlas(
    objects: dict[str, pydicom.Dataset], field: DisplacementField
) -> None:
    assert np.linalg.det(field.geometry.direction) > 0  # DICOM's reader has turned the left-handed grid
    for index in ((0, 0, 0), (3, 7, 5), (field.shape[0] - 1, 2, field.shape[2] - 1)):
        here, there = source_of(objects["deformable"], index)
        world = field.geometry.index_to_world(index)
        np.testing.assert_allclose(LPS @ here, world, atol=1e-3)
        np.testing.assert_allclose(LPS @ there, world + field.vectors[(slice(None), *index)], atol=1e-3)


@pytest.mark.parametrize("handed", [1.0, -1.0])
def test_a_grid_of_either_hand_is_written_where_it_lies(
    made: tuple[Path, Runner, str], tmp_path: Path, handed: float
) -> None:
    from datetime import datetime

    geometry = centred((7, 9, 5), (2.0, 3.5, 9.0), turn(0.5, 0.3) @ np.diag([handed, 1.0, 1.0]))
    field = on_grid(swirl, geometry)
    source = [pydicom.dcmread(path) for path in sorted((made[0] / "received").iterdir())]
    said = {"affine": np.eye(4).tolist(), "atlas": "a", "atlas_image": "0" * 64}
    written = write_registrations(
        field, said, source, tmp_path, algorithm="x", version="1", when=datetime.fromisoformat(WHEN)
    )
    dataset = pydicom.dcmread(written["deformable"])
    for index in np.ndindex(7, 9, 5):
        here, there = source_of(dataset, index)
        point = LPS @ here
        np.testing.assert_allclose(LPS @ there, point + swirl(point[None])[0], atol=1e-4)


def test_the_matrix_leads_from_the_atlas_to_the_patient(
    made: tuple[Path, Runner, str], objects: dict[str, pydicom.Dataset]
) -> None:
    from sagittal.workflow import artifacts

    _, runner, case_id = made
    artifact = runner.store.case(case_id).latest("atlas-registration")
    assert artifact is not None
    affine = np.array(artifacts.load(runner.store.objects, artifact)["affine"])
    own, atlas = objects["affine"].RegistrationSequence
    matrices = [
        np.array(item.MatrixRegistrationSequence[0].MatrixSequence[0].FrameOfReferenceTransformationMatrix)
        for item in (own, atlas)
    ]
    np.testing.assert_allclose(matrices[0].astype(float), np.eye(4).ravel())
    to_patient = matrices[1].astype(float).reshape(4, 4)
    point = np.array([12.0, -30.0, 25.0, 1.0])  # of the patient, RAS
    in_atlas = affine @ point
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    np.testing.assert_allclose(to_patient @ lps @ in_atlas, lps @ point, atol=1e-6)


def test_frames_of_reference_say_whose_space_is_whose(
    made: tuple[Path, Runner, str], objects: dict[str, pydicom.Dataset]
) -> None:
    received = pydicom.dcmread(next(iter((made[0] / "received").iterdir())))
    atlas = atlas_frame_of_reference(image_hash(read_nifti(made[0] / "atlas.nii.gz")))
    for dataset in objects.values():
        assert dataset.FrameOfReferenceUID == received.FrameOfReferenceUID
        assert (dataset.StudyInstanceUID, dataset.PatientID) == ("1.2.3.4", "4711")
        assert dataset.Modality == "REG"
    (item,) = objects["deformable"].DeformableRegistrationSequence
    assert item.SourceFrameOfReferenceUID == atlas != received.FrameOfReferenceUID
    (series,) = objects["affine"].ReferencedSeriesSequence
    assert series.SeriesInstanceUID == received.SeriesInstanceUID
    own, other = objects["affine"].RegistrationSequence
    cited = {one.ReferencedSOPInstanceUID for one in own.ReferencedImageSequence}
    assert cited == {one.ReferencedSOPInstanceUID for one in series.ReferencedInstanceSequence}
    assert len(cited) == len(list((made[0] / "received").iterdir()))
    assert (own.FrameOfReferenceUID, other.FrameOfReferenceUID) == (received.FrameOfReferenceUID, atlas)
    assert objects["deformable"].SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.3"
    assert objects["affine"].SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.1"


def test_the_same_case_gives_the_same_files(made: tuple[Path, Runner, str], tmp_path: Path) -> None:
    folder, runner, case_id = made
    export_case(runner.store, case_id, tmp_path / "again")
    for kind in ("affine", "deformable"):
        name = Path("dicom") / "t1-registration" / f"{kind}.dcm"
        assert (folder / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_export_has_the_maps_as_nifti(made: tuple[Path, Runner, str]) -> None:
    names = {path.name for path in (made[0] / "out" / "nifti").glob("*.nii.gz")}
    assert names >= {
        "to-atlas.nii.gz",
        "from-atlas.nii.gz",
        "atlas-volume-change.nii.gz",
        "atlas-error.nii.gz",
        "atlas-labels.nii.gz",
    }


def test_a_sheared_grid_is_refused(made: tuple[Path, Runner, str], tmp_path: Path) -> None:
    from datetime import datetime

    affine = np.array([[2.0, 0.6, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    field = DisplacementField.identity(Geometry((4, 4, 4), affine))
    source = [pydicom.dcmread(path) for path in (made[0] / "received").iterdir()]
    said = {"affine": np.eye(4).tolist(), "atlas": "a", "atlas_image": "0" * 64}
    with pytest.raises(GeometryError, match="not perpendicular"):
        write_registrations(
            field, said, source, tmp_path, algorithm="x", version="1", when=datetime.fromisoformat(WHEN)
        )
