"""Images with labels, as training takes them, and how a network sees an image: its channels on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError, ModelError
from sagittal.core.provenance import hash_array
from sagittal.segmentation.networks import NetworkConfig

__all__ = ["UNKNOWN", "LabelledImage", "Scale", "as_seen", "fitted_scale"]

UNKNOWN = -1
"""The label of a voxel that nobody has labelled, such as those of slices that were left out."""

Scale = tuple[tuple[float, float], ...]
"""Of each channel: what is subtracted, and by what it is divided after that."""

_LEAST_SD = 1e-6


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledImage:
    """One image of one person, with its labels.

    Attributes:
        channels: float32, (C, i, j, k), or (C, i, j) for one slice.
        labels: Integers on the same grid: 0 is background, 1 the first label of the network, and
            :data:`UNKNOWN` no label.
        mask: Where the brain is, bool, on the same grid.
        subject: Whose it is. Splits go by subject.

    Raises:
        InputError: Grids that differ, an empty mask, or a channel that is not finite.
    """

    channels: NDArray[np.float32]
    labels: NDArray[np.integer]
    mask: NDArray[np.bool_]
    subject: str

    def __post_init__(self) -> None:
        shape = self.channels.shape[1:]
        if len(shape) not in (2, 3) or self.labels.shape != shape or self.mask.shape != shape:
            raise InputError(
                "channels, labels and mask lie on grids of their own",
                source=self.subject,
                value=f"{self.channels.shape}, {self.labels.shape} and {self.mask.shape}",
                expected="(C, *spatial), *spatial and *spatial",
            )
        if not self.mask.any():
            raise InputError("the mask is empty", source=self.subject)
        if not np.isfinite(self.channels).all():
            raise InputError("a channel holds what is not finite", source=self.subject)

    @property
    def label_hash(self) -> str:
        """The sha256 of the labels: equal for one annotation under two names."""
        return hash_array(self.labels.astype(np.int16))


def fitted_scale(config: NetworkConfig, images: Sequence[LabelledImage]) -> Scale:
    """Return the scale of each "cohort" channel over the brains of training; (0, 1) for the others.

    Raises:
        ModelError: An image with other channels than the network's.
    """
    for image in images:
        _require_channels(config, image.channels, image.subject)
    found = []
    for number, kind in enumerate(config.normalisation):
        if kind != "cohort":
            found.append((0.0, 1.0))
            continue
        moments = [_moments(image.channels[number][image.mask]) for image in images]
        count = sum(n for n, _, _ in moments)
        mean = sum(n * m for n, m, _ in moments) / count
        variance = sum(n * (v + (m - mean) ** 2) for n, m, v in moments) / count
        found.append((mean, max(float(np.sqrt(variance)), _LEAST_SD)))
    return tuple(found)


def as_seen(
    config: NetworkConfig, channels: NDArray[np.float32], mask: NDArray[np.bool_], scale: Scale
) -> NDArray[np.float32]:
    """Return channels as the network sees them: on one scale, 0 outside the brain, (C, i, j, k).

    A slice (C, i, j) gets an axis of one voxel.

    Raises:
        ModelError: Another number of channels, or one slice for a network that needs more.
    """
    _require_channels(config, channels, None)
    if channels.ndim == 3:
        if config.dimensions != 2:
            raise ModelError(
                "one slice is not enough for the network", expected=f"a volume ({config.dimensions}-D)"
            )
        channels = np.expand_dims(channels, 1 + config.axis)
        mask = np.expand_dims(mask, config.axis)
    found = np.zeros(channels.shape, np.float32)
    for number, kind in enumerate(config.normalisation):
        inside = channels[number][mask].astype(np.float64)
        if kind == "image":
            _, middle, variance = _moments(inside)
            spread = max(float(np.sqrt(variance)), _LEAST_SD)
        else:
            middle, spread = scale[number]
        found[number][mask] = (inside - middle) / spread
    return found


def _require_channels(config: NetworkConfig, channels: NDArray[np.float32], source: str | None) -> None:
    if channels.shape[0] != len(config.channels):
        raise ModelError(
            "the network was trained for other channels",
            source=source,
            value=f"{channels.shape[0]}",
            expected=f"{len(config.channels)}: {', '.join(config.channels)}",
        )


def _moments(values: NDArray[np.generic]) -> tuple[int, float, float]:
    doubles = values.astype(np.float64)
    return doubles.size, float(doubles.mean()), float(doubles.var())
