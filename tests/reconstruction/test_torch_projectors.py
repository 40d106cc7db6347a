from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import GeometryError, InputError
from sagittal.reconstruction import Scan, Solver, reconstruct
from sagittal.reconstruction.projectors import REFERENCE, Projector
from sagittal.volume.phantoms import WATER_PER_MM
from scanners import SCANNERS, a_grid, a_pair

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from sagittal.reconstruction.torch_projectors import TorchProjector  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
    ),
]
scanner = pytest.mark.parametrize("name", SCANNERS)
device = pytest.mark.parametrize("device", DEVICES)


def tensors(name: str, dtype: Any, device: str, grid: Any) -> tuple[Any, Any]:
    x, y = (torch.as_tensor(part, dtype=dtype, device=device)[None] for part in a_pair(SCANNERS[name], grid))
    return x, y


@device
@scanner
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_torch_computes_what_the_matrix_says(device: str, name: str, turned: bool, down: bool) -> None:
    grid = a_grid(turned=turned, down=down)
    x, y = tensors(name, torch.float64, device, grid)
    reference = Projector(SCANNERS[name], grid, dtype=np.float64, kernel=REFERENCE)
    ax, by = reference.forward(x[0].cpu().numpy()), reference.back(y[0].cpu().numpy())
    for dtype, tolerance in ((torch.float32, 5e-6), (torch.float64, 1e-12)):
        projector = TorchProjector(SCANNERS[name], grid, dtype=dtype, device=device)
        ahead, behind = projector.forward(x.to(dtype))[0], projector.back(y.to(dtype))[0]
        assert np.abs(ahead.cpu().numpy() - ax).max() <= tolerance * ax.max()
        assert np.abs(behind.cpu().numpy() - by).max() <= tolerance * by.max()


@device
@scanner
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_back_is_the_transpose_of_forward(device: str, name: str, dtype: Any, tolerance: float) -> None:
    x, y = tensors(name, dtype, device, a_grid())
    projector = TorchProjector(SCANNERS[name], a_grid(), dtype=dtype, device=device)
    ax, by = projector.forward(x).double(), projector.back(y).double()
    gap = abs(float((ax * y).sum() - (x * by).sum()))
    assert gap / float(ax.norm() * y.double().norm()) < tolerance


@scanner
@pytest.mark.parametrize("block", [1, 5000])
def test_blocks_of_any_size_sum_to_the_same(name: str, block: int) -> None:
    x, y = tensors(name, torch.float64, "cpu", a_grid())
    whole = TorchProjector(SCANNERS[name], a_grid(), dtype=torch.float64, block=1 << 40)
    parts = TorchProjector(SCANNERS[name], a_grid(), dtype=torch.float64, block=block)
    torch.testing.assert_close(parts.forward(x), whole.forward(x), rtol=0, atol=1e-11)
    torch.testing.assert_close(parts.back(y), whole.back(y), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["fan-flat", "helix"])
def test_images_of_a_batch_are_projected_each_by_itself(name: str) -> None:
    draw = torch.Generator().manual_seed(0)
    projector = TorchProjector(SCANNERS[name], a_grid(), dtype=torch.float64)
    images = torch.rand(3, *a_grid().shape, dtype=torch.float64, generator=draw)
    sinograms = torch.rand(3, *SCANNERS[name].shape, dtype=torch.float64, generator=draw)
    for function, given in ((projector.forward, images), (projector.back, sinograms)):
        alone = torch.cat([function(each[None]) for each in given])
        torch.testing.assert_close(function(given), alone, rtol=0, atol=1e-11)
    assert projector.forward(images[:0]).shape == (0, *SCANNERS[name].shape)


@device
@scanner
def test_two_runs_give_the_same_bits(device: str, name: str) -> None:
    x, y = tensors(name, torch.float32, device, a_grid())
    projector = TorchProjector(SCANNERS[name], a_grid(), device=device)
    assert torch.equal(projector.forward(x), projector.forward(x))
    assert torch.equal(projector.back(y), projector.back(y))


def test_other_slices_than_were_scanned_are_refused() -> None:
    with pytest.raises(GeometryError, match="got 3 and 4"):
        TorchProjector(SCANNERS["fan-flat"], a_grid(slices=4))


def test_integers_are_refused() -> None:
    with pytest.raises(InputError, match=r"two dtypes; got .*int32.*; expected float32, float64"):
        TorchProjector(SCANNERS["fan-flat"], a_grid(), dtype=torch.int32)


def test_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(InputError, match="device: torch has no such device here; got abacus"):
        TorchProjector(SCANNERS["fan-flat"], a_grid(), device="abacus")


@device
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_projector_computes_on_a_device_what_it_does_on_the_processor(device: str, dtype: Any) -> None:
    geometry, grid = SCANNERS["helix"], a_grid()
    x, y = a_pair(geometry, grid)
    here, there = (
        Projector(geometry, grid, dtype=dtype),
        Projector(geometry, grid, dtype=dtype, device=device),
    )
    for found, expected in ((there.forward(x), here.forward(x)), (there.back(y), here.back(y))):
        assert found.dtype == dtype
        assert np.abs(found - expected).max() <= (5e-6 if dtype == np.float32 else 1e-12) * expected.max()


def test_a_kernel_of_the_processor_is_refused_on_a_device() -> None:
    with pytest.raises(InputError, match="does not run here; got reference; expected none beside a device"):
        Projector(SCANNERS["fan-flat"], a_grid(), kernel=REFERENCE, device="cpu")


@device
@pytest.mark.parametrize("method", ["sirt", "cgls", "ordered-subsets", "tv"])
def test_iterative_methods_reconstruct_on_a_device_as_on_the_processor(device: str, method: str) -> None:
    geometry, grid = SCANNERS["fan-flat"], a_grid()
    scan = Scan(Projector(geometry, grid).forward(a_pair(geometry, grid)[0] * WATER_PER_MM), geometry, 1e4)
    images = []
    for place in (None, device):
        if method == "tv":
            options: dict[str, Any] = {"solver": Solver(iterations=8, device=place)}
        else:
            options = {"iterations": 4, "device": place}
        images.append(reconstruct(scan, grid, method, **options).volume.array)
    assert np.abs(images[0] - images[1]).max() < 0.5  # HU, of a thousand
