"""What each DICOM image frame says about itself, for single-frame and enhanced multi-frame images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import FormatError, GeometryError

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


def is_image(dataset: Any) -> bool:
    """Tell whether a dataset is meant to hold pixels (a damaged image counts, a report does not)."""
    uid = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID", "")
    return "Rows" in dataset or str(uid) in _IMAGES


def frames_of(dataset: Any, source: Path) -> list[Frame]:
    """Return the frames of an image dataset, in stored order.

    Raises:
        FormatError: Colour, an object that holds no intensities, a multi-frame object without
            positions, a lookup table in the place of a slope, a missing or malformed attribute.
        GeometryError: Positions or directions are missing or impossible.
    """
    modality = str(dataset.get("Modality", ""))
    if modality in _NOT_INTENSITIES:
        raise FormatError(
            f"{_NOT_INTENSITIES[modality]} is not an image of intensities",
            source=source,
            value=f"Modality {modality}",
        )
    photometric = str(_required(dataset, "PhotometricInterpretation", source))
    samples = _integer(dataset, "SamplesPerPixel", source)
    if samples != 1 or not photometric.startswith("MONOCHROME"):
        raise FormatError(
            "a colour image cannot be read as a volume",
            source=source,
            value=f"{photometric}, {samples} samples per pixel",
            expected="MONOCHROME2 with 1",
        )
    for name in ("BitsAllocated", "PixelRepresentation"):
        if "FloatPixelData" not in dataset and "DoubleFloatPixelData" not in dataset:
            _integer(dataset, name, source)
    size = (_integer(dataset, "Rows", source), _integer(dataset, "Columns", source))
    if min(size) < 1:
        raise FormatError("the image has no pixels", source=source, value=f"Rows, Columns {size}")
    count = _integer(dataset, "NumberOfFrames", source) if "NumberOfFrames" in dataset else 1
    if "PerFrameFunctionalGroupsSequence" in dataset:
        return list(_enhanced(dataset, source, size, count))
    if count != 1:
        raise FormatError(
            "a multi-frame image without a position for each frame is not supported",
            source=source,
            value=f"{count} frames, {_class_name(dataset)}",
            expected="single-frame images, or enhanced CT, MR or PET",
        )
    return [_frame([dataset], source, 0, size, needs_slope=str(dataset.get("SOPClassUID", "")) in _CT)]


def _enhanced(dataset: Any, source: Path, size: tuple[int, int], count: int) -> Iterator[Frame]:
    uid = str(dataset.get("SOPClassUID", ""))
    if uid not in _ENHANCED:
        raise FormatError(
            "this multi-frame object is not supported",
            source=source,
            value=_class_name(dataset),
            expected="enhanced CT, MR or PET",
        )
    groups = dataset.PerFrameFunctionalGroupsSequence
    if len(groups) != count:
        raise FormatError(
            "frames and functional groups do not match",
            source=source,
            value=f"{len(groups)} groups for {count} frames",
        )
    shared = list(dataset.get("SharedFunctionalGroupsSequence", []))
    names = (
        "PlanePositionSequence",
        "PlaneOrientationSequence",
        "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
    )
    for number, group in enumerate(groups):
        macros = []
        for name in names:
            found = next((place[name].value for place in (group, *shared) if name in place), None)
            if found:
                macros.append(found[0])
        yield _frame(macros, source, number, size, needs_slope=uid in _CT)


def _frame(places: list[Any], source: Path, number: int, size: tuple[int, int], needs_slope: bool) -> Frame:
    position = _numbers(places, "ImagePositionPatient", 3, source, number)
    orientation = _numbers(places, "ImageOrientationPatient", 6, source, number)
    row, column = orientation[:3], orientation[3:]
    wrong = max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column))
    if wrong > _ORTHONORMAL:
        raise GeometryError(
            "the image directions are not perpendicular unit vectors",
            source=source,
            value=f"ImageOrientationPatient {orientation.tolist()}",
        )
    spacing = _numbers(places, "PixelSpacing", 2, source, number)
    if np.any(spacing <= 0):
        raise GeometryError(
            "pixel spacing must be positive", source=source, value=f"PixelSpacing {spacing.tolist()}"
        )
    thickness = None
    for name in ("SliceThickness", "SpacingBetweenSlices"):
        if thickness is None and any(place.get(name) is not None for place in places):
            value = float(_numbers(places, name, 1, source, number)[0])
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
        place.get(name) is not None for place in places for name in ("RescaleSlope", "RescaleIntercept")
    )
    if not given and not needed:
        return 1.0, 0.0
    slope = float(_numbers(places, "RescaleSlope", 1, source, number)[0])
    intercept = float(_numbers(places, "RescaleIntercept", 1, source, number)[0])
    if slope == 0:
        raise FormatError("the rescale slope is zero", source=source, value="RescaleSlope 0")
    return slope, intercept


def _required(dataset: Any, name: str, source: Path) -> Any:
    try:
        value = dataset.get(name)
    except Exception as error:  # pydicom converts on access, and raises many kinds on a malformed value
        raise FormatError(f"the attribute {name} is malformed ({error})", source=source) from error
    if value is None or value == "":
        raise FormatError("a required attribute is missing", source=source, value=name, expected=f"{name}")
    return value


def _integer(dataset: Any, name: str, source: Path) -> int:
    value = _required(dataset, name, source)
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise FormatError(f"the attribute {name} is malformed", source=source, value=repr(value)) from error


def _numbers(places: list[Any], name: str, count: int, source: Path, number: int) -> NDArray[np.float64]:
    try:
        found = next((place.get(name) for place in places if place.get(name) is not None), None)
        values = np.array(found, dtype=np.float64).reshape(-1) if found is not None else None
    except (TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"the attribute {name} is malformed ({error})", source=source) from error
    if values is None:
        where = f"{name} of frame {number + 1}" if number else name
        raise FormatError(
            "a required attribute is missing", source=source, value=where, expected=f"{count} numbers"
        )
    if len(values) != count or not all(math.isfinite(value) for value in values):
        raise FormatError(
            f"the attribute {name} is malformed",
            source=source,
            value=values.tolist(),
            expected=f"{count} numbers",
        )
    return values


def _class_name(dataset: Any) -> str:
    uid = dataset.get("SOPClassUID")
    return str(getattr(uid, "name", None) or "an object without SOP Class UID")
