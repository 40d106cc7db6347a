"""How long does one projection and backprojection take, beside ASTRA's and scikit-image's?

    pip install '.[imaging]' scikit-image astra-toolbox
    python benchmarks/ct_projectors.py --json ct_projectors.json

Images of ``--size`` squared, ``--views`` views, detectors that see all of the image, float32. Contestants
take turns in one process. ASTRA's projectors of a CPU and scikit-image's use one thread, ours one and
then two; times are of the processor (all threads) with one thread, of the clock with two. The median and
the least of each is kept: the least is what a machine shared with others still tells. Matched pairs are
compared with ASTRA's fastest, of its ``line`` and ``linear`` kinds (``strip`` is slower); scikit-image's
are ``radon`` and ``iradon`` without a filter.

``--cone N`` also measures a pair of an N-cubed cone beam of 90 views, and says how many sums of products
it takes and how many of them a second that makes. Its floor is the time that these alone would take at the
rate of numpy's matrix product (1024 squared, float32, in the same run): four products for each voxel and
view, forward and back, nothing for finding out where a ray runs, for weights or for memory.

ASTRA is licensed under the GPL and is not imported by the package. Without it or scikit-image their
columns are null, and ``without`` says why.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.reconstruction.geometry import ConeBeam, FanBeam, ParallelBeam, ScanGeometry
from sagittal.reconstruction.projectors import REFERENCE, Projector, projector_kernels
from sagittal.reconstruction.simulate import fitted_geometry
from sagittal.volume import Geometry

Call = Callable[[], Any]
FORMAT = argparse.RawDescriptionHelpFormatter


def square(size: int, slices: int = 1) -> Geometry:
    corner = (-(size - 1) / 2, -(size - 1) / 2, -(slices - 1) / 2)
    return Geometry.from_spacing((size, size, slices), origin=corner)


def ours(geometry: ScanGeometry, grid: Geometry, kernel: str, threads: int) -> tuple[Call, Call]:
    draw = np.random.default_rng(0)
    image = draw.random(grid.shape, np.float32)
    rays = draw.random(geometry.shape, np.float32)
    projector = Projector(geometry, grid, kernel=kernel, threads=threads)
    projector.forward(image)  # lines are laid out once
    return lambda: projector.forward(image), lambda: projector.back(rays)


def astra_pairs(geometry: ScanGeometry, size: int) -> dict[str, tuple[Call, Call]]:
    import astra

    angles = np.asarray(geometry.angles)
    bins = geometry.bins
    draw = np.random.default_rng(0)
    image, rays = draw.random((size, size), np.float32), draw.random((len(angles), bins), np.float32)
    volume = astra.create_vol_geom(size, size)
    if isinstance(geometry, FanBeam):
        rest = geometry.detector_distance - geometry.source_distance
        scanner = astra.create_proj_geom(
            "fanflat", geometry.bin_width, bins, angles, geometry.source_distance, rest
        )
        kinds = {"astra_line": "line_fanflat"}
    else:
        scanner = astra.create_proj_geom("parallel", geometry.bin_width, bins, angles)
        kinds = {"astra_line": "line", "astra_linear": "linear"}
    found = {}
    for name, kind in kinds.items():
        number = astra.create_projector(kind, scanner, volume)

        def ahead(number: int = number) -> None:
            at, _ = astra.create_sino(image, number)
            astra.data2d.delete(at)

        def behind(number: int = number) -> None:
            at, _ = astra.create_backprojection(rays, number)
            astra.data2d.delete(at)

        found[name] = (ahead, behind)
    return found


def skimage_pair(geometry: ScanGeometry, size: int) -> tuple[Call, Call]:
    from skimage.transform import iradon, radon

    degrees = np.rad2deg(geometry.angles)
    i, j = np.mgrid[:size, :size] - (size - 1) / 2
    image = np.where(i**2 + j**2 < (size / 2 - 1) ** 2, np.random.default_rng(0).random((size, size)), 0)
    image = image.astype(np.float32)
    rays = radon(image, theta=degrees, circle=True).astype(np.float32)
    return (
        lambda: radon(image, theta=degrees, circle=True),
        lambda: iradon(rays, theta=degrees, filter_name=None, circle=True),
    )


def measured(pairs: dict[str, tuple[Call, Call]], rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in pairs}
    for number in range(rounds + 1):
        for name, calls in pairs.items():
            for call, kept in zip(calls, times[name], strict=True):
                start = clock()
                call()
                if number:
                    kept.append(clock() - start)
    return {
        name: {
            "forward_ms": min(ahead) * 1e3,
            "back_ms": min(behind) * 1e3,
            "pair_ms": (min(ahead) + min(behind)) * 1e3,
            "median_pair_ms": statistics.median([a + b for a, b in zip(ahead, behind, strict=True)]) * 1e3,
        }
        for name, (ahead, behind) in times.items()
    }


def rows(arguments: argparse.Namespace, without: dict[str, str]) -> list[dict[str, Any]]:
    grid, found = square(arguments.size), []
    kernels = [kernel for kernel in projector_kernels() if kernel != REFERENCE]
    for kind in ("parallel", "fan"):
        geometry = fitted_geometry(grid, kind, arguments.views)
        assert isinstance(geometry, ParallelBeam | FanBeam)
        rivals: dict[str, tuple[Call, Call]] = {}
        try:
            rivals |= astra_pairs(geometry, arguments.size)
        except Exception as error:  # not installed, or without its libraries: whatever it raises
            without["astra"] = f"{type(error).__name__}: {error}".splitlines()[0]
        try:
            if kind == "parallel":
                rivals["skimage"] = skimage_pair(geometry, arguments.size)
        except Exception as error:
            without["skimage"] = f"{type(error).__name__}: {error}".splitlines()[0]
        for threads in (1, 2):
            pairs = {kernel: ours(geometry, grid, kernel, threads) for kernel in kernels} | rivals
            clock = time.process_time if threads == 1 else time.perf_counter
            times = measured(pairs, arguments.rounds, clock)
            astra = [each["pair_ms"] for name, each in times.items() if name.startswith("astra")]
            other = times.get("skimage")
            for name, each in times.items():
                found.append(
                    {
                        "geometry": kind,
                        "shape": list(geometry.shape),
                        "size": arguments.size,
                        "name": name,
                        "threads": threads if name in kernels else 1,
                        "beside_threads": threads,
                        "clock": "processor" if threads == 1 else "wall",
                        **each,
                        "ratio_to_astra": each["pair_ms"] / min(astra) if astra else None,
                        "ratio_to_skimage": each["pair_ms"] / other["pair_ms"] if other else None,
                    }
                )
    return found


def cone(size: int, rounds: int) -> dict[str, Any]:
    """Measure a cone-beam pair, and how many sums of products a second it makes."""
    grid = square(size, size)
    geometry = fitted_geometry(grid, "cone", 90)
    assert isinstance(geometry, ConeBeam)
    kernel = projector_kernels()[-1]
    times = measured({kernel: ours(geometry, grid, kernel, 1)}, rounds, time.process_time)[kernel]
    # For each view each voxel is met by about two bins and two rows: separable, two sums and then two.
    products = 90 * size**3 * 4
    left, right = np.random.default_rng(0).random((2, 1024, 1024), np.float32)
    product = measured({"": (lambda: left @ right, lambda: None)}, 4 * rounds, time.process_time)[""]
    rate = 1024**3 / product["forward_ms"] * 1e3  # products a second, by all the threads' time
    return {
        "size": size,
        "shape": list(geometry.shape),
        "kernel": kernel,
        "threads": 1,
        **times,
        "products": products,
        "gproducts_per_s": 2 * products / times["pair_ms"] / 1e6,
        "matrix_gproducts_per_s": rate / 1e9,
        "floor_ms": 2 * products / rate * 1e3,
        "times_the_floor": times["pair_ms"] * rate / (2 * products) / 1e3,
    }


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if "model name" in line
    ]
    return {
        "processor": names[0] if names else platform.machine(),
        "processors": os.cpu_count(),
        "numpy": np.__version__,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--views", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cone", type=int, default=0, help="voxels along each axis; 0 for none")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    without: dict[str, str] = {}
    found: dict[str, Any] = {"rows": rows(arguments, without)}
    if arguments.cone:
        found["cone"] = cone(arguments.cone, max(1, arguments.rounds // 4))
    found |= {"without": without, "rounds": arguments.rounds, "machine": machine()}
    for row in found["rows"]:
        ratios = [row["ratio_to_astra"], row["ratio_to_skimage"]]
        shown = ", ".join("-" if ratio is None else f"{ratio:.3f}" for ratio in ratios)
        print(f"{row['geometry']:9} {row['name']:13} {row['threads']}: {row['pair_ms']:8.1f} ms ({shown})")
    if "cone" in found:
        print("cone", json.dumps(found["cone"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
