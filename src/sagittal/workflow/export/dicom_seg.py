"""Class probabilities as DICOM segmentations, beside the series they lie on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import highdicom
import numpy as np
import pydicom
from highdicom import seg
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from sagittal import __version__
from sagittal.core.errors import InputError
from sagittal.core.files import atomic_path
from sagittal.volume import Volume

__all__ = ["SEGMENT_CODES", "dated", "write_segmentations"]

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

SEGMENT_CODES: dict[str, tuple[str, Code, Code]] = {
    "csf": ("Cerebrospinal fluid", codes.SCT.BodySubstance, codes.SCT.CerebrospinalFluid),
    "gm": ("Grey matter", codes.SCT.Tissue, codes.SCT.GrayMatter),
    "wm": ("White matter", codes.SCT.Tissue, codes.SCT.WhiteMatter),
    "air": ("Air", codes.SCT.BodySubstance, codes.SCT.Air),
    "soft tissue": ("Soft tissue", codes.SCT.Tissue, codes.SCT.SoftTissue),
    "bone": ("Bone", codes.SCT.AnatomicalStructure, codes.SCT.Bone),
}
"""Class name to label, category and type (SNOMED CT)."""


def write_segmentations(
    volume: Volume,
    source: Sequence[pydicom.Dataset],
    folder: Path,
    *,
    algorithm: str,
    version: str,
    when: datetime,
    description: str,
    prefix: str = "",
) -> dict[str, Path]:
    """Write labels as LABELMAP and as BINARY, probabilities as FRACTIONAL/PROBABILITY (8 bits, 1/255 steps).

    LABELMAP is the compact form, and BINARY says the same to viewers that do not know it yet.

    Args:
        volume: Labels with probabilities; classes from :data:`SEGMENT_CODES`.
        source: The DICOM images that were segmented. Segmentation and series are put together by position
            in space, not by order.
        folder: Where to write ``labels.dcm``, ``segments.dcm`` and ``probabilities.dcm``.
        algorithm: Name of the method.
        version: Version of the method.
        when: When it was made.
        description: Content Description, at most 64 characters.
        prefix: What the files' names begin with.

    Returns:
        Paths by DICOM segmentation type.

    Raises:
        InputError: No probabilities, a class without a code, or images that a segmentation cannot refer to.
    """
    if volume.probabilities is None:
        raise InputError("a segmentation needs probabilities", source=folder)
    if unknown := [name for name in volume.classes if name not in SEGMENT_CODES]:
        raise InputError(
            "no code is known for these classes", value=unknown, expected=str(list(SEGMENT_CODES))
        )
    identification = highdicom.AlgorithmIdentificationSequence(
        name=algorithm, version=version, family=codes.DCM.ClusterAnalysis
    )
    descriptions = []
    for number, name in enumerate(volume.classes, start=1):
        label, category, kind = SEGMENT_CODES[name]
        descriptions.append(
            seg.SegmentDescription(
                segment_number=number,
                segment_label=label,
                segmented_property_category=category,
                segmented_property_type=kind,
                algorithm_type=seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=identification,
            )
        )
    labels = volume.array.astype(np.uint8)
    contents = {
        seg.SegmentationTypeValues.LABELMAP: ("labels.dcm", labels),
        seg.SegmentationTypeValues.FRACTIONAL: ("probabilities.dcm", volume.probabilities),
        seg.SegmentationTypeValues.BINARY: ("segments.dcm", labels),
    }
    written = {}
    for number, (kind, (filename, array)) in enumerate(contents.items(), start=1):
        seed = f"{volume.content_hash} {source[0].SeriesInstanceUID} {kind.value}"
        try:
            dataset = seg.Segmentation(
                source_images=source,
                pixel_array=_placed(array, volume, source[0].FrameOfReferenceUID),
                segmentation_type=kind,
                segment_descriptions=descriptions,
                series_instance_uid=pydicom.uid.generate_uid(entropy_srcs=[seed, "series"]),
                series_number=100 + number,
                sop_instance_uid=pydicom.uid.generate_uid(entropy_srcs=[seed, "instance"]),
                instance_number=1,
                manufacturer="sagittal",
                manufacturer_model_name=algorithm,
                software_versions=__version__,
                device_serial_number="none",
                content_description=description,
            )
        except (ValueError, AttributeError, KeyError, TypeError) as error:  # highdicom's, for odd images
            raise InputError(
                f"a segmentation cannot refer to these images ({error})", source=folder.name
            ) from error
        dimensions = pydicom.uid.generate_uid(entropy_srcs=[seed, "dimensions"])
        for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
            item.DimensionOrganizationUID = dimensions  # highdicom draws a new one each time
        dated(dataset, when)
        path = folder / (prefix + filename)
        with atomic_path(path) as temporary:
            dataset.save_as(temporary)
        written[kind.value] = path
    return written


def dated(dataset: pydicom.Dataset, when: datetime) -> None:
    """Date an object by when its content was made, so that the same content gives the same file."""
    for name in ("InstanceCreation", "Content", "Series"):
        if f"{name}Date" in dataset:
            setattr(dataset, f"{name}Date", when.strftime("%Y%m%d"))
            setattr(dataset, f"{name}Time", when.strftime("%H%M%S"))
    for item in dataset.get("ContributingEquipmentSequence", []):
        if "ContributionDateTime" in item:
            item.ContributionDateTime = when.strftime("%Y%m%d%H%M%S")


def _placed(array: np.ndarray, volume: Volume, frame_of_reference: str) -> highdicom.Volume:
    """Voxels in DICOM's order (slice, row, column) with their place in space."""
    affine = _LPS @ volume.geometry.affine
    order = [2, 1, 0]
    return highdicom.Volume(
        array=np.ascontiguousarray(array.transpose([*order, *range(3, array.ndim)])),
        affine=np.column_stack([affine[:, order], affine[:, 3]]),
        coordinate_system="PATIENT",
        frame_of_reference_uid=frame_of_reference,
        channels={"SegmentNumber": list(range(1, array.shape[3] + 1))} if array.ndim == 4 else None,
    )
