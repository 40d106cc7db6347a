"""CT from its scans: projectors, filtered backprojection, iterative methods, total variation, simulation."""

from sagittal.reconstruction.analytic import fbp, fdk
from sagittal.reconstruction.comparison import quality
from sagittal.reconstruction.consistency import turns_the_other_way
from sagittal.reconstruction.field_of_view import truncated_share, unseen
from sagittal.reconstruction.files import Projections, StoredScan, read_ct_pd, read_scan, write_scan
from sagittal.reconstruction.geometry import ConeBeam, FanBeam, ParallelBeam, ScanGeometry
from sagittal.reconstruction.iterative import Reconstruction, cgls, ordered_subsets, sirt
from sagittal.reconstruction.line_integrals import line_integrals
from sagittal.reconstruction.methods import METHODS, reconstruct
from sagittal.reconstruction.projectors import Projector, back, forward
from sagittal.reconstruction.scan import Scan, attenuation, broken_rays, hounsfield
from sagittal.reconstruction.simulate import add_noise, fitted_geometry, scannable, simulate_scan, upright
from sagittal.reconstruction.total_variation import Solver, directional_tv, edge_preserving_tv, tv
from sagittal.reconstruction.uncertainty import Uncertainty

__all__ = [
    "METHODS",
    "ConeBeam",
    "FanBeam",
    "ParallelBeam",
    "Projections",
    "Projector",
    "Reconstruction",
    "Scan",
    "ScanGeometry",
    "Solver",
    "StoredScan",
    "Uncertainty",
    "add_noise",
    "attenuation",
    "back",
    "broken_rays",
    "cgls",
    "directional_tv",
    "edge_preserving_tv",
    "fbp",
    "fdk",
    "fitted_geometry",
    "forward",
    "hounsfield",
    "line_integrals",
    "ordered_subsets",
    "quality",
    "read_ct_pd",
    "read_scan",
    "reconstruct",
    "scannable",
    "simulate_scan",
    "sirt",
    "truncated_share",
    "turns_the_other_way",
    "tv",
    "unseen",
    "upright",
    "write_scan",
]
