"""Labels that networks propose for a person to correct, kept in the case as what the person began with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sagittal.core.errors import InputError
from sagittal.segmentation import predict
from sagittal.volume import Volume
from sagittal.workflow.artifacts import Kind
from sagittal.workflow.network_input import field_of, image_roles, network_input, on_image, wants_field
from sagittal.workflow.pinned_network import pinned_network
from sagittal.workflow.step import Context, Result, Step

__all__ = ["PROPOSAL", "ProposeLabels"]

PROPOSAL = "proposal"
"""Role of labels that networks propose, with their mean probabilities."""


@dataclass(frozen=True, kw_only=True)
class ProposeLabels(Step):
    """Segment a case's image with the mean of several networks, for a person to correct.

    Attributes:
        models: The networks' files; one is an ensemble of one.
        sha256: What each of them must contain.
        channels: The networks' channels, in order.
        prefix: What the roles of the registration to the atlas begin with, where a channel comes from it.
    """

    name: ClassVar[str] = "propose-labels"
    version: ClassVar[str] = "1"
    doubt: ClassVar[str] = "starts it: the mean of the networks' probabilities in each voxel"
    packages: ClassVar[tuple[str, ...]] = ("torch", "scipy")

    models: tuple[str, ...]
    sha256: tuple[str, ...]
    channels: tuple[str, ...]
    prefix: str = "atlas"

    def __post_init__(self) -> None:
        for name in ("models", "sha256", "channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.models or len(self.models) != len(self.sha256):
            raise InputError(
                "each network needs a file and its sha256",
                value=f"{len(self.models)} and {len(self.sha256)}",
                expected="as many, one or more",
            )

    @property
    def reads(self) -> Mapping[str, Kind]:
        found = dict.fromkeys(image_roles(self.channels), Kind.VOLUME)
        return found | ({f"{self.prefix}-map.files": Kind.FILES} if wants_field(self.channels) else {})

    @property
    def writes(self) -> Mapping[str, Kind]:
        return {PROPOSAL: Kind.VOLUME}

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        pinned = zip(self.models, self.sha256, strict=True)
        models = [pinned_network(context, name, sha256, self.channels) for name, sha256 in pinned]
        config = models[0].config
        registered = inputs.get(f"{self.prefix}-map.files")
        images = {role: inputs[role] for role in image_roles(self.channels)}
        first: Volume = images[self.channels[0]]
        field = None if registered is None else field_of(registered)
        seen = network_input(images, self.channels, config.spacing_mm, field)
        context.report("proposing labels")
        shares = np.mean([predict(model, seen.channels, seen.mask) for model in models], axis=0)
        found = on_image(shares.astype(np.float32), seen, first, config.labels)
        return Result(outputs={PROPOSAL: found.replace(facts={"models": list(self.sha256)})}, findings=())
