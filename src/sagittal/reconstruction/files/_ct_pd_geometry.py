"""From the views of DICOM-CT-PD to the scanner's geometry: checks of the scan, shifts of the focal spot."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import GeometryError, InputError
from sagittal.reconstruction.geometry import ConeBeam

__all__ = ["POSITIONS", "View", "check_one_scan", "check_turn", "cone_of"]

# Patient position: signs that take the format's x, y, z to right, anterior, superior.
POSITIONS = {"HFS": (-1, 1, 1), "FFS": (1, 1, -1), "HFP": (1, -1, 1), "FFP": (-1, -1, -1)}
_WORST_BIN = 0.25  # how far a bin may lie from where the geometry has it


@dataclass(frozen=True)
class View:
    """What one file says, without its pixels; ``scanner`` holds what must be the same in all."""

    file: Path
    instance: int
    angle: float
    height: float
    distance: float
    shift: tuple[float, float, float]  # rho, phi, z
    scanner: tuple[Any, ...]


def check_one_scan(views: list[View]) -> None:
    """Refuse views that are not of one scan, are missing or there twice, or whose lengths are not mm.

    Raises:
        InputError: Views of several scans, water in another unit.
        GeometryError: Missing or repeated views, lengths in another unit.
    """
    first = views[0]
    for view in views[1:]:
        for (name, here), (_, there) in zip(first.scanner, view.scanner, strict=True):
            if here != there:
                raise InputError(
                    f"views of several scans are mixed: their {name} differs",
                    source=view.file,
                    value="another series" if name == "series" else f"{there}, in {first.file.name} {here}",
                    expected="one series of one scanner and spectrum",
                )
    numbers_ = np.array([view.instance for view in views])
    steps = np.diff(numbers_)
    if np.any(steps == 0):
        at = int(np.argmax(steps == 0))
        raise GeometryError(
            "a view is there twice", source=views[at + 1].file, value=f"instance {numbers_[at]}"
        )
    if np.any(steps > 1):
        at = int(np.argmax(steps > 1))
        raise GeometryError(
            "views are missing",
            source=views[at + 1].file.parent,
            value=f"{int((steps - 1).sum())}, first after instance {numbers_[at]}",
            expected="consecutive instance numbers",
        )
    scanner = dict(first.scanner)
    for name, value, low, high in (
        ("DetectorFocalCenterRadialDistance", first.distance, 100.0, 2000.0),
        ("ConstantRadialDistance", scanner["detector"], 200.0, 4000.0),
        ("DetectorElementTransverseSpacing", scanner["width"], 0.05, 10.0),
        ("DetectorElementAxialSpacing", scanner["height"], 0.05, 200.0),
    ):
        if not low <= value <= high:
            raise GeometryError(
                "a length is not in mm", source=name, value=value, expected=f"{low:g} to {high:g}"
            )
    if scanner["water"] is not None and not 0.01 <= scanner["water"] <= 0.06:
        raise InputError(
            "water's attenuation is not in 1/mm",
            source="WaterAttenuationCoefficient",
            value=scanner["water"],
            expected="about 0.02; 0.2 would be 1/cm",
        )


def check_turn(views: list[View], turned: NDArray[np.float64], states: int, scanner: dict[str, Any]) -> None:
    """Refuse a tube that does not turn evenly, or whose angles are not radians.

    Raises:
        GeometryError: It is so.
    """
    raw = np.array([view.angle for view in views])
    step = float(np.median(np.abs(np.diff(raw))))
    many = (1.0, float(states), 1.0 / states)
    if scanner["steps"]:
        degrees = min(abs(step * scanner["steps"] / 360 - k) / k for k in many) < 0.05
    else:
        degrees = bool(np.abs(raw).max() > 4 * np.pi) and step > 0.1
    if degrees:
        raise GeometryError(
            "the tube's angles look like degrees",
            source="DetectorFocalCenterAngularPosition",
            value=f"{raw.min():g} to {raw.max():g}",
            expected="radians",
        )
    mean = float(turned[-1] - turned[0]) / (len(turned) - 1)
    if mean == 0:
        raise GeometryError(
            "the tube does not turn", source="DetectorFocalCenterAngularPosition", value=float(raw[0])
        )
    if len(turned) > states:
        steps = np.diff(turned) if states == 1 else turned[states:] - turned[:-states]
        usual = float(np.median(steps))
        uneven = np.abs(steps - usual) > 0.5 * abs(usual)
        if np.any(uneven):
            at = int(np.argmax(uneven))
            raise GeometryError(
                "the tube does not turn evenly: a view is missing or out of order",
                source=views[at + 1].file,
                value=f"{steps[at]:.5g} rad after instance {views[at].instance}",
                expected=f"about {usual:.5g}",
            )
    if scanner["steps"]:
        ratio = 2 * np.pi / scanner["steps"] / abs(mean)
        if min(abs(ratio - k) / k for k in many) > 0.02:
            raise GeometryError(
                "the views do not turn by as much as a turn's number of views says",
                source="NumberofSourceAngularSteps",
                value=f"{scanner['steps']} views a turn, and {abs(mean):.6g} rad from view to view",
                expected=f"{2 * np.pi / scanner['steps']:.6g} rad",
            )


def cone_of(
    views: list[View], turned: NDArray[np.float64], scanner: dict[str, Any], signs: tuple[int, int, int]
) -> tuple[ConeBeam, float]:
    """Return the cone of the views of one focal spot, and how far its bins are out of place, in bins.

    Args:
        views: In order.
        turned: Their angles, without jumps, in the format's axes.
        scanner: What all views share.
        signs: From the format's axes to right, anterior, superior.

    Raises:
        GeometryError: The distance or the table's heights vary, or the focal spot stands too far off.
    """
    rho, phi, rise = views[0].shift
    distance = float(np.mean([view.distance for view in views]))
    if max(abs(view.distance - distance) for view in views) > 0.1:
        raise GeometryError(
            "the tube's distance changes", source="DetectorFocalCenterRadialDistance", value=distance
        )
    mirrored = signs[0] * signs[1] < 0  # the angle runs against the format's
    way = -1.0 if mirrored else 1.0
    angles = way * (turned + phi) + (np.pi if signs[1] > 0 else 0.0)
    angles -= 2 * np.pi * np.round(angles[0] / (2 * np.pi))
    columns, rows = scanner["columns"], scanner["rows"]
    central_column, central_row = scanner["central"]
    offset, row_offset = columns / 2 + 0.5 - central_column, central_row - rows / 2 - 0.5
    if signs[2] < 0:
        offset, row_offset = -offset, -row_offset
    heights = signs[2] * (np.array([view.height for view in views]) + rise)
    row_offset -= signs[2] * rise / scanner["height"]
    geometry = ConeBeam(
        angles=tuple(angles.tolist()),
        bins=columns,
        rows=rows,
        bin_width=scanner["width"],
        row_height=scanner["height"],
        source_distance=distance + rho,
        detector_distance=scanner["detector"] + rho,
        curved=scanner["shape"] == "CYLINDRICAL",
        offset=offset,
        row_offset=row_offset,
        pitch=_pitch(angles, heights, scanner),
        centre=(0.0, 0.0, float(heights[0] + heights[-1]) / 2),
    )
    return _fitted(geometry, distance, scanner["detector"], way * phi)


def _pitch(angles: NDArray[np.float64], heights: NDArray[np.float64], scanner: dict[str, Any]) -> float:
    if scanner["path"] == "AXIAL":
        if np.ptp(heights) > 0.1:
            raise GeometryError(
                "the table moves during an axial scan",
                source="DetectorFocalCenterAxialPosition",
                value=f"{np.ptp(heights):.3g} mm",
                expected="one height; read each turn by its instances",
            )
        return 0.0
    per_radian = float(heights[-1] - heights[0]) / float(angles[-1] - angles[0])
    line = heights[0] + per_radian * (angles - angles[0])
    off = float(np.abs(heights - line).max())
    if off > 0.1 * scanner["height"]:
        raise GeometryError(
            "the table's heights do not follow the tube's angles",
            source="DetectorFocalCenterAxialPosition",
            value=f"{off:.3g} mm off",
            expected=f"{0.1 * scanner['height']:.3g} mm or less; read a part of it by instances",
        )
    return 2 * np.pi * per_radian


def _fitted(geometry: ConeBeam, distance: float, arc: float, shift: float) -> tuple[ConeBeam, float]:
    """Return the geometry with its bins as seen from a focal spot beside the middle of the detector's arc.

    Args:
        geometry: One for the focal spot, with the bins as its arc's middle sees them.
        distance: From that middle to the axis, mm.
        arc: From it to the detector, mm.
        shift: Angle of the focal spot from it, about the axis, as the geometry's angles run.
    """
    places = (np.arange(geometry.bins) + 0.5 - geometry.bins / 2 + geometry.offset) * geometry.bin_width
    # In the frame of the detector: u across, d from its middle to the axis; the axis at 0.
    fan = places / arc
    u, d = (arc * np.sin(fan), arc * np.cos(fan)) if geometry.curved else (places, np.full(len(places), arc))
    d = d - distance
    # In the frame of the focal spot, which is turned by the shift and stands at -source_distance.
    along = np.cos(shift) * u + np.sin(shift) * d
    depth = np.cos(shift) * d - np.sin(shift) * u + geometry.source_distance
    reach = geometry.detector_distance
    seen = reach * np.arctan2(along, depth) if geometry.curved else reach * along / depth
    bins = np.arange(geometry.bins) + 0.5 - geometry.bins / 2
    if geometry.bins == 1:
        return dataclasses.replace(geometry, offset=float(seen[0]) / geometry.bin_width), 0.0
    width, start = (float(value) for value in np.polyfit(bins, seen, 1))
    misplaced = float(np.abs(start + width * bins - seen).max()) / width
    if misplaced > _WORST_BIN:
        raise GeometryError(
            "the focal spot is too far from the middle of the detector's arc",
            source="SourceAngularPositionShift",
            value=f"bins {misplaced:.2f} of their width out of place",
            expected=f"{_WORST_BIN:g} or less",
        )
    return dataclasses.replace(geometry, bin_width=width, offset=start / width), misplaced
