from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from known_fields import bump, centred, on_grid, turn
from sagittal.registration import Registration, register
from sagittal.registration.filters import gaussian
from sagittal.volume import DisplacementField, Geometry, Volume

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("one_thread")

GRID = centred((36, 34, 30), (5, 5, 6), turn(0.1, 0))


def anatomy(seed: int, geometry: Geometry = GRID) -> Volume:
    """An oval with structures in two sizes; another seed is another anatomy."""
    random = np.random.default_rng(seed)
    large, small = (gaussian(random.normal(size=geometry.shape), (size,) * 3) for size in (3, 1.5))
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), -1)
    away = np.linalg.norm(geometry.index_to_world(index) / [60, 75, 65], axis=-1)
    within = 1 / (1 + np.exp((away - 1) / 0.04))
    return Volume(within * (2 + large / large.std() + 0.5 * small / small.std()).clip(0.2, 4), geometry)


def warped(fixed: Volume, seed: int = 3, noise: float = 0.1) -> Volume:
    """The same anatomy, deformed and with noise."""
    smooth = bump(40, (90, 85, 90), seed, 3)
    moved = on_grid(smooth, fixed.geometry).exponentiate().warp(fixed)
    return moved.with_array(moved.array + noise * np.random.default_rng(seed).normal(size=moved.shape))


@pytest.fixture(scope="module")
def right() -> Registration:
    fixed = anatomy(0)
    return register(warped(fixed), fixed)


def test_nothing_speaks_against_the_same_anatomy(right: Registration) -> None:
    assert right.problems == ()
    assert right.alike[0] > 1.3 * right.alike[1]


def test_nothing_speaks_against_the_same_anatomy_in_another_contrast() -> None:
    fixed = anatomy(0)
    moving = warped(fixed)
    other = moving.with_array(np.sqrt((5 - moving.array).clip(0)))
    assert register(other, fixed, measure="mutual-information").problems == ()


def test_nothing_speaks_against_half_of_the_same_anatomy() -> None:
    fixed = anatomy(0)
    moving = warped(fixed)
    assert register(Volume(moving.array[:18], Geometry((18, 34, 30), GRID.affine)), fixed).problems == ()


def test_an_affine_map_alone_is_not_blamed_for_not_deforming() -> None:
    fixed = anatomy(0)
    assert register(warped(fixed), fixed, iterations=(0,)).problems == ()


@pytest.mark.parametrize(
    ("measure", "seed"), [("local-correlation", 1), ("mean-square", 2), ("mutual-information", 1)]
)
def test_another_anatomy_is_told(measure: str, seed: int) -> None:
    assert register(warped(anatomy(seed)), anatomy(0), measure=measure).problems


def test_a_mirrored_anatomy_is_told() -> None:
    fixed = anatomy(0)
    moving = warped(fixed)
    found = register(moving.with_array(moving.array[::-1, ::-1, ::-1].copy()), fixed)
    assert any("turned another way" in problem for problem in found.problems)


def test_the_wrong_measure_is_told() -> None:
    fixed = anatomy(0)
    moving = warped(fixed)
    inverted = moving.with_array(4.5 - moving.array)
    assert register(inverted, fixed, measure="mean-square").problems


def test_noise_is_told() -> None:
    noise = gaussian(np.random.default_rng(5).normal(size=GRID.shape), (1.5,) * 3)
    assert register(Volume(noise, GRID), anatomy(0)).problems


def test_a_map_that_no_patient_needs_is_told(right: Registration) -> None:
    def said(matrix: Any) -> str:
        return "; ".join(replace(right, affine=np.array(matrix, dtype=float)).problems)

    assert "mirrors" in said(np.diag([-1, 1, 1, 1]))
    assert "stretches the image by 1 to 4" in said(np.diag([1, 4, 1, 1]))
    away = DisplacementField(right.field.vectors + np.float32(165), GRID)
    assert any("is seen" in problem for problem in replace(right, field=away).problems)


def test_an_object_that_is_alike_whichever_way_it_is_turned_is_not_blamed(right: Registration) -> None:
    assert replace(right, alike=(0.8, 0.79)).problems == ()
    assert replace(right, alike=(0.3, 0.29)).problems != ()


def test_one_image_twice_is_not_blamed_for_coming_no_closer() -> None:
    fixed = anatomy(0)
    assert register(fixed, fixed).problems == ()
