"""Every way to reconstruct, by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sagittal.core.errors import InputError
from sagittal.reconstruction.analytic import fbp, fdk
from sagittal.reconstruction.geometry import ConeBeam
from sagittal.reconstruction.iterative import Reconstruction, Report, cgls, ordered_subsets, silent, sirt
from sagittal.reconstruction.scan import Scan
from sagittal.reconstruction.total_variation import directional_tv, edge_preserving_tv, tv
from sagittal.volume import Geometry
from sagittal.volume.phantoms import WATER_PER_MM

__all__ = ["METHODS", "reconstruct", "truncated_share"]

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

_CUT = 0.05


def reconstruct(
    scan: Scan,
    grid: Geometry,
    method: str,
    *,
    variance: bool = False,
    mu_water: float = WATER_PER_MM,
    report: Report = silent,
    **options: Any,
) -> Reconstruction:
    """Reconstruct a scan by the method of this name.

    Args:
        scan: Any geometry that the method takes.
        grid: Where the voxels are to lie.
        method: One of :data:`METHODS`.
        variance: Also compute each voxel's variance.
        mu_water: Attenuation of water, 1/mm.
        report: Takes a line that says how far it is.
        options: Those of the method.

    Raises:
        InputError: There is no such method, it takes no such option, or it gives no variance; and see the
            method.
        GeometryError: The grid does not suit the scanner.
    """
    if method not in METHODS:
        raise InputError("there is no such method", value=method, expected=", ".join(METHODS))
    try:
        if method == "fbp":
            analytic = fdk if isinstance(scan.geometry, ConeBeam) else fbp
            volume = analytic(scan, grid, variance=variance, mu_water=mu_water, **options)
            return Reconstruction(volume=volume, energies=(), stopped="converged")
        if variance:
            raise InputError(
                "the method gives no variance", source="variance", value=method, expected="fbp, which does"
            )
        return _ITERATIVE[method](scan, grid, mu_water=mu_water, report=report, **options)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        given = ", ".join(options)
        raise InputError("the method has no such option", source=method, value=given) from error


def truncated_share(scan: Scan) -> float:
    """Return the share of views whose outermost bins see part of the object, so that some of it is cut off.

    A bin does where its line integral, averaged over the rows, is above a twentieth of the scan's largest.
    """
    ends = scan.sinogram[:, :, [0, -1]].mean(axis=1).max(axis=1)
    return float(np.mean(ends > _CUT * max(float(scan.sinogram.max()), 1e-6)))
