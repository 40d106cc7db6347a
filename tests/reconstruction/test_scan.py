from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import GeometryError, InputError
from sagittal.reconstruction.geometry import ParallelBeam
from sagittal.reconstruction.scan import LEAST_COUNT, Scan, attenuation, broken_rays, hounsfield
from sagittal.volume import Geometry, Volume

BEAM = ParallelBeam(angles=(0.0, 1.0), bins=3, bin_width=1.0)
GRID = Geometry.from_spacing((2, 2, 1))


def rays(value: float, *, last: float | None = None) -> Any:
    found = np.full(BEAM.shape, value)
    if last is not None:
        found[1, 0, 2] = last
    return found


def test_line_integrals_follow_from_counts() -> None:
    scan = Scan.from_counts(rays(1000 / math.e), 1000.0, BEAM)
    assert scan.sinogram == pytest.approx(rays(1.0))
    assert scan.counts == pytest.approx(rays(1000 / math.e), rel=1e-6)
    assert scan.starved == 0


def test_a_count_of_zero_is_raised_and_told() -> None:
    scan = Scan.from_counts(rays(100.0, last=0.0), 1000.0, BEAM)
    assert scan.starved == 1
    assert scan.sinogram[1, 0, 2] == pytest.approx(math.log(1000 / LEAST_COUNT))


def test_electronic_noise_allows_negative_counts_and_adds_variance() -> None:
    scan = Scan.from_counts(rays(100.0, last=-3.0), 1000.0, BEAM, electronic=10.0)
    assert scan.starved == 1
    assert scan.variance[0, 0, 0] == pytest.approx((100 + 100) / 100**2, rel=1e-5)


def test_variance_is_one_by_the_counts() -> None:
    assert Scan.from_counts(rays(400.0), 1000.0, BEAM).variance == pytest.approx(rays(1 / 400), rel=1e-5)


def test_a_scan_cannot_be_written_to() -> None:
    given = rays(1.0)
    scan = Scan(given, BEAM)
    given[:] = 7
    assert scan.sinogram.max() == 1.0
    with pytest.raises(ValueError, match="read-only"):
        scan.sinogram[0] = 0


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (rays(5.0, last=-1.0), r"counts: counts are negative; got 1 of 6, first -1 at \(1, 0, 2\)"),
        (rays(5.0, last=math.nan), r"not finite; got 1 of 6, first nan at \(1, 0, 2\) \(view, row, bin\)"),
        (rays(5.0).astype(complex), "must be real numbers; got complex128"),
    ],
)
def test_counts_that_cannot_be_are_refused(counts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Scan.from_counts(counts, 100.0, BEAM)


@pytest.mark.parametrize("photons", [0.0, -5.0, math.nan, "many"])
def test_a_dose_that_cannot_be_is_refused(photons: Any) -> None:
    with pytest.raises(InputError, match="photons must be a positive number"):
        Scan.from_counts(rays(5.0), photons, BEAM)
    with pytest.raises(InputError, match="photons must be a positive number"):
        Scan(rays(5.0), BEAM, photons)


def test_a_sinogram_with_missing_views_is_refused() -> None:
    with pytest.raises(GeometryError, match=r"got \(1, 1, 3\); expected \(2, 1, 3\): views, rows, bins"):
        Scan(rays(1.0)[:1], BEAM)


BOW_TIE = np.array([50.0, 100.0, 60.0])[None, None]


def test_each_bin_may_have_photons_of_its_own() -> None:
    scan = Scan.from_counts(rays(10.0), BOW_TIE, BEAM)
    assert scan.sinogram[1, 0] == pytest.approx(np.log([5.0, 10.0, 6.0]))
    assert scan.variance == pytest.approx(rays(0.1), rel=1e-5)
    assert scan.missing is None
    assert scan.mean_photons == 70.0


def test_a_ray_without_photons_was_not_measured() -> None:
    photons = np.broadcast_to(BOW_TIE, BEAM.shape).copy()
    photons[0, 0, 1] = 0
    scan = Scan.from_counts(rays(10.0, last=0.0), photons, BEAM)
    assert scan.missing is not None
    assert np.argwhere(scan.missing).tolist() == [[0, 0, 1]]
    assert scan.sinogram[0, 0, 1] == 0
    assert scan.variance[0, 0, 1] == math.inf
    assert scan.counts[0, 0, 1] == 0
    assert (scan.starved, scan.measured) == (1, 5)


def test_missing_rays_may_hold_anything_and_take_the_photons() -> None:
    missing = np.isnan(rays(1.0, last=math.nan))
    scan = Scan(rays(1.0, last=math.nan), BEAM, 100.0, missing=missing)
    assert scan.sinogram[1, 0, 2] == 0
    assert np.array_equal(np.broadcast_to(scan.photons, BEAM.shape) == 0, missing)
    assert scan.mean_photons == 100.0
    again = scan.replace(sinogram=rays(2.0))
    assert again.missing is not None
    assert np.array_equal(again.missing, missing)
    assert np.array_equal(again.sinogram == 0, missing)


def test_missing_rays_need_no_dose() -> None:
    missing = np.zeros((2, 1, 1), bool)
    missing[1] = True
    scan = Scan(rays(1.0), BEAM, missing=missing)
    assert scan.photons is None
    assert scan.measured == 3


def test_equal_photons_are_one_number() -> None:
    assert Scan(rays(1.0), BEAM, np.full((1, 1, 3), 7.0)).photons == 7.0


def test_counts_that_are_not_finite_are_marked_where_that_is_asked_for() -> None:
    scan = Scan.from_counts(rays(5.0, last=math.nan), 100.0, BEAM, missing="mark")
    assert scan.missing is not None
    assert np.argwhere(scan.missing).tolist() == [[1, 0, 2]]


def test_a_view_that_counted_nothing_is_refused_or_marked() -> None:
    counts = rays(500.0)
    counts[1] = 0
    beam = ParallelBeam(angles=(0.0, 1.0, 2.0), bins=3, bin_width=1.0)
    counts = np.concatenate([counts, counts[:1]])
    with pytest.raises(InputError, match=r'1 of 3 views, first 1; expected another scan, or missing="mark"'):
        Scan.from_counts(counts, 1000.0, beam)
    scan = Scan.from_counts(counts, 1000.0, beam, missing="mark")
    assert scan.missing is not None
    assert np.flatnonzero(scan.missing.all(axis=(1, 2))).tolist() == [1]
    assert scan.starved == 0


def test_a_dead_view_under_electronic_noise_is_found() -> None:
    beam = ParallelBeam(angles=tuple(np.arange(9) * 0.3), bins=50, bin_width=1.0)
    counts = np.random.default_rng(0).normal(0, 5, beam.shape)
    counts[:5] += 400
    counts[6:] += 400
    scan = Scan.from_counts(counts, 1000.0, beam, electronic=5.0, missing="mark")
    assert scan.missing is not None
    assert np.flatnonzero(scan.missing.all(axis=(1, 2))).tolist() == [5]


def test_broken_rays_are_not_finite_or_of_a_view_without_an_image() -> None:
    values = np.random.default_rng(0).random((4, 2, 5))
    values[1] = 0.25
    values[2, 1, 3] = math.inf
    found = broken_rays(values)
    assert found[1].all()
    assert np.argwhere(found[[0, 2, 3]]).tolist() == [[1, 1, 3]]
    assert not broken_rays(np.zeros((4, 2, 5))).any()


@pytest.mark.parametrize(
    ("photons", "message"),
    [
        (np.ones(3), r"photons do not suit the geometry; got \(3,\); expected a number, or three axes"),
        (np.ones((1, 1, 4)), r"got \(1, 1, 4\)"),
        (np.array([[[1.0, -1.0, 1.0]]]), r"numbers of 0 or more; got 1 of 3, first -1 at \(0, 0, 1\)"),
        (np.array([[[1.0, math.nan, 1.0]]]), "numbers of 0 or more"),
        (np.zeros((1, 1, 3)), "no ray was measured"),
    ],
)
def test_photons_that_cannot_be_are_refused(photons: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Scan(rays(1.0), BEAM, photons)


@pytest.mark.parametrize("missing", [np.zeros((2, 1, 4), bool), np.zeros(BEAM.shape), np.zeros(3, bool)])
def test_missing_rays_that_do_not_fit_are_refused(missing: Any) -> None:
    with pytest.raises(GeometryError, match="missing rays do not suit the geometry"):
        Scan(rays(1.0), BEAM, missing=missing)


def test_the_way_out_of_rays_that_are_not_finite_is_named() -> None:
    with pytest.raises(InputError, match=r"or missing=broken_rays\(sinogram\) to leave such rays out"):
        Scan(rays(1.0, last=math.nan), BEAM)


def test_without_a_dose_there_is_no_variance() -> None:
    with pytest.raises(InputError, match="does not say its dose"):
        _ = Scan(rays(1.0), BEAM).variance


def test_hounsfield_units_go_to_attenuation_and_back() -> None:
    hu = Volume(np.array([[[-1000.0], [0.0]], [[40.0], [1000.0]]], np.float32), GRID, unit="HU")
    mu = attenuation(hu, 0.02)
    assert mu.ravel().tolist() == pytest.approx([0.0, 0.02, 0.0208, 0.04])
    again = hounsfield(mu, GRID, 0.02, variance=np.full(GRID.shape, 0.0001**2))
    assert again.array == pytest.approx(hu.array, abs=1e-3)
    assert again.variance == pytest.approx(25.0)


def test_what_lies_below_air_attenuates_nothing() -> None:
    padded = Volume(np.full(GRID.shape, -3024, np.int16), GRID, unit="HU")
    assert attenuation(padded).max() == 0


def test_voxels_of_another_unit_are_refused() -> None:
    with pytest.raises(InputError, match="unit: the voxels are no attenuation; got SUV"):
        attenuation(Volume(np.zeros(GRID.shape), GRID, unit="SUV"))
