"""The affine map between two images: centres of mass first, then the parameters that make them most alike."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sagittal.core.optional import optional_import
from sagittal.registration.levels import coarsened, normalised, on_grid, weights
from sagittal.registration.similarity import Similarity, correlation, mutual_information
from sagittal.registration.turns import rotation, turns
from sagittal.volume import Geometry, Volume
from sagittal.volume.field_calculus import gradient
from sagittal.volume.field_maps import inside, places, sample

__all__ = ["AffineSearch", "affine_registration", "centre_of_mass"]

_VOXELS = (20, 40)  # along the longest side, coarse and then finer
_STEPS = 80
_FEW_VOXELS = 12  # along the longest side, where turns are looked for
_FEW_STEPS = 20
_TRIED = 3  # turns that are looked at more closely
_APART = 0.8  # cosine of half the angle that lies between two of them at least: 74 degrees
_CLEARLY = 0.8  # a turn is believed if it leaves so much of what is unlike,
_CLEARLY_MORE = 1.1  # or gives so many times the mutual information
_FEWEST = 50  # voxels that two images must share to be compared
_LEAST_SHARE = 0.05  # of a coarse voxel that counts: with less, it is as the whole image has it
_LEAST_SEEN = 0.25  # of what counts in the fixed image: with less, a turn is not judged

_ALL = slice(0, 12)
_SHIFT = slice(9, 12)
Parameters = NDArray[np.float64]


def centre_of_mass(image: NDArray[Any], geometry: Geometry) -> NDArray[np.float64]:
    """Return the centre of mass of intensities that are not negative, RAS+ mm."""
    total = float(image.sum(dtype=np.float64))
    index = []
    for axis, count in enumerate(geometry.shape):
        rest = tuple(other for other in range(3) if other != axis)
        index.append(float((image.sum(axis=rest, dtype=np.float64) * np.arange(count)).sum()) / total)
    return geometry.index_to_world(index)


def affine_registration(
    moving: Volume,
    fixed: Volume,
    *,
    multimodal: bool = False,
    moving_mask: Volume | None = None,
    fixed_mask: Volume | None = None,
) -> NDArray[np.float64]:
    """Return the affine map from the space of ``fixed`` into that of ``moving`` that makes them most alike.

    It begins where the centres of mass fall together, however far apart the images lie, and first moves
    only, then turns, scales and shears. If the images are clearly more alike after a large turn, which is
    looked for on a coarse grid, it begins with that one. An image stored with a flipped axis needs no
    mirroring: its affine says where its voxels lie. A part of a body that is cut off at the faces of its
    image may be drawn out of the other one, as what lies beyond a face counts like the face.

    Args:
        moving: The image that is to be brought to ``fixed``.
        fixed: The image that stays.
        multimodal: Compare by mutual information, for images of different kinds; else by correlation.
        moving_mask: Where ``moving`` counts, 0 where it does not and 1 or more where it does; on any grid.
        fixed_mask: The same for ``fixed``.

    Returns:
        (4, 4), RAS+ mm.

    Raises:
        InputError: A constant image, or a mask that leaves nothing of its image.
        MissingDependencyError: scipy is not installed.
    """
    masks = {"moving_mask": moving_mask, "fixed_mask": fixed_mask}
    return AffineSearch(moving, fixed, multimodal=multimodal, **masks).found()


class AffineSearch:
    """Two images on the coarse grids where affine maps between them are looked for and judged.

    What a mask leaves out counts for nothing: neither for the range of intensities and the centre of mass,
    nor for how alike the images are.
    """

    def __init__(
        self,
        moving: Volume,
        fixed: Volume,
        *,
        multimodal: bool = False,
        moving_mask: Volume | None = None,
        fixed_mask: Volume | None = None,
    ) -> None:
        measure = mutual_information if multimodal else correlation
        masks = weights(fixed_mask, fixed, "fixed mask"), weights(moving_mask, moving, "moving mask")
        images = normalised(fixed, "fixed image", masks[0]), normalised(moving, "moving image", masks[1])
        heavy = [image if mask is None else image * mask for image, mask in zip(images, masks, strict=True)]
        self.middle = centre_of_mass(heavy[0], fixed.geometry)
        self.shift = centre_of_mass(heavy[1], moving.geometry) - self.middle
        self.radius = max(fixed.geometry.extent) / 2
        self.geometry = fixed.geometry
        self.likeness = {}
        for count in (_FEW_VOXELS, *_VOXELS):
            width = 2 * self.radius / count
            pair = [
                _Seen(*_on_grid(image, mask, volume.geometry, grid), grid)
                for image, mask, volume in zip(images, masks, (fixed, moving), strict=True)
                for grid in [coarsened(volume.geometry, width)]
            ]
            self.likeness[count] = _Likeness(pair[0], pair[1], measure, self.middle, self.radius)

    def found(self) -> NDArray[np.float64]:
        """Return the map that makes the images most alike."""
        start = np.zeros(12)
        start[_SHIFT] = self.shift
        coarse = self.likeness[_VOXELS[0]]
        straight = coarse.descended(coarse.descended(start, _SHIFT, _STEPS), _ALL, _STEPS)
        turned = coarse.descended(self._turned(start, turns(self.geometry)), _ALL, _STEPS)
        least = coarse.unlike(straight)
        enough = least * (_CLEARLY if least > 0 else _CLEARLY_MORE)  # mutual information counts below 0
        start = turned if coarse.unlike(turned) < enough else straight
        return _matrix(self.likeness[_VOXELS[1]].descended(start, _ALL, _STEPS), self.middle, self.radius)

    def near(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the map near a given one that makes the images most alike."""
        return self._ended(_parameters(matrix, self.middle, self.radius))

    def otherwise(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the map that makes the images most alike of those turned far from a given one."""
        far = [turn for turn in turns(self.geometry) if abs(turn[0]) < _APART]
        start = _parameters(matrix, self.middle, self.radius)
        return self._ended(self._turned(start, np.array(far)))

    def information(self, matrix: NDArray[np.float64]) -> float:
        """Return how much of one image's information is in the other under a map, 0 to 1.

        The mutual information where both lie, by what the poorer of the two shares with itself; 0 where they
        hardly overlap.
        """
        return self.likeness[_VOXELS[-1]].information(matrix)

    def _ended(self, start: Parameters) -> NDArray[np.float64]:
        for count in _VOXELS:
            start = self.likeness[count].descended(start, _ALL, _STEPS)
        return _matrix(start, self.middle, self.radius)

    def _turned(self, start: Parameters, looked_at: NDArray[np.float64]) -> Parameters:
        """Return parameters near that turn, before a start, under which the images are most alike."""
        likeness = self.likeness[_FEW_VOXELS]
        matrix = _matrix(start, self.middle, self.radius)

        def with_turn(turn: NDArray[np.float64]) -> Parameters:
            around = np.eye(4)
            around[:3, :3] = rotation(turn)
            around[:3, 3] = self.middle - around[:3, :3] @ self.middle
            return _parameters(matrix @ around, self.middle, self.radius)

        values = np.array([likeness.unlike(with_turn(turn)) for turn in looked_at])
        kept: list[NDArray[np.float64]] = []
        for turn in looked_at[np.argsort(values, kind="stable")]:
            if len(kept) < _TRIED and all(abs(float(turn @ other)) < _APART for other in kept):
                kept.append(turn)
        tried = [likeness.descended(with_turn(turn), _ALL, _FEW_STEPS) for turn in kept]
        return min(tried, key=likeness.unlike)


class _Seen(NamedTuple):
    """An image on a grid, and how much its voxels count, None where all count."""

    image: NDArray[np.float32]
    mask: NDArray[np.float32] | None
    geometry: Geometry


def _on_grid(
    image: NDArray[np.float32], mask: NDArray[np.float32] | None, geometry: Geometry, grid: Geometry
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return an image and its mask on a coarse grid; what the mask leaves out is not mixed into the rest."""
    plain = on_grid(image, geometry, grid)
    if mask is None:
        return plain, None
    share = on_grid(mask, geometry, grid)
    counted = on_grid(image * mask, geometry, grid) / np.maximum(share, _LEAST_SHARE)
    return np.where(share > _LEAST_SHARE, counted, plain), share


class _Likeness:
    """How unlike two images are under an affine map, and the derivatives by its parameters.

    The mask of the moving image moves with it; that it does is left out of the derivatives, as the border of
    a mask is no structure to follow.
    """

    def __init__(
        self,
        fixed: _Seen,
        moving: _Seen,
        measure: Similarity,
        middle: NDArray[np.float64],
        radius: float,
    ) -> None:
        self.measure, self.middle, self.radius = measure, middle, radius
        self.affine, self.moving_affine = fixed.geometry.affine, moving.geometry.affine
        self.still, self.still_mask, self.mask = fixed.image, fixed.mask, moving.mask
        self.home = np.zeros((3, *fixed.geometry.shape), dtype=np.float32)
        slopes = gradient(moving.image, self.moving_affine)
        self.layers = np.stack([moving.image, *slopes]).astype(np.float32)
        index = np.stack(np.meshgrid(*map(np.arange, fixed.geometry.shape), indexing="ij"), axis=-1)
        self.away = np.moveaxis(fixed.geometry.index_to_world(index) - middle, -1, 0) / radius

    def __call__(self, part: Parameters, others: Parameters, free: slice) -> tuple[float, Parameters]:
        parameters = others.copy()
        parameters[free] = part
        matrix = _matrix(parameters, self.middle, self.radius)
        index = places(self.home, matrix @ self.affine, self.moving_affine)
        seen = sample(self.layers, index)
        value, _, slope = self.measure(self.still, seen[0], self.weight(index))
        force = (seen[1:] * slope).astype(np.float64)
        turned = [(force[a] * self.away[b]).sum() for a in range(3) for b in range(3)]
        return value, np.array([*turned, *(row.sum() for row in force)])[free]

    def unlike(self, parameters: Parameters) -> float:
        """Return what is minimised."""
        matrix = _matrix(parameters, self.middle, self.radius)
        index = places(self.home, matrix @ self.affine, self.moving_affine)
        weight = self.weight(index)
        if weight is not None:
            whole = weight.size if self.still_mask is None else float(self.still_mask.sum(dtype=np.float64))
            if float(weight.sum(dtype=np.float64)) < _LEAST_SEEN * whole:
                return np.inf
        return self.measure(self.still, sample(self.layers[:1], index)[0], weight)[0]

    def weight(self, index: NDArray[Any]) -> NDArray[np.float32] | None:
        """Return how much the voxels of the fixed grid count, from both masks; None where all count."""
        if self.mask is None:
            return self.still_mask
        moved: NDArray[np.float32] = sample(self.mask[None], index)[0]
        return moved if self.still_mask is None else moved * self.still_mask

    def descended(self, start: Parameters, free: slice, most: int) -> Parameters:
        """Return the parameters after at most so many steps in those that are free."""
        minimize = optional_import("scipy.optimize").minimize
        ended = start.copy()
        ended[free] = minimize(
            self, start[free], args=(start, free), jac=True, method="L-BFGS-B", options={"maxiter": most}
        ).x
        return ended

    def information(self, matrix: NDArray[np.float64]) -> float:
        index = places(self.home, matrix @ self.affine, self.moving_affine)
        there, weight = inside(index, self.layers.shape[1:]), self.weight(index)
        if weight is not None:
            there &= weight > 0.5
        if there.sum() < _FEWEST:
            return 0.0
        a = self.still[there].reshape(-1, 1, 1)
        b = sample(self.layers[:1], index)[0][there].reshape(-1, 1, 1)
        own = min(-mutual_information(image, image)[0] for image in (a, b))
        return -mutual_information(a, b)[0] / own if own > 0 else 0.0


def _parameters(matrix: NDArray[np.float64], middle: NDArray[np.float64], radius: float) -> Parameters:
    """Undo _matrix."""
    change = matrix[:3, :3] - np.eye(3)
    return np.concatenate([(change * radius).ravel(), matrix[:3, 3] + change @ middle])


def _matrix(parameters: Parameters, middle: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Return x -> x + P (x - middle) / radius + t: all twelve parameters are in mm."""
    matrix = np.eye(4)
    change = parameters[:9].reshape(3, 3) / radius
    matrix[:3, :3] += change
    matrix[:3, 3] = parameters[9:] - change @ middle
    return matrix
