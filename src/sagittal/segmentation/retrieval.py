"""The labels of the subject that looks most alike, as further channels of a network.

A person's own labels as a channel would nearly solve the task, so those of the most similar labelled subject
may help (arXiv 1808.00457). The trap is that a subject finds itself: a network that is trained so learns to
copy, and falls apart on a new person. Here an index is kept by subject, a query says whose it is, and what
that subject gave is not among what is searched. There is no query without a subject.

The descriptor, the restriction to neighbouring slices and the alignment are ours [inference].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import
from sagittal.core.provenance import hash_array
from sagittal.segmentation.channels import Channels
from sagittal.volume import DisplacementField, Volume

__all__ = ["Align", "Labelled", "Match", "RetrievalIndex", "image_descriptor", "retrieved_channels"]

Align = Callable[[Volume, Volume], DisplacementField]
"""Takes the retrieved image and the asking one; returns the map from the asking one's grid to the
retrieved."""

_NEAR = 0.1  # of the height: how far apart slices may lie
_EDGE = 1e-12
_LEAST_SD = 1e-6


@dataclass(frozen=True, eq=False, kw_only=True)
class Labelled:
    """A labelled image or slice of a subject.

    Attributes:
        subject: Whose it is.
        image: On any grid.
        labels: Whole numbers, on the image's grid.
        descriptor: What it is found by, shape (features,), such as :func:`image_descriptor` or the pooled
            features of a network; the same features for all.
        position: Of a slice, from 0 at the bottom of the head to 1 at its top; ``None`` for a volume.

    Raises:
        InputError: No subject, labels on another grid, or a descriptor without direction.
    """

    subject: str
    image: Volume
    labels: Volume
    descriptor: NDArray[np.float64]
    position: float | None = None

    def __post_init__(self) -> None:
        if not self.subject.strip():
            raise InputError(
                "a labelled image has no subject", value=repr(self.subject), expected="the subject's id"
            )
        if self.labels.shape != self.image.shape or not self.labels.geometry.is_aligned(self.image.geometry):
            raise InputError(
                "labels lie on another grid than their image",
                source=self.subject,
                value=repr(self.labels.geometry),
                expected=repr(self.image.geometry),
            )
        object.__setattr__(self, "descriptor", _direction(self.descriptor, self.subject))
        _checked_position(self.position, self.subject)


@dataclass(frozen=True, eq=False)
class Match:
    """What a query found.

    Attributes:
        found: The labelled image; never of the asking subject.
        similarity: Cosine of the two descriptors, -1 to 1.
    """

    found: Labelled
    similarity: float


class RetrievalIndex:
    """Labelled images by subject, in which nobody finds themselves.

    Args:
        items: Labelled images; a subject may give several slices.

    Raises:
        InputError: No item, descriptors of different lengths, volumes among slices, or the same labels under
            two subjects: one of them would find itself under the other name.
    """

    def __init__(self, items: Iterable[Labelled]) -> None:
        kept: dict[str, list[Labelled]] = {}
        owners: dict[str, str] = {}
        lengths, kinds = set(), set()
        for item in items:
            owner = owners.setdefault(hash_array(item.labels.array), item.subject)
            if owner != item.subject and item.labels.array.any():
                raise InputError(
                    "two subjects have the same labels",
                    value=f"{owner} and {item.subject}",
                    expected="each labelled subject once, under one id",
                )
            kept.setdefault(item.subject, []).append(item)
            lengths.add(len(item.descriptor))
            kinds.add(item.position is None)
        if not kept or len(lengths) != 1 or len(kinds) != 1:
            raise InputError(
                "these images make no index",
                value=f"{len(kept)} subjects, descriptors of length {sorted(lengths)}, {len(kinds)} kinds",
                expected="one subject or more, one descriptor, slices or volumes",
            )
        self._items = kept
        self._length = lengths.pop()
        self._flat = not kinds.pop()

    @property
    def subjects(self) -> tuple[str, ...]:
        """Who is in the index."""
        return tuple(self._items)

    def query(
        self,
        descriptor: NDArray[np.float64],
        *,
        subject: str,
        position: float | None = None,
        near: float = _NEAR,
        count: int = 1,
    ) -> list[Match]:
        """Return the labelled images of other subjects that look most alike, the most similar first.

        Args:
            descriptor: Of the asking image, shape (features,).
            subject: Whose image asks. What this subject gave is not searched. A new person's id is not in the
                index, and everybody is searched.
            position: Of the asking slice, from 0 to 1; for slices only, and needed there.
            near: Slices whose positions differ by more are not searched.
            count: At most so many, each of another subject.

        Returns:
            May be empty where no slice is near enough. Of equal similarity, the first subject in the index.

        Raises:
            InputError: A descriptor that does not fit, nobody else in the index, a position for volumes or
                none for slices, or a count below 1.
        """
        asked = _direction(descriptor, subject)
        _checked_position(position, subject)
        if (
            len(asked) != self._length
            or (position is not None) != self._flat
            or count < 1
            or not subject.strip()
        ):
            raise InputError(
                "the query does not fit the index",
                source=subject,
                value=f"{len(asked)} features, position {position}, count {count}",
                expected=f"{self._length} features, {'a' if self._flat else 'no'} position, 1 or more",
            )
        others = [own for name, own in self._items.items() if name != subject]
        if not others:
            raise InputError(
                "nobody else is in the index", source=subject, expected="another labelled subject"
            )
        best = []
        for own in others:
            matches = [
                Match(item, float((item.descriptor * asked).sum()))
                for item in own
                if position is None or abs(float(item.position or 0) - position) <= near + _EDGE
            ]
            if matches:
                best.append(max(matches, key=lambda match: match.similarity))
        return sorted(best, key=lambda match: -match.similarity)[:count]

    def cross_fitted(self, *, near: float = _NEAR) -> list[tuple[Labelled, Match | None]]:
        """Return each item with what it finds among the other subjects: what a network is trained on.

        Everybody asks as a new person would, with one subject fewer to be found: in training the retrieved
        labels are as good as they will be later.

        Raises:
            InputError: Only one subject is in the index.
        """
        found = []
        for own in self._items.values():
            for item in own:
                matches = self.query(item.descriptor, subject=item.subject, position=item.position, near=near)
                found.append((item, matches[0] if matches else None))
        return found


def image_descriptor(
    image: NDArray[np.floating], mask: NDArray[np.bool_], *, smooth: float = 2.0, step: int = 4
) -> NDArray[np.float64]:
    """Return what an image looks like: z-scored in its mask, blurred, and every few voxels kept.

    Args:
        image: (i, j, k), of one grid for all that are compared.
        mask: Where it counts; elsewhere it is taken for its mean.
        smooth: Standard deviation of the blur in voxels, along axes of more than one.
        step: Every so many voxels one is kept.

    Returns:
        Shape (features,), of length 1, so that the product of two is their cosine.

    Raises:
        InputError: An empty mask or another grid, or settings out of range.
        MissingDependencyError: scipy is not installed.
    """
    if image.shape != mask.shape or not mask.any() or not smooth >= 0 or step < 1:
        raise InputError(
            "there is nothing to describe",
            value=f"shapes {image.shape} and {mask.shape}, {int(mask.sum())} voxels, {smooth}, {step}",
            expected="a mask on the image's grid, smooth 0 or more, step 1 or more",
        )
    inside = image[mask].astype(np.float64)
    scaled = np.where(mask, (image - inside.mean()) / max(float(inside.std()), _LEAST_SD), 0.0)
    blurred = optional_import("scipy.ndimage").gaussian_filter(
        scaled, [smooth if side > 1 else 0 for side in image.shape], mode="constant"
    )
    kept = blurred[tuple(slice(min(step // 2, side // 2), None, step) for side in image.shape)]
    return _direction(kept.ravel(), "image")


def retrieved_channels(
    image: Volume,
    match: Match | None,
    classes: Mapping[str, int],
    *,
    align: Align | None = None,
    planes: bool = True,
) -> Channels:
    """Return retrieved labels on the grid of the asking image.

    Args:
        image: The asking one.
        match: What its query found; ``None`` gives zeros.
        classes: The value of each label by its name.
        align: Finds where the asking image's points lie in the retrieved one, such as a registration; by
            default both are taken to lie in one space.
        planes: One channel of 0 and 1 for each class; else a single one, the class's number from 1 on divided
            by how many there are.

    Raises:
        InputError: No class.
        GeometryError: The map leads nowhere into the retrieved image.
    """
    if not classes:
        raise InputError("no class is asked for", expected="one or more")
    names = tuple(f"retrieved_{name}" for name in classes) if planes else ("retrieved",)
    if match is None:
        return Channels(np.zeros((len(names), *image.shape), np.float32), names)
    there = match.found
    field = DisplacementField.identity(image.geometry) if align is None else align(there.image, image)
    labels = field.warp(there.labels, "label", outside=0).array
    layers = np.stack([(labels == value) for value in classes.values()]).astype(np.float32)
    if not planes:
        ranks = np.arange(1, len(classes) + 1, dtype=np.float32) / len(classes)
        layers = (layers * ranks.reshape(-1, 1, 1, 1)).sum(axis=0, keepdims=True)
    return Channels(layers, names)


def _direction(descriptor: NDArray[np.floating], subject: str) -> NDArray[np.float64]:
    """Return a descriptor of length 1."""
    values = np.asarray(descriptor, dtype=np.float64)
    length = float(np.sqrt((values**2).sum())) if values.ndim == 1 else 0.0
    if not (np.isfinite(length) and length > 0):
        raise InputError(
            "a descriptor has no direction",
            source=subject,
            value=f"shape {values.shape}, length {length:g}",
            expected="(features,), finite and not all 0",
        )
    found: NDArray[np.float64] = values / length
    found.setflags(write=False)
    return found


def _checked_position(position: float | None, subject: str) -> None:
    if position is not None and not 0 <= position <= 1:
        raise InputError(
            "a slice's position is out of range", source=subject, value=position, expected="0 to 1"
        )
