"""Labels brought over by a field that may be wrong: probabilities blurred by how far it may be off.

Let a point's true place in the atlas lie around the place that the field gives, by a normal distribution
with the same standard deviation along every axis. The probability of a class at the point is then the
atlas's own probability averaged over that distribution, which is its map smoothed by a Gaussian and read at
the place given. A boundary that the field knows to 4 mm is a slope some 4 mm wide, and inside a region far
from every boundary nothing changes [inference].

Errors alike in all directions are a cautious choice: across a boundary that the images show, a map is likely
surer than along it, and such a boundary is then drawn too soft. In ``evidence/atlas_batch.py`` the blur made
the template's tissue probabilities a little worse, and not better.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import GeometryError, InputError
from sagittal.core.memory import require_memory
from sagittal.registration.filters import gaussian
from sagittal.volume import DisplacementField, Geometry, Volume
from sagittal.volume.field_maps import inside, places, sample

__all__ = ["carried_probabilities", "class_shares", "error_deviation", "volume_change"]

_STEP = 0.5  # of a voxel: the narrowest Gaussian
_LADDER = math.sqrt(2.0)  # each one wider by this
_LARGEST = 0.1  # of the atlas's extent: an error beyond says no more than that nothing is known


def error_deviation(error_mm: NDArray[Any], *, planar: bool = False) -> NDArray[np.float64]:
    """Return the standard deviation along each axis of errors whose expected length is given.

    Args:
        error_mm: Root mean square distance between the found and the true place, mm, any shape.
        planar: In a plane, not in space.

    Returns:
        The same shape, mm: of errors alike along each axis, the square root of a third, in a plane of half.
    """
    found: NDArray[np.float64] = np.asarray(error_mm, dtype=np.float64) / math.sqrt(2 if planar else 3)
    return found


def carried_probabilities(
    atlas: Volume, field: DisplacementField, error_mm: NDArray[Any] | None = None
) -> Volume:
    """Bring the class probabilities of an atlas to the grid of a field, as unsure as the field is.

    Args:
        atlas: With probabilities, shape (i, j, k, classes).
        field: From the grid wanted into the atlas's space.
        error_mm: Expected distance (root mean square) between the found and the true place of each voxel
            of the field, mm, shape of the field's grid; None takes the field for exact.

    Returns:
        The most probable class of each voxel, numbered from 1 (0 where none of them is the most probable
        thing), uint16, with the probabilities, float32. What comes from beyond the atlas has none.

    Raises:
        InputError: An atlas without probabilities, errors that are negative or not finite, or more classes
            than the memory holds.
        GeometryError: Errors of another shape, or a field that leads nowhere into the atlas.
    """
    if atlas.probabilities is None:
        raise InputError("an atlas's labels need probabilities", value=repr(atlas))
    classes = len(atlas.classes)
    voxels = math.prod(field.shape) + math.prod(atlas.shape)
    require_memory(8 * voxels * (classes + 4), f"carrying {classes} classes", instead="take a coarser grid")
    index = places(field.vectors.astype(np.float64, copy=False), field.geometry.affine, atlas.geometry.affine)
    seen = inside(index, atlas.shape)
    if not seen.any():
        raise GeometryError("the field leads nowhere into the atlas", value=repr(field))
    maps = np.moveaxis(atlas.probabilities, -1, 0).astype(np.float32)
    if error_mm is None:
        found = sample(maps, index)
    else:
        found = _blurred(maps, index, _deviations(error_mm, field, atlas), atlas)
    found = np.clip(np.where(seen, found, 0), 0, 1)
    found /= np.maximum(found.sum(axis=0), 1)  # rounding
    best = found.argmax(axis=0)
    certain = found.max(axis=0) > 1 - found.sum(axis=0)
    labels = np.where(certain, best + 1, 0).astype(np.uint16)
    return Volume(
        labels,
        field.geometry,
        probabilities=np.ascontiguousarray(np.moveaxis(found, 0, -1), dtype=np.float32),
        classes=atlas.classes,
    )


def volume_change(
    field: DisplacementField, error_mm: NDArray[Any] | None = None, *, correlation_mm: float | None = None
) -> Volume:
    """Return how many times as large each place is as the place in the atlas that it lies on, as a logarithm.

    This is minus the logarithm of the field's Jacobian determinant. The variance takes the field's errors
    for normal, alike along each axis with the standard deviation s, and correlated over space as a Gaussian
    with the standard deviation r; a derivative of theirs then has the variance s^2 / r^2, and their
    divergence, which is the error of the logarithm to first order, as many times that as there are axes
    [inference].

    Args:
        field: From the image's grid into the atlas's space.
        error_mm: As in :func:`carried_probabilities`; None gives no variance.
        correlation_mm: r; errors that a Gaussian of so many mm has smoothed have the square root of two
            times that.

    Raises:
        InputError: Errors without a correlation length that is positive.
        GeometryError: Errors of another shape.
    """
    change = -field.log_jacobian().array
    variance = None
    if error_mm is not None:
        if correlation_mm is None or not correlation_mm > 0:
            raise InputError("errors need a correlation length", value=correlation_mm, expected="above 0 mm")
        deviation = _deviations(error_mm, field)
        axes = 2 if field.is_planar else 3
        variance = (axes * np.square(deviation / correlation_mm)).astype(np.float32)
    return Volume(change.astype(np.float32), field.geometry, unit="1", variance=variance)


def _deviations(
    error_mm: NDArray[Any], field: DisplacementField, atlas: Volume | None = None
) -> NDArray[np.float64]:
    if error_mm.shape != field.shape:
        raise GeometryError("errors have another shape", value=error_mm.shape, expected=str(field.shape))
    if not np.isfinite(error_mm).all() or float(error_mm.min()) < 0:
        raise InputError("errors are not distances", expected="finite, 0 mm or more")
    deviation = error_deviation(error_mm, planar=field.is_planar)
    if atlas is not None:
        deviation = np.minimum(deviation, _LARGEST * max(atlas.geometry.extent))
    return deviation


def _blurred(
    maps: NDArray[np.float32], index: NDArray[Any], deviation: NDArray[np.float64], atlas: Volume
) -> NDArray[np.float32]:
    """Read each voxel from the maps smoothed by its own Gaussian, between two of a ladder of widths."""
    spacing = atlas.geometry.spacing
    widths = [0.0]
    while widths[-1] < float(deviation.max()):
        widths.append(widths[-1] * _LADDER or _STEP * min(spacing))
    found = np.empty((len(maps), *deviation.shape), dtype=np.float32)
    for number, values in enumerate(maps):
        narrow, before = values, sample(values, index)
        result = np.array(before)
        for low, high in itertools.pairwise(widths):
            more = math.sqrt(high**2 - low**2)
            sigmas = [
                more / step if count > 1 else 0.0 for step, count in zip(spacing, atlas.shape, strict=True)
            ]
            narrow = gaussian(narrow, sigmas, outside_zero=True)
            after = sample(narrow, index)
            here = deviation > low
            share = np.clip((deviation[here] ** 2 - low**2) / (high**2 - low**2), 0, 1)  # of the variance
            result[here] = before[here] + share * (after[here] - before[here])
            before = after
        found[number] = result
    return found


def class_shares(
    labels: Volume | None, maps: Mapping[str, Volume], grid: Geometry, *, rest: str = "", within: Any = None
) -> Volume:
    """Return how much of each voxel of a coarser grid each class takes up, as probabilities.

    Args:
        labels: Whole numbers, 0 for none; each number that occurs is a class, ``"label 12"``.
        maps: Probability of each class by its name, on one grid; stored from 0 to 1, or from 0 to 255.
        grid: Made by :func:`sagittal.registration.levels.coarsened` from the grid of the labels and maps.
        rest: Name of a class that takes what the maps leave; empty for none.
        within: Booleans, where there is anything left to take.

    Raises:
        InputError: No class, labels that are not whole numbers, or maps that are not probabilities.
    """
    shares: dict[str, NDArray[np.float64]] = {}
    if labels is not None:
        values = labels.array
        broken = (values < 0) | (values != np.floor(values))
        if broken.any():
            raise InputError(
                "labels are not whole numbers", value=values[broken][0], expected="0 for none, 1 and above"
            )
        numbers, place = np.unique(values, return_inverse=True)
        require_memory(16 * len(numbers) * math.prod(grid.shape), f"an atlas of {len(numbers)} labels")
        target = _coarse_index(labels.shape, grid) * len(numbers) + place.reshape(-1)
        counts = np.bincount(target, minlength=math.prod(grid.shape) * len(numbers))
        table = counts.reshape(*grid.shape, len(numbers)).astype(np.float64)
        table /= table.sum(axis=-1, keepdims=True)
        shares = {f"label {int(number)}": table[..., k] for k, number in enumerate(numbers) if number > 0}
    taken: Any = 0.0
    for name, image in maps.items():
        whole = _probability(image, name)
        shares[name] = _mean(whole, grid)
        taken = taken + whole
    if rest and maps and within is not None:
        shares[rest] = _mean(np.clip(np.asarray(within, dtype=np.float64) - taken, 0, 1), grid)
    if not shares:
        raise InputError("an atlas has no class", expected="labels above 0, or maps")
    classes = tuple(shares)
    stacked = np.stack([shares[name] for name in classes], axis=-1)
    stacked /= np.maximum(stacked.sum(axis=-1, keepdims=True), 1)
    probabilities = np.clip(stacked, 0, 1).astype(np.float32)
    best = probabilities.argmax(axis=-1) + 1
    certain = probabilities.max(axis=-1) > 1 - probabilities.sum(axis=-1)
    array = np.where(certain, best, 0).astype(np.uint16)
    return Volume(array, grid, probabilities=probabilities, classes=classes)


def _probability(image: Volume, name: str) -> NDArray[np.float64]:
    array = image.array.astype(np.float64)
    top = float(array.max())
    if float(array.min()) < 0 or top > 255 or (top > 1 and image.array.dtype.kind == "f"):
        raise InputError(
            "a map is no probability",
            source=name,
            value=f"{array.min():g} to {top:g}",
            expected="0 to 1, or whole numbers from 0 to 255",
        )
    return array / 255 if top > 1 else array


def _mean(values: NDArray[np.float64], grid: Geometry) -> NDArray[np.float64]:
    where = _coarse_index(values.shape, grid)
    total = np.bincount(where, weights=values.reshape(-1), minlength=math.prod(grid.shape))
    counts = np.bincount(where, minlength=math.prod(grid.shape))
    found: NDArray[np.float64] = (total / counts).reshape(grid.shape)
    return found


def _coarse_index(shape: tuple[int, ...], grid: Geometry) -> NDArray[np.intp]:
    """Number of the coarse voxel in which the middle of each voxel lies, flat."""
    axes = [(np.arange(n) * 2 + 1) * m // (2 * n) for n, m in zip(shape, grid.shape, strict=True)]
    i, j, k = np.ix_(*axes)
    found: NDArray[np.intp] = ((i * grid.shape[1] + j) * grid.shape[2] + k).reshape(-1)
    return found
