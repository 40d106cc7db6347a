from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from sagittal.core.errors import InputError
from sagittal.volume import Geometry
from sagittal.volume.phantoms import WATER_PER_MM, Body, Phantom
from sagittal.volume.standard_phantoms import (
    head_phantom,
    line_pair_module,
    low_contrast_module,
    random_regions,
    shepp_logan,
    smooth_regions,
)

INF = math.inf
X = np.array([[1.0, 0.0, 0.0]])


def grid(count: int = 64, step: float = 4.0, slices: int = 1) -> Geometry:
    first = -step * (count - 1) / 2
    return Geometry.from_spacing((count, count, slices), (step, step, step), (first, first, 0.0))


def chord(body: Body, point: tuple[float, float, float], direction: tuple[float, float, float]) -> float:
    way = np.asarray(direction) / np.linalg.norm(direction)
    return float(body.integrals(np.array([point]), way[None])[0])


def test_the_chord_of_a_circle_is_that_of_pythagoras() -> None:
    disc = Body(half_sizes=(5, 5, INF), density=2.0)
    assert chord(disc, (0, 3, 0), (1, 0, 0)) == pytest.approx(2 * 8)


def test_a_line_that_misses_a_body_has_no_integral() -> None:
    assert chord(Body(half_sizes=(5, 5, 5), density=2.0), (0, 3, 4.1), (1, 0, 0)) == 0


def test_a_tilted_line_through_a_cylinder_is_longer_by_its_slant() -> None:
    disc = Body(half_sizes=(5, 5, INF), density=1.0)
    assert chord(disc, (0, 0, 0), (3, 0, 4)) == pytest.approx(10 * 5 / 3)


def test_a_turned_ellipse_shows_its_long_axis_where_it_was_turned_to() -> None:
    ellipse = Body(half_sizes=(10, 2, INF), turn=math.radians(30), density=1.0)
    assert chord(ellipse, (0, 0, 0), (math.cos(math.pi / 6), 0.5, 0)) == pytest.approx(20)


def test_the_diagonal_of_a_box_is_that_of_pythagoras() -> None:
    box = Body(shape="box", half_sizes=(3, 4, INF), density=1.0)
    assert chord(box, (0, 0, 0), (3, 4, 0)) == pytest.approx(10)


def test_a_line_along_the_side_of_a_box_counts_only_within_it() -> None:
    box = Body(shape="box", half_sizes=(3, 4, INF), density=1.0)
    assert [chord(box, (0, y, 0), (1, 0, 0)) for y in (3.9, 4.1)] == [pytest.approx(6), 0]


def test_a_ramp_integrates_to_its_value_halfway_times_the_length() -> None:
    box = Body(shape="box", centre=(1, 0, 0), half_sizes=(3, 4, INF), density=1.0, ramp=(0.0, 0.5, 0.0))
    assert chord(box, (1, 0, 0), (0, 1, 0)) == pytest.approx(8 * 1.0)
    assert chord(box, (0, 2, 0), (1, 0, 0)) == pytest.approx(6 * (1.0 + 0.5 * 2))


@pytest.mark.parametrize("solid", [False, True])
def test_integrals_agree_with_adding_up_densities(solid: bool) -> None:
    phantom = shepp_logan(solid=True) if solid else smooth_regions()
    draw = np.random.default_rng(4)
    points = np.append(draw.uniform(-60, 60, (20, 2)), draw.uniform(-5, 5, (20, 1)), axis=1)
    ways = draw.normal(size=(20, 3)) * (1, 1, 0.2)
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    steps = (np.arange(240_000) + 0.5) / 400 - 300
    added = [phantom.densities(p + steps[:, None] * w).sum() / 400 for p, w in zip(points, ways, strict=True)]
    exact = sum(body.integrals(points, ways) for body in phantom.bodies)
    np.testing.assert_allclose(exact, added, atol=0.02)


def test_a_ray_along_a_body_without_an_end_is_refused() -> None:
    with pytest.raises(InputError, match="no end"):
        chord(Body(half_sizes=(5, 5, INF), density=1.0), (0, 0, 0), (0, 0, 1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"half_sizes": (1, 0, 1)},
        {"half_sizes": (INF, 1, 1)},
        {"half_sizes": (1, 1, INF), "ramp": (0, 0, 1)},
        {"half_sizes": (1, 1, 1), "centre": (0, math.nan, 0)},
        {"half_sizes": (1, 1, 1), "shape": "cone"},
    ],
)
def test_impossible_bodies_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Body(density=1.0, **wrong)  # type: ignore[arg-type]


def test_two_bodies_of_one_name_are_refused() -> None:
    body = Body(half_sizes=(1, 1, 1), density=1.0, name="a")
    with pytest.raises(InputError):
        Phantom(name="two", bodies=(body, body))


def test_a_voxel_half_in_a_body_holds_half() -> None:
    half = Phantom(
        name="half", bodies=(Body(shape="box", centre=(5, 0, 0), half_sizes=(5, 50, INF), density=1.0),)
    )
    volume = half.rasterise(
        Geometry.from_spacing((3, 1, 1), (4, 4, 4), (-4, 0, 0)), 4, unit="1/mm", water=0.02
    )
    np.testing.assert_allclose(volume.array[:, 0, 0], [0, 0.01, 0.02], atol=1e-9)


def test_the_mass_of_a_rasterised_ellipsoid_is_its_volume() -> None:
    ball = Phantom(
        name="ball", bodies=(Body(centre=(3, -2, 30), half_sizes=(20, 15, 18), turn=0.5, density=1.0),)
    )
    volume = ball.rasterise(grid(32, 3.0, 32), 3, unit="1/mm", water=1.0)
    assert volume.array.sum() * 27 == pytest.approx(4 / 3 * math.pi * 20 * 15 * 18, rel=2e-3)


def test_rasterising_follows_an_affine_that_turns_the_axes() -> None:
    ball = Phantom(name="ball", bodies=(Body(centre=(20, 0, 0), half_sizes=(2, 2, 2), density=1.0),))
    affine = np.array([[0, -4.0, 0, 40], [4, 0, 0, -40], [0, 0, 4, -8], [0, 0, 0, 1]])
    volume = ball.rasterise(Geometry((21, 21, 5), affine), 2)
    assert np.unravel_index(int(volume.array.argmax()), volume.shape) == (10, 5, 2)


def test_outside_of_everything_is_vacuum_and_the_unit_is_hounsfield() -> None:
    volume = shepp_logan().rasterise(grid(), 1)
    assert volume.unit == "HU"
    assert volume.array[0, 0, 0] == -1000


def test_the_brain_of_shepp_and_logan_is_20_hounsfield_units_above_water() -> None:
    place = shepp_logan(radius=100).densities(
        np.array([[0.0, 70.0, 0.0], [0.0, 90.0, 0.0], [-22.0, 0.0, 0.0]])
    )
    np.testing.assert_allclose(place, [1.02, 2.0, 1.0])


def test_the_slice_through_the_middle_of_the_solid_head_is_the_flat_one() -> None:
    flat, solid = (shepp_logan(modified=True, solid=solid).rasterise(grid(), 1) for solid in (False, True))
    np.testing.assert_array_equal(flat.array, solid.array)


def test_attenuation_is_hounsfield_on_waters_scale() -> None:
    hu, mu = (head_phantom().rasterise(grid(), 2, unit=unit).array for unit in ("HU", "1/mm"))
    np.testing.assert_allclose(mu, (1 + hu / 1000) * WATER_PER_MM, atol=1e-6)


def test_the_air_cells_of_the_head_are_air_and_its_pins_10_units_above_brain() -> None:
    head = head_phantom()
    for name, body in head.named.items():
        here = float(head.densities(np.array([body.centre]))[0])
        if name.startswith("air"):
            assert here == pytest.approx(0)
        if name.startswith("pin"):
            assert here == pytest.approx(1.06)


def test_random_regions_are_the_same_for_a_seed_and_other_for_another() -> None:
    assert random_regions(3) == random_regions(3)
    assert random_regions(3) != random_regions(4)


def test_line_pairs_have_the_period_that_they_are_named_after() -> None:
    bars = line_pair_module((0.25, 0.5), bars=4).named
    places = [np.asarray(bars[f"0.25 lp/mm {i}"].centre) for i in (1, 2, 3, 4)]
    steps = [float(np.linalg.norm(b - a)) for a, b in itertools.pairwise(places)]
    assert steps == pytest.approx([4, 4, 4])


def test_bars_and_gaps_are_as_wide() -> None:
    module = line_pair_module((0.25,), bars=4)
    first, last = (np.asarray(module.named[f"0.25 lp/mm {i}"].centre) for i in (1, 4))
    way = (last - first) / np.linalg.norm(last - first)
    steps = np.linspace(-1, 13, 1400, endpoint=False)
    assert float((module.densities(first + steps[:, None] * way) > 1.5).sum() / 100) == pytest.approx(
        8, abs=0.05
    )


def test_gauges_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="do not fit"):
        line_pair_module((0.005, 0.01))


def test_discs_have_the_contrast_and_size_that_they_are_named_after() -> None:
    module = low_contrast_module((0.01,), (4.0, 8.0))
    disc = module.named["10 HU 8 mm"]
    rim = np.asarray(disc.centre) + np.array([[3.9, 0, 0], [4.1, 0, 0]])
    np.testing.assert_allclose(module.densities(rim), [1.01, 1.0])


def test_discs_do_not_touch() -> None:
    discs = list(low_contrast_module().named.values())
    assert len(discs) == 27
    for i, one in enumerate(discs):
        for other in discs[:i]:
            apart = math.dist(one.centre, other.centre)
            assert apart > one.half_sizes[0] + other.half_sizes[0]
