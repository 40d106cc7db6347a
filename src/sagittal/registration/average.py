"""The average of several transformations, by what they do to volumes and directions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import
from sagittal.registration.variational import Construction, Report, construct, silent
from sagittal.volume import DisplacementField, require_same_space

__all__ = ["average_transformation", "mean_affine"]

_STEPS, _SETTLED = 100, 1e-10


def average_transformation(
    fields: Sequence[DisplacementField],
    *,
    curl_weight: float = 0.1,
    iterations: int = 30,
    report: Report = silent,
) -> Construction:
    """Return the transformation whose Jacobian determinant and curl are the averages of those given.

    The mean of the displacements has the mean curl, which is linear, but not the mean determinant, and
    may fold though none of them does. Where it does not, the construction begins there, and the boundary
    moves as it does; else the boundary stays. Source: Chen and Liao, arXiv 1611.03946.

    Args:
        fields: One or more on one grid, none of which folds.
        curl_weight: See :func:`construct`. With the boundary held, the two means cannot quite be had
            together; less than 1 puts the volumes first [inference].
        iterations: At most so many Gauss-Newton steps.
        report: Is told each step.

    Raises:
        InputError: No field, or one that folds.
        GeometryError: They lie on different grids.
    """
    if not fields:
        raise InputError("there is nothing to average", value="no field", expected="one or more")
    first = fields[0]
    for number, field in enumerate(fields):
        require_same_space(first.geometry, field.geometry, source=f"field {number}")
        if field.folds:
            raise InputError("a field folds", source=f"field {number}", value=f"{field.folds} voxels")
    vectors = np.zeros((3, *first.shape))
    turning, growth = np.zeros_like(vectors), np.zeros(first.shape)
    for field in fields:
        vectors += field.vectors / len(fields)
        turning += field.curl() / len(fields)
        growth += field.determinant / len(fields)
    start = DisplacementField(vectors, first.geometry)
    return construct(
        growth,
        turning,
        first.geometry,
        start=DisplacementField.identity(first.geometry) if start.folds else start,
        curl_weight=curl_weight,
        iterations=iterations,
        report=report,
    )


def mean_affine(matrices: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """Return the affine map from which those given deviate by nothing on average.

    It is the M whose deviations A M^-1 have logarithms that sum to 0, so the mean of the inverses is its
    inverse, and it does not depend on the frame. Source: Pennec and Arsigny, "Exponential barycenters of
    the canonical Cartan connection and invariant means on Lie groups" (2013).

    Args:
        matrices: One or more of shape (4, 4).

    Raises:
        InputError: Nothing, or maps too different to have a mean: mirrored, or half a turn apart.
        MissingDependencyError: scipy is not installed.
    """
    linalg = optional_import("scipy.linalg")
    if not matrices:
        raise InputError("there is nothing to average", value="no affine map", expected="one or more")
    given = [np.asarray(matrix, dtype=np.float64) for matrix in matrices]
    mean = given[0]
    for _ in range(_STEPS):
        logs = [linalg.logm(matrix @ np.linalg.inv(mean)) for matrix in given]
        if any(np.iscomplexobj(log) or not np.isfinite(log).all() for log in logs):
            break
        step = np.sum(logs, axis=0) / len(logs)
        mean = linalg.expm(step) @ mean
        if np.abs(step).max() < _SETTLED:
            return np.asarray(mean)
    raise InputError(
        "the affine maps have no mean", value=f"{len(given)} maps", expected="maps that are alike"
    )
