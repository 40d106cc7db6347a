"""An image in space, with its unit and its doubt."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import GeometryError, InputError
from sagittal.core.provenance import canonical_json, hash_array, hash_json
from sagittal.volume._arrays import frozen, refuse_where
from sagittal.volume.geometry import Geometry

__all__ = ["PROBABILITY_TOLERANCE", "Volume", "require_same_space"]

PROBABILITY_TOLERANCE = 1e-3
"""How far the class probabilities of one voxel may sum above 1 (room for float16 rounding)."""


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """A three-dimensional image: voxels, where they lie, what they measure, and how sure they are.

    The arrays are read-only. One that can still be written to by somebody else is copied; one that
    is already read-only down to its owner is kept as it is. Big-endian arrays become native ones.

    Attributes:
        array: Voxels of shape (i, j, k); bool, integer or float of at most 8 bytes; all finite.
        geometry: The grid that the voxels lie on.
        unit: Unit of the voxels in the field's own spelling: "HU", "SUV", "1" for a number without
            unit, "a.u." for an arbitrary scale.
        variance: Variance of each voxel, shape (i, j, k), in the unit squared; absent when not known.
        probabilities: Probability of each class in each voxel, floats of shape (i, j, k, classes) in
            [0, 1]. A voxel's sum may stay below 1: the rest belongs to no named class.
        classes: One distinct name for each class of ``probabilities``; empty without them.
        facts: How the image was acquired, as JSON values (modality, tube voltage, ...); never
            anything that identifies a person.

    Raises:
        InputError: A dtype that is not real, voxels that are not finite, a negative variance,
            probabilities outside [0, 1] or summing to more than 1, names that do not match, facts
            that are not JSON, an empty unit.
        GeometryError: An array whose shape is not the geometry's.
    """

    array: NDArray[Any]
    geometry: Geometry
    unit: str = "1"
    variance: NDArray[Any] | None = None
    probabilities: NDArray[Any] | None = None
    classes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.unit or not isinstance(self.unit, str):
            raise InputError("a volume needs a unit", value=repr(self.unit), expected='such as "HU" or "1"')
        shape = self.geometry.shape
        object.__setattr__(self, "array", frozen(self.array, "voxels", shape, "biuf"))
        if self.variance is not None:
            variance = frozen(self.variance, "variance", shape, "iuf")
            refuse_where(variance < 0, variance, "variance is negative", "0 or more")
            object.__setattr__(self, "variance", variance)
        object.__setattr__(self, "classes", _checked_classes(self.classes))
        if self.probabilities is None:
            if self.classes:
                raise InputError("classes are named without probabilities", value=list(self.classes))
        else:
            probabilities = frozen(self.probabilities, "probabilities", (*shape, len(self.classes)), "f")
            refuse_where(
                (probabilities < 0) | (probabilities > 1),
                probabilities,
                "probabilities leave their range",
                "0 to 1",
            )
            total = probabilities.sum(axis=-1, dtype=np.float64)
            refuse_where(
                total > 1 + PROBABILITY_TOLERANCE, total, "probabilities of one voxel sum to more than 1", "1"
            )
            object.__setattr__(self, "probabilities", probabilities)
        if not isinstance(self.facts, Mapping):
            raise InputError("facts are not a mapping", value=type(self.facts).__name__)
        facts = json.loads(canonical_json(dict(self.facts)))
        object.__setattr__(self, "facts", MappingProxyType(facts))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each index axis."""
        return self.geometry.shape

    @functools.cached_property
    def content_hash(self) -> str:
        """sha256 of everything that a method may depend on; the facts are left out.

        It covers voxels (dtype, shape, values), geometry, unit, variance, probabilities and classes.
        """
        return hash_json(
            {
                "array": hash_array(self.array),
                "geometry": self.geometry.to_json(),
                "unit": self.unit,
                "variance": None if self.variance is None else hash_array(self.variance),
                "probabilities": None if self.probabilities is None else hash_array(self.probabilities),
                "classes": list(self.classes),
            }
        )

    def replace(self, **changes: Any) -> Volume:
        """Return a volume with the named attributes changed; everything is checked again."""
        return dataclasses.replace(self, **changes)

    def with_array(
        self,
        array: NDArray[Any],
        *,
        unit: str | None = None,
        variance: NDArray[Any] | None = None,
        probabilities: NDArray[Any] | None = None,
        classes: Sequence[str] = (),
    ) -> Volume:
        """Return other voxels on the same grid with the same facts.

        Variance and probabilities belong to the voxels they were computed for, so the old ones are
        dropped: hand in the new ones, or use :meth:`replace` to keep them.
        """
        return Volume(
            array,
            self.geometry,
            unit=self.unit if unit is None else unit,
            variance=variance,
            probabilities=probabilities,
            classes=tuple(classes),
            facts=self.facts,
        )

    def __repr__(self) -> str:
        extras = [f"unit={self.unit!r}"]
        if self.variance is not None:
            extras.append("variance")
        if self.classes:
            extras.append(f"classes={list(self.classes)}")
        return f"Volume({self.array.dtype}, {self.geometry!r}, {', '.join(extras)})"

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.array, self.geometry, self.unit, self.variance, self.probabilities, self.classes)
        return Volume, (*arguments, dict(self.facts))


def require_same_space(
    a: Volume | Geometry, b: Volume | Geometry, tolerance_mm: float = 1e-3, *, source: object = None
) -> None:
    """Refuse two volumes (or grids) whose voxels do not lie at the same positions.

    Raises:
        GeometryError: The shapes differ, or a voxel of one lies more than ``tolerance_mm`` away from
            the same voxel of the other; the message says how far.
    """
    first = a.geometry if isinstance(a, Volume) else a
    second = b.geometry if isinstance(b, Volume) else b
    if first.shape != second.shape:
        raise GeometryError(
            "two volumes have different shapes", source=source, value=f"{first.shape} and {second.shape}"
        )
    if not first.is_aligned(second, tolerance_mm):
        apart = float(np.linalg.norm(first.corners - second.corners, axis=1).max())
        raise GeometryError(
            "two volumes do not lie in the same place",
            source=source,
            value=f"corners {apart:.4g} mm apart",
            expected=f"{tolerance_mm:g} mm or less; resample one onto the other",
        )


def _checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    names = tuple(classes)
    if isinstance(classes, str) or not all(isinstance(name, str) and name for name in names):
        raise InputError("classes must be names", value=repr(classes), expected="a tuple of words")
    if len(set(names)) != len(names):
        raise InputError("a class is named twice", value=list(names), expected="distinct names")
    return names
