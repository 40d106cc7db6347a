"""How much work lies between a proposal and its final annotation, and how much is to be expected before it.

An expert corrects slice by slice. Outlines, regions and the tolerance therefore lie in the slices, which are
those across the axis of the largest spacing unless told otherwise. Three criteria for each tissue, with P
what was proposed and Y what was kept; the paper's own formula was not to be had, these are ours [inference]:

- ``voxels``: ``|P xor Y| / |Y|``, the share of voxels to change;
- ``edge``: the share of Y's outline further than a tolerance from P's, the outline to draw again;
- ``components``: connected wrong regions larger than a speck, the strokes or clicks it takes.

Drawing from nothing costs 1, 1 and the number of Y's regions. A border between two tissues is an outline of
both, and a voxel that moves from one to the other is wrong in both.

Efforts estimation: Zhu et al., IEEE Access 7:107097, 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import

__all__ = ["CaseEffort", "Effort", "Saving", "campaign_saving", "correction_effort", "expected_effort"]

_Mask = NDArray[np.bool_]

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Middles of five equal parts of 0 to 1: the annotations that probabilities hold possible."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The work on one tissue of one case; whole numbers where it was done, means where it is expected.

    Attributes:
        voxels: Share of voxels to change. Of a tissue that is not there: 1 where it was proposed, else 0.
        edge: Share of the outline to draw again, 0 to 1; 0 where there is none.
        components: Regions to mend.
        edge_mm: Length of the outline to draw again, mm: voxels on it times the root of a voxel's area in the
            slice. Outlines along the grid are as long as that, those of all directions 10 % longer.
        slices: Slices with a region to mend.
    """

    voxels: float
    edge: float
    components: float
    edge_mm: float
    slices: float


@dataclass(frozen=True, kw_only=True)
class CaseEffort:
    """The work on one case.

    Attributes:
        tissues: On each tissue.
        slices: Slices with a region of any tissue to mend.
    """

    tissues: Mapping[str, Effort]
    slices: float

    @property
    def components(self) -> float:
        """Regions to mend, of all tissues."""
        return math.fsum(effort.components for effort in self.tissues.values())

    @property
    def edge_mm(self) -> float:
        """Outline to draw again, of all tissues, mm."""
        return math.fsum(effort.edge_mm for effort in self.tissues.values())


@dataclass(frozen=True, kw_only=True)
class Saving:
    """What a campaign of annotation saved against drawing all candidates from nothing, as shares of that.

    ``1 - total = (1 - by_selection) * (1 - by_correction)``: choosing 60 % of the candidates saves 40 %
    whatever the proposals are worth, so that the total alone says nothing of them.

    Attributes:
        total: 1 less the sum of efforts over the number of candidates.
        by_selection: The share of candidates that nobody touched.
        by_correction: 1 less the mean effort of those that were annotated.
    """

    total: float
    by_selection: float
    by_correction: float


def correction_effort(
    proposal: NDArray[Any],
    final: NDArray[Any],
    classes: Mapping[str, int],
    spacing: Sequence[float],
    *,
    axis: int | None = None,
    tolerance_mm: float | None = None,
    ignore_voxels: int = 4,
) -> CaseEffort:
    """Return the work that lies between a proposal and the annotation that was kept.

    Args:
        proposal: Labels, shape (i, j, k); zeros where nothing was proposed.
        final: Labels of the same shape.
        classes: Label of each tissue.
        spacing: Of the voxels, mm.
        axis: Slices lie across it; that of the largest spacing by default, the last of equals.
        tolerance_mm: Outlines that near are not drawn again; the larger spacing in the slice by default.
        ignore_voxels: Regions up to this many voxels are left as they are.

    Raises:
        InputError: Shapes that differ or have not three axes, a spacing, axis or tolerance that cannot be, no
            tissue, a label of 0.
    """
    frame = _Frame.of(proposal, spacing, axis, tolerance_mm, ignore_voxels)
    if final.shape != proposal.shape:
        raise InputError(
            "proposal and annotation differ in shape", value=final.shape, expected=str(proposal.shape)
        )
    _check_classes(classes)
    tissues, visited = {}, np.zeros(frame.slices, bool)
    for name, label in classes.items():
        p, y = frame.turned(proposal == label), frame.turned(final == label)
        work = frame.work(p, _near(p, frame), y)
        size = np.count_nonzero(y)
        tissues[name] = Effort(
            voxels=np.count_nonzero(p ^ y) / size if size else float(p.any()),
            edge=work.redrawn / work.outline if work.outline else 0.0,
            components=work.components,
            edge_mm=work.redrawn * frame.step,
            slices=int(np.count_nonzero(work.visited)),
        )
        visited |= work.visited
    return CaseEffort(tissues=tissues, slices=int(np.count_nonzero(visited)))


def expected_effort(
    proposal: NDArray[Any],
    probabilities: NDArray[Any],
    classes: Sequence[str],
    spacing: Sequence[float],
    *,
    axis: int | None = None,
    tolerance_mm: float | None = None,
    ignore_voxels: int = 4,
) -> CaseEffort:
    """Return the work to expect on a proposal, from its probabilities alone.

    The annotations held possible are, for each tissue, the voxels of a probability above a level, for levels
    from 0 to 1 alike: voxels err together, as an outline does that is drawn too far out all along, and each
    is in the tissue as often as its probability says. Work is the mean over them. [inference] What the model
    is wrongly sure of is not in it.

    Args:
        proposal: Labels, shape (i, j, k): 0, or 1 for the first class and so on.
        probabilities: Of the classes, shape (i, j, k, classes), 0 to 1; background is what they lack to 1.
        classes: Their names.
        spacing: Of the voxels, mm.
        axis: As for :func:`correction_effort`.
        tolerance_mm: As for :func:`correction_effort`.
        ignore_voxels: As for :func:`correction_effort`.

    Raises:
        InputError: As :func:`correction_effort`; probabilities of another shape or outside 0 to 1.
    """
    frame = _Frame.of(proposal, spacing, axis, tolerance_mm, ignore_voxels)
    if probabilities.shape != (*proposal.shape, len(classes)):
        raise InputError(
            "the probabilities do not belong to the proposal",
            value=probabilities.shape,
            expected=str((*proposal.shape, len(classes))),
        )
    if not (probabilities.min() >= 0 and probabilities.max() <= 1 + 1e-6):
        raise InputError("probabilities leave their range", expected="0 to 1")
    labels = {name: place for place, name in enumerate(classes, 1)}
    _check_classes(labels)
    tissues, visited = {}, np.zeros((len(LEVELS), frame.slices), bool)
    for name, label in labels.items():
        p = frame.turned(proposal == label)
        near = _near(p, frame)
        held = frame.turned(probabilities[..., label - 1])
        works = [frame.work(p, near, held > level) for level in LEVELS]
        size = float(held.sum(dtype=np.float64))
        wrong = float(held[~p].sum(dtype=np.float64) + (1 - held[p].astype(np.float64)).sum())
        outline, redrawn = (
            math.fsum(values) for values in zip(*[(w.outline, w.redrawn) for w in works], strict=True)
        )
        tissues[name] = Effort(
            voxels=wrong / size if size else float(p.any()),
            edge=redrawn / outline if outline else 0.0,
            components=math.fsum(w.components for w in works) / len(LEVELS),
            edge_mm=redrawn * frame.step / len(LEVELS),
            slices=math.fsum(np.count_nonzero(w.visited) for w in works) / len(LEVELS),
        )
        visited |= np.stack([w.visited for w in works])
    return CaseEffort(tissues=tissues, slices=float(visited.sum(axis=1).mean()))


def campaign_saving(efforts: Sequence[float], candidates: int) -> Saving:
    """Return what a campaign saved, of one criterion and tissue.

    Args:
        efforts: Of each case that was annotated, as shares of drawing it from nothing.
        candidates: How many cases there were in all.

    Raises:
        InputError: No effort, a negative one, or more efforts than candidates.
    """
    if not efforts or min(efforts) < 0 or len(efforts) > candidates:
        raise InputError(
            "these are no efforts of a campaign",
            value=f"{len(efforts)} efforts, {candidates} candidates",
            expected="one of 0 or more for each annotated candidate",
        )
    return Saving(
        total=1 - math.fsum(efforts) / candidates,
        by_selection=1 - len(efforts) / candidates,
        by_correction=1 - math.fsum(efforts) / len(efforts),
    )


@dataclass(frozen=True)
class _Work:
    outline: int
    redrawn: int
    components: int
    visited: _Mask


@dataclass(frozen=True)
class _Frame:
    """How the slices lie: arrays are turned so that the first axis counts slices."""

    axis: int
    slices: int
    plane: tuple[float, float]
    tolerance: float
    ignore: int

    @classmethod
    def of(
        cls,
        labels: NDArray[Any],
        spacing: Sequence[float],
        axis: int | None,
        tolerance_mm: float | None,
        ignore_voxels: int,
    ) -> _Frame:
        steps = tuple(float(step) for step in spacing)
        if labels.ndim != 3 or len(steps) != 3 or not all(0 < step < math.inf for step in steps):
            raise InputError(
                "labels and spacing do not fit",
                value=f"{labels.shape}, {steps} mm",
                expected="three axes, three lengths above 0",
            )
        across = max(range(3), key=lambda a: (steps[a], a)) if axis is None else axis
        if across not in (0, 1, 2):
            raise InputError("there is no such axis", source="axis", value=axis, expected="0, 1 or 2")
        plane = [steps[a] for a in range(3) if a != across]
        tolerance = max(plane) if tolerance_mm is None else tolerance_mm
        if not 0 <= tolerance < math.inf or ignore_voxels < 0:
            raise InputError(
                "what is left as it is cannot be negative",
                value=f"tolerance {tolerance} mm, {ignore_voxels} voxels",
                expected="0 or more",
            )
        return cls(across, labels.shape[across], (plane[0], plane[1]), tolerance, ignore_voxels)

    @property
    def step(self) -> float:
        """Length that a voxel of an outline stands for, mm."""
        return math.sqrt(self.plane[0] * self.plane[1])

    def turned(self, array: NDArray[Any]) -> NDArray[Any]:
        return np.moveaxis(array, self.axis, 0)

    def work(self, p: _Mask, near: _Mask, y: _Mask) -> _Work:
        """Compare a turned proposal, and what is near its outline, with a turned annotation."""
        outline = _outline(y)
        wrong = p ^ y
        labels, count = optional_import("scipy.ndimage").label(wrong, _IN_SLICE)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        mended = sizes > self.ignore
        mended[0] = False
        return _Work(
            outline=int(np.count_nonzero(outline)),
            redrawn=int(np.count_nonzero(outline & ~near)),
            components=int(np.count_nonzero(mended)),
            visited=mended[labels].any(axis=(1, 2)),
        )


_IN_SLICE = np.zeros((3, 3, 3), bool)
_IN_SLICE[1, 1, :] = _IN_SLICE[1, :, 1] = True


def _outline(turned: _Mask) -> _Mask:
    """Return the voxels of a mask with a side in the slice that is not in it; beyond the grid nothing is."""
    inner = np.zeros_like(turned)
    inner[:, 1:-1, 1:-1] = (
        turned[:, :-2, 1:-1] & turned[:, 2:, 1:-1] & turned[:, 1:-1, :-2] & turned[:, 1:-1, 2:]
    )
    return turned & ~inner


def _near(turned: _Mask, frame: _Frame) -> _Mask:
    """Return the voxels within the tolerance of a mask's outline in the same slice."""
    outline = _outline(turned)
    near = np.zeros_like(outline)
    transform = optional_import("scipy.ndimage").distance_transform_edt
    for place in np.flatnonzero(outline.any(axis=(1, 2))):
        near[place] = transform(~outline[place], sampling=frame.plane) <= frame.tolerance * (1 + 1e-9)
    return near


def _check_classes(classes: Mapping[str, int]) -> None:
    if not classes or min(classes.values()) < 1:
        raise InputError("the tissues have no labels", value=dict(classes), expected="labels from 1 on")
