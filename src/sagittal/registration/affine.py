"""The affine map between two images: centres of mass first, then the parameters that make them most alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.optional import optional_import
from sagittal.registration.levels import coarsened, normalised, on_grid
from sagittal.registration.similarity import Similarity, correlation, mutual_information
from sagittal.volume import Geometry, Volume
from sagittal.volume.field_calculus import gradient
from sagittal.volume.field_maps import places, sample

__all__ = ["affine_registration", "centre_of_mass"]

_VOXELS = (20, 40)  # along the longest side, coarse and then finer
_STEPS = 80


def centre_of_mass(image: NDArray[Any], geometry: Geometry) -> NDArray[np.float64]:
    """Return the centre of mass of intensities that are not negative, RAS+ mm."""
    total = float(image.sum(dtype=np.float64))
    index = []
    for axis, count in enumerate(geometry.shape):
        rest = tuple(other for other in range(3) if other != axis)
        index.append(float((image.sum(axis=rest, dtype=np.float64) * np.arange(count)).sum()) / total)
    return geometry.index_to_world(index)


def affine_registration(moving: Volume, fixed: Volume, *, multimodal: bool = False) -> NDArray[np.float64]:
    """Return the affine map from the space of ``fixed`` into that of ``moving`` that makes them most alike.

    It begins where the centres of mass fall together, however far apart the images lie, and first moves
    only, then turns, scales and shears; turns of more than about a third of a right angle are not found.

    Args:
        moving: The image that is to be brought to ``fixed``.
        fixed: The image that stays.
        multimodal: Compare by mutual information, for images of different kinds; else by correlation.

    Returns:
        (4, 4), RAS+ mm.

    Raises:
        InputError: A constant image.
        MissingDependencyError: torch or scipy is not installed.
    """
    minimize = optional_import("scipy.optimize").minimize
    measure = mutual_information if multimodal else correlation
    images = normalised(fixed, "fixed image"), normalised(moving, "moving image")
    middle = centre_of_mass(images[0], fixed.geometry)
    shift = centre_of_mass(images[1], moving.geometry) - middle
    radius = max(fixed.geometry.extent) / 2
    start = np.zeros(12)
    start[9:] = shift
    for stage, count in enumerate((_VOXELS[0], *_VOXELS)):
        width = 2 * radius / count
        pair = [
            (on_grid(image, volume.geometry, grid), grid)
            for image, volume in zip(images, (fixed, moving), strict=True)
            for grid in [coarsened(volume.geometry, width)]
        ]
        likeness = _Likeness(pair[0], pair[1], measure, middle, radius)
        free = slice(9, 12) if stage == 0 else slice(0, 12)
        found = minimize(
            likeness,
            start[free],
            args=(start.copy(), free),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": _STEPS},
        )
        start[free] = found.x
    return _matrix(start, middle, radius)


class _Likeness:
    """How unlike two images are under an affine map, and the derivatives by its parameters."""

    def __init__(
        self,
        fixed: tuple[NDArray[np.float32], Geometry],
        moving: tuple[NDArray[np.float32], Geometry],
        measure: Similarity,
        middle: NDArray[np.float64],
        radius: float,
    ) -> None:
        torch = optional_import("torch", "language")
        self.measure, self.middle, self.radius = measure, middle, radius
        self.affine, self.moving_affine = fixed[1].affine, moving[1].affine
        self.still = torch.from_numpy(fixed[0])
        self.home = torch.zeros((3, *fixed[1].shape))
        other = torch.from_numpy(moving[0])
        self.layers = torch.stack([other, *gradient(other, self.moving_affine)])
        index = np.stack(np.meshgrid(*map(np.arange, fixed[1].shape), indexing="ij"), axis=-1)
        self.away = np.moveaxis(fixed[1].index_to_world(index) - middle, -1, 0) / radius

    def __call__(
        self, part: NDArray[np.float64], others: NDArray[np.float64], free: slice
    ) -> tuple[float, NDArray[np.float64]]:
        parameters = others.copy()
        parameters[free] = part
        matrix = _matrix(parameters, self.middle, self.radius)
        seen = sample(self.layers, places(self.home, matrix @ self.affine, self.moving_affine))
        value, _, slope = self.measure(self.still, seen[0])
        force = np.asarray((seen[1:] * slope).double())
        turned = [(force[a] * self.away[b]).sum() for a in range(3) for b in range(3)]
        return value, np.array([*turned, *(row.sum() for row in force)])[free]


def _matrix(
    parameters: NDArray[np.float64], middle: NDArray[np.float64], radius: float
) -> NDArray[np.float64]:
    """Return x -> x + P (x - middle) / radius + t: all twelve parameters are in mm."""
    matrix = np.eye(4)
    change = parameters[:9].reshape(3, 3) / radius
    matrix[:3, :3] += change
    matrix[:3, 3] = parameters[9:] - change @ middle
    return matrix
