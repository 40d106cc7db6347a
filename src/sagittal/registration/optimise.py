"""Diffeomorphic registration of two images by descent: no training, the same bits on any threads.

A velocity that does not change in time leads from the space of the fixed image to that of the moving one
(after an affine map). Both images are brought half the way and compared there, so that neither is
preferred, and the inverse is the exponential of the negative velocity. The update is that of the
log-domain demons (Vercauteren, Pennec, Perchant, Ayache 2008): the derivative of the similarity in the
middle is smoothed, and added to the velocity, which is smoothed a little itself. The step is the largest
displacement it makes; it shrinks when the images become less alike [inference].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sagittal.core.errors import GeometryError, InputError
from sagittal.registration.affine import AffineSearch
from sagittal.registration.checks import alike_and_otherwise, found_problems
from sagittal.registration.filters import gaussian
from sagittal.registration.levels import coarsened, normalised, on_grid, weights
from sagittal.registration.motion import brought, exponential, overlap, pushed
from sagittal.registration.similarity import Similarity, similarity
from sagittal.registration.variational import Report, silent
from sagittal.volume import DisplacementField, Geometry, Volume
from sagittal.volume.field_calculus import Array, combine
from sagittal.volume.field_maps import inside, places

__all__ = ["Registration", "affine_between", "from_velocity", "register"]

_STEP = 0.5  # of a voxel: the largest displacement of a full step
_SHRINK = 0.7
_SMALLEST_STEP = 0.1  # of the full one
_WINDOW = 6  # iterations over which the images must become more alike
_GAIN = 1e-3  # by so much of what the level has gained
_SINGULAR = 1e-6
_PARALLEL = 0.9999  # cosine between two slices
_MANY = 1 << 16  # voxels above which the velocity lies on a grid of half the resolution


@dataclass(frozen=True, eq=False)
class Registration:
    """Where the points of the fixed image lie in the moving one, and back.

    Attributes:
        field: From the fixed image's grid into the moving image's space; warps the moving image.
        inverse: From the moving image's grid into the fixed image's space; warps the fixed image.
        affine: The affine part of ``field``, (4, 4) in RAS+ mm.
        energies: For each level, the similarity at the start and after each iteration; lower is more alike.
        inverse_consistency_mm: Mean distance from a point of the fixed image to where ``inverse`` leads
            after ``field``.
        alike: How alike the images are under the best affine map, and how alike with one of them turned
            another way: see :func:`sagittal.registration.checks.alike_and_otherwise`.
    """

    field: DisplacementField
    inverse: DisplacementField
    affine: NDArray[np.float64]
    energies: tuple[tuple[float, ...], ...]
    inverse_consistency_mm: float
    alike: tuple[float, float]

    @property
    def problems(self) -> tuple[str, ...]:
        """What speaks against this result, in words; it can be wrong without any of them.

        Said are: an affine map that mirrors or stretches more than twofold, folds, a place that grew or
        shrank more than eightfold, an inverse that leads a voxel astray on average, images that did not
        become more alike, that hardly overlap, or that are hardly more alike than with one of them turned
        another way.
        """
        return found_problems(self)


def register(
    moving: Volume,
    fixed: Volume,
    *,
    measure: str = "local-correlation",
    affine: ArrayLike | None = None,
    start: DisplacementField | None = None,
    moving_mask: Volume | None = None,
    fixed_mask: Volume | None = None,
    finest_mm: float | None = None,
    iterations: Sequence[int] = (60, 40, 20),
    update_smoothing: float = 3.5,
    field_smoothing: float = 0.3,
    report: Report = silent,
) -> Registration:
    """Find the diffeomorphism under which two images look most alike.

    Args:
        moving: The image that is to be brought to ``fixed``.
        fixed: The image whose grid is kept.
        measure: "local-correlation", "mean-square", or "mutual-information" for different kinds of images.
        affine: The affine map from fixed to moving space, (4, 4) in RAS+ mm; by default it is looked for.
        start: The velocity to begin with, in the space of ``fixed`` on any grid; by default none moves.
        moving_mask: Where ``moving`` counts, 0 where it does not (a lesion that the other has not, another
            object) and 1 or more where it does; on any grid.
        fixed_mask: The same for ``fixed``.
        finest_mm: Voxel width of the last level; by default that of the fixed image.
        iterations: At most so many for each level, from the coarsest; each is twice as fine as the last.
        update_smoothing: Standard deviation, in voxels of the level, of what smooths each update.
        field_smoothing: Standard deviation, in voxels of the level, of what smooths the velocity each time.
        report: Is told each level.

    Returns:
        The map, its inverse, and how the similarity fell.

    Raises:
        InputError: A constant image, an unknown measure, an affine that is not one, no level, a smoothing
            that is negative or not finite, a mask that leaves nothing of its image.
        GeometryError: The images do not overlap under the affine map, one is a slice and the other is
            not, or two slices are not parallel.
        MissingDependencyError: scipy is not installed.
    """
    compare = similarity(measure)
    if not iterations or min(iterations) < 0:
        raise InputError("not a number of iterations for each level", value=list(iterations))
    for name, smoothing in (("update_smoothing", update_smoothing), ("field_smoothing", field_smoothing)):
        if not 0 <= smoothing < np.inf:
            raise InputError(
                "not a width to smooth with", source=name, value=smoothing, expected="0 voxels or more"
            )
    matrix, alike = affine_between(
        moving, fixed, affine, measure, report, moving_mask=moving_mask, fixed_mask=fixed_mask
    )
    masks = weights(fixed_mask, fixed, "fixed mask"), weights(moving_mask, moving, "moving mask")
    images = normalised(fixed, "fixed image", masks[0]), normalised(moving, "moving image", masks[1])
    finest = min(s for s, n in zip(fixed.geometry.spacing, fixed.shape, strict=True) if n > 1)
    finest = max(finest, finest_mm or 0.0)
    velocity, energies = start or DisplacementField.identity(fixed.geometry), []
    for number, most in enumerate(iterations):
        width = finest * 2 ** (len(iterations) - 1 - number)
        grids = coarsened(fixed.geometry, width), coarsened(moving.geometry, width)
        pair, counts = (
            [
                None if image is None else on_grid(image, volume.geometry, grid)
                for image, volume, grid in zip(those, (fixed, moving), grids, strict=True)
            ]
            for those in (images, masks)
        )
        seen = Geometry(grids[1].shape, np.linalg.inv(matrix) @ grids[1].affine)  # moving, in fixed space
        level = _Level(pair, counts, (grids[0], seen), compare, (update_smoothing, field_smoothing), width)
        velocity, found = level.descended(velocity, most)
        energies.append(found)
        report(f"{width:g} mm: {found[0]:.4f} to {min(found):.4f} in {len(found) - 1} iterations")
    return from_velocity(velocity, matrix, fixed.geometry, moving.geometry, tuple(energies), alike)


def affine_between(
    moving: Volume,
    fixed: Volume,
    given: ArrayLike | None,
    measure: str,
    report: Report,
    *,
    moving_mask: Volume | None = None,
    fixed_mask: Volume | None = None,
) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Return the affine map from fixed to moving space, and :attr:`Registration.alike`.

    Raises:
        InputError: What is given is not an affine map, an image is constant, or a mask leaves nothing of its
            image.
        GeometryError: The images do not overlap under it, or cannot: see :func:`register`.
    """
    _require_one_dimension(fixed.geometry, moving.geometry)
    multimodal = measure == "mutual-information"
    masks = {"moving_mask": moving_mask, "fixed_mask": fixed_mask}
    search = AffineSearch(moving, fixed, multimodal=multimodal, **masks)
    if given is None:
        report("affine")
        matrix = search.found()
    else:
        matrix = np.array(given, dtype=np.float64)
        if (
            matrix.shape != (4, 4)
            or not np.isfinite(matrix).all()
            or abs(np.linalg.det(matrix[:3, :3])) < 1e-6
        ):
            raise InputError(
                "not an affine map", value=f"shape {matrix.shape}", expected="invertible, (4, 4)"
            )
    _require_overlap(fixed.geometry, moving.geometry, matrix)
    return matrix, alike_and_otherwise(search, matrix, given=given is not None)


def _require_one_dimension(fixed: Geometry, moving: Geometry) -> None:
    flat = [[axis for axis in range(3) if grid.shape[axis] == 1] for grid in (fixed, moving)]
    if len(flat[0]) != len(flat[1]) or len(flat[0]) > 1:
        raise GeometryError(
            "the images do not have as many dimensions, or fewer than two",
            source="fixed image, moving image",
            value=f"{fixed.shape} and {moving.shape}",
            expected="two slices, or two volumes",
        )
    if flat[0]:
        pair = zip((fixed, moving), flat, strict=True)
        rows = [np.linalg.inv(grid.affine[:3, :3])[axes[0]] for grid, axes in pair]
        a, b = (row / np.linalg.norm(row) for row in rows)
        if abs(float(a @ b)) < _PARALLEL:
            angle = np.degrees(np.arccos(abs(float(a @ b))))
            raise GeometryError(
                "the slices are not parallel",
                source="fixed image, moving image",
                value=f"{angle:.3g} degrees",
                expected="0",
            )


def _require_overlap(fixed: Geometry, moving: Geometry, matrix: NDArray[np.float64]) -> None:
    if not overlap(fixed, moving, matrix):
        raise GeometryError(
            "the images do not overlap under the affine map",
            source="fixed image, moving image",
            value=f"{fixed!r} and {moving!r}",
            expected="places that both hold",
        )


class _Level:
    """Two images at one resolution, both in the space of the fixed one, and how much their voxels count."""

    def __init__(
        self,
        images: list[Array],
        masks: list[Array | None],
        grids: tuple[Geometry, Geometry],
        compare: Similarity,
        smoothing: tuple[float, float],
        width: float,
    ) -> None:
        self.images, self.masks, self.grids, self.compare, self.width = images, masks, grids, compare, width
        many = int(np.prod(grids[0].shape)) > _MANY
        self.coarse = coarsened(grids[0], 2 * width) if many else grids[0]
        self.update = [smoothing[0] * width / step for step in self.coarse.spacing]
        self.elastic = [smoothing[1] * width / step for step in self.coarse.spacing]

    def halves(self, velocity: Array) -> tuple[list[Array], Array, Array | None]:
        """Return both images, brought half the way, which voxels lie in both, and how much those count."""
        found, seen, counted = [], [], []
        parts = zip(self.images, self.masks, self.grids, (-0.5, 0.5), strict=True)
        for image, mask, grid, share in parts:
            moved = exponential(np.float32(share) * velocity, self.coarse)
            brings = [
                brought(each, grid, moved, self.coarse, self.grids[0])
                for each in (image, mask)
                if each is not None
            ]
            found.append(brings[0][0])
            seen.append(brings[0][1])
            counted += [weight for weight, _ in brings[1:]]
        return found, seen[0] & seen[1], np.prod(counted, axis=0) if counted else None

    def descended(self, start: DisplacementField, most: int) -> tuple[DisplacementField, tuple[float, ...]]:
        """Return the velocity with the lowest energy of at most so many steps, and the energies."""
        velocity = start.resample(self.coarse).vectors.astype(np.float32)
        best, far = velocity, _STEP * self.width
        energies: list[float] = []
        for _ in range(most + 1):
            (a, b), seen, counted = self.halves(velocity)
            value, by_a, by_b = self.compare(a, b, counted)
            if energies and value > min(energies):
                far *= _SHRINK
            elif not energies or value < min(energies):
                best = velocity
            energies.append(value)
            if far < _SMALLEST_STEP * _STEP * self.width or _flat(energies):
                break
            force = pushed(a, b, by_a, by_b, seen, self.grids[0], self.coarse).astype(np.float32)
            force = gaussian(force, self.update, outside_zero=True)
            longest = float((force * force).sum(0).max()) ** 0.5
            if longest == 0:
                break
            velocity = velocity - force * np.float32(far / longest)
            velocity = gaussian(velocity, self.elastic, outside_zero=True)
        return DisplacementField(best, self.coarse), tuple(energies)


def _flat(energies: list[float]) -> bool:
    if len(energies) <= _WINDOW:
        return False
    lowest = min(energies)
    return min(energies[:-_WINDOW]) - lowest <= _GAIN * (energies[0] - lowest)


def from_velocity(
    velocity: DisplacementField,
    matrix: NDArray[np.float64],
    fixed: Geometry,
    moving: Geometry,
    energies: tuple[tuple[float, ...], ...],
    alike: tuple[float, float],
) -> Registration:
    """Return the registration that a velocity in the space of the fixed image makes with an affine map."""
    whole = velocity.resample(fixed).vectors.astype(np.float32)
    there, back = (exponential(np.float32(sign) * whole, fixed) for sign in (1, -1))
    linear = DisplacementField.from_affine(matrix, fixed).vectors
    turned = np.stack([combine(row, list(there.astype(np.float64))) for row in matrix[:3, :3]])
    field = DisplacementField((linear + turned).astype(np.float32), fixed)
    undone = DisplacementField.from_affine(np.linalg.inv(matrix), moving)
    inverse = DisplacementField(back, fixed).compose(undone)
    inverse = DisplacementField(inverse.vectors.astype(np.float32), moving)
    lands = inside(places(field.vectors, fixed.affine, moving.affine), moving.shape)
    left: Any = inverse.compose(field).magnitude[lands]
    missed = float(left.mean()) if left.size else float("nan")
    return Registration(field, inverse, matrix, energies, missed, alike)
