"""The steps that come with sagittal."""

from sagittal.workflow.steps.annotation import TakeAnnotation
from sagittal.workflow.steps.composition import MeasureCTSlice
from sagittal.workflow.steps.correct import CorrectMask
from sagittal.workflow.steps.image import ReadImage
from sagittal.workflow.steps.proposal import ProposeLabels
from sagittal.workflow.steps.reconstruction import ReconstructCT
from sagittal.workflow.steps.record import ReadRecord, TakeRecord
from sagittal.workflow.steps.registration import RegisterToAtlas
from sagittal.workflow.steps.report import DraftReport
from sagittal.workflow.steps.segmentation import SegmentByNetwork
from sagittal.workflow.steps.simulated_deformation import SimulateDeformation
from sagittal.workflow.steps.simulated_scan import SimulateCTScan
from sagittal.workflow.steps.tissue import SegmentTissue

__all__ = [
    "CorrectMask",
    "DraftReport",
    "MeasureCTSlice",
    "ProposeLabels",
    "ReadImage",
    "ReadRecord",
    "ReconstructCT",
    "RegisterToAtlas",
    "SegmentByNetwork",
    "SegmentTissue",
    "SimulateCTScan",
    "SimulateDeformation",
    "TakeAnnotation",
    "TakeRecord",
]
