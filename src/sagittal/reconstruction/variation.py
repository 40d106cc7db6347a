"""Total variation of an image, its weights, and its proximal step.

Differences are between a voxel and the next one along each axis, of unequal spacings in proportion to the
smallest; the variation is the sum over voxels of their length. Weights scale it in each voxel
(``bound``), or each axis' differences (``scales``). The proximal step is computed from its dual by
projected gradients (Chambolle, Journal of Mathematical Imaging and Vision 20:89, 2004).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.native import load_extension, thread_count
from sagittal.reconstruction.projectors import REFERENCE, projector_kernels
from sagittal.volume import Geometry

__all__ = ["Variation", "differences", "gradient_length", "step_weights"]

_native = load_extension()


@dataclass(frozen=True, eq=False, kw_only=True)
class Variation:
    """A total variation, perhaps weighted, of images on a grid.

    Weights are numbers in [0, 1], or uint8 for so many 255ths of 1, which take a quarter of the memory.

    Attributes:
        grid: The voxels.
        bound: Weight of each voxel's difference, shape of the grid; None for 1.
        scales: Weight of the differences along each axis, each of the grid's shape; empty for 1.
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
        factor, bound, scales = self._weights(image.dtype, kernel)
        if kernel == REFERENCE:
            parts = self._differences(self._laid_out(image), factor, scales)
            length = np.sqrt(sum(part.astype(np.float64) ** 2 for part in parts))
            return float((length if bound is None else length * bound).sum())
        return float(_native.variation(kernel, threads, self._laid_out(image), factor, bound, scales))

    def start(self, dtype: Any) -> list[NDArray[Any]]:
        """Return a dual of zeros, to begin with, for images of this type.

        It is kept in units of what the variation costs: of float32 images in 16 bits, where 32767 are 1.
        """
        small = np.dtype(dtype) == np.float32 and self._kernel()[0] != REFERENCE
        kept = np.dtype(np.int16) if small else np.dtype(dtype)
        return [np.zeros(self._shape if f else (0, 0, 0), kept) for f in self._factors()]

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
            dual: Where to begin, from :meth:`start`; it is changed to where the iterations end.
            iterations: How many.
            positive: Hold the image at 0 or more.
        """
        image = np.zeros_like(given)
        self.exchange(given.copy(), image, amount, dual, iterations=iterations, positive=positive)
        return image

    def exchange(
        self,
        given: NDArray[Any],
        image: NDArray[Any],
        amount: float,
        dual: list[NDArray[Any]],
        *,
        iterations: int,
        positive: bool = True,
    ) -> tuple[float, float]:
        """Put what :meth:`step` returns in place of ``image``, and that in place of ``given``.

        Args:
            given: Contiguous, shape of the grid; it becomes the image that there was.
            image: Contiguous, shape of the grid; it becomes the next.
            amount: As for :meth:`step`.
            dual: As for :meth:`step`.
            iterations: As for :meth:`step`.
            positive: As for :meth:`step`.

        Returns:
            The squared norms of the two images' difference, and of the next.
        """
        kernel, threads = self._kernel()
        rate = 1 / max(4 * sum(f**2 for f in self._factors()), 1e-30)
        factor, bound, scales = self._weights(given.dtype, kernel)
        given, image = given.reshape(self._shape), image.reshape(self._shape)
        if kernel == REFERENCE:
            new = self._reference_step(given, amount, dual, iterations, positive, rate)
            given[...], image[...] = image, new
            moved = (image - given).astype(np.float64)
            return float((moved**2).sum()), float((image.astype(np.float64) ** 2).sum())
        _native.descend(
            kernel, threads, given, factor, bound, scales, amount, positive, iterations, rate, dual
        )
        moved_size: tuple[float, float] = _native.exchange(
            kernel, threads, given, factor, scales, amount, positive, dual, image
        )
        return moved_size

    def _reference_step(
        self,
        given: NDArray[Any],
        amount: float,
        dual: list[NDArray[Any]],
        iterations: int,
        positive: bool,
        rate: float,
    ) -> NDArray[Any]:
        factor, bound, scales = self._weights(given.dtype, REFERENCE)
        axes = [axis for axis, f in enumerate(factor) if f]

        def primal() -> NDArray[Any]:
            image = given.copy()
            for axis in axes:
                p = amount * dual[axis] * factor[axis] * (scales[axis] if scales else 1)
                image += p
                shifted = np.moveaxis(np.zeros_like(p), axis, 0)
                shifted[1:] = np.moveaxis(p, axis, 0)[:-1]
                image -= np.moveaxis(shifted, 0, axis)
            return np.maximum(image, 0) if positive else image

        for _ in range(iterations if amount > 0 else 0):
            change = self._differences(primal(), factor, scales)
            moved = {axis: dual[axis] + rate / amount * change[axis] for axis in axes}
            length = np.sqrt(sum((part**2 for part in moved.values()), start=np.zeros_like(given)))
            most = 1 if bound is None else bound
            with np.errstate(divide="ignore", invalid="ignore"):
                share = np.where(length > most, most / length, 1)
            for axis in axes:
                dual[axis][...] = moved[axis] * share
        return primal()

    def _differences(
        self, image: NDArray[Any], factor: list[float], scales: list[NDArray[Any]]
    ) -> list[NDArray[Any]]:
        return [
            np.diff(image, axis=axis, append=image.take([-1], axis)) * f * (scales[axis] if scales else 1)
            for axis, f in enumerate(factor)
        ]

    def _kernel(self) -> tuple[str, int]:
        return self.kernel or projector_kernels()[-1], self.threads or thread_count()

    @property
    def _shape(self) -> tuple[int, int, int]:
        a, b, c = self.grid.shape
        return (a, 1, b) if c == 1 else (a, b, c)

    def _factors(self) -> list[float]:
        factor = [f if n > 1 else 0.0 for f, n in zip(_axis_factors(self.grid), self.grid.shape, strict=True)]
        return [factor[0], 0.0, factor[1]] if self.grid.shape[2] == 1 else factor

    def _laid_out(self, image: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(image).reshape(self._shape)

    def _weights(
        self, dtype: Any, kernel: str
    ) -> tuple[list[float], NDArray[Any] | None, list[NDArray[Any]]]:
        def known(weights: NDArray[Any]) -> NDArray[Any]:
            laid = self._laid_out(weights)
            if laid.dtype != np.uint8:
                return laid.astype(dtype, copy=False)
            return laid if kernel != REFERENCE else laid.astype(dtype) / 255

        scales = [known(part) for part in self.scales]
        if scales and self.grid.shape[2] == 1:
            scales = [scales[0], scales[2], scales[1]]
        return self._factors(), None if self.bound is None else known(self.bound), scales


def differences(image: NDArray[Any], grid: Geometry) -> list[NDArray[Any]]:
    """Return the difference of each voxel and the next one along each axis, 0 at the end."""
    return [
        np.diff(image, axis=axis, append=image.take([-1], axis)) * factor
        for axis, factor in enumerate(_axis_factors(grid))
    ]


def gradient_length(image: NDArray[Any], grid: Geometry) -> NDArray[Any]:
    """Return the length of the differences in each voxel, in the image's unit."""
    found = np.empty_like(image)
    for planes, step in _steps(image, grid, None):
        found[planes] = step
    return found


def step_weights(
    image: NDArray[Any],
    grid: Geometry,
    weigh: Callable[[NDArray[Any]], NDArray[Any]],
    *,
    axis: int | None = None,
) -> NDArray[Any]:
    """Return the weight of each voxel's difference, of float32 images in 255ths.

    Args:
        image: Shape of the grid.
        grid: The voxels.
        weigh: Gives lengths of differences their weights, in [0, 1].
        axis: Only the differences along this one.
    """
    small = image.dtype == np.float32
    found = np.empty(image.shape, np.uint8 if small else image.dtype)
    for planes, step in _steps(image, grid, axis):
        found[planes] = np.rint(255 * weigh(step)) if small else weigh(step)
    return found


def _steps(image: NDArray[Any], grid: Geometry, axis: int | None) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield the lengths of the differences, some planes of the first axis at a time."""
    many = max(1, (1 << 14) * image.shape[0] // image.size)
    for first in range(0, image.shape[0], many):
        last = min(first + many, image.shape[0])
        parts = [part[: last - first] for part in differences(image[first : last + 1], grid)]
        if axis is not None:
            yield slice(first, last), np.abs(parts[axis])
        else:
            yield slice(first, last), np.asarray(np.sqrt(sum(part**2 for part in parts)))


def _axis_factors(grid: Geometry) -> list[float]:
    extended = [step for step, count in zip(grid.spacing, grid.shape, strict=True) if count > 1] or [1.0]
    return [min(min(extended) / step, 1.0) for step in grid.spacing]
