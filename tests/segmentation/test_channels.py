"""Geometric channels against hand values, on any grid, and their controls."""

from __future__ import annotations

import numpy as np
import pytest

from known_fields import centred, on_grid, swirl, turn
from sagittal.core.errors import GeometryError, InputError
from sagittal.segmentation.channels import (
    LOG_LIMIT,
    Channels,
    geometric_channels,
    noise_channels,
    prior_channels,
)
from sagittal.volume import DisplacementField, Geometry, Volume

SPACE = centred((7, 6, 5), (1.0, 2.0, 3.0), turn(0.4, -0.3))
SLICE = centred((7, 6, 1), (1.0, 2.0, 3.0), np.eye(3))


def affine(matrix: np.ndarray, grid: Geometry) -> DisplacementField:
    whole = np.eye(4)
    whole[:3, :3] = matrix
    return DisplacementField.from_affine(whole, grid)


def test_log_jacobian_of_a_linear_map_is_that_of_its_determinant() -> None:
    matrix = np.array([[1.2, 0.1, 0.0], [0.0, 0.9, 0.2], [0.1, 0.0, 1.1]])
    made = geometric_channels(affine(matrix, SPACE), ["jacobian"])
    assert made.names == ("jacobian",)
    assert made.array.dtype == np.float32
    np.testing.assert_allclose(made.array[0], np.log(np.linalg.det(matrix)), atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_curl_of_a_small_rotation_is_twice_its_sine_along_its_axis(axis: int) -> None:
    angle = 0.05
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[[a, b], [a, b]] = np.cos(angle)
    matrix[b, a], matrix[a, b] = np.sin(angle), -np.sin(angle)
    made = geometric_channels(affine(matrix, SPACE), ["curl"])
    assert made.names == ("curl_x", "curl_y", "curl_z")
    wanted = np.zeros(3)
    wanted[axis] = 2 * np.sin(angle)
    np.testing.assert_allclose(
        made.array, np.broadcast_to(wanted[:, None, None, None], made.array.shape), atol=1e-6
    )


def test_a_slice_has_one_curl_along_its_normal() -> None:
    angle = 0.05
    matrix = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    made = geometric_channels(affine(matrix, SLICE))
    assert made.names == ("jacobian", "curl_z")
    np.testing.assert_allclose(made.array[0], 0, atol=1e-6)
    np.testing.assert_allclose(made.array[1], 2 * np.sin(angle), atol=1e-6)
    flipped = centred((7, 6, 1), (1.0, 2.0, 3.0), np.diag([-1.0, 1.0, 1.0]))
    np.testing.assert_allclose(geometric_channels(affine(matrix, flipped)).array, made.array, atol=1e-6)


def test_flipped_axes_and_other_voxels_change_nothing_in_space() -> None:
    plain = centred((21, 21, 21), (1.0, 1.0, 1.0), np.eye(3))
    flipped = centred((21, 21, 21), (1.0, 1.0, 1.0), np.diag([-1.0, 1.0, -1.0]))
    one, two = (geometric_channels(on_grid(swirl, grid)).array for grid in (plain, flipped))
    np.testing.assert_allclose(one, two[:, ::-1, :, ::-1], atol=1e-6)
    fine = centred((41, 41, 41), (0.5, 0.5, 0.5), np.eye(3))
    finer = geometric_channels(on_grid(swirl, fine)).array[:, ::2, ::2, ::2]
    np.testing.assert_allclose(one[:, 1:-1, 1:-1, 1:-1], finer[:, 1:-1, 1:-1, 1:-1], atol=2e-3)


def test_extremes_and_folds_are_cut_off() -> None:
    grown = geometric_channels(affine(np.eye(3) * 3, SPACE), ["jacobian"]).array
    folded = geometric_channels(affine(np.diag([-1.0, 1, 1]), SPACE), ["jacobian"]).array
    np.testing.assert_allclose(grown, LOG_LIMIT, atol=1e-6)
    np.testing.assert_allclose(folded, -LOG_LIMIT, atol=1e-6)


@pytest.mark.parametrize("kinds", [[], ["jacobian", "jacobian"], ["divergence"]])
def test_unknown_kinds_are_refused(kinds: list[str]) -> None:
    with pytest.raises(InputError, match="kinds of geometric channel"):
        geometric_channels(DisplacementField.identity(SPACE), kinds)


def test_noise_is_the_subjects_own_and_comes_again() -> None:
    one = noise_channels((8, 9, 1), 2, seed=3, subject="a", smooth=2.0)
    again = noise_channels((8, 9, 1), 2, seed=3, subject="a", smooth=2.0)
    other = noise_channels((8, 9, 1), 2, seed=3, subject="b", smooth=2.0)
    np.testing.assert_array_equal(one.array, again.array)
    assert abs(np.corrcoef(one.array.ravel(), other.array.ravel())[0, 1]) < 0.9
    np.testing.assert_allclose(one.array.std(axis=(1, 2, 3)), 1, atol=1e-5)
    with pytest.raises(InputError, match="noise channel"):
        noise_channels((8, 9, 1), 0, seed=3, subject="a")


def test_noise_is_as_smooth_as_asked() -> None:
    rough, smooth = (
        noise_channels((64, 64, 1), 1, seed=1, subject="a", smooth=s).array[0, :, :, 0] for s in (0, 3)
    )
    step = [np.diff(layer, axis=0).std() for layer in (rough, smooth)]
    assert step[1] < step[0] / 3


def test_a_prior_follows_the_field_into_the_atlas() -> None:
    grid = Geometry((6, 4, 4), np.eye(4))
    labels = np.zeros(grid.shape, np.uint8)
    labels[3] = 1
    labels[5] = 2
    shift = np.eye(4)
    shift[0, 3] = 1.5  # the person's x is the atlas's x + 1.5
    field = DisplacementField.from_affine(shift, grid)
    made = prior_channels(field, Volume(labels, grid), {"gm": 1, "wm": 2})
    assert made.names == ("atlas_gm", "atlas_wm")
    np.testing.assert_allclose(made.array[0, :, 0, 0], [0, 0.5, 0.5, 0, 0, 0])
    np.testing.assert_allclose(made.array[1, :4, 0, 0], [0, 0, 0, 0.5])
    with pytest.raises(InputError, match="csf"):
        prior_channels(field, Volume(labels, grid), {"csf": 3})
    far = np.eye(4)
    far[0, 3] = 100
    with pytest.raises(GeometryError):
        prior_channels(DisplacementField.from_affine(far, grid), Volume(labels, grid), {"gm": 1})


def test_channels_stand_beside_each_other_on_one_grid() -> None:
    both = geometric_channels(DisplacementField.identity(SLICE), ["jacobian"]).beside(
        noise_channels(SLICE.shape, 1, seed=1, subject="a")
    )
    assert both.names == ("jacobian", "noise_1")
    assert both.array.shape == (2, *SLICE.shape)
    with pytest.raises(InputError, match="grids that differ"):
        both.beside(noise_channels((3, 3, 1), 1, seed=1, subject="b"))
    with pytest.raises(InputError, match="names do not match"):
        both.beside(noise_channels(SLICE.shape, 1, seed=1, subject="b"))
    with pytest.raises(InputError, match="not finite"):
        Channels(np.full((1, 2, 2, 1), np.nan, np.float32), ("a",))
