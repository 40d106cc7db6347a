from __future__ import annotations

import math

import numpy as np
import pytest

from sagittal.core.errors import InputError
from sagittal.reconstruction.geometry import ConeBeam, FanBeam, ParallelBeam, ScanGeometry
from sagittal.reconstruction.line_integrals import line_integrals
from sagittal.reconstruction.projectors import forward
from sagittal.volume import Geometry
from sagittal.volume.phantoms import Body, Phantom
from sagittal.volume.standard_phantoms import smooth_regions

INF = math.inf
ANGLES = tuple(np.linspace(0.1, 0.1 + 2 * math.pi, 7, endpoint=False))
DISC = Phantom(name="disc", bodies=(Body(centre=(10, 4, 0), half_sizes=(20, 20, INF), density=1.0),))


def test_a_parallel_ray_through_a_disc_measures_its_chord() -> None:
    geometry = ParallelBeam(angles=(0.0, math.pi / 2), bins=101, bin_width=1.0)
    found = line_integrals(DISC, geometry, subrays=1, water=0.02)
    # At angle 0 bins lie along x and bin 50 is at 0; at 90 degrees along y.
    assert found[0, 0, 50 + 10 + 12] == pytest.approx(2 * 16 * 0.02)
    assert found[1, 0, 50 + 4 + 12] == pytest.approx(2 * 16 * 0.02)


def test_averaging_over_bins_keeps_the_mass_of_a_view() -> None:
    geometry = ParallelBeam(angles=(0.3, 1.0), bins=40, bin_width=3.0)
    found = line_integrals(DISC, geometry, subrays=16, water=1.0)
    np.testing.assert_allclose(found.sum(axis=2) * 3.0, math.pi * 400, rtol=1e-3)


def test_a_bin_is_the_mean_of_its_rays() -> None:
    coarse = ParallelBeam(angles=(0.3, 1.0), bins=20, bin_width=4.0)
    fine = ParallelBeam(angles=(0.3, 1.0), bins=80, bin_width=1.0)
    single = line_integrals(DISC, fine, subrays=1).reshape(2, 1, 20, 4).mean(axis=3)
    np.testing.assert_allclose(line_integrals(DISC, coarse, subrays=4), single)


def test_a_detector_that_averages_intensity_measures_less_at_an_edge() -> None:
    geometry = ParallelBeam(angles=(0.3, 1.0), bins=20, bin_width=4.0)
    integral = line_integrals(DISC, geometry, subrays=8, water=0.1)
    intensity = line_integrals(DISC, geometry, subrays=8, water=0.1, as_intensity=True)
    assert np.all(intensity <= integral + 1e-12)
    assert float((integral - intensity).max()) > 0.1


def test_slices_are_measured_at_their_heights() -> None:
    ball = Phantom(name="ball", bodies=(Body(half_sizes=(5, 5, 5), density=1.0),))
    geometry = ParallelBeam(angles=(0.0, 1.0), bins=1, bin_width=1e-3, rows=2)
    found = line_integrals(ball, geometry, subrays=1, heights=(0.0, 3.0), water=1.0)
    np.testing.assert_allclose(found[:, :, 0], [[10, 8], [10, 8]], rtol=1e-6)


def test_the_tilted_ray_of_a_cone_through_a_ball_measures_its_chord() -> None:
    ball = Phantom(name="ball", bodies=(Body(half_sizes=(30, 30, 30), density=1.0),))
    geometry = ConeBeam(
        angles=(0.0, 1.0),
        bins=1,
        rows=3,
        bin_width=1e-3,
        row_height=40.0,
        source_distance=400.0,
        detector_distance=800.0,
    )
    found = line_integrals(ball, geometry, subrays=1, water=1.0)
    distance = 400 * 40 / math.hypot(800, 40)  # of the upper row's ray from the ball's middle
    np.testing.assert_allclose(
        found[0, :, 0], [2 * math.sqrt(900 - distance**2), 60, 2 * math.sqrt(900 - distance**2)]
    )


FLAT_FAN = FanBeam(
    angles=ANGLES,
    bins=90,
    bin_width=5.0,
    source_distance=500,
    detector_distance=900,
    offset=1.25,
    centre=(4, -3, 0),
)
CURVED_FAN = FanBeam(
    angles=ANGLES,
    bins=90,
    bin_width=5.0,
    source_distance=500,
    detector_distance=900,
    curved=True,
    offset=-0.25,
)
PARALLEL = ParallelBeam(angles=ANGLES, bins=90, bin_width=3.0, offset=0.5, centre=(4, -3, 0))


@pytest.mark.parametrize("geometry", [PARALLEL, FLAT_FAN, CURVED_FAN], ids=["parallel", "flat", "curved"])
def test_the_projector_agrees_on_a_fine_grid(geometry: ScanGeometry) -> None:
    phantom = smooth_regions()
    grid = Geometry.from_spacing((200, 200, 1), (1, 1, 1), (-99.5, -99.5, 0))
    voxels = phantom.rasterise(grid, 4, unit="1/mm")
    exact = line_integrals(phantom, geometry, subrays=8)
    found = forward(voxels, geometry, dtype=np.float64)
    assert float(np.abs(found - exact).mean()) < 2e-3 * float(exact.max())
    assert float(np.abs(found - exact).max()) < 0.03 * float(exact.max())


@pytest.mark.parametrize("curved", [False, True])
def test_the_projector_agrees_along_a_helix(curved: bool) -> None:
    phantom = Phantom(
        name="two",
        bodies=(
            Body(half_sizes=(30, 22, 16), turn=0.4, density=1.0),
            Body(centre=(8, 6, 9), half_sizes=(7, 6, 5), density=1.0),
        ),
    )
    geometry = ConeBeam(
        angles=ANGLES,
        bins=20,
        rows=12,
        bin_width=7.0,
        row_height=6.0,
        source_distance=300,
        detector_distance=500,
        curved=curved,
        offset=0.75,
        row_offset=-1.0,
        pitch=12.0,
        centre=(2, 1, 3),
    )
    grid = Geometry.from_spacing((48, 48, 30), (1.5, 1.5, 1.5), (-35.25, -35.25, -18))
    voxels = phantom.rasterise(grid, 3, unit="1/mm")
    exact = line_integrals(phantom, geometry, subrays=4)
    found = forward(voxels, geometry, dtype=np.float64)
    assert float(np.abs(found - exact).mean()) < 0.01 * float(exact.max())


def test_heights_for_a_cone_are_refused() -> None:
    geometry = ConeBeam(
        angles=ANGLES, bins=2, rows=2, bin_width=1, row_height=1, source_distance=300, detector_distance=500
    )
    with pytest.raises(InputError, match="heights"):
        line_integrals(DISC, geometry, heights=(0.0, 1.0))
