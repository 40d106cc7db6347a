"""How long do whole reconstructions take, beside ASTRA's and scikit-image's?

    pip install '.[imaging]' scikit-image astra-toolbox
    python benchmarks/ct_methods.py --json ct_methods.json

One slice of ``--size`` squared from ``--views`` parallel views of a phantom of smooth regions at 1e5
photons a ray. Total variation, plain and edge-preserving, runs to its own stopping rule, as it is asked for
without options (the edge-preserving one then explains the scan on voxels of half the side) and with
``subdivision=1``; beside it 100 iterations of ASTRA's SIRT on the processor, by the faster of its projectors.
Filtered backprojection stands beside ASTRA's and scikit-image's, with and without its variance.
Contestants take turns in one process; ASTRA and scikit-image use one thread, ours one and then two. Times
are of the processor with one thread, of the clock with two; the least of the rounds is kept, and the median.

ASTRA is licensed under the GPL and is not imported by the package. Without it or scikit-image their
rows are missing, and ``without`` says why.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sagittal.reconstruction.analytic import fbp
from sagittal.reconstruction.line_integrals import line_integrals
from sagittal.reconstruction.scan import Scan
from sagittal.reconstruction.simulate import add_noise, fitted_geometry
from sagittal.reconstruction.total_variation import Solver, edge_preserving_tv, tv
from sagittal.volume import Geometry
from sagittal.volume.standard_phantoms import smooth_regions

Call = Callable[[], Any]
_SIDE = 250.0


def a_scan(size: int, views: int) -> tuple[Scan, Geometry]:
    step = _SIDE / size
    corner = (step - _SIDE) / 2
    grid = Geometry.from_spacing((size, size, 1), (step, step, 4), (corner, corner, 0))
    geometry = fitted_geometry(grid, "parallel", views)
    return add_noise(line_integrals(smooth_regions(), geometry), geometry, photons=1e5), grid


def ours(scan: Scan, grid: Geometry, threads: int) -> dict[str, tuple[str, Call]]:
    solver = Solver(threads=threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # what is asked at each call
    return {
        "edge-preserving-tv": ("iterative", lambda: edge_preserving_tv(scan, grid, solver=solver)),
        "edge-preserving-tv, subdivision 1": (
            "iterative",
            lambda: edge_preserving_tv(scan, grid, subdivision=1, solver=solver),
        ),
        "tv": ("iterative", lambda: tv(scan, grid, solver=solver)),
        "fbp": ("analytic", lambda: fbp(scan, grid)),
        "fbp with variance": ("analytic", lambda: fbp(scan, grid, variance=True)),
    }


def astra_calls(scan: Scan, grid: Geometry) -> dict[str, tuple[str, Call]]:
    import astra

    size, angles = grid.shape[0], np.asarray(scan.geometry.angles)
    bins = scan.geometry.bins
    rays = np.ascontiguousarray(scan.sinogram[:, 0], np.float32)
    volume = astra.create_vol_geom(size, size)
    scanner = astra.create_proj_geom("parallel", scan.geometry.bin_width / grid.spacing[0], bins, angles)

    def run(name: str, kind: str, iterations: int) -> Call:
        number = astra.create_projector(kind, scanner, volume)

        def call() -> None:
            data = astra.data2d.create("-sino", scanner, rays)
            image = astra.data2d.create("-vol", volume)
            settings = astra.astra_dict(name)
            settings |= {"ProjectorId": number, "ProjectionDataId": data, "ReconstructionDataId": image}
            algorithm = astra.algorithm.create(settings)
            astra.algorithm.run(algorithm, iterations)
            astra.algorithm.delete(algorithm)
            astra.data2d.delete([data, image])

        return call

    return {
        "astra sirt, line, 100": ("iterative", run("SIRT", "line", 100)),
        "astra sirt, linear, 100": ("iterative", run("SIRT", "linear", 100)),
        "astra fbp, line": ("analytic", run("FBP", "line", 1)),
        "astra fbp, linear": ("analytic", run("FBP", "linear", 1)),
    }


def skimage_calls(scan: Scan, grid: Geometry) -> dict[str, tuple[str, Call]]:
    from skimage.transform import iradon

    degrees = np.rad2deg(scan.geometry.angles)
    rays = np.ascontiguousarray(scan.sinogram[:, 0].T, np.float32)
    size = grid.shape[0]
    return {
        "skimage iradon": (
            "analytic",
            lambda: iradon(rays, theta=degrees, filter_name="hann", output_size=size, circle=False),
        )
    }


def measured(
    calls: dict[str, tuple[str, Call]], rounds: int, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    """Take turns; the analytic ones, which are quick, five times a round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    results: dict[str, Any] = {}
    for _ in range(rounds):
        for name, (kind, call) in calls.items():
            for _ in range(5 if kind == "analytic" else 1):
                start = clock()
                results[name] = call()
                times[name].append(clock() - start)
    found = []
    for name, (kind, _) in calls.items():
        row = {"name": name, "kind": kind, "ms": min(times[name]) * 1e3}
        row["median_ms"] = statistics.median(times[name]) * 1e3
        if hasattr(results[name], "energies"):
            row |= {"iterations": len(results[name].energies), "stopped": results[name].stopped}
        found.append(row)
    for kind in ("iterative", "analytic"):
        rivals = [row["ms"] for row in found if row["kind"] == kind and row["name"].startswith("astra")]
        other = [row["ms"] for row in found if row["kind"] == kind and row["name"].startswith("skimage")]
        for row in found:
            if row["kind"] == kind:
                row["ratio_to_astra"] = row["ms"] / min(rivals) if rivals else None
                row["ratio_to_skimage"] = row["ms"] / min(other) if other else None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--views", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    scan, grid = a_scan(arguments.size, arguments.views)
    without: dict[str, str] = {}
    rivals: dict[str, tuple[str, Call]] = {}
    for name, calls in (("astra", astra_calls), ("skimage", skimage_calls)):
        try:
            rivals |= calls(scan, grid)
        except Exception as error:  # not installed, or without its libraries: whatever it raises
            without[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    rows = []
    for threads in (1, 2):
        clock = time.process_time if threads == 1 else time.perf_counter
        for row in measured(ours(scan, grid, threads) | rivals, arguments.rounds, clock):
            rows.append({"beside_threads": threads, "clock": "processor" if threads == 1 else "wall", **row})
            shown = ", ".join(
                "-" if rows[-1][f"ratio_to_{rival}"] is None else f"{rows[-1][f'ratio_to_{rival}']:.3f}"
                for rival in ("astra", "skimage")
            )
            print(f"{threads}: {row['name']:34} {row['ms']:9.1f} ms ({shown})", flush=True)
    found = {"size": arguments.size, "views": arguments.views, "rounds": arguments.rounds}
    if arguments.json:
        arguments.json.write_text(json.dumps({**found, "rows": rows, "without": without}, indent=1) + "\n")


if __name__ == "__main__":
    main()
