from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import InputError
from sagittal.reconstruction.geometry import ConeBeam, ParallelBeam, ScanGeometry
from sagittal.reconstruction.memory import COPIES, memory_needed
from sagittal.reconstruction.methods import METHODS, reconstruct
from sagittal.reconstruction.projectors import REFERENCE, projector_kernels
from sagittal.reconstruction.scan import Scan
from sagittal.reconstruction.simulate import fitted_geometry
from sagittal.reconstruction.total_variation import Solver
from sagittal.volume import Geometry


def plane(size: int, bins: int, views: int) -> tuple[Geometry, ScanGeometry]:
    middle = -(size - 1) / 2
    grid = Geometry.from_spacing((size, size, 8), origin=(middle, middle, 0))
    angles = tuple(np.arange(views) * math.pi / views)
    return grid, ParallelBeam(angles=angles, bins=bins, bin_width=1.5 * size / bins, rows=8)


def cone(size: int, slices: int, views: int, bins: int, rows: int) -> tuple[Geometry, ScanGeometry]:
    x, z = -(size - 1) / 2, -(slices - 1) / 2
    grid = Geometry.from_spacing((size, size, slices), origin=(x, x, z))
    fitted = fitted_geometry(grid, "cone", views)
    assert isinstance(fitted, ConeBeam)
    width, height = fitted.bin_width * fitted.bins / bins, fitted.row_height * fitted.rows / rows
    return grid, replace(fitted, bins=bins, bin_width=width, rows=rows, row_height=height)


needs_native = pytest.mark.skipif(projector_kernels()[-1] == REFERENCE, reason="the extension is not built")

CASES = {
    "many voxels": plane(96, 48, 16),
    "many rays": plane(24, 160, 128),
    "cone, many voxels": cone(64, 32, 8, 24, 16),
    "cone, many rays": cone(20, 10, 48, 64, 32),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_takes_no_more_memory_than_it_states_and_not_far_less(method: str, case: str) -> None:
    grid, geometry = CASES[case]
    missing = np.zeros(geometry.shape, bool)
    missing[..., 5] = True
    scan = Scan(np.full(geometry.shape, 0.5, np.float32), geometry, 1e4, missing=missing)
    options: dict[str, Any] = {"iterations": 2}
    if method.endswith("tv"):
        options = {"solver": Solver(iterations=2, levels=0)}
    needed = memory_needed(scan, grid, method)
    tracemalloc.start()
    reconstruct(scan, grid, method, **({} if method == "fbp" else options))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < needed
    assert needed < 5 * peak


@needs_native
@pytest.mark.parametrize(
    ("method", "volumes", "sinograms"),
    [
        ("tv", 3.5, 1.5),  # two images and half one for each axis; residuals, and how far they moved
        ("edge-preserving-tv", 3.75, 2.5),  # and a quarter for the weights, and those of the rays
        ("directional-tv", 4.25, 1.5),
    ],
)
def test_total_variation_in_three_dimensions_holds_what_it_must_and_hardly_more(
    method: str, volumes: float, sinograms: float
) -> None:
    grid, geometry = cone(112, 112, 12, 168, 140)
    scan = Scan(np.full(geometry.shape, 0.5, np.float32), geometry, 1e4)
    solver = Solver(iterations=1, passes=0, levels=0, threads=1)
    tracemalloc.start()
    reconstruct(scan, grid, method, solver=solver)
    peak = tracemalloc.get_traced_memory()[1] / (4 * math.prod(grid.shape))
    tracemalloc.stop()
    sinogram = math.prod(geometry.shape) / math.prod(grid.shape)
    assert volumes + sinograms * sinogram - 0.1 < peak < volumes + sinograms * sinogram + 0.15


def test_smaller_voxels_and_a_variance_take_more() -> None:
    grid, geometry = CASES["many voxels"]
    scan = Scan(np.zeros(geometry.shape), geometry, 1e4)
    plain = memory_needed(scan, grid, "tv")
    assert memory_needed(scan, grid, "tv", subdivision=2) > 3 * plain
    assert memory_needed(scan, grid, "tv", variance=True) > 2 * plain
    assert set(COPIES) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_what_does_not_fit_is_refused_before_anything_is_computed(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, geometry = CASES["many voxels"]
    scan = Scan(np.zeros(geometry.shape), geometry)
    monkeypatch.setattr("sagittal.core.memory.available_memory", lambda: 1 << 20)
    monkeypatch.setattr("sagittal.reconstruction.methods._by_name", None)
    with pytest.raises(
        InputError,
        match=f"the reconstruction by {method} does not fit into memory; got about .* GiB; expected at most",
    ):
        reconstruct(scan, grid, method)
