"""Labels that a person drew on a case's image, as they go into the case."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sagittal.case.record import FindingDraft
from sagittal.core.errors import GeometryError, InputError
from sagittal.core.provenance import hash_array
from sagittal.volume import Volume, reorient, require_same_space
from sagittal.workflow.artifacts import Kind
from sagittal.workflow.step import Context, Result, Step
from sagittal.workflow.steps.image import source_volume

__all__ = ["ANNOTATION", "NOT_LABELLED", "TakeAnnotation"]

ANNOTATION = "annotation"
"""Role of labels that a person drew; their names are in the volume's facts, under "labels"."""
NOT_LABELLED = -1
"""Value of voxels that nobody has looked at."""

_TOLERANCE_MM = 0.01  # a viewer writes the affine in float32, and sometimes by way of a quaternion
_INSIDE = 0.5  # of the labelled voxels, at least, lie where the image is above 0


@dataclass(frozen=True, kw_only=True)
class TakeAnnotation(Step):
    """Put the labels that a person drew beside the image that they were drawn on.

    Attributes:
        role: The image. It is 0 outside the brain.
        labels: Names of the values 1, 2 and so on; 0 is none of them.
        minutes: How long the person took.
        who: The person.
        unknown: Value of the voxels that nobody has looked at; without one, all are labelled.
    """

    name: ClassVar[str] = "take-annotation"
    version: ClassVar[str] = "1"
    doubt: ClassVar[str] = "starts none: labels are taken as drawn; how sure the person was is not known"
    packages: ClassVar[tuple[str, ...]] = ("nibabel",)

    role: str = "t1"
    labels: tuple[str, ...]
    minutes: float
    who: str
    unknown: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        if not all(self.labels) or not self.labels or len(set(self.labels)) < len(self.labels):
            raise InputError("labels need names, none twice", value=", ".join(self.labels))
        if not (math.isfinite(self.minutes) and self.minutes >= 0):
            raise InputError("the minutes are no length of time", value=self.minutes, expected="0 or more")
        if not self.who.strip():
            raise InputError("an annotation needs a name", source="who", expected="who drew it")

    @property
    def reads(self) -> Mapping[str, Kind]:
        return {self.role: Kind.VOLUME, f"{ANNOTATION}.files": Kind.FILES}

    @property
    def writes(self) -> Mapping[str, Kind]:
        return {ANNOTATION: Kind.VOLUME}

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        image: Volume = inputs[self.role]
        source = inputs[f"{ANNOTATION}.files"]
        name = source.files[0][0]
        values = self._values(source_volume(source), image, name)
        facts = {"labels": list(self.labels), "role": self.role}
        drawn = Volume(values, image.geometry, facts=facts)
        return Result(outputs={ANNOTATION: drawn}, findings=[self._said(drawn)])

    def _values(self, given: Volume, image: Volume, name: str) -> NDArray[np.int16]:
        """Return the labels on the image's grid, its axes turned where they differ.

        Raises:
            GeometryError: The voxels do not lie where the image's do.
            InputError: A value outside the list, no label at all, or labels beside the brain.
        """
        turned = reorient(given, image.geometry.axis_codes)
        if turned.shape != image.shape:
            raise GeometryError(
                "the labels have another grid than the image",
                source=name,
                value=f"{turned.shape} along {''.join(image.geometry.axis_codes)}",
                expected=f"{image.shape}, the grid of {self.role}",
            )
        require_same_space(turned, image, _TOLERANCE_MM, source=name)
        values: NDArray[Any] = turned.array
        open_ = np.zeros(values.shape, bool) if self.unknown is None else values == self.unknown
        top = len(self.labels)
        wrong = ~open_ & ((values < 0) | (values > top) | (values != np.floor(values)))
        if wrong.any():
            odd = ", ".join(f"{value:g}" for value in np.unique(values[wrong])[:5])
            raise InputError(
                "a label is outside the list",
                source=name,
                value=f"{odd} in {int(np.count_nonzero(wrong))} voxels",
                expected=f"whole numbers from 0 to {top}: 0 none, {', '.join(self.labels)}",
            )
        found = np.where(open_, 0, values).astype(np.int16)
        found[open_] = NOT_LABELLED
        drawn = found > 0
        if not drawn.any():
            raise InputError("nothing is labelled", source=name, expected=", ".join(self.labels))
        share = float(np.count_nonzero(drawn & (image.array > 0))) / float(np.count_nonzero(drawn))
        if share < _INSIDE:
            raise InputError(
                "the labels lie beside the brain",
                source=name,
                value=f"{100 * share:.0f} % of the labelled voxels where {self.role} is above 0",
                expected=f"{100 * _INSIDE:.0f} % or more",
            )
        return found

    def _said(self, drawn: Volume) -> FindingDraft:
        size = drawn.geometry.voxel_volume_ml
        amounts = {
            name: size * int(np.count_nonzero(drawn.array == number))
            for number, name in enumerate(self.labels, 1)
        }
        listed = ", ".join(f"{name} {amount:.0f} ml" for name, amount in amounts.items())
        left = float(np.mean(drawn.array == NOT_LABELLED))
        part = f" {100 * left:.0f} % of the image was not looked at." if left else ""
        return FindingDraft(
            code="annotation.labels",
            subject=f"labels on {self.role}",
            statement=f"{self.who} drew labels on {self.role} in {self.minutes:g} minutes: {listed}.{part}",
            caution="One person's labels: where another would draw otherwise is not known.",
            details={
                "labels": list(self.labels),
                "minutes": self.minutes,
                "who": self.who,
                "sha256": hash_array(drawn.array),
                "ml": amounts,
                "not_labelled": left,
            },
        )
