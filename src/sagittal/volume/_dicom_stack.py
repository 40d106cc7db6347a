"""From planes in space to one grid: order, spacing and tilt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import GeometryError
from sagittal.volume._dicom_frames import Frame
from sagittal.volume.geometry import Geometry

__all__ = ["stack"]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_SAME_PLACE_MM = 1e-3
_SPACING_TOLERANCE = 0.02  # share of the spacing that a slice may be off its place
_SMALLEST_TOLERANCE_MM = 0.01
_TILT_DEGREES = 0.1
_TILT_MM = 0.05
_SAME_DIRECTION = 1e-4


def stack(
    frames: Sequence[Frame], source: object, allow_tilt: bool = False
) -> tuple[list[int], Geometry, float]:
    """Order parallel planes along their normal and find the grid that they form.

    Index axis 0 runs along the columns' index, axis 1 along the rows' index, axis 2 from plane to
    plane in the direction of row x column.

    Returns:
        The order (indices into ``frames``), the grid in RAS+ mm, and the angle in degrees between
        the stacking direction and the planes' normal (0 for one plane).

    Raises:
        GeometryError: Planes that differ in size, pixel spacing or direction; two at one place; a
            missing one; uneven spacing; a tilt that was not allowed; one plane without thickness.
    """
    first = frames[0]
    for frame in frames[1:]:
        _require_same_plane(first, frame)
    in_plane = np.stack([first.row * first.spacing[1], first.column * first.spacing[0]], axis=1)
    if len(frames) == 1:
        if first.thickness is None:
            raise GeometryError(
                "a single slice without thickness has no third dimension",
                source=source,
                value="no SliceThickness",
                expected="SliceThickness or SpacingBetweenSlices",
            )
        return [0], _grid(in_plane, first.normal * first.thickness, first, 1), 0.0
    positions = np.stack([frame.position for frame in frames])
    along = positions @ first.normal
    order = [int(index) for index in np.argsort(along, kind="stable")]
    _require_even([frames[index] for index in order], along[order], source)
    start, end = positions[order[0]], positions[order[-1]]
    step = (end - start) / (len(frames) - 1)
    angle = _tilt(end - start, first.normal)
    if angle > 0 and not allow_tilt:
        raise GeometryError(
            "the slices are stacked at a slant to their normal (gantry tilt)",
            source=source,
            value=f"{angle:.2f} degrees",
            expected="allow_tilt=True for a sheared grid, or an untilted series",
        )
    fitted = start + step * np.arange(len(frames))[:, None]
    off = np.linalg.norm(positions[order] - fitted, axis=1)
    worst = int(np.argmax(off))
    if off[worst] > _tolerance(float(np.linalg.norm(step))):
        raise GeometryError(
            "the slices do not lie on one line",
            source=frames[order[worst]].source,
            value=f"{off[worst]:.3g} mm off",
            expected="equal steps from slice to slice",
        )
    return order, _grid(in_plane, step, frames[order[0]], len(frames)), angle


def _grid(in_plane: NDArray[np.float64], step: NDArray[np.float64], first: Frame, count: int) -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS @ np.column_stack([in_plane, step])
    affine[:3, 3] = _LPS_TO_RAS @ first.position
    rows, columns = first.size
    return Geometry((columns, rows, count), affine)


def _require_same_plane(first: Frame, other: Frame) -> None:
    def differ(what: str, one: object, two: object) -> GeometryError:
        return GeometryError(
            f"the slices differ in {what}",
            source=other.source,
            value=f"{two}, and {one} in {first.source.name}",
            expected="one series of parallel slices of one size",
        )

    if first.size != other.size:
        raise differ("rows and columns", first.size, other.size)
    if not np.allclose(first.spacing, other.spacing, rtol=1e-4, atol=0):
        raise differ("pixel spacing", first.spacing, other.spacing)
    here, there = np.concatenate([first.row, first.column]), np.concatenate([other.row, other.column])
    if np.abs(here - there).max() > _SAME_DIRECTION:
        raise differ("orientation", np.round(here, 4).tolist(), np.round(there, 4).tolist())


def _require_even(frames: Sequence[Frame], along: NDArray[np.float64], source: object) -> None:
    gaps = np.diff(along)
    for index in np.flatnonzero(gaps < _SAME_PLACE_MM).tolist():
        one, two = frames[index], frames[index + 1]
        names = f"{one.source.name} and {two.source.name}"
        raise GeometryError(
            "two slices lie at one position",
            source=source,
            value=f"{along[index]:.3f} mm along the normal in {names}",
            expected="one slice a position; choose one phase, echo or acquisition",
        )
    smallest = float(gaps.min())
    typical = float(np.median(gaps))
    if float(gaps.max()) - smallest <= 2 * _tolerance(typical):
        return
    step = float(np.median(gaps[gaps < 1.5 * smallest]))
    multiples = np.rint(gaps / step)
    if np.all(np.abs(gaps - multiples * step) <= _tolerance(step) * multiples):
        missing = [
            f"{int(multiples[index]) - 1} between {along[index]:.3f} and {along[index + 1]:.3f} mm"
            for index in np.flatnonzero(multiples > 1)
        ]
        shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more gaps" if len(missing) > 10 else "")
        raise GeometryError(
            "slices are missing",
            source=source,
            value=f"{shown} along the normal",
            expected=f"a slice every {step:.4g} mm",
        )
    uneven = int(np.argmax(np.abs(gaps - typical)))
    raise GeometryError(
        "the slices are unevenly spaced",
        source=source,
        value=f"gaps of {smallest:.4g} to {gaps.max():.4g} mm, the oddest after {along[uneven]:.3f} mm",
        expected=f"equal gaps (most are {typical:.4g} mm)",
    )


def _tolerance(step: float) -> float:
    return max(_SMALLEST_TOLERANCE_MM, _SPACING_TOLERANCE * step)


def _tilt(span: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    """Angle in degrees between the stack's span and the normal; 0 where positions are merely rounded."""
    axial = float(span @ normal)
    sideways = float(np.linalg.norm(span - axial * normal))
    angle = math.degrees(math.atan2(sideways, axial))
    return angle if sideways > _TILT_MM and angle > _TILT_DEGREES else 0.0
