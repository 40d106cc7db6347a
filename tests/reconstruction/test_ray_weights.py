from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sagittal.reconstruction.geometry import ParallelBeam
from sagittal.reconstruction.ray_weights import RayWeights
from sagittal.reconstruction.scan import Scan

FEW, MANY = 4, 600  # views: of the first the weights are kept, of the second they are not


def a_scan(views: int, *, photons: Any = 2e3, missing: bool = False) -> Scan:
    angles = tuple(np.arange(views) * np.pi / views)
    geometry = ParallelBeam(angles=angles, bins=50, bin_width=1.0, rows=10)
    gone = None
    if missing:
        gone = np.zeros(geometry.shape, bool)
        gone[1], gone[:, 2, 7] = True, True
    rays = np.random.default_rng(0).random(geometry.shape, np.float32)
    return Scan(rays, geometry, photons, electronic=0.0 if photons is None else 3.0, missing=gone)


@pytest.mark.parametrize("views", [FEW, MANY])
@pytest.mark.parametrize("missing", [False, True])
def test_weights_are_one_by_the_variance_of_the_views_that_are_asked_for(views: int, missing: bool) -> None:
    scan = a_scan(views, missing=missing)
    weights, all_ = RayWeights(scan, np.float32), (1 / scan.variance).astype(np.float32)
    for chosen in (slice(None), slice(1, 3), slice(1, None, 3), slice(0, views)):
        assert weights[chosen].dtype == np.float32
        assert np.array_equal(weights[chosen], all_[chosen])
        assert np.array_equal(weights[chosen, 2:5], all_[chosen, 2:5])
    assert (weights[:][1] == 0).all() == missing
    assert np.array_equal(RayWeights(scan, np.float64)[:], 1 / scan.variance)


def test_a_tube_that_is_modulated_weighs_its_views_differently() -> None:
    tube = np.linspace(1e3, 1e4, MANY)[:, None, None]
    scan = a_scan(MANY, photons=tube)
    found = RayWeights(scan, np.float64)[5::7]
    assert np.array_equal(found, (1 / scan.variance)[5::7])


def test_without_a_dose_each_measured_ray_counts_the_same_by_the_noise_between_neighbours() -> None:
    rng = np.random.default_rng(0)
    scan = a_scan(MANY, photons=None, missing=True)
    assert scan.missing is not None
    scan = scan.replace(sinogram=rng.normal(5, 0.02, scan.geometry.shape))
    weights = RayWeights(scan, np.float64)[:]
    assert set(np.unique(weights)) == {0.0, weights[0, 0, 0]}
    assert np.array_equal(weights == 0, scan.missing)
    assert weights[0, 0, 0] == pytest.approx(1 / 0.02**2, rel=0.02)


@pytest.mark.parametrize("views", [FEW, MANY])
def test_doubt_adds_to_the_variance_and_a_second_one_takes_the_place_of_the_first(views: int) -> None:
    scan = a_scan(views, missing=True)
    weights = RayWeights(scan, np.float64)
    parts = [slice(0, 3), slice(3, views)]
    for amount in (5.0, 0.25):
        error = np.linspace(0, amount, views)[:, None, None] * np.ones((1, 10, 50))
        weights.doubt(error.__getitem__, parts)
        assert np.array_equal(weights[:], 1 / (scan.variance + error))
        assert np.array_equal(weights[1::2], (1 / (scan.variance + error))[1::2])


def test_doubt_of_many_rays_does_not_change_what_was_given_before() -> None:
    weights = RayWeights(a_scan(MANY), np.float32)
    before = weights[2:4].copy()
    given = weights[2:4]
    weights.doubt(lambda views: np.ones((views.stop - views.start, 10, 50)), [slice(0, MANY)])
    assert np.array_equal(given, before)
    assert (weights[2:4] < before).all()
