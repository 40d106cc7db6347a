from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sagittal.core.errors import GeometryError, InputError
from sagittal.reconstruction.corrections import (
    fill_channels,
    find_bad_channels,
    harden_water,
    hardening_coefficients,
    remove_rings,
    remove_zingers,
    water_attenuation,
)
from sagittal.reconstruction.geometry import ParallelBeam
from sagittal.reconstruction.line_integrals import line_integrals
from sagittal.volume.standard_phantoms import smooth_regions

pytest.importorskip("scipy.ndimage")

VIEWS, BINS = 180, 160
NOISE = 0.01


@pytest.fixture(scope="module")
def clean() -> NDArray[np.float64]:
    angles = tuple(np.linspace(0, math.pi, VIEWS, endpoint=False))
    return line_integrals(smooth_regions(), ParallelBeam(angles=angles, bins=BINS, bin_width=1.4), subrays=3)


@pytest.fixture
def noisy(clean: NDArray[np.float64]) -> NDArray[np.float64]:
    return clean + NOISE * np.random.default_rng(5).normal(size=clean.shape)


def error(found: NDArray[Any], clean: NDArray[Any], where: Any = slice(None)) -> float:
    return float(np.sqrt(np.mean((found - clean)[where] ** 2)))


def test_dead_noisy_shifted_and_broken_channels_are_found(noisy: NDArray[np.float64]) -> None:
    draw = np.random.default_rng(6)
    noisy[:, 0, 30] = 1.0
    noisy[:, 0, 75] += 0.3 * draw.normal(size=VIEWS)
    noisy[:, 0, 100] += 0.1
    noisy[7, 0, 120] = math.nan
    found = find_bad_channels(noisy)
    assert set(np.flatnonzero(found[0])) == {30, 75, 100, 120}


def test_a_sound_detector_has_no_bad_channel(noisy: NDArray[np.float64]) -> None:
    assert not find_bad_channels(noisy).any()


def test_too_few_views_to_compare_channels_are_refused() -> None:
    with pytest.raises(InputError, match="compared"):
        find_bad_channels(np.zeros((3, 1, 50)))


def test_a_filled_channel_is_the_line_between_its_neighbours() -> None:
    sinogram = np.arange(5.0)[None, None, :].repeat(2, 0) * 3
    sinogram[:, 0, 2] = math.nan
    bad = np.array([[False, False, True, False, False]])
    found = fill_channels(sinogram, bad)
    np.testing.assert_allclose(found.sinogram[0, 0], [0, 3, 6, 9, 12])
    assert found.changed.sum() == 2
    assert found.changed[:, 0, 2].all()


def test_a_channel_at_the_end_takes_its_neighbour() -> None:
    sinogram = np.array([[[1.0, 2.0, 3.0, 9.0, 9.0]]])
    found = fill_channels(sinogram, np.array([[False, False, False, True, True]]))
    np.testing.assert_allclose(found.sinogram[0, 0], [1, 2, 3, 3, 3])
    np.testing.assert_allclose(
        found.variance[0, 0], [0, 0, 0, 1, 4]
    )  # the ramp of 1 a bin is missed by 1 and 2


def test_the_variance_of_a_filled_channel_is_what_filling_misses(
    clean: NDArray[np.float64], noisy: NDArray[np.float64]
) -> None:
    bad = np.zeros((1, BINS), bool)
    bad[0, [50, 51, 90]] = True
    found = fill_channels(noisy, bad)
    for channel in (50, 51, 90):
        missed = error(found.sinogram, clean, (slice(None), 0, channel))
        assert 0.4 < missed / math.sqrt(found.variance[0, 0, channel]) < 2
    assert found.variance[0, 0, 50] > found.variance[0, 0, 90]


def test_a_row_without_good_channels_is_refused() -> None:
    with pytest.raises(InputError, match="good channels"):
        fill_channels(np.zeros((2, 1, 5)), np.ones((1, 5), bool))


def test_bad_channels_of_another_detector_are_refused() -> None:
    with pytest.raises(GeometryError):
        fill_channels(np.zeros((2, 1, 5)), np.zeros((1, 6), bool))


def test_zingers_are_replaced_and_nearly_nothing_else(
    clean: NDArray[np.float64], noisy: NDArray[np.float64]
) -> None:
    draw = np.random.default_rng(8)
    hit = np.zeros(noisy.shape, bool)
    hit[draw.integers(0, VIEWS, 40), 0, draw.integers(0, BINS, 40)] = True
    found = remove_zingers(np.where(hit, noisy - 1.0, noisy))
    assert (found.changed & hit).sum() >= 0.9 * hit.sum()
    assert (found.changed & ~hit).sum() <= 3
    caught = found.changed & hit
    assert error(found.sinogram, clean, caught) < 0.06
    assert 0.3 < error(found.sinogram, clean, caught) / math.sqrt(found.variance[caught].mean()) < 3


def test_an_even_median_is_refused() -> None:
    with pytest.raises(InputError, match="odd"):
        remove_zingers(np.zeros((9, 1, 9)), views=4)


def test_rays_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="fill bad channels"):
        remove_zingers(np.full((9, 1, 9), math.nan))


def test_stripes_are_removed_whether_they_depend_on_the_signal_or_not(
    clean: NDArray[np.float64], noisy: NDArray[np.float64]
) -> None:
    striped = noisy.copy()
    striped[:, 0, 60] += 0.08
    striped[:, 0, 95] *= 1.05
    found = remove_rings(striped)
    for channel in (60, 95):
        at = (slice(None), 0, channel)
        assert found.changed[at].all()
        assert error(found.sinogram, clean, at) < 0.85 * error(striped, clean, at)
        assert 0.2 < error(found.sinogram, clean, at) / math.sqrt(found.carry(NOISE**2)[at].mean()) < 4
    assert found.changed[0, 0].sum() < 0.2 * BINS


def test_channels_without_a_stripe_are_left_as_they_are(noisy: NDArray[np.float64]) -> None:
    found = remove_rings(noisy)
    np.testing.assert_array_equal(found.sinogram[~found.changed], noisy[~found.changed])


def test_the_dtype_that_was_given_comes_back(noisy: NDArray[np.float64]) -> None:
    assert remove_rings(noisy.astype(np.float32)).sinogram.dtype == np.float32


def test_filled_rays_carry_the_variance_of_the_filling_and_others_their_own(
    noisy: NDArray[np.float64],
) -> None:
    bad = np.zeros((1, BINS), bool)
    bad[0, 50] = True
    found = fill_channels(noisy, bad)
    carried = found.carry(NOISE**2)
    assert np.all(carried[:, 0, 51] == NOISE**2)
    assert np.all(carried[:, 0, 50] == found.variance[:, 0, 50])


def test_the_attenuation_of_water_is_that_of_the_table_and_between() -> None:
    np.testing.assert_allclose(water_attenuation([60, 80]), [0.02059, 0.01837])
    assert water_attenuation(70) == pytest.approx(0.0193, rel=5e-3)


ENERGIES = np.arange(30.0, 121.0, 2.0)
SPECTRUM = (120.0 - ENERGIES) * np.exp(-((30.0 / ENERGIES) ** 3))


def polychromatic(lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    return -np.log(np.exp(-lengths[:, None] * water_attenuation(ENERGIES)) @ SPECTRUM / SPECTRUM.sum())


def test_corrected_water_is_in_proportion_to_its_thickness() -> None:
    coefficients = hardening_coefficients(ENERGIES, SPECTRUM, reference=70)
    lengths = np.array([3.0, 50.0, 180.0, 395.0])
    measured = polychromatic(lengths)
    found = harden_water(measured[None, None], coefficients)
    np.testing.assert_allclose(found.sinogram[0, 0], lengths * water_attenuation(70), rtol=2e-3)
    assert abs(measured[3] / measured[0] / (395 / 3) - 1) > 0.05  # there was something to correct


def test_one_energy_needs_no_correction() -> None:
    assert hardening_coefficients([70.0], [5.0], reference=70, degree=1) == pytest.approx((1.0,))


def test_hardening_multiplies_an_error_by_the_slope() -> None:
    found = harden_water(np.full((1, 1, 1), 2.0), (1.0, 0.25))
    assert found.sinogram[0, 0, 0] == 3.0
    assert found.carry(0.1)[0, 0, 0] == pytest.approx(0.1 * 2**2)
    assert not found.changed.any()


def test_a_polynomial_that_falls_is_refused() -> None:
    with pytest.raises(InputError, match="falls"):
        harden_water(np.full((1, 1, 1), 2.0), (1.0, -0.3))


def test_an_empty_spectrum_is_refused() -> None:
    with pytest.raises(InputError, match="spectrum"):
        hardening_coefficients([60.0], [0.0], reference=60)
