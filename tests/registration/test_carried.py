from __future__ import annotations

import numpy as np
import pytest

from known_fields import centred, on_grid, turn
from sagittal.core.errors import GeometryError, InputError
from sagittal.registration.carried import (
    carried_probabilities,
    class_shares,
    error_deviation,
    volume_change,
)
from sagittal.registration.levels import coarsened
from sagittal.volume import DisplacementField, Geometry, Volume

pytest.importorskip("scipy")


def half_space(geometry: Geometry) -> Volume:
    """Class "left" where x < 0, "right" where x > 0."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), axis=-1)
    left = np.clip(0.5 - geometry.index_to_world(index)[..., 0] / 2, 0, 1)
    probabilities = np.stack([left, 1 - left], axis=-1).astype(np.float32)
    labels = (1 + probabilities.argmax(axis=-1)).astype(np.uint8)
    return Volume(labels, geometry, probabilities=probabilities, classes=("left", "right"))


@pytest.fixture
def atlas() -> Volume:
    return half_space(centred((40, 16, 12), (2, 2, 2), np.eye(3)))


def test_a_field_that_is_exact_reads_the_atlas(atlas: Volume) -> None:
    found = carried_probabilities(atlas, DisplacementField.identity(atlas.geometry))
    assert found.classes == ("left", "right")
    np.testing.assert_allclose(found.probabilities, atlas.probabilities, atol=1e-6)
    np.testing.assert_array_equal(found.array, np.where(atlas.probabilities[..., 0] >= 0.5, 1, 2))


def test_labels_move_with_the_field(atlas: Volume) -> None:
    moved = on_grid(lambda x: np.broadcast_to([10.0, 0, 0], x.shape), atlas.geometry)
    found = carried_probabilities(atlas, moved)
    edge = found.geometry.index_to_world(np.stack([np.arange(40), *[np.full(40, 5)] * 2], axis=-1))[:, 0]
    np.testing.assert_array_equal(found.array[:35, 5, 5] == 1, edge[:35] < -10)


@pytest.mark.parametrize("error", [1.5, 4.0, 9.0])
def test_a_boundary_is_as_wide_as_the_expected_error(error: float) -> None:
    """Far from the faces, the slope is that of the normal distribution with the error's deviation."""
    atlas = half_space(centred((60, 40, 40), (2, 2, 2), np.eye(3)))
    errors = np.full(atlas.shape, error, dtype=np.float32)
    found = carried_probabilities(atlas, DisplacementField.identity(atlas.geometry), errors)
    assert found.probabilities is not None
    row = found.probabilities[15:45, 20, 20, 1].astype(np.float64)
    x = atlas.geometry.index_to_world(np.stack([np.arange(15, 45), *[np.full(30, 20)] * 2], axis=-1))[:, 0]
    density = np.diff(row) / np.diff(row).sum()
    middle = 0.5 * (x[1:] + x[:-1])
    spread = np.sqrt((density * (middle - (density * middle).sum()) ** 2).sum())
    assert spread == pytest.approx(float(error_deviation(np.array(error))), rel=0.1)


def test_the_root_mean_square_of_errors_is_what_was_expected() -> None:
    random = np.random.default_rng(1)
    for axes, planar in ((3, False), (2, True)):
        deviation = float(error_deviation(np.array(3.0), planar=planar))
        away = np.linalg.norm(random.normal(0, deviation, (200_000, axes)), axis=1)
        assert np.sqrt(np.mean(away**2)) == pytest.approx(3, 0.01)


def test_doubt_is_local(atlas: Volume) -> None:
    errors = np.zeros(atlas.shape, dtype=np.float32)
    errors[:, :8] = 6.0
    still = DisplacementField.identity(atlas.geometry)
    sure, found = carried_probabilities(atlas, still), carried_probabilities(atlas, still, errors)
    np.testing.assert_allclose(found.probabilities[:, 8:], sure.probabilities[:, 8:], atol=1e-6)
    assert found.probabilities[22, 4, 6, 1] < sure.probabilities[22, 4, 6, 1] - 0.05


def test_what_lies_beyond_the_atlas_has_no_class(atlas: Volume) -> None:
    far = on_grid(lambda x: np.broadcast_to([0, 12.0, 0], x.shape), atlas.geometry)
    found = carried_probabilities(atlas, far)
    assert not found.array[:, 12:].any()
    assert not found.probabilities[:, 12:].any()
    with pytest.raises(GeometryError, match="nowhere into the atlas"):
        carried_probabilities(atlas, on_grid(lambda x: np.broadcast_to([0, 1e4, 0], x.shape), atlas.geometry))


@pytest.mark.parametrize("wrong", [np.nan, -1.0])
def test_errors_that_are_no_distances_are_refused(atlas: Volume, wrong: float) -> None:
    errors = np.zeros(atlas.shape, dtype=np.float32)
    errors[3, 3, 3] = wrong
    with pytest.raises(InputError, match="errors are not distances"):
        carried_probabilities(atlas, DisplacementField.identity(atlas.geometry), errors)
    with pytest.raises(GeometryError, match="another shape"):
        carried_probabilities(atlas, DisplacementField.identity(atlas.geometry), errors[1:])


def test_volume_change_is_that_of_the_image_against_the_atlas() -> None:
    """A field that shrinks by two along each axis: the image is eight times as large."""
    grid = centred((12, 14, 10), (2, 3, 5), turn(0.4, -0.3))
    field = DisplacementField.from_affine(np.diag([0.5, 0.5, 0.5, 1]), grid)
    np.testing.assert_allclose(volume_change(field).array, np.log(8), atol=1e-5)
    assert volume_change(field).variance is None


def test_the_variance_of_volume_change_is_that_of_smooth_errors() -> None:
    """Errors of 1 mm deviation, correlated over r: the logarithm varies by sqrt(3) / r."""
    from scipy import ndimage

    grid = centred((48, 48, 48), (2, 2, 2), np.eye(3))
    random, width = np.random.default_rng(3), 3.0  # voxels
    noise = np.stack([ndimage.gaussian_filter(random.normal(size=grid.shape), width) for _ in range(3)])
    noise /= noise.std(axis=(1, 2, 3), keepdims=True)
    r = np.sqrt(2) * width * 2
    errors = np.full(grid.shape, np.sqrt(3.0))
    still = DisplacementField.identity(grid)
    predicted = volume_change(still, errors, correlation_mm=float(r)).variance
    assert predicted is not None
    seen = volume_change(DisplacementField(noise, grid)).array[6:-6, 6:-6, 6:-6].std()
    assert seen == pytest.approx(float(np.sqrt(predicted.mean())), rel=0.15)
    with pytest.raises(InputError, match="correlation length"):
        volume_change(still, errors)


def test_shares_of_labels_are_counted_in_coarse_voxels() -> None:
    fine = centred((12, 10, 8), (1, 1, 1), turn(0.3, 0.2))
    labels = np.zeros(fine.shape, dtype=np.int16)
    labels[:6], labels[6:, :5] = 4, 117
    grid = coarsened(fine, 2)
    found = class_shares(Volume(labels, fine), {}, grid)
    assert found.classes == ("label 4", "label 117")
    assert found.probabilities is not None
    assert found.probabilities.sum(axis=(0, 1, 2)) * 8 == pytest.approx([480, 240], rel=1e-5)
    assert found.probabilities[0, 0, 0].tolist() == [1, 0]
    assert found.array[5, 4, 0] == 0


def test_maps_leave_the_rest_to_a_class_within_the_head() -> None:
    grid = centred((8, 8, 8), (1, 1, 1), np.eye(3))
    grey = np.full(grid.shape, 51, dtype=np.uint8)
    within = np.ones(grid.shape, dtype=bool)
    within[:4] = False
    found = class_shares(None, {"gm": Volume(grey, grid)}, grid, rest="csf", within=within)
    assert found.classes == ("gm", "csf")
    assert found.probabilities is not None
    assert found.probabilities[6, 0, 0] == pytest.approx([0.2, 0.8], abs=1e-3)
    assert found.probabilities[0, 0, 0] == pytest.approx([0.2, 0], abs=1e-3)


def test_what_is_no_label_and_no_probability_is_refused() -> None:
    grid = centred((4, 4, 4), (1, 1, 1), np.eye(3))
    with pytest.raises(InputError, match="labels are not whole numbers"):
        class_shares(Volume(np.full(grid.shape, 1.5), grid), {}, grid)
    with pytest.raises(InputError, match="no probability"):
        class_shares(None, {"gm": Volume(np.full(grid.shape, 1.5), grid)}, grid)
    with pytest.raises(InputError, match="no class"):
        class_shares(Volume(np.zeros(grid.shape, dtype=np.int8), grid), {}, grid)
