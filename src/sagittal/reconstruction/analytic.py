"""Filtered backprojection: parallel beams, fans with flat and curved detectors, and cones on a circle (FDK).

Formulas as in Kak and Slaney, Principles of Computerized Tomographic Imaging (1988), chapter 3; half
scans after Parker, Medical Physics 9:254 (1982); cones after Feldkamp, Davis and Kress, JOSA A 1:612
(1984). The variance is that of a linear function of independent rays, covariance of neighbouring filtered
bins included: exact but for the variance of the rays themselves, which comes from their counts.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.reconstruction.geometry import ConeBeam, FanBeam, ParallelBeam, ScanGeometry
from sagittal.reconstruction.scan import Scan, hounsfield
from sagittal.reconstruction.segments import check_grid
from sagittal.volume import Geometry, Volume
from sagittal.volume.phantoms import WATER_PER_MM

__all__ = ["WINDOWS", "Window", "coverage", "fbp", "fdk", "redundancy"]

Window = Literal["ram-lak", "shepp-logan", "cosine", "hann"]
WINDOWS: tuple[Window, ...] = ("ram-lak", "shepp-logan", "cosine", "hann")
"""By how much they keep of high frequencies."""

_TURN = 2 * math.pi


def fbp(
    scan: Scan,
    grid: Geometry,
    *,
    window: Window = "hann",
    cutoff: float = 1.0,
    variance: bool = False,
    mu_water: float = WATER_PER_MM,
) -> Volume:
    """Reconstruct a parallel or fan-beam scan by filtered backprojection.

    Args:
        scan: Views over half a turn or more (fans: half a turn and the fan's angle).
        grid: Where the voxels are to lie.
        window: What the ramp is multiplied by.
        cutoff: Where the window ends, as a share of the highest frequency of the detector.
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
    image, doubt = _reconstruct(scan, grid, window, cutoff, variance)
    return hounsfield(image, grid, mu_water, variance=doubt, facts={"method": "fbp", "window": window})


def fdk(
    scan: Scan,
    grid: Geometry,
    *,
    window: Window = "hann",
    cutoff: float = 1.0,
    variance: bool = False,
    mu_water: float = WATER_PER_MM,
) -> Volume:
    """Reconstruct a circular cone-beam scan; exact in the source's plane, approximate away from it.

    Args:
        scan: Views over a turn, or over half a turn and the fan's angle.
        grid: Where the voxels are to lie.
        window: What the ramp is multiplied by.
        cutoff: Where the window ends, as a share of the highest frequency of the detector.
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
    image, doubt = _reconstruct(scan, grid, window, cutoff, variance)
    return hounsfield(image, grid, mu_water, variance=doubt, facts={"method": "fdk", "window": window})


def coverage(geometry: ScanGeometry, grid: Geometry) -> NDArray[np.float32]:
    """Return the share of views that see each voxel's column, shape (i, j); less than 1: truncated."""
    seen = np.zeros(grid.shape[:2], np.float32)
    for view in range(len(geometry.angles)):
        place, _, _ = _seen_from(geometry, grid, view)
        seen += (place >= -0.5) & (place <= geometry.bins - 0.5)
    return np.asarray(seen / np.float32(len(geometry.angles)))


def redundancy(geometry: ScanGeometry) -> NDArray[np.float64]:
    """Return the weight of each ray, radians, shape (views, bins): a line seen twice counts half.

    Parallel views share half a turn by the gaps between them; a fan's full turn counts each ray half; less
    than that takes Parker's weights.

    Raises:
        InputError: A fan that turns by less than half a turn and its own angle.
    """
    angles = np.asarray(geometry.angles)
    if isinstance(geometry, ParallelBeam):
        return np.tile(_gaps(angles, math.pi)[:, None], (1, geometry.bins))
    step = float(np.median(np.abs(np.diff(angles)))) if len(angles) > 1 else 0.0
    total = float(np.ptp(angles)) + step
    if total > _TURN - 0.51 * step:
        return np.tile(_gaps(angles, _TURN)[:, None] / 2, (1, geometry.bins))
    edges = geometry.fan_angles
    fan = (edges[1:] + edges[:-1]) / 2
    over, widest = (total - math.pi) / 2, float(np.abs(edges).max())
    if over < widest - 1e-9:
        raise InputError(
            "the views cover too little of a turn",
            source="angles",
            value=f"{math.degrees(total):.0f} degrees",
            expected=f"{180 + 2 * math.degrees(widest):.0f} or more; iterative methods take fewer",
        )
    sense = 1.0 if angles[-1] > angles[0] else -1.0
    turn = (np.abs(angles - angles[0]) + step / 2)[:, None]
    gamma = np.broadcast_to(sense * fan, (len(angles), geometry.bins))
    rise, fall = over + gamma, over - gamma
    weight = np.ones_like(gamma)
    begins, ends = turn < 2 * rise, turn > math.pi + 2 * gamma
    weight[begins] = (np.sin(math.pi / 4 * turn / np.maximum(rise, 1e-9)) ** 2)[begins]
    weight[ends] = (np.sin(math.pi / 4 * (math.pi + 2 * over - turn) / np.maximum(fall, 1e-9)) ** 2)[ends]
    return weight * step


def _gaps(angles: NDArray[np.float64], period: float) -> NDArray[np.float64]:
    """Return how much of the period each angle stands for; a wide gap is not made up for."""
    if len(angles) == 1:
        return np.array([period])
    order = np.argsort(angles % period)
    places = (angles % period)[order]
    after = np.diff(np.append(places, places[0] + period))
    after = np.minimum(after, 3 * max(float(np.median(after)), period / len(angles)))
    found = np.empty(len(angles))
    found[order] = (after + np.roll(after, 1)) / 2
    return found


def _reconstruct(
    scan: Scan, grid: Geometry, window: Window, cutoff: float, with_variance: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    geometry = scan.geometry
    check_grid(geometry, grid)
    ramp = _ramp(geometry, window, cutoff)
    weight = _ray_weights(geometry) * redundancy(geometry)[:, None, :]
    filtered = _convolved(scan.sinogram * weight, ramp)
    image = _smeared(geometry, grid, filtered, None)
    if not with_variance:
        return image, None
    doubt = scan.variance * weight**2
    kernel = np.fft.irfft(ramp)
    each = _convolved(doubt, np.fft.rfft(kernel**2))
    # Covariance of a filtered bin with the next one: the sum over rays k of h(u - k) h(u + 1 - k).
    both = _convolved(doubt, np.fft.rfft(kernel * np.roll(kernel, -1)))
    return image, np.maximum(_smeared(geometry, grid, each, both), 0)


def _ramp(geometry: ScanGeometry, window: Window, cutoff: float) -> NDArray[np.complex128]:
    """Return the filter's transfer function for real FFTs, from its samples in space."""
    if window not in WINDOWS:
        raise InputError(
            "there is no such window", source="window", value=window, expected=", ".join(WINDOWS)
        )
    if not 0 < cutoff <= 1:
        raise InputError(
            "the cutoff is out of range", source="cutoff", value=cutoff, expected="above 0, at most 1"
        )
    size = 1 << (2 * geometry.bins - 1).bit_length()
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


def _smeared(
    geometry: ScanGeometry, grid: Geometry, rays: NDArray[np.float32], both: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Return the sum over views of rays at each voxel, or with ``both`` of their interpolation's variance."""
    image = np.zeros(grid.shape, np.float32)
    heights = grid.affine[2, 3] + grid.affine[2, 2] * np.arange(grid.shape[2])
    for view in range(len(geometry.angles)):
        place, weight, grow = _seen_from(geometry, grid, view)
        inside = (place >= 0) & (place <= geometry.bins - 1)
        i, j = np.nonzero(inside)
        place, weight, grow = place[i, j], weight[i, j], grow[i, j]
        low = np.minimum(place.astype(np.int64), geometry.bins - 2) if geometry.bins > 1 else np.zeros_like(i)
        part = (place - low).astype(np.float32)[:, None]
        next_ = np.minimum(low + 1, geometry.bins - 1)
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


def _seen_from(
    geometry: ScanGeometry, grid: Geometry, view: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return place (in bins, from the first's middle), weight and magnification of each pixel, (i, j)."""
    angle = geometry.angles[view]
    u, d = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    plane, zero = grid.affine[:2, :2], grid.affine[:2, 3] - np.asarray(geometry.centre[:2])
    i, j = np.arange(grid.shape[0])[:, None], np.arange(grid.shape[1])
    across = (u @ plane[:, 0]) * i + (u @ plane[:, 1]) * j + u @ zero
    first = geometry.bins / 2 - geometry.offset - 0.5
    if isinstance(geometry, ParallelBeam):
        return across / geometry.bin_width + first, np.ones_like(across), np.ones_like(across)
    deep = (d @ plane[:, 0]) * i + (d @ plane[:, 1]) * j + d @ zero + geometry.source_distance
    distance = geometry.detector_distance
    if geometry.curved:
        away = np.hypot(across, deep)
        return np.arctan2(across, deep) * distance / geometry.bin_width + first, 1 / away**2, distance / away
    weight = (geometry.source_distance / deep) ** 2
    return across / deep * distance / geometry.bin_width + first, weight, distance / deep
