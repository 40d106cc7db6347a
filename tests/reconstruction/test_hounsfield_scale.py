from __future__ import annotations

import numpy as np
import pytest

from sagittal.core.errors import InputError
from sagittal.reconstruction.hounsfield_scale import HounsfieldScale, scale_from_regions
from sagittal.volume import Geometry, Volume

GRID = Geometry.from_spacing((10, 10, 2))


def image(value: float = 0.0, variance: float | None = None) -> Volume:
    filled = None if variance is None else np.full(GRID.shape, variance)
    return Volume(np.full(GRID.shape, value), GRID, unit="1/mm", variance=filled)


def test_water_is_0_and_nothing_is_minus_1000() -> None:
    scale = HounsfieldScale(water=0.019)
    assert scale.apply(image(0.019)).array[0, 0, 0] == 0
    assert scale.apply(image(0.0)).array[0, 0, 0] == -1000
    assert scale.apply(image(0.0)).unit == "HU"


def test_air_that_attenuates_shifts_the_scale() -> None:
    assert HounsfieldScale(water=0.022, air=0.002).apply(image(0.012)).array[0, 0, 0] == pytest.approx(-500)


def test_the_variance_is_scaled_and_the_points_doubt_added() -> None:
    scale = HounsfieldScale(water=0.02, water_error=0.0001)
    found = scale.apply(image(0.02, variance=1e-6))
    assert found.variance is not None
    assert found.variance[0, 0, 0] == pytest.approx(50**2 + 5**2)


def test_regions_give_the_scale_back_with_its_error() -> None:
    draw = np.random.default_rng(2)
    water = np.zeros(GRID.shape, bool)
    water[:5] = True
    values = np.where(water, 0.0205, 0.0004) + 1e-4 * draw.normal(size=GRID.shape)
    scale = scale_from_regions(Volume(values, GRID, unit="1/mm"), water, ~water)
    assert scale.water == pytest.approx(0.0205, abs=4 * scale.water_error)
    assert scale.air == pytest.approx(0.0004, abs=4 * scale.air_error)
    assert scale.water_error == pytest.approx(1.25e-4 / 10, rel=0.3)


@pytest.mark.parametrize(
    "wrong", [{"water": 0.2}, {"water": 0.0}, {"water": 0.02, "air": 0.03}, {"water": float("nan")}]
)
def test_impossible_scales_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        HounsfieldScale(**wrong)


def test_an_empty_region_is_refused() -> None:
    with pytest.raises(InputError, match="air"):
        scale_from_regions(image(0.02), np.ones(GRID.shape, bool), np.zeros(GRID.shape, bool))


def test_an_image_in_hounsfield_units_is_refused() -> None:
    with pytest.raises(InputError, match="no attenuation"):
        HounsfieldScale(water=0.02).apply(Volume(np.zeros(GRID.shape), GRID, unit="HU"))
