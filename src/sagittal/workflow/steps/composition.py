"""Say what one CT slice can honestly say: materials by area, and how it was acquired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sagittal.case.record import FindingDraft
from sagittal.core.provenance import Measurement
from sagittal.segmentation import LEAST_NOISE_HU, HounsfieldClasses
from sagittal.volume import Volume
from sagittal.workflow.artifacts import Kind
from sagittal.workflow.step import Context, Result, Step

__all__ = ["MeasureCTSlice"]

_FROM_VARIANCE = (
    "The interval is made from the variance that came with the image, all voxels taken to err together; "
    "partial volume and the choice of thresholds are not in it."
)


@dataclass(frozen=True, kw_only=True)
class MeasureCTSlice(Step):
    """Measure air, soft tissue and bone inside the head's outline on one CT slice.

    Where the image has a variance, as a reconstruction has, the intervals are made from it, and the mean of
    soft tissue is a finding too. Findings on the reconstruction of a simulated scan have codes of their own
    (``simulated-ct.``).

    Attributes:
        role: The image's part in the case; the classes go to ``role + "-classes"``.
        truth: Part in the case of the slice that the image is a simulation of, on the same pixels; the same
            is measured there, and each finding says whether its interval holds it. Empty for none.
        air_below: HU under which a voxel is air.
        bone_above: HU over which a voxel is bone.
        level: Coverage of the intervals.
    """

    name: ClassVar[str] = "measure-ct-slice"
    version: ClassVar[str] = "2"
    doubt: ClassVar[str] = (
        "passes on the image's variance, or starts it by noise measured on the slice: areas, and a mean, "
        "with an interval that takes all voxels to err together"
    )
    packages: ClassVar[tuple[str, ...]] = ("scipy",)

    role: str = "ct"
    truth: str = ""
    air_below: float = -300.0
    bone_above: float = 300.0
    level: float = 0.9

    @property
    def reads(self) -> Mapping[str, Kind]:
        return {role: Kind.VOLUME for role in (self.role, self.truth) if role}

    @property
    def writes(self) -> Mapping[str, Kind]:
        return {f"{self.role}-classes": Kind.VOLUME}

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        context.report("measuring the CT slice")
        method = HounsfieldClasses(air_below=self.air_below, bone_above=self.bone_above, level=self.level)
        image = inputs[self.role]
        composition = method.measure(image)
        truth = method.measure(inputs[self.truth]) if self.truth else None
        prefix, where = ("simulated-ct", " on the simulated scan") if _simulated(image) else ("ct", "")
        covers = (
            "The interval covers noise only, not partial volume or the choice of thresholds."
            if image.variance is None
            else _FROM_VARIANCE
        )
        findings = []
        if acquisition := _acquisition(image.facts):
            findings.append(acquisition)
        for material, area in composition.areas.items():
            share = 100 * area.value / composition.outline.value
            findings.append(
                FindingDraft(
                    code=f"{prefix}.area",
                    subject=f"{material}{where}",
                    statement=f"{material.capitalize()}{where or ' on the slice'}: {area.amount} "
                    f"({area.interval}), {share:.0f} % of the area inside the head's outline"
                    f"{_beside(area, truth.areas[material] if truth else None)}.",
                    measurement=area,
                    caution=covers,
                    details={"share": round(share / 100, 6)},
                )
            )
        if image.variance is not None and (mean := composition.soft_tissue) is not None:
            findings.append(
                FindingDraft(
                    code=f"{prefix}.mean",
                    subject=f"mean of soft tissue{where}",
                    statement=f"Mean of soft tissue{where}: {mean.amount} ({mean.interval})"
                    f"{_beside(mean, truth.soft_tissue if truth else None)}.",
                    measurement=mean,
                    caution=f"Over voxels from {self.air_below:g} to {self.bone_above:g} HU. {covers}",
                )
            )
        findings.append(self._noise(composition.noise, image, prefix, where))
        return Result(outputs={f"{self.role}-classes": composition.classes}, findings=findings)

    def _noise(self, noise: float, image: Volume, prefix: str, where: str) -> FindingDraft:
        least = " or less" if noise == LEAST_NOISE_HU else ""
        if image.variance is None:
            return FindingDraft(
                code=f"{prefix}.noise",
                subject=f"noise{where}",
                statement=f"Noise in soft tissue{where}: {noise:.1f} HU{least} (standard deviation).",
                caution="From differences over 1.7 mm: what tissue varies over that distance is in it.",
            )
        return FindingDraft(
            code=f"{prefix}.deviation",
            subject=f"standard deviation of soft tissue{where}",
            statement=f"Standard deviation of a voxel of soft tissue{where}: {noise:.1f} HU{least} (median).",
            caution="From the variance that came with the image.",
        )


def _simulated(image: Volume) -> bool:
    return bool(image.facts.get("simulated"))


def _beside(amount: Measurement, truth: Measurement | None) -> str:
    if truth is None:
        return ""
    holds = amount.low <= truth.value <= amount.high
    return f"; the slice that was scanned has {truth.amount}, {'inside' if holds else 'outside'} the interval"


def _acquisition(facts: Mapping[str, Any]) -> FindingDraft | None:
    said = [
        phrase.format(facts[key])
        for key, phrase in (
            ("kvp", "{:g} kV"),
            ("tube_current_ma", "{:g} mA"),
            ("slice_thickness_mm", "slices of {:g} mm"),
            ("kernel", "kernel {}"),
            ("gantry_tilt_deg", "gantry tilted {:g} degrees"),
        )
        if facts.get(key) is not None
    ]
    if not said:
        return None
    return FindingDraft(
        code="ct.acquisition",
        subject="CT acquisition",
        statement=f"The CT slice was acquired with {', '.join(said)}.",
        caution="The image was compressed with loss: its HU are approximate."
        if facts.get("lossy_compressed")
        else "",
        details=dict(facts),
    )
