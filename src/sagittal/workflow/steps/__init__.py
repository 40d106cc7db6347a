"""The steps that come with sagittal, by name."""

from __future__ import annotations

from sagittal.workflow.step import Step
from sagittal.workflow.steps.composition import MeasureCTSlice
from sagittal.workflow.steps.image import ReadImage
from sagittal.workflow.steps.record import ReadRecord, TakeRecord
from sagittal.workflow.steps.report import DraftReport
from sagittal.workflow.steps.tissue import SegmentTissue

__all__ = [
    "DraftReport",
    "MeasureCTSlice",
    "ReadImage",
    "ReadRecord",
    "SegmentTissue",
    "TakeRecord",
    "known",
]


def known() -> dict[str, type[Step]]:
    """Return the steps that come with sagittal by the name they have in a record."""
    ours = (DraftReport, MeasureCTSlice, ReadImage, ReadRecord, SegmentTissue, TakeRecord)
    return {step.name: step for step in ours}
