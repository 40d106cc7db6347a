"""Phantoms that are known exactly: bodies with analytic line integrals, in place of voxels.

A phantom is a list of bodies that add up. Its values are densities, attenuation relative to water: 0 is
vacuum (-1000 HU) and 1 is water (0 HU). :meth:`Phantom.rasterise` makes voxels of it, and
``sagittal.reconstruction.line_integrals`` the sinogram that an ideal scanner would measure, neither from the
other.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.volume.geometry import Geometry
from sagittal.volume.volume import Volume

__all__ = ["WATER_PER_MM", "Body", "Phantom", "Shape"]

WATER_PER_MM = 0.02
"""Attenuation of water where none is given, 1/mm: that of photons of about 65 keV."""

Shape = Literal["ellipsoid", "box"]


@dataclass(frozen=True, kw_only=True)
class Body:
    """An ellipsoid or a box that adds a density, constant or linear in place.

    Attributes:
        shape: "ellipsoid" or "box".
        centre: Its middle, RAS+ mm.
        half_sizes: Half its length along each of its axes, mm. ``math.inf`` for the third makes a cylinder
            or a bar that is the same in each slice.
        turn: Rotation about the third axis, radians, from right to anterior.
        density: What it adds at its middle, relative to water.
        ramp: What that grows by for each mm to the right, to anterior and to superior.
        name: Names what a measurement looks for; empty for the rest.

    Raises:
        InputError: Another shape, numbers that are not finite, a size that is not positive, a body without
            an end that is no prism along the third axis.
    """

    shape: Shape = "ellipsoid"
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    half_sizes: tuple[float, float, float]
    turn: float = 0.0
    density: float
    ramp: tuple[float, float, float] = (0.0, 0.0, 0.0)
    name: str = ""

    def __post_init__(self) -> None:
        if self.shape not in ("ellipsoid", "box"):
            raise InputError(
                "a body has an unknown shape", source="shape", value=self.shape, expected="ellipsoid or box"
            )
        sizes = self.half_sizes
        if len(sizes) != 3 or not all(size > 0 for size in sizes) or not all(map(math.isfinite, sizes[:2])):
            raise InputError(
                "a body needs three positive sizes",
                source="half_sizes",
                value=sizes,
                expected="mm; infinity only for the third",
            )
        numbers = (*self.centre, self.turn, self.density, *self.ramp)
        if len(self.centre) != 3 or len(self.ramp) != 3 or not all(map(math.isfinite, numbers)):
            raise InputError("a body's numbers must be finite, three to a place", value=repr(self))
        if math.isinf(sizes[2]) and self.ramp[2]:
            raise InputError(
                "a body without an end cannot have a ramp along it",
                source="ramp",
                value=self.ramp,
                expected="0",
            )

    def local(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return vectors of shape (..., 3) along the body's own axes, in units of its half sizes."""
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        turned = np.stack(
            [
                cos * vectors[..., 0] + sin * vectors[..., 1],
                cos * vectors[..., 1] - sin * vectors[..., 0],
                vectors[..., 2],
            ],
            axis=-1,
        )
        return np.asarray(turned / np.asarray(self.half_sizes))

    def densities(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what the body adds at points of shape (..., 3), RAS+ mm."""
        offset = points - np.asarray(self.centre)
        place = self.local(offset)
        inside = (
            (place**2).sum(axis=-1) <= 1 if self.shape == "ellipsoid" else np.abs(place).max(axis=-1) <= 1
        )
        return np.where(inside, self.density + offset @ np.asarray(self.ramp), 0.0)

    def integrals(self, points: NDArray[np.float64], directions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the integral of the body along straight lines, mm times density.

        The density is linear along a line, so its integral is the density halfway through times the length.

        Args:
            points: A point of each line, shape (..., 3), RAS+ mm.
            directions: Its unit direction, shape (..., 3).

        Raises:
            InputError: A line runs for ever inside a body without an end.
        """
        offset = points - np.asarray(self.centre)
        p, d = self.local(offset), self.local(directions)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.shape == "ellipsoid":
                dd, pd, pp = (d * d).sum(axis=-1), (p * d).sum(axis=-1), (p * p).sum(axis=-1)
                root = pd**2 - dd * (pp - 1)
                half = np.sqrt(np.maximum(root, 0)) / dd
                first, last = -pd / dd - half, -pd / dd + half
                beside = (dd == 0) & (pp > 1)
            else:
                near, far = (-np.sign(d) - p) / d, (np.sign(d) - p) / d
                along = d == 0
                outside = along & (np.abs(p) > 1)
                near, far = np.where(along, -np.inf, near), np.where(along, np.inf, far)
                first, last = near.max(axis=-1), far.min(axis=-1)
                beside = outside.any(axis=-1)
            length = np.where(beside, 0.0, np.maximum(last - first, 0.0))
        if not np.all(np.isfinite(length)):
            raise InputError("a ray runs along a body that has no end", source=self.name or "half_sizes")
        middle = np.where(length > 0, (first + last) / 2, 0.0)
        at = self.density + (offset + middle[..., None] * directions) @ np.asarray(self.ramp)
        return np.asarray(length * at)


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Bodies whose densities add up.

    Attributes:
        name: What it is called.
        bodies: The bodies.

    Raises:
        InputError: There is none, or two have one name.
    """

    name: str
    bodies: tuple[Body, ...]

    def __post_init__(self) -> None:
        names = [body.name for body in self.bodies if body.name]
        if not self.bodies or len(set(names)) != len(names):
            raise InputError("a phantom needs bodies, each with a name of its own or none", value=names)

    @property
    def named(self) -> dict[str, Body]:
        """The bodies that a measurement looks for, by name."""
        return {body.name: body for body in self.bodies if body.name}

    def densities(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the density at points of shape (..., 3), RAS+ mm; water is 1."""
        total = np.zeros(points.shape[:-1])
        for body in self.bodies:
            total += body.densities(points)
        return total

    def rasterise(
        self,
        grid: Geometry,
        supersample: int = 4,
        *,
        unit: Literal["HU", "1/mm"] = "HU",
        water: float = WATER_PER_MM,
    ) -> Volume:
        """Return the phantom on a grid; a voxel is the mean of ``supersample`` points along each of its axes.

        Args:
            grid: Where the voxels lie.
            supersample: Points along each axis of a voxel. 1 takes the middle alone.
            unit: "HU", or "1/mm" for attenuation.
            water: Attenuation of water, 1/mm; used for "1/mm" alone.

        Returns:
            A float32 volume.

        Raises:
            InputError: ``supersample`` below 1, another unit, attenuation of water that is not positive.
        """
        if supersample < 1:
            raise InputError(
                "a voxel needs a point", source="supersample", value=supersample, expected="1 or more"
            )
        if unit not in ("HU", "1/mm") or not water > 0:
            raise InputError(
                "a phantom has no such unit",
                value=(unit, water),
                expected="HU, or 1/mm with the water's attenuation",
            )
        places = (np.arange(supersample) + 0.5) / supersample - 0.5
        total = np.zeros(grid.shape)
        for body in self.bodies:
            box = _box(body, grid)
            if box is None:
                continue
            index = np.stack(np.meshgrid(*(np.arange(s.start, s.stop) for s in box), indexing="ij"), axis=-1)
            axes = [places] * 3
            if _same_in_each_slice(body, grid):
                axes[2] = np.zeros(1)
            part = np.zeros(index.shape[:-1])
            for shift in itertools.product(*axes):
                part += body.densities(grid.index_to_world(index + np.asarray(shift)))
            total[box] += part / math.prod(len(axis) for axis in axes)
        values = 1000 * (total - 1) if unit == "HU" else total * water
        return Volume(values.astype(np.float32), grid, unit=unit, facts={"phantom": self.name})


def _box(body: Body, grid: Geometry) -> tuple[slice, slice, slice] | None:
    """Return the voxels that the body can touch."""
    reach = math.hypot(*body.half_sizes[:2])
    low = np.array([-reach, -reach, -body.half_sizes[2]]) + body.centre
    high = np.array([reach, reach, body.half_sizes[2]]) + body.centre
    far = float(np.abs(grid.corners).max()) + max(grid.spacing)
    low, high = np.maximum(low, -far), np.minimum(high, far)
    corners = grid.world_to_index(list(itertools.product(*zip(low, high, strict=True))))
    first = np.maximum(np.floor(corners.min(axis=0) - 0.5), 0).astype(int)
    last = np.minimum(np.ceil(corners.max(axis=0) + 0.5) + 1, grid.shape).astype(int)
    if np.any(last <= first):
        return None
    i, j, k = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    return i, j, k


def _same_in_each_slice(body: Body, grid: Geometry) -> bool:
    return math.isinf(body.half_sizes[2]) and not np.any(grid.affine[:2, 2])
