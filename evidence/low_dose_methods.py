"""The methods of evidence/low_dose_ct.py and the settings that each may choose from: eight for each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import low_dose_rivals

from sagittal.reconstruction.methods import reconstruct
from sagittal.reconstruction.scan import Scan
from sagittal.reconstruction.total_variation import Solver
from sagittal.volume import Geometry, Volume

__all__ = ["BUDGET", "METHODS", "OURS", "available", "run"]

Options = dict[str, Any]


def crossed(**values: Sequence[Any]) -> list[Options]:
    return [dict(zip(values, each, strict=True)) for each in product(*values.values())]


ITERATIONS = (14, 24, 40, 65, 110, 180, 300, 500)
FEW = (3, 5, 7, 10, 14, 19, 26, 40)
ROUGHNESS = (1.5, 3.0, 6.0, 12.0, 24.0, 48.0, 96.0, 200.0)
ROUGH = (4.0, 16.0, 64.0, 160.0)
FINE = {"subdivision": 2, "model_error": 0.05}
PAPER = {"subdivision": 1, "model_error": 0.0, "edge_price": 0.0}

METHODS: Mapping[str, list[Options]] = {
    "fbp": crossed(window=["ram-lak", "shepp-logan", "cosine", "hann"], cutoff=[1.0, 0.6]),
    "sirt": crossed(iterations=ITERATIONS),
    "cgls": crossed(iterations=FEW),
    "tv": crossed(roughness=ROUGHNESS),
    "edge-preserving-tv": crossed(roughness=ROUGHNESS, delta=[60.0]),
    "edge-preserving-tv, edges in bins": crossed(roughness=ROUGHNESS, delta=[60.0]),
    "directional-tv": crossed(roughness=ROUGH, delta=[60.0, 120.0]),
    "tv, finer voxels": crossed(roughness=ROUGHNESS),
    "edge-preserving-tv, the paper's": crossed(roughness=ROUGH, delta=[60.0, 120.0]),
    "astra-fbp": crossed(FilterType=["ram-lak", "shepp-logan", "cosine", "hann"], FilterD=[1.0, 0.6]),
    "astra-sirt": crossed(iterations=ITERATIONS),
    "astra-cgls": crossed(iterations=FEW),
    "skimage-iradon": crossed(
        filter_name=["ramp", "shepp-logan", "cosine", "hann"], interpolation=["linear", "cubic"]
    ),
    "skimage-iradon-tv": crossed(filter_name=["ramp", "hann"], weight=[0.01, 0.03, 0.08, 0.2]),
    "svmbir": crossed(sharpness=[-1.0, -0.3, 0.3, 1.0], snr_db=[25.0, 30.0]),
}
"""Settings to choose from, by method: the same budget for all."""

BUDGET = 8

OURS: Mapping[str, tuple[str, Options]] = {
    "fbp": ("fbp", {}),
    "sirt": ("sirt", {}),
    "cgls": ("cgls", {}),
    "tv": ("tv", {}),
    "edge-preserving-tv": ("edge-preserving-tv", {}),
    "edge-preserving-tv, edges in bins": ("edge-preserving-tv", {"edge_gradient": True}),
    "directional-tv": ("directional-tv", {}),
    "tv, finer voxels": ("tv", FINE),
    "edge-preserving-tv, the paper's": ("edge-preserving-tv", PAPER),
}
"""Our methods' names in the package, and what is not chosen but belongs to them."""

assert all(len(settings) == BUDGET for settings in METHODS.values())


def available(without: Mapping[str, str]) -> list[str]:
    return [name for name in METHODS if name in OURS or name.partition("-")[0] not in without]


def run(name: str, scan: Scan, grid: Geometry, threads: int, options: Options) -> tuple[Volume, float]:
    """Reconstruct, and return the image with the seconds that processors worked on it."""
    start = time.process_time()
    if name in OURS:
        method, fixed = OURS[name]
        settings = fixed | options
        if "tv" in method:
            settings["solver"] = Solver(threads=threads)
        image = reconstruct(scan, grid, method, **settings).volume
    else:
        image = low_dose_rivals.rival(name, scan, grid, threads, options)
    return image, time.process_time() - start
