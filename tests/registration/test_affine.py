from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from known_fields import centred, turn
from sagittal.registration import affine_registration
from sagittal.registration.affine import AffineSearch
from sagittal.registration.filters import gaussian
from sagittal.registration.turns import rotation, turns
from sagittal.volume import Geometry, Volume

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("one_thread")

SPACE = centred((30, 26, 24), (5, 6, 7), turn(0.2, 0.1))
SLICE = centred((40, 36, 1), (4, 4, 6), np.diag([-1.0, 1, 1]))


def organ(geometry: Geometry, seed: int = 0) -> Volume:
    """An oval with large structures in it, which looks like no turned copy of itself."""
    random = np.random.default_rng(seed)
    detail = gaussian(random.normal(size=geometry.shape), [3 if n > 1 else 0 for n in geometry.shape])
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), -1)
    away = np.linalg.norm(geometry.index_to_world(index) / [55, 65, 60], axis=-1)
    within = 1 / (1 + np.exp((away - 1) / 0.05))
    return Volume(within * (2 + detail / detail.std()).clip(0.2), geometry)


def turned(volume: Volume, axis: Any, degrees: float, seed: int = 1) -> tuple[Volume, Any]:
    """The same voxels elsewhere in space with other noise, and the map that leads there."""
    half, unit = np.radians(degrees) / 2, np.array(axis) / np.linalg.norm(axis)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(np.array([np.cos(half), *np.sin(half) * unit]))
    matrix[:3, 3] = [30, -20, 0]
    noise = 0.1 * np.random.default_rng(seed).normal(size=volume.shape)
    return Volume(volume.array + noise, Geometry(volume.shape, matrix @ volume.geometry.affine)), matrix


def missed(found: Any, wanted: Any, geometry: Geometry) -> float:
    """Largest distance between two maps at the corners of the middle of a grid, mm."""
    corners = np.hstack([geometry.corners * 0.6, np.ones((8, 1))])
    return float(np.linalg.norm(corners @ (found - wanted).T, axis=1).max())


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize("degrees", [45, 90, 135, 180])
def test_a_large_turn_is_found(axis: Any, degrees: float) -> None:
    fixed = organ(SPACE)
    moving, wanted = turned(fixed, axis, degrees)
    assert missed(affine_registration(moving, fixed), wanted, SPACE) < 2


def test_a_large_turn_is_found_between_images_of_different_kinds() -> None:
    fixed = organ(SPACE)
    moving, wanted = turned(fixed.with_array(np.sqrt(fixed.array.max() - fixed.array)), (1, 2, -1), 120)
    assert missed(affine_registration(moving, fixed, multimodal=True), wanted, SPACE) < 7


@pytest.mark.parametrize("degrees", [75, -150, 180])
def test_a_slice_is_turned_about_its_normal(degrees: float) -> None:
    fixed = organ(SLICE)
    moving, wanted = turned(fixed, (0, 0, 1), degrees)
    found = affine_registration(moving, fixed)
    assert missed(found, wanted, SLICE) < 2
    assert np.allclose(found[2], [0, 0, 1, 0], atol=1e-6)


@pytest.mark.parametrize("geometry", [SPACE, SLICE], ids=["space", "slice"])
def test_an_ordinary_pair_is_brought_together_as_if_no_turn_had_been_looked_for(
    geometry: Geometry, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = organ(geometry)
    moving, wanted = turned(fixed, (0, 0, 1), 15)
    found = affine_registration(moving, fixed)
    assert missed(found, wanted, geometry) < 2
    monkeypatch.setattr(AffineSearch, "_turned", lambda self, start, looked_at: start)
    assert np.array_equal(affine_registration(moving, fixed), found)


def test_the_order_in_which_voxels_are_stored_means_nothing() -> None:
    fixed = organ(SPACE)
    moving, _ = turned(fixed, (0, 0, 1), 20)
    flipped = moving.geometry.affine @ np.diag([-1.0, 1, 1, 1])
    flipped[:3, 3] = moving.geometry.index_to_world([moving.shape[0] - 1, 0, 0])
    left_handed = Volume(moving.array[::-1], Geometry(moving.shape, flipped))
    found = affine_registration(left_handed, fixed)
    assert np.linalg.det(found[:3, :3]) > 0
    assert missed(found, affine_registration(moving, fixed), SPACE) < 0.1


def test_no_turn_is_far_from_one_that_is_looked_at() -> None:
    all_turns = turns(SPACE)
    assert np.allclose(np.linalg.norm(all_turns, axis=1), 1)
    random = np.random.default_rng(0).normal(size=(2000, 4))
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    nearest = np.abs(random @ all_turns.T).max(axis=1).clip(max=1)
    assert np.degrees(2 * np.arccos(nearest)).max() < 35
    assert np.allclose(rotation(np.array([np.sqrt(0.5), 0, 0, np.sqrt(0.5)])), turn(np.pi / 2, 0))


def test_a_map_that_was_given_is_bettered_nearby() -> None:
    fixed = organ(SPACE)
    moving, wanted = turned(fixed, (0, 1, 0), 160)
    beside = wanted.copy()
    beside[:3, 3] += [8, -6, 5]
    assert missed(AffineSearch(moving, fixed).near(beside), wanted, SPACE) < 2


def with_a_ball(volume: Volume, away: Any, value: float = 12.0, radius: float = 22) -> tuple[Volume, Volume]:
    """An image with something bright in it, off its middle, and a mask that leaves it out."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), -1)
    ball = np.linalg.norm(volume.geometry.index_to_world(index) - away, axis=-1) < radius
    mask = volume.with_array((~ball).astype(np.uint8))
    return volume.with_array(np.where(ball, value, volume.array)), mask


@pytest.mark.parametrize(("which", "multimodal"), [("moving", False), ("fixed", False), ("moving", True)])
def test_what_a_mask_leaves_out_does_not_move_the_affine_map(which: str, multimodal: bool) -> None:
    fixed = organ(SPACE)
    moving, wanted = turned(fixed, (0, 0, 1), 15)
    if which == "fixed":
        fixed, mask = with_a_ball(fixed, [45, 30, 0])
    else:
        moving, mask = with_a_ball(moving, (wanted @ [45, 30, 0, 1])[:3])
    pulled = missed(affine_registration(moving, fixed, multimodal=multimodal), wanted, SPACE)
    masks: Any = {f"{which}_mask": mask}
    held = missed(affine_registration(moving, fixed, multimodal=multimodal, **masks), wanted, SPACE)
    assert held < 2
    assert pulled > 3 * held


def test_masks_leave_two_objects_of_two_images_out() -> None:
    fixed = organ(SPACE)
    moving, wanted = turned(fixed, (0, 0, 1), 15)
    fixed, fixed_mask = with_a_ball(fixed, [45, 30, 0])
    moving, moving_mask = with_a_ball(moving, (wanted @ [-40, -30, 20, 1])[:3])
    found = affine_registration(moving, fixed, moving_mask=moving_mask, fixed_mask=fixed_mask)
    assert missed(found, wanted, SPACE) < 2


def test_a_mask_of_everything_leaves_the_affine_map_as_it_is() -> None:
    fixed = organ(SPACE)
    moving, _ = turned(fixed, (0, 0, 1), 15)
    whole = fixed.with_array(np.ones(fixed.shape, np.uint8))
    free, held = affine_registration(moving, fixed), affine_registration(moving, fixed, fixed_mask=whole)
    assert missed(held, free, SPACE) < 0.05
