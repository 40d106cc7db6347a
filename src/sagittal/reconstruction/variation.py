"""Total variation of an image, its weights, and its proximal step.

Differences are between a voxel and the next one along each axis, of unequal spacings in proportion to the
smallest; the variation is the sum over voxels of their length. Weights scale it in each voxel
(``bound``), or each axis' differences (``scales``). The proximal step is computed from its dual by
projected gradients (Chambolle, Journal of Mathematical Imaging and Vision 20:89, 2004).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.native import load_extension, thread_count
from sagittal.reconstruction.projectors import REFERENCE, projector_kernels
from sagittal.volume import Geometry

__all__ = ["Variation", "differences", "gradient_length"]

_native = load_extension()


@dataclass(frozen=True, eq=False, kw_only=True)
class Variation:
    """A total variation, perhaps weighted, of images on a grid.

    Attributes:
        grid: The voxels.
        bound: Weight of each voxel's difference, in [0, 1], shape of the grid; None for 1.
        scales: Weight of the differences along each axis, in [0, 1], each of the grid's shape; empty for 1.
        kernel: As for :class:`~sagittal.reconstruction.projectors.Projector`; None for the fastest.
        threads: How many; they change no bit.
    """

    grid: Geometry
    bound: NDArray[Any] | None = None
    scales: tuple[NDArray[Any], ...] = ()
    kernel: str | None = None
    threads: int | None = None

    def value(self, image: NDArray[Any]) -> float:
        """Return the variation of an image of the grid's shape."""
        kernel, threads = self._kernel()
        if kernel == REFERENCE:
            parts = [c * s for c, s in zip(differences(image, self.grid), self._scales(image), strict=True)]
            length = np.sqrt(sum(part.astype(np.float64) ** 2 for part in parts))
            return float((length if self.bound is None else length * self.bound).sum())
        given = self._laid_out(image)
        return float(_native.variation(kernel, threads, given, *self._weights(given.dtype)))

    def start(self, dtype: Any) -> list[NDArray[Any]]:
        """Return a dual of zeros, to begin with."""
        return [np.zeros(self._shape, dtype) for _ in range(3)]

    def step(
        self,
        given: NDArray[Any],
        amount: float,
        dual: list[NDArray[Any]],
        *,
        iterations: int,
        positive: bool = True,
    ) -> NDArray[Any]:
        """Return the image nearest to ``given`` whose variation, times ``amount``, is paid for.

        Minimises ``|image - given|^2 / 2 + amount * variation(image)``, over images not below 0 where
        ``positive``.

        Args:
            given: Shape of the grid, float32 or float64.
            amount: What the variation costs.
            dual: Where to begin; it is changed to where the iterations end.
            iterations: How many.
            positive: Hold the image at 0 or more.
        """
        kernel, threads = self._kernel()
        laid = self._laid_out(given)
        rate = 1 / max(4 * float(sum(f**2 for f in self._factors())), 1e-30)
        if kernel == REFERENCE:
            return self._reference_step(laid, amount, dual, iterations, positive, rate).reshape(given.shape)
        image = np.empty_like(laid)
        factor, bound, scales = self._weights(laid.dtype)
        _native.descend(
            kernel, threads, laid, factor, bound, scales, amount, positive, iterations, rate, dual, image
        )
        return image.reshape(given.shape)

    def _reference_step(
        self,
        given: NDArray[Any],
        amount: float,
        dual: list[NDArray[Any]],
        iterations: int,
        positive: bool,
        rate: float,
    ) -> NDArray[Any]:
        factor, bound, scales = self._weights(given.dtype)
        most = amount if bound is None else amount * bound

        def primal() -> NDArray[Any]:
            image = given.copy()
            for axis, f in enumerate(factor):
                p = dual[axis] * f * (scales[axis] if scales else 1)
                image += p
                shifted = np.moveaxis(np.zeros_like(p), axis, 0)
                shifted[1:] = np.moveaxis(p, axis, 0)[:-1]
                image -= np.moveaxis(shifted, 0, axis)
            return np.maximum(image, 0) if positive else image

        for _ in range(iterations):
            image = primal()
            moved = []
            for axis, f in enumerate(factor):
                change = np.diff(image, axis=axis, append=image.take([-1], axis)) * f
                moved.append(dual[axis] + rate * change * (scales[axis] if scales else 1))
            length = np.sqrt(sum(part**2 for part in moved))
            with np.errstate(divide="ignore", invalid="ignore"):
                share = np.where(length > most, most / length, 1)
            for axis in range(3):
                dual[axis][...] = moved[axis] * share
        return primal()

    def _kernel(self) -> tuple[str, int]:
        return self.kernel or projector_kernels()[-1], self.threads or thread_count()

    @property
    def _shape(self) -> tuple[int, int, int]:
        a, b, c = self.grid.shape
        return (1, a, b) if c == 1 else (a, b, c)

    def _factors(self) -> list[float]:
        factor = [f if n > 1 else 0.0 for f, n in zip(_axis_factors(self.grid), self.grid.shape, strict=True)]
        return [0.0, *factor[:2]] if self.grid.shape[2] == 1 else factor

    def _laid_out(self, image: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(image).reshape(self._shape)

    def _scales(self, image: NDArray[Any]) -> list[Any]:
        return list(self.scales) if self.scales else [1.0] * image.ndim

    def _weights(self, dtype: Any) -> tuple[list[float], NDArray[Any] | None, list[NDArray[Any]]]:
        scales = [self._laid_out(part).astype(dtype, copy=False) for part in self.scales]
        if scales and self.grid.shape[2] == 1:
            scales = [scales[2], scales[0], scales[1]]
        bound = None if self.bound is None else self._laid_out(self.bound).astype(dtype, copy=False)
        return self._factors(), bound, scales


def differences(image: NDArray[Any], grid: Geometry) -> list[NDArray[Any]]:
    """Return the difference of each voxel and the next one along each axis, 0 at the end."""
    return [
        np.diff(image, axis=axis, append=image.take([-1], axis)) * factor
        for axis, factor in enumerate(_axis_factors(grid))
    ]


def gradient_length(image: NDArray[Any], grid: Geometry) -> NDArray[Any]:
    """Return the length of the differences in each voxel, in the image's unit."""
    return np.asarray(np.sqrt(sum(part**2 for part in differences(image, grid))))


def _axis_factors(grid: Geometry) -> list[float]:
    extended = [step for step, count in zip(grid.spacing, grid.shape, strict=True) if count > 1] or [1.0]
    return [min(min(extended) / step, 1.0) for step in grid.spacing]
