"""What is scanned in evidence/low_dose_ct.py: phantoms known exactly, and slices of real CT images.

Phantoms are scanned by exact line integrals. Real slices are scanned as images of 256 or 512 pixels, linear
between their middles, and reconstructed on pixels of twice to four times their size, whose truth is the mean of
what they hold; what lies outside the circle inside the image is air. So neither scan is made by the projector or
on the grid that it is reconstructed with. No scan was measured by a scanner.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import SagittalError
from sagittal.reconstruction.geometry import ScanGeometry
from sagittal.reconstruction.line_integrals import line_integrals
from sagittal.reconstruction.scan import attenuation
from sagittal.reconstruction.simulate import sampled_integrals
from sagittal.volume import Geometry, Volume
from sagittal.volume.itk import read_itk
from sagittal.volume.phantoms import Body, Phantom
from sagittal.volume.standard_phantoms import (
    head_phantom,
    line_pair_module,
    low_contrast_module,
    random_regions,
    shepp_logan,
    smooth_regions,
)

__all__ = ["EDGES", "LINES", "SPOTS", "Subject", "phantoms", "real_slices"]

PHANTOM, REAL = "analytic phantom", "real slice"

SHA256 = {
    "Cranium matrix.dat": "d87fd5e6aaf2c4fdf4f3fe28ee3335192fc2464ed8e9682fc78530cb837938da",
    "lung1_image.nrrd": "379fa48bf34cfa961e6f5ec19c0c38757a30b9aa884212ef28dc29b5061c64ed",
    "lung2_image.nrrd": "aa2b94eec79127ed786798ac8dc3c013010e1692d5787bebfae1a1e9685a4651",
}

EDGES = {50.0: 0.0, 100.0: 0.5, 300.0: 1.0, -300.0: 1.5}
"""Discs of the edge module: what they add, HU, and where they lie, in turns of pi."""
EDGE_RADIUS, EDGE_AT = 14.0, 42.0

LINES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35)
"""Line pairs a mm."""

SPOTS = ((10.0, 20.0, 40.0), (4.0, 6.0, 9.0, 15.0))
"""Contrasts, HU, and diameters, mm, of the low-contrast module."""


@dataclass(frozen=True)
class Subject:
    """Something that is scanned.

    Attributes:
        name: What the rows call it.
        kind: "analytic phantom" or "real slice"; never in one column.
        grid: Where it is reconstructed, for a number of pixels along a side.
        exact: Its line integrals without noise.
        truth: What a reconstruction on a grid should be, HU.
    """

    name: str
    kind: str
    grid: Callable[[int], Geometry]
    exact: Callable[[ScanGeometry], NDArray[np.floating]]
    truth: Callable[[Geometry], Volume]


def square(size: int, side_mm: float) -> Geometry:
    step = side_mm / size
    corner = -(size - 1) * step / 2
    return Geometry.from_spacing((size, size, 1), spacing=(step, step, 1.0), origin=(corner, corner, 0.0))


def of_phantom(phantom: Phantom, side_mm: float) -> Subject:
    return Subject(
        phantom.name,
        PHANTOM,
        lambda size: square(size, side_mm),
        lambda geometry: line_integrals(phantom, geometry, as_intensity=True),
        lambda grid: phantom.rasterise(grid, 8),
    )


def edge_module() -> Phantom:
    bodies = [Body(half_sizes=(72.0, 72.0, np.inf), density=1.0)]
    for contrast, way in EDGES.items():
        centre = (EDGE_AT * np.cos(np.pi * way), EDGE_AT * np.sin(np.pi * way), 0.0)
        size = (EDGE_RADIUS, EDGE_RADIUS, np.inf)
        bodies.append(Body(centre=centre, half_sizes=size, density=contrast / 1000, name=f"{contrast:g} HU"))
    return Phantom(name="edges", bodies=tuple(bodies))


def lines() -> Phantom:
    return line_pair_module(LINES)


def spots() -> Phantom:
    contrasts, diameters = SPOTS
    return low_contrast_module([c / 1000 for c in contrasts], diameters)


def phantoms() -> dict[str, list[Subject]]:
    """Return the phantoms to tune on, to judge by, and the modules that are measured by themselves."""
    return {
        "tune": [of_phantom(random_regions(seed), 200.0) for seed in (101, 102)],
        "judge": [
            of_phantom(smooth_regions(), 200.0),
            of_phantom(shepp_logan(), 200.0),
            of_phantom(head_phantom(), 256.0),
        ],
        "modules": [of_phantom(phantom, 160.0) for phantom in (edge_module(), lines(), spots())],
    }


def real_slices(
    cranium: Path | None = None, chest: Path | None = None
) -> tuple[dict[str, list[Subject]], list[str]]:
    """Return the real slices to tune on and to judge by, and a note for each that is not there.

    Each patient is on one side alone: one head and one chest to tune on, two heads and one chest to judge by.

    Args:
        cranium: ``Cranium.inv3`` of Debian's package ``invesalius-examples``.
        chest: The source distribution of pyradiomics 3.0.1.
    """
    found: dict[str, list[Subject]] = {"tune": [], "judge": []}
    notes: list[str] = []
    for side, file in (("tune", "693_J2KI.dcm"), ("judge", "J2K_pixelrep_mismatch.dcm")):
        try:
            array, step = dicom_slice(file)
        except (ImportError, OSError, SagittalError) as error:
            notes.append(f"pydicom's {file} was not scanned: {error}")
        else:
            found[side].append(of_slice(f"head, {file}", array, step))
    if cranium is None:
        notes.append("invesalius-examples' Cranium.inv3 was not given: --cranium")
    else:
        slices = cranium_slices(cranium)
        found["judge"].append(of_slice("head, Cranium slice 40", slices[40], 0.957031))
    if chest is None:
        notes.append("pyradiomics 3.0.1's source distribution was not given: --chest")
    else:
        for side, name, index in (("tune", "lung1", 20), ("judge", "lung2", 30)):
            array, step = chest_slice(chest, name, index)
            found[side].append(of_slice(f"chest, {name} slice {index}", array, step))
    return found, notes


def of_slice(name: str, array: NDArray[np.floating], step: float) -> Subject:
    """Return a square slice in HU; it is scanned whole and reconstructed on fewer pixels."""
    full = len(array)
    grid = square(full, full * step)
    place = (np.arange(full) - (full - 1) / 2) / (full / 2)
    inside = place[:, None] ** 2 + place**2 < 0.98**2
    values = np.where(inside, np.maximum(array, -1000.0), -1000.0).astype(np.float32)[..., None]
    image = attenuation(Volume(values, grid, unit="HU"))

    @cache
    def exact(geometry: ScanGeometry) -> NDArray[np.floating]:
        return sampled_integrals(image, grid, geometry)

    def truth(coarse: Geometry) -> Volume:
        size = coarse.shape[0]
        parts = full // size
        if parts < 2 or full % size:
            raise ValueError(f"{full} pixels make no truth of {size}")
        means = values.reshape(size, parts, size, parts, 1).mean(axis=(1, 3), dtype=np.float64)
        return Volume(means.astype(np.float32), coarse, unit="HU")

    return Subject(name, REAL, lambda size: square(size, full * step), exact, truth)


def dicom_slice(file: str) -> tuple[NDArray[np.floating], float]:
    from pydicom import dcmread
    from pydicom.data import get_testdata_file

    image = dcmread(str(get_testdata_file(file, download=False)))
    array = image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)
    return array.T, float(image.PixelSpacing[0])


def cranium_slices(path: Path) -> NDArray[np.int16]:
    with gzip.open(path) as packed, tarfile.open(fileobj=io.BytesIO(packed.read())) as archive:
        content = member(archive, "matrix.dat", "Cranium matrix.dat")
    return np.frombuffer(content, np.int16).reshape(108, 256, 256).transpose(0, 2, 1)


def chest_slice(path: Path, name: str, index: int) -> tuple[NDArray[np.floating], float]:
    with tarfile.open(path) as archive, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}_image.nrrd"
        file.write_bytes(member(archive, f"/data/{file.name}", file.name))
        volume = read_itk(file)
    return np.asarray(volume.array[:, :, index], np.float64), float(volume.geometry.spacing[0])


def member(archive: tarfile.TarFile, end: str, name: str) -> bytes:
    """Return the content of the one member whose name ends so, if it is the one that was measured."""
    stream = archive.extractfile(next(entry for entry in files(archive) if entry.name.endswith(end)))
    assert stream is not None
    content = stream.read()
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise ValueError(f"{name} is not the one that was measured before")
    return content


def files(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    return (entry for entry in archive if entry.isfile())


def split(subjects: Mapping[str, list[Subject]]) -> dict[str, list[str]]:
    return {side: [subject.name for subject in those] for side, those in subjects.items()}
