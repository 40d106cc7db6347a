from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import InputError
from sagittal.reconstruction.analytic import fbp
from sagittal.reconstruction.geometry import ConeBeam, subset
from sagittal.reconstruction.iterative import cgls, ordered_subsets, sirt
from sagittal.reconstruction.line_integrals import line_integrals
from sagittal.reconstruction.projectors import Projector, system_matrix
from sagittal.reconstruction.scan import Scan
from sagittal.reconstruction.simulate import add_noise, fitted_geometry
from sagittal.volume import Geometry, Volume
from sagittal.volume.phantoms import WATER_PER_MM
from sagittal.volume.standard_phantoms import smooth_regions

GRID = Geometry.from_spacing((64, 64, 1), (4, 4, 4), (-126, -126, 0))
TRUTH = smooth_regions().rasterise(GRID)
SCANNER = fitted_geometry(GRID, "fan", 60)
SCAN = add_noise(line_integrals(smooth_regions(), SCANNER), SCANNER, photons=1e4)


def error(volume: Volume) -> float:
    return float(np.sqrt(np.mean((volume.array - TRUTH.array) ** 2)))


def test_sirt_and_cgls_come_nearer_than_fbp_from_few_noisy_views() -> None:
    plain = error(fbp(SCAN, GRID))
    assert error(sirt(SCAN, GRID, iterations=60).volume) < plain
    assert error(cgls(SCAN, GRID, iterations=8).volume) < plain


def test_the_residual_of_sirt_and_cgls_never_rises() -> None:
    for found in (sirt(SCAN, GRID, iterations=20), cgls(SCAN, GRID, iterations=20)):
        assert len(found.energies) == 20
        assert all(np.diff(found.energies) <= 0)


def test_ordered_subsets_are_ahead_of_sirt_after_as_many_rounds() -> None:
    whole, parts = sirt(SCAN, GRID, iterations=4), ordered_subsets(SCAN, GRID, subsets=6, iterations=4)
    assert error(parts.volume) < error(whole.volume)


def test_one_subset_is_sirt() -> None:
    whole, one = sirt(SCAN, GRID, iterations=3), ordered_subsets(SCAN, GRID, subsets=1, iterations=3)
    assert np.array_equal(whole.volume.array, one.volume.array)


def test_cgls_goes_to_the_least_squares() -> None:
    grid = Geometry.from_spacing((8, 8, 1), (4, 4, 4), (-14, -14, 0))
    geometry = fitted_geometry(grid, "parallel", 24)
    rays = np.random.default_rng(0).random(geometry.shape)
    found = cgls(Scan(rays, geometry), grid, iterations=80).volume.array
    matrix = system_matrix(geometry, grid).toarray()
    exact = np.linalg.lstsq(matrix, rays.reshape(-1), rcond=None)[0]
    assert ((found + 1000) * WATER_PER_MM / 1000).reshape(-1) == pytest.approx(exact, abs=2e-4)


def test_cgls_stops_where_nothing_is_left() -> None:
    found = cgls(Scan(np.zeros(SCANNER.shape), SCANNER), GRID)
    assert found.stopped == "converged"
    assert found.volume.array.max() == -1000


def test_views_of_a_helix_stay_at_their_heights() -> None:
    grid = Geometry.from_spacing((16, 16, 12), (2, 2, 2), (-15, -15, -11))
    cone = fitted_geometry(grid, "cone", 12)
    assert isinstance(cone, ConeBeam)
    helix = ConeBeam(**{**cone.__dict__, "pitch": 8.0, "angles": tuple(np.arange(12) * 0.7)})
    image = np.random.default_rng(0).random(grid.shape)
    whole = Projector(helix, grid).forward(image)
    some = Projector(subset(helix, slice(1, None, 3)), grid).forward(image)
    assert some == pytest.approx(whole[1::3], abs=1e-4)


def with_gaps() -> Scan:
    """Return the scan with a tenth of its rays and five whole views spoilt."""
    missing = np.random.default_rng(0).random(SCAN.sinogram.shape) < 0.1
    missing[::12] = True
    return SCAN.replace(sinogram=np.where(missing, 50.0, SCAN.sinogram), missing=missing)


@pytest.mark.parametrize(
    "method",
    [
        lambda scan: sirt(scan, GRID, iterations=30),
        lambda scan: cgls(scan, GRID, iterations=6),
        lambda scan: ordered_subsets(scan, GRID, subsets=12, iterations=5),
    ],
    ids=["sirt", "cgls", "ordered-subsets"],
)
def test_missing_rays_have_no_part_in_it(method: Any) -> None:
    whole, gaps = method(SCAN), method(with_gaps())
    assert error(gaps.volume) < 1.4 * error(whole.volume)  # as rays of 50 would not leave it
    assert gaps.energies[-1] < whole.energies[-1]  # fewer rays to explain


def test_the_least_squares_of_missing_rays_are_those_of_the_others() -> None:
    grid = Geometry.from_spacing((8, 8, 1), (4, 4, 4), (-14, -14, 0))
    geometry = fitted_geometry(grid, "parallel", 24)
    rays = np.random.default_rng(0).random(geometry.shape)
    missing = np.random.default_rng(1).random(geometry.shape) < 0.2
    found = cgls(Scan(rays, geometry, missing=missing), grid, iterations=200).volume.array
    matrix = system_matrix(geometry, grid).toarray()[~missing.reshape(-1)]
    exact = np.linalg.lstsq(matrix, rays[~missing], rcond=None)[0]
    assert ((found + 1000) * WATER_PER_MM / 1000).reshape(-1) == pytest.approx(exact, abs=2e-4)


def test_no_iterations_and_too_many_subsets_are_refused() -> None:
    with pytest.raises(InputError, match="iterations: there are no iterations; got 0"):
        sirt(SCAN, GRID, iterations=0)
    with pytest.raises(InputError, match="subsets: views cannot be divided so; got 61; expected 1 to 60"):
        ordered_subsets(SCAN, GRID, subsets=61)
    with pytest.raises(InputError, match="start has another shape"):
        cgls(SCAN, GRID, start=np.zeros((3, 3, 1)))
