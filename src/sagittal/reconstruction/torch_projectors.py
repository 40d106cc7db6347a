"""The distance-driven projectors in torch operations, for any device that torch knows.

They compute what :mod:`sagittal.reconstruction.projectors` does, with the same formulas. Both directions
gather and neither scatters: a bin sums the pixels under it, a pixel the bins over it, which are found by
bisection. So each sum is made in one order and two runs on one device give the same bits.

Checked on a CPU, in torch's CPU device; never yet run on a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import
from sagittal.reconstruction.geometry import ConeBeam, ScanGeometry
from sagittal.reconstruction.projectors import Segment, check_grid, line_heights, middle_line, segments_of
from sagittal.volume import Geometry

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = optional_import("torch", "language")

__all__ = ["TorchProjector"]

_BLOCK = {"cpu": 1 << 18}
_BLOCK_ELSEWHERE = 1 << 24
_FAR = 1e9
_MARGIN = 0.002  # of a detector row, as in native/projectors.cpp


class TorchProjector:
    """Projection of images on one grid along the rays of one geometry, and its transpose, on a device.

    Args:
        geometry: The scanner.
        grid: The voxels; see :class:`~sagittal.reconstruction.projectors.Projector`.
        dtype: torch.float32 or torch.float64.
        device: Where to compute.
        block: About how many numbers an intermediate array holds at once, of which there are about ten; by
            default 2^18 on a CPU and 2^24 elsewhere. Views are taken as many at a time as that allows, and of
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
        for sweep in self._sweeps:
            given = sweep.padded(channels)
            for group in sweep.groups(self.block, max(found.shape[1], channels.shape[2])):
                total = None
                for part in group.rows(self.block, max(found.shape[1], channels.shape[2])):
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
        for sweep in self._sweeps:
            image = found.transpose(0, 1) if sweep.second else found
            for group in sweep.groups(self.block, max(wide, flat.shape[1])):
                given = flat.new_zeros(group.count * group.bins, flat.shape[1])
                given.index_copy_(0, group.places, flat.index_select(0, group.rays))
                given = given.view(group.count, group.bins, -1) * group.lengths()
                for part in group.rows(self.block, max(wide, flat.shape[1])):
                    edges = group.edges(part)
                    each = (
                        group.on_slices(given, part, edges)
                        if self._cone
                        else given[:, None] * group.shares(part, edges)[..., None]
                    )
                    image[part.start : part.stop] += _by_pixels(each, sweep, group, edges)
        return found[None] if self._cone else _split(found, rows)

    @functools.cached_property
    def _sweeps(self) -> list[_Sweep]:
        found = []
        for second in (False, True):
            segments = segments_of(self.geometry, self.grid, second=second)
            if not segments:
                continue
            found.append(_Sweep(self, segments, second=second))
        return found


class _Sweep:
    """The segments that cross an image by rows of one of its axes, in groups of a like number of bins."""

    def __init__(self, projector: TorchProjector, segments: list[Segment], *, second: bool) -> None:
        geometry, grid = projector.geometry, projector.grid
        self.second = second
        self.rows, self.pixels = grid.shape[:2][:: -1 if second else 1]
        self.segments = sorted(segments, key=lambda s: len(s.scale))
        self.taps = [s.taps() for s in self.segments]
        self.pad = max(taps for taps, _ in self.taps)
        self.cone: _Cone | None = None
        if isinstance(geometry, ConeBeam):
            low, high = line_heights(segments)
            self.cone = _Cone(
                slices=grid.shape[2],
                lines=geometry.rows,
                middle=middle_line(geometry, projector._up),
                taps=int(np.ceil(high)) + 1,
                back_taps=int(np.ceil(1 / low + 2 * _MARGIN)) + 1,
            )
        self._of = projector
        self._kept: dict[int, list[_Group]] = {}

    def padded(self, channels: Tensor) -> Tensor:
        """Return an image's rows with zeros about them, shape (rows x (pixels + padding), channels)."""
        image = channels.transpose(0, 1) if self.second else channels
        along = self.cone.taps if self.cone else 0
        return torch.nn.functional.pad(image, (along, along, self.pad, self.pad)).flatten(0, 1)

    def groups(self, block: int, channels: int) -> list[_Group]:
        """Return the segments in groups, each of no more numbers than a block where it has several."""
        if channels not in self._kept:
            self._kept[channels] = list(self._grouped(block, channels))
        return self._kept[channels]

    def _grouped(self, block: int, channels: int) -> Iterator[_Group]:
        first = 0
        for n in range(1, len(self.segments) + 1):
            if n < len(self.segments):
                widest = max(len(self.segments[n].P), self.pixels)
                if (n + 1 - first) * self.rows * widest * channels <= block:
                    continue
            taps, back_taps = (max(both) for both in zip(*self.taps[first:n], strict=True))
            yield _Group(self._of, self, self.segments[first:n], taps, back_taps)
            first = n


@dataclass(frozen=True)
class _Cone:
    slices: int
    lines: int
    middle: float
    taps: int
    back_taps: int


class _Group:
    """Some segments as tables, of as many bins as the longest of them; bins that are not have no share."""

    def __init__(
        self, of: TorchProjector, sweep: _Sweep, segments: list[Segment], taps: int, back_taps: int
    ) -> None:
        self.taps, self.back_taps = taps, back_taps
        self.count, self.bins = len(segments), max(len(s.scale) for s in segments)
        self._cone, self._pixels = sweep.cone, sweep.pixels
        views_bins = of.geometry.bins

        def table(parts: list[Any], width: int, fill: float) -> Tensor:
            values = np.full((self.count, width), fill)
            for row, given in zip(values, parts, strict=True):
                row[: len(given)] = given
            return torch.as_tensor(values, dtype=of.dtype, device=of.device)

        def numbers(values: Any, dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(np.asarray(values), dtype=dtype, device=of.device)

        self._P = table([s.P for s in segments], self.bins + 1, _FAR)[:, None]
        self._Q = table([s.Q for s in segments], self.bins + 1, 0.0)[:, None]
        self._scale = table([s.scale for s in segments], self.bins, 0.0)
        self._from = numbers([s.rows[0] for s in segments], torch.int64)[:, None, None]
        self._to = numbers([s.rows[1] for s in segments], torch.int64)[:, None, None]
        self._span = min(s.rows[0] for s in segments), max(s.rows[1] for s in segments)
        bins = [np.arange(len(s.scale)) for s in segments]
        self.rays = numbers(
            np.concatenate(
                [s.view * views_bins + s.first + s.step * u for s, u in zip(segments, bins, strict=True)]
            ),
            torch.int64,
        )
        self.places = numbers(np.concatenate([n * self.bins + u for n, u in enumerate(bins)]), torch.int64)
        if self._cone:
            self._m0 = table([s.m0 for s in segments], self.bins, 1.0)[:, None]
            self._m1 = table([s.m1 for s in segments], self.bins, 0.0)[:, None]
            self._tilt = table([s.tilt for s in segments], self.bins, 0.0)
            self._centre = numbers([s.centre for s in segments], of.dtype)[:, None, None]

    def rows(self, block: int, channels: int) -> Iterator[range]:
        """Yield the rows that are crossed, as many at a time as a block holds."""
        begin, end = self._span
        step = max(1, block // (self.count * max(self.bins + 1, self._pixels) * channels))
        for first in range(begin, end, step):
            yield range(first, min(first + step, end))

    def edges(self, part: range) -> Tensor:
        """Return where edges cross rows, in pixels, shape (segments, rows, bins + 1)."""
        return self._P + self._Q * self._numbers(part)[:, None]

    def lengths(self) -> Tensor:
        """Return the length of rays from row to row, mm, shape (segments, bins, lines or 1)."""
        if self._cone is None:
            return self._scale[..., None]
        lines = torch.arange(self._cone.lines, dtype=self._scale.dtype, device=self._scale.device)
        up = (lines + 0.5 - self._cone.middle) * self._tilt[..., None]
        return torch.sqrt(self._scale[..., None] ** 2 + up**2)

    def shares(self, part: range, edges: Tensor) -> Tensor:
        """Return 1 by the bins' widths, and 0 where a row is not crossed, shape (segments, rows, bins)."""
        return self._where_crossed(part, edges.diff(dim=2))

    def on_lines(self, columns: Tensor, part: range, edges: Tensor) -> Tensor:
        """Resample columns (segments, rows, bins, padded slices) to detector rows."""
        cone = self._cone
        assert cone is not None
        height, zero = self._heights(part)
        lines = torch.arange(cone.lines, dtype=edges.dtype, device=edges.device)
        low = zero[..., None] + height[..., None] * lines
        high = zero[..., None] + height[..., None] * (lines + 1)
        at = torch.floor(low + 0.5).clamp_(-cone.taps, cone.slices)
        index = at.long() + cone.taps
        end, last = at + 0.5, low
        found = torch.zeros_like(low)
        for _ in range(cone.taps):
            following = torch.minimum(high, end)
            found += (following - last) * columns.gather(3, index)
            last, end, index = following, end + 1, index + 1
        return found * self._where_crossed(part, edges.diff(dim=2) * height)[..., None]

    def on_slices(self, lines: Tensor, part: range, edges: Tensor) -> Tensor:
        """Return columns (segments, rows, bins, slices): the transpose of :meth:`on_lines`."""
        cone = self._cone
        assert cone is not None
        height, zero = (each[..., None] for each in self._heights(part))
        pad = cone.back_taps
        padded = torch.nn.functional.pad(lines, (pad, pad))
        given = padded[:, None].expand(-1, len(part), -1, -1)
        begin = torch.arange(cone.slices, dtype=edges.dtype, device=edges.device) - 0.5
        at = torch.floor((begin - zero) / height - _MARGIN).nan_to_num_().clamp_(-pad, cone.lines)
        index = at.long() + pad
        last = (zero + height * at).clamp(begin, begin + 1)
        found = torch.zeros_like(at)
        for _ in range(pad):
            at = at + 1
            following = (zero + height * at).clamp(begin, begin + 1)
            found += (following - last) * given.gather(3, index)
            last, index = following, index + 1
        return found * self._where_crossed(part, edges.diff(dim=2) * height[..., 0])[..., None]

    def _heights(self, part: range) -> tuple[Tensor, Tensor]:
        """Return the height of detector rows and where the lowest begins, in slices."""
        assert self._cone is not None
        height = self._m0 + self._m1 * self._numbers(part)[:, None]
        return height, self._centre - height * self._cone.middle

    def _numbers(self, part: range) -> Tensor:
        return torch.arange(part.start, part.stop, dtype=self._P.dtype, device=self._P.device)

    def _where_crossed(self, part: range, widths: Tensor) -> Tensor:
        """Return 1 by widths; 0 for rows behind a source, and for bins that only fill the table."""
        row = torch.arange(part.start, part.stop, device=widths.device)[:, None]
        crossed = (row >= self._from) & (row < self._to) & (self._scale > 0)[:, None]
        return torch.where(crossed, 1 / torch.where(crossed, widths, 1), 0)


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


def _by_bins(given: Tensor, sweep: _Sweep, group: _Group, part: range, edges: Tensor) -> Tensor:
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


def _by_pixels(each: Tensor, sweep: _Sweep, group: _Group, edges: Tensor) -> Tensor:
    """Return the sum over segments and bins by their overlap with pixels, shape (rows, pixels, channels)."""
    count, rows, bins, channels = each.shape
    taps = group.back_taps
    edges = torch.nn.functional.pad(edges, (0, taps), value=_FAR)
    edges = torch.nn.functional.pad(edges, (1, 0), value=-_FAR)
    each = torch.nn.functional.pad(each, (0, 0, 1, taps)).view(-1, channels)
    low = torch.arange(sweep.pixels, dtype=edges.dtype, device=edges.device) - 0.5
    begin = low.expand(count, rows, -1).contiguous()
    # The last edge not above the pixel's begin; its bin begins there.
    at = (torch.searchsorted(edges, begin, right=True) - 1).clamp_(0, bins + 1)
    line = torch.arange(count * rows, device=edges.device).view(count, rows, 1)
    index = (at + line * (bins + 1 + taps)).flatten()
    edge = at
    last = edges.gather(2, edge).clamp(low, low + 1)
    found: Tensor | None = None
    for _ in range(taps):
        edge = edge + 1
        following = edges.gather(2, edge).clamp(low, low + 1)
        value = each.index_select(0, index).view(count, rows, -1, channels)
        value *= (following - last)[..., None]
        found = value if found is None else found.add_(value)
        last, index = following, index + 1
    assert found is not None
    return found.sum(0)


def _split(found: Tensor, slices: int) -> Tensor:
    return found.unflatten(2, (slices, -1)).permute(3, 0, 1, 2).contiguous()
