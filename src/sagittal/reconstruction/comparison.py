"""How far a reconstructed image is from what was scanned, with thresholds that suit CT."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import
from sagittal.volume import Volume, require_same_space
from sagittal.volume.image_metrics import (
    edge_band_rmse,
    flat_noise,
    gradient_magnitude,
    rmse,
    structural_similarity,
)

__all__ = ["AIR_HU", "EDGE_HU", "FLAT_HU", "held", "quality"]

EDGE_HU = 100.0
"""Step of the truth between neighbouring voxels, from which they are at an edge."""

FLAT_HU = 20.0
"""Step below which the truth is flat, where nothing steeper is within two voxels."""

AIR_HU = -900.0
"""What the truth must exceed to count as flat: noise of air is cut off where attenuation is held at 0."""


def quality(image: Volume, truth: Volume) -> dict[str, float | None]:
    """Return what separates an image from the truth, both in HU.

    Returns:
        ``rmse`` over all voxels, HU; ``ssim``, the mean structural similarity of the slices, over the span of
        the truth; ``edge_rmse`` within one voxel of the truth's edges, HU; ``flat_noise``, the standard
        deviation within the truth's flat regions, air left out, HU. None where there is nothing to measure:
        no edge, no flat region, slices below 11 x 11.

    Raises:
        InputError: Another unit than HU.
        GeometryError: The volumes do not lie in the same place.
        MissingDependencyError: scipy is not installed.
    """
    for volume in (image, truth):
        if volume.unit != "HU":
            raise InputError("images are compared in HU", source="unit", value=volume.unit)
    step = truth.geometry.spacing[0]
    return {
        "rmse": rmse(image, truth),
        "ssim": _or_none(lambda: structural_similarity(image, truth, data_range=float(np.ptp(truth.array)))),
        "edge_rmse": _or_none(
            lambda: edge_band_rmse(image, truth, threshold=EDGE_HU / (2 * step), band_mm=1.01 * step)
        ),
        "flat_noise": _or_none(
            lambda: flat_noise(
                image,
                truth,
                threshold=FLAT_HU / (2 * step),  # a step spreads over two voxels of a central difference
                margin_mm=2 * step,
                mask=truth.array > AIR_HU,
            )
        ),
    }


def held(image: Volume, truth: Volume, *, deviations: float = 1.96) -> dict[str, float | None]:
    """Return in which share of the voxels an image's standard deviations reach from it to the truth.

    Args:
        image: In HU, with a variance.
        truth: In HU, on the same grid.
        deviations: How many; 1.96 hold 95 % of a Gaussian error.

    Returns:
        ``flat`` and ``edge``: the share where the truth is flat and at its edges, the places that
        :func:`quality` measures in. None where the truth has no such place.

    Raises:
        InputError: The image has no variance, or another unit than HU.
        GeometryError: The volumes do not lie in the same place.
        MissingDependencyError: scipy is not installed.
    """
    if image.variance is None:
        raise InputError("the image has no variance", expected="one that was reconstructed with it")
    for volume in (image, truth):
        if volume.unit != "HU":
            raise InputError("images are compared in HU", source="unit", value=volume.unit)
    require_same_space(image, truth)
    step = truth.geometry.spacing[0]
    off = np.abs(image.array.astype(np.float64) - truth.array)
    inside = off <= deviations * np.sqrt(image.variance.astype(np.float64))
    flat = (_to_edges(truth, FLAT_HU / (2 * step)) > 2 * step) & (truth.array > AIR_HU)
    edge = _to_edges(truth, EDGE_HU / (2 * step)) <= 1.01 * step
    places = {"flat": flat, "edge": edge}
    return {name: float(inside[place].mean()) if place.any() else None for name, place in places.items()}


def _to_edges(truth: Volume, threshold: float) -> NDArray[np.float64]:
    edges = gradient_magnitude(truth) > threshold
    if not edges.any():
        return np.full(truth.shape, np.inf)
    distance = optional_import("scipy.ndimage").distance_transform_edt
    return np.asarray(distance(~edges, sampling=truth.geometry.spacing))


def _or_none(measure: Callable[[], float]) -> float | None:
    try:
        return measure()
    except InputError:
        return None
