"""Scans of an image that never was in a scanner: line integrals by another projector, and photon noise.

Rays are sampled through the image taken as linear between its voxels' middles, at half a voxel's
distance, several to a bin. The reconstructions' projectors take voxels for boxes and bins for intervals,
so that a scan is not made by what it is reconstructed with.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.memory import require_memory
from sagittal.core.optional import optional_import
from sagittal.core.randomness import generator
from sagittal.reconstruction.geometry import ConeBeam, FanBeam, ParallelBeam, ScanGeometry
from sagittal.reconstruction.scan import Scan, attenuation
from sagittal.reconstruction.segments import check_grid, ray_lines
from sagittal.volume import Geometry, Volume, reorient
from sagittal.volume.phantoms import WATER_PER_MM

__all__ = ["add_noise", "fitted_geometry", "sampled_integrals", "scannable", "simulate_scan", "upright"]

_AIR_HU = -1000.0
_MOST_COUNTS = 1e18
_MOST_VIEWS = 1_000_000
_BYTES_A_RAY = 40
"""What counting photons takes at its peak: line integrals and counts in three copies of float64 each."""


def simulate_scan(
    volume: Volume,
    geometry: ScanGeometry,
    *,
    photons: float | NDArray[np.floating[Any]],
    seed: int = 0,
    electronic: float = 0.0,
    mu_water: float = WATER_PER_MM,
) -> Scan:
    """Scan a volume at a dose.

    Args:
        volume: In HU or 1/mm.
        geometry: The scanner.
        photons: What a bin counts with nothing in the way: a number, or as
            :attr:`~sagittal.reconstruction.scan.Scan.photons`; rays without photons come back as missing.
        seed: The noise follows from it.
        electronic: Standard deviation of the detector's own noise, in photons.
        mu_water: Attenuation of water, 1/mm.

    Raises:
        GeometryError: The volume does not suit the scanner.
        InputError: No attenuation, or a dose that is not positive.
        MissingDependencyError: scipy is not installed.
    """
    exact = sampled_integrals(attenuation(volume, mu_water), volume.geometry, geometry)
    return add_noise(exact, geometry, photons=photons, seed=seed, electronic=electronic)


def add_noise(
    exact: NDArray[np.floating],
    geometry: ScanGeometry,
    *,
    photons: float | NDArray[np.floating[Any]],
    seed: int = 0,
    electronic: float = 0.0,
) -> Scan:
    """Return a scan of Poisson counts about exact line integrals, with Gaussian electronic noise.

    Raises:
        GeometryError: Line integrals or photons that do not suit the geometry.
        InputError: A dose that is not positive or beyond what can be drawn, or negative noise.
    """
    dose = Scan(np.asarray(exact), geometry, photons, electronic)  # checks all of it
    draw = generator(seed, "ct-scan")
    counts = draw.poisson(_drawable(dose.counts)).astype(np.float64)
    if electronic:
        counts += draw.normal(0, electronic, counts.shape)
    return Scan.from_counts(counts, photons, geometry, electronic=electronic)


def _drawable(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return expected counts, unless they are too large for Poisson's numbers."""
    if counts.max() > _MOST_COUNTS:
        raise InputError(
            "more photons would be counted than can be drawn",
            source="photons",
            value=f"{counts.max():.3g}",
            expected=f"{_MOST_COUNTS:.0e} at most",
        )
    return counts


def sampled_integrals(
    image: NDArray[np.floating], grid: Geometry, geometry: ScanGeometry, *, rays: int = 3
) -> NDArray[np.float32]:
    """Return line integrals of an image that is linear between voxels, shape (views, rows, bins).

    Args:
        image: Shape of the grid.
        grid: The voxels.
        geometry: The scanner.
        rays: Rays in each bin, spread evenly over it.

    Raises:
        GeometryError: The grid does not suit the scanner.
        InputError: A scan of this size does not fit into memory.
        MissingDependencyError: scipy is not installed.
    """
    ndimage = optional_import("scipy.ndimage")
    check_grid(geometry, grid)
    views, rows, bins = geometry.shape
    require_memory(
        _BYTES_A_RAY * views * rows * bins, "the simulated scan", instead="take fewer views or slices"
    )
    plane, zero = grid.affine[:2, :2], grid.affine[:2, 3] - np.asarray(geometry.centre[:2])
    to_index = np.linalg.inv(plane)
    corners = (
        np.array([[i, j] for i in (0, grid.shape[0] - 1) for j in (0, grid.shape[1] - 1)]) @ plane.T + zero
    )
    reach = float(np.linalg.norm(corners, axis=1).max()) + max(grid.spacing[:2])
    count = max(2, math.ceil(2 * reach / (min(grid.spacing[:2]) / 2)))
    places = np.interp((np.arange(bins * rays) + 0.5) / rays, np.arange(bins + 1), geometry.edges)
    steps = (np.arange(count) + 0.5) / count * 2 * reach - reach
    found = np.empty(geometry.shape, np.float32)
    heights = geometry.heights if isinstance(geometry, ConeBeam) else np.zeros(views)
    for view, angle in enumerate(geometry.angles):
        points, ways = ray_lines(geometry, angle, places)
        lengths = np.linalg.norm(ways, axis=1)
        units = ways / lengths[:, None]
        nearest = -(points * units).sum(axis=1)  # where a ray comes closest to the axis
        along = nearest[:, None] + steps
        where = (points[:, None] + along[..., None] * units[:, None] - zero) @ to_index.T
        each = np.moveaxis(where.astype(np.float32), -1, 0)
        for row in range(rows):
            if isinstance(geometry, ConeBeam):
                rise = (row - rows / 2 + 0.5 + geometry.row_offset) * geometry.row_height / lengths
                z = (heights[view] + rise[:, None] * along - grid.affine[2, 3]) / grid.affine[2, 2]
                points_3d = np.concatenate([each, z[None].astype(np.float32)])
                values = ndimage.map_coordinates(image, points_3d, order=1, mode="constant")
                total = values.sum(axis=1) * np.hypot(1, rise)
            else:
                values = ndimage.map_coordinates(image[:, :, row], each, order=1, mode="constant")
                total = values.sum(axis=1)
            found[view, row] = total.reshape(bins, rays).mean(axis=1) * (2 * reach / count)
    return found


def fitted_geometry(grid: Geometry, kind: str, views: int, *, curved: bool = False) -> ScanGeometry:
    """Return a usual scanner whose detector sees all of a grid.

    Bins are as wide as pixels, seen at the axis. Parallel views cover half a turn, fans and cones a whole
    one. The source stands 570 mm from the axis, or further where the grid needs it, and the detector
    1040/570 as far.

    Args:
        grid: What is to be scanned; the axis goes through its middle.
        kind: "parallel", "fan" or "cone".
        views: How many.
        curved: Whether the detector of a fan or a cone is an arc.

    Raises:
        InputError: Another kind, no views, or more than a million.
    """
    if kind not in ("parallel", "fan", "cone"):
        raise InputError(
            "there is no such geometry", source="geometry", value=kind, expected="parallel, fan or cone"
        )
    if views < 1:
        raise InputError("there are no views", source="views", value=views, expected="1 or more")
    if views > _MOST_VIEWS:
        raise InputError(
            "there are too many views", source="views", value=views, expected=f"{_MOST_VIEWS} at most"
        )
    step = min(grid.spacing[:2])
    shape = np.asarray(grid.shape)
    x, y, z = (float(place) for place in grid.index_to_world((shape - 1) / 2))
    centre = (x, y, z)
    faces = np.array([[i, j, 0] for i in (-0.5, shape[0] - 0.5) for j in (-0.5, shape[1] - 0.5)])
    radius = float(np.linalg.norm((grid.index_to_world(faces) - centre)[:, :2], axis=1).max())
    turn = math.pi if kind == "parallel" else 2 * math.pi
    angles = tuple(np.arange(views) * turn / views)
    if kind == "parallel":
        bins = 2 * math.ceil(radius / step) + 1
        return ParallelBeam(angles=angles, bins=bins, bin_width=step, rows=grid.shape[2], centre=centre)
    source = max(570.0, 2 * radius)
    detector = source * 1040 / 570
    grow = detector / source
    widest = math.asin(radius / source)
    half = (widest if curved else math.tan(widest)) * detector
    bins = 2 * math.ceil(half / (step * grow)) + 1
    common: dict[str, Any] = {
        "angles": angles,
        "bins": bins,
        "bin_width": step * grow,
        "source_distance": source,
        "detector_distance": detector,
        "curved": curved,
        "centre": centre,
    }
    if kind == "fan":
        return FanBeam(**common, rows=grid.shape[2])
    high = grid.shape[2] * grid.spacing[2] / 2 * detector / (source - radius)
    rows = 2 * math.ceil(high / (grid.spacing[2] * grow)) + 1
    return ConeBeam(**common, rows=rows, row_height=grid.spacing[2] * grow)


def scannable(image: Volume, largest: int) -> Volume:
    """Return one CT slice as it can be scanned in simulation.

    What lies below air becomes air, as scanners fill the corners with such numbers; the slice lies
    :func:`upright`, its first axis to the right; squares of pixels are averaged until it fits.

    Args:
        image: One slice, shape (i, j, 1), in HU.
        largest: Pixels that a side may have. A rest of a side that fills no square is cut off.

    Raises:
        InputError: More slices than one, another unit than HU, or no pixel allowed.
    """
    if image.shape[2] != 1:
        raise InputError("one slice is scanned at a time", value=image.shape, expected="shape (i, j, 1)")
    if image.unit != "HU":
        raise InputError("a CT slice is scanned from its HU", source="unit", value=image.unit, expected="HU")
    if largest < 1:
        raise InputError("a slice needs pixels", source="largest", value=largest, expected="1 or more")
    image = reorient(image, "RAS")
    size = math.ceil(max(image.shape[:2]) / largest)
    across, down = (n // size for n in image.shape[:2])
    hu = np.maximum(image.array[: across * size, : down * size, 0].astype(np.float32), _AIR_HU)
    affine = image.geometry.affine.copy()
    affine[:3, 3] = image.geometry.index_to_world([(size - 1) / 2, (size - 1) / 2, 0])
    affine[:3, :2] *= size
    averaged = hu.reshape(across, size, down, size).mean(axis=(1, 3))[..., None]
    return upright(Volume(averaged, Geometry(averaged.shape, affine), unit="HU"))


def upright(image: Volume) -> Volume:
    """Return one slice of a tilted gantry as if it lay across the table, to be scanned in its own plane.

    Its place in the patient is lost. Anything else is returned as it is.
    """
    tilt = abs(image.geometry.affine[:2, 2]).max()
    if image.shape[2] != 1 or tilt <= 1e-4 * image.geometry.spacing[2]:
        return image
    size = zip(image.shape, image.geometry.spacing, strict=True)
    x, y, z = (-(n - 1) / 2 * step for n, step in size)
    return image.replace(geometry=Geometry.from_spacing(image.shape, image.geometry.spacing, (x, y, z)))
