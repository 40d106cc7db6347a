"""How unsure a model is of a slice, a patch or a volume, and what the image looks like there.

A unit's uncertainty is the mean over the voxels of a mask in it, such as the brain. The mean over all voxels
ranks by the amount of background, the sum by the amount of brain.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError

__all__ = [
    "Unit",
    "UnitRegion",
    "ensemble_spread",
    "mean_within",
    "predictive_entropy",
    "regions",
    "thumbnail",
]


class Unit(StrEnum):
    """What is handed to an expert at a time."""

    VOLUME = "volume"
    SLICE = "slice"
    PATCH = "patch"


@dataclass(frozen=True)
class UnitRegion:
    """A part of a volume that can be annotated.

    Attributes:
        start: First voxel along each axis.
        stop: The one behind the last.
        voxels: How many of its voxels are in the mask.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]
    voxels: int

    @property
    def box(self) -> tuple[slice, ...]:
        """What to index an array with."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))


def ensemble_spread(members: NDArray[Any]) -> NDArray[np.float64]:
    """Return how far the networks of an ensemble disagree in each voxel (Yang et al., MICCAI 2017).

    The standard deviation of each class's probability over the networks, mean of the classes; 0 where all
    agree, at most 0.5.

    Args:
        members: Probabilities, shape (networks, *spatial, classes), two networks or more.

    Returns:
        Shape (*spatial).

    Raises:
        InputError: Fewer than two networks.
    """
    if members.ndim < 3 or len(members) < 2:
        raise InputError(
            "a spread needs an ensemble",
            value=members.shape,
            expected="(2 networks or more, *spatial, classes)",
        )
    spread: NDArray[np.float64] = members.std(axis=0, dtype=np.float64).mean(axis=-1)
    return spread


def predictive_entropy(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Return the entropy of each voxel's classes as a share of the most there can be, 0 to 1.

    Args:
        probabilities: Shape (*spatial, classes), of one network or the mean of several; two classes or more.

    Returns:
        Shape (*spatial); 0 where no class is named.

    Raises:
        InputError: Fewer than two classes.
    """
    if probabilities.ndim < 2 or probabilities.shape[-1] < 2:
        raise InputError("entropy needs classes", value=probabilities.shape, expected="two or more")
    p = probabilities.astype(np.float64)
    entropy: NDArray[np.float64] = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)
    entropy /= np.log(probabilities.shape[-1])
    return entropy


def mean_within(values: NDArray[Any], mask: NDArray[np.bool_]) -> float:
    """Return the mean over a mask of the same shape; 0 over an empty one.

    Raises:
        InputError: The shapes differ, or the mask is not boolean.
    """
    if values.shape != mask.shape or mask.dtype != bool:
        raise InputError(
            "the mask does not fit", value=f"{mask.dtype} {mask.shape}", expected=f"bool {values.shape}"
        )
    return float(values[mask].mean(dtype=np.float64)) if mask.any() else 0.0


def regions(
    mask: NDArray[np.bool_],
    unit: Unit,
    *,
    axis: int = 2,
    size: Sequence[int] = (32, 32, 32),
    least_share: float = 0.1,
) -> list[UnitRegion]:
    """Cut a volume into the units that can be annotated.

    Slices and patches with little of the mask are left out: their mean is that of a few voxels at its rim.

    Args:
        mask: What there is to annotate, such as the brain; three axes.
        unit: Volume, slice or patch.
        axis: Slices lie across it.
        size: Voxels of a patch along each axis. Patches lie side by side from the corner of the mask's box,
            the last ones of a row end with the grid.
        least_share: A unit needs this share of the mask's voxels that the fullest one has, 0 to 1.

    Returns:
        By position; none where the mask is empty.

    Raises:
        InputError: Not three axes, no such axis, a patch without voxels, a share outside 0 to 1.
    """
    if mask.ndim != 3 or mask.dtype != bool or axis not in (0, 1, 2):
        raise InputError(
            "no such units",
            value=f"{mask.dtype} {mask.shape}, axis {axis}",
            expected="bool (i, j, k), axis 0 to 2",
        )
    if len(size) != 3 or min(size) < 1 or not 0 <= least_share <= 1:
        raise InputError(
            "no such units",
            value=f"patches of {tuple(size)}, share {least_share:g}",
            expected="three sizes of 1 or more, 0 to 1",
        )
    if not mask.any():
        return []
    if unit is Unit.VOLUME:
        return [UnitRegion((0, 0, 0), mask.shape, int(np.count_nonzero(mask)))]
    steps = list(size) if unit is Unit.PATCH else [n if a != axis else 1 for a, n in enumerate(mask.shape)]
    rows = []
    for along, step in enumerate(steps):
        length = mask.shape[along]
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != along)))
        first = int(used[0]) if step < length else 0
        starts = [min(at, max(length - step, 0)) for at in range(first, int(used[-1]) + 1, step)]
        rows.append([(at, min(at + step, length)) for at in starts])
    found = []
    for ends in itertools.product(*rows):
        start, stop = tuple(a for a, _ in ends), tuple(b for _, b in ends)
        inside = int(np.count_nonzero(mask[tuple(slice(a, b) for a, b in ends)]))
        found.append(UnitRegion(start, stop, inside))
    fullest = max(region.voxels for region in found)
    return [region for region in found if region.voxels >= max(least_share * fullest, 1)]


def thumbnail(
    image: NDArray[Any], mask: NDArray[np.bool_], *, size: Sequence[int] = (8, 8, 8)
) -> NDArray[np.float64]:
    """Return what a unit looks like in few numbers: its means over a coarse grid, of mean 0 and length 1.

    The grid spans the box of the mask, so that a shift of the head does not count; what lies outside the mask
    counts as its mean. A stand-in for the features of a network. [inference]

    Args:
        image: Values of the unit, shape (i, j, k); any unit and scale.
        mask: Where they count.
        size: Cells along each axis; as many as there are voxels at most.

    Returns:
        Shape (product of ``size``,); zeros where nothing differs.

    Raises:
        InputError: The shapes differ, or the mask is empty.
    """
    if image.shape != mask.shape or mask.dtype != bool or not mask.any() or len(size) != mask.ndim:
        raise InputError(
            "image and mask do not fit",
            value=f"{image.shape} and {mask.dtype} {mask.shape}",
            expected="one shape, a bool mask with a voxel in it",
        )
    values = np.where(mask, image.astype(np.float64) - mean_within(image, mask), 0.0)
    for axis, cells in enumerate(size):
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        ends = np.linspace(used[0], used[-1] + 1, cells + 1)
        values = _averaged(values, axis, ends)
    flat = values.ravel() - values.mean()
    length = float(np.linalg.norm(flat))
    noise = 1e-12 * float(np.abs(image).max()) * flat.size
    return flat / length if length > noise else np.zeros_like(flat)


def _averaged(values: NDArray[np.float64], axis: int, ends: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average along an axis between ends that may lie within a voxel."""
    moved = np.moveaxis(values, axis, 0)
    sums = np.concatenate([np.zeros((1, *moved.shape[1:])), np.cumsum(moved, axis=0)])
    whole = np.minimum(ends.astype(int), len(moved) - 1)
    part = (ends - whole).reshape(-1, *[1] * (moved.ndim - 1))
    at = sums[whole] + part * moved[whole]
    width = np.diff(ends).reshape(-1, *[1] * (moved.ndim - 1))
    return np.moveaxis(np.diff(at, axis=0) / width, 0, axis)
