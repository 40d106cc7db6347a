"""How well one segmentation agrees with another: overlap, distance of surfaces, volume.

A pure function stands under each number and takes two boolean masks of one shape, with the voxels' spacing in
mm where lengths count; :func:`compare_labels` applies them to each class of two label volumes.

The surface of a mask is its voxels less those of its erosion over faces; what lies beyond the grid is not in
the mask. Axes of one voxel are left out, so that a slice has an outline and not only surface. Distances go
from the middle of a surface voxel to that of the nearest one of the other surface.

Nothing to compare has a value too, and no function returns NaN:

=====================  ===================  ==========================================
measure                both masks empty     one empty
=====================  ===================  ==========================================
Dice, Jaccard          1                    0
surface Dice           1                    0
distances of surfaces  0                    the grid's diagonal, the longest there is
volume difference      0                    as it is; relative to an empty one, ``None``
=====================  ===================  ==========================================

An empty mask must be counted beside such a distance: :attr:`ClassScores.empty` says which one it is.

MONAI has the same measures, and the tests hold these against it. They are not called here: MONAI brings torch
with it, answers an empty mask with NaN or infinity, and measures distances in single precision. SciPy's
distance transform does the work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import
from sagittal.volume.volume import Volume, require_same_space

__all__ = [
    "ClassScores",
    "average_surface_distance",
    "compare_labels",
    "dice",
    "hausdorff_distance",
    "jaccard",
    "surface_dice",
    "surface_distances",
    "surface_voxels",
    "volume_difference",
]

_Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """How well one class of a segmentation agrees with a reference.

    Attributes:
        dice: 0 to 1.
        jaccard: 0 to 1.
        hd95_mm: The larger of the two directed 95th percentiles of the surfaces' distances.
        assd_mm: Average symmetric surface distance.
        surface_dice: Share of both surfaces that lies within the tolerance of the other, 0 to 1.
        tolerance_mm: That tolerance.
        volume_ml: Of what was found.
        reference_ml: Of the reference.
        empty: Which mask has no voxel.
    """

    dice: float
    jaccard: float
    hd95_mm: float
    assd_mm: float
    surface_dice: float
    tolerance_mm: float
    volume_ml: float
    reference_ml: float
    empty: Literal["found", "reference", "both"] | None

    @property
    def volume_difference_ml(self) -> float:
        """What was found less the reference; the absolute volume difference is its amount."""
        return self.volume_ml - self.reference_ml

    @property
    def relative_volume_difference(self) -> float | None:
        """The difference as a share of the reference's volume; ``None`` where only the reference is empty."""
        if self.reference_ml:
            return self.volume_difference_ml / self.reference_ml
        return None if self.volume_ml else 0.0


def dice(found: _Mask, reference: _Mask) -> float:
    """Return twice the shared voxels over the sum of both (Dice, Ecology 26:297, 1945); symmetric, 0 to 1.

    Raises:
        InputError: The masks are not boolean, or differ in shape.
    """
    _checked(found, reference)
    both, total = np.count_nonzero(found & reference), np.count_nonzero(found) + np.count_nonzero(reference)
    return 2 * both / total if total else 1.0


def jaccard(found: _Mask, reference: _Mask) -> float:
    """Return the shared voxels over those in either mask; symmetric, 0 to 1.

    Raises:
        InputError: The masks are not boolean, or differ in shape.
    """
    _checked(found, reference)
    either = np.count_nonzero(found | reference)
    return np.count_nonzero(found & reference) / either if either else 1.0


def volume_difference(found: _Mask, reference: _Mask, voxel_volume_ml: float) -> tuple[float, float | None]:
    """Return what was found less the reference: in ml, and as a share of the reference.

    Args:
        found: What is judged.
        reference: What it should be.
        voxel_volume_ml: Volume of one voxel.

    Returns:
        The signed difference, and its share; ``None`` where only the reference is empty.

    Raises:
        InputError: The masks are not boolean, or differ in shape; a voxel without volume.
    """
    _checked(found, reference)
    if not (voxel_volume_ml > 0 and math.isfinite(voxel_volume_ml)):
        raise InputError("a voxel has no volume", value=voxel_volume_ml, expected="more than 0 ml")
    wanted = np.count_nonzero(reference)
    difference = np.count_nonzero(found) - wanted
    share = difference / wanted if wanted else (None if difference else 0.0)
    return difference * voxel_volume_ml, share


def surface_voxels(mask: _Mask) -> _Mask:
    """Return the voxels of a mask that share a face with one outside it, or with the outside of the grid.

    Args:
        mask: Two or three axes, of which those of one voxel have no outside.
    """
    flat = _without_single(mask)
    eroded = optional_import("scipy.ndimage").binary_erosion(flat) if flat.ndim else np.zeros_like(flat)
    surface: _Mask = flat & ~eroded
    return surface.reshape(mask.shape)


def surface_distances(
    found: _Mask, reference: _Mask, spacing: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the distances of each surface's voxels to the nearest voxel of the other surface.

    Args:
        found: What is judged, of two or three axes.
        reference: What it should be.
        spacing: Distance of the voxels' middles along each axis, mm.

    Returns:
        Distances of ``found`` to the reference, and of the reference to ``found``, in mm, in C order of the
        surface's voxels. Both are empty where both masks are; where one is, the other's distances are the
        grid's diagonal.

    Raises:
        InputError: The masks are not boolean, differ in shape, or the spacing does not fit them.
    """
    steps = _checked(found, reference, spacing)
    diagonal = float(np.linalg.norm((np.array(found.shape) - 1) * np.array(steps)))
    long = [size > 1 for size in found.shape]
    apart = [step for step, kept in zip(steps, long, strict=True) if kept]
    box = _box(_without_single(found | reference))
    if box is None:
        return np.zeros(0), np.zeros(0)
    surfaces = [surface_voxels(_without_single(mask)[box]) for mask in (found, reference)]
    if not all(surface.any() for surface in surfaces):
        one, other = (np.full(np.count_nonzero(surface), diagonal) for surface in surfaces)
        return one, other
    if not apart:
        return np.zeros(1), np.zeros(1)
    transform = optional_import("scipy.ndimage").distance_transform_edt
    to_found, to_reference = (np.asarray(transform(~s, sampling=apart), np.float64) for s in surfaces)
    return to_reference[surfaces[0]], to_found[surfaces[1]]


def hausdorff_distance(
    found: _Mask, reference: _Mask, spacing: Sequence[float], *, percentile: float = 95.0
) -> float:
    """Return the larger of the two directed percentiles of the surfaces' distances, mm; symmetric.

    With 95 this is the HD95 of most challenges, and MONAI's. MedPy's pools both directions before it takes
    the percentile, which gives a value that is never larger. Percentiles are interpolated linearly; 100 is
    the Hausdorff distance itself.

    Raises:
        InputError: As :func:`surface_distances`; a percentile outside 0 to 100.
    """
    if not 0 <= percentile <= 100:
        raise InputError("no such percentile", source="percentile", value=percentile, expected="0 to 100")
    sides = surface_distances(found, reference, spacing)
    return max((float(np.percentile(side, percentile)) for side in sides if side.size), default=0.0)


def average_surface_distance(found: _Mask, reference: _Mask, spacing: Sequence[float]) -> float:
    """Return the mean of all distances of both surfaces' voxels, mm (ASSD); symmetric.

    Raises:
        InputError: As :func:`surface_distances`.
    """
    one, other = surface_distances(found, reference, spacing)
    count = one.size + other.size
    return float(one.sum() + other.sum()) / count if count else 0.0


def surface_dice(found: _Mask, reference: _Mask, spacing: Sequence[float], *, tolerance_mm: float) -> float:
    """Return the share of both surfaces' voxels within a tolerance of the other surface; symmetric, 0 to 1.

    The normalised surface Dice of Nikolov et al. (J. Med. Internet Res. 23:e26151, 2021), with a surface
    counted in voxels, as MONAI counts it unless asked for its finer elements.

    Raises:
        InputError: As :func:`surface_distances`; a tolerance that is negative or no number.
    """
    _tolerance(tolerance_mm)
    sides = surface_distances(found, reference, spacing)
    if not (found.any() and reference.any()):
        return 0.0 if found.any() or reference.any() else 1.0
    return sum(np.count_nonzero(side <= tolerance_mm) for side in sides) / sum(side.size for side in sides)


def compare_labels(
    found: Volume, reference: Volume, classes: Mapping[str, int], *, tolerance_mm: float = 1.0
) -> dict[str, ClassScores]:
    """Compare two label volumes class by class.

    Args:
        found: Labels that are judged; 0 is background.
        reference: What they should be, on the same grid.
        classes: Label of each class, such as ``{"csf": 1, "gm": 2, "wm": 3}``.
        tolerance_mm: For the surface Dice.

    Returns:
        The scores of each class, in the order of ``classes``.

    Raises:
        GeometryError: The grids differ.
        InputError: A voxel has a label that no class has; no class; a tolerance that is negative.
    """
    require_same_space(found, reference)
    _tolerance(tolerance_mm)
    if not classes or 0 in classes.values():
        raise InputError(
            "the classes have no labels", source="classes", value=dict(classes), expected="labels from 1 on"
        )
    for name, volume in (("found", found), ("reference", reference)):
        strange = np.setdiff1d(np.unique(volume.array), [0, *classes.values()])
        if strange.size:
            raise InputError(
                "a label belongs to no class",
                source=name,
                value=", ".join(f"{value:g}" for value in strange[:5]),
                expected=", ".join(f"{label} ({name})" for name, label in classes.items()),
            )
    return {
        name: _scores(found.array == label, reference.array == label, reference, tolerance_mm)
        for name, label in classes.items()
    }


def _scores(found: _Mask, reference: _Mask, space: Volume, tolerance_mm: float) -> ClassScores:
    spacing, voxel = space.geometry.spacing, space.geometry.voxel_volume_ml
    missing = (not found.any(), not reference.any())
    empty: dict[tuple[bool, bool], Literal["found", "reference", "both"]] = {
        (True, False): "found",
        (False, True): "reference",
        (True, True): "both",
    }
    one, other = surface_distances(found, reference, spacing)
    every = np.concatenate([one, other])
    within = np.count_nonzero(every <= tolerance_mm) / every.size if every.size else 1.0
    return ClassScores(
        dice=dice(found, reference),
        jaccard=jaccard(found, reference),
        hd95_mm=max((float(np.percentile(side, 95)) for side in (one, other) if side.size), default=0.0),
        assd_mm=float(one.sum() + other.sum()) / every.size if every.size else 0.0,
        surface_dice=0.0 if missing[0] != missing[1] else within,
        tolerance_mm=tolerance_mm,
        volume_ml=np.count_nonzero(found) * voxel,
        reference_ml=np.count_nonzero(reference) * voxel,
        empty=empty.get(missing),
    )


def _checked(found: _Mask, reference: _Mask, spacing: Sequence[float] | None = None) -> tuple[float, ...]:
    if found.dtype != bool or reference.dtype != bool or found.shape != reference.shape:
        raise InputError(
            "these are no two masks of one grid",
            value=f"{found.dtype} {found.shape} and {reference.dtype} {reference.shape}",
            expected="bool, of one shape",
        )
    if spacing is None:
        return ()
    steps = tuple(float(step) for step in spacing)
    if len(steps) != found.ndim or not all(step > 0 and math.isfinite(step) for step in steps):
        raise InputError(
            "the spacing does not fit the masks",
            source="spacing",
            value=steps,
            expected=f"{found.ndim} lengths above 0 mm",
        )
    return steps


def _tolerance(tolerance_mm: float) -> None:
    if not (tolerance_mm >= 0 and math.isfinite(tolerance_mm)):
        raise InputError(
            "no such tolerance", source="tolerance_mm", value=tolerance_mm, expected="0 mm or more"
        )


def _without_single(array: NDArray[Any]) -> NDArray[Any]:
    return array.reshape([size for size in array.shape if size != 1])


def _box(mask: _Mask) -> tuple[slice, ...] | None:
    """Return the smallest box around a mask; ``None`` where there is nothing in it."""
    if not mask.any():
        return None
    axes = range(mask.ndim)
    found = (np.flatnonzero(mask.any(axis=tuple(a for a in axes if a != axis))) for axis in axes)
    return tuple(slice(int(where[0]), int(where[-1]) + 1) for where in found)
