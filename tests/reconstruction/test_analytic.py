from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import InputError
from sagittal.reconstruction.analytic import WINDOWS, fbp, fdk, smeared
from sagittal.reconstruction.field_of_view import extrapolated, unseen
from sagittal.reconstruction.geometry import ConeBeam, FanBeam, ParallelBeam, ScanGeometry
from sagittal.reconstruction.line_integrals import line_integrals
from sagittal.reconstruction.projectors import REFERENCE, forward, projector_kernels
from sagittal.reconstruction.redundancy import redundancy
from sagittal.reconstruction.scan import Scan
from sagittal.reconstruction.simulate import add_noise, fitted_geometry
from sagittal.volume import Geometry, Volume
from sagittal.volume.phantoms import Body, Phantom
from scanners import SCANNERS as SMALL
from scanners import a_grid

NATIVE = [kernel for kernel in projector_kernels() if kernel != REFERENCE]
GRID = Geometry.from_spacing((64, 64, 1), (2, 2, 2), (-63, -63, 0))
PHANTOM = Phantom(
    name="ellipses",
    bodies=(
        Body(centre=(4, -6, 0), half_sizes=(50, 42, math.inf), density=1.0, turn=0.3),
        Body(centre=(-14, 10, 0), half_sizes=(14, 9, math.inf), density=0.5, turn=-0.4),
        Body(centre=(20, -12, 0), half_sizes=(9, 12, math.inf), density=-0.6),
    ),
)


def short_scan(fan: FanBeam, *, falling: bool = False, views: int = 240) -> FanBeam:
    widest = float(np.abs(fan.fan_angles).max())
    angles = 0.4 + np.linspace(0, math.pi + 2 * widest + 0.1, views)
    return replace(fan, angles=tuple(-angles if falling else angles))


FAN = fitted_geometry(GRID, "fan", 240)
CURVED = fitted_geometry(GRID, "fan", 240, curved=True)
assert isinstance(FAN, FanBeam)
assert isinstance(CURVED, FanBeam)
SCANNERS: dict[str, ScanGeometry] = {
    "parallel": fitted_geometry(GRID, "parallel", 180),
    "parallel-turn": ParallelBeam(angles=tuple(np.arange(240) * math.pi / 120), bins=93, bin_width=2.0),
    "fan-flat": FAN,
    "fan-curved": CURVED,
    "fan-offset": replace(FAN, offset=0.25, centre=(3.0, 2.0, 0.0), bins=FAN.bins + 12),
    "half-flat": short_scan(FAN),
    "half-falling": short_scan(FAN, falling=True),
    "half-curved": short_scan(CURVED),
}


def middles_of_parts(volume: Volume) -> dict[str, float]:
    """Return the mean in the middle of each ellipse, where there is no edge."""
    found = {}
    for name, (x, y) in {"body": (4, -38), "dense": (-14, 10), "light": (20, -12)}.items():
        i, j, _ = (round(n) for n in volume.geometry.world_to_index((x, y, 0)))
        found[name] = float(volume.array[i - 1 : i + 2, j - 1 : j + 2].mean())
    return found


@pytest.mark.parametrize("name", SCANNERS)
def test_fbp_gives_the_hounsfield_units_of_a_phantom(name: str) -> None:
    geometry = SCANNERS[name]
    found = middles_of_parts(fbp(Scan(line_integrals(PHANTOM, geometry), geometry), GRID))
    assert found == pytest.approx({"body": 0, "dense": 500, "light": -600}, abs=15)


@pytest.mark.parametrize("window", WINDOWS)
def test_windows_trade_noise_for_sharpness_in_their_order(window: Any) -> None:
    if window == WINDOWS[-1]:
        return
    geometry = SCANNERS["parallel"]
    scan = add_noise(line_integrals(PHANTOM, geometry), geometry, photons=1e4)
    smoother = WINDOWS[WINDOWS.index(window) + 1]
    first, second = (fbp(scan, GRID, window=w, variance=True).variance for w in (window, smoother))
    assert first is not None
    assert second is not None
    assert second.mean() < first.mean()


@pytest.mark.parametrize("name", ["parallel", "fan-flat", "half-curved"])
def test_the_variance_of_fbp_is_that_of_many_scans(name: str) -> None:
    geometry = SCANNERS[name]
    exact = line_integrals(PHANTOM, geometry)
    draws = [fbp(add_noise(exact, geometry, photons=1e5, seed=n), GRID).array for n in range(24)]
    said = fbp(add_noise(exact, geometry, photons=1e5, seed=99), GRID, variance=True).variance
    inside = PHANTOM.rasterise(GRID).array > -900
    ratio = np.var(draws, axis=0, ddof=1)[inside] / np.asarray(said)[inside]
    assert ratio.mean() == pytest.approx(1.0, abs=0.04)
    assert ratio.std() < 0.36  # 0.295 is what 24 draws leave


def test_every_line_counts_once_in_a_short_scan() -> None:
    geometry = SCANNERS["half-flat"]
    assert isinstance(geometry, FanBeam)
    angles, weight = np.asarray(geometry.angles), redundancy(geometry)
    step = float(np.diff(angles).mean())
    fan = (geometry.fan_angles[1:] + geometry.fan_angles[:-1]) / 2
    checked = 0
    for view in range(4, len(angles), 10):
        for index in range(0, geometry.bins, 7):
            twin = angles[view] + math.pi - 2 * fan[index]
            if angles[0] < twin < angles[-1]:
                other = np.interp(twin, angles, weight[:, geometry.bins - 1 - index])
                assert weight[view, index] + other == pytest.approx(step, rel=0.01)
                checked += 1
    assert checked > 10


def test_too_short_a_scan_is_refused() -> None:
    geometry = replace(FAN, angles=tuple(np.linspace(0, 2.5, 50)))
    with pytest.raises(InputError, match="angles: the views cover too little of a turn; got 146 degrees"):
        fbp(Scan(np.zeros(geometry.shape), geometry), GRID)


def test_fdk_gives_the_hounsfield_units_of_a_cylinder() -> None:
    grid = Geometry.from_spacing((48, 48, 8), (2, 2, 2), (-47, -47, -7))
    middle = Geometry.from_spacing((48, 48, 1), (2, 2, 2), (-47, -47, 0))
    cylinder = Phantom(name="cylinder", bodies=(Body(half_sizes=(30, 24, math.inf), density=1.2),))
    part = cylinder.rasterise(middle)
    truth = Volume(np.repeat((part.array / 1000 + 1) * 0.02, 8, axis=2), grid, unit="1/mm")
    for curved in (False, True):
        geometry = fitted_geometry(grid, "cone", 120, curved=curved)
        scan = Scan(forward(truth, geometry), geometry, photons=1e5)
        found = fdk(scan, grid, variance=True)
        assert found.array[20:28, 20:28, 3:5].mean() == pytest.approx(200, abs=15)
        assert found.variance is not None
        assert found.variance[20:28, 20:28, 3:5].min() > 0


def test_a_helix_is_not_for_fdk_nor_a_cone_for_fbp() -> None:
    geometry = fitted_geometry(GRID, "cone", 20)
    assert isinstance(geometry, ConeBeam)
    scan = Scan(np.zeros(geometry.shape), geometry)
    with pytest.raises(InputError, match="reconstructed by fdk"):
        fbp(scan, GRID)
    with pytest.raises(InputError, match="got helix"):
        fdk(scan.replace(geometry=replace(geometry, pitch=3.0)), GRID)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"window": "boxcar"}, "window: there is no such window; got boxcar"), ({"cutoff": 1.5}, "cutoff")],
)
def test_an_unknown_window_is_refused(options: dict[str, Any], message: str) -> None:
    scan = Scan(np.zeros(FAN.shape), FAN)
    with pytest.raises(InputError, match=message):
        fbp(scan, GRID, **options)


def test_a_variance_needs_a_dose() -> None:
    with pytest.raises(InputError, match="does not say its dose"):
        fbp(Scan(np.zeros(FAN.shape), FAN), GRID, variance=True)


def off_by(volume: Volume, where: Any = slice(None)) -> float:
    return float(np.sqrt(np.mean((volume.array - PHANTOM.rasterise(GRID).array)[where] ** 2)))


def exact_scan(geometry: ScanGeometry) -> Scan:
    return Scan(line_integrals(PHANTOM, geometry), geometry)


@pytest.mark.parametrize("name", ["parallel-turn", "fan-flat", "fan-curved"])
@pytest.mark.parametrize("shift", [14.0, -14.0])
def test_a_shifted_detector_sees_over_a_turn_what_a_whole_one_does(name: str, shift: float) -> None:
    whole = SCANNERS[name]
    half = replace(whole, bins=whole.bins - 28, offset=shift)
    assert min(-half.edges[0], half.edges[-1]) < 0.8 * half.edges[-1 if shift > 0 else 0] * np.sign(shift)
    assert off_by(fbp(exact_scan(half), GRID)) == pytest.approx(
        off_by(fbp(exact_scan(whole), GRID)), rel=0.03
    )


def test_a_shifted_detector_has_the_variance_of_many_scans() -> None:
    geometry = replace(FAN, bins=FAN.bins - 28, offset=14.0)
    exact = line_integrals(PHANTOM, geometry)
    draws = [fbp(add_noise(exact, geometry, photons=1e5, seed=n), GRID).array for n in range(24)]
    said = fbp(add_noise(exact, geometry, photons=1e5, seed=99), GRID, variance=True).variance
    inside = PHANTOM.rasterise(GRID).array > -900
    ratio = np.var(draws, axis=0, ddof=1)[inside] / np.asarray(said)[inside]
    assert ratio.mean() == pytest.approx(1.0, abs=0.04)


def test_a_short_scan_is_as_near_as_a_whole_one() -> None:
    whole, short = (off_by(fbp(exact_scan(SCANNERS[name]), GRID)) for name in ("fan-flat", "half-flat"))
    assert short == pytest.approx(whole, rel=0.05)


def test_the_order_of_views_does_not_matter() -> None:
    geometry = SCANNERS["half-flat"]
    rays = line_integrals(PHANTOM, geometry)
    order = np.random.default_rng(0).permutation(len(rays))
    mixed = replace(geometry, angles=tuple(np.asarray(geometry.angles)[order]))
    first, second = fbp(Scan(rays, geometry), GRID), fbp(Scan(rays[order], mixed), GRID)
    assert second.array == pytest.approx(first.array, abs=0.05)


@pytest.mark.parametrize("kind", ["parallel", "fan-flat"])
@pytest.mark.parametrize("bins", [25, 41])
def test_truncated_projections_are_continued_beyond_the_detector(kind: str, bins: int) -> None:
    geometry = replace(SCANNERS[kind], bins=bins)
    hidden = unseen(geometry, GRID)
    assert hidden is not None
    scan = exact_scan(geometry)
    ended, continued = (off_by(fbp(scan, GRID, truncation=t), ~hidden) for t in ("none", "extrapolate"))
    assert continued < 0.3 * ended


def test_a_projection_that_ends_in_air_is_not_continued() -> None:
    geometry = SCANNERS["fan-flat"]
    rays = line_integrals(PHANTOM, geometry)
    longer = extrapolated(rays, geometry, 10)
    assert longer[..., 10:-10] == pytest.approx(rays, abs=1e-6)
    assert longer[..., :10].max() == 0


@pytest.mark.parametrize("name", ["parallel", "fan-flat", "half-flat"])
def test_missing_views_are_made_up_for_by_their_neighbours(name: str) -> None:
    geometry = SCANNERS[name]
    rays = line_integrals(PHANTOM, geometry)
    missing = np.zeros(geometry.shape, bool)
    missing[40:160:7] = True
    scan = Scan(np.where(missing, np.nan, rays), geometry, missing=missing)
    assert middles_of_parts(fbp(scan, GRID)) == pytest.approx(
        {"body": 0, "dense": 500, "light": -600}, abs=20
    )


def test_missing_rays_are_filled_and_told_in_the_variance() -> None:
    geometry = SCANNERS["parallel"]
    exact = line_integrals(PHANTOM, geometry)
    photons = np.full(geometry.shape, 1e5)
    photons[::2, :, 52:55] = 0  # three channels sleep in every other view
    whole = add_noise(exact, geometry, photons=1e5)
    scan = add_noise(exact, geometry, photons=photons)
    found, usual = (fbp(s, GRID, variance=True) for s in (scan, whole))
    assert middles_of_parts(found) == pytest.approx({"body": 0, "dense": 500, "light": -600}, abs=20)
    assert found.variance is not None
    assert usual.variance is not None
    ring = np.abs(np.hypot(*np.meshgrid(np.arange(64) - 31.5, np.arange(64) - 31.5)) * 2 - 14) < 2
    assert found.variance[ring].mean() > 2 * usual.variance[ring].mean()
    assert np.isfinite(found.variance).all()


def test_an_unknown_treatment_of_truncation_is_refused() -> None:
    with pytest.raises(InputError, match="truncation: there is no such treatment; got mirror"):
        fbp(Scan(np.zeros(FAN.shape), FAN), GRID, truncation="mirror")  # type: ignore[arg-type]


def test_a_detector_that_does_not_reach_the_axis_is_refused() -> None:
    geometry = replace(FAN, offset=60.0)
    with pytest.raises(InputError, match="offset: the detector does not reach the axis; got 60 bins of"):
        fbp(Scan(np.zeros(geometry.shape), geometry), GRID)


@pytest.mark.skipif(not NATIVE, reason="the extension is not built")
@pytest.mark.parametrize("name", ["parallel", "fan-flat", "fan-curved", "cone"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_every_kernel_smears_as_numpy_does(name: str, turned: bool, down: bool) -> None:
    geometry, grid = SMALL[name], a_grid(turned=turned, down=down)
    draw = np.random.default_rng(0)
    rays = draw.random(geometry.shape, np.float32)
    both = 0.5 * draw.random(geometry.shape, np.float32)
    for covariance in (None, both):
        expected = smeared(geometry, grid, rays, covariance, kernel=REFERENCE)
        for kernel in NATIVE:
            found = [
                smeared(geometry, grid, rays, covariance, kernel=kernel, threads=threads)
                for threads in (1, 3)
            ]
            assert (found[0] == found[1]).all()
            assert np.abs(found[0] - expected).max() <= 2e-6 * np.abs(expected).max()


@pytest.mark.skipif(not NATIVE, reason="the extension is not built")
@pytest.mark.parametrize("name", ["parallel", "fan-flat", "fan-curved", "cone"])
def test_rays_that_are_longer_than_the_detector_are_smeared_alike(name: str) -> None:
    geometry, grid = replace(SMALL[name], bins=SMALL[name].bins // 2), a_grid()
    views, rows, bins = geometry.shape
    rays = np.random.default_rng(0).random((views, rows, bins + 10), np.float32)
    expected = smeared(geometry, grid, rays, kernel=REFERENCE)
    assert np.abs(smeared(geometry, grid, rays) - expected).max() <= 2e-6 * np.abs(expected).max()
    assert not np.array_equal(expected, smeared(geometry, grid, rays[..., 5:-5], kernel=REFERENCE))
