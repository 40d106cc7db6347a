"""Derivatives of vector fields on a grid in space: Jacobian determinant and curl, in numpy and in torch.

Every function takes numpy arrays or torch tensors and returns the same kind; with tensors, gradients flow
through it. A field has shape (..., 3, i, j, k): its components point to the patient's right, anterior and
superior (RAS+), in millimetres, whatever the axes of its grid. Derivatives are central differences, and
one-sided at the grid's faces; along an axis of one voxel they are 0, which makes a single slice a
two-dimensional problem.

The trap that this module exists for: differences along the *index* axes are derivatives in *space* only
after the grid's affine has been applied. Code that divides by the spacing alone has the wrong signs on a
flipped axis and is wrong on an oblique one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import

__all__ = [
    "Array",
    "curl",
    "determinant",
    "gradient",
    "jacobian",
    "jacobian_determinant",
    "log_determinant",
    "log_jacobian",
    "namespace",
]

Array = Any
"""A numpy array or a torch tensor."""

_SPATIAL = (-3, -2, -1)


def namespace(values: Array) -> Any:
    """Return the library that ``values`` belong to: ``numpy`` or ``torch``."""
    return np if isinstance(values, np.ndarray) else optional_import("torch", "language")


def difference(values: Array, axis: int) -> Array:
    """Return differences between neighbours along an index axis, per voxel: central, one-sided at the ends.

    Args:
        values: Shape (..., i, j, k).
        axis: -3, -2 or -1.
    """
    library = namespace(values)
    count = values.shape[axis]
    if count == 1:
        return values * 0
    before = library.concatenate([_part(values, axis, 0, 1), _part(values, axis, 0, count - 1)], axis)
    after = library.concatenate([_part(values, axis, 1, count), _part(values, axis, count - 1, count)], axis)
    steps = np.full(count, 0.5)
    steps[[0, -1]] = 1.0
    shape = [1, 1, 1]
    shape[axis] = count
    return (after - before) * like(steps.reshape(shape), values)


def gradient(values: Array, affine: ArrayLike) -> list[Array]:
    """Return the derivatives of ``values`` along the world's axes R, A and S, per mm.

    Args:
        values: Shape (..., i, j, k).
        affine: The grid's, (4, 4) or its (3, 3) part.

    Returns:
        Three arrays of the shape of ``values``.
    """
    inverse = np.linalg.inv(np.asarray(affine, dtype=np.float64)[:3, :3])
    steps = [difference(values, axis) for axis in _SPATIAL]
    return [combine(inverse[:, world], steps) for world in range(3)]


def jacobian(displacement: Array, affine: ArrayLike) -> list[list[Array]]:
    """Return the Jacobian matrix of x -> x + displacement(x): 3 rows (components) of 3 world derivatives.

    Args:
        displacement: Shape (..., 3, i, j, k), mm in RAS+.
        affine: The grid's.

    Returns:
        Entries of shape (..., i, j, k) each.
    """
    rows = [gradient(component, affine) for component in components(displacement)]
    return [
        [entry + 1 if row == column else entry for column, entry in enumerate(rows[row])] for row in range(3)
    ]


def determinant(matrix: list[list[Array]]) -> Array:
    """Return the determinant of a 3 x 3 matrix of arrays."""
    (a, b, c), (d, e, f), (g, h, i) = matrix
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def jacobian_determinant(displacement: Array, affine: ArrayLike) -> Array:
    """Return how a small volume at x grows under x -> x + displacement(x); negative where the map folds.

    In one slice whose displacement lies in its plane, it is how a small area grows.

    Args:
        displacement: Shape (..., 3, i, j, k), mm in RAS+.
        affine: The grid's.

    Returns:
        Shape (..., i, j, k).
    """
    return determinant(jacobian(displacement, affine))


def log_jacobian(displacement: Array, affine: ArrayLike, floor: float = 1e-3) -> Array:
    """Return the natural logarithm of the Jacobian determinant, of ``floor`` where it is smaller or negative.

    Args:
        displacement: Shape (..., 3, i, j, k), mm in RAS+.
        affine: The grid's.
        floor: A volume shrunk a thousandfold by default; no anatomy does that.

    Raises:
        InputError: ``floor`` is not positive.
    """
    return log_determinant(jacobian_determinant(displacement, affine), floor)


def log_determinant(found: Array, floor: float = 1e-3) -> Array:
    """Return the natural logarithm of determinants, of ``floor`` where they are smaller or negative.

    Raises:
        InputError: ``floor`` is not positive.
    """
    if not floor > 0:
        raise InputError(
            "the least determinant must be positive", source="floor", value=floor, expected="> 0"
        )
    library = namespace(found)
    return library.log(library.clip(found, floor, None))


def curl(vectors: Array, affine: ArrayLike) -> Array:
    """Return the curl of a vector field, in RAS+: twice the local rotation where that is small.

    It is an axial vector of the world's axes, so the handedness of the grid does not enter. In one slice
    whose vectors lie in its plane, it is perpendicular to that plane.

    Args:
        vectors: Shape (..., 3, i, j, k); for mm, the curl has no unit.
        affine: The grid's.

    Returns:
        Shape (..., 3, i, j, k).
    """
    x, y, z = (gradient(component, affine) for component in components(vectors))
    return namespace(vectors).stack([z[1] - y[2], x[2] - z[0], y[0] - x[1]], -4)


def components(vectors: Array) -> list[Array]:
    """Return the three components, each of shape (..., i, j, k).

    Raises:
        InputError: The shape is not (..., 3, i, j, k).
    """
    if len(vectors.shape) < 4 or vectors.shape[-4] != 3:
        raise InputError(
            "not a field of vectors", value=tuple(vectors.shape), expected="shape (..., 3, i, j, k)"
        )
    return [vectors[..., component, :, :, :] for component in range(3)]


def combine(factors: ArrayLike, terms: list[Array]) -> Array:
    """Return the sum of ``factors[n] * terms[n]``, added in this order."""
    total: Array = None
    for factor, term in zip(np.asarray(factors, dtype=np.float64).tolist(), terms, strict=True):
        if factor != 0:
            part = term if factor == 1 else term * factor
            total = part if total is None else total + part
    return terms[0] * 0 if total is None else total


def like(values: NDArray[Any], other: Array) -> Array:
    """Return an array as the same kind, dtype and device as ``other``."""
    if isinstance(other, np.ndarray):
        return np.asarray(values, dtype=other.dtype)
    return namespace(other).as_tensor(values, dtype=other.dtype, device=other.device)


def _part(values: Array, axis: int, start: int, stop: int) -> Array:
    cut = [slice(None)] * 3
    cut[axis] = slice(start, stop)
    return values[(..., *cut)]
