"""Images for registration: intensities between 0 and 1, on coarser and coarser grids."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import GeometryError, InputError
from sagittal.registration.filters import gaussian
from sagittal.volume import Geometry, Volume
from sagittal.volume.field_maps import inside, nearest, places, sample

__all__ = ["coarsened", "normalised", "on_grid", "weights"]

_TAILS = (0.5, 99.5)  # percent of the voxels: what lies beyond is cut off
_FEWEST = 4  # voxels along an axis that is not a single one


def normalised(volume: Volume, name: str, counted: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Return the intensities from 0 to 1, float32; a half percent at each end is cut off.

    Args:
        volume: The image.
        name: What errors call it.
        counted: Of :func:`weights`: only voxels that count say what 0 and 1 are.

    Raises:
        InputError: The image is constant, or nearly, where it counts.
    """
    array = volume.array.astype(np.float32)
    seen = array if counted is None else array[counted > 0]
    low, high = np.percentile(seen, _TAILS)
    if not high > low:
        low, high = seen.min(), seen.max()
    if not high > low:
        where = "" if counted is None else " where its mask counts"
        raise InputError(
            f"the image is constant{where}", source=name, value=float(low), expected="a contrast"
        )
    scaled: NDArray[np.float32] = np.clip((array - np.float32(low)) / np.float32(high - low), 0, 1)
    return scaled


def weights(mask: Volume | None, volume: Volume, name: str) -> NDArray[np.float32] | None:
    """Return how much each voxel of an image counts, 0 or 1, from a mask on any grid; None for all.

    Raises:
        InputError: It leaves nothing of the image: it is empty, or lies elsewhere.
        GeometryError: It is a slice, and the image is none.
    """
    if mask is None:
        return None
    if mask.shape.count(1) > volume.shape.count(1):
        raise GeometryError(
            "the mask has not as many dimensions as its image",
            source=name,
            value=mask.shape,
            expected=f"like {volume.shape}",
        )
    index = places(np.zeros((3, *volume.shape)), volume.geometry.affine, mask.geometry.affine)
    counted = (nearest(mask.array, index) > 0) & inside(index, mask.shape)
    if not counted.any():
        raise InputError(
            "the mask leaves nothing of the image",
            source=name,
            value=f"{np.count_nonzero(mask.array > 0)} voxels above 0 in {mask.geometry!r}",
            expected=f"1 or more within {volume.geometry!r}",
        )
    found: NDArray[np.float32] = counted.astype(np.float32)
    return found


def coarsened(geometry: Geometry, spacing_mm: float) -> Geometry:
    """Return a grid over the same box whose voxels are about ``spacing_mm`` wide, or as wide as they were."""
    shape = []
    for count, step in zip(geometry.shape, geometry.spacing, strict=True):
        fewer = round(count * step / spacing_mm)
        shape.append(count if count == 1 else min(count, max(_FEWEST, fewer)))
    ratio = np.array(geometry.shape) / shape
    affine = geometry.affine.copy()
    affine[:3, :3] *= ratio
    affine[:3, 3] = geometry.index_to_world((ratio - 1) / 2)  # the outer faces stay
    return Geometry((shape[0], shape[1], shape[2]), affine)


def on_grid(image: NDArray[Any], geometry: Geometry, coarse: Geometry) -> NDArray[np.float32]:
    """Return an image on a coarser grid over the same box, smoothed by half a coarse voxel before."""
    if coarse == geometry:
        return np.asarray(image, dtype=np.float32)
    ratio = np.array(coarse.spacing) / geometry.spacing
    smooth = gaussian(image, [0.5 * step if step > 1 else 0.0 for step in ratio.tolist()])
    index = places(np.zeros((3, *coarse.shape)), coarse.affine, geometry.affine)
    return np.asarray(sample(smooth, index), dtype=np.float32)
