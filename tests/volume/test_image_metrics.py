from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import GeometryError, InputError
from sagittal.volume import Geometry, Volume
from sagittal.volume.image_metrics import (
    contrast_recovery,
    edge_band_rmse,
    edge_mask,
    edge_spread_width,
    flat_noise,
    gradient_magnitude,
    match_resolution,
    rmse,
    structural_similarity,
)
from sagittal.volume.phantoms import Body, Phantom

ndimage: Any = pytest.importorskip("scipy.ndimage")


def volume(array: Any, spacing: tuple[float, float, float] = (1, 1, 1), unit: str = "HU") -> Volume:
    values = np.asarray(array, dtype=np.float64)
    if values.ndim == 2:
        values = values[:, :, None]
    return Volume(values, Geometry.from_spacing(values.shape, spacing), unit=unit)


def step(width: float = 0.0, count: int = 60, spacing: float = 0.5) -> Volume:
    """An edge of 100 HU at half the grid across the first axis, blurred to a 10-90 % width in mm."""
    x = (np.arange(count) - (count - 1) / 2) * spacing
    if width:
        rise = 50 * (1 + np.vectorize(math.erf)(x / (width / 2.5631) / math.sqrt(2)))
    else:
        rise = 100.0 * (x > 0)
    return volume(np.repeat(rise[:, None], 20, axis=1), (spacing, spacing, spacing))


def widened(width: float, spacing: float) -> float:
    """A width after linear interpolation: a triangle's variance, spacing^2 / 6, adds to the edge's."""
    return math.hypot(width, 2.5631 * spacing / math.sqrt(6))


NOISE = np.random.default_rng(1).normal(size=(60, 20))


def test_rmse_is_the_root_of_the_mean_square() -> None:
    assert rmse(volume([[3, 0], [0, -4]]), volume(np.zeros((2, 2)))) == pytest.approx(2.5)


def test_rmse_counts_the_mask_alone() -> None:
    mask = np.array([[True, False], [False, False]])[:, :, None]
    assert rmse(volume([[3, 0], [0, -4]]), volume(np.zeros((2, 2))), mask=mask) == 3


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        rmse(volume([[1.0]]), volume([[1.0]]), mask=np.zeros((1, 1, 1), bool))


def test_other_units_are_refused() -> None:
    with pytest.raises(InputError, match="units"):
        rmse(volume([[1.0]]), volume([[1.0]], unit="1/mm"))


def test_other_grids_are_refused() -> None:
    with pytest.raises(GeometryError):
        rmse(volume([[1, 2]]), volume([[1, 2]], spacing=(2, 2, 2)))


def test_an_image_is_wholly_similar_to_itself() -> None:
    one = volume(NOISE)
    assert structural_similarity(one, one, data_range=1.0) == pytest.approx(1.0)


def test_similarity_of_constant_slices_is_that_of_their_means() -> None:
    found = structural_similarity(
        volume(np.full((11, 11), 3.0)), volume(np.full((11, 11), 4.0)), data_range=10.0
    )
    assert found == pytest.approx((2 * 12 + 0.01) / (25 + 0.01))


def test_similarity_at_one_voxel_is_the_formula_with_its_gaussian_weights() -> None:
    draw = np.random.default_rng(2)
    x, y = draw.normal(size=(2, 11, 11))
    r = np.arange(-5, 6)
    line = np.exp(-(r**2) / 4.5)
    weights = np.outer(line, line) / line.sum() ** 2
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
    spread = (weights * (x - mean_x) ** 2).sum() + (weights * (y - mean_y) ** 2).sum()
    expected = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
    expected /= (mean_x**2 + mean_y**2 + 1e-4) * (spread + 9e-4)
    assert structural_similarity(volume(x), volume(y), data_range=1.0) == pytest.approx(expected, rel=1e-9)


def test_slices_too_small_for_the_window_are_refused() -> None:
    with pytest.raises(InputError, match="too small"):
        structural_similarity(volume(np.zeros((10, 11))), volume(np.zeros((10, 11))), data_range=1.0)


def test_the_gradient_is_per_millimetre() -> None:
    ramp = np.arange(5.0)[:, None] * 6 + np.arange(4.0) * 4
    np.testing.assert_allclose(gradient_magnitude(volume(ramp, (2, 1, 1))), 5.0)


def test_a_reference_without_edges_is_refused() -> None:
    with pytest.raises(InputError, match="no edge"):
        edge_mask(volume(np.zeros((5, 5))), 1.0)


def test_the_band_about_an_edge_is_measured_in_millimetres() -> None:
    # Edges are voxels 29 and 30; with 0.5 mm, a band of 1 mm reaches two voxels further: 27 to 32.
    reference = step()
    wrong = reference.array.copy()
    wrong[27] += 6
    wrong[26] += 600
    found = edge_band_rmse(reference.with_array(wrong), reference, threshold=10, band_mm=1.0)
    assert found == pytest.approx(math.sqrt(36 / 6))


def test_noise_is_measured_away_from_edges() -> None:
    reference = step()
    noise = NOISE[:, :, None] * 4
    noise[27:33] = 1000
    found = flat_noise(reference.with_array(reference.array + noise), reference, threshold=10, margin_mm=1.0)
    assert found == pytest.approx(4.0, rel=0.05)


def test_a_bias_of_each_region_is_no_noise() -> None:
    reference = step()
    biased = np.where(reference.array > 50, reference.array + 30, reference.array - 10)
    assert flat_noise(reference.with_array(biased), reference, threshold=10, margin_mm=1.0) == pytest.approx(
        0, abs=1e-9
    )


def test_noise_at_a_matched_resolution_is_that_of_the_blurred_image() -> None:
    noise = np.random.default_rng(3).normal(size=(400, 400))
    reference = volume(np.zeros((400, 400)), (0.5, 0.5, 0.5))
    noisy = volume(noise, (0.5, 0.5, 0.5))
    found = flat_noise(noisy, reference, threshold=1.0, margin_mm=0, width_mm=2.0, matched_width_mm=4.0)
    sigma = math.sqrt(12) / 2.5631 / 0.5
    assert found == pytest.approx(1 / (2 * math.sqrt(math.pi) * sigma), rel=0.05)


def test_noise_outside_the_mask_does_not_count() -> None:
    reference = step()
    right = np.indices(reference.shape)[0] > reference.shape[0] // 2
    noisy = reference.with_array(reference.array + np.where(right, 0, NOISE[:, :, None] * 4))
    assert flat_noise(noisy, reference, threshold=10, margin_mm=1.0, mask=right) == pytest.approx(0, abs=1e-4)
    assert flat_noise(noisy, reference, threshold=10, margin_mm=1.0) > 1


def test_a_margin_that_leaves_nothing_flat_is_refused() -> None:
    with pytest.raises(InputError, match="flat"):
        flat_noise(step(), step(), threshold=10, margin_mm=50)


def test_matching_makes_an_edge_as_wide_as_asked() -> None:
    wider = match_resolution(step(2.0), 2.0, 4.0)
    assert edge_spread_width(wider, (15, 5, 0), (1, 0, 0), reach_mm=12) == pytest.approx(4.0, rel=0.02)


def test_sharpening_is_refused() -> None:
    with pytest.raises(InputError, match="sharpen"):
        match_resolution(step(2.0), 2.0, 1.0)


@pytest.mark.parametrize("width", [2.0, 5.0])
def test_the_width_of_a_gaussian_edge_is_2_56_standard_deviations(width: float) -> None:
    found = edge_spread_width(step(width), (14.75, 5, 0), (1, 0, 0), reach_mm=13)
    assert found == pytest.approx(widened(width, 0.5), rel=0.03)


def test_the_width_is_in_millimetres_along_a_turned_edge() -> None:
    turned = Geometry.from_spacing((60, 20, 1), (0.5, 0.5, 0.5), direction=[[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    image = Volume(step(3.0).array, turned, unit="HU")
    found = edge_spread_width(image, (-5, 14.75, 0), (0, -2, 0), reach_mm=13)
    assert found == pytest.approx(widened(3.0, 0.5), rel=0.03)


def test_profiles_about_a_disc_are_averaged() -> None:
    disc = Phantom(name="disc", bodies=(Body(half_sizes=(20, 20, math.inf), density=1.0),))
    grid = Geometry.from_spacing((81, 81, 1), (1, 1, 1), (-40, -40, 0))
    image = match_resolution(disc.rasterise(grid, 8), 1e-6, 4.0)
    ways = np.linspace(0, 2 * math.pi, 50, endpoint=False)
    normals = np.stack([np.cos(ways), np.sin(ways), 0 * ways], axis=1)
    found = edge_spread_width(image, 20 * normals, normals, reach_mm=12)
    voxel = 2.5631**2 / 12  # each voxel is a mean over its area
    assert found == pytest.approx(widened(math.sqrt(16 + voxel), 1.0), rel=0.02)


def test_a_profile_that_leaves_the_grid_is_refused() -> None:
    with pytest.raises(InputError, match="leaves the grid"):
        edge_spread_width(step(2.0), (2, 5, 0), (1, 0, 0), reach_mm=13)


def test_a_flat_profile_has_no_width() -> None:
    with pytest.raises(InputError, match="nothing rises"):
        edge_spread_width(step(2.0), (15, 5, 0), (0, 1, 0), reach_mm=4)


def disc_image(contrast: float) -> Volume:
    bodies = (
        Body(half_sizes=(40, 40, math.inf), density=1.0),
        Body(centre=(10, -5, 0), half_sizes=(6, 6, math.inf), density=contrast),
    )
    grid = Geometry.from_spacing((100, 60, 1), (1, 1.5, 1), (-49.5, -44.25, 0))
    return Phantom(name="disc", bodies=bodies).rasterise(grid, 4)


def test_half_the_contrast_is_half_recovered() -> None:
    found = contrast_recovery(disc_image(0.02), centre=(10, -5, 0), radius=6, contrast=40.0, margin_mm=1.5)
    assert found == pytest.approx(0.5, abs=1e-3)


def test_a_disc_smaller_than_its_margin_is_refused() -> None:
    with pytest.raises(InputError, match="disc"):
        contrast_recovery(disc_image(0.02), centre=(10.5, -5.2, 0), radius=1, contrast=20.0, margin_mm=1.5)


def test_a_disc_without_contrast_is_refused() -> None:
    with pytest.raises(InputError, match="contrast"):
        contrast_recovery(disc_image(0.02), centre=(10, -5, 0), radius=6, contrast=0.0)
