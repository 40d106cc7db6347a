"""Filtered backprojection: parallel beams, fans with flat and curved detectors, and cones on a circle (FDK).

Formulas as in Kak and Slaney, Principles of Computerized Tomographic Imaging (1988), chapter 3; cones
after Feldkamp, Davis and Kress, JOSA A 1:612 (1984). The variance is that of a linear function of independent
rays, covariance of neighbouring filtered bins included: exact but for the variance of the rays themselves,
which comes from their counts. Rays that were not measured are filled (:mod:`.missing_rays`), whole views left
out; what lies beyond the detector is extrapolated (:mod:`.field_of_view`), an error that no variance knows.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.native import load_extension, thread_count
from sagittal.reconstruction.field_of_view import extrapolated, seen_from, sight, truncated_share
from sagittal.reconstruction.geometry import ConeBeam, FanBeam, ParallelBeam, ScanGeometry
from sagittal.reconstruction.missing_rays import fill_missing
from sagittal.reconstruction.projectors import REFERENCE, projector_kernels
from sagittal.reconstruction.redundancy import longer_side, redundancy
from sagittal.reconstruction.scan import Scan, hounsfield
from sagittal.reconstruction.segments import check_grid
from sagittal.volume import Geometry, Volume
from sagittal.volume.phantoms import WATER_PER_MM

__all__ = ["WINDOWS", "Truncation", "Window", "fbp", "fdk"]

Truncation = Literal["extrapolate", "none"]
Window = Literal["ram-lak", "shepp-logan", "cosine", "hann"]
WINDOWS: tuple[Window, ...] = ("ram-lak", "shepp-logan", "cosine", "hann")
"""By how much they keep of high frequencies."""

_native = load_extension()


def fbp(
    scan: Scan,
    grid: Geometry,
    *,
    window: Window = "hann",
    cutoff: float = 1.0,
    truncation: Truncation = "extrapolate",
    variance: bool = False,
    mu_water: float = WATER_PER_MM,
) -> Volume:
    """Reconstruct a parallel or fan-beam scan by filtered backprojection.

    Args:
        scan: Views over half a turn or more (fans: half a turn and the fan's angle).
        grid: Where the voxels are to lie.
        window: What the ramp is multiplied by.
        cutoff: Where the window ends, as a share of the highest frequency of the detector.
        truncation: What is done where the object reaches beyond the detector: "extrapolate" continues
            projections as those of a water cylinder, "none" ends them.
        variance: Also compute each voxel's variance; the scan must say its photons.
        mu_water: Attenuation of water, 1/mm.

    Returns:
        A volume in HU.

    Raises:
        GeometryError: The grid does not suit the scanner.
        InputError: A cone-beam scan, too few views, an unknown window, or a variance without photons.
    """
    if isinstance(scan.geometry, ConeBeam):
        raise InputError("cone beams are reconstructed by fdk", value=scan.geometry.kind)
    image, doubt = _reconstruct(scan, grid, window, cutoff, truncation, mu_water, variance)
    return hounsfield(image, grid, mu_water, variance=doubt, facts={"method": "fbp", "window": window})


def fdk(
    scan: Scan,
    grid: Geometry,
    *,
    window: Window = "hann",
    cutoff: float = 1.0,
    truncation: Truncation = "extrapolate",
    variance: bool = False,
    mu_water: float = WATER_PER_MM,
) -> Volume:
    """Reconstruct a circular cone-beam scan; exact in the source's plane, approximate away from it.

    Args:
        scan: Views over a turn, or over half a turn and the fan's angle.
        grid: Where the voxels are to lie.
        window: What the ramp is multiplied by.
        cutoff: Where the window ends, as a share of the highest frequency of the detector.
        truncation: What is done where the object reaches beyond the detector: "extrapolate" continues
            projections as those of a water cylinder, "none" ends them.
        variance: Also compute each voxel's variance; the scan must say its photons.
        mu_water: Attenuation of water, 1/mm.

    Returns:
        A volume in HU.

    Raises:
        GeometryError: The grid does not suit the scanner.
        InputError: No cone beam, a helix, too few views, or a variance without photons.
    """
    if not isinstance(scan.geometry, ConeBeam) or scan.geometry.pitch != 0:
        kind = "helix" if isinstance(scan.geometry, ConeBeam) else scan.geometry.kind
        raise InputError("fdk is for circular cone beams", value=kind, expected="a cone without pitch")
    image, doubt = _reconstruct(scan, grid, window, cutoff, truncation, mu_water, variance)
    return hounsfield(image, grid, mu_water, variance=doubt, facts={"method": "fdk", "window": window})


def _reconstruct(
    scan: Scan,
    grid: Geometry,
    window: Window,
    cutoff: float,
    truncation: Truncation,
    mu_water: float,
    with_variance: bool,
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    check_grid(scan.geometry, grid)
    geometry, rays, doubt = _complete(scan, with_variance)
    beyond = _beyond(scan, truncation)
    weight = _padded(_ray_weights(geometry) * redundancy(geometry)[:, None, :], geometry, beyond)
    ramp = _ramp(geometry, window, cutoff, beyond)
    filtered = _convolved(extrapolated(rays, geometry, beyond, mu_water) * weight, ramp)
    image = smeared(geometry, grid, filtered)
    if doubt is None:
        return image, None
    doubt = np.pad(doubt, ((0, 0), (0, 0), (beyond, beyond))) * weight**2
    kernel = np.fft.irfft(ramp)
    each = _convolved(doubt, np.fft.rfft(kernel**2))
    # Covariance of a filtered bin with the next one: the sum over rays k of h(u - k) h(u + 1 - k).
    both = _convolved(doubt, np.fft.rfft(kernel * np.roll(kernel, -1)))
    return image, np.maximum(smeared(geometry, grid, each, both), 0)


def _beyond(scan: Scan, truncation: Truncation) -> int:
    """Return by how many bins projections are made longer on either side.

    Where the object is truncated, by half the detector; where one side of the detector is short, until both
    are as long: what is filtered there does not end with the detector.
    """
    if truncation not in ("extrapolate", "none"):
        raise InputError(
            "there is no such treatment", source="truncation", value=truncation, expected="extrapolate, none"
        )
    geometry = scan.geometry
    cut = truncation == "extrapolate" and truncated_share(scan) > 0
    short = math.ceil(2 * abs(geometry.offset)) if longer_side(geometry) else 0
    return max(geometry.bins // 2 if cut else 0, short)


def _padded(weight: NDArray[np.float64], geometry: ScanGeometry, beyond: int) -> NDArray[np.float64]:
    """Return the weights of longer projections: as at the end, and 0 where the other side sees all."""
    found = np.pad(weight, ((0, 0), (0, 0), (beyond, beyond)), mode="edge")
    side = longer_side(geometry)
    if side and beyond:
        found[..., slice(beyond) if side > 0 else slice(-beyond, None)] = 0
    return found


def _complete(
    scan: Scan, with_variance: bool
) -> tuple[ScanGeometry, NDArray[np.floating[Any]], NDArray[np.float64] | None]:
    """Return geometry, rays and their variance without the views that are missing, other gaps filled."""
    doubt = scan.variance if with_variance else None
    if scan.missing is None:
        return scan.geometry, scan.sinogram, doubt
    kept = ~scan.missing.all(axis=(1, 2))
    filled = fill_missing(scan.sinogram[kept], scan.missing[kept])
    angles = tuple(np.asarray(scan.geometry.angles)[kept])
    geometry = dataclasses.replace(scan.geometry, angles=angles)
    return geometry, filled.sinogram, None if doubt is None else filled.carry(doubt[kept])


def _ramp(geometry: ScanGeometry, window: Window, cutoff: float, beyond: int) -> NDArray[np.complex128]:
    """Return the filter's transfer function for real FFTs, from its samples in space.

    Rays are as long as the detector, and longer by ``beyond`` bins on either side.
    """
    if window not in WINDOWS:
        raise InputError(
            "there is no such window", source="window", value=window, expected=", ".join(WINDOWS)
        )
    if not 0 < cutoff <= 1:
        raise InputError(
            "the cutoff is out of range", source="cutoff", value=cutoff, expected="above 0, at most 1"
        )
    size = 1 << (2 * (geometry.bins + 2 * beyond) - 1).bit_length()
    n = np.fft.fftfreq(size, 1 / size)
    kernel: NDArray[np.float64]
    if isinstance(geometry, FanBeam | ConeBeam) and geometry.curved:
        step = geometry.bin_width / geometry.detector_distance
        with np.errstate(divide="ignore", invalid="ignore"):
            # Beyond the detector's width nothing is filtered; the sine must not turn round there.
            reach = np.clip(n * step, -math.pi / 2, math.pi / 2)
            kernel = np.asarray(-1 / (math.pi * np.sin(reach)) ** 2)
    else:
        step = _virtual_width(geometry)
        with np.errstate(divide="ignore"):
            kernel = np.asarray(-1 / (math.pi * n * step) ** 2)
    kernel[n % 2 == 0] = 0
    kernel[0] = 1 / (4 * step**2)
    frequency = np.fft.rfftfreq(size) * 2 / cutoff  # 1 where the window ends
    shape = {
        "ram-lak": np.ones_like(frequency),
        "shepp-logan": np.sinc(frequency / 2),
        "cosine": np.cos(math.pi / 2 * frequency),
        "hann": (1 + np.cos(math.pi * frequency)) / 2,
    }[window]
    return np.asarray(np.fft.rfft(kernel).real * step * np.where(frequency <= 1, shape, 0), np.complex128)


def _virtual_width(geometry: ScanGeometry) -> float:
    """Return the width of a bin of a flat detector moved to the axis, mm."""
    if isinstance(geometry, ParallelBeam):
        return geometry.bin_width
    return geometry.bin_width * geometry.source_distance / geometry.detector_distance


def _ray_weights(geometry: ScanGeometry) -> NDArray[np.float64]:
    """Return what a ray is multiplied by before filtering, shape (rows, bins)."""
    if isinstance(geometry, ParallelBeam):
        return np.ones((1, geometry.bins))
    along = (geometry.edges[1:] + geometry.edges[:-1]) / 2 / geometry.detector_distance
    fan = np.asarray(along if geometry.curved else np.arctan(along))
    up: NDArray[np.floating[Any]] = np.zeros((1, 1))
    if isinstance(geometry, ConeBeam):
        rows = np.arange(geometry.rows) - geometry.rows / 2 + 0.5 + geometry.row_offset
        up = (rows * geometry.row_height / geometry.detector_distance)[:, None]
    if geometry.curved:
        return np.asarray(geometry.source_distance * np.cos(fan) / np.sqrt(1 + up**2))
    return np.asarray(1 / np.sqrt(1 + np.tan(fan) ** 2 + up**2))


def _convolved(rays: NDArray[Any], transfer: NDArray[np.complex128]) -> NDArray[np.float32]:
    size = 2 * (len(transfer) - 1)
    found = np.empty(rays.shape, np.float32)
    for view, given in enumerate(rays):
        found[view] = np.fft.irfft(np.fft.rfft(given, size, axis=-1) * transfer, size, axis=-1)[
            :, : rays.shape[-1]
        ]
    return found


def smeared(
    geometry: ScanGeometry,
    grid: Geometry,
    rays: NDArray[np.float32],
    both: NDArray[np.float32] | None = None,
    *,
    kernel: str | None = None,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Return the sum over views of rays at each voxel, weighted by distance, or of their variances.

    Args:
        geometry: The scanner.
        grid: The voxels.
        rays: Filtered rays, or their variances; shape (views, rows, bins). They may be longer than the
            detector, by as many bins on either side.
        both: The covariance of each bin with the next, which says that rays are variances.
        kernel: As for :class:`~sagittal.reconstruction.projectors.Projector`.
        threads: As there.
    """
    kernel = kernel or projector_kernels()[-1]
    if kernel == REFERENCE:
        return _smeared(geometry, grid, rays, both)
    image = np.zeros(grid.shape, np.float32)
    first = rays.shape[-1] / 2 - geometry.offset - 0.5
    detector, cone = "parallel", None
    scanner = (1 / geometry.bin_width, first, 1.0, 1.0)
    if not isinstance(geometry, ParallelBeam):
        detector = "curved" if geometry.curved else "flat"
        distance = geometry.detector_distance
        scanner = (distance / geometry.bin_width, first, geometry.source_distance, distance)
    if isinstance(geometry, ConeBeam):
        above = np.array([grid.affine[2, 3] - geometry.centre[2], grid.affine[2, 2]]) / geometry.row_height
        cone = (geometry.rows / 2 - 0.5 - geometry.row_offset, *above.tolist())
    sights = np.array([np.concatenate(sight(geometry, grid, angle)) for angle in geometry.angles])
    many = thread_count() if threads is None else threads
    _native.smear(kernel, many, detector, sights, scanner, cone, rays, both, image)
    return image


def _smeared(
    geometry: ScanGeometry, grid: Geometry, rays: NDArray[np.float32], both: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Return what :func:`smeared` does, by numpy."""
    bins = rays.shape[-1]
    beyond = (bins - geometry.bins) // 2
    image = np.zeros(grid.shape, np.float32)
    heights = grid.affine[2, 3] + grid.affine[2, 2] * np.arange(grid.shape[2])
    for view in range(len(geometry.angles)):
        place, weight, grow = seen_from(geometry, grid, view)
        place = place + beyond
        inside = (place >= 0) & (place <= bins - 1)
        i, j = np.nonzero(inside)
        place, weight, grow = place[i, j], weight[i, j], grow[i, j]
        low = np.minimum(place.astype(np.int64), bins - 2) if bins > 1 else np.zeros_like(i)
        part = (place - low).astype(np.float32)[:, None]
        next_ = np.minimum(low + 1, bins - 1)
        factor = (weight if both is None else weight**2).astype(np.float32)[:, None]
        first, second = rays[view].T[low], rays[view].T[next_]  # (pixels, rows)
        if both is None:
            value = first + part * (second - first)
        else:
            value = (1 - part) ** 2 * first + part**2 * second + 2 * part * (1 - part) * both[view].T[low]
        if not isinstance(geometry, ConeBeam):
            image[i, j] += factor * value
            continue
        middle = geometry.rows / 2 - 0.5 - geometry.row_offset
        row = middle + (heights[None, :] - geometry.centre[2]) * grow[:, None] / geometry.row_height
        seen = (row >= 0) & (row <= geometry.rows - 1)
        under = np.clip(row.astype(np.int64), 0, max(geometry.rows - 2, 0))
        over = np.minimum(under + 1, geometry.rows - 1)
        share = np.clip(row - under, 0, 1).astype(np.float32)
        lower, upper = np.take_along_axis(value, under, axis=1), np.take_along_axis(value, over, axis=1)
        if both is None:
            at_height = lower + share * (upper - lower)
        else:
            at_height = (1 - share) ** 2 * lower + share**2 * upper
        image[i, j] += np.where(seen, factor * at_height, 0)
    return image
