"""Every way to reconstruct, by its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.reconstruction.analytic import fbp, fdk
from sagittal.reconstruction.geometry import ConeBeam
from sagittal.reconstruction.iterative import Reconstruction, Report, cgls, ordered_subsets, silent, sirt
from sagittal.reconstruction.scan import Scan
from sagittal.reconstruction.total_variation import Solver, directional_tv, edge_preserving_tv, tv
from sagittal.reconstruction.uncertainty import Kind, uncertainty
from sagittal.volume import Geometry, Volume
from sagittal.volume.phantoms import WATER_PER_MM

__all__ = ["METHODS", "reconstruct"]

_ITERATIVE: Mapping[str, Callable[..., Reconstruction]] = {
    "sirt": sirt,
    "cgls": cgls,
    "ordered-subsets": ordered_subsets,
    "tv": tv,
    "edge-preserving-tv": edge_preserving_tv,
    "directional-tv": directional_tv,
}

METHODS = ("fbp", *_ITERATIVE)
"""Names of the methods; ``fbp`` is FDK for a circular cone."""

_DRAWS: Mapping[Kind, int] = {"quick": 4, "bootstrap": 20}
_FEW = 2  # where noise is much the same everywhere, and neighbours say what draws do not
_WARM_ITERATIONS = 40


def reconstruct(
    scan: Scan,
    grid: Geometry,
    method: str,
    *,
    variance: bool = False,
    doubt: Kind = "quick",
    draws: int | None = None,
    seed: int = 0,
    mu_water: float = WATER_PER_MM,
    report: Report = silent,
    **options: Any,
) -> Reconstruction:
    """Reconstruct a scan by the method of this name.

    Args:
        scan: Any geometry that the method takes.
        grid: Where the voxels are to lie.
        method: One of :data:`METHODS`.
        variance: Also estimate each voxel's variance, the expected square of its error; see
            :mod:`sagittal.reconstruction.uncertainty`. The volume's facts say what it is made of.
        doubt: How: "quick", or "bootstrap", which reconstructs from the beginning for every draw.
        draws: How often counts are drawn again; without it 20 for "bootstrap"; for "quick" 4 (total
            variation), 2, or none (``fbp``, whose noise is computed).
        seed: The draws follow from it.
        mu_water: Attenuation of water, 1/mm.
        report: Takes a line that says how far it is.
        options: Those of the method.

    Raises:
        InputError: There is no such method, it takes no such option, or the scan does not say its dose where
            a variance is wanted; and see the method.
        GeometryError: The grid does not suit the scanner.
    """
    if method not in METHODS:
        raise InputError("there is no such method", value=method, expected=", ".join(METHODS))
    if doubt not in _DRAWS:
        raise InputError("there is no such doubt", source="doubt", value=doubt, expected=", ".join(_DRAWS))
    try:
        found = _by_name(scan, grid, method, mu_water, report, options, variance and doubt == "quick")
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        given = ", ".join(options)
        raise InputError("the method has no such option", source=method, value=given) from error
    if not variance:
        return found
    smooth = method.endswith("tv")

    def again(other: Scan, start: NDArray[np.float32] | None) -> Volume:
        changed = dict(options)
        if smooth and start is not None:
            solver = changed.get("solver") or Solver()
            iterations = min(_WARM_ITERATIONS, solver.iterations)
            solver = dataclasses.replace(solver, levels=0, tolerance=0.0, iterations=iterations)
            changed |= {"start": start, "solver": solver}
        return _by_name(other, grid, method, mu_water, silent, changed, False).volume

    image = found.volume
    usual = _FEW if doubt == "quick" and not smooth else _DRAWS[doubt]
    doubts = uncertainty(
        scan,
        image,
        again,
        kind=doubt,
        draws=usual if draws is None else draws,
        seed=seed,
        smooth=smooth,
        mu_water=mu_water,
        noise=image.variance,
        report=report,
    )
    facts = {**image.facts, "doubt": doubts.facts}
    return dataclasses.replace(found, volume=image.replace(variance=doubts.variance, facts=facts))


def _by_name(
    scan: Scan,
    grid: Geometry,
    method: str,
    mu_water: float,
    report: Report,
    options: dict[str, Any],
    variance: bool,
) -> Reconstruction:
    if method != "fbp":
        return _ITERATIVE[method](scan, grid, mu_water=mu_water, report=report, **options)
    analytic = fdk if isinstance(scan.geometry, ConeBeam) else fbp
    volume = analytic(scan, grid, variance=variance, mu_water=mu_water, **options)
    return Reconstruction(volume=volume, energies=(), stopped="converged")
