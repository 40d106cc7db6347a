"""Registration in one pass through a network that was trained before, on images of the same kind.

The network sees both images on one grid, after the affine map, and gives a velocity at half the resolution;
what it gives is a :class:`~sagittal.registration.Registration` like the optimiser's, which can go on from it.
A second stage also sees how the first stage's map changes volumes and turns. Sources: Balakrishnan et al.
2019 and Dalca et al. 2019 (VoxelMorph); Zhu, Zhou, Liao, Yuan 2019 (the second stage).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sagittal.core.errors import ModelError
from sagittal.core.optional import optional_import
from sagittal.registration.levels import coarsened, normalised, on_grid
from sagittal.registration.motion import brought, exponential
from sagittal.registration.network_layers import (
    EXTRAS,
    Frame,
    extra_count,
    layer_shapes,
    one_thread,
    velocity_of,
)
from sagittal.registration.optimise import Registration, affine_between, from_velocity, register
from sagittal.registration.similarity import SIMILARITIES, similarity
from sagittal.registration.variational import Report, silent
from sagittal.volume import DisplacementField, Geometry, Volume
from sagittal.volume.field_calculus import Array

__all__ = ["RegistrationNetwork", "entered", "register_by_network"]


@dataclass(frozen=True, eq=False)
class RegistrationNetwork:
    """A trained network, and what it was trained on.

    Attributes:
        weights: float32 arrays by name.
        grid: The fixed images' grid in training; the network knows its directions and voxels.
        width: Channels at half the resolution.
        measure: What told it how unlike two images are.
        regularity: How much the velocity's gradient weighed against that.
        steps: Of training.
        seed: Of training.
        extra: What a second stage sees beside the images, a key of ``EXTRAS``.
        scale: Standard deviations, in training, of log Jacobian determinant and curl.
        first: The first stage.

    Raises:
        ModelError: Weights that do not make this network, or a second stage without a first.
    """

    weights: Mapping[str, NDArray[np.float32]]
    grid: Geometry
    width: int
    measure: str
    regularity: float
    steps: int
    seed: int
    extra: str | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    first: RegistrationNetwork | None = None

    def __post_init__(self) -> None:
        if self.measure not in SIMILARITIES:
            raise ModelError(
                "there is no such similarity", value=self.measure, expected=", ".join(SIMILARITIES)
            )
        if (self.first is None) != (self.extra is None) or self.extra not in (None, *EXTRAS):
            raise ModelError(
                "a second stage needs a first, and to know what it sees of it",
                value=self.extra,
                expected=", ".join(EXTRAS),
            )
        if self.first is not None and (self.first.first is not None or self.first.grid != self.grid):
            raise ModelError("the first stage is no first stage, or lies on another grid")
        if not all(np.isfinite(sd) and sd > 0 for sd in self.scale):
            raise ModelError("a scale is not positive", value=self.scale)
        dimensions = sum(count > 1 for count in self.grid.shape)
        if dimensions < 2:
            raise ModelError("a network needs two or three dimensions", value=self.grid.shape)
        wanted = layer_shapes(self.width, 2 + extra_count(self.extra, dimensions), dimensions)
        if {name: array.shape for name, array in self.weights.items()} != wanted:
            raise ModelError("the weights are not those of this network", value=f"{len(self.weights)} arrays")
        kept = {}
        for name in wanted:
            array = np.array(self.weights[name], np.float32)
            if not np.isfinite(array).all():
                raise ModelError("a weight is not finite", source=name)
            array.setflags(write=False)
            kept[name] = array
        object.__setattr__(self, "weights", MappingProxyType(kept))

    def velocity(self, frame: Frame, images: Array) -> Array:
        """Return velocities in mm, (B, 3, i/2, j/2, k/2) on ``frame.half``.

        Args:
            frame: The grid that the images lie on.
            images: Tensor of shape (B, 2, i, j, k): fixed and moving, from 0 to 1.
        """
        torch = optional_import("torch", "language")
        weights = {name: torch.from_numpy(array.copy()) for name, array in self.weights.items()}
        with one_thread(), torch.no_grad():
            return frame.vectors(velocity_of(weights, frame.flattened(self.channels(frame, images))))

    def channels(self, frame: Frame, images: Array) -> Array:
        """Return what the last stage sees: the images, and what the first one leaves."""
        if self.first is None:
            return images
        growth, turning = frame.described(frame.moved(self.first.velocity(frame, images)))
        extra = EXTRAS[str(self.extra)](growth / self.scale[0], turning / self.scale[1])
        return optional_import("torch", "language").cat([images, extra], 1)


def register_by_network(
    moving: Volume,
    fixed: Volume,
    network: RegistrationNetwork,
    *,
    affine: ArrayLike | None = None,
    refine: Sequence[int] = (),
    report: Report = silent,
) -> Registration:
    """Find, in one pass through a network, the diffeomorphism under which two images look most alike.

    Args:
        moving: The image that is to be brought to ``fixed``.
        fixed: The image whose grid is kept. It may lie on another grid than the network was trained on: both
            images are met on one that covers it, with the directions and the voxels of the training.
        network: From :func:`~sagittal.registration.train_network`.
        affine: The affine map from fixed to moving space, (4, 4) in RAS+ mm; by default it is looked for.
        refine: Iterations of :func:`~sagittal.registration.register` on each level, from the coarsest, which
            go on from what the network found; by default none.
        report: Is told the similarity before and after.

    Returns:
        As :func:`~sagittal.registration.register`; the first of the energies are those without and with the
        network's velocity.

    Raises:
        InputError: A constant image, or an affine that is not one.
        GeometryError: The images do not overlap under the affine map; they have another number of dimensions
            than the network, lie in slices that are not parallel to its, or are far coarser.
        MissingDependencyError: torch or scipy is not installed.
    """
    torch = optional_import("torch", "language")
    frame = Frame.around(network.grid, fixed.geometry)
    matrix, alike = affine_between(moving, fixed, affine, network.measure, report)
    a, b = entered(fixed, frame, "fixed image"), entered(moving, frame, "moving image", matrix)
    found = network.velocity(frame, torch.from_numpy(np.stack([a, b])[None]))
    displacement = exponential(found[0].numpy(), frame.half)
    moved = brought(b, frame.whole, displacement, frame.half, frame.whole)[0]
    compare = similarity(network.measure)
    energies: tuple[tuple[float, ...], ...] = ((compare(a, b)[0], compare(a, moved)[0]),)
    report(f"network: {energies[0][0]:.4f} to {energies[0][1]:.4f}")
    velocity = DisplacementField(found[0].numpy(), frame.half)
    if not refine:
        return from_velocity(velocity, matrix, fixed.geometry, moving.geometry, energies, alike)
    finer = register(
        moving,
        fixed,
        measure=network.measure,
        affine=matrix,
        start=velocity,
        iterations=refine,
        report=report,
    )
    return dataclasses.replace(finer, energies=energies + finer.energies)


def entered(
    volume: Volume, frame: Frame, name: str, matrix: NDArray[np.float64] | None = None
) -> NDArray[np.float32]:
    """Return an image from 0 to 1 on a frame's grid, seen through an affine map from the frame's space.

    Raises:
        InputError: It is constant.
    """
    width = min(step for axis, step in enumerate(frame.whole.spacing) if axis in frame.axes)
    grid = coarsened(volume.geometry, width)
    image = on_grid(normalised(volume, name), volume.geometry, grid)
    seen = grid if matrix is None else Geometry(grid.shape, np.linalg.inv(matrix) @ grid.affine)
    still: Any = np.zeros((3, *frame.whole.shape), np.float32)
    return np.asarray(brought(image, seen, still, frame.whole, frame.whole)[0], np.float32)
