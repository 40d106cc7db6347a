"""The distance-driven projectors in torch operations, for any device that torch knows.

They compute what :mod:`sagittal.reconstruction.projectors` does, with the same formulas. Both directions
gather and neither scatters: a bin sums the pixels under it, a pixel the bins over it, which are found by
bisection. So each sum is made in one order and two runs on one device give the same bits.

Checked on a CPU, in torch's CPU device; never yet run on a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import
from sagittal.reconstruction._torch_tables import FAR, Group, Sweep
from sagittal.reconstruction.geometry import ConeBeam, ScanGeometry
from sagittal.reconstruction.segments import check_grid, segments_of
from sagittal.volume import Geometry

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = optional_import("torch", "language")

__all__ = ["Elsewhere", "TorchProjector"]

_BLOCK = {"cpu": 1 << 16}
_BLOCK_ELSEWHERE = 1 << 24


class TorchProjector:
    """Projection of images on one grid along the rays of one geometry, and its transpose, on a device.

    Args:
        geometry: The scanner.
        grid: The voxels; see :class:`~sagittal.reconstruction.projectors.Projector`.
        dtype: torch.float32 or torch.float64.
        device: Where to compute.
        block: About how many numbers an intermediate array holds at once; about sixteen live at a time; by
            default 2^16 on a CPU and 2^24 elsewhere. Views are taken as many at a time as that allows, and of
            a large view as many rows of pixels. It changes rounding only.

    Raises:
        GeometryError: As for :class:`~sagittal.reconstruction.projectors.Projector`.
        InputError: Another dtype, a device that torch does not have here, or a block below 1.
    """

    def __init__(
        self,
        geometry: ScanGeometry,
        grid: Geometry,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        block: int | None = None,
    ) -> None:
        self.geometry, self.grid = geometry, grid
        self.dtype = torch.float32 if dtype is None else dtype
        if self.dtype not in (torch.float32, torch.float64):
            raise InputError(
                "projections are computed in two dtypes", value=str(dtype), expected="float32, float64"
            )
        self.device = usable_device(device)
        self.block = _BLOCK.get(self.device.type, _BLOCK_ELSEWHERE) if block is None else block
        if self.block < 1:
            raise InputError("a block holds no number", source="block", value=block, expected="1 or more")
        self._up = check_grid(geometry, grid)
        self._cone = isinstance(geometry, ConeBeam)

    def forward(self, images: Tensor) -> Tensor:
        """Return the line integrals of images, shape (batch, views, rows, bins).

        Args:
            images: Shape (batch, *grid's), of the projector's dtype and on its device.
        """
        return self._each(images, self._project, self.geometry.shape)

    def back(self, sinograms: Tensor) -> Tensor:
        """Return the transpose applied to sinograms: images, shape (batch, *grid's).

        Args:
            sinograms: Shape (batch, views, rows, bins), of the projector's dtype and on its device.
        """
        return self._each(sinograms, self._spread, self.grid.shape)

    def _each(self, given: Tensor, function: Any, shape: tuple[int, ...]) -> Tensor:
        if not len(given):
            return given.new_empty(0, *shape)
        if not self._cone or len(given) == 1:
            return torch.as_tensor(function(given))
        return torch.cat([function(part) for part in given.split(1)])

    def _project(self, images: Tensor) -> Tensor:
        views, rows, bins = self.geometry.shape
        channels = images.permute(1, 2, 3, 0).flatten(2)  # i, j, slices x batch
        found = images.new_zeros(views * bins, rows if self._cone else channels.shape[2])
        room = max(1, self.block // max(found.shape[1], channels.shape[2]))
        for sweep in self._sweeps:
            given = sweep.padded(channels)
            for group in sweep.groups(room):
                total = None
                for part in group.rows(room):
                    edges = group.edges(part)
                    crossed = _by_bins(given, sweep, group, part, edges)
                    value = (
                        group.on_lines(crossed, part, edges)
                        if self._cone
                        else crossed * group.shares(part, edges)[..., None]
                    ).sum(1)
                    total = value if total is None else total + value
                assert total is not None
                total = (total * group.lengths()).flatten(0, 1)
                found.index_copy_(0, group.rays, total.index_select(0, group.places))
        if self._cone:
            lines = found.view(1, views, bins, rows)
            return (lines.flip(3) if self._up < 0 else lines).transpose(2, 3).contiguous()
        return found.view(views, bins, rows, -1).permute(3, 0, 2, 1).contiguous()

    def _spread(self, sinograms: Tensor) -> Tensor:
        views, rows, bins = self.geometry.shape
        if self._cone:
            lines = sinograms.flip(2) if self._up < 0 else sinograms
            flat = lines[0].transpose(1, 2).reshape(views * bins, rows)
        else:
            flat = sinograms.permute(1, 3, 2, 0).reshape(views * bins, -1)
        wide = self.grid.shape[2] if self._cone else flat.shape[1]
        found = sinograms.new_zeros(*self.grid.shape[:2], wide)
        room = max(1, self.block // max(wide, flat.shape[1]))
        for sweep in self._sweeps:
            image = found.transpose(0, 1) if sweep.second else found
            for group in sweep.groups(room):
                given = flat.new_zeros(group.count * group.bins, flat.shape[1])
                given.index_copy_(0, group.places, flat.index_select(0, group.rays))
                given = given.view(group.count, group.bins, -1) * group.lengths()
                for part in group.rows(room):
                    edges = group.edges(part)
                    each = (
                        group.on_slices(given, part, edges)
                        if self._cone
                        else given[:, None] * group.shares(part, edges)[..., None]
                    )
                    image[part.start : part.stop] += _by_pixels(each, sweep, group, edges)
        if self._cone:
            return found[None]
        return found.view(*self.grid.shape, -1).permute(3, 0, 1, 2).contiguous()

    @functools.cached_property
    def _sweeps(self) -> list[Sweep]:
        def numbers(values: Any, dtype: torch.dtype | None = None) -> Tensor:
            return torch.as_tensor(np.asarray(values), dtype=dtype or self.dtype, device=self.device)

        found = []
        for second in (False, True):
            if segments := segments_of(self.geometry, self.grid, second=second):
                found.append(Sweep(self.geometry, self.grid, segments, second=second, numbers=numbers))
        return found


class Elsewhere:
    """A projector for arrays that computes on a device: what :class:`~.projectors.Projector` does there."""

    in_parts = False

    def __init__(self, geometry: ScanGeometry, grid: Geometry, dtype: np.dtype[Any], device: str) -> None:
        exact = torch.float64 if dtype == np.float64 else torch.float32
        self._projector = TorchProjector(geometry, grid, dtype=exact, device=device)

    def forward(self, image: NDArray[Any], first: int, last: int) -> NDArray[Any]:
        """Return the line integrals of an image of the grid's shape, in the views [first, last)."""
        return self._carried(self._projector.forward, image)[first:last]

    def add_back(self, rays: NDArray[Any], image: NDArray[Any], first: int, factor: float) -> None:
        """Add the transpose applied to some views, times a factor, to an image."""
        given = np.zeros(self._projector.geometry.shape, rays.dtype)
        given[first : first + len(rays)] = rays
        image += rays.dtype.type(factor) * self._carried(self._projector.back, given)

    def _carried(self, function: Callable[[Tensor], Tensor], values: NDArray[Any]) -> NDArray[Any]:
        given = torch.as_tensor(values, device=self._projector.device)[None]
        return np.asarray(function(given)[0].cpu().numpy())


def usable_device(device: torch.device | str) -> torch.device:
    """Return a device that torch has here.

    Raises:
        InputError: There is none of this name.
    """
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            "torch has no such device here", source="device", value=str(device), expected="cpu, cuda, ..."
        ) from error
    return found


def _by_bins(given: Tensor, sweep: Sweep, group: Group, part: range, edges: Tensor) -> Tensor:
    """Return the sum of pixels by their overlap with bins, shape (segments, rows, bins, channels)."""
    width = sweep.pixels + 2 * sweep.pad
    low, high = edges[..., :-1], edges[..., 1:]
    at = torch.floor(low + 0.5).clamp_(-sweep.pad, sweep.pixels)
    row = torch.arange(part.start, part.stop, device=edges.device)[:, None] * width + sweep.pad
    index = (at.long() + row).flatten()
    end, last = at + 0.5, low
    found = None
    for _ in range(group.taps):
        following = torch.minimum(high, end)
        value = given.index_select(0, index).view(*low.shape, -1) * (following - last)[..., None]
        found = value if found is None else found.add_(value)
        last, end, index = following, end + 1, index + 1
    assert found is not None
    return found


def _by_pixels(each: Tensor, sweep: Sweep, group: Group, edges: Tensor) -> Tensor:
    """Return the sum over segments and bins by their overlap with pixels, shape (rows, pixels, channels)."""
    count, rows, bins, channels = each.shape
    taps = group.back_taps
    edges = torch.nn.functional.pad(edges, (0, taps), value=FAR)
    edges = torch.nn.functional.pad(edges, (1, 0), value=-FAR)
    each = torch.nn.functional.pad(each, (0, 0, 1, taps)).view(-1, channels)
    low = torch.arange(sweep.pixels, dtype=edges.dtype, device=edges.device) - 0.5
    begin = low.expand(count, rows, -1).contiguous()
    # The last edge not above the pixel's begin; its bin begins there.
    at = (torch.searchsorted(edges, begin, right=True) - 1).clamp_(0, bins + 1)
    line = torch.arange(count * rows, device=edges.device).view(count, rows, 1)
    index = (at + line * (bins + 1 + taps)).flatten()
    edge = at
    last = edges.gather(2, edge).clamp(low, low + 1)
    found = None
    for _ in range(taps):
        edge = edge + 1
        following = edges.gather(2, edge).clamp(low, low + 1)
        value = each.index_select(0, index).view(count, rows, -1, channels)
        value *= (following - last)[..., None]
        found = value if found is None else found.add_(value)
        last, index = following, index + 1
    assert found is not None
    return found.sum(0)
