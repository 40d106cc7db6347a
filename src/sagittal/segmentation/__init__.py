"""Segmentation: tissue from T1 by a model or by networks, materials from CT, and their doubt."""

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
from sagittal.segmentation.inference import predict
from sagittal.segmentation.labelled import UNKNOWN, LabelledImage
from sagittal.segmentation.markov import MarkovFieldSegmenter
from sagittal.segmentation.model import SegmentationModel
from sagittal.segmentation.network_file import model_bytes, model_from_bytes
from sagittal.segmentation.networks import NetworkConfig
from sagittal.segmentation.tissue import TISSUES, TissueSegmenter, brain_mask
from sagittal.segmentation.training import Training, TrainingState, train
from sagittal.segmentation.volumes import VolumeScaling, class_volumes, fit_volumes

__all__ = [
    "LEAST_NOISE_HU",
    "MATERIALS",
    "TISSUES",
    "UNKNOWN",
    "CalibrationError",
    "HounsfieldClasses",
    "LabelledImage",
    "MarkovFieldSegmenter",
    "NetworkConfig",
    "Reliability",
    "SegmentationModel",
    "SliceComposition",
    "TemperatureScaling",
    "TissueSegmenter",
    "Training",
    "TrainingState",
    "VolumeScaling",
    "brain_mask",
    "calibration_error",
    "class_volumes",
    "doubtful_share",
    "entropy_bits",
    "fit_temperatures",
    "fit_volumes",
    "model_bytes",
    "model_from_bytes",
    "negative_log_likelihood",
    "predict",
    "quantity",
    "reliability",
    "train",
]
