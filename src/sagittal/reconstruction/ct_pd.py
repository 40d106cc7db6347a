"""Projections of a CT scanner in the open format DICOM-CT-PD (Chen et al., Med. Phys. 42:6964, 2015).

One file holds one view. The attributes' names, tags and representations were checked against two independent
public readers and their dictionaries, and their meaning against a summary of the format's user manual
(version 3, 2020) and a reader's comments. No file of a scanner was at hand. So these are readings of the
manual that no real scan has confirmed:

- which way views turn, rows and columns run for the four patient positions, hence left, right, up and down;
- that the central element counts from 1 with elements' middles at whole numbers;
- that a flat detector's spacing is on the detector;
- that the shifts of a flying focal spot repeat exactly from view to view.

The format's axes are left-handed: seen from the table, x to the right, y up, z into the gantry; the angle is
0 at twelve o'clock and rises counter-clockwise, and a source at distance r and angle phi stands at (-r sin
phi, r cos phi).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import FormatError, GeometryError, InputError
from sagittal.core.files import storage_errors
from sagittal.core.optional import optional_import
from sagittal.reconstruction._ct_pd_tags import numbers, word
from sagittal.reconstruction.geometry import ConeBeam

__all__ = ["Projections", "read_ct_pd"]

_GIB = 1 << 30
_FLAGS = ("BeamHardening", "Gain", "DarkField", "FlatField", "BadPixel", "Scatter")
# Patient position: signs that take the format's x, y, z to right, anterior, superior.
_POSITIONS = {"HFS": (-1, 1, 1), "FFS": (1, 1, -1), "HFP": (1, -1, 1), "FFP": (-1, -1, -1)}
_MOST_STATES = 8
_WORST_BIN = 0.25


@dataclass(frozen=True, eq=False)
class Projections:
    """The views of a scan that one position of the focal spot took.

    Attributes:
        sinogram: Line integrals, float32, shape (views, rows, bins); rows from inferior to superior.
        geometry: Where the rays ran.
        photons: Photons that reach each bin with nothing in the way, as the scanner estimates them
            (noise-equivalent quanta), shape (views, bins); None where the files do not say.
        water: Attenuation of water, 1/mm; None where the files do not say.
        instances: The views' instance numbers, shape (views,).
        misplaced: Largest distance between a bin and where ``geometry`` has it, in bins: what a focal spot
            beside the middle of the detector's arc leaves over.
        facts: Tube voltage, focal spot, corrections that the scanner made, and what was assumed; nothing that
            identifies a person.
    """

    sinogram: NDArray[np.float32]
    geometry: ConeBeam
    photons: NDArray[np.float32] | None
    water: float | None
    instances: NDArray[np.int64]
    misplaced: float
    facts: dict[str, Any]


@dataclass(frozen=True)
class _View:
    file: Path
    instance: int
    angle: float
    height: float
    distance: float
    shift: tuple[float, float, float]  # rho, phi, z
    scanner: tuple[Any, ...]


def read_ct_pd(
    path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    instances: tuple[int, int] | None = None,
    air: float | None = None,
    max_bytes: int = 8 * _GIB,
) -> tuple[Projections, ...]:
    """Read a scan from a folder of views, or from a list of files.

    Views are ordered by instance number. A scan with a flying focal spot comes back as one set of
    projections for each of its positions, each with a geometry of its own: the spot's shift goes into
    angles, distances, offsets and heights, and what is left over is :attr:`Projections.misplaced`.

    Args:
        path: A folder, of which all ``.dcm`` files and DICOM files without suffix are read, or files.
        instances: First and last instance number of the part to read; everything by default.
        air: Reading with nothing in the way, for files that were not log-transformed.
        max_bytes: Bound on the line integrals' size.

    Returns:
        One set of projections, or one for each position of a flying focal spot, by first view.

    Raises:
        InputError: No such file or no view; views of several scans, scanners or spectra; more than
            ``max_bytes``; readings without logarithm and no ``air``, or not above 0.
        FormatError: Not DICOM-CT-PD, a missing or malformed attribute, a detector or scan of an unsupported
            kind.
        GeometryError: Missing or repeated views, angles that look like degrees or lengths that are not mm, a
            tube that does not turn evenly, heights that do not follow it.
    """
    pydicom = optional_import("pydicom")
    files = _files(path)
    views = [_view(pydicom, file) for file in files]
    views.sort(key=lambda view: view.instance)
    if instances is not None:
        first, last = instances
        views = [view for view in views if first <= view.instance <= last]
    if len(views) < 2:
        raise InputError("a scan needs two views", source=files[0].parent, value=len(views))
    _check_one_scan(views)
    scanner = dict(views[0].scanner)
    size = len(views) * scanner["rows"] * scanner["columns"] * 4
    if size > max_bytes:
        raise InputError(
            "the scan is too large",
            source=files[0].parent,
            value=f"{size / _GIB:.1f} GiB",
            expected=f"{max_bytes / _GIB:.1f} GiB; read a part of it by instances",
        )
    turned = np.unwrap([view.angle for view in views])
    states: dict[tuple[float, float, float], list[int]] = {}
    for index, view in enumerate(views):
        states.setdefault(view.shift, []).append(index)
    if len(states) > _MOST_STATES:
        raise FormatError(
            "the focal spot has too many positions",
            source=files[0].parent,
            value=len(states),
            expected=f"{_MOST_STATES} or fewer that repeat",
        )
    _check_turn(views, turned, len(states), scanner)
    return tuple(
        _projections(pydicom, [views[i] for i in chosen], turned[chosen], scanner, air, len(states))
        for chosen in states.values()
    )


def _files(path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    if not isinstance(path, str | os.PathLike):
        files = [Path(one) for one in path]
    elif Path(path).is_dir():
        with storage_errors(Path(path)):
            files = sorted(
                f for f in Path(path).iterdir() if f.is_file() and f.suffix.lower() in ("", ".dcm")
            )
    else:
        files = [Path(path)]
    for file in files:
        if not file.is_file():
            raise InputError("there is no such file", source=file)
    if not files:
        raise InputError("there is no view", source=path, expected="files of DICOM-CT-PD, one a view")
    return files


def _dataset(pydicom: Any, file: Path, *, pixels: bool) -> Any:
    try:
        return pydicom.dcmread(file, stop_before_pixels=not pixels)
    except Exception as error:  # arbitrary bytes make pydicom raise almost anything
        raise FormatError(f"the DICOM file is damaged, or none ({error})", source=file) from error


def _view(pydicom: Any, file: Path) -> _View:
    dataset = _dataset(pydicom, file, pixels=False)
    shape = word(dataset, "DetectorShape", file)
    if shape not in ("CYLINDRICAL", "FLAT"):
        raise FormatError(
            "the detector's shape is not supported", source=file, value=shape, expected="CYLINDRICAL or FLAT"
        )
    beam = word(dataset, "TypeofProjectionGeometry", file, required=False)
    if beam not in ("", "FANBEAM"):
        raise FormatError(
            "the projection geometry is not supported", source=file, value=beam, expected="FANBEAM"
        )
    path = word(dataset, "TypeofProjectionData", file)
    if path not in ("AXIAL", "HELICAL"):
        raise FormatError("the type of scan is unknown", source=file, value=path, expected="AXIAL or HELICAL")
    position = str(dataset.get("PatientPosition") or "").strip().upper()
    if position and position not in _POSITIONS:
        raise FormatError(
            "the patient's position is not supported",
            source=file,
            value=position,
            expected=", ".join(_POSITIONS),
        )

    def one(name: str) -> float:
        return float(numbers(dataset, name, file)[0])

    def shift(name: str, step: float) -> float:
        found = numbers(dataset, name, file, required=False)
        return 0.0 if not len(found) else round(float(found[0]) / step) * step

    if dataset.get("InstanceNumber") is None:
        raise FormatError("a required attribute is missing", source=file, value="InstanceNumber")
    water = numbers(dataset, "WaterAttenuationCoefficient", file, required=False)
    steps = numbers(dataset, "NumberofSourceAngularSteps", file, required=False)
    spectrum = numbers(dataset, "SpectrumIndex", file, required=False)
    scanner = {
        "series": str(dataset.get("SeriesInstanceUID", "")),
        "rows": int(one("NumberofDetectorRows")),
        "columns": int(one("NumberofDetectorColumns")),
        "width": one("DetectorElementTransverseSpacing"),
        "height": one("DetectorElementAxialSpacing"),
        "shape": shape,
        "path": path,
        "detector": one("ConstantRadialDistance"),
        "central": tuple(numbers(dataset, "DetectorCentralElement", file, 2).tolist()),
        "position": position,
        "water": float(water[0]) if len(water) else None,
        "steps": int(steps[0]) if len(steps) else None,
        "spectrum": int(spectrum[0]) if len(spectrum) else None,
        "log": word(dataset, "LogFlag", file),
        "kvp": None if dataset.get("KVP") is None else float(dataset.KVP),
        "spot": word(dataset, "FlyingFocalSpotMode", file, required=False),
        **{flag: word(dataset, f"{flag}CorrectionFlag", file, required=False) for flag in _FLAGS},
    }
    return _View(
        file,
        int(dataset.InstanceNumber),
        one("DetectorFocalCenterAngularPosition"),
        one("DetectorFocalCenterAxialPosition"),
        one("DetectorFocalCenterRadialDistance"),
        (
            shift("SourceRadialDistanceShift", 0.01),
            shift("SourceAngularPositionShift", 1e-5),
            shift("SourceAxialPositionShift", 0.01),
        ),
        tuple(scanner.items()),
    )


def _check_one_scan(views: list[_View]) -> None:
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


def _check_turn(
    views: list[_View], turned: NDArray[np.float64], states: int, scanner: dict[str, Any]
) -> None:
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


def _projections(
    pydicom: Any,
    views: list[_View],
    turned: NDArray[np.float64],
    scanner: dict[str, Any],
    air: float | None,
    states: int,
) -> Projections:
    signs = _POSITIONS[scanner["position"] or "HFS"]
    geometry, misplaced = _geometry(views, turned, scanner, signs)
    sinogram = np.empty(geometry.shape, np.float32)
    photons: NDArray[np.float32] | None = np.empty((len(views), geometry.bins), np.float32)
    # Row 1 is the furthest from the table, column 1 the leftmost seen from it with the detector below.
    flip_rows, flip_columns = signs[2] > 0, signs[2] < 0
    for index, view in enumerate(views):
        dataset = _dataset(pydicom, view.file, pixels=True)
        rays = _rays(dataset, view.file, scanner, air)
        sinogram[index] = rays[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        known = numbers(dataset, "PhotonStatistics", view.file, scanner["columns"], required=False)
        if not len(known) or photons is None:
            photons = None
        else:
            photons[index] = known[:: -1 if flip_columns else 1]
    facts = {
        "modality": "CT",
        "kvp": scanner["kvp"],
        "patient_position": scanner["position"] or "HFS, assumed",
        "flying_focal_spot": scanner["spot"],
        "focal_spot_shift": list(views[0].shift),
        "focal_spot_positions": states,
        "corrected": [flag for flag in _FLAGS if scanner[flag] == "YES"],
    }
    return Projections(
        sinogram,
        geometry,
        photons,
        scanner["water"],
        np.array([view.instance for view in views], np.int64),
        misplaced,
        {key: value for key, value in facts.items() if value not in (None, "")},
    )


def _rays(dataset: Any, file: Path, scanner: dict[str, Any], air: float | None) -> NDArray[np.float64]:
    shape = (scanner["rows"], scanner["columns"])
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is not None and (syntax.is_encapsulated or not syntax.is_little_endian):
        raise FormatError(
            "the transfer syntax is not supported",
            source=file,
            value=syntax.name,
            expected="plain little endian",
        )
    stored = (int(dataset.get("Rows", 0)), int(dataset.get("Columns", 0)))
    data = dataset.get("PixelData")
    if stored not in (shape, shape[::-1]):
        raise FormatError(
            "the image has another shape than the detector", source=file, value=stored, expected=str(shape)
        )
    if data is None or int(dataset.get("BitsAllocated", 0)) != 16 or len(data) < 2 * shape[0] * shape[1]:
        raise FormatError(
            "the view's readings are missing or truncated",
            source=file,
            value=f"{len(data or b'')} bytes",
            expected=f"{2 * shape[0] * shape[1]} of 16 bits each",
        )
    kind = "<i2" if int(dataset.get("PixelRepresentation", 0)) else "<u2"
    readings = np.frombuffer(data, kind, shape[0] * shape[1]).reshape(stored)
    if stored != shape:  # an older layout: the rows of the image are the detector's columns
        readings = readings.T
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    values = readings * slope + intercept
    if scanner["log"] == "YES":
        return np.asarray(values)
    if air is None or not air > 0:
        raise InputError(
            "the readings were not log-transformed",
            source=file,
            value=f"LogFlag {scanner['log']}",
            expected="air: the reading with nothing in the way",
        )
    if np.any(values <= 0):
        raise InputError("readings are not above 0", source=file, value=int(np.count_nonzero(values <= 0)))
    return np.asarray(np.log(air / values))


def _geometry(
    views: list[_View], turned: NDArray[np.float64], scanner: dict[str, Any], signs: tuple[int, int, int]
) -> tuple[ConeBeam, float]:
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
