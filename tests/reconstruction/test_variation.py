from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sagittal.reconstruction.projectors import REFERENCE, projector_kernels
from sagittal.reconstruction.variation import Variation, differences, gradient_length
from sagittal.volume import Geometry

NATIVE = [kernel for kernel in projector_kernels() if kernel != REFERENCE]
needs_native = pytest.mark.skipif(not NATIVE, reason="the extension is not built")
SHAPES = [(33, 300, 1), (13, 14, 15), (5, 1, 9), (1, 1, 1)]


def weights(kind: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    draw = np.random.default_rng(3)
    if kind == "bound":
        return {"bound": draw.random(shape)}
    return {"scales": tuple(draw.random(shape) for _ in range(3))} if kind == "scales" else {}


@needs_native
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["plain", "bound", "scales"])
def test_every_kernel_steps_as_the_reference_does(shape: tuple[int, int, int], kind: str) -> None:
    grid = Geometry.from_spacing(shape, (1, 1, 1.5))
    image = np.random.default_rng(1).random(shape)
    reference = Variation(grid=grid, kernel=REFERENCE, **weights(kind, shape))
    expected = reference.step(image, 0.1, reference.start(np.float64), iterations=20)
    for kernel in NATIVE:
        for threads in (1, 3):
            ours = Variation(grid=grid, kernel=kernel, threads=threads, **weights(kind, shape))
            found = ours.step(image, 0.1, ours.start(np.float64), iterations=20)
            assert found == pytest.approx(expected, abs=1e-13)
            assert ours.value(image) == pytest.approx(reference.value(image), rel=1e-12)


def test_the_variation_of_a_square_is_its_outline() -> None:
    grid = Geometry.from_spacing((10, 10, 1), (2, 2, 2))
    image = np.zeros(grid.shape)
    image[3:7, 3:7] = 2.0
    # Four sides of four voxels; at one corner two differences fall into one voxel, at one into none.
    assert Variation(grid=grid).value(image) == pytest.approx(2 * (14 + np.sqrt(2)))


def test_differences_count_less_along_a_wider_spacing() -> None:
    grid = Geometry.from_spacing((3, 3, 3), (1, 2, 4))
    image = np.arange(27.0).reshape(3, 3, 3)
    assert [part[0, 0, 0] for part in differences(image, grid)] == [9.0, 1.5, 0.25]
    assert gradient_length(image, grid)[2, 2, 2] == 0


def test_a_step_makes_the_sum_of_distance_and_variation_smaller() -> None:
    grid = Geometry.from_spacing((20, 20, 1))
    given = np.random.default_rng(0).random(grid.shape) - 0.2
    variation = Variation(grid=grid)

    def cost(image: Any) -> float:
        return float(((image - given) ** 2).sum() / 2 + 0.3 * variation.value(image))

    found = [variation.step(given, 0.3, variation.start(np.float64), iterations=n) for n in (5, 50, 500)]
    assert cost(np.maximum(given, 0)) > cost(found[0]) > cost(found[1]) > cost(found[2])
    assert min(image.min() for image in found) >= 0


def test_a_step_may_go_below_zero_when_told_so() -> None:
    grid = Geometry.from_spacing((4, 4, 1))
    variation = Variation(grid=grid)
    given = np.full(grid.shape, -1.0)
    assert variation.step(given, 1.0, variation.start(np.float64), iterations=3, positive=False).max() == -1
