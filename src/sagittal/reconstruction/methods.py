"""Every way to reconstruct, by its name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.memory import require_memory
from sagittal.reconstruction.analytic import fbp, fdk
from sagittal.reconstruction.field_of_view import unseen
from sagittal.reconstruction.geometry import ConeBeam, ScanGeometry
from sagittal.reconstruction.iterative import Reconstruction, Report, cgls, ordered_subsets, silent, sirt
from sagittal.reconstruction.memory import memory_needed
from sagittal.reconstruction.scan import Scan
from sagittal.reconstruction.total_variation import Solver, directional_tv, edge_preserving_tv, tv
from sagittal.reconstruction.uncertainty import Kind, uncertainty
from sagittal.volume import Geometry, Volume
from sagittal.volume.phantoms import WATER_PER_MM

__all__ = ["METHODS", "UNSEEN_HU", "reconstruct"]

UNSEEN_HU = 1000.0
"""Standard deviation of a voxel that is not seen from every side: from water it may be air, or bone."""

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
_EVERY_METHODS = ("mu_water", "report", "variance", "name")
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

    Voxels that the scanner does not see from every side are told (:attr:`.Reconstruction.unseen`): their
    variance, where one is estimated, is at least that of :data:`UNSEEN_HU`.

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
        InputError: There is no such method, it takes no such option, it needs more memory than there is, or
            the scan does not say its dose where a variance is wanted; and see the method.
        GeometryError: The grid does not suit the scanner.
    """
    if method not in METHODS:
        raise InputError(
            "there is no such method", source="method", value=method, expected=", ".join(METHODS)
        )
    known = _options(method)
    if unknown := [name for name in options if name not in known]:
        raise InputError(
            "the method has no such option",
            source=method,
            value=", ".join(unknown),
            expected=", ".join(known),
        )
    if doubt not in _DRAWS:
        raise InputError("there is no such doubt", source="doubt", value=doubt, expected=", ".join(_DRAWS))
    sizes = {name: options[name] for name in ("subdivision", "edge_gradient") if name in options}
    needed = memory_needed(scan, grid, method, variance=variance, **sizes)
    require_memory(
        needed,
        f"the reconstruction by {method}",
        instead="take a coarser grid, fewer slices, or another method",
    )
    found = _by_name(scan, grid, method, mu_water, report, options, variance and doubt == "quick")
    if not variance:
        return _told(found, scan.geometry)
    smooth = method.endswith("tv")

    def again(other: Scan, start: NDArray[np.float32] | None) -> Volume:
        changed = {name: value for name, value in options.items() if name != "edge_gradient"}  # there is none
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
    volume = image.replace(variance=doubts.variance, facts=facts)
    return _told(dataclasses.replace(found, volume=volume, doubt=doubts), scan.geometry)


def _options(method: str) -> list[str]:
    """Return what a method's caller may choose, beside what every method takes."""
    parameters = inspect.signature(_ITERATIVE.get(method, fbp)).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _EVERY_METHODS]


def _told(found: Reconstruction, geometry: ScanGeometry) -> Reconstruction:
    """Return the reconstruction with what it does not see: as a mask, a share, and a variance."""
    hidden = unseen(geometry, found.volume.geometry)
    if hidden is None:
        return found
    image = found.volume
    variance = image.variance
    if variance is not None:
        variance = np.where(hidden, np.maximum(variance, np.float32(UNSEEN_HU**2)), variance)
    facts = {**image.facts, "unseen": float(hidden.mean())}
    return dataclasses.replace(found, volume=image.replace(variance=variance, facts=facts), unseen=hidden)


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
