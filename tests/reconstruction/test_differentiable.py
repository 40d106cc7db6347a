from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import GeometryError, InputError
from sagittal.reconstruction import ParallelBeam, Projector
from sagittal.reconstruction.geometry import subset
from sagittal.reconstruction.line_integrals import line_integrals
from sagittal.reconstruction.projectors import REFERENCE, projector_kernels
from sagittal.volume import Geometry
from sagittal.volume.phantoms import WATER_PER_MM
from sagittal.volume.standard_phantoms import random_regions
from scanners import SCANNERS, a_grid, a_pair

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from sagittal.reconstruction import differentiable  # noqa: E402
from sagittal.reconstruction.differentiable import Projection, back, forward  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ("parallel", "fan-flat", "fan-curved", "cone", "helix")
needs_extension = pytest.mark.skipif(
    projector_kernels()[-1] == REFERENCE, reason="the extension is not built"
)
kinds = pytest.mark.parametrize("name", KINDS)


def small(name: str) -> tuple[Any, Any]:
    """Return three views of a scanner, and a grid of few voxels."""
    grid = a_grid()
    affine = grid.affine.copy()
    affine[:, :2] *= 7
    return subset(SCANNERS[name], slice(0, 12, 4)), Geometry((6, 5, 3), affine)


def draws(geometry: Any, grid: Any, *batch: int) -> tuple[Any, Any]:
    draw = torch.Generator().manual_seed(0)
    x, y = (
        torch.rand(*batch, *shape, dtype=torch.float64, generator=draw, requires_grad=True)
        for shape in (grid.shape, geometry.shape)
    )
    return x, y


@kinds
def test_derivatives_are_those_of_finite_differences(name: str) -> None:
    geometry, grid = small(name)
    x, y = draws(geometry, grid, 2)
    assert torch.autograd.gradcheck(lambda x: forward(x, geometry, grid), x, fast_mode=True)
    assert torch.autograd.gradcheck(lambda y: back(y, geometry, grid), y, fast_mode=True)


@kinds
def test_second_derivatives_are_those_of_finite_differences(name: str) -> None:
    geometry, grid = small(name)
    x, y = draws(geometry, grid)
    for function, given in ((forward, x), (back, y)):
        squared = lambda v, function=function: function(v, geometry, grid) ** 2  # noqa: E731
        assert torch.autograd.gradgradcheck(squared, given, fast_mode=True)


@kinds
def test_the_derivative_of_one_is_the_other(name: str) -> None:
    geometry, grid = small(name)
    x, y = draws(geometry, grid)
    (slope,) = torch.autograd.grad(forward(x, geometry, grid), x, y)
    assert torch.equal(slope, back(y, geometry, grid))
    (slope,) = torch.autograd.grad(back(y, geometry, grid), y, x)
    assert torch.equal(slope, forward(x, geometry, grid))


@needs_extension
@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_a_cpu_the_projector_computes(name: str, dtype: Any) -> None:
    geometry, grid = SCANNERS[name], a_grid()
    x, y = (torch.as_tensor(part, dtype=dtype) for part in a_pair(geometry, grid))
    projector = Projector(geometry, grid, dtype=x.numpy().dtype)
    assert np.array_equal(forward(x, geometry, grid).numpy(), projector.forward(x.numpy()))
    assert np.array_equal(back(y, geometry, grid).numpy(), projector.back(y.numpy()))


@pytest.fixture
def without_extension(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As where the package was built without a compiler."""
    monkeypatch.setattr(differentiable, "projector_kernels", lambda: (REFERENCE,))
    differentiable._projector.cache_clear()
    yield
    differentiable._projector.cache_clear()


@pytest.mark.usefixtures("without_extension")
@kinds
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
        ),
    ],
)
def test_without_the_extension_or_on_a_device_torch_computes(device: str, name: str) -> None:
    geometry, grid = small(name)
    x, y = (each.detach().to(device).requires_grad_() for each in draws(geometry, grid, 2))
    (slope,) = torch.autograd.grad(forward(x, geometry, grid), x, y)
    assert torch.equal(slope, back(y, geometry, grid))
    projector = Projector(geometry, grid, dtype=np.float64, kernel=REFERENCE)
    for ahead, behind, image, rays in zip(forward(x, geometry, grid), slope, x, y, strict=True):
        expected = projector.forward(image.detach().cpu().numpy())
        assert ahead.detach().cpu().numpy() == pytest.approx(expected, abs=1e-12 * expected.max())
        expected = projector.back(rays.detach().cpu().numpy())
        assert behind.cpu().numpy() == pytest.approx(expected, abs=1e-12 * expected.max())


@needs_extension
def test_a_tensor_is_read_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry, grid = SCANNERS["fan-flat"], a_grid()
    seen = []
    original = Projector.forward

    def kept(self: Projector, image: Any) -> Any:
        seen.append(image)
        return original(self, image)

    monkeypatch.setattr(Projector, "forward", kept)
    images = torch.rand(2, *grid.shape)
    forward(images, geometry, grid)
    assert [np.shares_memory(each, images[n].numpy()) for n, each in enumerate(seen)] == [True, True]


@pytest.mark.parametrize("batch", [(), (0,), (1,), (2,), (2, 3)])
def test_batches_of_any_rank_come_back_as_they_went(batch: tuple[int, ...]) -> None:
    geometry, grid = small("fan-flat")
    x, y = draws(geometry, grid, *batch)
    ahead, behind = forward(x, geometry, grid), back(y, geometry, grid)
    assert (ahead.shape, behind.shape) == ((*batch, *geometry.shape), (*batch, *grid.shape))
    for each, given in zip(ahead.reshape(-1, *geometry.shape), x.reshape(-1, *grid.shape), strict=True):
        assert torch.equal(each, forward(given, geometry, grid))


@kinds
def test_torch_finds_nothing_wrong_with_the_operators(name: str) -> None:
    geometry, grid = small(name)
    layer = Projection(geometry, grid)
    x, y = draws(geometry, grid, 2)
    torch.library.opcheck(torch.ops.sagittal.project.default, (x, layer._setup))
    torch.library.opcheck(torch.ops.sagittal.spread.default, (y, layer._setup))


def test_a_compiled_layer_is_one_graph_and_computes_the_same() -> None:
    geometry, grid = small("fan-flat")
    layer = Projection(geometry, grid)
    x, _ = draws(geometry, grid, 2)

    def loss(x: Any) -> Any:
        return layer.back(layer(x).sqrt()).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    found, expected = (torch.autograd.grad(function(x), x)[0] for function in (compiled, loss))
    torch.testing.assert_close(found, expected)


def test_compiled_functions_compute_the_same() -> None:
    geometry, grid = small("cone")
    x, _ = draws(geometry, grid)

    def loss(x: Any) -> Any:
        return back(2 * forward(x, geometry, grid), geometry, grid).square().sum()

    compiled = torch.compile(loss, backend="aot_eager")
    found, expected = (torch.autograd.grad(function(x), x)[0] for function in (compiled, loss))
    torch.testing.assert_close(found, expected)


def test_an_exported_layer_computes_the_same() -> None:
    geometry, grid = small("cone")
    x = draws(geometry, grid, 2)[0].detach()
    layer = Projection(geometry, grid)
    exported = torch.export.export(layer, (x,))
    assert torch.equal(exported.module()(x + 1), layer(x + 1))


def test_vmap_over_any_axis_is_a_batch() -> None:
    geometry, grid = small("helix")
    x, _ = draws(geometry, grid, 3)
    layer = Projection(geometry, grid)
    found = torch.func.vmap(layer, in_dims=2, out_dims=1)(x.movedim(0, 2))
    assert torch.equal(found, layer(x).movedim(0, 1))


def test_autocast_computes_in_float32() -> None:
    geometry, grid = small("parallel")
    image = draws(geometry, grid)[0].detach()
    with torch.autocast("cpu", torch.bfloat16):
        found = forward(image.bfloat16(), geometry, grid)
    assert found.dtype == torch.float32


def test_half_precision_is_refused() -> None:
    geometry, grid = small("parallel")
    with pytest.raises(InputError, match=r"two dtypes; got torch.float16; expected float32, float64"):
        forward(torch.zeros(grid.shape, dtype=torch.float16), geometry, grid)


def test_another_shape_is_refused() -> None:
    geometry, grid = small("parallel")
    with pytest.raises(GeometryError, match=r"got \(2, 6, 5, 4\); expected \(\.\.\., 6, 5, 3\)"):
        forward(torch.zeros(2, 6, 5, 4), geometry, grid)


def test_a_grid_that_does_not_suit_the_scanner_is_refused_when_the_layer_is_made() -> None:
    with pytest.raises(GeometryError, match="got 3 and 4"):
        Projection(SCANNERS["fan-flat"], a_grid(slices=4))


def test_a_window_learned_on_some_phantoms_is_better_than_the_ramp_and_hann_on_others() -> None:
    side, bins = 48, 72
    grid = Geometry.from_spacing((side, side, 1), (4, 4, 1), (-2 * (side - 1), -2 * (side - 1), 0))
    geometry = ParallelBeam(angles=tuple(np.arange(40) * np.pi / 40), bins=bins, bin_width=4)
    phantoms = [random_regions(seed) for seed in range(8)]
    sinograms = torch.as_tensor(np.stack([line_integrals(p, geometry) for p in phantoms]))
    sinograms += 0.1 * torch.randn(sinograms.shape, generator=torch.Generator().manual_seed(0))
    hu = torch.as_tensor(np.stack([p.rasterise(grid).array for p in phantoms])).double()
    images = (hu / 1000 + 1).clamp(min=0) * WATER_PER_MM
    ramp = torch.arange(bins + 1, dtype=torch.float64) / (2 * bins * 4) * np.pi / 40 / 4
    ramp[0] = ramp[1] / 4  # the mean of a ramp that was cut off in space

    def loss(window: Any, part: slice) -> Any:
        spectrum = torch.fft.rfft(sinograms[part], 2 * bins) * ramp * window
        filtered = torch.fft.irfft(spectrum)[..., :bins]
        return (back(filtered, geometry, grid) - images[part]).square().mean()

    window = torch.ones_like(ramp, requires_grad=True)
    optimiser = torch.optim.Adam([window], lr=0.05)
    learn, judge = slice(0, 6), slice(6, 8)
    for _ in range(60):
        optimiser.zero_grad()
        loss(window, learn).backward()
        optimiser.step()
    hann = (1 + torch.cos(torch.linspace(0, np.pi, bins + 1))) / 2
    with torch.no_grad():
        learned, plain, smooth = (float(loss(each, judge)) for each in (window, torch.ones_like(ramp), hann))
    assert learned < 0.5 * plain
    assert learned < smooth


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_room_does_not_load_torch() -> None:
    assert run_python("import sys, sagittal.reconstruction; print('torch' in sys.modules)") == "False\n"


def test_without_torch_the_error_says_what_to_install() -> None:
    code = """
import sys
sys.modules["torch"] = None
from sagittal.core.errors import MissingDependencyError
try:
    import sagittal.reconstruction.differentiable
except MissingDependencyError as error:
    print(error)
"""
    assert "torch is not installed; expected pip install 'sagittal[language]'" in run_python(code)
