"""The steps of registration in the extension: numpy arrays of float32 in, the same out.

Each does what a function of this room or of :mod:`sagittal.volume.field_maps` does, which is its reference,
to the rounding of float32. How many threads share the work changes no bit; another instruction set may.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.native import load_extension, thread_count, vector_kernels

__all__ = ["blur", "bring", "compose", "correlate", "push", "usable"]

_native = load_extension()

Image = NDArray[np.float32]


def usable(*arrays: Any) -> bool:
    """Tell whether the extension takes these arrays, and is there."""
    return bool(_native) and all(isinstance(a, np.ndarray) and a.dtype == np.float32 for a in arrays)


def compose(
    field: Image, *, own: float = 1, factor: float = 1, along: float = 1, kernel: str | None = None
) -> Image:
    """Return ``own f(p) + factor f(p + along f(p))``: by default, a map composed with itself.

    Args:
        field: Displacements in voxels of their own grid, shape (i, j, k, 4) with 0 last.
        own: Of the field where it is.
        factor: Of the field where it leads.
        along: How far it leads.
        kernel: One of :func:`~sagittal.core.native.vector_kernels`; by default the fastest.
    """
    out = np.empty_like(field)
    _native.compose(*_how(kernel), np.ascontiguousarray(field), own, factor, along, out)
    return out


def bring(
    image: Image,
    field: Image,
    shape: tuple[int, ...],
    index: NDArray[np.float64],
    turn: NDArray[np.float64],
    *,
    kernel: str | None = None,
) -> tuple[Image, NDArray[np.uint8]]:
    """Return an image on a grid, and which voxels it covers: ``index`` (p, 1) + ``turn`` displacement(p).

    Args:
        image: Shape (i, j, k).
        field: Displacements, shape (i', j', k', 4), on a grid over the same box as the one asked for.
        shape: Of that one.
        index: (3, 4), from its voxels to the image's.
        turn: (3, 3), from displacements to the image's voxels.
        kernel: One of :func:`~sagittal.core.native.vector_kernels`; by default the fastest.
    """
    out, seen = np.empty(shape, np.float32), np.empty(shape, np.uint8)
    parts = np.ascontiguousarray(image), np.ascontiguousarray(field)
    _native.bring(*_how(kernel), *parts, index.ravel().tolist(), turn.ravel().tolist(), out, seen)
    return out, seen


def correlate(
    a: Image, b: Image, weight: Image | None, flat: float, *, kernel: str | None = None
) -> tuple[float, Image, Image]:
    """Return what :func:`sagittal.registration.similarity.local_correlation` does; ``flat`` is a variance."""
    by_a, by_b = np.empty_like(a), np.empty_like(b)
    images = np.ascontiguousarray(a), np.ascontiguousarray(b)
    total, size = _native.correlate(*_how(kernel), *images, weight, flat, by_a, by_b)
    return 1 - (total / size if size else 0.0), by_a, by_b


def push(
    a: Image,
    b: Image,
    by_a: Image,
    by_b: Image,
    seen: NDArray[np.uint8],
    shape: tuple[int, ...],
    *,
    kernel: str | None = None,
) -> Image:
    """Return by_b grad b - by_a grad a where seen, on average over each voxel of a coarser grid of one box.

    Returns:
        (3, *shape), along the axes of the grid, per voxel of the finer one.
    """
    out = np.empty((3, *shape), np.float32)
    _native.push(*_how(kernel), a, b, by_a, by_b, seen, out)
    return out


def blur(
    values: Image, weights: Sequence[float], axis: int, *, outside_zero: bool, kernel: str | None = None
) -> Image:
    """Return values smoothed along one axis, by weights of 0, 1, ... voxels away."""
    axis %= values.ndim
    outer, inner = int(np.prod(values.shape[:axis])), int(np.prod(values.shape[axis + 1 :]))
    flat = np.ascontiguousarray(values).reshape(outer, values.shape[axis], inner)
    out = np.empty_like(flat)
    _native.blur(*_how(kernel), flat, np.asarray(weights, np.float32), outside_zero, out)
    return out.reshape(values.shape)


def _how(kernel: str | None) -> tuple[str, int]:
    return kernel or vector_kernels()[-1], thread_count()
