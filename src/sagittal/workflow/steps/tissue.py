"""Segment brain tissue and say how much of each there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sagittal.case.record import FindingDraft
from sagittal.segmentation import TISSUES, MarkovFieldSegmenter, TissueSegmenter, doubtful_share, quantity
from sagittal.volume import Volume
from sagittal.workflow.artifacts import Kind
from sagittal.workflow.step import Context, Result, Step

__all__ = ["SegmentTissue"]

_SHARED = (
    "Voxels that fluid and grey matter share are counted as fluid too often: on simulated images this "
    "method read fluid high, beyond its interval, and grey matter low (see the evidence page)."
)
_NAMES = {"csf": "cerebrospinal fluid", "gm": "grey matter", "wm": "white matter"}


@dataclass(frozen=True, kw_only=True)
class SegmentTissue(Step):
    """Segment the brain-masked T1 image into CSF, grey and white matter.

    Attributes:
        beta: Weight of the neighbours in the Markov random field.
        iterations: Upper bound of its iterations.
        level: Coverage of the volumes' intervals.
        doubtful_below: Probability under which a voxel's tissue counts as doubtful.
    """

    name: ClassVar[str] = "segment-tissue"
    version: ClassVar[str] = "1"
    doubt: ClassVar[str] = "starts it: probabilities of each tissue in each voxel, volumes with an interval"
    packages: ClassVar[tuple[str, ...]] = ("dipy", "scikit-learn")

    beta: float = 0.1
    iterations: int = 30
    level: float = 0.9
    doubtful_below: float = 0.8

    @property
    def reads(self) -> Mapping[str, Kind]:
        return {"t1": Kind.VOLUME}

    @property
    def writes(self) -> Mapping[str, Kind]:
        return {"tissue": Kind.VOLUME}

    @property
    def method(self) -> TissueSegmenter:
        """The method behind the interface that learned ones take too."""
        return MarkovFieldSegmenter(beta=self.beta, iterations=self.iterations)

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        context.report("segmenting brain tissue")
        tissue = self.method.segment(inputs["t1"], seed=context.seed)
        return Result(outputs={"tissue": tissue}, findings=self.findings(tissue))

    def findings(self, tissue: Volume) -> list[FindingDraft]:
        """Measure a segmentation; also asked of one that a person corrected."""
        assert tissue.probabilities is not None, "a TissueSegmenter gives probabilities"
        size = tissue.geometry.voxel_volume_ml
        findings = []
        for index, tissue_name in enumerate(TISSUES):
            amount = quantity(tissue.probabilities[..., index], size=size, unit="ml", level=self.level)
            findings.append(
                FindingDraft(
                    code="tissue.volume",
                    subject=_NAMES[tissue_name],
                    statement=f"{_NAMES[tissue_name].capitalize()}: {amount.amount} ({amount.interval}).",
                    measurement=amount,
                    caution=_SHARED if tissue_name in {"csf", "gm"} else "",
                    details={"tissue": tissue_name},
                )
            )
        share = doubtful_share(tissue.probabilities, tissue.array > 0, below=self.doubtful_below)
        findings.append(
            FindingDraft(
                code="tissue.doubt",
                subject="doubtful brain voxels",
                statement=f"{100 * share:.0f} % of brain voxels have no tissue with a probability of "
                f"{self.doubtful_below:g} or more.",
                details={"share": round(share, 6)},
            )
        )
        return findings
