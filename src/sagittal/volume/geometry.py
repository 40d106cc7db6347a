"""Where voxels lie: shape and affine in RAS+ millimetres, without the voxels themselves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sagittal.core.errors import GeometryError

__all__ = ["Geometry"]

_CODES = (("L", "R"), ("P", "A"), ("I", "S"))
_SMALLEST_DETERMINANT = 1e-6  # of the unit axes: below it the axes lie in one plane for any purpose
_FARTHEST_MM = 1e9  # beyond it volumes overflow


@dataclass(frozen=True, eq=False, repr=False)
class Geometry:
    """A voxel grid in space.

    Attributes:
        shape: Number of voxels along each of the three index axes.
        affine: float64 matrix of shape (4, 4), read-only. It maps a voxel index (i, j, k), where
            integers are voxel *centres*, to a position in millimetres whose axes point to the
            patient's right, anterior and superior (RAS+). The axes need not be orthogonal: a tilted
            CT gantry gives a sheared grid.

    Equality and hash go by value, exactly; see :meth:`is_aligned` for equality up to a distance.

    Raises:
        GeometryError: A shape that is not three positive integers; an affine that is not 4x4 and
            finite, is singular, or whose last row is not (0, 0, 0, 1).
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _checked_shape(self.shape))
        object.__setattr__(self, "affine", _checked_affine(self.affine))

    @classmethod
    def from_spacing(
        cls,
        shape: Sequence[int],
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        origin: Sequence[float] = (0.0, 0.0, 0.0),
        direction: ArrayLike | None = None,
    ) -> Geometry:
        """Build a grid from spacing in mm, the first voxel's centre in RAS+ mm, and unit axes in columns.

        Raises:
            GeometryError: A spacing that is not positive, or anything the constructor refuses.
        """
        steps = np.asarray(spacing, dtype=np.float64)
        if steps.shape != (3,) or not np.all(steps > 0):
            raise GeometryError("spacing must be three positive numbers", value=list(spacing), expected="mm")
        affine = np.eye(4)
        axes = np.eye(3) if direction is None else np.asarray(direction, dtype=np.float64)
        affine[:3, :3] = axes * steps
        affine[:3, 3] = origin
        i, j, k = shape
        return cls((i, j, k), affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along each index axis, in mm."""
        x, y, z = (float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    @property
    def direction(self) -> NDArray[np.float64]:
        """Unit vectors of the index axes in RAS+, as the columns of a (3, 3) matrix."""
        axes: NDArray[np.float64] = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return axes

    @property
    def origin(self) -> tuple[float, float, float]:
        """Centre of voxel (0, 0, 0) in RAS+ mm."""
        x, y, z = (float(value) for value in self.affine[:3, 3])
        return x, y, z

    @property
    def orientation(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """For each index axis the world axis (0, 1, 2) nearest to it and the sign along it (-1 or 1).

        Each world axis is used once; the index axis with the clearest direction chooses first.
        """
        left, _, right = np.linalg.svd(self.direction)  # the nearest orthogonal axes, for a sheared grid
        nearest = left @ right
        weight = np.abs(nearest)
        found: dict[int, tuple[int, int]] = {}
        for index_axis in np.argsort(-weight.max(axis=0), kind="stable"):
            taken = [world for world, _ in found.values()]
            column = weight[:, index_axis].copy()
            column[taken] = -1.0
            world_axis = int(np.argmax(column))
            found[int(index_axis)] = (world_axis, -1 if nearest[world_axis, index_axis] < 0 else 1)
        return found[0], found[1], found[2]

    @property
    def axis_codes(self) -> tuple[str, str, str]:
        """Letters of the directions that the index axes point to, such as ("R", "A", "S")."""
        a, b, c = (_CODES[axis][(sign + 1) // 2] for axis, sign in self.orientation)
        return a, b, c

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres; right for sheared grids too."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def extent(self) -> tuple[float, float, float]:
        """Length of the grid along each index axis from outer face to outer face, in mm."""
        x, y, z = (count * step for count, step in zip(self.shape, self.spacing, strict=True))
        return x, y, z

    @property
    def corners(self) -> NDArray[np.float64]:
        """World positions of the eight corner voxels' centres, shape (8, 3), RAS+ mm."""
        return self.index_to_world(list(itertools.product(*((0, count - 1) for count in self.shape))))

    def index_to_world(self, index: ArrayLike) -> NDArray[np.float64]:
        """Map voxel indices of shape (..., 3), fractions allowed, to RAS+ mm of the same shape."""
        points = _points(index)
        world: NDArray[np.float64] = points @ self.affine[:3, :3].T + self.affine[:3, 3]
        return world

    def world_to_index(self, world: ArrayLike) -> NDArray[np.float64]:
        """Map RAS+ mm of shape (..., 3) to voxel indices (with fractions) of the same shape."""
        offset = _points(world) - self.affine[:3, 3]
        index = np.asarray(np.linalg.solve(self.affine[:3, :3], offset.reshape(-1, 3).T).T, dtype=np.float64)
        return index.reshape(offset.shape)

    def is_aligned(self, other: Geometry, tolerance_mm: float = 1e-3) -> bool:
        """Tell whether both grids have one shape and no voxel lies further apart than ``tolerance_mm``."""
        if self.shape != other.shape:
            return False
        # The distance between two affine maps is convex, so over a box it is greatest at a corner.
        apart = np.linalg.norm(self.corners - other.corners, axis=1)
        return bool(np.all(apart <= tolerance_mm))

    def cropped(self, slices: Sequence[slice]) -> Geometry:
        """Return the grid of ``array[slices]``: the same voxels stay at the same positions in space.

        Args:
            slices: Three slices with step 1; negative bounds count from the end, as in numpy.

        Raises:
            GeometryError: Not three slices, a step other than 1, or an empty crop.
        """
        if len(slices) != 3:
            raise GeometryError(
                "a crop needs one slice for each axis", value=list(slices), expected="3 slices"
            )
        start: list[int] = []
        shape: list[int] = []
        for axis, (cut, count) in enumerate(zip(slices, self.shape, strict=True)):
            low, high, step = cut.indices(count)
            if step != 1:
                raise GeometryError("a crop keeps every voxel", value=cut, expected="step 1")
            if high <= low:
                raise GeometryError(
                    f"the crop is empty along axis {axis}", value=cut, expected=f"within {count}"
                )
            start.append(low)
            shape.append(high - low)
        affine = self.affine.copy()
        affine[:3, 3] = self.index_to_world(start)
        return Geometry((shape[0], shape[1], shape[2]), affine)

    def to_json(self) -> dict[str, Any]:
        """Return shape and affine as JSON values; :meth:`from_json` gives back an equal geometry."""
        return {"shape": list(self.shape), "affine": self.affine.tolist()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Geometry:
        """Build a geometry from what :meth:`to_json` gave.

        Raises:
            GeometryError: A key is missing, or a value is refused by the constructor.
        """
        missing = sorted({"shape", "affine"} - set(value))
        if missing:
            raise GeometryError("the geometry lacks a key", value=missing, expected="shape and affine")
        return cls(value["shape"], value["affine"])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Geometry):
            return NotImplemented
        return self.shape == other.shape and bool(np.array_equal(self.affine, other.affine))

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    def __repr__(self) -> str:
        spacing = ", ".join(f"{step:.4g}" for step in self.spacing)
        origin = ", ".join(f"{value:.4g}" for value in self.origin)
        codes = "".join(self.axis_codes)
        return f"Geometry(shape={self.shape}, spacing=({spacing}), origin=({origin}), axes={codes})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Geometry, (self.shape, self.affine.copy())


def _checked_shape(shape: object) -> tuple[int, int, int]:
    problem, expected = "a grid's shape must be three positive integers", "three counts of 1 or more"
    try:
        counts = [int(count) for count in shape]  # type: ignore[attr-defined]
        same = all(count == given for count, given in zip(counts, shape, strict=True))  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError) as error:
        raise GeometryError(problem, value=shape, expected=expected) from error
    if len(counts) != 3 or not same or min(counts) < 1:
        raise GeometryError(problem, value=shape, expected=expected)
    return counts[0], counts[1], counts[2]


def _checked_affine(affine: object) -> NDArray[np.float64]:
    try:
        matrix = np.array(affine, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise GeometryError("an affine must hold numbers", value=affine, expected="4x4 matrix") from error
    if matrix.shape != (4, 4):
        raise GeometryError("an affine has the wrong shape", value=matrix.shape, expected="(4, 4)")
    if not np.all(np.isfinite(matrix)):
        raise GeometryError("an affine must be finite", value=matrix.tolist())
    if np.abs(matrix).max() > _FARTHEST_MM:
        raise GeometryError(
            "an affine reaches too far",
            value=float(np.abs(matrix).max()),
            expected=f"at most {_FARTHEST_MM:g} mm",
        )
    if matrix[3].tolist() != [0.0, 0.0, 0.0, 1.0]:
        raise GeometryError(
            "an affine's last row is wrong", value=matrix[3].tolist(), expected="[0, 0, 0, 1]"
        )
    lengths = [math.sqrt(float(column @ column)) for column in matrix[:3, :3].T]
    if min(lengths) == 0.0 or abs(float(np.linalg.det(matrix[:3, :3] / lengths))) < _SMALLEST_DETERMINANT:
        raise GeometryError(
            "the affine is singular", value=matrix.tolist(), expected="three axes that span space"
        )
    matrix += 0.0  # -0.0 becomes 0.0, so that equal affines hash alike
    matrix.setflags(write=False)
    return matrix


def _points(values: ArrayLike) -> NDArray[np.float64]:
    points = np.asarray(values, dtype=np.float64)
    if points.ndim == 0 or points.shape[-1] != 3:
        raise GeometryError("points have the wrong shape", value=points.shape, expected="(..., 3)")
    return points
