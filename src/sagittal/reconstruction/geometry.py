"""How a scanner looks at its object: parallel, fan and cone beams, as data.

Axes are the patient's (RAS+, mm). The gantry turns about the line through ``centre`` along the third
axis. At angle ``a`` the bins of the detector lie along ``(cos a, sin a)``, and rays run along ``(-sin a,
cos a)``; the source of a fan or a cone stands ``source_distance`` before the axis, seen along the rays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import FormatError, GeometryError, InputError

__all__ = [
    "ConeBeam",
    "FanBeam",
    "ParallelBeam",
    "ScanGeometry",
    "finer_bins",
    "geometry_from_json",
    "some_rays",
    "some_views",
]

_MOST_TURNS = 2.0
_DEGREES = 0.5  # radians from view to view that no helical scan has
_TURN = 2 * math.pi
_WIDEST = math.pi / 4  # half a fan


@dataclass(frozen=True, kw_only=True)
class ParallelBeam:
    """Parallel rays in a plane, one plane for each slice.

    Attributes:
        angles: Angle of each view, radians.
        bins: Bins of the detector in one view.
        bin_width: Width of a bin, mm.
        offset: How far the detector's middle lies from the axis, in bins.
        rows: Slices that are scanned, each by itself.
        centre: A point of the axis, RAS+ mm.

    Raises:
        InputError: No views, angles that look like degrees, are not finite or do not turn; a size that is not
            positive.
    """

    kind: ClassVar[str] = "parallel"

    angles: tuple[float, ...]
    bins: int
    bin_width: float
    offset: float = 0.0
    rows: int = 1
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a sinogram: views, rows, bins."""
        return len(self.angles), self.rows, self.bins

    @property
    def edges(self) -> NDArray[np.float64]:
        """Where the edges of the bins lie on the detector, mm, shape (bins + 1,)."""
        return _edges(self)


@dataclass(frozen=True, kw_only=True)
class FanBeam:
    """A fan of rays in a plane, one plane for each slice.

    Attributes:
        angles: Angle of each view, radians.
        bins: Bins of the detector in one view.
        bin_width: Width of a bin on the detector (along the arc of a curved one), mm.
        source_distance: From the source to the axis, mm.
        detector_distance: From the source to the detector, mm.
        curved: Whether the detector is an arc about the source.
        offset: How far the detector's middle lies from the central ray, in bins.
        rows: Slices that are scanned, each by itself.
        centre: A point of the axis, RAS+ mm.

    Raises:
        InputError: As for :class:`ParallelBeam`; a fan of more than 90 degrees, a detector before the source.
    """

    kind: ClassVar[str] = "fan"

    angles: tuple[float, ...]
    bins: int
    bin_width: float
    source_distance: float
    detector_distance: float
    curved: bool = False
    offset: float = 0.0
    rows: int = 1
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a sinogram: views, rows, bins."""
        return len(self.angles), self.rows, self.bins

    @property
    def edges(self) -> NDArray[np.float64]:
        """Where the edges of the bins lie on the detector, mm, shape (bins + 1,)."""
        return _edges(self)

    @property
    def fan_angles(self) -> NDArray[np.float64]:
        """Angle of each edge from the central ray, radians, shape (bins + 1,)."""
        return _fan_angles(self)


@dataclass(frozen=True, kw_only=True)
class ConeBeam:
    """A cone of rays onto a detector of several rows, on a circle or along a helix.

    Attributes:
        angles: Angle of each view, radians; any number of turns along a helix.
        bins: Bins of a detector row.
        rows: Rows of the detector, from inferior to superior.
        bin_width: Width of a bin on the detector (along the arc of a curved one), mm.
        row_height: Height of a detector row, mm.
        source_distance: From the source to the axis, mm.
        detector_distance: From the source to the detector, mm.
        curved: Whether the detector is a cylinder about a line through the source along the axis.
        offset: How far the detector's middle lies from the central ray, in bins.
        row_offset: How far it lies above the source's height, in rows.
        pitch: Advance of the source in one turn towards rising angles, mm; 0 for a circle.
        centre: Where the axis meets the height of the source halfway between first and last view, RAS+ mm.

    Raises:
        InputError: As for :class:`FanBeam`.
    """

    kind: ClassVar[str] = "cone"

    angles: tuple[float, ...]
    bins: int
    rows: int
    bin_width: float
    row_height: float
    source_distance: float
    detector_distance: float
    curved: bool = False
    offset: float = 0.0
    row_offset: float = 0.0
    pitch: float = 0.0
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a sinogram: views, rows, bins."""
        return len(self.angles), self.rows, self.bins

    @property
    def edges(self) -> NDArray[np.float64]:
        """Where the edges of the bins lie on the detector, mm, shape (bins + 1,)."""
        return _edges(self)

    @property
    def fan_angles(self) -> NDArray[np.float64]:
        """Angle of each edge from the central ray, radians, shape (bins + 1,)."""
        return _fan_angles(self)

    @property
    def heights(self) -> NDArray[np.float64]:
        """Height of the source in each view, RAS+ mm, shape (views,)."""
        angles = np.asarray(self.angles)
        middle = (angles[0] + angles[-1]) / 2
        return np.asarray(self.centre[2] + self.pitch * (angles - middle) / _TURN)


ScanGeometry = ParallelBeam | FanBeam | ConeBeam


def geometry_to_json(geometry: ScanGeometry) -> dict[str, Any]:
    """Return a geometry as JSON values; :func:`geometry_from_json` gives back an equal one."""
    return {"kind": geometry.kind, **asdict(geometry)}


def geometry_from_json(value: Mapping[str, Any]) -> ScanGeometry:
    """Build a geometry from what :func:`geometry_to_json` gave.

    Raises:
        FormatError: The kind is unknown, a field is missing or there is one too many.
        InputError: A value is refused by the geometry.
    """
    kinds: dict[str, type[ParallelBeam] | type[FanBeam] | type[ConeBeam]] = {
        kind.kind: kind for kind in (ParallelBeam, FanBeam, ConeBeam)
    }
    given = dict(value)
    kind = kinds.get(str(given.pop("kind", None)))
    if kind is None:
        raise FormatError(
            "the scan's geometry is of no known kind", value=value.get("kind"), expected=", ".join(kinds)
        )
    names = {field.name for field in fields(kind)}
    if wrong := sorted(names ^ set(given)):
        raise FormatError(
            "fields of the scan's geometry are missing or unknown", value=wrong, expected=str(sorted(names))
        )
    for name in ("angles", "centre"):
        if not isinstance(given[name], Sequence):
            raise FormatError(f"the geometry's {name} are no list", value=type(given[name]).__name__)
        given[name] = tuple(given[name])
    return kind(**given)


def finer_bins(geometry: ScanGeometry, parts: int) -> ScanGeometry:
    """Return the same scanner with each bin cut into so many; rows stay as they are."""
    return replace(
        geometry,
        bins=geometry.bins * parts,
        bin_width=geometry.bin_width / parts,
        offset=geometry.offset * parts,
    )


def _check(geometry: ScanGeometry) -> None:
    angles = _numbers(geometry, "angles")
    object.__setattr__(geometry, "angles", tuple(angles.tolist()))
    centre = _numbers(geometry, "centre")
    if centre.shape != (3,):
        raise InputError(
            "the centre needs three coordinates", source="centre", value=centre.tolist(), expected="RAS+ mm"
        )
    object.__setattr__(geometry, "centre", tuple(centre.tolist()))
    for name in ("bins", "rows"):
        count = getattr(geometry, name)
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise InputError(f"{name} must be a positive whole number", source=name, value=repr(count))
        object.__setattr__(geometry, name, int(count))
    for name in (
        "bin_width",
        "row_height",
        "source_distance",
        "detector_distance",
        "offset",
        "row_offset",
        "pitch",
    ):
        if hasattr(geometry, name):
            number = _number(geometry, name)
            if number <= 0 and name not in ("offset", "row_offset", "pitch"):
                raise InputError(f"{name} must be positive", source=name, value=number, expected="mm")
            object.__setattr__(geometry, name, number)
    _check_angles(angles, helical=isinstance(geometry, ConeBeam) and geometry.pitch != 0)
    if not isinstance(geometry, ParallelBeam):
        _check_fan(geometry)


def _check_angles(angles: NDArray[np.float64], *, helical: bool) -> None:
    if len(angles) < 1:
        raise InputError("there are no views", source="angles", expected="one angle or more, in radians")
    steps = np.diff(angles)
    span = float(np.ptp(angles))
    usual = float(np.median(np.abs(steps))) if len(steps) else 0.0
    if np.abs(angles).max() > _MOST_TURNS * _TURN and (not helical or usual > _DEGREES):
        raise InputError(
            "the view angles look like degrees",
            source="angles",
            value=f"{angles.min():g} to {angles.max():g}",
            expected="radians: numpy.deg2rad(angles)",
        )
    if len(angles) > 1 and span < 1e-6:
        raise InputError(
            "the gantry does not turn: all views have one angle", source="angles", value=float(angles[0])
        )
    if helical and not (np.all(steps > 0) or np.all(steps < 0)):
        at = int(np.argmax(steps * np.sign(angles[-1] - angles[0]) <= 0))
        raise InputError(
            "the gantry turns back along the helix",
            source="angles",
            value=f"view {at + 1}: {angles[at + 1]:g} after {angles[at]:g}",
            expected="angles that only rise or only fall",
        )


def _check_fan(geometry: FanBeam | ConeBeam) -> None:
    if geometry.detector_distance <= geometry.source_distance / 2:
        raise InputError(
            "the detector stands before the object",
            source="detector_distance",
            value=geometry.detector_distance,
            expected=f"the distance from source to detector, above {geometry.source_distance:g} / 2",
        )
    reach = float(np.abs(geometry.edges).max()) / geometry.detector_distance
    widest = reach if geometry.curved else math.atan(reach)
    if widest >= _WIDEST:
        raise InputError(
            "the fan is too wide",
            source="bins x bin_width",
            value=f"{math.degrees(widest):.1f} degrees to one side",
            expected="less than 45",
        )


def _edges(geometry: ScanGeometry) -> NDArray[np.float64]:
    places = np.arange(geometry.bins + 1) - geometry.bins / 2 + geometry.offset
    return np.asarray(places * geometry.bin_width)


def _fan_angles(geometry: FanBeam | ConeBeam) -> NDArray[np.float64]:
    along = geometry.edges / geometry.detector_distance
    return along if geometry.curved else np.arctan(along)


def _numbers(geometry: ScanGeometry, name: str) -> NDArray[np.float64]:
    try:
        values = np.array(getattr(geometry, name), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name} are no numbers", source=name, value=repr(getattr(geometry, name))[:80]
        ) from error
    if values.ndim != 1 or not np.all(np.isfinite(values)):
        raise InputError(
            f"{name} must be finite numbers in one row", source=name, value=f"shape {values.shape}"
        )
    return values


def _number(geometry: ScanGeometry, name: str) -> float:
    value = getattr(geometry, name)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | np.floating | np.integer)
        or not math.isfinite(value)
    ):
        raise InputError(f"{name} must be a finite number", source=name, value=repr(value))
    return float(value)


def subset(geometry: ScanGeometry, views: slice) -> ScanGeometry:
    """Return the geometry of some of the views, each where it was."""
    angles = geometry.angles[views]
    if not isinstance(geometry, ConeBeam) or geometry.pitch == 0:
        return replace(geometry, angles=angles)
    x, y, z = geometry.centre
    moved = (angles[0] + angles[-1] - geometry.angles[0] - geometry.angles[-1]) / 2
    return replace(geometry, angles=angles, centre=(x, y, z + geometry.pitch * moved / _TURN))


def some_views(shape: tuple[int, ...], rays: int = 1 << 15) -> Iterator[slice]:
    """Yield all views of a sinogram of this shape, some neighbours at a time.

    Args:
        shape: Views, rows, bins.
        rays: At most so many, unless one view has more; without it, what a processor's cache holds.
    """
    many = max(1, rays // math.prod(shape[1:]))
    for first in range(0, shape[0], many):
        yield slice(first, min(first + many, shape[0]))


def some_rays(shape: tuple[int, ...], rays: int = 1 << 14) -> Iterator[tuple[slice, slice]]:
    """Yield all rays of a sinogram of this shape, as :func:`some_views` does, or some rows of one view."""
    rows = max(1, rays // shape[2])
    for views in some_views(shape, rays):
        for first in range(0, shape[1], rows):
            yield views, slice(first, min(first + rows, shape[1]))


def require_covered(geometry: ScanGeometry, radius: float) -> None:
    """Refuse a source inside the circle that a grid needs about the axis.

    Raises:
        GeometryError: The source turns through the grid.
    """
    if not isinstance(geometry, ParallelBeam) and geometry.source_distance <= radius:
        raise GeometryError(
            "the source turns through the image",
            source="source_distance",
            value=f"{geometry.source_distance:g} mm",
            expected=f"more than {radius:.1f} mm, where the grid's corners are",
        )
