"""What each DICOM image frame says about itself, for single-frame and enhanced multi-frame images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import FormatError, GeometryError
from sagittal.volume._dicom_values import attribute, integer, numbers, sequence, text

__all__ = ["Frame", "frames_of", "is_image"]

_ENHANCED = {
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.4.1": "Enhanced MR Image Storage",
    "1.2.840.10008.5.1.4.1.1.4.4": "Legacy Converted Enhanced MR Image Storage",
    "1.2.840.10008.5.1.4.1.1.128.1": "Legacy Converted Enhanced PET Image Storage",
    "1.2.840.10008.5.1.4.1.1.130": "Enhanced PET Image Storage",
}
_CT = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
_IMAGES = {*_ENHANCED, *_CT, "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"}
_NOT_INTENSITIES = {"RTDOSE": "an RT dose grid", "SEG": "a segmentation"}
_COLOURS = (
    "MONOCHROME1",
    "MONOCHROME2",
    "RGB",
    "PALETTE COLOR",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_ICT",
    "YBR_RCT",
)
_BITS_ALLOCATED = (1, 8, 16, 32, 64)
_ORTHONORMAL = 1e-3


@dataclass(frozen=True, eq=False)
class Frame:
    """One plane of pixels, in the standard's own terms.

    Attributes:
        source: The file.
        number: Frame within the file, from 0.
        position: Image Position (Patient): centre of the first pixel, LPS mm, shape (3,).
        row: Direction of increasing column index, LPS unit vector, shape (3,).
        column: Direction of increasing row index, LPS unit vector, shape (3,).
        spacing: Pixel Spacing: between rows, between columns, in mm.
        size: Rows and columns.
        thickness: Slice Thickness in mm, else Spacing Between Slices, where given.
        scaling: Rescale slope and intercept.
    """

    source: Path
    number: int
    position: NDArray[np.float64]
    row: NDArray[np.float64]
    column: NDArray[np.float64]
    spacing: tuple[float, float]
    size: tuple[int, int]
    thickness: float | None
    scaling: tuple[float, float]

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector perpendicular to the plane, LPS, shape (3,)."""
        cross = np.asarray(np.cross(self.row, self.column), dtype=np.float64)
        return np.asarray(cross / np.linalg.norm(cross), dtype=np.float64)


def is_image(dataset: Any, source: Path) -> bool:
    """Tell whether a dataset is meant to hold pixels (a damaged image counts, a report does not).

    Raises:
        FormatError: The SOP Class UID is malformed.
    """
    uid = text(dataset, "SOPClassUID", source) or text(dataset.file_meta, "MediaStorageSOPClassUID", source)
    return "Rows" in dataset or uid in _IMAGES


def frames_of(dataset: Any, source: Path) -> list[Frame]:
    """Return the frames of an image dataset, in stored order.

    Raises:
        FormatError: Colour, an object that holds no intensities, a multi-frame object without
            positions, a lookup table in the place of a slope, a missing or malformed attribute.
        GeometryError: Positions or directions are missing or impossible.
    """
    modality = text(dataset, "Modality", source)
    if modality in _NOT_INTENSITIES:
        raise FormatError(
            f"{_NOT_INTENSITIES[modality]} is not an image of intensities",
            source=source,
            value=f"Modality {modality}",
        )
    photometric = text(dataset, "PhotometricInterpretation", source)
    if not photometric:
        raise FormatError(
            "a required attribute is missing",
            source=source,
            value="PhotometricInterpretation",
            expected="MONOCHROME2",
        )
    samples = integer(dataset, "SamplesPerPixel", source)
    if samples != 1 or not photometric.startswith("MONOCHROME"):
        shown = photometric if photometric in _COLOURS else "another kind"
        raise FormatError(
            "a colour image cannot be read as a volume",
            source=source,
            value=f"{shown}, {samples} samples per pixel",
            expected="MONOCHROME2 with 1",
        )
    if "FloatPixelData" not in dataset and "DoubleFloatPixelData" not in dataset:
        integer(dataset, "PixelRepresentation", source)
        bits = integer(dataset, "BitsAllocated", source)
    else:
        bits = integer(dataset, "BitsAllocated", source, 64)
    if bits not in _BITS_ALLOCATED:
        raise FormatError(
            "pixels of this size are not known",
            source=source,
            value=f"BitsAllocated {bits}",
            expected="1, 8, 16, 32 or 64",
        )
    size = (integer(dataset, "Rows", source), integer(dataset, "Columns", source))
    if min(size) < 1:
        raise FormatError("the image has no pixels", source=source, value=f"Rows, Columns {size}")
    count = integer(dataset, "NumberOfFrames", source) if "NumberOfFrames" in dataset else 1
    if "PerFrameFunctionalGroupsSequence" in dataset:
        return list(_enhanced(dataset, source, size, count))
    if count != 1:
        raise FormatError(
            "a multi-frame image without a position for each frame is not supported",
            source=source,
            value=f"{count} frames, {_class_name(dataset, source)}",
            expected="single-frame images, or enhanced CT, MR or PET",
        )
    needed = text(dataset, "SOPClassUID", source) in _CT
    return [_frame([dataset], source, 0, size, needs_slope=needed)]


def _enhanced(dataset: Any, source: Path, size: tuple[int, int], count: int) -> Iterator[Frame]:
    uid = text(dataset, "SOPClassUID", source)
    if uid not in _ENHANCED:
        raise FormatError(
            "this multi-frame object is not supported",
            source=source,
            value=_class_name(dataset, source),
            expected="enhanced CT, MR or PET",
        )
    groups = sequence(dataset, "PerFrameFunctionalGroupsSequence", source)
    if len(groups) != count:
        raise FormatError(
            "frames and functional groups do not match",
            source=source,
            value=f"{len(groups)} groups for {count} frames",
        )
    shared = sequence(dataset, "SharedFunctionalGroupsSequence", source)
    names = (
        "PlanePositionSequence",
        "PlaneOrientationSequence",
        "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
    )
    for number, group in enumerate(groups):
        macros = []
        for name in names:
            found = next(
                (items for place in (group, *shared) if (items := sequence(place, name, source))), []
            )
            macros += found[:1]
        yield _frame(macros, source, number, size, needs_slope=uid in _CT)


def _frame(places: list[Any], source: Path, number: int, size: tuple[int, int], needs_slope: bool) -> Frame:
    position = numbers(places, "ImagePositionPatient", 3, source, number)
    orientation = numbers(places, "ImageOrientationPatient", 6, source, number)
    row, column = orientation[:3], orientation[3:]
    wrong = max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column))
    if wrong > _ORTHONORMAL:
        raise GeometryError(
            "the image directions are not perpendicular unit vectors",
            source=source,
            value=f"ImageOrientationPatient {orientation.tolist()}",
        )
    spacing = numbers(places, "PixelSpacing", 2, source, number)
    if np.any(spacing <= 0):
        raise GeometryError(
            "pixel spacing must be positive", source=source, value=f"PixelSpacing {spacing.tolist()}"
        )
    thickness = None
    for name in ("SliceThickness", "SpacingBetweenSlices"):
        if thickness is None and any(attribute(place, name, source) is not None for place in places):
            value = float(numbers(places, name, 1, source, number)[0])
            thickness = value if value > 0 else None
    return Frame(
        source=source,
        number=number,
        position=position,
        row=row / np.linalg.norm(row),
        column=column / np.linalg.norm(column),
        spacing=(float(spacing[0]), float(spacing[1])),
        size=size,
        thickness=thickness,
        scaling=_scaling(places, source, number, needs_slope),
    )


def _scaling(places: list[Any], source: Path, number: int, needed: bool) -> tuple[float, float]:
    if any("ModalityLUTSequence" in place for place in places):
        raise FormatError(
            "a modality lookup table is not supported", source=source, expected="slope and intercept"
        )
    given = any(
        attribute(place, name, source) is not None
        for place in places
        for name in ("RescaleSlope", "RescaleIntercept")
    )
    if not given and not needed:
        return 1.0, 0.0
    slope = float(numbers(places, "RescaleSlope", 1, source, number)[0])
    intercept = float(numbers(places, "RescaleIntercept", 1, source, number)[0])
    if slope == 0:
        raise FormatError("the rescale slope is zero", source=source, value="RescaleSlope 0")
    return slope, intercept


def _class_name(dataset: Any, source: Path) -> str:
    uid = attribute(dataset, "SOPClassUID", source)
    return str(getattr(uid, "name", None) or "an object without SOP Class UID")
