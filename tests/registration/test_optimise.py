from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from known_fields import bump, centred, on_grid, turn
from sagittal.core.errors import GeometryError, InputError
from sagittal.registration import affine_registration, register
from sagittal.registration.filters import gaussian
from sagittal.volume import DisplacementField, Geometry, Volume

torch: Any = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("one_thread")

GRID = centred((40, 36, 32), (2, 2.2, 2.5), turn(0.3, -0.2))
FLAT = centred((64, 60, 1), (1.5, 1.6, 4), np.diag([-1.0, 1, 1]))


def textured(geometry: Geometry, seed: int = 0) -> Volume:
    """A round object full of smooth detail, dark around it."""
    random = np.random.default_rng(seed)
    flat = geometry.shape[2] == 1
    detail = gaussian(random.normal(size=geometry.shape), (1.6, 1.6, 0 if flat else 1.6))
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), -1)
    offset = (index / (np.maximum(np.array(geometry.shape), 2) - 1) - 0.5) * [1, 1, 0 if flat else 1]
    within = 1 / (1 + np.exp((np.linalg.norm(offset, axis=-1) - 0.36) / 0.015))
    return Volume(100 * within * (2 + detail / detail.std()).clip(0), geometry)


def known(geometry: Geometry, peak_mm: float) -> tuple[Volume, Volume, DisplacementField]:
    """A moving image, a fixed image, and the map between them: a warp, a turn and a shift."""
    half = np.maximum((np.array(geometry.shape) - 1) / 2, 0.5) * geometry.spacing
    axes, flat = geometry.direction, geometry.shape[2] == 1
    smooth = bump(peak_mm, half, 3, 3)
    velocity = on_grid(lambda p: (smooth(p @ axes) * [1, 1, 0 if flat else 1]) @ axes.T, geometry)
    matrix = np.eye(4)
    matrix[:3, :3] = turn(0.1, 0 if flat else -0.07)
    matrix[:3, 3] = [5, -4, 0 if flat else 3]
    back = velocity.exponentiate().compose(DisplacementField.from_affine(np.linalg.inv(matrix), geometry))
    fixed = textured(geometry)
    there = DisplacementField.from_affine(matrix, geometry).compose(
        DisplacementField(-velocity.vectors, geometry).exponentiate()
    )
    return back.warp(fixed), fixed, there


def errors(found: DisplacementField, wanted: DisplacementField, fixed: Volume) -> Any:
    apart = DisplacementField(found.vectors - wanted.vectors, wanted.geometry)
    return apart.magnitude[fixed.array > 60]


@pytest.mark.parametrize("measure", ["local-correlation", "mean-square", "mutual-information"])
def test_a_known_warp_is_found(measure: str) -> None:
    moving, fixed, wanted = known(GRID, 25)
    affine = affine_registration(moving, fixed)
    found = register(moving, fixed, measure=measure, affine=affine)
    before = errors(DisplacementField.from_affine(affine, GRID), wanted, fixed)
    after = errors(found.field, wanted, fixed)
    assert np.median(before) > 1.5
    assert np.median(after) < 0.4
    assert found.field.folds == 0
    assert found.inverse_consistency_mm < 0.1
    assert all(min(level) < level[0] for level in found.energies)


def test_a_known_warp_is_found_in_a_slice() -> None:
    moving, fixed, wanted = known(FLAT, 20)
    found = register(moving, fixed)
    assert np.median(errors(found.field, wanted, fixed)) < 0.3
    assert np.allclose(found.field.vectors[2], 0)
    assert found.field.folds == 0


def test_the_other_way_round_gives_the_inverse() -> None:
    moving, fixed, _ = known(GRID, 20)
    there = register(moving, fixed, affine=np.eye(4))
    back = register(fixed, moving, affine=np.eye(4))
    apart = errors(there.field, back.inverse, fixed)
    assert np.median(apart) < 0.05
    assert np.median(there.field.magnitude[fixed.array > 60]) > 2


@pytest.fixture
def coarse_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small images be treated as large ones are."""
    monkeypatch.setattr("sagittal.registration.optimise._MANY", 1)


@pytest.mark.usefixtures("coarse_velocity")
def test_a_velocity_of_half_the_resolution_will_do() -> None:
    moving, fixed, wanted = known(GRID, 12)
    found = register(moving, fixed)
    assert np.median(errors(found.field, wanted, fixed)) < 0.4
    assert found.field.folds == 0


@pytest.mark.usefixtures("coarse_velocity")
def test_threads_do_not_change_a_bit() -> None:
    moving, fixed, _ = known(GRID, 20)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        one = register(moving, fixed, iterations=(5, 3))
        found.append((one.field.content_hash, one.inverse.content_hash, one.energies))
    assert found[0] == found[1]


def test_intensities_may_be_turned_over_for_mutual_information() -> None:
    moving, fixed, wanted = known(GRID, 20)
    other = moving.with_array(np.sqrt(moving.array.max() - moving.array))
    found = register(other, fixed, measure="mutual-information")
    assert np.median(errors(found.field, wanted, fixed)) < 1


def test_images_far_apart_are_brought_together() -> None:
    fixed = textured(GRID)
    away = GRID.affine.copy()
    away[:3, 3] += [800, -300, 2000]
    moving = Volume(fixed.array, Geometry(GRID.shape, away))
    found = affine_registration(moving, fixed)
    assert np.allclose(found @ [3, -5, 8, 1], [803, -305, 2008, 1], atol=0.1)


def test_an_affine_map_is_found_on_other_grids() -> None:
    matrix = np.eye(4)
    matrix[:3] = [[1.05, 0.12, 0, 6], [-0.1, 0.95, 0.06, -3], [0, 0.05, 1.08, 9]]
    fixed = textured(GRID)
    sight = centred((70, 60, 14), (1.5, 1.7, 7), turn(-0.2, 0.1) @ np.diag([-1.0, 1, 1]))
    moving = DisplacementField.from_affine(np.linalg.inv(matrix), sight).warp(fixed)
    found = affine_registration(moving, fixed)
    corners = np.hstack([GRID.corners * 0.6, np.ones((8, 1))])
    assert np.abs(corners @ (found - matrix).T).max() < 1.5


def test_what_cannot_be_registered_is_refused() -> None:
    fixed = textured(GRID)
    empty = fixed.with_array(np.full(GRID.shape, 3.0))
    with pytest.raises(InputError, match="moving image: the image is constant"):
        register(empty, fixed)
    with pytest.raises(InputError, match="no such similarity"):
        register(fixed, fixed, measure="likeness")
    with pytest.raises(InputError, match="not an affine map"):
        register(fixed, fixed, affine=np.zeros((4, 4)))
    with pytest.raises(InputError, match="iterations"):
        register(fixed, fixed, iterations=())
    with pytest.raises(GeometryError, match="do not overlap"):
        register(fixed, fixed, affine=[[1, 0, 0, 900], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(GeometryError, match="dimensions"):
        register(fixed, textured(FLAT))
    tilted = textured(FLAT).replace(geometry=centred(FLAT.shape, (1.5, 1.6, 4), turn(0, 0.2)))
    with pytest.raises(GeometryError, match="not parallel"):
        register(tilted, textured(FLAT))


def test_what_speaks_against_a_result_is_said() -> None:
    moving, fixed, _ = known(GRID, 20)
    found = register(moving, fixed, iterations=(4, 2))
    assert found.problems == ()
    folded = found.field.vectors.copy()
    folded[:, 20, 18, 16] += 9
    broken = replace(
        found,
        field=DisplacementField(folded, GRID),
        inverse_consistency_mm=7.0,
        energies=((0.5, 0.6),),
    )
    assert [problem.split()[-1] for problem in broken.problems] == ["fold", "mm", "alike"]


def test_a_mask_keeps_a_lesion_from_pulling() -> None:
    moving, fixed, wanted = known(GRID, 10)
    index = np.stack(np.meshgrid(*map(np.arange, GRID.shape), indexing="ij"), -1)
    away = np.linalg.norm(GRID.index_to_world(index) - [14, 6, 0], axis=-1)
    sick = replace(fixed, array=np.where(away < 9, 20.0, fixed.array).astype(np.float32))
    healthy = Volume((away >= 12).astype(np.uint8), GRID)
    affine = affine_registration(moving, fixed)
    ring = (away < 16) & (fixed.array > 60)
    apart = []
    for mask in (None, healthy):
        found = register(moving, sick, affine=affine, fixed_mask=mask)
        apart.append(DisplacementField(found.field.vectors - wanted.vectors, GRID).magnitude[ring].mean())
    assert apart[1] < 0.8 * apart[0]


@pytest.mark.parametrize("which", ["moving", "fixed"])
def test_a_bright_object_outside_the_mask_does_not_move_the_affine_map(which: str) -> None:
    moving, fixed, wanted = known(GRID, 10)
    images = {"moving": moving, "fixed": fixed}
    index = np.stack(np.meshgrid(*map(np.arange, GRID.shape), indexing="ij"), -1)
    away = np.linalg.norm(GRID.index_to_world(index) - [30, 25, 10], axis=-1)
    bright = np.where(away < 12, 2000, images[which].array).astype(np.float32)
    masks: Any = {f"{which}_mask": Volume((away >= 12).astype(np.uint8), GRID)}
    images[which] = replace(images[which], array=bright)
    pulled = register(**images, iterations=(0,))
    held = register(**images, iterations=(20, 10), **masks)
    assert np.median(errors(held.field, wanted, fixed)) < 1
    assert np.median(errors(pulled.field, wanted, fixed)) > 3
    assert held.problems == ()


def test_an_image_that_is_constant_where_its_mask_counts_is_refused() -> None:
    fixed = textured(GRID)
    dark = fixed.with_array((fixed.array == 0).astype(np.uint8))
    with pytest.raises(InputError, match="fixed image: the image is constant where its mask counts; got 0"):
        register(fixed, fixed, fixed_mask=dark)


def test_a_mask_of_everything_changes_little() -> None:
    moving, fixed, _ = known(GRID, 10)
    whole = Volume(np.ones(GRID.shape, np.uint8), GRID)
    free = register(moving, fixed, affine=np.eye(4))
    held = register(moving, fixed, affine=np.eye(4), fixed_mask=whole)
    assert np.abs(free.field.vectors - held.field.vectors).max() < 0.05


@pytest.mark.parametrize("which", ["moving_mask", "fixed_mask"])
def test_a_mask_that_leaves_nothing_is_refused(which: Any) -> None:
    image = textured(GRID)
    affine = GRID.affine.copy()
    affine[:3, 3] += 1000
    elsewhere = Geometry(GRID.shape, affine)
    with pytest.raises(InputError, match="leaves nothing"):
        register(image, image, affine=np.eye(4), **{which: Volume(np.ones(GRID.shape, np.uint8), elsewhere)})
    with pytest.raises(InputError, match="leaves nothing"):
        register(image, image, affine=np.eye(4), **{which: Volume(np.zeros(GRID.shape, np.uint8), GRID)})


def test_it_begins_at_a_velocity_that_is_given() -> None:
    moving, fixed, wanted = known(FLAT, 20)
    affine = affine_registration(moving, fixed)
    whole = register(moving, fixed, affine=affine)
    velocity = DisplacementField.from_affine(np.linalg.inv(affine), FLAT).compose(whole.field)
    kept = register(moving, fixed, affine=affine, start=velocity, iterations=(0,))
    alone = register(moving, fixed, affine=affine, iterations=(3,))
    on = register(moving, fixed, affine=affine, start=velocity, iterations=(3,))
    assert kept.energies[0][0] < alone.energies[0][0]
    assert np.median(errors(on.field, wanted, fixed)) < 0.5 * np.median(errors(alone.field, wanted, fixed))
