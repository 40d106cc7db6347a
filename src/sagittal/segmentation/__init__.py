"""Segmentation: tissue from T1-weighted MRI, materials from CT, and quantities with their doubt."""

from sagittal.segmentation.calibration import (
    CalibrationError,
    Reliability,
    TemperatureScaling,
    calibration_error,
    fit_temperatures,
    negative_log_likelihood,
    reliability,
)
from sagittal.segmentation.doubt import doubtful_share, entropy_bits, quantity
from sagittal.segmentation.hounsfield import LEAST_NOISE_HU, MATERIALS, HounsfieldClasses, SliceComposition
from sagittal.segmentation.markov import MarkovFieldSegmenter
from sagittal.segmentation.tissue import TISSUES, TissueSegmenter, brain_mask

__all__ = [
    "LEAST_NOISE_HU",
    "MATERIALS",
    "TISSUES",
    "CalibrationError",
    "HounsfieldClasses",
    "MarkovFieldSegmenter",
    "Reliability",
    "SliceComposition",
    "TemperatureScaling",
    "TissueSegmenter",
    "brain_mask",
    "calibration_error",
    "doubtful_share",
    "entropy_bits",
    "fit_temperatures",
    "negative_log_likelihood",
    "quantity",
    "reliability",
]
