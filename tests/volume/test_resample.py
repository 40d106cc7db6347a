from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagittal.core.errors import GeometryError, InputError
from sagittal.volume import Geometry, Volume, crop, crop_to_content, reorient, resample

CODES = ["RAS", "LPS", "SRA", "PIR", "ILA", "ASL"]


def ramp(geometry: Geometry) -> Volume:
    """A linear function of the position in space: linear interpolation must give it back."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), axis=-1)
    return Volume(geometry.index_to_world(index) @ [1.0, -2.0, 0.5] + 7, geometry, unit="1")


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_a_linear_field_is_reproduced_on_an_oblique_grid(interpolation: Any) -> None:
    source = Geometry.from_spacing((30, 30, 30), (1, 1.5, 2), (-15, -20, -30))
    angle = 0.4
    turn = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, -1]]
    target = Geometry.from_spacing((5, 6, 7), (0.9, 0.7, 1.1), (-2, 0, 3), turn)
    result = resample(ramp(source), target, interpolation)
    assert result.geometry == target
    assert np.allclose(result.array, ramp(target).array, atol=1e-4 if interpolation == "cubic" else 1e-9)


def test_the_same_place_gives_the_same_values(volume: Volume) -> None:
    plain = volume.with_array(volume.array)
    for code in CODES:
        turned = reorient(plain, code)
        back = resample(plain, turned.geometry, "nearest")
        assert np.array_equal(back.array, turned.array)
        assert np.allclose(resample(plain, turned.geometry).array, turned.array, atol=1e-3)


def test_nearest_keeps_labels_and_wide_integers() -> None:
    array = np.array([2**62 + 1, 2**62 + 3, 5, 7], dtype=np.int64).reshape(4, 1, 1)
    volume = Volume(array, Geometry.from_spacing((4, 1, 1)))
    fine = Geometry.from_spacing((8, 1, 1), (0.5, 1, 1), (-0.2, 0, 0))
    result = resample(volume, fine, "nearest")
    assert result.array.dtype == np.int64
    assert result.array.ravel().tolist() == np.repeat(array.ravel(), 2).tolist()


def test_outside_is_named_not_invented() -> None:
    grid = Geometry.from_spacing((2, 2, 2))
    wide = Geometry.from_spacing((6, 2, 2), origin=(-2, 0, 0))
    hounsfield = Volume(np.full((2, 2, 2), 40, np.int16), grid, unit="HU")
    assert resample(hounsfield, wide).array[:, 0, 0].tolist() == [-1024, -1024, 40, 40, -1024, -1024]
    assert resample(hounsfield, wide, outside=-5).array[0, 0, 0] == -5
    assert resample(hounsfield.replace(unit="1"), wide).array[0, 0, 0] == 0
    labels = Volume(np.ones((2, 2, 2), np.uint8), grid)
    with pytest.raises(InputError, match=r"got 0\.5"):
        resample(labels, wide, "nearest", outside=0.5)
    with pytest.raises(InputError, match="lanczos"):
        resample(labels, wide, "lanczos")  # type: ignore[arg-type]


def test_the_outer_half_voxel_is_inside() -> None:
    volume = Volume(np.array([1.0, 3.0]).reshape(2, 1, 1), Geometry.from_spacing((2, 1, 1)))
    places = Geometry.from_spacing((4, 1, 1), (0.6, 1, 1), (-0.4, 0, 0))  # -0.4, 0.2, 0.8, 1.4
    assert np.allclose(resample(volume, places, outside=-9).array.ravel(), [1, 1.4, 2.6, 3])
    beyond = Geometry.from_spacing((2, 1, 1), (2.2, 1, 1), (-0.6, 0, 0))
    assert resample(volume, beyond, outside=-9).array.ravel().tolist() == [-9, -9]


def test_doubt_is_carried_along(volume: Volume) -> None:
    shape = volume.shape
    finer = Geometry(shape, volume.geometry.affine @ np.diag([0.7, 0.6, 0.8, 1]))
    result = resample(volume, finer)
    assert result.probabilities is not None
    assert result.variance is not None
    assert volume.variance is not None
    assert result.probabilities.dtype == np.float32
    assert np.allclose(result.probabilities.sum(axis=-1), 1, atol=1e-6)
    assert result.variance.max() <= volume.variance.max()
    assert result.classes == volume.classes
    assert result.facts == volume.facts
    away = Geometry(shape, volume.geometry.affine + np.array([[0, 0, 0, 1e4]] + [[0] * 4] * 3))
    gone = resample(volume, away)
    assert gone.probabilities is not None
    assert gone.probabilities.max() == 0
    assert gone.variance is not None
    assert np.all(gone.variance == volume.variance.max())


def test_sums_below_one_are_not_pulled_up(volume: Volume) -> None:
    assert volume.probabilities is not None
    half = volume.replace(probabilities=volume.probabilities / 2)
    finer = Geometry(volume.shape, volume.geometry.affine @ np.diag([0.7, 0.6, 0.8, 1]))
    result = resample(half, finer)
    assert result.probabilities is not None
    assert np.allclose(result.probabilities.sum(axis=-1), 0.5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["?", "i1", "u2", "f2", "f4", "f8"])
@pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic"])
def test_every_dtype(dtype: str, interpolation: Any) -> None:
    array = np.ones((3, 1, 2), dtype)
    result = resample(
        Volume(array, Geometry.from_spacing((3, 1, 2))), Geometry.from_spacing((3, 1, 2)), interpolation
    )
    assert np.allclose(result.array.astype(float), 1)
    assert (result.array.dtype == array.dtype) or interpolation != "nearest"


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(CODES), st.sampled_from(CODES), st.integers(0, 1000))
def test_reorienting_moves_no_voxel(first: str, second: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.diag([1.0, 2.0, 3.0]) + random.normal(size=(3, 3)) * 0.2
    affine[:3, 3] = random.normal(size=3) * 50
    array = random.integers(0, 100, (2, 3, 4))
    volume = reorient(Volume(array, Geometry((2, 3, 4), affine), variance=array.astype(float)), first)
    turned = reorient(volume, second)
    assert "".join(turned.geometry.axis_codes) == second
    assert turned.variance is not None
    assert np.array_equal(turned.variance, turned.array)
    for index in [(0, 0, 0), (1, 1, 1), tuple(n - 1 for n in turned.shape)]:
        old = np.rint(volume.geometry.world_to_index(turned.geometry.index_to_world(index))).astype(int)
        assert np.allclose(
            volume.geometry.index_to_world(old), turned.geometry.index_to_world(index), atol=1e-9
        )
        assert volume.array[tuple(old)] == turned.array[index]
    assert np.array_equal(reorient(turned, first).array, volume.array)


@pytest.mark.parametrize("codes", ["RA", "RLS", "XYZ", "RASS", ""])
def test_refused_axis_codes(volume: Volume, codes: str) -> None:
    with pytest.raises(InputError, match="axes"):
        reorient(volume, codes)


def test_crop_carries_everything(volume: Volume) -> None:
    cut = (slice(1, 5), slice(0, -1), slice(2, None))
    part = crop(volume, cut)
    assert np.array_equal(part.array, volume.array[cut])
    assert part.variance is not None
    assert volume.probabilities is not None
    assert part.probabilities is not None
    assert np.array_equal(part.probabilities, volume.probabilities[cut])
    assert np.allclose(part.geometry.index_to_world((0, 0, 0)), volume.geometry.index_to_world((1, 0, 2)))
    with pytest.raises(GeometryError, match="empty"):
        crop(volume, (slice(9, 10), slice(None), slice(None)))


def test_crop_to_content_with_a_margin_in_mm() -> None:
    array = np.zeros((10, 10, 10), np.int16)
    array[4:6, 1, 9] = 3
    volume = Volume(array, Geometry.from_spacing((10, 10, 10), (1, 2, 3)))
    assert crop_to_content(volume).shape == (2, 1, 1)
    part = crop_to_content(volume, 2.0)
    assert part.shape == (6, 3, 2)  # two voxels, one, and one of which the edge leaves one side
    assert part.geometry.origin == (2.0, 0.0, 24.0)
    with pytest.raises(InputError, match="no voxel above 3"):
        crop_to_content(volume, threshold=3)
    with pytest.raises(InputError, match="-1"):
        crop_to_content(volume, -1)
