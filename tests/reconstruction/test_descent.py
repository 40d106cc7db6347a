from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import InputError
from sagittal.reconstruction.descent import (
    Solver,
    approach,
    carried_over,
    curvature_bound,
    halved,
    minimise,
    subsets_of,
)
from sagittal.reconstruction.line_integrals import line_integrals
from sagittal.reconstruction.projectors import REFERENCE, Projector, projector_kernels, system_matrix
from sagittal.reconstruction.simulate import add_noise, fitted_geometry
from sagittal.reconstruction.total_variation import tv
from sagittal.reconstruction.variation import Variation
from sagittal.volume import Geometry
from sagittal.volume.standard_phantoms import smooth_regions

GRID = Geometry.from_spacing((12, 11, 1), (20, 20, 20), (-110, -100, 0))
SCANNER = fitted_geometry(GRID, "fan", 16)
SCAN = add_noise(line_integrals(smooth_regions(), SCANNER), SCANNER, photons=3e3)


def test_the_curvature_is_bounded_and_not_by_much() -> None:
    pytest.importorskip("scipy")
    projector = Projector(SCANNER, GRID, dtype=np.float64)
    weights = 1 / SCAN.variance
    matrix = system_matrix(SCANNER, GRID).toarray()
    largest = np.linalg.eigvalsh(matrix.T @ (weights.reshape(-1)[:, None] * matrix))[-1]
    assert largest <= curvature_bound(projector, weights) < 1.3 * largest


def test_a_halved_grid_lies_in_the_same_place() -> None:
    grid = Geometry.from_spacing((8, 7, 4), (1, 2, 3), (10, 20, 30))
    half = halved(grid, slices=False)
    assert half.shape == (4, 4, 4)
    assert half.spacing == (2, 4, 3)
    assert half.index_to_world((0, 0, 0)).tolist() == [10.5, 21.0, 30.0]
    ramp = np.broadcast_to(
        half.index_to_world(np.moveaxis(np.indices(half.shape), 0, -1))[..., 0], half.shape
    )
    fine = carried_over(np.array(ramp), grid)
    assert fine[1:-1, 0, 0] == pytest.approx(grid.index_to_world([[i, 0, 0] for i in range(8)])[1:-1, 0])


def test_a_solver_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="no iterations"):
        Solver(iterations=0)
    with pytest.raises(InputError, match="two dtypes"):
        Solver(dtype="float16")
    with pytest.raises(InputError, match="tolerance is out of range"):
        Solver(tolerance=-1)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("iterations", 0, "1 or more"),
        ("iterations", 2.5, "1 or more"),
        ("inner", 0, "1 or more"),
        ("inner", True, "1 or more"),
        ("passes", -1, "0 or more"),
        ("levels", -1, "0 or more"),
        ("levels", 1.5, "0 or more"),
        ("levels", "two", "0 or more"),
        ("coarse_iterations", -3, "0 or more"),
        ("coarse_iterations", None, "0 or more"),
        ("threads", 0, "1 or more"),
        ("dtype", "float16", "float32 or float64"),
        ("tolerance", 1.0, "from 0 to below 1"),
        ("tolerance", float("nan"), "from 0 to below 1"),
        ("tolerance", "small", "from 0 to below 1"),
    ],
)
def test_what_a_solver_refuses_says_which_field_what_it_got_and_what_it_expects(
    field: str, value: Any, expected: str
) -> None:
    with pytest.raises(InputError) as refused:
        Solver(**{field: value})
    assert str(refused.value).startswith(f"{field}: ")
    assert str(value) in str(refused.value)
    assert expected in str(refused.value)


def test_no_coarser_grids_and_no_passes_on_them_are_allowed() -> None:
    assert Solver(levels=0, coarse_iterations=0, passes=0, tolerance=0).levels == 0
    assert Solver(iterations=np.int64(3), threads=2).iterations == 3


FINE = Geometry.from_spacing((96, 96, 1), (2.6, 2.6, 4), (-123.5, -123.5, 0))
FINE_SCANNER = fitted_geometry(FINE, "fan", 60)
FINE_SCAN = add_noise(line_integrals(smooth_regions(), FINE_SCANNER), FINE_SCANNER, photons=2e4)


def test_the_energy_is_near_that_of_a_long_descent() -> None:
    short = tv(FINE_SCAN, FINE, roughness=64.0).energies[-1]
    slow = Solver(iterations=1500, tolerance=0.0, passes=0, coarse_iterations=1)
    long = tv(FINE_SCAN, FINE, roughness=64.0, solver=slow).energies
    assert len(long) > 300
    assert short < (1 + 1e-3) * long[-1]


def test_passes_by_subsets_come_nearer_than_as_many_iterations() -> None:
    projector = Projector(FINE_SCANNER, FINE)
    rays, weights = FINE_SCAN.sinogram, np.asarray(1 / FINE_SCAN.variance, np.float32)
    given = (projector, rays, weights, Variation(grid=FINE), 1000.0)
    near = approach(*given, np.zeros(FINE.shape, np.float32), passes=8)
    slow = minimise(*given, np.zeros(FINE.shape, np.float32), iterations=8, tolerance=0.0)
    after = minimise(*given, near, iterations=1, tolerance=0.0)
    assert after.energies[0] < 0.5 * slow.energies[-1]


def test_few_views_are_not_divided() -> None:
    assert [subsets_of(views) for views in (9, 19, 20, 60, 984)] == [0, 1, 2, 6, 12]


@pytest.mark.skipif(projector_kernels()[-1] == REFERENCE, reason="the extension is not built")
def test_the_reference_descends_as_the_kernels_do() -> None:
    pytest.importorskip("scipy")
    rays, weights = SCAN.sinogram, np.asarray(1 / SCAN.variance)
    found = []
    for kernel in (REFERENCE, projector_kernels()[-1]):
        projector = Projector(SCANNER, GRID, dtype=np.float64, kernel=kernel)
        variation = Variation(grid=GRID, kernel=kernel)
        start = np.zeros(GRID.shape)
        found.append(
            minimise(projector, rays, weights, variation, 100.0, start, iterations=30, tolerance=0.0)
        )
    assert found[0].energies == pytest.approx(found[1].energies, rel=1e-9)
    assert found[0].image == pytest.approx(found[1].image, abs=1e-9)


def test_a_dual_of_sixteen_bits_leads_to_the_same_energy() -> None:
    found = []
    for dtype in (np.float32, np.float64):
        projector = Projector(FINE_SCANNER, FINE, dtype=dtype)
        weights = np.asarray(1 / FINE_SCAN.variance, dtype)
        given = (projector, FINE_SCAN.sinogram, weights, Variation(grid=FINE), 1000.0)
        found.append(minimise(*given, np.zeros(FINE.shape, dtype), iterations=200, tolerance=0.0))
    assert found[0].energies[-1] == pytest.approx(found[1].energies[-1], rel=1e-4)
