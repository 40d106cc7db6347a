"""How much memory does a reconstruction by total variation take, beside its scan?

    python benchmarks/ct_memory.py --json ct_memory.json

Each reconstruction has a process of its own, which first makes a small one, so that what the interpreter
and its libraries need is there, and then holds the scan. Counted is by how much resident memory grows from
there to its peak (``VmHWM``, so Linux alone), in copies of the volume that is asked for, as float32:
everything, also the weights of rays, residuals and the result, but not the scan's own sinogram. How large
that is beside the volume is told with it, because what is counted holds one and a half of its size, or two
and a half where edges are doubted. Every thread holds a few planes (``OMP_NUM_THREADS``). The C library keeps
freed blocks below 32 MiB for itself, which would hide in small cases what large ones hold: it is told not to.
With ``finer`` each voxel in a plane is four in the iterations, as edge-preserving total variation has them
in two dimensions unless something else is asked.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_CASES: tuple[dict[str, Any], ...] = (
    {"kind": "fan", "size": 2048, "slices": 1, "views": 60},
    {"kind": "fan", "size": 1024, "slices": 1, "views": 60, "finer": True},
    {"kind": "cone", "size": 128, "slices": 128, "views": 60},
    {"kind": "cone", "size": 192, "slices": 192, "views": 30},
)
_RETURNED = {"MALLOC_MMAP_THRESHOLD_": str(2**18), "MALLOC_TRIM_THRESHOLD_": str(2**18)}
_METHODS = ("tv", "edge-preserving-tv", "directional-tv")

_PEAK = """
import json, sys
import numpy as np
from sagittal.core.native import thread_count
from sagittal.reconstruction import Scan, fitted_geometry
from sagittal.reconstruction.methods import reconstruct
from sagittal.reconstruction.total_variation import Solver
from sagittal.volume import Geometry
case = json.loads(sys.argv[1])
def a_scan(size, slices, views):
    corner = (-(size - 1) / 2, -(size - 1) / 2, -(slices - 1) / 2)
    grid = Geometry.from_spacing((size, size, slices), origin=corner)
    geometry = fitted_geometry(grid, case["kind"], views)
    rays = np.random.default_rng(0).random(geometry.shape, np.float32)
    return Scan(rays, geometry, 1e5), grid
def kept(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
def run(scan, grid, solver):
    options = {} if case["method"] == "directional-tv" else {"subdivision": 1 + case.get("finer", False)}
    return reconstruct(scan, grid, case["method"], solver=solver, **options)
run(*a_scan(32, 32 if case["kind"] == "cone" else 1, 4), Solver(iterations=3))
scan, grid = a_scan(case["size"], case["slices"], case["views"])
before = kept("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak begins again
run(scan, grid, Solver(iterations=3, coarse_iterations=2, passes=2))
print(json.dumps({"threads": thread_count(), "before_mib": before, "peak_mib": kept("VmHWM"),
    "volume_mib": 4 * np.prod(grid.shape) / 2**20, "sinogram_mib": scan.sinogram.nbytes / 2**20}))
"""


def measured(case: dict[str, Any]) -> dict[str, Any]:
    """Measure one reconstruction in a process of its own."""
    command = [sys.executable, "-c", _PEAK, json.dumps(case)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **_RETURNED}
    )
    found: dict[str, Any] = {**case, **json.loads(done.stdout.splitlines()[-1])}
    found["copies_of_volume"] = (found["peak_mib"] - found["before_mib"]) / found["volume_mib"]
    found["sinogram_in_volumes"] = found["sinogram_mib"] / found["volume_mib"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--largest", type=int, default=2**24, help="voxels of the largest case")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for case in _CASES:
        if case["size"] ** 2 * case["slices"] > arguments.largest:
            continue
        for method in _METHODS:
            if case.get("finer") and method == "directional-tv":
                continue
            rows.append(measured({**case, "method": method}))
            row = rows[-1]
            shape = "x".join(str(row[name]) for name in ("size", "size", "slices"))
            print(
                f"{row['kind']:4} {shape:11} {method:19} {row['copies_of_volume']:6.2f}; "
                f"sinogram {row['sinogram_in_volumes']:.2f}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
