"""Attenuation to Hounsfield units, by water's attenuation or by known regions, with the scale's doubt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.volume.volume import Volume

__all__ = ["HounsfieldScale", "scale_from_regions"]


@dataclass(frozen=True, kw_only=True)
class HounsfieldScale:
    """The two points of the Hounsfield scale: HU = 1000 (mu - water) / (water - air).

    Attributes:
        water: Attenuation of water, 1/mm.
        air: Attenuation that air shows in the image, 1/mm; 0 by definition.
        water_error: Standard error of the first, 1/mm.
        air_error: Standard error of the second, 1/mm.

    Raises:
        InputError: Water that is not above air, a negative error; water in 1/cm (above 0.1 per mm).
    """

    water: float
    air: float = 0.0
    water_error: float = 0.0
    air_error: float = 0.0

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.water, self.air, self.water_error, self.air_error))):
            raise InputError("the Hounsfield scale is not finite", value=(self.water, self.air))
        if not self.water > max(self.air, 0.0) or self.water_error < 0 or self.air_error < 0:
            raise InputError(
                "water must attenuate more than air",
                value=(self.water, self.air),
                expected="1/mm, and errors of 0 or more",
            )
        if self.water > 0.1:
            raise InputError(
                "the attenuation of water looks like 1/cm",
                source="water",
                value=self.water,
                expected="about 0.02 per mm",
            )

    def apply(self, image: Volume) -> Volume:
        """Return the image in HU.

        Its variance is scaled. What the two points themselves may be off adds to it, though it is the same
        error in every voxel and does not average out over a region.

        Raises:
            InputError: The image is not in 1/mm.
        """
        if image.unit != "1/mm":
            raise InputError("the image is no attenuation", source="unit", value=image.unit, expected="1/mm")
        span = self.water - self.air
        hu = np.empty(image.shape, np.float32)
        variance = None if image.variance is None else np.empty(image.shape, np.float64)
        for plane, narrow in enumerate(image.array):  # one at a time: twice as wide, the image would be large
            mu = narrow.astype(np.float64)
            hu[plane] = 1000 * (mu - self.water) / span
            if variance is None or image.variance is None:
                continue
            by_water, by_air = 1000 * (mu - self.air) / span**2, 1000 * (mu - self.water) / span**2
            variance[plane] = (1000 / span) ** 2 * image.variance[plane].astype(np.float64)
            variance[plane] += (by_water * self.water_error) ** 2 + (by_air * self.air_error) ** 2
        hu.setflags(write=False)
        return image.with_array(hu, unit="HU", variance=variance)


def scale_from_regions(image: Volume, water: NDArray[np.bool_], air: NDArray[np.bool_]) -> HounsfieldScale:
    """Return the scale that makes one region 0 HU and the other -1000 HU.

    Each point is its region's median; its standard error is 1.25 times the robust standard deviation over
    the root of the number of voxels, as if they were independent, which neighbours in a reconstruction are
    not: a lower bound.

    Raises:
        InputError: An empty region or one of another shape, an image that is not in 1/mm, air that
            attenuates more.
    """
    if image.unit != "1/mm":
        raise InputError("the image is no attenuation", source="unit", value=image.unit, expected="1/mm")
    (water_at, water_error), (air_at, air_error) = (
        _median(image.array, region, name) for region, name in ((water, "water"), (air, "air"))
    )
    return HounsfieldScale(water=water_at, air=air_at, water_error=water_error, air_error=air_error)


def _median(array: NDArray[Any], region: NDArray[np.bool_], name: str) -> tuple[float, float]:
    if region.shape != array.shape or region.dtype != bool or not region.any():
        raise InputError(
            f"the region of {name} is empty or does not fit",
            source=name,
            value=(region.dtype, region.shape),
            expected=f"bool of shape {array.shape} with a voxel",
        )
    values = array[region].astype(np.float64)
    middle = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    return middle, 1.2533 * spread / math.sqrt(len(values))
