"""A trained segmentation network, and what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import ModelError
from sagittal.segmentation.labelled import Scale
from sagittal.segmentation.networks import NetworkConfig
from sagittal.segmentation.volumes import VolumeScaling

__all__ = ["SegmentationModel"]


@dataclass(frozen=True, eq=False, kw_only=True)
class SegmentationModel:
    """A trained network.

    Attributes:
        config: What it is.
        weights: float32 arrays by name: weights and running statistics.
        scale: Of each channel, over the training: see :func:`~sagittal.segmentation.labelled.fitted_scale`.
        temperatures: Of each class, as
            :class:`~sagittal.segmentation.calibration.TemperatureScaling` has them; 1 where nothing was
            calibrated.
        subjects: Of training: id, and sha256 of the labels.
        seed: Of training.
        steps: Of training.
        volumes: How true volumes lie about the network's, of subjects that trained nothing; None where there
            were too few.
        facts: JSON values that whoever trained it wants to know again, such as the atlas of its channels.

    Raises:
        ModelError: Weights that are not finite, or a scale or temperature that is not positive.
    """

    config: NetworkConfig
    weights: Mapping[str, NDArray[np.float32]]
    scale: Scale
    subjects: tuple[tuple[str, str], ...]
    seed: int
    steps: int
    temperatures: tuple[float, ...] = ()
    volumes: VolumeScaling | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.temperatures:
            object.__setattr__(self, "temperatures", (1.0,) * self.config.classes)
        sizes = {
            "scale": (len(self.scale), len(self.config.channels)),
            "temperatures": (len(self.temperatures), self.config.classes),
        }
        if self.volumes is not None:
            sizes["volumes"] = (len(self.volumes.mean), len(self.config.labels))
        for name, (found, wanted) in sizes.items():
            if found != wanted:
                raise ModelError("a model is not whole", source=name, value=found, expected=str(wanted))
        positive = [*self.temperatures, *(sd for _, sd in self.scale)]
        if not all(np.isfinite(value) and value > 0 for value in positive):
            raise ModelError("a scale or temperature is not positive", value=positive)
        if not all(np.isfinite(array).all() for array in self.weights.values()):
            raise ModelError("a weight is not finite")
