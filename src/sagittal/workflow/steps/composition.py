"""Say what one CT slice can honestly say: materials by area, and how it was acquired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sagittal.case.record import FindingDraft
from sagittal.segmentation import LEAST_NOISE_HU, HounsfieldClasses
from sagittal.workflow.artifacts import Kind
from sagittal.workflow.step import Context, Result, Step

__all__ = ["MeasureCTSlice"]


@dataclass(frozen=True, kw_only=True)
class MeasureCTSlice(Step):
    """Measure air, soft tissue and bone inside the head's outline on one CT slice.

    Attributes:
        air_below: HU under which a voxel is air.
        bone_above: HU over which a voxel is bone.
        level: Coverage of the intervals.
    """

    name: ClassVar[str] = "measure-ct-slice"
    version: ClassVar[str] = "1"
    doubt: ClassVar[str] = "starts it: noise measured on the slice, areas with an interval from it"
    packages: ClassVar[tuple[str, ...]] = ("scipy",)

    air_below: float = -300.0
    bone_above: float = 300.0
    level: float = 0.9

    @property
    def reads(self) -> Mapping[str, Kind]:
        return {"ct": Kind.VOLUME}

    @property
    def writes(self) -> Mapping[str, Kind]:
        return {"ct-classes": Kind.VOLUME}

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        context.report("measuring the CT slice")
        method = HounsfieldClasses(air_below=self.air_below, bone_above=self.bone_above, level=self.level)
        composition = method.measure(inputs["ct"])
        findings = []
        if acquisition := _acquisition(inputs["ct"].facts):
            findings.append(acquisition)
        for material, area in composition.areas.items():
            share = 100 * area.value / composition.outline.value
            findings.append(
                FindingDraft(
                    code="ct.area",
                    subject=material,
                    statement=f"{material.capitalize()} on the slice: {area.amount} ({area.interval}), "
                    f"{share:.0f} % of the area inside the head's outline.",
                    measurement=area,
                    caution="The interval covers noise only, not partial volume or the choice of thresholds.",
                    details={"share": round(share / 100, 6)},
                )
            )
        least = " or less" if composition.noise == LEAST_NOISE_HU else ""
        findings.append(
            FindingDraft(
                code="ct.noise",
                subject="noise",
                statement=f"Noise in soft tissue: {composition.noise:.1f} HU{least} (standard deviation).",
                caution="From differences over 1.7 mm: what tissue varies over that distance is in it.",
            )
        )
        return Result(outputs={"ct-classes": composition.classes}, findings=findings)


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
