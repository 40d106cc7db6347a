"""How far a reconstructed image is from what was scanned."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import
from sagittal.reconstruction.variation import gradient_length
from sagittal.volume import Volume, require_same_space

__all__ = ["EDGE_HU", "FLAT_HU", "quality"]

EDGE_HU = 100.0
"""Step between neighbouring voxels of the truth, from which they are at an edge, with their neighbours."""

FLAT_HU = 20.0
"""Step below which, two voxels around, the truth is flat."""


def quality(image: Volume, truth: Volume) -> dict[str, float | None]:
    """Return what separates an image from the truth, both in HU.

    Returns:
        ``rmse`` over all voxels, HU; ``ssim``, the mean structural similarity of the slices (Wang et al.
        2004, Gaussian window of 1.5 voxels); ``edge_rmse`` at edges of the truth, HU; ``flat_noise``, the
        standard deviation of the error where the truth is flat and no air, HU. None where there is no such
        voxel.

    Raises:
        InputError: Another unit than HU.
        GeometryError: The volumes do not lie in the same place.
        MissingDependencyError: scipy is not installed.
    """
    for volume in (image, truth):
        if volume.unit != "HU":
            raise InputError("images are compared in HU", source="unit", value=volume.unit)
    require_same_space(image, truth)
    ndimage = optional_import("scipy.ndimage")
    given, wanted = image.array.astype(np.float64), truth.array.astype(np.float64)
    error = given - wanted
    step = gradient_length(wanted, truth.geometry)
    near = np.ones([min(3, n) for n in truth.shape], bool)
    wide = np.ones([min(5, n) for n in truth.shape], bool)
    edge = ndimage.binary_dilation(step > EDGE_HU, structure=near)
    flat = ~ndimage.binary_dilation(step > FLAT_HU, structure=wide) & (wanted > -900)
    return {
        "rmse": float(np.sqrt(np.mean(error**2))),
        "ssim": float(
            np.mean([_ssim(given[..., k], wanted[..., k], ndimage) for k in range(given.shape[2])])
        ),
        "edge_rmse": float(np.sqrt(np.mean(error[edge] ** 2))) if edge.any() else None,
        "flat_noise": float(error[flat].std()) if flat.any() else None,
    }


def _ssim(a: NDArray[np.float64], b: NDArray[np.float64], ndimage: object) -> float:
    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(ndimage.gaussian_filter(values, 1.5, truncate=3.5))  # type: ignore[attr-defined]

    extent = float(np.ptp(b)) or 1.0
    first, second = (0.01 * extent) ** 2, (0.03 * extent) ** 2
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, both = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    above = (2 * mean_a * mean_b + first) * (2 * both + second)
    return float((above / ((mean_a**2 + mean_b**2 + first) * (var_a + var_b + second))).mean())
