"""How long do the projectors in torch operations take, beside the extension's?

    pip install '.[language,imaging]'
    python benchmarks/ct_torch.py --json benchmarks/results/ct_torch.json

Images of ``--size`` squared with ``--views`` views by parallel and fan beams, and volumes of ``--cone``
cubed with as many views by a cone beam, float32. ``native`` is the extension's fastest kernel on the
processor, ``layer`` the same through autograd (forward, and the derivative, which is the transpose), ``torch
cpu`` the torch operations on the processor, ``torch cuda`` those on the GPU, on tensors that are there
already, and ``array cuda`` the same on arrays that are carried there and back. Contestants take turns, each
with one thread of the processor; of ``--rounds`` rounds the least time by the clock is kept, which is what a
machine shared with others still tells. ``error`` is the largest difference to the extension in float64, by
the largest value. Where there is no GPU, ``without`` says so.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import fastest, interleaved, machine

from sagittal.reconstruction import Projector, ScanGeometry, fitted_geometry
from sagittal.reconstruction.differentiable import Projection
from sagittal.reconstruction.torch_projectors import TorchProjector
from sagittal.volume import Geometry

Pair = tuple[Callable[[], Any], Callable[[], Any]]


def square(size: int, slices: int = 1) -> Geometry:
    corner = (-(size - 1) / 2, -(size - 1) / 2, -(slices - 1) / 2)
    return Geometry.from_spacing((size, size, slices), origin=corner)


def arrays(geometry: ScanGeometry, grid: Geometry, device: str | None) -> Pair:
    image, rays = drawn(geometry, grid)
    projector = Projector(geometry, grid, threads=1, device=device)
    return lambda: projector.forward(image), lambda: projector.back(rays)


def tensors(geometry: ScanGeometry, grid: Geometry, device: str) -> Pair:
    image, rays = (torch.as_tensor(each, device=device)[None] for each in drawn(geometry, grid))
    projector = TorchProjector(geometry, grid, device=device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def timed(function: Callable[[Any], Any], given: Any) -> Callable[[], Any]:
        def call() -> Any:
            found = function(given)
            wait()
            return found[0].cpu().numpy()

        return call

    return timed(projector.forward, image), timed(projector.back, rays)


def layered(geometry: ScanGeometry, grid: Geometry) -> Pair:
    image, rays = (torch.as_tensor(each) for each in drawn(geometry, grid))
    layer, image = Projection(geometry, grid), image.requires_grad_()
    return lambda: layer(image).detach().numpy(), lambda: torch.autograd.grad(layer(image), image, rays)[
        0
    ].numpy()


def drawn(geometry: ScanGeometry, grid: Geometry) -> tuple[Any, Any]:
    draw = np.random.default_rng(0)
    return draw.random(grid.shape, np.float32), draw.random(geometry.shape, np.float32)


def rows(geometry: ScanGeometry, grid: Geometry, rounds: int) -> list[dict[str, Any]]:
    pairs = {
        "native": arrays(geometry, grid, None),
        "layer": layered(geometry, grid),
        "torch cpu": tensors(geometry, grid, "cpu"),
    }
    if torch.cuda.is_available():
        pairs |= {"torch cuda": tensors(geometry, grid, "cuda"), "array cuda": arrays(geometry, grid, "cuda")}
    exact = Projector(geometry, grid, dtype=np.float64, threads=1)
    image, given = drawn(geometry, grid)
    right = exact.forward(image), exact.back(given)
    found = []
    times = []
    for side in (0, 1):
        calls = {name: lambda _, call=pair[side]: call() for name, pair in pairs.items()}
        times.append(fastest(interleaved(calls, rounds)))
    for name, pair in pairs.items():
        ahead, behind = times[0][name], times[1][name]
        if name == "layer":
            behind -= ahead  # the derivative alone
        errors = [
            float(np.abs(call() - true).max() / true.max()) for call, true in zip(pair, right, strict=True)
        ]
        found.append(
            {
                "geometry": geometry.kind,
                "grid": list(grid.shape),
                "shape": list(geometry.shape),
                "name": name,
                "forward_ms": ahead * 1e3,
                "back_ms": behind * 1e3,
                "pair_ms": (ahead + behind) * 1e3,
                "ratio_to_native": (ahead + behind) / (times[0]["native"] + times[1]["native"]),
                "error": max(errors),
            }
        )
    return found


def gpu_memory(geometry: ScanGeometry, grid: Geometry) -> dict[str, float]:
    """Measure the peak of a pair on the GPU, beside the volume and the sinogram."""
    image, rays = (torch.as_tensor(each, device="cuda")[None] for each in drawn(geometry, grid))
    projector = TorchProjector(geometry, grid, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    projector.forward(image), projector.back(rays)
    return {
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
        "volume_mib": image.nbytes / 2**20,
        "sinogram_mib": rays.nbytes / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--views", type=int, default=60)
    parser.add_argument("--cone", type=int, default=64, help="voxels along each axis; 0 for none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the extension, in the layer
    torch.set_num_threads(1)
    plane = square(arguments.size)
    setups = [(fitted_geometry(plane, kind, arguments.views), plane) for kind in ("parallel", "fan")]
    if arguments.cone:
        grid = square(arguments.cone, arguments.cone)
        setups.append((fitted_geometry(grid, "cone", arguments.views), grid))
    result: dict[str, Any] = {
        "rows": [row for geometry, grid in setups for row in rows(geometry, grid, arguments.rounds)],
        "rounds": arguments.rounds,
        "machine": machine(),
        "torch": torch.__version__,
        "without": {},
    }
    if torch.cuda.is_available():
        result["gpu"] = {"name": torch.cuda.get_device_name(), "memory": gpu_memory(*setups[-1])}
    else:
        result["without"]["cuda"] = "there is no GPU here, or torch was built without CUDA"
    for row in result["rows"]:
        print(f"{row['geometry']:9} {row['name']:11} {row['pair_ms']:9.1f} ms ({row['ratio_to_native']:.2f})")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
