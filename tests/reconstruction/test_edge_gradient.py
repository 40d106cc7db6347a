"""Bins that edges cross measure less than the mean of their rays, and an image tells by how much."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import InputError
from sagittal.reconstruction import total_variation
from sagittal.reconstruction.edge_gradient import edge_gradient
from sagittal.reconstruction.geometry import FanBeam, ScanGeometry, finer_bins
from sagittal.reconstruction.line_integrals import line_integrals
from sagittal.reconstruction.memory import memory_needed
from sagittal.reconstruction.methods import reconstruct
from sagittal.reconstruction.projectors import Projector
from sagittal.reconstruction.scan import attenuation
from sagittal.reconstruction.simulate import add_noise, fitted_geometry
from sagittal.reconstruction.total_variation import Solver, edge_preserving_tv, subdivided, tv
from sagittal.volume import Geometry, Volume
from sagittal.volume.phantoms import Phantom
from sagittal.volume.standard_phantoms import smooth_regions

GRID = Geometry.from_spacing((64, 64, 1), (4, 4, 4), (-126, -126, 0))
TRUTH = smooth_regions().rasterise(GRID)


def scanners() -> dict[str, ScanGeometry]:
    fan = fitted_geometry(GRID, "fan", 40)
    assert isinstance(fan, FanBeam)
    return {
        "parallel": fitted_geometry(GRID, "parallel", 40),
        "fan, off the middle": replace(fan, offset=0.25),
        "curved fan": replace(fan, curved=True),
    }


SCANNERS = scanners()


def missed(phantom: Phantom, scanner: ScanGeometry) -> Any:
    """Return by how much bins measure less, from the phantom itself."""
    mean, received = (line_integrals(phantom, scanner, as_intensity=which) for which in (False, True))
    return mean - received


@pytest.mark.parametrize("name", SCANNERS)
def test_a_fine_image_of_a_phantom_tells_what_its_bins_miss(name: str) -> None:
    fine = subdivided(GRID, 4)
    image = attenuation(smooth_regions().rasterise(fine, 4))
    found = edge_gradient(Projector(SCANNERS[name], fine), image)
    wanted = missed(smooth_regions(), SCANNERS[name])
    assert found.min() >= 0
    assert np.linalg.norm(found - wanted) < 0.25 * np.linalg.norm(wanted)
    assert found.sum() == pytest.approx(wanted.sum(), rel=0.2)


@pytest.mark.parametrize("scanner", SCANNERS.values())
def test_finer_bins_lie_within_the_bins(scanner: ScanGeometry) -> None:
    assert finer_bins(scanner, 3).edges[::3] == pytest.approx(scanner.edges)
    assert finer_bins(scanner, 3).angles == scanner.angles


@pytest.mark.parametrize("method", [edge_preserving_tv, tv])
def test_a_correction_brings_a_detectors_scan_nearer(method: Any) -> None:
    scanner = SCANNERS["parallel"]
    exact = line_integrals(smooth_regions(), scanner, as_intensity=True)
    scan = add_noise(exact, scanner, photons=1e6)

    def error(corrected: bool) -> float:
        options = {"subdivision": 2, "model_error": 0.05, "edge_gradient": corrected}
        volume = method(scan, GRID, **options).volume
        return float(np.sqrt(np.mean((volume.array - TRUTH.array) ** 2)))

    assert error(True) < 0.8 * error(False)


def test_threads_change_no_bit_and_missing_rays_nothing() -> None:
    scanner = SCANNERS["fan, off the middle"]
    scan = add_noise(line_integrals(smooth_regions(), scanner, as_intensity=True), scanner, photons=1e5)
    missing = np.zeros(scanner.shape, bool)
    missing[3:5] = True
    scan = scan.replace(missing=missing)
    found = [
        edge_preserving_tv(
            scan, GRID, edge_gradient=True, solver=Solver(iterations=5, threads=threads)
        ).volume.array
        for threads in (1, 2, 3)
    ]
    assert np.isfinite(found[0]).all()
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()


def test_scans_that_are_drawn_again_are_not_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    scanner = SCANNERS["parallel"]
    scan = add_noise(line_integrals(smooth_regions(), scanner, as_intensity=True), scanner, photons=1e5)
    asked = []

    def counted(projector: Projector, image: Any) -> Any:
        asked.append(image)
        return edge_gradient(projector, image)

    monkeypatch.setattr(total_variation, "missed_by_bins", counted)
    options: dict[str, Any] = {"edge_gradient": True, "solver": Solver(iterations=5)}
    found = reconstruct(scan, GRID, "edge-preserving-tv", variance=True, **options).volume
    assert isinstance(found, Volume)
    assert found.variance is not None
    assert found.facts["edge_gradient"] is True
    assert len(asked) == 2  # before each stage


def test_what_is_no_yes_or_no_is_refused() -> None:
    scanner = SCANNERS["parallel"]
    scan = add_noise(line_integrals(smooth_regions(), scanner), scanner, photons=1e5)
    with pytest.raises(InputError, match=r"edge_gradient: rays are corrected for edges or not; got 0\.5"):
        reconstruct(scan, GRID, "tv", edge_gradient=0.5)
    with pytest.raises(InputError, match="the method has no such option; got edge_gradient"):
        reconstruct(scan, GRID, "sirt", edge_gradient=True)


def test_where_a_correction_does_harm_it_is_refused() -> None:
    scan = add_noise(np.zeros(SCANNERS["parallel"].shape), SCANNERS["parallel"], photons=1e5)
    with pytest.raises(InputError, match="only voxels finer than bins tell of edges within them"):
        tv(scan, GRID, edge_gradient=True)
    grid = Geometry.from_spacing((24, 24, 8), (4, 4, 4), (-46, -46, -14))
    cone = fitted_geometry(grid, "cone", 12)
    scan = add_noise(np.zeros(cone.shape), cone, photons=1e5)
    with pytest.raises(InputError, match="rays are corrected for edges in planes alone; got a cone beam"):
        edge_preserving_tv(scan, grid, edge_gradient=True, subdivision=2)


def test_the_memory_it_takes_is_stated() -> None:
    views = tuple(np.arange(256) * math.pi / 256)
    scanner = replace(SCANNERS["parallel"], angles=views)
    scan = add_noise(np.zeros(scanner.shape), scanner, photons=1e5)
    solver = Solver(iterations=2, levels=0)
    peaks = []
    for which in (False, True):
        tracemalloc.start()
        reconstruct(scan, GRID, "tv", edge_gradient=which, subdivision=2, solver=solver)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    stated = [memory_needed(scan, GRID, "tv", edge_gradient=which, subdivision=2) for which in (False, True)]
    assert stated[1] > stated[0]
    assert peaks[1] < stated[1]
