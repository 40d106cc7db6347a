from __future__ import annotations

import numpy as np
import pytest

from known_fields import bump, centred, on_grid
from sagittal.core.errors import GeometryError, InputError
from sagittal.registration import average_transformation
from sagittal.volume import DisplacementField, Geometry

PLANE = centred((64, 64, 1), (1, 1, 1), np.eye(3))
SPACE = centred((24, 24, 24), (1, 1, 1), np.eye(3))


def warps(grid: Geometry) -> list[DisplacementField]:
    half = np.maximum((np.array(grid.shape) - 1) / 2, 0.5)
    flat = grid is PLANE
    smooth = [bump(14 if flat else 3.5, half, seed, 3 if flat else 2) for seed in range(10, 16)]
    return [on_grid(lambda p, one=one: one(p) * [1, 1, 0 if flat else 1], grid) for one in smooth]  # type: ignore[misc]


@pytest.mark.parametrize("grid", [PLANE, SPACE])
def test_the_average_has_a_fifth_of_the_euclidean_means_error(grid: Geometry) -> None:
    fields = warps(grid)
    mean = DisplacementField(np.mean([field.vectors for field in fields], axis=0), grid)
    wanted = np.mean([field.determinant for field in fields], axis=0)
    found = average_transformation(fields)
    error = [float(np.abs(field.determinant - wanted).mean()) for field in (mean, found.field)]
    assert error[1] <= error[0] / 5
    assert found.field.folds == 0
    turned = np.abs(found.field.curl() - mean.curl()).mean()
    assert turned < 0.1 * np.abs(mean.curl()).mean()


def test_one_field_is_its_own_average() -> None:
    field = warps(SPACE)[0]
    found = average_transformation([field])
    assert np.allclose(found.field.vectors, field.vectors)


def test_fields_that_cannot_be_averaged_are_refused() -> None:
    with pytest.raises(InputError, match="nothing to average"):
        average_transformation([])
    with pytest.raises(GeometryError, match="field 1"):
        average_transformation([DisplacementField.identity(PLANE), DisplacementField.identity(SPACE)])
    folded = DisplacementField.from_affine(np.diag([-1.0, 1, 1, 1]), SPACE)
    with pytest.raises(InputError, match="field 1: a field folds"):
        average_transformation([DisplacementField.identity(SPACE), folded])
