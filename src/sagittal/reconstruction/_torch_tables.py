"""Segments as tables of tensors, many of them at once; what the torch projectors sum over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sagittal.core.optional import optional_import
from sagittal.reconstruction.geometry import ConeBeam, ScanGeometry
from sagittal.reconstruction.segments import MARGIN, Segment, check_grid, line_heights, middle_line
from sagittal.volume import Geometry

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = optional_import("torch", "language")

__all__ = ["FAR", "Cone", "Group", "Sweep"]

FAR = 1e9
"""Where the edges lie that only fill a table, in pixels."""

Numbers = Callable[..., "Tensor"]


class Sweep:
    """The segments that cross an image by rows of one of its axes, in groups of a like number of bins.

    Args:
        geometry: The scanner.
        grid: The voxels.
        segments: One or more.
        second: Whether the rows are those of the second axis.
        numbers: From values, and a dtype where it is not the projector's, to a tensor on its device.
    """

    def __init__(
        self,
        geometry: ScanGeometry,
        grid: Geometry,
        segments: list[Segment],
        *,
        second: bool,
        numbers: Numbers,
    ) -> None:
        self.second = second
        self.rows, self.pixels = grid.shape[:2][:: -1 if second else 1]
        self.bins, self.numbers = geometry.bins, numbers
        self.segments = sorted(segments, key=lambda s: len(s.scale))
        self.taps = [s.taps() for s in self.segments]
        self.pad = max(taps for taps, _ in self.taps)
        self.cone = Cone.of(geometry, grid, segments) if isinstance(geometry, ConeBeam) else None
        self._kept: dict[int, list[Group]] = {}

    def padded(self, channels: Tensor) -> Tensor:
        """Return an image's rows with zeros about them, shape (rows x (pixels + padding), channels)."""
        image = channels.transpose(0, 1) if self.second else channels
        along = self.cone.taps if self.cone else 0
        return torch.nn.functional.pad(image, (along, along, self.pad, self.pad)).flatten(0, 1)

    def groups(self, room: int) -> list[Group]:
        """Return the segments in groups, each of at most so many places in an image where it has several."""
        if room not in self._kept:
            self._kept[room] = list(self._grouped(room))
        return self._kept[room]

    def _grouped(self, room: int) -> Iterator[Group]:
        first = 0
        for n in range(1, len(self.segments) + 1):
            if n < len(self.segments):
                widest = max(len(self.segments[n].P), self.pixels)
                if (n + 1 - first) * self.rows * widest <= room:
                    continue
            taps, back_taps = (max(both) for both in zip(*self.taps[first:n], strict=True))
            yield Group(self, self.segments[first:n], taps, back_taps)
            first = n


@dataclass(frozen=True)
class Cone:
    """Slices and detector rows of a sweep of cone beams, and how many of the ones meet one of the others."""

    slices: int
    lines: int
    middle: float
    taps: int
    back_taps: int

    @classmethod
    def of(cls, geometry: ConeBeam, grid: Geometry, segments: list[Segment]) -> Cone:
        """Return that of a geometry and a grid."""
        low, high = line_heights(segments)
        return cls(
            slices=grid.shape[2],
            lines=geometry.rows,
            middle=middle_line(geometry, check_grid(geometry, grid)),
            taps=math.ceil(high) + 1,
            back_taps=math.ceil(1 / low + 2 * MARGIN) + 1,
        )


class Group:
    """Some segments as tables, of as many bins as the longest of them; bins that are not have no share."""

    def __init__(self, sweep: Sweep, segments: list[Segment], taps: int, back_taps: int) -> None:
        self.taps, self.back_taps = taps, back_taps
        self.count, self.bins = len(segments), max(len(s.scale) for s in segments)
        self._cone, self._pixels = sweep.cone, sweep.pixels
        numbers = sweep.numbers

        def table(parts: list[Any], width: int, fill: float) -> Tensor:
            values = np.full((self.count, width), fill)
            for row, given in zip(values, parts, strict=True):
                row[: len(given)] = given
            return numbers(values)

        self._P = table([s.P for s in segments], self.bins + 1, FAR)[:, None]
        self._Q = table([s.Q for s in segments], self.bins + 1, 0.0)[:, None]
        self._scale = table([s.scale for s in segments], self.bins, 0.0)
        self._from = numbers([s.rows[0] for s in segments], torch.int64)[:, None, None]
        self._to = numbers([s.rows[1] for s in segments], torch.int64)[:, None, None]
        self._span = min(s.rows[0] for s in segments), max(s.rows[1] for s in segments)
        bins = [np.arange(len(s.scale)) for s in segments]
        self.rays = numbers(
            np.concatenate(
                [s.view * sweep.bins + s.first + s.step * u for s, u in zip(segments, bins, strict=True)]
            ),
            torch.int64,
        )
        self.places = numbers(np.concatenate([n * self.bins + u for n, u in enumerate(bins)]), torch.int64)
        if self._cone:
            self._m0 = table([s.m0 for s in segments], self.bins, 1.0)[:, None]
            self._m1 = table([s.m1 for s in segments], self.bins, 0.0)[:, None]
            self._tilt = table([s.tilt for s in segments], self.bins, 0.0)
            self._centre = numbers([s.centre for s in segments])[:, None, None]

    def rows(self, room: int) -> Iterator[range]:
        """Yield the rows that are crossed, at a time as many as have so many places, or one."""
        begin, end = self._span
        step = max(1, room // (self.count * max(self.bins + 1, self._pixels)))
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
        at = torch.floor((begin - zero) / height - MARGIN).nan_to_num_().clamp_(-pad, cone.lines)
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
