from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from known_fields import centred, turn
from sagittal.core import native as extension
from sagittal.core.native import vector_kernels
from sagittal.registration import native
from sagittal.registration.filters import gaussian
from sagittal.registration.levels import coarsened
from sagittal.registration.motion import brought, exponential, pushed
from sagittal.registration.similarity import local_correlation
from sagittal.volume import Geometry
from sagittal.volume.field_maps import sample

pytestmark = pytest.mark.skipif(not vector_kernels(), reason="the extension is not built")

KERNELS = vector_kernels()
GRIDS = {
    "oblique": centred((21, 18, 15), (2, 2.2, 2.5), turn(0.3, -0.2)),
    "slice": centred((31, 24, 1), (1.5, 1.6, 4), np.diag([-1.0, 1, 1])),
    "narrow": centred((3, 19, 37), (2, 1, 1), np.eye(3)),
}
grids = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for module in ("sagittal.registration.native", "sagittal.volume.field_maps"):
        monkeypatch.setattr(f"{module}.vector_kernels", lambda: (request.param,))
    return str(request.param)


def image(grid: Geometry, seed: int) -> Any:
    random = np.random.default_rng(seed).random(grid.shape)
    return gaussian(random, (1, 1, 1)).astype(np.float32)


def vectors(grid: Geometry, size_mm: float = 6.0) -> Any:
    flat = [axis for axis in range(3) if grid.shape[axis] == 1]
    noise = np.random.default_rng(5).normal(size=(3, *grid.shape))
    noise[flat] = 0
    smooth = gaussian(np.einsum("ab,b...->a...", grid.direction, noise), (3, 3, 3))
    return (smooth * (size_mm / np.abs(smooth).max())).astype(np.float32)


@pytest.mark.usefixtures("kernel")
@grids
@pytest.mark.parametrize("weighted", [False, True])
def test_local_correlation_is_the_reference(grid: Geometry, weighted: bool) -> None:
    a, b = image(grid, 1), image(grid, 2)
    weight = (image(grid, 3) > 0.5).astype(np.float32) if weighted else None
    wide = [None if x is None else x.astype(np.float64) for x in (a, b, weight)]
    value, *slopes = local_correlation(a, b, weight)
    expected, *wanted = local_correlation(*wide)
    assert value == pytest.approx(expected, abs=1e-5)
    for slope, right in zip(slopes, wanted, strict=True):
        assert np.abs(slope - right).max() < 2e-4 * np.abs(right).max()


@pytest.mark.usefixtures("kernel")
@grids
def test_an_exponential_is_the_reference(grid: Geometry) -> None:
    velocity = vectors(grid)
    expected = exponential(velocity.astype(np.float64), grid)
    assert np.abs(exponential(velocity, grid) - expected).max() < 1e-4


@pytest.mark.usefixtures("kernel")
@grids
@pytest.mark.parametrize("coarser", [1.0, 1.9])
def test_an_image_is_brought_as_by_the_reference(grid: Geometry, coarser: float) -> None:
    coarse = coarsened(grid, coarser * max(s for s, n in zip(grid.spacing, grid.shape, strict=True) if n > 1))
    moves, picture = vectors(coarse), image(GRIDS["oblique"], 4)
    own = GRIDS["oblique"] if grid.shape[2] > 1 else grid
    picture = image(own, 4)
    found, seen = brought(picture, own, moves, coarse, grid)
    expected, inside = brought(picture.astype(np.float64), own, moves.astype(np.float64), coarse, grid)
    assert inside.any()
    assert (seen == inside).mean() > 0.999
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.usefixtures("kernel")
@grids
@pytest.mark.parametrize("coarser", [1.0, 1.9])
def test_the_push_is_the_reference(grid: Geometry, coarser: float) -> None:
    coarse = coarsened(grid, coarser * max(s for s, n in zip(grid.spacing, grid.shape, strict=True) if n > 1))
    four = [image(grid, seed) for seed in range(4)]
    seen = image(grid, 9) > 0.45
    found = pushed(*four, seen, grid, coarse)
    expected = pushed(*(x.astype(np.float64) for x in four), seen, grid, coarse)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max() + 1e-7


@pytest.mark.usefixtures("kernel")
@grids
@pytest.mark.parametrize("outside_zero", [False, True])
def test_smoothing_is_the_reference(grid: Geometry, outside_zero: bool) -> None:
    values = np.stack([image(grid, 1), image(grid, 2)])
    found = gaussian(values, (1.3, 0, 2.6), outside_zero=outside_zero)
    expected = gaussian(values.astype(np.float64), (1.3, 0, 2.6), outside_zero=outside_zero)
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.usefixtures("kernel")
def test_sampling_is_the_reference_and_stays_within_the_image() -> None:
    values = image(GRIDS["oblique"], 1)
    index = np.random.default_rng(2).uniform(-5, 26, (3, 9, 8, 7))
    found = sample(values, index)
    assert np.abs(found - sample(values.astype(np.float64), index)).max() < 1e-5
    index[:, 0, 0] = [[np.nan], [np.inf], [-1e30]]
    assert np.array_equal(sample(values, index)[1:], found[1:])


@grids
def test_threads_change_no_bit(grid: Geometry, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(native, "thread_count", lambda threads=threads: threads)
        a, b, velocity = image(grid, 1), image(grid, 2), vectors(grid)
        value, *slopes = local_correlation(a, b)
        found.append([np.float64(value), *slopes, exponential(velocity, grid), gaussian(velocity, (2, 2, 2))])
    for one, many in zip(*found, strict=True):
        assert np.array_equal(one, many)


def test_arrays_that_do_not_fit_are_refused() -> None:
    a = np.zeros((4, 5, 6), np.float32)
    with pytest.raises(ValueError, match="other shapes"):
        native.correlate(a, a[:3], None, 0.1)
    with pytest.raises(ValueError, match="more weights than voxels"):
        native.blur(a, [1.0] * 5, 0, outside_zero=True)
    assert extension.vector_kernels()
