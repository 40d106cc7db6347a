from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from known_fields import Map, bump, centred, on_grid, turn
from sagittal.core.errors import GeometryError, InputError
from sagittal.registration import construct
from sagittal.volume import DisplacementField, Geometry

THRESHOLD = 0.06  # of a voxel
OBLIQUE = turn(0.5, 0.3)
LEFT_HANDED = OBLIQUE @ np.diag([-1.0, 1, 1])
PLANE = centred((64, 64, 1), (1, 1, 1), np.eye(3))
SPACE = centred((24, 24, 24), (1, 1, 1), np.eye(3))


def half(geometry: Geometry) -> Any:
    return np.maximum((np.array(geometry.shape) - 1) / 2, 0.5) * geometry.spacing


def along(geometry: Geometry, peak_mm: float, seed: int) -> Map:
    """A random map that is the identity on the faces of a grid, whatever its directions."""
    flat = geometry.shape[2] == 1
    smooth = bump(peak_mm, half(geometry), seed, 3 if flat else 2)
    axes, kept = geometry.direction, np.array([1, 1, 0 if flat else 1])
    return lambda p: (smooth(p @ axes) * kept) @ axes.T


def exact(displacement: Map, geometry: Geometry) -> tuple[Any, Any]:
    """Jacobian determinant and curl by steps far smaller than a voxel."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), -1)
    places, step = geometry.index_to_world(index), 1e-4
    d = [(displacement(places + step * e) - displacement(places - step * e)) / (2 * step) for e in np.eye(3)]
    slopes = np.stack(d, axis=-1)
    if geometry.shape[2] == 1:
        slopes[..., 2] = 0
    turned = [slopes[..., 2, 1] - slopes[..., 1, 2], slopes[..., 0, 2] - slopes[..., 2, 0]]
    return np.linalg.det(slopes + np.eye(3)), np.stack([*turned, slopes[..., 1, 0] - slopes[..., 0, 1]])


@pytest.mark.parametrize(("grid", "peak"), [(PLANE, 12), (SPACE, 3.8)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_smooth_warp_is_recovered(grid: Geometry, peak: float, seed: int) -> None:
    smooth = along(grid, peak, seed)
    field = on_grid(smooth, grid)
    assert field.determinant.min() > 0
    assert field.magnitude.max() > 2
    assert np.ptp(field.determinant) > 0.6
    found = construct(*exact(smooth, grid), grid)
    assert found.stopped == "converged"
    assert np.linalg.norm(found.field.vectors - field.vectors, axis=0).max() < THRESHOLD


def test_a_strong_warp_comes_back_exactly_from_its_own_differences() -> None:
    field = on_grid(along(SPACE, 5.2, 0), SPACE)
    assert 0 < field.determinant.min() < 0.3
    assert field.determinant.max() > 1.8
    found = construct(field.determinant, field.curl(), SPACE)
    assert np.linalg.norm(found.field.vectors - field.vectors, axis=0).max() < 1e-3
    assert found.jacobian_error < 1e-3
    assert found.field.folds == 0


@pytest.mark.parametrize("direction", [np.diag([-1.0, -1, 1]), OBLIQUE, LEFT_HANDED])
@pytest.mark.parametrize("spacing", [(1, 1, 10), (0.5, 1, 3)])
def test_directions_and_spacing_do_not_matter(direction: Any, spacing: Any) -> None:
    grid = centred((20, 18, 12), spacing, direction)
    field = on_grid(along(grid, 1.5, 3), grid)
    found = construct(field.determinant, field.curl(), grid)
    assert field.magnitude.max() > 0.8
    assert np.linalg.norm(found.field.vectors - field.vectors, axis=0).max() < THRESHOLD * min(spacing)


def test_the_determinant_alone_does_not_say_which_map_it_was() -> None:
    field = on_grid(along(PLANE, 12, 0), PLANE)
    found = construct(field.determinant, None, PLANE)
    assert found.jacobian_error < 0.01
    assert np.linalg.norm(found.field.vectors - field.vectors, axis=0).max() > 1


def test_the_boundary_moves_as_at_the_start() -> None:
    matrix = np.eye(4)
    matrix[:3] = [[1.1, 0.1, 0, 2], [0, 0.95, 0, -1], [0, 0, 1, 0]]
    wanted = DisplacementField.from_affine(matrix, SPACE)
    start = wanted.vectors.copy()
    start[:, 1:-1, 1:-1, 1:-1] += 0.2 * np.random.default_rng(0).normal(size=(3, 22, 22, 22))
    begun = DisplacementField(start, SPACE)
    found = construct(wanted.determinant, wanted.curl(), SPACE, start=begun)
    assert np.array_equal(found.field.vectors[:, 0], wanted.vectors[:, 0])
    assert np.linalg.norm(found.field.vectors - wanted.vectors, axis=0).max() < 0.5
    assert found.energies[-1] < 1e-6 * found.energies[0]


def test_data_that_no_map_has_are_met_as_closely_as_can_be() -> None:
    grown = np.full(SPACE.shape, 1.3)  # all of it cannot grow while the boundary stays
    found = construct(grown, np.zeros((3, *SPACE.shape)), SPACE)
    assert found.field.folds == 0
    assert found.jacobian_error > 0.2
    assert list(found.energies) == sorted(found.energies, reverse=True)


def test_nothing_to_do_is_done_at_once() -> None:
    found = construct(np.ones(SPACE.shape), np.zeros((3, *SPACE.shape)), SPACE)
    assert found.stopped == "converged"
    assert float(found.field.magnitude.max()) == 0


def test_what_cannot_be_constructed_is_refused() -> None:
    ones, still = np.ones(SPACE.shape), np.zeros((3, *SPACE.shape))
    broken = ones.copy()
    broken[1, 2, 3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        construct(broken, still, SPACE)
    with pytest.raises(InputError, match="not positive"):
        construct(ones - 1, still, SPACE)
    with pytest.raises(InputError, match=r"curl does not belong.*expected \(3, 24, 24, 24\)"):
        construct(ones, np.zeros((24, 24, 24)), SPACE)
    with pytest.raises(GeometryError, match="within its boundary"):
        construct(np.ones((2, 9, 9)), None, Geometry.from_spacing((2, 9, 9)))
    folded = DisplacementField.from_affine(np.diag([-1.0, 1, 1, 1]), SPACE)
    with pytest.raises(InputError, match="start folds"):
        construct(ones, still, SPACE, start=folded)
    with pytest.raises(GeometryError, match="another grid"):
        construct(ones, still, SPACE, start=DisplacementField.identity(PLANE))
    with pytest.raises(InputError, match="weight"):
        construct(ones, still, SPACE, curl_weight=0)
