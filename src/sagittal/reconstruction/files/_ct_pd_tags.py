"""The private attributes of DICOM-CT-PD and how to read them whatever the transfer syntax made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import FormatError

__all__ = ["TAGS", "attribute", "numbers", "word"]

TAGS: dict[str, tuple[int, int, str]] = {
    "DetectorElementTransverseSpacing": (0x7029, 0x1002, "FL"),
    "DetectorElementAxialSpacing": (0x7029, 0x1006, "FL"),
    "DetectorShape": (0x7029, 0x100B, "CS"),
    "NumberofDetectorRows": (0x7029, 0x1010, "US"),
    "NumberofDetectorColumns": (0x7029, 0x1011, "US"),
    "DetectorFocalCenterAngularPosition": (0x7031, 0x1001, "FL"),
    "DetectorFocalCenterAxialPosition": (0x7031, 0x1002, "FL"),
    "DetectorFocalCenterRadialDistance": (0x7031, 0x1003, "FL"),
    "ConstantRadialDistance": (0x7031, 0x1031, "FL"),
    "DetectorCentralElement": (0x7031, 0x1033, "FL"),
    "SourceAngularPositionShift": (0x7033, 0x100B, "FL"),
    "SourceAxialPositionShift": (0x7033, 0x100C, "FL"),
    "SourceRadialDistanceShift": (0x7033, 0x100D, "FL"),
    "FlyingFocalSpotMode": (0x7033, 0x100E, "CS"),
    "NumberofSourceAngularSteps": (0x7033, 0x1013, "US"),
    "NumberofSpectra": (0x7033, 0x1061, "US"),
    "SpectrumIndex": (0x7033, 0x1063, "US"),
    "PhotonStatistics": (0x7033, 0x1065, "FL"),
    "TypeofProjectionData": (0x7037, 0x1009, "CS"),
    "TypeofProjectionGeometry": (0x7037, 0x100A, "CS"),
    "BeamHardeningCorrectionFlag": (0x7039, 0x1003, "CS"),
    "GainCorrectionFlag": (0x7039, 0x1004, "CS"),
    "DarkFieldCorrectionFlag": (0x7039, 0x1005, "CS"),
    "FlatFieldCorrectionFlag": (0x7039, 0x1006, "CS"),
    "BadPixelCorrectionFlag": (0x7039, 0x1007, "CS"),
    "ScatterCorrectionFlag": (0x7039, 0x1008, "CS"),
    "LogFlag": (0x7039, 0x1009, "CS"),
    "WaterAttenuationCoefficient": (0x7041, 0x1001, "DS"),
}
"""Group, element and value representation of each attribute by its name in the format's dictionary."""

_TYPES = {"FL": "<f4", "US": "<u2"}


@dataclass(frozen=True)
class _Named:
    name: str

    @property
    def tag(self) -> str:
        group, element, _ = TAGS[self.name]
        return f"{self.name} ({group:04X},{element:04X})"


def attribute(dataset: Any, name: str, file: Path, *, required: bool = True) -> Any:
    """Return an attribute's value, decoded; None where an optional one is missing or empty.

    Raises:
        FormatError: A required one is missing, or its bytes do not fit its representation.
    """
    group, element, kind = TAGS[name]
    found = dataset.get((group, element))
    value = None if found is None else found.value
    if value is None or value == "" or (isinstance(value, bytes) and not value):
        if required:
            raise FormatError(
                "a required attribute is missing", source=file, value=_Named(name).tag, expected="DICOM-CT-PD"
            )
        return None
    if not isinstance(value, bytes):
        return value
    if kind not in _TYPES:  # text that implicit VR or an unknown creator left as bytes
        return value.decode("ascii", "replace").strip("\0 ")
    if len(value) % np.dtype(_TYPES[kind]).itemsize:
        raise FormatError(
            "an attribute has a wrong length", source=file, value=f"{_Named(name).tag}: {len(value)} bytes"
        )
    return np.frombuffer(value, _TYPES[kind]).tolist()


def numbers(
    dataset: Any, name: str, file: Path, count: int = 1, *, required: bool = True
) -> NDArray[np.float64]:
    """Return an attribute's numbers, shape (count,); empty where an optional one is missing.

    Raises:
        FormatError: It is missing, holds another number of values, or one that is not finite.
    """
    value = attribute(dataset, name, file, required=required)
    if value is None:
        return np.empty(0)
    listed = value.split("\\") if isinstance(value, str) else value
    try:
        found = np.atleast_1d(np.asarray(listed, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise FormatError(
            "an attribute is no number", source=file, value=f"{_Named(name).tag}: {value!r}"
        ) from error
    if found.shape != (count,) or not np.all(np.isfinite(found)):
        raise FormatError(
            "an attribute has wrong numbers",
            source=file,
            value=f"{_Named(name).tag}: {found.tolist()[:4]}",
            expected=f"{count} finite number{'s' * (count != 1)}",
        )
    return found


def word(dataset: Any, name: str, file: Path, *, required: bool = True) -> str:
    """Return an attribute's code word in capitals; empty where an optional one is missing.

    Raises:
        FormatError: It is missing.
    """
    value = attribute(dataset, name, file, required=required)
    return "" if value is None else str(value).strip().upper()
