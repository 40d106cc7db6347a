"""Segmentation: tissue from T1 by a model or by networks, materials from CT, and their doubt."""

from sagittal.segmentation.doubt import doubtful_share, entropy_bits, quantity
from sagittal.segmentation.hounsfield import LEAST_NOISE_HU, MATERIALS, HounsfieldClasses, SliceComposition
from sagittal.segmentation.inference import predict
from sagittal.segmentation.labelled import UNKNOWN, LabelledImage
from sagittal.segmentation.markov import MarkovFieldSegmenter
from sagittal.segmentation.model import SegmentationModel
from sagittal.segmentation.networks import NetworkConfig
from sagittal.segmentation.tissue import TISSUES, TissueSegmenter, brain_mask
from sagittal.segmentation.training import Training, TrainingState, train

__all__ = [
    "LEAST_NOISE_HU",
    "MATERIALS",
    "TISSUES",
    "UNKNOWN",
    "HounsfieldClasses",
    "LabelledImage",
    "MarkovFieldSegmenter",
    "NetworkConfig",
    "SegmentationModel",
    "SliceComposition",
    "TissueSegmenter",
    "Training",
    "TrainingState",
    "brain_mask",
    "doubtful_share",
    "entropy_bits",
    "predict",
    "quantity",
    "train",
]
