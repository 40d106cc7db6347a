from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.reconstruction import Scan, Solver, reconstruct
from sagittal.reconstruction.geometry import ConeBeam
from sagittal.reconstruction.iterative import cgls, silent
from sagittal.reconstruction.line_integrals import line_integrals
from sagittal.reconstruction.projectors import system_matrix
from sagittal.reconstruction.simulate import add_noise, fitted_geometry
from sagittal.reconstruction.uncertainty import (
    leftover,
    redrawn,
    shared,
    smallest_disc,
    student_factor,
    uncertainty,
)
from sagittal.volume import Geometry, Volume
from sagittal.volume.phantoms import WATER_PER_MM, Body, Phantom

GRID = Geometry.from_spacing((48, 48, 1), (3, 3, 3), (-70.5, -70.5, 0))
SCANNER = fitted_geometry(GRID, "fan", 40)
PHANTOM = Phantom(
    name="ellipses",
    bodies=(
        Body(half_sizes=(60, 50, math.inf), density=1.0),
        Body(centre=(15, 5, 0), half_sizes=(16, 14, math.inf), density=0.3),
    ),
)
EXACT = line_integrals(PHANTOM, SCANNER)
SCAN = add_noise(EXACT, SCANNER, photons=2e4)
TRUTH = PHANTOM.rasterise(GRID).array
FEW: dict[str, dict[str, Any]] = {
    "fbp": {},
    "sirt": {"iterations": 20},
    "cgls": {"iterations": 8},
    "ordered-subsets": {"iterations": 3},
    "tv": {"solver": Solver(iterations=40)},
    "edge-preserving-tv": {"solver": Solver(iterations=40)},
    "directional-tv": {"solver": Solver(iterations=40)},
}
ITERATIVE = [name for name in FEW if name != "fbp"]


def found(method: str, scan: Scan = SCAN, **options: Any) -> Volume:
    return reconstruct(scan, GRID, method, variance=True, **FEW[method], **options).volume


def mean_variance(volume: Volume) -> float:
    assert volume.variance is not None
    return float(volume.variance[TRUTH > -900].mean())


@pytest.mark.parametrize("method", FEW)
def test_every_method_gives_a_variance_with_its_parts(method: str) -> None:
    volume = found(method)
    assert volume.unit == "HU"
    assert mean_variance(volume) > 0
    doubt = volume.facts["doubt"]
    assert doubt["kind"] == "quick"
    assert 0 < doubt["noise_share"] <= 1
    assert doubt["unseen_disc"]["diameter_mm"] == 12.0
    assert doubt["unseen_disc"]["below_hu"] > 0


@pytest.mark.parametrize("method", ["sirt", "edge-preserving-tv"])
def test_a_variance_changes_no_voxel_of_the_image(method: str) -> None:
    plain = reconstruct(SCAN, GRID, method, **FEW[method]).volume
    assert np.array_equal(found(method).array, plain.array)


@pytest.mark.parametrize("method", ["cgls", "tv"])
def test_a_seed_gives_the_same_bits_and_another_gives_others(method: str) -> None:
    first, again, other = (found(method, seed=seed).variance for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_more_dose_means_less_variance() -> None:
    for method, least in (("cgls", 5), ("tv", 1.5)):
        high = add_noise(EXACT, SCANNER, photons=2e5)
        noise = [
            mean_variance(v) * v.facts["doubt"]["noise_share"] for v in (found(method), found(method, high))
        ]
        assert noise[0] > least * noise[1]


def test_the_bootstrap_finds_the_covariance_of_least_squares() -> None:
    grid = Geometry.from_spacing((6, 6, 1), (8, 8, 8), (-20, -20, 0))
    scanner = fitted_geometry(grid, "parallel", 16)
    image = np.full(grid.shape, 0.02, np.float32)
    matrix = system_matrix(scanner, grid).toarray()
    scan = Scan((matrix @ image.reshape(-1)).reshape(scanner.shape), scanner, 1e5)
    inverse = np.linalg.pinv(matrix)
    exact = (inverse**2 @ scan.variance.reshape(-1)).reshape(grid.shape) * (1000 / WATER_PER_MM) ** 2
    draws = 200
    volume = reconstruct(
        scan, grid, "cgls", iterations=60, variance=True, doubt="bootstrap", draws=draws
    ).volume
    assert volume.variance is not None
    noise = volume.facts["doubt"]["noise_share"] * volume.variance.mean()
    assert noise == pytest.approx(student_factor(draws - 1) * exact.mean(), rel=0.05)


def test_intervals_cover_what_is_flat() -> None:
    flat = np.zeros(GRID.shape, bool)
    flat[11:18, 18:31] = True
    assert np.ptp(TRUTH[flat]) < 0.01
    for method in ("cgls", "tv"):
        shares, widths, errors = [], [], []
        for seed in range(6):
            volume = found(method, add_noise(EXACT, SCANNER, photons=2e4, seed=seed), seed=seed)
            assert volume.variance is not None
            off = np.abs(volume.array - TRUTH)[flat]
            shares.append(np.mean(off < 1.96 * np.sqrt(volume.variance[flat])))
            widths.append(volume.variance[flat].mean())
            errors.append(np.mean(off**2))
        assert np.mean(shares) > 0.9
        assert np.mean(widths) < 16 * np.mean(errors)  # and not by being very wide


def test_what_smoothing_took_from_the_image_raises_the_variance_there() -> None:
    hidden = Phantom(
        name="disc",
        bodies=(*PHANTOM.bodies, Body(centre=(-28, 0, 0), half_sizes=(10, 10, math.inf), density=0.03)),
    )
    scan = add_noise(line_integrals(hidden, SCANNER), SCANNER, photons=1e6)
    options: dict[str, Any] = {"roughness": 0.2, "solver": Solver(iterations=60)}
    with_disc = reconstruct(scan, GRID, "tv", variance=True, **options).volume
    without = reconstruct(add_noise(EXACT, SCANNER, photons=1e6), GRID, "tv", variance=True, **options).volume
    disc = (hidden.rasterise(GRID).array - TRUTH) > 25
    ring = (TRUTH == 0) & ~disc
    assert with_disc.array[disc].mean() - np.median(with_disc.array[ring]) < 15  # of 30 HU
    assert with_disc.variance is not None
    assert without.variance is not None
    assert with_disc.variance[disc].mean() > 2 * without.variance[disc].mean()


def test_what_a_scan_shows_beyond_an_image_is_found_where_it_is() -> None:
    disc = Phantom(
        name="disc", bodies=(Body(centre=(-28, 0, 0), half_sizes=(12, 12, math.inf), density=0.05),)
    )
    scan = Scan(EXACT + line_integrals(disc, SCANNER), SCANNER, 1e5)
    left = leftover(scan, EXACT, GRID, WATER_PER_MM)
    assert left is not None
    assert left.array[14, 23, 0] == pytest.approx(50, rel=0.2)
    assert abs(left.array[30, 40, 0]) < 5


def test_a_scan_of_too_few_views_has_nothing_to_look_at() -> None:
    quarter = fitted_geometry(GRID, "fan", 40).__class__(
        **{**SCANNER.__dict__, "angles": tuple(np.linspace(0, 1.5, 20))}
    )
    scan = add_noise(line_integrals(PHANTOM, quarter), quarter, photons=1e5)
    volume = reconstruct(scan, GRID, "cgls", variance=True).volume
    assert volume.variance is not None
    assert volume.facts["doubt"]["left_hu"] is None
    assert volume.facts["doubt"]["unseen_disc"] is None


def test_cones_have_a_variance_too() -> None:
    grid = Geometry.from_spacing((12, 12, 4), (8, 8, 8), (-44, -44, -12))
    scanner = fitted_geometry(grid, "cone", 16)
    assert isinstance(scanner, ConeBeam)
    scan = add_noise(line_integrals(PHANTOM, scanner), scanner, photons=1e5)
    volume = reconstruct(scan, grid, "tv", variance=True, solver=Solver(iterations=10)).volume
    assert volume.variance is not None
    assert volume.variance.shape == grid.shape
    assert volume.facts["doubt"]["left_hu"] is not None


def test_draws_have_the_scans_own_noise() -> None:
    draws = np.stack([redrawn(SCAN, EXACT, 3, n).sinogram for n in range(200)])
    bright = EXACT < 2
    expected = Scan(EXACT, SCANNER, 2e4).variance[bright]
    assert draws.var(axis=0)[bright].mean() == pytest.approx(expected.mean(), rel=0.02)


def test_neighbours_share_without_loss() -> None:
    values = np.zeros((21, 21, 1), np.float32)
    values[10, 10] = 1
    spread = shared(values, 1.5)
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    assert spread.max() < 0.1
    even: NDArray[np.float32] = np.full((9, 9, 1), 3, np.float32)
    assert shared(even, 3.0) == pytest.approx(3, rel=1e-5)


def test_few_draws_are_worth_as_much_as_student_says() -> None:
    for freedom, quantile in ((3, 3.182), (19, 2.093), (1000, 1.962)):
        assert math.sqrt(student_factor(freedom)) * 1.96 == pytest.approx(quantile, rel=0.01)


def test_a_disc_needs_more_contrast_where_there_is_more_noise() -> None:
    size, low = smallest_disc(GRID, np.array([4.0]))
    assert size == 12.0
    assert low > 1.96 * 2  # a small disc is blurred
    assert smallest_disc(GRID, np.array([16.0]))[1] == pytest.approx(2 * low)


def test_a_variance_without_a_dose_or_draws_is_refused() -> None:
    unknown = Scan(EXACT, SCANNER)
    for method in ITERATIVE:
        with pytest.raises(InputError, match="photons: the scan does not say its dose"):
            found(method, unknown)
    with pytest.raises(InputError, match="draws: a variance takes two draws; got 1"):
        found("cgls", draws=1)
    with pytest.raises(InputError, match="doubt: there is no such doubt; got none"):
        found("cgls", doubt="none")


def test_reports_say_how_far_it_is() -> None:
    lines: list[str] = []
    image = cgls(SCAN, GRID).volume
    uncertainty(
        SCAN,
        image,
        lambda scan, start: cgls(scan, GRID).volume,
        kind="quick",
        draws=2,
        seed=0,
        smooth=False,
        mu_water=WATER_PER_MM,
        report=lines.append,
    )
    assert lines[0] == "variance: draw 1 of 2"
    assert lines[-1] == "variance: likeness 3 of 3"
    silent(lines[0])
