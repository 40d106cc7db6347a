from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sagittal.annotation.uncertainty import (
    Unit,
    ensemble_spread,
    mean_within,
    predictive_entropy,
    regions,
    thumbnail,
)
from sagittal.core.errors import InputError


def head() -> Any:
    mask = np.zeros((20, 20, 10), bool)
    mask[5:15, 4:16, 2:9] = True
    mask[9:11, 9:11, 9] = True  # a tip of four voxels
    return mask


def test_spread_and_entropy_by_hand() -> None:
    members = np.array([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])
    np.testing.assert_allclose(ensemble_spread(members), [0.5, 0])
    np.testing.assert_allclose(predictive_entropy(members.mean(axis=0)), [1, 1])
    three = np.array([[1.0, 0, 0], [0, 0, 0], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(predictive_entropy(three), [0, 0, 1], atol=1e-12)


def test_background_does_not_dilute() -> None:
    values, mask = np.zeros((10, 10)), np.zeros((10, 10), bool)
    values[:2, :2], mask[:2, :4] = 0.8, True
    assert mean_within(values, mask) == pytest.approx(0.4)
    assert mean_within(np.pad(values, 30), np.pad(mask, 30)) == pytest.approx(0.4)
    assert mean_within(values, np.zeros_like(mask)) == 0


def test_units_of_a_volume() -> None:
    mask = head()
    (whole,) = regions(mask, Unit.VOLUME)
    assert (whole.box, whole.voxels) == ((slice(0, 20), slice(0, 20), slice(0, 10)), 844)
    slices = regions(mask, Unit.SLICE)
    assert [one.start[2] for one in slices] == list(range(2, 9))  # the tip is left out
    assert all(mask[one.box].shape == (20, 20, 1) and one.voxels == 120 for one in slices)
    assert len(regions(mask, Unit.SLICE, least_share=0)) == 8
    assert [one.start[0] for one in regions(mask, Unit.SLICE, axis=0)] == list(range(5, 15))
    patches = regions(mask, Unit.PATCH, size=(8, 8, 8), least_share=0)
    assert all(mask[one.box].shape == (8, 8, 8) for one in patches)
    seen = np.zeros_like(mask)
    for one in patches:
        seen[one.box] = True
        assert one.voxels == np.count_nonzero(mask[one.box]) > 0
    assert seen[mask].all()
    assert regions(np.zeros_like(mask), Unit.SLICE) == []
    (large,) = regions(mask, Unit.PATCH, size=(64, 64, 64))
    assert large.voxels == 844


def test_a_thumbnail_sees_the_shape_and_not_the_scale() -> None:
    rng, mask = np.random.default_rng(0), head()
    image = rng.normal(size=mask.shape)
    look = thumbnail(image, mask, size=(4, 4, 2))
    assert look.shape == (32,)
    assert np.linalg.norm(look) == pytest.approx(1)
    assert look.mean() == pytest.approx(0)
    np.testing.assert_allclose(thumbnail(5 * image + 100, mask, size=(4, 4, 2)), look, atol=1e-9)
    moved = [np.roll(array, (3, -2, 0), (0, 1, 2)) for array in (image, mask)]
    np.testing.assert_allclose(thumbnail(*moved, size=(4, 4, 2)), look, atol=1e-12)
    assert not thumbnail(np.full(mask.shape, 0.1), np.ones_like(mask), size=(4, 4, 2)).any()


def test_a_thumbnail_averages_by_hand_where_cells_cut_voxels() -> None:
    look = thumbnail(np.array([0.0, 0, 3])[:, None, None], np.ones((3, 1, 1), bool), size=(2, 1, 1))
    np.testing.assert_allclose(look, [-np.sqrt(0.5), np.sqrt(0.5)])
    look = thumbnail(np.array([0.0, 4, 2])[:, None, None], np.ones((3, 1, 1), bool), size=(2, 1, 1))
    # Means 2; cells of 1.5 voxels: (-2 + 1) / 1.5 and (1 + 0) / 1.5.
    np.testing.assert_allclose(look, [-np.sqrt(0.5), np.sqrt(0.5)])


def test_what_is_no_unit_is_refused() -> None:
    with pytest.raises(InputError, match="ensemble"):
        ensemble_spread(np.ones((1, 4, 4, 2)))
    with pytest.raises(InputError, match="classes"):
        predictive_entropy(np.ones((4, 1)))
    with pytest.raises(InputError, match="axis 3"):
        regions(head(), Unit.SLICE, axis=3)
    with pytest.raises(InputError, match="1 or more"):
        regions(head(), Unit.PATCH, size=(8, 8, 0))
    with pytest.raises(InputError, match="mask"):
        mean_within(np.ones((3, 3)), np.ones((3, 2), bool))
    with pytest.raises(InputError, match="a voxel in it"):
        thumbnail(np.ones((3, 3, 3)), np.zeros((3, 3, 3), bool))
