"""Displacement fields: where each point of one image lies in another, in millimetres of space."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sagittal.core.errors import GeometryError, InputError
from sagittal.core.provenance import hash_array, hash_json
from sagittal.volume import field_calculus, field_maps
from sagittal.volume._arrays import frozen
from sagittal.volume.field_inverse import folded_onto, inverted
from sagittal.volume.geometry import Geometry
from sagittal.volume.resample import carried
from sagittal.volume.volume import Volume

__all__ = ["DisplacementField", "Inverse", "WarpInterpolation", "warp"]

WarpInterpolation = Literal["nearest", "linear", "cubic", "label"]
_ORDERS = {"nearest": 0, "label": 0, "linear": 1, "cubic": 3}
_PLANE = 0.5  # of a voxel: how far from a single slice a point still lies in it


@dataclass(frozen=True, eq=False, repr=False)
class DisplacementField:
    """A map x -> x + u(x) from the space of one image, where the field lies, into that of another.

    An image of the other space is brought to the field's grid by :meth:`warp`: the voxel at x gets the
    value found at x + u(x). A grid of one slice is a two-dimensional field.

    Attributes:
        vectors: u, float32 or float64 of shape (3, i, j, k), read-only: millimetres to the patient's
            right, anterior and superior (RAS+), whatever the directions of the grid.
        geometry: The grid that the field lies on.

    Raises:
        InputError: Vectors that are not finite floats.
        GeometryError: A shape that is not the geometry's.
    """

    vectors: NDArray[Any]
    geometry: Geometry

    def __post_init__(self) -> None:
        vectors = np.asarray(self.vectors)
        if vectors.dtype.kind in "iu" or vectors.dtype == np.float16:
            vectors = vectors.astype(np.float32 if vectors.dtype == np.float16 else np.float64)
        shape = (3, *self.geometry.shape)
        object.__setattr__(self, "vectors", frozen(vectors, "displacements", shape, "f"))

    @classmethod
    def identity(cls, geometry: Geometry) -> DisplacementField:
        """Return the map that moves nothing."""
        return cls(np.zeros((3, *geometry.shape), dtype=np.float32), geometry)

    @classmethod
    def from_affine(cls, matrix: ArrayLike, geometry: Geometry) -> DisplacementField:
        """Return the affine map x -> matrix x, (4, 4) in RAS+ mm, on a grid."""
        change = np.asarray(matrix, dtype=np.float64)
        if change.shape != (4, 4) or not np.isfinite(change).all():
            raise InputError("not an affine map", value=f"shape {change.shape}", expected="finite, (4, 4)")
        steps = (change - np.eye(4)) @ geometry.affine
        index = list(np.ogrid[tuple(slice(0, count) for count in geometry.shape)])
        vectors = np.empty((3, *geometry.shape))
        for row in range(3):
            vectors[row] = field_calculus.combine(steps[row, :3], index) + steps[row, 3]
        return cls(vectors, geometry)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each index axis."""
        return self.geometry.shape

    @property
    def is_planar(self) -> bool:
        """Whether the field lies in one slice."""
        return sum(count > 1 for count in self.shape) <= 2

    @functools.cached_property
    def content_hash(self) -> str:
        """sha256 of vectors (dtype, shape, values) and geometry."""
        return hash_json({"vectors": hash_array(self.vectors), "geometry": self.geometry.to_json()})

    @functools.cached_property
    def magnitude(self) -> NDArray[Any]:
        """Length of each displacement in mm, shape (i, j, k)."""
        length: NDArray[Any] = np.sqrt(np.square(self.vectors, dtype=np.float64).sum(axis=0))
        return length

    @functools.cached_property
    def determinant(self) -> NDArray[Any]:
        """Jacobian determinant, shape (i, j, k): above 1 the map enlarges, at 0 and below it folds."""
        found: NDArray[Any] = field_calculus.jacobian_determinant(self.vectors, self.geometry.affine)
        return found

    @property
    def folds(self) -> int:
        """Number of voxels where the Jacobian determinant is not positive."""
        return int(np.count_nonzero(self.determinant <= 0))

    def jacobian(self) -> Volume:
        """Return the Jacobian determinant as an image."""
        return Volume(self.determinant, self.geometry, unit="1")

    def log_jacobian(self, floor: float = 1e-3) -> Volume:
        """Return the logarithm of the Jacobian determinant, no less than that of ``floor``."""
        found = field_calculus.log_determinant(self.determinant, floor)
        return Volume(found, self.geometry, unit="1")

    def curl(self) -> NDArray[Any]:
        """Return the curl in RAS+, shape (3, i, j, k), without unit; twice a small local rotation."""
        found: NDArray[Any] = field_calculus.curl(self.vectors, self.geometry.affine)
        return found

    def summary(self) -> dict[str, float]:
        """Return the figures that describe a deformation at a glance.

        Returns:
            ``mean_mm`` and ``max_mm`` of the displacement; ``folds`` in voxels; least, largest and mean
            Jacobian determinant and mean logarithm of it, as ``jacobian_min``, ``jacobian_max``,
            ``jacobian_mean``, ``log_jacobian_mean``; ``curl_max``.
        """
        return {
            "mean_mm": float(self.magnitude.mean()),
            "max_mm": float(self.magnitude.max()),
            "folds": self.folds,
            "jacobian_min": float(self.determinant.min()),
            "jacobian_max": float(self.determinant.max()),
            "jacobian_mean": float(self.determinant.mean(dtype=np.float64)),
            "log_jacobian_mean": float(self.log_jacobian().array.mean(dtype=np.float64)),
            "curl_max": float(np.linalg.norm(self.curl(), axis=0).max()),
        }

    def compose(self, inner: DisplacementField) -> DisplacementField:
        """Return the map that applies ``inner`` first and then this one, on the grid of ``inner``.

        Beyond its own grid this field goes on with the displacement at its face.

        Raises:
            GeometryError: This field is a slice, and ``inner`` leads out of it.
        """
        places = field_maps.places(inner.vectors, inner.geometry.affine, self.geometry.affine)
        for axis, count in enumerate(self.shape):
            away = float(np.abs(places[axis]).max()) if count == 1 else 0.0
            if away > _PLANE:
                raise GeometryError(
                    "the inner map leads out of the slice that the outer one lies in",
                    value=f"{away:.3g} voxels out of it",
                    expected="two maps in one slice, or two in space",
                )
        moved = inner.vectors + field_maps.sample(self.vectors, places.astype(np.float64, copy=False))
        return DisplacementField(moved, inner.geometry)

    def resample(self, geometry: Geometry) -> DisplacementField:
        """Return the same map on another grid, by linear interpolation."""
        return self.compose(DisplacementField(np.zeros((3, *geometry.shape)), geometry))

    def exponentiate(self, squarings: int | None = None) -> DisplacementField:
        """Return where this velocity, in mm per unit of time, has moved each point at time 1.

        See :func:`sagittal.volume.field_maps.exponentiate`.
        """
        moved = field_maps.exponentiate(self.vectors, self.geometry.affine, squarings)
        return DisplacementField(moved, self.geometry)

    def invert(
        self, geometry: Geometry | None = None, *, tolerance_mm: float = 1e-3, iterations: int = 200
    ) -> Inverse:
        """Return the inverse map, and where it could not be found.

        The equation v(y) = -u(y + v(y)) is solved in each voxel by fixed-point steps, halved where they
        do not come closer; what is left over is measured in each voxel.

        Args:
            geometry: The grid of the inverse, in the space that this map leads to; by default its own.
            tolerance_mm: Largest length of v(y) + u(y + v(y)) that counts as solved.
            iterations: At most so many steps.

        Raises:
            InputError: A tolerance or a number of steps that is not positive.
            GeometryError: This field is a slice and the grid asked for lies elsewhere.
        """
        grid = self.geometry if geometry is None else geometry
        if not (tolerance_mm > 0 and iterations > 0):
            raise InputError(
                "an inverse needs a positive tolerance and number of steps",
                value=f"{tolerance_mm} mm, {iterations} steps",
            )
        start = self.resample(grid)
        found, residual, beyond = inverted(
            self.vectors, self.geometry.affine, -start.vectors, grid.affine, tolerance_mm, iterations
        )
        failed = (residual > tolerance_mm) | folded_onto(
            self.vectors, self.geometry.affine, self.determinant <= 0, grid
        )
        field = DisplacementField(found.astype(self.vectors.dtype), grid)
        return Inverse(field, residual, failed, beyond)

    def warp(
        self, volume: Volume, interpolation: WarpInterpolation = "linear", *, outside: float | None = None
    ) -> Volume:
        """Return an image of the space that this map leads to, brought to the grid of the field.

        See :func:`warp`.
        """
        return warp(volume, self, interpolation, outside=outside)

    def __repr__(self) -> str:
        return (
            f"DisplacementField({self.vectors.dtype}, {self.geometry!r}, max {self.magnitude.max():.4g} mm)"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return DisplacementField, (self.vectors, self.geometry)


@dataclass(frozen=True, eq=False)
class Inverse:
    """An inverse map with its check.

    Attributes:
        field: The inverse.
        residual_mm: How far from y the given map leads after the inverse has been applied to y; shape
            (i, j, k).
        failed: Voxels where the residual is above the tolerance, or within a voxel of which a fold
            leads: there the given map has no inverse, or several. Shape (i, j, k).
        beyond: Voxels that come from beyond the given map's grid, where it was only continued; shape
            (i, j, k).
    """

    field: DisplacementField
    residual_mm: NDArray[Any]
    failed: NDArray[np.bool_]
    beyond: NDArray[np.bool_]


def warp(
    volume: Volume,
    field: DisplacementField,
    interpolation: WarpInterpolation = "linear",
    *,
    outside: float | None = None,
) -> Volume:
    """Bring a volume to the grid of a field: the voxel at x gets the value at x + u(x).

    Variance and probabilities are carried along as :func:`sagittal.volume.resample` says.

    Args:
        volume: An image of the space that the map leads to.
        field: The map.
        interpolation: "nearest" keeps dtype and values; "label" too, and gives each voxel the label with
            the largest linear share, whose edges are smoother; "linear" and "cubic" (B-spline, which can
            overshoot) give float32 or float64.
        outside: Value of voxels that come from outside the volume; by default -1024 in HU, else 0.

    Raises:
        InputError: Another interpolation, labels that are not whole numbers, or a value for outside that
            the dtype cannot hold.
        GeometryError: Nothing of the volume is seen.
        MissingDependencyError: scipy is not installed.
    """
    if interpolation not in _ORDERS:
        raise InputError(
            "unknown interpolation", value=interpolation, expected="nearest, linear, cubic or label"
        )
    if interpolation == "label" and volume.array.dtype.kind == "f":
        broken = volume.array != np.rint(volume.array)
        if broken.any():
            first = volume.array[broken][0]
            raise InputError("labels are not whole numbers", value=first, expected="whole numbers")
    index = field_maps.places(
        field.vectors.astype(np.float64, copy=False), field.geometry.affine, volume.geometry.affine
    )
    inside = field_maps.inside(index, volume.shape)
    if not inside.any():
        raise GeometryError(
            "the map leads nowhere into the image",
            value=f"{volume.geometry!r} seen from {field.geometry!r}",
            expected="a field and an image that overlap",
        )

    def sampled(values: NDArray[Any], order: int) -> NDArray[Any]:
        if order > 0:
            found: NDArray[Any] = field_maps.sample(values, index, order)
            return found
        vote = interpolation == "label" and values is volume.array
        return field_maps.most_common(values, index) if vote else field_maps.nearest(values, index)

    return carried(volume, field.geometry, sampled, inside, _ORDERS[interpolation], outside)
