from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from known_fields import centred
from sagittal.core.errors import GeometryError, InputError
from sagittal.registration import Registration, register
from sagittal.registration.confidence import displacement_error
from sagittal.registration.filters import gaussian
from sagittal.volume import DisplacementField, Geometry, Volume

torch: Any = pytest.importorskip("torch")
stats: Any = pytest.importorskip("scipy.stats")
pytestmark = pytest.mark.usefixtures("one_thread")

SLICE = centred((80, 72, 1), (2, 2, 5), np.eye(3))
SPACE = centred((36, 32, 30), (3, 3, 3), np.diag([-1.0, 1, 1]))


def simulated(
    geometry: Geometry, seed: int, noise: float, moved_mm: float
) -> tuple[Volume, Volume, DisplacementField]:
    """A moving and a fixed image of a textured ring, nothing around it and within, and the true map."""
    random = np.random.default_rng(seed)
    flat = geometry.shape[2] == 1
    detail = gaussian(random.normal(size=geometry.shape), (2, 2, 0 if flat else 2))
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), -1)
    away = np.linalg.norm(geometry.index_to_world(index) * [1, 1, 0 if flat else 1], axis=-1)
    reach = min(n * s for n, s in zip(geometry.shape, geometry.spacing, strict=True) if n > 1)
    ring = 1 / (1 + np.exp((np.abs(away - 0.28 * reach) - 0.14 * reach) / 2))
    fixed = ring * (2 + detail / detail.std()).clip(0) / 4
    sigmas = [
        20 / step if count > 1 else 0 for step, count in zip(geometry.spacing, geometry.shape, strict=True)
    ]
    waves = gaussian(random.normal(size=(3, *geometry.shape)), sigmas)
    if flat:
        waves[2] = 0
    velocity = DisplacementField(waves * (moved_mm / np.sqrt(np.square(waves).sum(0).mean())), geometry)
    moving = velocity.exponentiate().warp(Volume(fixed, geometry)).array
    pair = [
        Volume((image + noise * random.normal(size=image.shape)).astype(np.float32), geometry)
        for image in (moving, fixed)
    ]
    return pair[0], pair[1], DisplacementField(-velocity.vectors, geometry).exponentiate()


def errors(found: Registration, wanted: DisplacementField) -> Any:
    return np.linalg.norm(found.field.vectors - wanted.vectors, axis=0)


@pytest.mark.parametrize("geometry", [SLICE, SPACE], ids=["slice", "space"])
def test_the_expected_error_is_about_the_true_one(geometry: Geometry) -> None:
    real, told = [], []
    for seed, noise in enumerate((0.02, 0.05, 0.1, 0.15)):
        moving, fixed, wanted = simulated(geometry, seed, noise, 4)
        found = register(moving, fixed)
        real.append(errors(found, wanted).ravel())
        told.append(displacement_error(moving, fixed, found).ravel())
    for one, expected in zip(real, told, strict=True):
        assert stats.spearmanr(one, expected).statistic > 0.25
        assert 0.5 < np.sqrt((one**2).mean() / (expected**2).mean()) < 2.2
    all_real, all_told = np.concatenate(real), np.concatenate(told)
    assert stats.spearmanr(all_real, all_told).statistic > 0.6
    assert 0.5 < (all_real < all_told).mean() < 0.8
    assert (all_real < 2 * all_told).mean() > 0.85


def test_where_there_is_nothing_to_see_more_error_is_expected() -> None:
    moving, fixed, _ = simulated(SLICE, 5, 0.02, 4)
    expected = displacement_error(moving, fixed, register(moving, fixed))
    index = np.stack(np.meshgrid(*map(np.arange, SLICE.shape), indexing="ij"), -1)
    away = np.hypot(*np.moveaxis(SLICE.index_to_world(index)[..., :2], -1, 0))
    ring, corner = (away > 25) & (away < 55), away > 85
    assert np.median(expected[corner]) > 3 * np.median(expected[ring])
    assert np.median(expected[away < 4]) > 1.2 * np.median(expected[ring])


def test_beyond_the_moving_image_only_the_size_of_the_deformation_is_known() -> None:
    moving, fixed, _ = simulated(SPACE, 6, 0.02, 4)
    part = Volume(moving.array[:18], Geometry((18, 32, 30), SPACE.affine))
    expected = displacement_error(part, fixed, register(part, fixed, affine=np.eye(4)))
    assert expected.shape == fixed.shape
    assert expected.dtype == np.float32
    assert np.isfinite(expected).all()
    seen, unseen = expected[6:12, 6:26, 6:24], expected[-8:, 6:26, 6:24]
    assert np.median(unseen) > 3 * np.median(seen)


def test_a_contrast_that_is_turned_over_is_no_doubt_for_mutual_information() -> None:
    moving, fixed, _ = simulated(SLICE, 7, 0.02, 3)
    inverted = moving.with_array((0.5 - np.abs(moving.array - 0.5)).astype(np.float32))
    found = register(moving, fixed, affine=np.eye(4))
    expected = displacement_error(inverted, fixed, found, measure="mutual-information")
    plain = displacement_error(moving, fixed, found)
    assert np.median(expected) < 1.5 * np.median(plain)


def test_a_coarse_registration_is_less_sure() -> None:
    moving, fixed, _ = simulated(SLICE, 8, 0.02, 3)
    fine, coarse = (register(moving, fixed, finest_mm=width) for width in (2, 5))
    sure = displacement_error(moving, fixed, fine, finest_mm=2)
    unsure = displacement_error(moving, fixed, coarse, finest_mm=5)
    assert np.median(unsure) > 1.3 * np.median(sure)


def test_threads_do_not_change_a_bit() -> None:
    moving, fixed, _ = simulated(SPACE, 9, 0.05, 3)
    found = register(moving, fixed, iterations=(5, 3), affine=np.eye(4))
    told = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        told.append(displacement_error(moving, fixed, found))
    assert np.array_equal(told[0], told[1])


def test_what_does_not_belong_together_is_refused() -> None:
    moving, fixed, _ = simulated(SLICE, 10, 0.05, 3)
    found = register(moving, fixed, iterations=(2,), affine=np.eye(4))
    with pytest.raises(GeometryError, match="another fixed image"):
        displacement_error(moving, simulated(SPACE, 0, 0.05, 3)[1], found)
    with pytest.raises(InputError, match="no such similarity"):
        displacement_error(moving, fixed, found, measure="likeness")
    far = SLICE.affine.copy()
    far[0, 3] += 900
    with pytest.raises(GeometryError, match="leads nowhere"):
        displacement_error(Volume(moving.array, Geometry(SLICE.shape, far)), fixed, found)
