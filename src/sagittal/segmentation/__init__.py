"""Segmentation: tissue from T1-weighted MRI, materials from CT, and quantities with their doubt."""

from sagittal.segmentation.doubt import doubtful_share, entropy_bits, quantity
from sagittal.segmentation.hounsfield import LEAST_NOISE_HU, MATERIALS, HounsfieldClasses, SliceComposition
from sagittal.segmentation.markov import MarkovFieldSegmenter
from sagittal.segmentation.tissue import TISSUES, TissueSegmenter, brain_mask

__all__ = [
    "LEAST_NOISE_HU",
    "MATERIALS",
    "TISSUES",
    "HounsfieldClasses",
    "MarkovFieldSegmenter",
    "SliceComposition",
    "TissueSegmenter",
    "brain_mask",
    "doubtful_share",
    "entropy_bits",
    "quantity",
]
