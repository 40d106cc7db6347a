"""CT from its scans: projectors, filtered backprojection, iterative methods, total variation, simulation."""

from sagittal.reconstruction.analytic import coverage, fbp, fdk
from sagittal.reconstruction.geometry import ConeBeam, FanBeam, ParallelBeam, ScanGeometry
from sagittal.reconstruction.iterative import Reconstruction, cgls, ordered_subsets, sirt
from sagittal.reconstruction.methods import METHODS, reconstruct, truncated_share
from sagittal.reconstruction.phantoms import Ellipse, ellipse_image, ellipse_integrals, shepp_logan, torso
from sagittal.reconstruction.projectors import Projector, back, forward
from sagittal.reconstruction.quality import quality
from sagittal.reconstruction.scan import MU_WATER, Scan, attenuation, hounsfield
from sagittal.reconstruction.scan_file import StoredScan, read_scan, write_scan
from sagittal.reconstruction.simulate import add_noise, fitted_geometry, simulate_scan
from sagittal.reconstruction.total_variation import Solver, directional_tv, edge_preserving_tv, tv

__all__ = [
    "METHODS",
    "MU_WATER",
    "ConeBeam",
    "Ellipse",
    "FanBeam",
    "ParallelBeam",
    "Projector",
    "Reconstruction",
    "Scan",
    "ScanGeometry",
    "Solver",
    "StoredScan",
    "add_noise",
    "attenuation",
    "back",
    "cgls",
    "coverage",
    "directional_tv",
    "edge_preserving_tv",
    "ellipse_image",
    "ellipse_integrals",
    "fbp",
    "fdk",
    "fitted_geometry",
    "forward",
    "hounsfield",
    "ordered_subsets",
    "quality",
    "read_scan",
    "reconstruct",
    "shepp_logan",
    "simulate_scan",
    "sirt",
    "torso",
    "truncated_share",
    "tv",
    "write_scan",
]
