"""A person's mask in the place of a step's, measured again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sagittal.case.record import FindingDraft
from sagittal.core.errors import GeometryError, InputError
from sagittal.volume import Volume, reorient, require_same_space
from sagittal.workflow.artifacts import Kind
from sagittal.workflow.step import STEPS, Context, Result, Step

__all__ = ["CorrectMask", "measures_masks", "painted_labels"]

_TOLERANCE_MM = 0.01  # a viewer writes the affine in float32, and sometimes by way of a quaternion


@dataclass(frozen=True, kw_only=True)
class CorrectMask(Step):
    """Put the labels that a person painted in the place of a segmentation's, and measure it again.

    Attributes:
        role: The segmentation.
        step: Name of the step that made it and measures it.
        step_version: Its version.
        step_parameters: Its parameters.
        changed: Voxels with another label than before.
        note: Why the person changed them.
    """

    name: ClassVar[str] = "correct-mask"
    version: ClassVar[str] = "1"
    doubt: ClassVar[str] = (
        "keeps the probabilities where the label stayed; where a person changed it, that class gets "
        "probability 1: how sure the person was is not known"
    )

    role: str
    step: str
    step_version: str
    step_parameters: Mapping[str, Any]
    changed: int
    note: str = ""

    @property
    def reads(self) -> Mapping[str, Kind]:
        return {self.role: Kind.VOLUME, f"{self.role}.painted": Kind.VOLUME}

    @property
    def writes(self) -> Mapping[str, Kind]:
        return {self.role: Kind.VOLUME}

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        before: Volume = inputs[self.role]
        labels: Volume = inputs[f"{self.role}.painted"]
        assert before.probabilities is not None, "only a segmentation with probabilities is corrected"
        differs = labels.array != before.array
        probabilities = np.array(before.probabilities)
        probabilities[differs] = 0
        places = np.nonzero(differs & (labels.array > 0))
        probabilities[(*places, labels.array[places].astype(np.intp) - 1)] = 1
        corrected = before.replace(array=labels.array, probabilities=probabilities)
        voxels = f"{self.changed} voxel{'s' * (self.changed != 1)}"
        caution = f"The mask was corrected by hand in {voxels}, which count as sure."
        findings = [
            replace(found, caution=f"{found.caution} {caution}".strip())
            for found in self._measured(corrected)
        ]
        return Result(outputs={self.role: corrected}, findings=findings)

    def _measured(self, corrected: Volume) -> Sequence[FindingDraft]:
        kind = STEPS.get(self.step)
        if kind is None or not measures_masks(kind):
            raise InputError("this step's masks cannot be measured again", value=self.step)
        if kind.version != self.step_version:
            raise InputError(
                "the step has changed since the mask was made",
                source=self.step,
                value=f"version {kind.version}",
                expected=self.step_version,
            )
        values = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in self.step_parameters.items()
        }
        found: Sequence[FindingDraft] = kind(**values).findings(corrected)  # type: ignore[attr-defined]
        return found


def measures_masks(kind: type[Step]) -> bool:
    """Whether a step says by ``findings(volume)`` what it would say of a corrected mask."""
    return callable(getattr(kind, "findings", None))


def painted_labels(painted: Volume, before: Volume) -> Volume:
    """Return painted labels on the grid of the segmentation, in its dtype, its axes turned where they differ.

    Raises:
        GeometryError: The voxels do not lie where those of the segmentation do.
        InputError: A label that is no class of the segmentation, or labels that are all as before.
    """
    turned = reorient(painted, before.geometry.axis_codes)
    require_same_space(turned, before, _TOLERANCE_MM, source="the painted mask")
    if turned.shape != before.shape:
        raise GeometryError("the mask has another grid", value=turned.shape, expected=str(before.shape))
    values: NDArray[Any] = turned.array
    top = len(before.classes)
    wrong = (values < 0) | (values > top) | (values != np.floor(values))
    if wrong.any():
        raise InputError(
            "a label is no class of the segmentation",
            source="the painted mask",
            value=f"{values[wrong][0]} in {int(np.count_nonzero(wrong))} voxels",
            expected=f"whole numbers from 0 to {top}: 0 none, {', '.join(before.classes)}",
        )
    labels = values.astype(before.array.dtype)
    if np.array_equal(labels, before.array):
        raise InputError("no label was changed", source="the painted mask")
    return Volume(labels, before.geometry)
