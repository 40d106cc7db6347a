"""A synthetic scan in DICOM-CT-PD, written straight from the format's definitions.

Nothing of the reader or of the scanner geometries is used: each ray runs from a focal spot to a detector
element that are placed in the format's own left-handed axes, and then as the patient lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.volume.phantoms import Phantom

SLOPE = 2e-4
LYING = {
    "HFS": np.array([-1.0, 1.0, 1.0]),
    "FFS": np.array([1.0, 1.0, -1.0]),
    "HFP": np.array([1.0, -1.0, 1.0]),
    "FFP": np.array([-1.0, -1.0, -1.0]),
}


@dataclass(frozen=True, kw_only=True)
class Scanner:
    rows: int = 6
    columns: int = 40
    width: float = 4.0
    height: float = 5.0
    radius: float = 400.0
    arc: float = 700.0
    central: tuple[float, float] = (21.25, 3.5)
    shape: str = "CYLINDRICAL"
    path: str = "HELICAL"
    position: str = "HFS"
    steps: int = 24
    views: int = 30
    feed: float = 24.0
    first_angle: float = 1.1
    sense: float = 1.0  # -1 turns the other way
    shifts: tuple[tuple[float, float, float], ...] = ((0.0, 0.0, 0.0),)  # rho, phi, z of each spot position
    log: str = "YES"
    water: float = 0.02
    photons: bool = True
    transposed: bool = False
    implicit: bool = False
    change: Callable[[Any, int], None] = field(default=lambda dataset, view: None)

    def view(self, phantom: Phantom, index: int, sub: int) -> NDArray[np.float64]:
        """Line integrals of one view, row 1 and column 1 first, averaged over ``sub`` x ``sub`` rays."""
        phi, z = self.angle(index), self.z(index)
        rho_shift, phi_shift, z_shift = self.shifts[index % len(self.shifts)]
        middle = np.array([-self.radius * math.sin(phi), self.radius * math.cos(phi)])
        to_axis, across = -middle / self.radius, np.array([math.cos(phi), math.sin(phi)])
        far, turn = self.radius + rho_shift, phi + phi_shift
        spot = np.array([-far * math.sin(turn), far * math.cos(turn), z + z_shift])
        part = (np.arange(sub) + 0.5) / sub - 0.5
        column = (np.arange(1, self.columns + 1)[:, None] + part).reshape(-1) - self.central[0]
        row = (np.arange(1, self.rows + 1)[:, None] + part).reshape(-1) - self.central[1]
        along = column * self.width
        if self.shape == "CYLINDRICAL":
            fan = (along / self.arc)[:, None]
            plane = middle + self.arc * (np.cos(fan) * to_axis + np.sin(fan) * across)
        else:
            plane = middle + self.arc * to_axis + along[:, None] * across
        element = np.zeros((len(row), len(column), 3))
        element[..., :2] = plane
        element[..., 2] = (z - row * self.height)[:, None]  # row 1 is the furthest from the table
        lying = LYING[self.position]
        way = (element - spot) * lying
        way /= np.linalg.norm(way, axis=-1, keepdims=True)
        start = np.broadcast_to(spot * lying, way.shape)
        total = sum(body.integrals(start, way) for body in phantom.bodies) * self.water
        return np.asarray(total).reshape(self.rows, sub, self.columns, sub).mean(axis=(1, 3))

    def angle(self, index: int) -> float:
        return self.first_angle + self.sense * 2 * math.pi * index / self.steps

    def z(self, index: int) -> float:
        return self.feed * (index - (self.views - 1) / 2) / self.steps if self.path == "HELICAL" else 3.0


def write_ct_pd(folder: Path, phantom: Phantom, scanner: Scanner, *, sub: int = 3) -> list[Path]:
    """Write one file a view, in an order of names that is not that of the views."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    series = generate_uid()
    for index in range(scanner.views):
        rays = scanner.view(phantom, index, sub)
        if scanner.log != "YES":
            rays = 10 * np.exp(-rays)
        dataset = Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
        dataset.SeriesInstanceUID, dataset.Modality, dataset.InstanceNumber = series, "CT", index + 1
        dataset.PatientID, dataset.PatientName = "secret", "Secret^Name"
        if scanner.position:
            dataset.PatientPosition = scanner.position
        dataset.KVP = "120"
        stored = np.round(rays / SLOPE).astype("<u2")
        stored = stored.T if scanner.transposed else stored
        dataset.Rows, dataset.Columns = stored.shape
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 15, 0, 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.RescaleSlope, dataset.RescaleIntercept = str(SLOPE), "0"
        dataset.PixelData = stored.tobytes()
        rho_shift, phi_shift, z_shift = scanner.shifts[index % len(scanner.shifts)]
        blocks: dict[int, list[tuple[int, str, Any]]] = {
            0x7029: [
                (0x02, "FL", scanner.width),
                (0x06, "FL", scanner.height),
                (0x0B, "CS", scanner.shape),
                (0x10, "US", scanner.rows),
                (0x11, "US", scanner.columns),
            ],
            0x7031: [
                (0x01, "FL", math.remainder(scanner.angle(index), 2 * math.pi)),
                (0x02, "FL", scanner.z(index)),
                (0x03, "FL", scanner.radius),
                (0x31, "FL", scanner.arc),
                (0x33, "FL", list(scanner.central)),
            ],
            0x7033: [
                (0x0B, "FL", phi_shift),
                (0x0C, "FL", z_shift),
                (0x0D, "FL", rho_shift),
                (0x0E, "CS", "FFSNONE" if len(scanner.shifts) == 1 else "FFSXYZ"),
                (0x13, "US", scanner.steps),
                (0x63, "US", 1),
            ],
            0x7037: [(0x09, "CS", scanner.path), (0x0A, "CS", "FANBEAM")],
            0x7039: [(0x03, "CS", "YES"), (0x08, "CS", "NO"), (0x09, "CS", scanner.log)],
            0x7041: [(0x01, "DS", str(scanner.water))],
        }
        if scanner.photons:
            blocks[0x7033].append((0x65, "FL", [1000.0 + c for c in range(1, scanner.columns + 1)]))
        for group, elements in blocks.items():
            block = dataset.private_block(group, "DICOM-CT-PD", create=True)
            for element, kind, value in elements:
                block.add_new(element, kind, value)
        scanner.change(dataset, index)
        dataset.file_meta = FileMetaDataset()
        syntax = ImplicitVRLittleEndian if scanner.implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        file = folder / f"{(index * 7) % scanner.views:04d}-{index}.dcm"
        dataset.save_as(file, enforce_file_format=True)
        files.append(file)
    return files
