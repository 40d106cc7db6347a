"""Arrays that a frozen record holds: of a checked dtype and shape, finite, and read-only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import GeometryError, InputError

__all__ = ["frozen", "refuse_where"]


def frozen(array: Any, name: str, shape: tuple[int, ...], kinds: str) -> NDArray[Any]:
    """Return ``array`` read-only and in native byte order; copied where somebody else could write to it.

    Args:
        array: What is to be kept.
        name: Named in errors.
        shape: What its shape must be.
        kinds: Kinds of dtype that are allowed, as numpy's letters.

    Raises:
        InputError: Another dtype, or values that are not finite.
        GeometryError: Another shape.
    """
    values = np.asarray(array)
    if values.dtype.kind not in kinds or values.dtype.itemsize > 8:
        raise InputError(
            f"{name} have a dtype that a volume cannot hold",
            value=values.dtype,
            expected="real numbers of 1 to 8 bytes" if "i" in kinds else "floats of 2 to 8 bytes",
        )
    if values.shape != shape:
        raise GeometryError(f"{name} do not have the grid's shape", value=values.shape, expected=str(shape))
    if values.dtype.kind == "f":
        refuse_where(~np.isfinite(values), values, f"{name} are not finite", "finite numbers")
    native = values.dtype.newbyteorder("=")
    if values.dtype != native or not _is_immutable(values):
        values = np.array(values, dtype=native, copy=True, order="K", subok=False)
        values.setflags(write=False)
    return values


def _is_immutable(array: NDArray[Any]) -> bool:
    """Tell whether nobody can write to this memory: each owner down the chain is read-only."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return False
        owner = owner.base
    return owner is None or isinstance(owner, bytes)


def refuse_where(wrong: NDArray[np.bool_], values: NDArray[Any], problem: str, expected: str) -> None:
    """Raise an InputError that names how many values are wrong and the first of them, if any is."""
    count = int(np.count_nonzero(wrong))
    if count:
        first = tuple(int(axis) for axis in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
        raise InputError(
            problem, value=f"{count} of {wrong.size}, first {values[first]} at {first}", expected=expected
        )
