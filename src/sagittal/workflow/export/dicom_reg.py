"""A registration as DICOM: its affine part as Spatial Registration, and its map as the deformable one.

Which way they lead is the trap. Both objects lie in the frame of reference of the patient's images, which is
the standard's registered one; the atlas is the source. The matrix of a Spatial Registration takes a point of
the source to the registered frame, atlas to patient (PS3.3 C.20.2). The grid of a Deformable Spatial
Registration takes a point of the registered frame to the source, patient to atlas (C.20.3.1.1), as our
fields do. Everything is in LPS, and the grid's third axis is the cross product of the first two.

The deformation holds the affine part too, and no matrix comes before or after it: readers differ in whether
the grid lies before or behind such a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from highdicom.base import SOPClass
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.uid import DeformableSpatialRegistrationStorage, SpatialRegistrationStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from sagittal import __version__
from sagittal.core.errors import GeometryError, InputError
from sagittal.core.files import atomic_path
from sagittal.volume import DisplacementField
from sagittal.workflow.export.dicom_seg import dated

__all__ = ["atlas_frame_of_reference", "write_registrations"]

_LPS = np.array([-1.0, -1.0, 1.0])
_PERPENDICULAR = 1e-4


def atlas_frame_of_reference(image_hash: str) -> str:
    """Return the frame of reference UID of an atlas: the same for every case that is registered to it.

    Args:
        image_hash: :func:`sagittal.workflow.steps.registration.image_hash` of its image.
    """
    return str(generate_uid(entropy_srcs=["atlas", image_hash]))


def write_registrations(
    field: DisplacementField,
    said: Mapping[str, Any],
    source: Sequence[pydicom.Dataset],
    folder: Path,
    *,
    algorithm: str,
    version: str,
    when: datetime,
) -> dict[str, Path]:
    """Write ``affine.dcm`` and ``deformable.dcm`` in the study and frame of reference of the images.

    Args:
        field: From the images' space into the atlas's.
        said: What ``register-to-atlas`` says of it: the atlas's name and content, the affine part.
        source: The DICOM images that were registered.
        folder: Where to write.
        algorithm: Name of the method.
        version: Version of the method.
        when: When it was made.

    Returns:
        Paths by ``"affine"`` and ``"deformable"``.

    Raises:
        GeometryError: A field on a grid whose axes are not perpendicular.
        InputError: Images that an object cannot refer to.
    """
    affine = np.asarray(said["affine"], dtype=np.float64)
    atlas = atlas_frame_of_reference(said["atlas_image"])
    seed = f"{field.content_hash} {source[0].SeriesInstanceUID} {affine.tolist()}"
    comment = f"{algorithm} {version} to the atlas {said['atlas']}"
    objects = {
        "affine": (SpatialRegistrationStorage, "Registration to an atlas, affine part"),
        "deformable": (DeformableSpatialRegistrationStorage, "Registration to an atlas"),
    }
    written = {}
    for number, (kind, (sop_class, title)) in enumerate(objects.items(), start=1):
        dataset = _object(source, sop_class, f"{seed} {kind}", 120 + number, title, when)
        if kind == "affine":
            series = pydicom.Dataset()
            series.SeriesInstanceUID = source[0].SeriesInstanceUID
            series.ReferencedInstanceSequence = [_reference(image) for image in source]
            dataset.ReferencedSeriesSequence = [series]
            dataset.RegistrationSequence = [
                _matrix(np.eye(4), str(source[0].FrameOfReferenceUID), "the images themselves", source),
                _matrix(np.linalg.inv(affine), atlas, comment, ()),
            ]
        else:
            item = pydicom.Dataset()
            item.SourceFrameOfReferenceUID = atlas
            item.FrameOfReferenceTransformationComment = comment
            item.RegistrationTypeCodeSequence = [_code(codes.DCM.ImageContentBasedAlignment)]
            item.DeformableRegistrationGridSequence = [_grid(field)]
            dataset.DeformableRegistrationSequence = [item]
        written[kind] = folder / f"{kind}.dcm"
        with atomic_path(written[kind]) as temporary:
            dataset.save_as(temporary)
    return written


def _object(
    source: Sequence[pydicom.Dataset], sop_class: str, seed: str, number: int, title: str, when: datetime
) -> SOPClass:
    first = source[0]
    try:
        dataset = SOPClass(
            study_instance_uid=first.StudyInstanceUID,
            series_instance_uid=generate_uid(entropy_srcs=[seed, "series"]),
            series_number=number,
            sop_instance_uid=generate_uid(entropy_srcs=[seed, "instance"]),
            sop_class_uid=sop_class,
            instance_number=1,
            modality="REG",
            manufacturer="sagittal",
            manufacturer_model_name="sagittal",
            software_versions=__version__,
            device_serial_number="none",
            series_description=title,
            content_date=when.date(),
            content_time=when.time(),
            series_date=when.date(),
            series_time=when.time(),
            specific_character_set="ISO_IR 192",
        )
        dataset.copy_patient_and_study_information(first)
    except (ValueError, AttributeError, KeyError, TypeError) as error:  # highdicom's, for odd images
        raise InputError(f"a registration cannot refer to these images ({error})", source=title) from error
    dataset.Laterality = None  # empty: what was examined is no paired part, which a validator cannot tell
    dataset.FrameOfReferenceUID = first.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = first.get("PositionReferenceIndicator", "")
    dataset.ContentLabel = "REGISTRATION"
    dataset.ContentDescription = title
    dataset.ContentCreatorName = None
    dated(dataset, when)
    return dataset


def _matrix(
    matrix: NDArray[Any], frame: str, comment: str, images: Sequence[pydicom.Dataset]
) -> pydicom.Dataset:
    """Say where a frame of reference lies in that of the object: ``matrix`` in RAS+ mm."""
    turned = _LPS_AFFINE @ matrix @ _LPS_AFFINE
    entry = pydicom.Dataset()
    entry.FrameOfReferenceTransformationMatrixType = "AFFINE" if not images else "RIGID"
    entry.FrameOfReferenceTransformationMatrix = [_decimal(value) for value in turned.ravel()]
    inner = pydicom.Dataset()
    kind = codes.DCM.ImageContentBasedAlignment if not images else codes.DCM.FrameOfReferenceIdentity
    inner.FrameOfReferenceTransformationComment = comment
    inner.RegistrationTypeCodeSequence = [_code(kind)]
    inner.MatrixSequence = [entry]
    item = pydicom.Dataset()
    item.FrameOfReferenceUID = frame
    if images:
        item.ReferencedImageSequence = [_reference(image) for image in images]
    item.MatrixRegistrationSequence = [inner]
    return item


_LPS_AFFINE = np.diag([*_LPS, 1.0])


def _grid(field: DisplacementField) -> pydicom.Dataset:
    axes = field.geometry.direction
    if float(np.abs(axes.T @ axes - np.eye(3)).max()) > _PERPENDICULAR:
        raise GeometryError("DICOM cannot hold a grid whose axes are not perpendicular", value=axes.tolist())
    vectors = field.vectors.astype(np.float32) * _LPS.astype(np.float32).reshape(3, 1, 1, 1)
    first = np.zeros(3)
    if np.linalg.det(axes) < 0:  # the third axis is the cross product of the first two
        vectors, first = vectors[..., ::-1], np.array([0.0, 0.0, field.shape[2] - 1.0])
    item = pydicom.Dataset()
    item.ImagePositionPatient = [_decimal(value) for value in _LPS * field.geometry.index_to_world(first)]
    item.ImageOrientationPatient = [_decimal(value) for value in (axes * _LPS[:, None])[:, :2].T.ravel()]
    item.GridDimensions = list(field.shape)
    item.GridResolution = [float(step) for step in field.geometry.spacing]
    item.VectorGridData = np.ascontiguousarray(vectors.transpose(3, 2, 1, 0), dtype="<f4").tobytes()
    return item


def _reference(image: pydicom.Dataset) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.ReferencedSOPClassUID = image.SOPClassUID
    item.ReferencedSOPInstanceUID = image.SOPInstanceUID
    return item


def _code(code: Any) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = (
        code.value,
        code.scheme_designator,
        code.meaning,
    )
    return item


def _decimal(value: float) -> str:
    return str(format_number_as_ds(float(value) + 0.0))
