from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import InputError
from sagittal.reconstruction.analytic import fbp
from sagittal.reconstruction.line_integrals import line_integrals
from sagittal.reconstruction.projectors import Projector, system_matrix
from sagittal.reconstruction.scan import Scan, attenuation
from sagittal.reconstruction.simulate import add_noise, fitted_geometry
from sagittal.reconstruction.total_variation import (
    Solver,
    directional_tv,
    edge_preserving_tv,
    edge_threshold,
    subdivided,
    tv,
)
from sagittal.reconstruction.variation import gradient_length
from sagittal.volume import Geometry, Volume
from sagittal.volume.phantoms import WATER_PER_MM, Body, Phantom
from sagittal.volume.standard_phantoms import smooth_regions

optimize = pytest.importorskip("scipy.optimize")

SMALL = Geometry.from_spacing((12, 11, 1), (4, 4, 4), (-22, -20, 0))
SMALL_SCANNER = fitted_geometry(SMALL, "fan", 16)
SMALL_PHANTOM = Phantom(
    name="ellipses",
    bodies=(
        Body(centre=(2, -3, 0), half_sizes=(16, 13, math.inf), density=1.0),
        Body(centre=(-4, 4, 0), half_sizes=(6, 5, math.inf), density=0.5),
    ),
)
SMALL_SCAN = add_noise(line_integrals(SMALL_PHANTOM, SMALL_SCANNER), SMALL_SCANNER, photons=3e3)
EXACT = Solver(iterations=4000, tolerance=1e-9, inner=60, dtype="float64")

GRID = Geometry.from_spacing((96, 96, 1), (2.6, 2.6, 4), (-123.5, -123.5, 0))
TRUTH = smooth_regions().rasterise(GRID)
SCANNER = fitted_geometry(GRID, "fan", 60)
SCAN = add_noise(line_integrals(smooth_regions(), SCANNER), SCANNER, photons=2e4)


def error(volume: Volume) -> float:
    return float(np.sqrt(np.mean((volume.array - TRUTH.array) ** 2)))


def primal_dual(scan: Scan, grid: Geometry, price: float, iterations: int = 10_000) -> Any:
    """Minimise the same energy by Chambolle and Pock's first algorithm, with dense matrices: another way."""
    weight = np.sqrt(1 / scan.variance.reshape(-1))
    matrix = system_matrix(scan.geometry, grid).toarray() * weight[:, None]
    rays = scan.sinogram.reshape(-1) * weight
    count = math.prod(grid.shape)
    along = [np.zeros((count, count)) for _ in range(2)]
    numbers = np.arange(count).reshape(grid.shape[:2])
    for axis, other in ((0, numbers[1:]), (1, numbers[:, 1:])):
        here = numbers[:-1] if axis == 0 else numbers[:, :-1]
        along[axis][here.ravel(), other.ravel()] = 1
        along[axis][here.ravel(), here.ravel()] = -1
    tall = np.linalg.norm(matrix, 2)
    scale = tall / 3
    both = np.concatenate([matrix, *(scale * part for part in along)])
    step = 0.95e-3 / np.linalg.norm(both, 2)
    dual_step = 1e6 * step  # images are small numbers, the dual's are large
    image, ahead = np.zeros(count), np.zeros(count)
    dual = np.zeros(len(both))
    for _ in range(iterations):
        moved = dual + dual_step * (both @ ahead)
        m = len(rays)
        moved[:m] = (moved[:m] - dual_step * rays) / (1 + dual_step)
        pair = moved[m:].reshape(2, -1)
        pair /= np.maximum(np.sqrt((pair**2).sum(axis=0)) * scale / price, 1)
        dual = moved
        new = np.maximum(image - step * (both.T @ dual), 0)
        ahead, image = 2 * new - image, new
    return image.reshape(grid.shape)


def energy(image: Any, scan: Scan, grid: Geometry, price: float) -> float:
    residual = Projector(scan.geometry, grid, dtype=np.float64).forward(image) - scan.sinogram
    return float((residual**2 / scan.variance).sum() / 2 + price * gradient_length(image, grid).sum())


@pytest.mark.parametrize("roughness", [20.0, 200.0])
def test_tv_finds_what_another_algorithm_finds(roughness: float) -> None:
    price = 1000 / (roughness * WATER_PER_MM)
    expected = primal_dual(SMALL_SCAN, SMALL, price)
    found = tv(SMALL_SCAN, SMALL, roughness=roughness, solver=EXACT)
    image = attenuation(found.volume).astype(np.float64)
    assert energy(image, SMALL_SCAN, SMALL, price) == pytest.approx(
        energy(expected, SMALL_SCAN, SMALL, price), rel=1e-6
    )
    assert image == pytest.approx(expected, abs=2e-5)  # 1 HU


@pytest.mark.parametrize("subdivision", [1, 2])
def test_an_infinite_threshold_is_total_variation(subdivision: int) -> None:
    same: dict[str, Any] = {"roughness": 100.0, "subdivision": subdivision, "model_error": 0.0}
    plain = tv(SMALL_SCAN, SMALL, **same, solver=EXACT)
    ours = edge_preserving_tv(SMALL_SCAN, SMALL, **same, delta=math.inf, solver=EXACT)
    assert ours.volume.array == pytest.approx(plain.volume.array, abs=0.05)


def test_an_infinite_threshold_along_the_axes_is_total_variation() -> None:
    plain = tv(SMALL_SCAN, SMALL, roughness=100.0, solver=EXACT)
    rival = directional_tv(SMALL_SCAN, SMALL, roughness=100.0, delta=math.inf, solver=EXACT)
    assert rival.volume.array == pytest.approx(plain.volume.array, abs=0.05)


def test_a_threshold_of_zero_is_least_squares() -> None:
    weight = np.sqrt(1 / SMALL_SCAN.variance.reshape(-1))
    matrix = system_matrix(SMALL_SCANNER, SMALL).toarray() * weight[:, None]
    expected, _ = optimize.nnls(matrix, SMALL_SCAN.sinogram.reshape(-1) * weight)
    plain: dict[str, Any] = {"subdivision": 1, "model_error": 0.0}
    found = edge_preserving_tv(SMALL_SCAN, SMALL, roughness=100.0, delta=0.0, **plain, solver=EXACT)
    mu = (found.volume.array.reshape(-1) / 1000 + 1) * WATER_PER_MM
    assert mu == pytest.approx(expected, abs=4e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_energies_never_rise_for_frozen_weights(dtype: str) -> None:
    solver = Solver(iterations=60, tolerance=0.0, dtype=dtype)
    for found in (
        tv(SCAN, GRID, roughness=8.0, solver=solver),
        edge_preserving_tv(SCAN, GRID, roughness=4.0, delta=60.0, solver=solver),
        directional_tv(SCAN, GRID, roughness=4.0, delta=60.0, solver=solver),
    ):
        assert len(found.energies) > 20
        assert (np.diff(found.energies) <= 0).all()


def test_tv_with_and_without_weights_is_far_nearer_than_fbp() -> None:
    by_fbp = error(fbp(SCAN, GRID))
    by_tv = error(tv(SCAN, GRID, roughness=8.0).volume)
    by_ours = error(edge_preserving_tv(SCAN, GRID, roughness=16.0).volume)
    assert by_tv < 0.5 * by_fbp
    assert by_ours < 0.25 * by_fbp
    assert by_ours < 0.7 * by_tv


def test_smaller_voxels_and_doubted_edges_each_bring_total_variation_nearer() -> None:
    plain = error(tv(SCAN, GRID, roughness=8.0).volume)
    assert error(tv(SCAN, GRID, roughness=16.0, model_error=0.05).volume) < 0.95 * plain
    assert error(tv(SCAN, GRID, roughness=16.0, subdivision=2).volume) < 0.8 * plain


def test_what_is_on_smaller_voxels_is_returned_as_their_means_on_the_grid() -> None:
    found = tv(SCAN, GRID, subdivision=2, solver=Solver(iterations=5)).volume
    assert found.geometry == GRID
    fine = subdivided(GRID, 2)
    corner = np.array([-0.5, -0.5, 0.0])
    assert fine.index_to_world(corner) == pytest.approx(GRID.index_to_world(corner))
    far = np.array(GRID.shape) - [0.5, 0.5, 0]
    assert fine.index_to_world(np.array(fine.shape) - [0.5, 0.5, 0]) == pytest.approx(
        GRID.index_to_world(far)
    )


def test_threads_change_no_bit() -> None:
    found = {
        tv(SCAN, GRID, solver=Solver(iterations=5, threads=threads)).volume.array.tobytes()
        for threads in (1, 2, 3)
    }
    assert len(found) == 1


def test_alternating_weights_end_near_those_of_two_stages() -> None:
    options: dict[str, Any] = {"roughness": 16.0, "delta": 60.0}
    stages = edge_preserving_tv(SCAN, GRID, **options)
    turns = edge_preserving_tv(SCAN, GRID, **options, alternating=True)
    assert error(turns.volume) == pytest.approx(error(stages.volume), rel=0.15)


def test_the_discrepancy_is_one_where_the_image_explains_the_scan() -> None:
    geometry = fitted_geometry(GRID, "fan", 40)
    truth = Volume(attenuation(TRUTH), GRID, unit="1/mm")
    exact = Projector(geometry, GRID, dtype=np.float64).forward(truth.array)
    found = tv(add_noise(exact, geometry, photons=1e4), GRID, roughness=30.0)
    assert found.discrepancy == pytest.approx(1.0, abs=0.15)
    assert found.stopped == "converged"


def test_a_start_near_the_end_needs_fewer_iterations() -> None:
    solver = Solver(tolerance=3e-4, passes=0)
    first = tv(SCAN, GRID, roughness=8.0, solver=solver)
    again = tv(SCAN, GRID, roughness=8.0, solver=solver, start=attenuation(first.volume))
    assert len(again.energies) < len(first.energies)
    assert again.energies[-1] <= first.energies[-1]


def test_without_a_dose_the_noise_is_taken_from_neighbouring_rays() -> None:
    found = tv(SCAN.replace(photons=None), GRID, roughness=8.0)
    assert found.discrepancy is None
    assert error(found.volume) < 0.6 * error(fbp(SCAN, GRID))


@pytest.mark.parametrize("photons", [3e3, None])
def test_missing_views_are_as_if_they_were_not_there(photons: float | None) -> None:
    missing = np.zeros(SMALL_SCAN.sinogram.shape, bool)
    missing[::4] = True
    kept = ~missing[:, 0, 0]
    fewer = replace(SMALL_SCANNER, angles=tuple(np.asarray(SMALL_SCANNER.angles)[kept]))
    scan = SMALL_SCAN.replace(photons=photons, missing=missing)
    marked = tv(scan, SMALL, solver=EXACT)
    without = tv(Scan(SMALL_SCAN.sinogram[kept], fewer, photons), SMALL, solver=EXACT)
    assert marked.volume.array == pytest.approx(without.volume.array, abs=0.1)
    if photons is None:
        assert marked.discrepancy is None
    else:
        assert marked.discrepancy == pytest.approx(without.discrepancy, rel=1e-4)


def test_an_edge_share_is_turned_into_the_step_it_is_above() -> None:
    image = attenuation(TRUTH)
    threshold = edge_threshold(image, GRID, 0.1)
    inside = image > 0.2 * np.percentile(image, 99)
    assert (gradient_length(image, GRID)[inside] > threshold).mean() == pytest.approx(0.1, abs=0.005)
    found = edge_preserving_tv(SCAN, GRID, edge_share=0.2, solver=Solver(iterations=20))
    assert np.isfinite(found.volume.array).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roughness": 0.0}, "roughness: the roughness must be a positive number; got 0"),
        ({"roughness": math.nan}, "roughness must be a positive number"),
        ({"subdivision": 0}, "there is no such subdivision; got 0"),
        ({"model_error": -0.1}, "the model error is out of range; got -0.1"),
        ({"edge_price": 1.5}, "the price of edges is out of range; got 1.5"),
        ({"delta": -1.0}, "delta: the threshold is out of range; got -1"),
        ({"edge_share": 1.0}, "edge_share: the share is out of range"),
        ({"edge_share": 0.1, "delta": 5.0}, "two thresholds are one too many"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        edge_preserving_tv(SCAN, GRID, **options)
