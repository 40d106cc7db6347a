"""Write a volume as a DICOM series of single-frame images."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import GeometryError, InputError
from sagittal.core.files import staging_folder
from sagittal.core.optional import optional_import
from sagittal.core.provenance import canonical_json
from sagittal.volume.volume import Volume

__all__ = ["write_dicom_series"]

_SOP_CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}
_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
_LOW, _HIGH = -32768, 32767
_EXACT_DECIMAL = 10**15  # fits into 16 characters with its sign, and into a float64
_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class _Stored:
    """16-bit values of shape (i, j, k), and the numbers that turn them back, as DICOM writes them."""

    values: NDArray[np.int16]
    slope: str
    intercept: str


def write_dicom_series(
    volume: Volume,
    folder: str | os.PathLike[str],
    *,
    modality: Literal["CT", "MR"],
    description: str = "",
    patient_id: str = "anonymous",
    study_uid: str | None = None,
    frame_of_reference_uid: str | None = None,
    series_number: int = 1,
) -> list[Path]:
    """Write one file for each plane of the third axis; the whole folder appears, or none of it.

    Voxels are stored in 16 bits with slope and intercept: exactly when they are whole numbers whose
    range fits, else within half a step of (max - min) / 65535. Variance and probabilities are not
    written. UIDs derive from the content and the arguments: the same call gives the same files. No
    date and no name is written.

    :func:`sagittal.volume.read_dicom` gives the volume back. Where the third axis runs against
    row x column (a left-handed grid) it comes back with that axis flipped, in the same place in space.

    Args:
        volume: The image; for CT in HU.
        folder: Where to write; it must not exist or be empty.
        modality: Kind of image that the files say they are.
        description: Series Description, at most 64 characters.
        patient_id: Patient ID, at most 64 characters.
        study_uid: Study Instance UID to join; one is derived without it.
        frame_of_reference_uid: Frame of Reference UID, to be shared by series that lie in one space.
        series_number: Series Number.

    Returns:
        The paths in the order of the third axis.

    Raises:
        InputError: A modality other than CT and MR, CT not in HU, whole numbers that need more than
            16 bits, a folder that holds something, a text too long or a UID malformed.
        GeometryError: The axes of a plane are not perpendicular.
        StorageError: The folder cannot be written.
        MissingDependencyError: pydicom is not installed.
    """
    pydicom = optional_import("pydicom")
    folder = Path(folder)
    _check(volume, folder, modality, description, patient_id, (study_uid, frame_of_reference_uid))
    stored = _quantised(volume)
    seed = canonical_json(
        [
            volume.content_hash,
            modality,
            description,
            patient_id,
            study_uid,
            frame_of_reference_uid,
            series_number,
        ]
    )

    def uid(role: str) -> str:
        return str(pydicom.uid.generate_uid(entropy_srcs=[seed, role]))

    study = study_uid or uid("study")
    shared = {
        "SOPClassUID": _SOP_CLASSES[modality],
        "StudyInstanceUID": study,
        "SeriesInstanceUID": uid("series"),
        "FrameOfReferenceUID": frame_of_reference_uid or uid("frame of reference"),
        "Modality": modality,
        "SeriesDescription": description,
        "SeriesNumber": series_number,
        "PatientID": patient_id,
    }
    with staging_folder(folder) as temporary:
        names = []
        for number in range(volume.shape[2]):
            dataset = _slice(
                pydicom, volume, stored, number, {**shared, "SOPInstanceUID": uid(f"slice {number}")}
            )
            names.append(f"slice_{number + 1:05d}.dcm")
            dataset.save_as(temporary / names[-1], enforce_file_format=True)
        temporary.replace(folder)
    return [folder / name for name in names]


def _check(
    volume: Volume,
    folder: Path,
    modality: str,
    description: str,
    patient_id: str,
    uids: Sequence[str | None],
) -> None:
    if modality not in _SOP_CLASSES:
        raise InputError(
            "a series can be written as CT or MR", source=folder, value=modality, expected="CT or MR"
        )
    if modality == "CT" and volume.unit != "HU":
        raise InputError("CT images are in HU", source=folder, value=f"unit {volume.unit!r}", expected="HU")
    for name, text in (("description", description), ("patient_id", patient_id)):
        if len(text) > 64 or "\\" in text or not text.isprintable():
            raise InputError(
                f"{name} cannot be written", source=folder, expected="64 printable characters, no \\"
            )
    pydicom = optional_import("pydicom")
    for given in uids:
        if given is not None and not pydicom.uid.UID(given, validation_mode=pydicom.config.IGNORE).is_valid:
            raise InputError("not a UID", source=folder, value=given, expected="digits and dots, at most 64")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            "the folder holds something already", source=folder, expected="a new or empty folder"
        )
    axes = volume.geometry.direction
    if abs(float(axes[:, 0] @ axes[:, 1])) > 1e-4:
        raise GeometryError(
            "DICOM cannot hold a plane whose axes are not perpendicular",
            source=folder,
            value=f"cosine {axes[:, 0] @ axes[:, 1]:.4g}",
            expected="resample it first",
        )


def _quantised(volume: Volume) -> _Stored:
    array = volume.array
    low, high = array.min(), array.max()
    if array.dtype.kind in "biu" or (np.array_equal(array, np.rint(array)) and abs(low) < 2**31 > abs(high)):
        smallest, largest = int(low), int(high)
        intercept = 0 if smallest >= _LOW and largest <= _HIGH else smallest - _LOW
        if largest - smallest <= _HIGH - _LOW and abs(intercept) < _EXACT_DECIMAL:
            exact = array if intercept == 0 else _shifted(array, smallest)
            return _Stored(exact.astype(np.int16), "1", str(intercept))
        if array.dtype.kind in "biu":
            raise InputError(
                "whole numbers of this range do not fit into 16 bits and a decimal offset",
                value=f"{smallest} to {largest}",
                expected="a range of at most 65536 numbers; convert to float to allow rounding",
            )
    start, end = float(low), float(high)
    slope = _decimal((end - start) / (_HIGH - _LOW) * (1 + 1e-9) or 1.0)
    intercept_text = _decimal(start - _LOW * float(slope))
    step, shift = float(slope), float(intercept_text)
    if not (math.isfinite(step) and math.isfinite(shift)):
        raise InputError("the range of values is too wide for DICOM", value=f"{start} to {end}")
    values = array.astype(np.float64)
    stored = np.clip(np.rint((values - shift) / step), _LOW, _HIGH).astype(np.int16)
    worst = float(np.abs(stored * step + shift - values).max())
    if worst > 0.5 * step * (1 + 1e-6):
        raise InputError(
            "the values vary too little around a large number for DICOM's 16-character decimals",
            value=f"{start} to {end}",
            expected="the large number subtracted first",
        )
    return _Stored(stored, slope, intercept_text)


def _shifted(array: NDArray[Any], smallest: int) -> NDArray[Any]:
    """Subtract so that the smallest value becomes -32768, without leaving the range of the dtype."""
    if array.dtype.kind == "f":
        return np.asarray(array.astype(np.float64) - (smallest - _LOW))
    unsigned = array.astype(np.uint64) - np.uint64(smallest % 2**64)  # wraps to the right difference
    return unsigned.astype(np.int64) + _LOW


def _slice(pydicom: Any, volume: Volume, stored: _Stored, number: int, values: dict[str, Any]) -> Any:
    geometry = volume.geometry
    spacing = geometry.spacing
    axes = geometry.direction * _RAS_TO_LPS[:, None]
    position = geometry.index_to_world((0, 0, number)) * _RAS_TO_LPS
    normal = np.cross(axes[:, 0], axes[:, 1])
    apart = abs(float(axes[:, 2] @ normal)) / float(np.linalg.norm(normal)) * spacing[2]
    modality = values["Modality"]
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = _EXPLICIT_LITTLE_ENDIAN
    dataset.file_meta.MediaStorageSOPClassUID = values["SOPClassUID"]
    dataset.file_meta.MediaStorageSOPInstanceUID = values["SOPInstanceUID"]
    empty = (
        "PatientName PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber PatientPosition "
        "ReferringPhysicianName PositionReferenceIndicator Manufacturer AcquisitionNumber"
    )
    own: dict[str, Any] = {"KVP": "", "RescaleType": "HU"} if modality == "CT" else _MR_ATTRIBUTES
    everything: dict[str, Any] = {
        **dict.fromkeys(empty.split(), ""),
        **values,
        **own,
        "SpecificCharacterSet": "ISO_IR 192",
        "ImageType": ["DERIVED", "SECONDARY", "AXIAL" if modality == "CT" else "OTHER"],
        "InstanceNumber": number + 1,
        "ImagePositionPatient": [_decimal(value) for value in position],
        "ImageOrientationPatient": [_decimal(value) for value in axes[:, :2].T.ravel()],
        "PixelSpacing": [_decimal(spacing[1]), _decimal(spacing[0])],
        "SliceThickness": _decimal(apart),
        "SpacingBetweenSlices": _decimal(apart),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": volume.shape[1],
        "Columns": volume.shape[0],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleIntercept": stored.intercept,
        "RescaleSlope": stored.slope,
        "BurnedInAnnotation": "NO",
    }
    for name, value in everything.items():
        setattr(dataset, name, value)
    pixels = np.ascontiguousarray(stored.values[:, :, number].T, dtype="<i2").tobytes()
    dataset.add_new("PixelData", "OW", pixels)
    return dataset


_MR_ATTRIBUTES: dict[str, Any] = {
    "ScanningSequence": "RM",
    "SequenceVariant": "NONE",
    "ScanOptions": "",
    "MRAcquisitionType": "",
    "RepetitionTime": "",
    "EchoTime": "",
    "EchoTrainLength": "",
    "RescaleType": "US",
}


def _decimal(value: float) -> str:
    """Write a number in at most 16 characters, as DICOM decimal strings allow."""
    return str(optional_import("pydicom.valuerep").format_number_as_ds(float(value)))
