"""What a CT scanner measured: line integrals, where their rays ran, and how many photons they stand on."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import GeometryError, InputError
from sagittal.reconstruction.geometry import ScanGeometry, subset
from sagittal.reconstruction.hounsfield_scale import HounsfieldScale
from sagittal.volume import Geometry, Volume
from sagittal.volume.phantoms import WATER_PER_MM

__all__ = ["LEAST_COUNT", "Scan", "attenuation", "hounsfield"]

LEAST_COUNT = 0.5
"""What stands for a count of zero or below, whose logarithm there is not."""


@dataclass(frozen=True, eq=False)
class Scan:
    """Line integrals with their geometry and dose.

    Attributes:
        sinogram: Line integrals of the attenuation, without unit, shape (views, rows, bins), all finite.
        geometry: The scanner.
        photons: Photons that each ray's detector bin would count with nothing in the way; None where unknown.
            One number for all rays: what a bow-tie filter or a modulated tube takes from some is not told.
        electronic: Standard deviation of the detector's own noise, in photons.
        starved: Rays whose count was zero or below and was raised to :data:`LEAST_COUNT`.

    Raises:
        GeometryError: A sinogram of another shape than the geometry's.
        InputError: Line integrals that are not finite, or photons or noise that are not positive numbers.
    """

    sinogram: NDArray[np.floating[Any]]
    geometry: ScanGeometry
    photons: float | None = None
    electronic: float = 0.0
    starved: int = 0

    def __post_init__(self) -> None:
        rays = np.array(_real(self.sinogram, self.geometry, "line integrals"))
        rays.setflags(write=False)
        object.__setattr__(self, "sinogram", rays)
        for name, least in (("photons", 0.0), ("electronic", -1.0)):
            value = getattr(self, name)
            if value is None and name == "photons":
                continue
            if not (isinstance(value, int | float | np.number) and math.isfinite(value) and value > least):
                raise InputError(f"{name} must be a positive number", source=name, value=repr(value))
            object.__setattr__(self, name, float(value))
        if self.electronic < 0:
            raise InputError("the noise must not be negative", source="electronic", value=self.electronic)

    @classmethod
    def from_counts(
        cls, counts: NDArray[Any], photons: float, geometry: ScanGeometry, *, electronic: float = 0.0
    ) -> Scan:
        """Build a scan from what the detector counted.

        A count below :data:`LEAST_COUNT` is raised to it, and :attr:`starved` says how many were.

        Args:
            counts: Shape (views, rows, bins), finite. Negative ones only where there is electronic noise.
            photons: What a bin counts with nothing in the way.
            geometry: The scanner.
            electronic: Standard deviation of the detector's own noise, in photons.

        Raises:
            GeometryError: Counts of another shape than the geometry's.
            InputError: Counts that are not finite, or negative without electronic noise.
        """
        values = _real(counts, geometry, "counts")
        if electronic == 0 and (values < 0).any():
            first = tuple(int(n) for n in np.argwhere(values < 0)[0])
            raise InputError(
                "counts are negative",
                source="counts",
                value=f"{int((values < 0).sum())} of {values.size}, first {values[first]:g} at {first}",
                expected="0 or more, or the standard deviation of the electronic noise",
            )
        if not (isinstance(photons, int | float | np.number) and math.isfinite(photons) and photons > 0):
            raise InputError("photons must be a positive number", source="photons", value=repr(photons))
        low = values < LEAST_COUNT
        rays = np.log(photons) - np.log(np.where(low, LEAST_COUNT, values))
        return cls(
            rays.astype(np.float32), geometry, float(photons), electronic=electronic, starved=int(low.sum())
        )

    @property
    def counts(self) -> NDArray[np.float64]:
        """Counts that the line integrals stand for, shape (views, rows, bins).

        Raises:
            InputError: The number of photons is not known.
        """
        if self.photons is None:
            raise InputError("the scan does not say its dose", source="photons", expected="photons per ray")
        return np.asarray(self.photons * np.exp(-self.sinogram.astype(np.float64)))

    @property
    def variance(self) -> NDArray[np.float64]:
        """Variance of each line integral, from the counts: (n + s^2) / n^2.

        Raises:
            InputError: The number of photons is not known.
        """
        counts = np.maximum(self.counts, LEAST_COUNT)
        return np.asarray((counts + self.electronic**2) / counts**2)

    def replace(self, **changes: Any) -> Scan:
        """Return a scan with the named attributes changed; everything is checked again."""
        return dataclasses.replace(self, **changes)


def some_views(scan: Scan, views: slice) -> Scan:
    """Return some of a scan's views as a scan."""
    photons: Any = scan.photons
    if isinstance(photons, np.ndarray) and photons.ndim == 3 and len(photons) > 1:
        photons = photons[views]
    return scan.replace(
        sinogram=scan.sinogram[views], geometry=subset(scan.geometry, views), photons=photons, starved=0
    )


def attenuation(volume: Volume, mu_water: float = WATER_PER_MM) -> NDArray[np.float32]:
    """Return a volume's attenuation in 1/mm, not below 0, from HU or as it is.

    Raises:
        InputError: The unit is neither HU nor 1/mm.
    """
    if volume.unit == "1/mm":
        return np.asarray(np.maximum(volume.array, 0), np.float32)
    if volume.unit != "HU":
        raise InputError(
            "the voxels are no attenuation", source="unit", value=volume.unit, expected="HU or 1/mm"
        )
    hu = volume.array.astype(np.float32)
    return np.asarray(np.maximum((hu / 1000 + 1) * np.float32(mu_water), 0))


def hounsfield(
    image: NDArray[Any],
    grid: Geometry,
    mu_water: float = WATER_PER_MM,
    *,
    variance: NDArray[Any] | None = None,
    facts: dict[str, Any] | None = None,
) -> Volume:
    """Return a volume in HU from attenuation in 1/mm, with its variance in HU squared.

    Args:
        image: Attenuation, 1/mm, shape of the grid.
        grid: Where the voxels lie.
        mu_water: Attenuation of water, 1/mm.
        variance: Variance of the attenuation, 1/mm^2.
        facts: What is to be known of the reconstruction.
    """
    volume = Volume(image, grid, unit="1/mm", variance=variance, facts=facts or {})
    return HounsfieldScale(water=mu_water).apply(volume)


def _real(values: Any, geometry: ScanGeometry, what: str) -> NDArray[np.floating[Any]]:
    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise InputError(f"{what} must be real numbers", value=array.dtype)
    array = array.astype(np.float64 if array.dtype == np.float64 else np.float32, copy=False)
    if array.shape != geometry.shape:
        raise GeometryError(
            f"{what} have another shape than the geometry",
            value=array.shape,
            expected=f"{geometry.shape}: views, rows, bins",
        )
    wrong = ~np.isfinite(array)
    if wrong.any():
        first = tuple(int(n) for n in np.argwhere(wrong)[0])
        raise InputError(
            f"{what} are not finite",
            value=f"{int(wrong.sum())} of {wrong.size}, first {array[first]} at {first} (view, row, bin)",
            expected="finite numbers; leave broken views out",
        )
    return array
