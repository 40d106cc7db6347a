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

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import FormatError, InputError
from sagittal.core.files import storage_errors
from sagittal.core.memory import require_memory
from sagittal.core.optional import optional_import
from sagittal.reconstruction.files._ct_pd_geometry import POSITIONS, View, check_one_scan, check_turn, cone_of
from sagittal.reconstruction.files._ct_pd_tags import numbers, word
from sagittal.reconstruction.geometry import ConeBeam
from sagittal.reconstruction.scan import Scan

__all__ = ["Projections", "read_ct_pd"]

_GIB = 1 << 30
_FLAGS = ("BeamHardening", "Gain", "DarkField", "FlatField", "BadPixel", "Scatter")
_MOST_STATES = 8


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

    @property
    def scan(self) -> Scan:
        """The projections as a scan, each ray with its photons; 0 photons are a ray that was not measured."""
        photons = None if self.photons is None else self.photons[:, None, :]
        return Scan(self.sinogram, self.geometry, photons)


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
            ``max_bytes``, or than fits into memory; readings without logarithm and no ``air``, or not above
            0.
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
    check_one_scan(views)
    scanner = dict(views[0].scanner)
    size = len(views) * scanner["rows"] * scanner["columns"] * 4
    if size > max_bytes:
        raise InputError(
            "the scan is too large",
            source=files[0].parent,
            value=f"{size / _GIB:.1f} GiB",
            expected=f"{max_bytes / _GIB:.1f} GiB; read a part of it by instances",
        )
    require_memory(2 * size, "the scan", instead="read a part of it by instances")
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
    check_turn(views, turned, len(states), scanner)
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


def _view(pydicom: Any, file: Path) -> View:
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
    if position and position not in POSITIONS:
        raise FormatError(
            "the patient's position is not supported",
            source=file,
            value=position,
            expected=", ".join(POSITIONS),
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
    return View(
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


def _projections(
    pydicom: Any,
    views: list[View],
    turned: NDArray[np.float64],
    scanner: dict[str, Any],
    air: float | None,
    states: int,
) -> Projections:
    signs = POSITIONS[scanner["position"] or "HFS"]
    geometry, misplaced = cone_of(views, turned, scanner, signs)
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
        elif known.min() < 0:
            raise FormatError(
                "photons are negative",
                source=view.file,
                value=float(known.min()),
                expected="PhotonStatistics of 0 or more",
            )
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
