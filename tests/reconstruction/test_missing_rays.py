from __future__ import annotations

import math

import numpy as np
import pytest

from sagittal.core.errors import GeometryError
from sagittal.reconstruction.missing_rays import fill_missing

RNG = np.random.default_rng(0)
SMOOTH = np.add.outer(np.add.outer(np.arange(20.0) * 0.01, np.arange(4.0) * 0.5), np.arange(30.0) * 0.1)


def test_a_gap_is_filled_along_the_detector() -> None:
    missing = np.zeros(SMOOTH.shape, bool)
    missing[3, 1, 10:14] = True
    missing[5, :, 20] = True
    found = fill_missing(np.where(missing, np.nan, SMOOTH), missing)
    assert found.sinogram == pytest.approx(SMOOTH)
    assert np.array_equal(found.changed, missing)
    assert found.variance.max() == pytest.approx(0, abs=1e-20)


def test_a_whole_row_is_filled_from_the_rows_beside() -> None:
    missing = np.zeros(SMOOTH.shape, bool)
    missing[3, 1] = True
    missing[3, 2, 4] = True
    assert fill_missing(np.where(missing, 99, SMOOTH), missing).sinogram == pytest.approx(SMOOTH)


def test_beyond_the_last_ray_its_value_is_repeated() -> None:
    missing = np.zeros(SMOOTH.shape, bool)
    missing[0, 0, :2] = True
    found = fill_missing(SMOOTH, missing)
    assert found.sinogram[0, 0, :2].tolist() == pytest.approx([SMOOTH[0, 0, 2]] * 2)
    assert found.variance[0, 0, :2].tolist() == pytest.approx([0.2**2, 0.1**2])


def test_the_variance_is_what_interpolation_misses_over_the_same_gap() -> None:
    noise = RNG.normal(0, 0.3, (200, 1, 60))
    missing = np.zeros(noise.shape, bool)
    missing[7, 0, 30] = True
    missing[9, 0, 30:33] = True
    found = fill_missing(noise, missing)
    assert found.variance[7, 0, 30] == pytest.approx(1.5 * 0.09, rel=0.1)  # its own, and half of that
    assert found.variance[9, 0, 30] == pytest.approx((1 + 0.75**2 + 0.25**2) * 0.09, rel=0.1)
    assert found.variance[8].max() == 0


def test_a_whole_view_has_no_value_and_a_variance_without_end() -> None:
    missing = np.zeros(SMOOTH.shape, bool)
    missing[2] = True
    found = fill_missing(SMOOTH, missing)
    assert math.isinf(found.variance[2].min())
    before = np.where(missing, math.inf, 0.01)
    after = found.carry(before)
    assert math.isinf(after[2].min())
    assert after[3].max() == 0.01


def test_shapes_must_match() -> None:
    with pytest.raises(GeometryError, match="missing rays do not fit"):
        fill_missing(SMOOTH, np.zeros((20, 4, 29), bool))
