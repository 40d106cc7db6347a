"""What a CT scanner measured: line integrals, where their rays ran, and how many photons they stand on."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import GeometryError, InputError
from sagittal.reconstruction.geometry import ScanGeometry
from sagittal.reconstruction.hounsfield_scale import HounsfieldScale
from sagittal.volume import Geometry, Volume
from sagittal.volume.phantoms import WATER_PER_MM

__all__ = ["LEAST_COUNT", "OnMissing", "Scan", "attenuation", "broken_rays", "hounsfield"]

OnMissing = Literal["refuse", "mark"]
"""What is done with rays that were not measured: refuse the scan, or mark them in :attr:`Scan.missing`."""

LEAST_COUNT = 0.5
"""What stands for a count of zero or below, whose logarithm there is not."""


_DEAD_LIKELY = 30.0  # counts that a usual view has where one of none is no chance


@dataclass(frozen=True, eq=False)
class Scan:
    """Line integrals with their geometry and dose.

    Attributes:
        sinogram: Line integrals of the attenuation, without unit, shape (views, rows, bins); finite where the
            ray was measured, and 0 where it was not, whatever was given.
        geometry: The scanner.
        photons: Photons that each ray's detector bin would count with nothing in the way; None where unknown.
            One number for all rays, or an array of three axes that broadcasts to (views, rows, bins): a
            bow-tie filter is (1, 1, bins), a modulated tube (views, 1, 1). 0 marks a ray that was not
            measured.
        electronic: Standard deviation of the detector's own noise, in photons.
        starved: Rays whose count was zero or below and was raised to :data:`LEAST_COUNT`.
        missing: Rays that were not measured, bool of shape (views, rows, bins); None where all were. Where
            the photons are known, they are 0 on these rays and on no other.

    Raises:
        GeometryError: A sinogram, photons or missing rays of another shape than the geometry's.
        InputError: Line integrals that are not finite, photons or noise that are negative or not finite, or
            no ray that was measured.
    """

    sinogram: NDArray[np.floating[Any]]
    geometry: ScanGeometry
    photons: float | NDArray[np.floating[Any]] | None = None
    electronic: float = 0.0
    starved: int = 0
    missing: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        shape = self.geometry.shape
        photons = _checked_photons(self.photons, shape)
        missing = _checked_missing(self.missing, photons, shape)
        if missing is not None and photons is not None:
            photons = np.where(missing, 0, photons)
        rays = np.array(_real(self.sinogram, self.geometry, "line integrals", missing))
        rays.setflags(write=False)
        object.__setattr__(self, "sinogram", rays)
        if isinstance(photons, np.ndarray):
            photons = _compact(photons)
            photons = float(photons.item()) if photons.size == 1 else photons
        object.__setattr__(self, "photons", photons)
        if missing is not None:
            missing = np.broadcast_to(_compact(missing), shape)
        object.__setattr__(self, "missing", missing)
        noise, meant = self.electronic, "its standard deviation, in photons"
        if isinstance(noise, bool) or not isinstance(noise, int | float | np.number) or not noise >= 0:
            problem = "the noise must be a number of 0 or more"
            raise InputError(problem, source="electronic", value=noise, expected=meant)
        if not math.isfinite(noise):
            raise InputError("the noise must be finite", source="electronic", value=noise, expected=meant)
        object.__setattr__(self, "electronic", float(noise))

    @classmethod
    def from_counts(
        cls,
        counts: NDArray[Any],
        photons: float | NDArray[Any],
        geometry: ScanGeometry,
        *,
        electronic: float = 0.0,
        missing: OnMissing = "refuse",
    ) -> Scan:
        """Build a scan from what the detector counted.

        A count below :data:`LEAST_COUNT` is raised to it, and :attr:`starved` says how many were. A ray
        without photons was not measured, whatever was counted there.

        Args:
            counts: Shape (views, rows, bins). Negative ones only where there is electronic noise.
            photons: What a bin counts with nothing in the way: a number, or as :attr:`photons`.
            geometry: The scanner.
            electronic: Standard deviation of the detector's own noise, in photons.
            missing: Whether counts that are not finite, and whole views that counted nothing while the others
                did, are refused, or marked as not measured.

        Raises:
            GeometryError: Counts of another shape than the geometry's.
            InputError: Counts that are not finite or a dead view, unless marked; counts that are negative
                without electronic noise; photons as for the class.
        """
        expected = _checked_photons(photons, geometry.shape)
        if expected is None:
            raise _no_photons(photons)
        gone = np.broadcast_to(np.asarray(expected) == 0, geometry.shape)
        values = np.asarray(counts)
        if missing == "mark" and values.shape == geometry.shape and values.dtype.kind == "f":
            gone = gone | ~np.isfinite(values)
        values = _real(values, geometry, "counts", gone if gone.any() else None)
        if electronic == 0 and (values < 0).any():
            first = tuple(int(n) for n in np.argwhere(values < 0)[0])
            raise InputError(
                "counts are negative",
                source="counts",
                value=f"{int((values < 0).sum())} of {values.size}, first {values[first]:g} at {first}",
                expected="0 or more, or the standard deviation of the electronic noise",
            )
        dead = _dead_views(values, gone, electronic)
        if len(dead) and missing == "refuse":
            raise InputError(
                "views counted nothing, though the others did",
                source="counts",
                value=f"{len(dead)} of {len(values)} views, first {int(dead[0])}",
                expected='another scan, or missing="mark"',
            )
        if len(dead):
            gone = np.array(gone)
            gone[dead] = True
        low = (values < LEAST_COUNT) & ~gone
        with np.errstate(divide="ignore"):
            rays = np.log(expected) - np.log(np.maximum(values, LEAST_COUNT))
        return cls(
            np.where(gone, 0, rays).astype(np.float32),
            geometry,
            photons,
            electronic=electronic,
            starved=int(low.sum()),
            missing=gone if gone.any() else None,
        )

    @property
    def measured(self) -> int:
        """How many rays were measured."""
        return self.sinogram.size - (0 if self.missing is None else int(self.missing.sum()))

    @property
    def mean_photons(self) -> float | None:
        """Mean of the photons over the rays that were measured; None where they are not known."""
        if self.photons is None or isinstance(self.photons, float):
            return self.photons
        return float(self.photons.mean(dtype=np.float64, where=self.photons > 0))

    @property
    def counts(self) -> NDArray[np.float64]:
        """Counts that the line integrals stand for, shape (views, rows, bins); 0 where none was measured.

        Raises:
            InputError: The number of photons is not known.
        """
        return self._counts(slice(None))

    @property
    def variance(self) -> NDArray[np.float64]:
        """Variance of each line integral, from the counts: (n + s^2) / n^2; infinite where none was measured.

        Raises:
            InputError: The number of photons is not known.
        """
        return self.variance_in(slice(None))

    def variance_in(self, rays: slice | tuple[slice, ...]) -> NDArray[np.float64]:
        """Return :attr:`variance` of some of the rays.

        Args:
            rays: Some of the views, or of the views and the rows, as slices.

        Raises:
            InputError: The number of photons is not known.
        """
        counts = self._counts(rays)
        np.maximum(counts, LEAST_COUNT, out=counts)
        found: NDArray[np.float64] = counts + self.electronic**2
        counts *= counts
        found /= counts
        if self.missing is not None:
            found[self.missing[rays]] = math.inf
        return found

    def _counts(self, rays: slice | tuple[slice, ...]) -> NDArray[np.float64]:
        photons = self.photons
        if photons is None:
            raise InputError("the scan does not say its dose", source="photons", expected="photons per ray")
        if isinstance(photons, np.ndarray):
            photons = np.broadcast_to(photons, self.sinogram.shape)[rays]
        found = self.sinogram[rays].astype(np.float64)
        np.negative(found, out=found)
        np.exp(found, out=found)
        found *= photons
        return found

    def replace(self, **changes: Any) -> Scan:
        """Return a scan with the named attributes changed; everything is checked again."""
        return dataclasses.replace(self, **changes)


def broken_rays(sinogram: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which line integrals cannot have been measured, to be handed to :class:`Scan` as missing.

    They are those that are not finite, and those of views in which every ray has one value (a view that the
    detector slept through) while another view's rays differ.

    Args:
        sinogram: Shape (views, rows, bins).

    Returns:
        Bool, shape (views, rows, bins).
    """
    values = np.asarray(sinogram)
    broken = ~np.isfinite(values)
    if values.ndim == 3 and math.prod(values.shape[1:]) > 1:
        rest = np.where(broken, np.nan, values).reshape(len(values), -1)
        known = ~np.isnan(rest)
        low = np.min(rest, axis=1, where=known, initial=np.inf)
        high = np.max(rest, axis=1, where=known, initial=-np.inf)
        same = (high <= low) & (known.sum(axis=1) > 1)
        if not (same | ~known.any(axis=1)).all():
            broken[same] = True
    return np.asarray(broken)


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


def _checked_photons(photons: Any, shape: tuple[int, int, int]) -> float | NDArray[np.floating[Any]] | None:
    """Return photons as a positive number, or as an array of three axes with no negative number."""
    if photons is None:
        return None
    if isinstance(photons, bool | str) or np.asarray(photons).dtype.kind not in "iuf":
        raise _no_photons(photons)
    values = np.asarray(photons)
    values = values if values.dtype.kind == "f" else values.astype(np.float64)
    if values.ndim == 0:
        if not (math.isfinite(values) and values > 0):
            raise _no_photons(photons)
        return float(values)
    if not _broadcasts(values.shape, shape):
        raise GeometryError(
            "photons do not suit the geometry",
            source="photons",
            value=values.shape,
            expected=f"a number, or three axes that broadcast to {shape}: views, rows, bins",
        )
    wrong = ~np.isfinite(values) | (values < 0)
    if wrong.any():
        first = tuple(int(n) for n in np.argwhere(wrong)[0])
        raise InputError(
            "photons must be numbers of 0 or more",
            source="photons",
            value=f"{int(wrong.sum())} of {values.size}, first {values[first]:g} at {first}",
            expected="0 where a ray was not measured",
        )
    return values


def _no_photons(photons: Any) -> InputError:
    return InputError(
        "photons must be a positive number",
        source="photons",
        value=repr(photons)[:80],
        expected="what a bin counts with nothing in the way",
    )


def _checked_missing(
    missing: Any, photons: float | NDArray[Any] | None, shape: tuple[int, int, int]
) -> NDArray[np.bool_] | None:
    """Return the rays that were given as missing and those without photons; None where there are none."""
    found = np.zeros((1, 1, 1), bool)
    if missing is not None:
        found = np.asarray(missing)
        if found.dtype != bool or not _broadcasts(found.shape, shape):
            raise GeometryError(
                "missing rays do not suit the geometry",
                source="missing",
                value=f"{found.dtype} of shape {found.shape}",
                expected=f"bool of shape {shape}",
            )
    if isinstance(photons, np.ndarray):
        found = found | (photons == 0)
    if not found.any():
        return None
    if found.all():
        raise InputError("no ray was measured", source="missing", value="all rays", expected="some that were")
    return np.broadcast_to(found, shape)


def _broadcasts(given: tuple[int, ...], shape: tuple[int, int, int]) -> bool:
    return len(given) == 3 and all(n in (1, m) for n, m in zip(given, shape, strict=True))


def _compact(values: NDArray[Any]) -> NDArray[Any]:
    """Return an array of length 1 along each axis on which it does not change, read-only."""
    for axis, size in enumerate(values.shape):
        first = values.take([0], axis)
        if size > 1 and bool((values == first).all()):
            values = first
    values = np.array(values)
    values.setflags(write=False)
    return values


def _dead_views(counts: NDArray[Any], gone: NDArray[np.bool_], electronic: float) -> NDArray[np.int64]:
    """Return the views that counted nothing but noise, where the usual view counted more than a few."""
    known = (~gone).sum(axis=(1, 2))
    total = np.where(gone, 0, counts).sum(axis=(1, 2), dtype=np.float64)
    nothing = 5 * electronic * np.sqrt(known)
    usual = float(np.median(total[known > 0])) if (known > 0).any() else 0.0
    likely = usual > _DEAD_LIKELY + 4 * nothing
    return np.flatnonzero(likely & (known > 0) & (total <= nothing))


def _real(
    values: Any, geometry: ScanGeometry, what: str, missing: NDArray[np.bool_] | None = None
) -> NDArray[np.floating[Any]]:
    """Return real numbers of the geometry's shape, finite, with 0 where they are missing."""
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
    if missing is not None:
        array = np.where(missing, array.dtype.type(0), array)
    wrong = ~np.isfinite(array)
    if wrong.any():
        first = tuple(int(n) for n in np.argwhere(wrong)[0])
        way = 'missing="mark"' if what == "counts" else "missing=broken_rays(sinogram)"
        raise InputError(
            f"{what} are not finite",
            value=f"{int(wrong.sum())} of {wrong.size}, first {array[first]} at {first} (view, row, bin)",
            expected=f"finite numbers, or {way} to leave such rays out",
        )
    return array
