from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import GeometryError, InputError
from sagittal.reconstruction.geometry import ParallelBeam, ScanGeometry, some_views
from sagittal.reconstruction.projectors import REFERENCE, Projector, back, forward, projector_kernels
from sagittal.volume import Geometry, Volume
from scanners import CONE, FAN, SCANNERS, a_grid, a_pair

pytest.importorskip("scipy")

NATIVE = [kernel for kernel in projector_kernels() if kernel != REFERENCE]
needs_native = pytest.mark.skipif(not NATIVE, reason="the extension is not built")

scanner = pytest.mark.parametrize("name", SCANNERS)


def mismatch(projector: Projector, geometry: ScanGeometry, grid: Geometry) -> float:
    x, y = (part.astype(projector.dtype) for part in a_pair(geometry, grid))
    ax, by = projector.forward(x).astype(np.float64), projector.back(y).astype(np.float64)
    return abs(float(np.vdot(ax, y) - np.vdot(x, by))) / float(np.linalg.norm(ax) * np.linalg.norm(y))


@needs_native
@scanner
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_back_is_the_transpose_of_forward(name: str, dtype: Any) -> None:
    for kernel in NATIVE:
        projector = Projector(SCANNERS[name], a_grid(), dtype=dtype, kernel=kernel)
        assert mismatch(projector, SCANNERS[name], a_grid()) < (1e-6 if dtype == np.float32 else 1e-12)


@needs_native
@scanner
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_every_kernel_computes_what_the_matrix_says(name: str, turned: bool, down: bool) -> None:
    geometry, grid = SCANNERS[name], a_grid(turned=turned, down=down)
    x, y = a_pair(geometry, grid)
    reference = Projector(geometry, grid, dtype=np.float64, kernel=REFERENCE)
    ax, by = reference.forward(x), reference.back(y)
    for kernel in NATIVE:
        for dtype, tolerance in ((np.float32, 5e-6), (np.float64, 1e-13)):
            projector = Projector(geometry, grid, dtype=dtype, kernel=kernel)
            assert np.abs(projector.forward(x) - ax).max() <= tolerance * ax.max()
            assert np.abs(projector.back(y) - by).max() <= tolerance * by.max()


@needs_native
@scanner
def test_threads_change_no_bit(name: str) -> None:
    x, y = a_pair(SCANNERS[name], a_grid())
    found = [Projector(SCANNERS[name], a_grid(), threads=threads) for threads in (1, 2, 5)]
    assert len({each.forward(x).tobytes() for each in found}) == 1
    assert len({each.back(y).tobytes() for each in found}) == 1


def disc_integrals(geometry: ScanGeometry, middle: tuple[float, float], radius: float) -> Any:
    """Return exact line integrals of a disc of 1, averaged over many rays in each bin."""
    found = np.empty((len(geometry.angles), geometry.bins))
    parts = 64
    fine = np.linspace(geometry.edges[0], geometry.edges[-1], geometry.bins * parts + 1)
    places = (fine[1:] + fine[:-1]) / 2
    centre = np.asarray(middle) - np.asarray(geometry.centre[:2])
    for view, angle in enumerate(geometry.angles):
        u, d = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
        if isinstance(geometry, ParallelBeam):
            distance = places - centre @ u
        else:
            fan = places / geometry.detector_distance
            fan = fan if geometry.curved else np.arctan(fan)
            across, deep = centre @ u, centre @ d + geometry.source_distance
            distance = across * np.cos(fan) - deep * np.sin(fan)
        chord = 2 * np.sqrt(np.maximum(radius**2 - distance**2, 0))
        found[view] = chord.reshape(geometry.bins, parts).mean(axis=1)
    return found


def a_disc(grid: Geometry, middle: tuple[float, float], radius: float, parts: int = 8) -> Any:
    """Return how much of each pixel a disc covers."""
    inner = (np.arange(parts) + 0.5) / parts - 0.5
    total = np.zeros(grid.shape[:2])
    i, j = np.meshgrid(*(np.arange(n) for n in grid.shape[:2]), indexing="ij")
    for a in inner:
        for b in inner:
            world = grid.index_to_world(np.stack([i + a, j + b, 0 * i], axis=-1))
            total += (world[..., 0] - middle[0]) ** 2 + (world[..., 1] - middle[1]) ** 2 < radius**2
    return total[..., None] / parts**2


@pytest.mark.parametrize("kernel", projector_kernels())
@scanner
def test_rays_that_come_in_parts_are_projected_back_to_the_same_bits(
    name: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few rays are asked for at a time, voxels receive them in one order."""
    one_view = "sagittal.reconstruction.projectors.some_views"
    monkeypatch.setattr(one_view, lambda shape, rays=0: some_views(shape, 1))
    projector = Projector(SCANNERS[name], a_grid(), kernel=kernel)
    _, rays = a_pair(SCANNERS[name], a_grid())
    rays = rays.astype(np.float32)
    views, factor = slice(1, len(rays) - 1), -0.37
    whole = np.ones(a_grid().shape, np.float32)
    parts = whole.copy()
    projector.add_back(rays[views], whole, first=1, factor=factor)
    projector.add_back_from(rays.__getitem__, parts, views=views, factor=factor)
    assert np.array_equal(parts, whole)
    assert not np.array_equal(parts, np.ones_like(parts))


@scanner
def test_views_in_parts_are_all_views_and_each_is_projected_alone_to_the_same_bits(name: str) -> None:
    x, _ = a_pair(SCANNERS[name], a_grid())
    projector = Projector(SCANNERS[name], a_grid())
    views = projector.some_views()
    assert [n for part in views for n in range(part.start, part.stop)] == list(range(projector.shape[0]))
    image = x.astype(np.float32)
    found = np.concatenate([projector.forward(image, slice(n, n + 1)) for n in range(projector.shape[0])])
    assert np.array_equal(found, projector.forward(image)) or not projector.in_parts


@pytest.mark.parametrize("name", ["parallel", "fan-flat", "fan-curved", "fan-wide", "fan-wide-curved"])
def test_a_disc_casts_the_shadow_that_geometry_says(name: str) -> None:
    geometry = replace(SCANNERS[name], rows=1, centre=(1.5, -2.0, 0.0))
    grid, middle, radius = a_grid(slices=1, turned=True), (5.0, -3.0), 9.0
    ours = Projector(geometry, grid, dtype=np.float64).forward(a_disc(grid, middle, radius))[:, 0]
    exact = disc_integrals(geometry, middle, radius)
    assert np.sqrt(np.mean((ours - exact) ** 2)) < 0.015 * exact.max()


def test_a_ball_casts_its_shadow_onto_the_line_of_the_helix_that_sees_it() -> None:
    geometry = replace(CONE, pitch=10.0, bins=150, bin_width=0.8, rows=60, row_height=0.8)
    grid = Geometry.from_spacing((44, 44, 20), (1, 1, 1), (-21.5, -21.5, -9.5))
    ball = np.zeros(grid.shape)
    ball[26, 17, 13] = 1  # at (4.5, -4.5, 3.5) mm
    found = Projector(geometry, grid, dtype=np.float64).forward(ball)
    for view, (angle, height) in enumerate(zip(geometry.angles, geometry.heights, strict=True)):
        u, d = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
        grow = geometry.detector_distance / (np.array([4.5, -4.5]) @ d + geometry.source_distance)
        bin_at = (
            np.array([4.5, -4.5]) @ u * grow / geometry.bin_width + geometry.bins / 2 - geometry.offset - 0.5
        )
        row_at = (3.5 - height) * grow / geometry.row_height + geometry.rows / 2 - geometry.row_offset - 0.5
        weight = found[view] / found[view].sum()
        rows, bins = np.indices(weight.shape)
        assert (weight * bins).sum() == pytest.approx(bin_at, abs=0.1)
        assert (weight * rows).sum() == pytest.approx(row_at, abs=0.1)


@pytest.mark.parametrize("kernel", projector_kernels())
def test_a_detector_that_sees_no_voxel_measures_nothing(kernel: str) -> None:
    geometry = replace(SCANNERS["parallel"], offset=200.0)
    projector = Projector(geometry, a_grid(), kernel=kernel)
    assert not projector.forward(np.ones(a_grid().shape)).any()
    assert not projector.back(np.ones(geometry.shape)).any()


def test_pure_functions_project_a_volume_and_back() -> None:
    geometry, grid = SCANNERS["parallel"], a_grid()
    x, y = a_pair(geometry, grid)
    projector = Projector(geometry, grid)
    assert np.array_equal(forward(Volume(x, grid), geometry), projector.forward(x))
    assert np.array_equal(back(y, geometry, grid), projector.back(y))


def test_a_sinogram_of_another_shape_is_refused() -> None:
    with pytest.raises(GeometryError, match=r"got \(13, 3, 69\); expected \(13, 3, 70\)"):
        back(np.zeros((13, 3, 69)), SCANNERS["parallel"], a_grid())


def test_a_grid_with_sagittal_slices_is_refused() -> None:
    affine = np.eye(4)[[2, 0, 1, 3]]
    with pytest.raises(GeometryError, match="reorient or resample"):
        Projector(replace(FAN, rows=9), Geometry((9, 9, 9), affine))


def test_a_source_that_turns_through_the_grid_is_refused() -> None:
    with pytest.raises(
        GeometryError, match=r"source_distance: the source turns through the image; got 20 mm"
    ):
        Projector(replace(FAN, source_distance=20), a_grid())


def test_other_slices_than_were_scanned_are_refused() -> None:
    with pytest.raises(GeometryError, match="got 3 and 4"):
        Projector(FAN, a_grid(slices=4))


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(InputError, match="abacus"):
        Projector(FAN, a_grid(), kernel="abacus")
