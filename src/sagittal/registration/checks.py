"""What speaks against a registration, told from the registration alone.

A registration that was given two images that do not belong together moves one until they look alike, and
can do so without a fold. Two things show it: the deformation is one that no two anatomies differ by; and
the images were hardly more alike, before they were deformed, than they are with one of them turned far
another way, which is a control that has the same intensities, the same texture and no right answer
[inference]. An image that was stored with left and right exchanged is not told: a head is nearly its own
mirror image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sagittal.registration.affine import AffineSearch
from sagittal.volume import DisplacementField, Geometry
from sagittal.volume.field_maps import inside, places

if TYPE_CHECKING:
    from sagittal.registration.optimise import Registration

__all__ = ["alike_and_otherwise", "found_problems"]

_WILD = 8.0  # a growth or shrinking that no two anatomies differ by
_NARROW = 2.0  # the same along one direction
_MORE = 1.05  # times as alike as turned another way: what is less may be chance
_MUCH = 0.75  # of the information: no two anatomies are so alike, but an object and its turned copy can be
_LITTLE = 0.1  # of the information: what is less may be chance
_SAME = 2.41  # trace of a turn by 45 degrees: with more, two maps are turned the same way
_SHARED = 0.1  # of the fixed image, at least


def alike_and_otherwise(
    search: AffineSearch, matrix: NDArray[np.float64], *, given: bool = False
) -> tuple[float, float]:
    """Return how alike two images are under an affine map, and how alike with one of them turned another way.

    Both are :meth:`AffineSearch.information`. The other way is the best one that is found among turns of
    more than 74 degrees from the map, and is brought as close as the images come from there; where it ends
    less than 45 degrees from the map, there is no other way, and the second number is 0.

    Args:
        search: The two images.
        matrix: The map that was found for them, (4, 4) from fixed to moving space in RAS+ mm.
        given: Whether the map was not looked for, but given, and may lie beside the best one.
    """
    found = search.near(matrix) if given else matrix
    other = search.otherwise(found)
    left, _, right = np.linalg.svd((np.linalg.inv(found) @ other)[:3, :3])
    same = float(np.trace(left @ right)) > _SAME
    return search.information(found), 0.0 if same else search.information(other)


def found_problems(registration: Registration) -> tuple[str, ...]:
    """Return what speaks against a registration, one sentence each."""
    field, found = registration.field, []
    least, largest = float(field.determinant.min()), float(field.determinant.max())
    scale = float(np.linalg.det(registration.affine[:3, :3]))
    stretch = np.linalg.svd(registration.affine[:3, :3])[1]
    if scale <= 0:
        found.append("the affine map mirrors the image")
    elif stretch.max() > _NARROW or stretch.min() < 1 / _NARROW:
        found.append(f"the affine map stretches the image by {stretch.min():.3g} to {stretch.max():.3g}")
    if field.folds:
        found.append(f"{field.folds} voxels fold")
    elif least < abs(scale) / _WILD or largest > abs(scale) * _WILD:
        found.append(f"the Jacobian determinant goes from {least:.3g} to {largest:.3g}")
    if not registration.inverse_consistency_mm <= max(field.geometry.spacing):
        found.append(f"field and inverse miss each other by {registration.inverse_consistency_mm:.3g} mm")
    tried = [level for level in registration.energies if len(level) > 1]
    closer = any(min(level) < level[0] for level in tried)
    if tried and not closer and not _already(registration):
        found.append("the images did not become more alike")
    shared = _shared(registration, registration.inverse.geometry)
    if shared < _SHARED:
        found.append(f"only {100 * shared:.2g} % of the fixed image is seen in the moving one")
    alike, control = registration.alike
    if alike < _LITTLE or not (alike > _MORE * control or alike > _MUCH):
        found.append(
            "the images are hardly more alike than with one of them turned another way: "
            f"{alike:.2g}, {control:.2g}"
        )
    return tuple(found)


def _already(registration: Registration) -> bool:
    """Tell whether the affine map did it all: what is one image twice cannot come closer."""
    plain = DisplacementField.from_affine(registration.affine, registration.field.geometry)
    still = np.allclose(registration.field.vectors, plain.vectors, atol=1e-3)
    return still and registration.alike[0] > _MUCH


def _shared(registration: Registration, moving: Geometry) -> float:
    field = registration.field
    return float(inside(places(field.vectors, field.geometry.affine, moving.affine), moving.shape).mean())
