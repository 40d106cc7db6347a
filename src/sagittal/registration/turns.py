"""Turns spread evenly over all there are, for what is to be looked for whichever way up it lies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sagittal.volume import Geometry

__all__ = ["rotation", "turns"]

_IN_SPACE = 320  # no turn is further than about 30 degrees from one of them
_IN_A_SLICE = 24
_PHI, _PSI = np.sqrt(2.0), 1.533751168755204288118041


def turns(geometry: Geometry) -> NDArray[np.float64]:
    """Return unit quaternions (w, x, y, z) of turns spread evenly, shape (n, 4).

    Args:
        geometry: A grid in space, for turns about all axes; or a slice, for turns about its normal.

    Source: Alexa 2022, "Super-Fibonacci spirals: fast, low-discrepancy sampling of SO(3)".
    """
    flat = [axis for axis in range(3) if geometry.shape[axis] == 1]
    if flat:
        normal = np.linalg.inv(geometry.affine[:3, :3])[flat[0]]
        half = np.pi * np.arange(_IN_A_SLICE)[:, None] / _IN_A_SLICE
        return np.hstack([np.cos(half), np.sin(half) * normal / np.linalg.norm(normal)])
    place = np.arange(_IN_SPACE) + 0.5
    near, far = np.sqrt(place / _IN_SPACE), np.sqrt(1 - place / _IN_SPACE)
    a, b = 2 * np.pi * place / _PHI, 2 * np.pi * place / _PSI
    return np.stack([near * np.sin(a), near * np.cos(a), far * np.sin(b), far * np.cos(b)], axis=-1)


def rotation(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix (3, 3) of a turn that is given as a unit quaternion (w, x, y, z)."""
    w, x, y, z = quaternion.tolist()
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    found: NDArray[np.float64] = np.eye(3) + 2 * w * cross + 2 * cross @ cross
    return found
