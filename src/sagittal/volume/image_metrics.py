"""How far an image is from its reference: error, structure, edges, noise, contrast and resolution.

Lengths are mm and follow the grid's spacing. What has nothing to measure (no edge, no flat region, an empty
mask) is an :class:`~sagittal.core.errors.InputError`; no function returns NaN.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import
from sagittal.volume.geometry import Geometry
from sagittal.volume.volume import Volume, require_same_space

__all__ = [
    "contrast_recovery",
    "edge_band_rmse",
    "edge_mask",
    "edge_spread_width",
    "flat_noise",
    "gradient_magnitude",
    "match_resolution",
    "rmse",
    "structural_similarity",
]

_WIDTH_OF_SIGMA = 2.5631  # 10 to 90 % of a Gaussian edge, in standard deviations
_SSIM_SIGMA, _SSIM_TRUNCATE, _K1, _K2 = 1.5, 3.5, 0.01, 0.03


def rmse(image: Volume, reference: Volume, *, mask: NDArray[np.bool_] | None = None) -> float:
    """Return the root mean square difference, in the images' unit.

    Args:
        image: What is judged.
        reference: What it should be.
        mask: Voxels that count, shape of the images; all by default.

    Raises:
        InputError: Another unit, no voxel in the mask.
        GeometryError: Another grid.
    """
    error = _difference(image, reference)[_mask(mask, reference)]
    return float(np.sqrt(np.mean(error**2)))


def structural_similarity(
    image: Volume, reference: Volume, *, data_range: float, mask: NDArray[np.bool_] | None = None
) -> float:
    """Return the mean structural similarity of the slices (Wang et al., IEEE Trans. Image Process. 13, 2004).

    Gaussian windows of 1.5 voxels in the plane of the first two axes, cut at radius 5; K1 = 0.01, K2 = 0.03;
    population covariances; mirrored borders. Voxels less than 5 from the slice's border do not count. The
    same as scikit-image 0.26's ``structural_similarity(..., gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False)``, with which it agreed to the last bit on random slices.

    Args:
        image: What is judged.
        reference: What it should be.
        data_range: Span of the values that matter, in the unit; no span is right for every image, so there
            is none by default.
        mask: Voxels whose windows count; all inside the border by default.

    Raises:
        InputError: A slice smaller than 11 x 11, a range that is not positive, another unit, nothing in the
            mask.
        GeometryError: Another grid.
    """
    _same(image, reference)
    if not (data_range > 0 and math.isfinite(data_range)):
        raise InputError("the range must be positive", source="data_range", value=data_range)
    radius = int(_SSIM_TRUNCATE * _SSIM_SIGMA + 0.5)
    if min(reference.shape[:2]) < 2 * radius + 1:
        raise InputError(
            "the slices are too small", value=reference.shape, expected=f"{2 * radius + 1} or more across"
        )
    gaussian_filter = optional_import("scipy.ndimage").gaussian_filter

    def mean(values: NDArray[Any]) -> NDArray[np.float64]:
        sigma = (_SSIM_SIGMA, _SSIM_SIGMA, 0)
        return np.asarray(gaussian_filter(values, sigma, truncate=_SSIM_TRUNCATE, mode="reflect"))

    x, y = image.array.astype(np.float64), reference.array.astype(np.float64)
    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    score = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    score /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    inside = np.zeros(reference.shape, bool)
    inside[radius:-radius, radius:-radius] = True
    if mask is not None:
        inside &= _mask(mask, reference)
    if not inside.any():
        raise InputError(
            "no voxel of the mask lies inside the border", source="mask", expected=f"{radius} from it"
        )
    return float(score[inside].mean())


def gradient_magnitude(volume: Volume) -> NDArray[np.float64]:
    """Return the gradient's length in the unit per mm, by central differences; single voxels have none."""
    total = np.zeros(volume.shape)
    array = volume.array.astype(np.float64)
    for axis, step in enumerate(volume.geometry.spacing):
        if volume.shape[axis] > 1:
            total += np.gradient(array, step, axis=axis) ** 2
    return np.asarray(np.sqrt(total))


def edge_mask(reference: Volume, threshold: float) -> NDArray[np.bool_]:
    """Return the voxels where the reference rises by more than ``threshold`` in its unit per mm.

    Raises:
        InputError: There is none.
    """
    found = gradient_magnitude(reference) > threshold
    if not found.any():
        raise InputError(
            "the reference has no edge", source="threshold", value=threshold, expected="a lower one"
        )
    return np.asarray(found)


def edge_band_rmse(image: Volume, reference: Volume, *, threshold: float, band_mm: float) -> float:
    """Return the root mean square difference within ``band_mm`` of the reference's edges.

    Raises:
        InputError: There is no edge, a negative band, another unit.
        GeometryError: Another grid.
    """
    return rmse(image, reference, mask=_distance(reference, threshold, band_mm) <= band_mm)


def flat_noise(
    image: Volume,
    reference: Volume,
    *,
    threshold: float,
    margin_mm: float,
    mask: NDArray[np.bool_] | None = None,
    width_mm: float | None = None,
    matched_width_mm: float | None = None,
) -> float:
    """Return the noise where the reference is flat, in the unit: a standard deviation within regions.

    Flat is what lies further than ``margin_mm`` from any voxel whose gradient exceeds ``threshold``. The
    difference to the reference is taken about its mean within each connected flat region, so that a bias of
    a region is no noise.

    Images of unlike sharpness are compared at one resolution: given an image's own edge-spread width (see
    :func:`edge_spread_width`) and the width to compare at, it is blurred up to that first, by
    :func:`match_resolution`.

    Args:
        image: What is judged.
        reference: What it should be.
        threshold: Gradient of an edge, in the unit per mm.
        margin_mm: Distance that keeps the edges' blur out.
        mask: Voxels that may count, shape of the images; all by default.
        width_mm: The image's own 10 to 90 % edge-spread width.
        matched_width_mm: The width that all images are compared at.

    Raises:
        InputError: No edge-free region of two voxels in the mask, one width without the other, another unit.
        GeometryError: Another grid.
    """
    if (width_mm is None) != (matched_width_mm is None):
        raise InputError(
            "one width is missing",
            value=(width_mm, matched_width_mm),
            expected="the image's own and the matched one",
        )
    difference = image.with_array(_difference(image, reference))
    if width_mm is not None and matched_width_mm is not None:
        difference = match_resolution(difference, width_mm, matched_width_mm)
    flat = gradient_magnitude(reference) <= threshold
    if not flat.all():
        flat = _distance(reference, threshold, margin_mm) > margin_mm
    flat &= _mask(mask, reference)
    regions, count = optional_import("scipy.ndimage").label(flat)
    values, labels = difference.array[flat], regions[flat] - 1
    if len(values) - count < 1:
        raise InputError(
            "no flat region is left",
            source="margin_mm",
            value=f"{len(values)} voxels",
            expected="a smaller margin",
        )
    sizes = np.bincount(labels, minlength=count)
    means = np.bincount(labels, weights=values, minlength=count) / sizes
    return float(np.sqrt(np.sum((values - means[labels]) ** 2) / (len(values) - count)))


def match_resolution(image: Volume, width_mm: float, matched_width_mm: float) -> Volume:
    """Return the image blurred so that an edge of ``width_mm`` (10 to 90 %) becomes as wide as asked.

    The blur is a Gaussian; widths add as squares, exactly so where the image's own edges are Gaussian. Axes
    of one voxel are left alone.

    Raises:
        InputError: The image is less sharp already, or a width is not positive.
    """
    if not 0 < width_mm <= matched_width_mm < math.inf:
        raise InputError(
            "blurring cannot sharpen",
            source="matched_width_mm",
            value=f"{matched_width_mm:g} from {width_mm:g}",
            expected="positive widths, the matched one not below the image's own",
        )
    sigma = math.sqrt(matched_width_mm**2 - width_mm**2) / _WIDTH_OF_SIGMA
    along = [sigma / s if n > 1 else 0.0 for s, n in zip(image.geometry.spacing, image.shape, strict=True)]
    blurred = optional_import("scipy.ndimage").gaussian_filter(
        image.array.astype(np.float64), along, mode="nearest"
    )
    return image.with_array(blurred)


def contrast_recovery(
    image: Volume,
    *,
    centre: ArrayLike,
    radius: float,
    contrast: float,
    margin_mm: float = 0.0,
    ring_mm: float = 3.0,
) -> float:
    """Return the share of a disc's contrast that an image shows: 1 is all, 0 none.

    The mean within the disc, less ``margin_mm`` at its rim, is compared with the mean of a ring of
    ``ring_mm`` around it that begins ``margin_mm`` outside. The disc is a circle in the plane of the first
    two axes, through all slices.

    Args:
        image: What is judged.
        centre: The disc's middle, RAS+ mm; its place along the third axis does not count.
        radius: Its radius, mm.
        contrast: What it truly adds, in the image's unit.
        margin_mm: What is left out on both sides of the rim.
        ring_mm: Width of the ring.

    Raises:
        InputError: No contrast, or no voxel in the disc or the ring.
    """
    if not contrast or not math.isfinite(contrast):
        raise InputError("the disc has no contrast", source="contrast", value=contrast)
    geometry = image.geometry
    place = geometry.world_to_index(np.asarray(centre, dtype=np.float64))
    index = np.stack(np.meshgrid(*map(np.arange, image.shape[:2]), indexing="ij"), axis=-1) - place[:2]
    distance = np.linalg.norm(index @ geometry.affine[:3, :2].T, axis=-1)
    disc = distance <= radius - margin_mm
    ring = (distance > radius + margin_mm) & (distance <= radius + margin_mm + ring_mm)
    for name, region in (("disc", disc), ("ring", ring)):
        if not region.any():
            raise InputError(
                f"no voxel's middle lies in the {name}",
                value=f"radius {radius:g}, margin {margin_mm:g}, ring {ring_mm:g} mm",
                expected=f"voxels smaller than that, of {geometry.spacing[0]:g} mm here",
            )
    array = image.array.astype(np.float64)
    return float((array[disc].mean() - array[ring].mean()) / contrast)


def edge_spread_width(
    image: Volume, points: ArrayLike, normals: ArrayLike, *, reach_mm: float, step_mm: float | None = None
) -> float:
    """Return how wide an edge is: the distance over which its profile rises from 10 to 90 %, mm.

    The interpolation widens: a Gaussian edge of width w on a grid of spacing h reads about sqrt(w^2 + 1.1
    h^2). Profiles along the normals, interpolated linearly, are averaged. Their levels are the means of the
    first and the last quarter; the width lies between the last place below 10 % before, and the first above
    90 % after, the middle.

    Args:
        image: What is judged.
        points: Places on the edge, shape (n, 3) or (3,), RAS+ mm.
        normals: Directions across it, of the same shape; any length.
        reach_mm: How far a profile goes to each side.
        step_mm: Distance of its samples; a tenth of the smallest spacing by default.

    Raises:
        InputError: A profile leaves the grid, nothing rises, or the reach is too short for the edge.
    """
    at, across = np.atleast_2d(np.asarray(points, float)), np.atleast_2d(np.asarray(normals, float))
    lengths = np.linalg.norm(across, axis=1)
    if at.shape != across.shape or at.shape[1] != 3 or not np.all(lengths > 0):
        raise InputError(
            "an edge needs points with normals", value=(at.shape, across.shape), expected="(n, 3) each"
        )
    step = step_mm or min(image.geometry.spacing) / 10
    count = math.ceil(reach_mm / step)
    if count < 4:
        raise InputError(
            "the profile is too short", source="reach_mm", value=reach_mm, expected=f"{4 * step:g} or more"
        )
    places = np.arange(-count, count + 1) * step
    index = _inside(image.geometry, at[:, None] + places[:, None] * (across / lengths[:, None])[:, None])
    array = image.array.astype(np.float64)
    found = optional_import("scipy.ndimage").map_coordinates(
        array, np.moveaxis(index, -1, 0), order=1, mode="nearest"
    )
    profile = found.mean(axis=0)
    quarter = max(count // 2, 1)
    low, high = profile[:quarter].mean(), profile[-quarter:].mean()
    if abs(high - low) <= 1e-9 * max(abs(high), abs(low), 1e-300):
        raise InputError("nothing rises across the edge", value=f"{low:g} to {high:g}")
    rise = (profile - low) / (high - low)
    middle = int(np.flatnonzero((rise[:-1] < 0.5) & (rise[1:] >= 0.5))[0])
    before, after = np.flatnonzero(rise[: middle + 1] <= 0.1), np.flatnonzero(rise[middle + 1 :] >= 0.9)
    if not len(before) or not len(after):
        raise InputError(
            "the edge is wider than the profile", source="reach_mm", value=reach_mm, expected="more"
        )
    first, last = int(before[-1]), int(after[0]) + middle + 1
    start = first + (0.1 - rise[first]) / (rise[first + 1] - rise[first])
    stop = last - (rise[last] - 0.9) / (rise[last] - rise[last - 1])
    return float((stop - start) * step)


def _inside(geometry: Geometry, points: NDArray[np.float64]) -> NDArray[np.float64]:
    index = geometry.world_to_index(points)
    if np.any(index < -0.5) or np.any(index > np.asarray(geometry.shape) - 0.5):
        raise InputError("a profile leaves the grid", source="reach_mm", expected="points within the image")
    return index


def _distance(reference: Volume, threshold: float, length: float) -> NDArray[np.float64]:
    if not length >= 0:
        raise InputError("a length must not be negative", value=length, expected="mm")
    edges = edge_mask(reference, threshold)
    transform = optional_import("scipy.ndimage").distance_transform_edt
    return np.asarray(transform(~edges, sampling=reference.geometry.spacing))


def _same(image: Volume, reference: Volume) -> None:
    require_same_space(image, reference)
    if image.unit != reference.unit:
        raise InputError("the images have other units", value=f"{image.unit} and {reference.unit}")


def _difference(image: Volume, reference: Volume) -> NDArray[np.float64]:
    _same(image, reference)
    return np.asarray(image.array.astype(np.float64) - reference.array)


def _mask(mask: NDArray[np.bool_] | None, reference: Volume) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(reference.shape, bool)
    if mask.shape != reference.shape or mask.dtype != bool:
        raise InputError(
            "the mask does not fit", value=(mask.dtype, mask.shape), expected=f"bool, {reference.shape}"
        )
    if not mask.any():
        raise InputError("the mask is empty", source="mask", expected="one voxel or more")
    return mask
