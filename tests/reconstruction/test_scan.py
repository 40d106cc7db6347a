from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import GeometryError, InputError
from sagittal.reconstruction.geometry import ParallelBeam
from sagittal.reconstruction.scan import LEAST_COUNT, Scan, attenuation, hounsfield
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
