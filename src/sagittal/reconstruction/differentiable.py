"""Projection along rays and its transpose for torch, each the derivative of the other.

A network that reconstructs is trained through them. Here the window of a filtered backprojection is learned,
from the sinograms ``y`` of known images ``x`` and the ``ramp``, in the order of ``torch.fft.rfft``::

    import torch
    from sagittal.reconstruction.differentiable import back

    window = torch.ones_like(ramp, requires_grad=True)
    optimiser = torch.optim.Adam([window], lr=0.05)
    for _ in range(60):
        spectrum = torch.fft.rfft(y, 2 * (len(ramp) - 1)) * ramp * window
        image = back(torch.fft.irfft(spectrum)[..., : y.shape[-1]], geometry, grid)
        loss = (image - x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

On a CPU the extension's kernels compute, on tensors' own memory where that lies in order. Without the
extension, and on any other device, :class:`~sagittal.reconstruction.torch_projectors.TorchProjector` does,
which has never yet run on a GPU. Both are operators of torch (``torch.ops.sagittal.project``, ``spread``)
that ``torch.compile``, ``torch.export``, ``torch.func.vmap``, autocast (they compute in float32 there) and
derivatives of any order know; derivatives go backward only, not by ``torch.func.jvp``.
"""

from __future__ import annotations

import atexit
import functools
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from sagittal.core.errors import GeometryError, InputError
from sagittal.core.optional import optional_import
from sagittal.reconstruction.geometry import ScanGeometry, geometry_from_json, geometry_to_json
from sagittal.reconstruction.projectors import REFERENCE, Projector, projector_kernels
from sagittal.reconstruction.segments import check_grid
from sagittal.reconstruction.torch_projectors import TorchProjector
from sagittal.volume import Geometry

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = optional_import("torch", "language")

__all__ = ["Projection", "back", "forward"]

_KEPT = 16
"""Projectors that are kept, the last used ones; each holds some ten numbers for each bin of each view."""


class Projection(torch.nn.Module):
    """Projection as a layer, and its transpose as :meth:`back`; what does not change is computed once.

    Args:
        geometry: The scanner.
        grid: The voxels; see :class:`~sagittal.reconstruction.projectors.Projector`.

    Raises:
        GeometryError: As for :class:`~sagittal.reconstruction.projectors.Projector`.
    """

    def __init__(self, geometry: ScanGeometry, grid: Geometry) -> None:
        super().__init__()
        check_grid(geometry, grid)
        self.geometry, self.grid = geometry, grid
        self._setup = _written(geometry, grid)

    def forward(self, images: Tensor) -> Tensor:
        """Return what :func:`forward` does."""
        return _project(images, self._setup)

    def back(self, sinograms: Tensor) -> Tensor:
        """Return what :func:`back` does."""
        return _spread(sinograms, self._setup)


def forward(images: Tensor, geometry: ScanGeometry, grid: Geometry) -> Tensor:
    """Return the line integrals of images, shape (..., views, rows, bins), in their unit times mm.

    Args:
        images: Shape (..., *grid's), float32 or float64, on any device.
        geometry: The scanner.
        grid: The voxels; see :class:`~sagittal.reconstruction.projectors.Projector`.

    Raises:
        GeometryError: Images of another shape, or a grid that does not suit the scanner.
        InputError: Another dtype.
    """
    return _project(images, _written(geometry, grid))


def back(sinograms: Tensor, geometry: ScanGeometry, grid: Geometry) -> Tensor:
    """Return the transpose of :func:`forward` applied to sinograms: images, shape (..., *grid's).

    Args:
        sinograms: Shape (..., views, rows, bins), float32 or float64, on any device.
        geometry: The scanner.
        grid: The voxels.

    Raises:
        GeometryError: Sinograms of another shape, or a grid that does not suit the scanner.
        InputError: Another dtype.
    """
    return _spread(sinograms, _written(geometry, grid))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _written(geometry: ScanGeometry, grid: Geometry) -> str:
    """Return scanner and grid as a text: torch's operators take tensors, numbers and texts alone."""
    return _text(geometry, grid)


@functools.lru_cache(_KEPT)
def _text(geometry: ScanGeometry, grid: Geometry) -> str:
    check_grid(geometry, grid)
    values = {"scanner": geometry_to_json(geometry), "shape": grid.shape, "affine": grid.affine.tolist()}
    return json.dumps(values)


@functools.lru_cache(_KEPT)
def _read(setup: str) -> tuple[ScanGeometry, Geometry]:
    values = json.loads(setup)
    i, j, k = values["shape"]
    return geometry_from_json(values["scanner"]), Geometry((i, j, k), np.array(values["affine"]))


@functools.lru_cache(_KEPT)
def _projector(setup: str, dtype: torch.dtype, device: torch.device) -> Projector | TorchProjector:
    geometry, grid = _read(setup)
    if device.type == "cpu" and projector_kernels()[-1] != REFERENCE:
        return Projector(geometry, grid, dtype=np.float64 if dtype == torch.float64 else np.float32)
    return TorchProjector(geometry, grid, dtype=dtype, device=device)


atexit.register(
    _projector.cache_clear
)  # torch keeps its operators, and they this, beyond the extension's end


def _sides(setup: str, transposed: bool) -> tuple[tuple[int, int, int], tuple[int, int, int], str]:
    """Return the shapes of what an operator takes and gives, and what it takes."""
    geometry, grid = _read(setup)
    if transposed:
        return geometry.shape, grid.shape, "sinograms"
    return grid.shape, geometry.shape, "images"


def _checked(values: Tensor, shape: tuple[int, ...], what: str) -> None:
    if values.dtype not in (torch.float32, torch.float64):
        raise InputError(
            "projections are computed in two dtypes", value=str(values.dtype), expected="float32, float64"
        )
    if tuple(values.shape[-3:]) != shape:
        raise GeometryError(
            f"{what} have another shape", value=tuple(values.shape), expected=f"(..., {str(shape)[1:]}"
        )


def _applied(values: Tensor, setup: str, *, transposed: bool) -> Tensor:
    shape, new, what = _sides(setup, transposed)
    _checked(values, shape, what)
    projector = _projector(setup, values.dtype, values.device)
    given = values.detach().reshape(-1, *shape)
    if isinstance(projector, TorchProjector):
        found = projector.back(given) if transposed else projector.forward(given)
    else:
        function = projector.back if transposed else projector.forward
        each = [torch.from_numpy(function(part.numpy())) for part in given]
        found = each[0][None] if len(each) == 1 else torch.stack(each) if each else given.new_empty(0, *new)
    return found.view(*values.shape[:-3], *new)


@torch.library.custom_op("sagittal::project", mutates_args=(), schema="(Tensor images, str setup) -> Tensor")
def _project_op(images: Tensor, setup: str) -> Tensor:
    return _applied(images, setup, transposed=False)


@torch.library.custom_op(
    "sagittal::spread", mutates_args=(), schema="(Tensor sinograms, str setup) -> Tensor"
)
def _spread_op(sinograms: Tensor, setup: str) -> Tensor:
    return _applied(sinograms, setup, transposed=True)


def _project(images: Tensor, setup: str) -> Tensor:
    found: Tensor = torch.ops.sagittal.project.default(images, setup)
    return found


def _spread(sinograms: Tensor, setup: str) -> Tensor:
    found: Tensor = torch.ops.sagittal.spread.default(sinograms, setup)
    return found


def _register(operator: Any, other: Any, *, transposed: bool) -> None:
    """Tell torch the shape, the derivative and the batches of an operator whose transpose is the other."""

    def shaped(values: Tensor, setup: str) -> Tensor:
        geometry, grid = _read(setup)
        _checked(
            values, geometry.shape if transposed else grid.shape, "sinograms" if transposed else "images"
        )
        return values.new_empty(*values.shape[:-3], *(grid.shape if transposed else geometry.shape))

    def keep(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        ctx.setup = inputs[1]

    def derivative(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return other(slope, ctx.setup), None

    def batched(info: Any, in_dims: tuple[int, None], values: Tensor, setup: str) -> tuple[Tensor, int]:
        return (_spread if transposed else _project)(values.movedim(in_dims[0], 0), setup), 0

    operator.register_fake(shaped)
    operator.register_autograd(derivative, setup_context=keep)
    operator.register_vmap(batched)
    for device in ("cpu", "cuda"):
        operator.register_autocast(device, torch.float32)


_register(_project_op, _spread, transposed=False)
_register(_spread_op, _project, transposed=True)
