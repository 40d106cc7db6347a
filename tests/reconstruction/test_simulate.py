from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from sagittal.core.errors import GeometryError, InputError
from sagittal.reconstruction.geometry import ConeBeam, ParallelBeam
from sagittal.reconstruction.line_integrals import line_integrals
from sagittal.reconstruction.projectors import forward
from sagittal.reconstruction.scan import attenuation
from sagittal.reconstruction.simulate import (
    add_noise,
    fitted_geometry,
    sampled_integrals,
    scannable,
    simulate_scan,
    upright,
)
from sagittal.volume import Geometry, Volume
from sagittal.volume.phantoms import Body, Phantom

GRID = Geometry.from_spacing((40, 40, 1), (2, 2, 2), (-39, -39, 0))
PHANTOM = Phantom(
    name="ellipses",
    bodies=(
        Body(centre=(4, -6, 0), half_sizes=(28, 20, math.inf), density=1.0, turn=0.3),
        Body(centre=(-4, 5, 0), half_sizes=(8, 6, math.inf), density=0.5),
    ),
)


@pytest.mark.parametrize("kind", ["parallel", "fan"])
def test_sampled_rays_come_near_the_exact_ones(kind: str) -> None:
    geometry = fitted_geometry(GRID, kind, 24)
    exact = line_integrals(PHANTOM, geometry)
    found = sampled_integrals(attenuation(PHANTOM.rasterise(GRID, 8)), GRID, geometry)
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.015 * exact.max()


def test_the_other_projector_is_another_one() -> None:
    geometry = fitted_geometry(GRID, "fan", 24)
    image = PHANTOM.rasterise(GRID)
    mu = Volume(attenuation(image), GRID, unit="1/mm")
    apart = np.abs(sampled_integrals(mu.array, GRID, geometry) - forward(mu, geometry))
    assert 1e-4 < apart.max() < 0.1


def test_sampled_rays_of_a_cone_agree_with_projected_ones() -> None:
    grid = Geometry.from_spacing((20, 20, 10), (2, 2, 3), (-19, -19, -13.5))
    smooth = np.exp(-np.sum(grid.index_to_world(np.moveaxis(np.indices(grid.shape), 0, -1)) ** 2, -1) / 40)
    geometry = fitted_geometry(grid, "cone", 12)
    assert isinstance(geometry, ConeBeam)
    found = sampled_integrals(smooth, grid, geometry)
    assert np.abs(found - forward(Volume(smooth, grid), geometry)).max() < 0.04 * found.max()


def test_noise_follows_from_the_seed() -> None:
    geometry = fitted_geometry(GRID, "parallel", 12)
    image = PHANTOM.rasterise(GRID)
    first, again, other = (simulate_scan(image, geometry, photons=1e3, seed=n) for n in (1, 1, 2))
    assert np.array_equal(first.sinogram, again.sinogram)
    assert not np.array_equal(first.sinogram, other.sinogram)


def test_noise_is_as_large_as_the_scan_says() -> None:
    geometry = ParallelBeam(angles=tuple(np.linspace(0, 3, 200)), bins=200, bin_width=1.0)
    for electronic in (0.0, 20.0):
        scan = add_noise(np.full(geometry.shape, 2.0), geometry, photons=1e4, seed=3, electronic=electronic)
        said = (1e4 * math.exp(-2) + electronic**2) / (1e4 * math.exp(-2)) ** 2
        assert scan.sinogram.var() == pytest.approx(said, rel=0.03)
        assert scan.variance.mean() == pytest.approx(said, rel=0.03)


@pytest.mark.parametrize(("photons", "electronic"), [(0.0, 0.0), (math.nan, 0.0), (10.0, -1.0)])
def test_a_dose_that_cannot_be_is_refused(photons: float, electronic: float) -> None:
    geometry = fitted_geometry(GRID, "parallel", 2)
    with pytest.raises(InputError, match="must be a (positive )?number"):
        add_noise(np.zeros(geometry.shape), geometry, photons=photons, electronic=electronic)


@pytest.mark.parametrize("kind", ["parallel", "fan", "cone"])
@pytest.mark.parametrize("curved", [False, True])
def test_a_fitted_detector_sees_all_of_the_grid(kind: str, curved: bool) -> None:
    grid = Geometry.from_spacing((20, 24, 6), (2, 2, 3), (50, 60, 70))
    geometry = fitted_geometry(grid, kind, 16, curved=curved)
    seen = forward(Volume(np.ones(grid.shape), grid), geometry)
    assert seen[:, :, [0, -1]].max() < 0.05 * seen.max()  # nothing reaches the detector's ends
    if kind == "cone":
        assert seen[:, [0, -1]].max() < 0.5 * seen.max()


def test_an_unknown_geometry_is_refused() -> None:
    with pytest.raises(InputError, match="got star; expected parallel, fan or cone"):
        fitted_geometry(GRID, "star", 3)


def ct_slice(shape: tuple[int, int, int] = (40, 24, 1), affine: np.ndarray | None = None) -> Volume:
    hu = np.random.default_rng(0).integers(-500, 1500, shape).astype(np.int16)
    default = np.diag([-0.5, -0.5, 5, 1.0])
    default[:3, 3] = 30, 20, 7
    return Volume(hu, Geometry(shape, default if affine is None else affine), unit="HU")


def test_a_slice_is_averaged_in_its_place() -> None:
    image = ct_slice()
    found = scannable(image, 20)
    assert found.shape == (20, 12, 1)
    assert found.geometry.axis_codes == ("R", "A", "S")
    assert found.geometry.spacing == pytest.approx((1, 1, 5))
    middle = [(n - 1) / 2 for n in found.shape]
    assert found.geometry.index_to_world(middle) == pytest.approx(
        image.geometry.index_to_world([(n - 1) / 2 for n in image.shape])
    )
    assert found.array[-1, -1, 0] == pytest.approx(image.array[:2, :2, 0].mean())


def test_a_slice_that_fits_is_not_averaged_and_a_rest_is_cut_off() -> None:
    image = ct_slice()
    assert np.array_equal(scannable(image, 40).array[::-1, ::-1], image.array)
    assert scannable(image, 17).shape == (13, 8, 1)


def test_what_lies_below_air_is_scanned_as_air() -> None:
    image = ct_slice()
    cut = image.array.copy()
    cut[:4] = -3024
    assert scannable(image.replace(array=cut), 40).array.min() == -1000


def test_a_tilted_slice_lies_upright_to_be_scanned() -> None:
    tilted = np.diag([0.5, 0.5, 5, 1.0])
    tilted[1:3, 1:3] = [[0.48, -1.4], [0.14, 4.8]]
    image = ct_slice(affine=tilted)
    with pytest.raises(GeometryError):
        simulate_scan(image, fitted_geometry(image.geometry, "fan", 8), photons=1e5)
    found = scannable(image, 20)
    assert found.geometry.affine[2, :2].tolist() == [0, 0]
    assert simulate_scan(found, fitted_geometry(found.geometry, "fan", 8), photons=1e5).geometry.rows == 1


def test_what_lies_across_the_table_is_left_where_it_is() -> None:
    image = ct_slice()
    assert upright(image) is image


@pytest.mark.parametrize(
    ("image", "largest", "message"),
    [
        (ct_slice((8, 8, 2)), 8, r"one slice is scanned at a time; got \(8, 8, 2\)"),
        (ct_slice().replace(unit="1"), 8, "unit: a CT slice is scanned from its HU; got 1; expected HU"),
        (ct_slice(), 0, "largest: a slice needs pixels; got 0; expected 1 or more"),
    ],
    ids=["two slices", "unit", "no pixel"],
)
def test_what_is_no_ct_slice_is_not_made_scannable(image: Volume, largest: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scannable(image, largest)


def test_a_bow_tie_and_dead_channels_are_simulated() -> None:
    geometry = fitted_geometry(GRID, "parallel", 40)
    photons = np.linspace(100, 1000, geometry.bins)[None, None].copy()
    photons[..., 3] = 0
    scan = add_noise(np.ones(geometry.shape), geometry, photons=photons)
    counted = scan.counts.mean(axis=(0, 1))
    assert counted[-1] == pytest.approx(1000 / np.e, rel=0.05)
    assert counted[0] == pytest.approx(100 / np.e, rel=0.15)
    assert scan.missing is not None
    assert np.flatnonzero(scan.missing.all(axis=(0, 1))).tolist() == [3]


def test_counting_takes_no_more_memory_than_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Geometry.from_spacing((16, 16, 64), (4, 4, 4), (-30, -30, 0))
    geometry = fitted_geometry(grid, "parallel", 200)
    image = Volume(np.zeros(grid.shape, np.float32), grid, unit="1/mm")
    asked: list[int] = []
    monkeypatch.setattr(
        "sagittal.reconstruction.simulate.require_memory", lambda needed, *_, **__: asked.append(needed)
    )
    tracemalloc.start()
    simulate_scan(image, geometry, photons=1e3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < asked[0] < 3 * peak


def test_a_scan_beyond_the_memory_is_not_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagittal.core.memory.available_memory", lambda: 1000)
    image = Volume(np.zeros(GRID.shape, np.float32), GRID, unit="1/mm")
    with pytest.raises(InputError, match="the simulated scan does not fit into memory; got about"):
        simulate_scan(image, fitted_geometry(GRID, "parallel", 40), photons=1e3)
