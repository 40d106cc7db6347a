"""Pictures of a volume for the page: slices, tissue that fades where it is doubtful, and doubt itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sagittal.segmentation import entropy_bits
from sagittal.volume import Volume, reorient

__all__ = ["COLOURS", "Plane", "ct_plane", "orthogonal_planes", "tissue_planes"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "csf": (64, 156, 255),
    "gm": (255, 176, 32),
    "wm": (38, 198, 165),
    "air": (64, 156, 255),
    "soft tissue": (38, 198, 165),
    "bone": (255, 176, 32),
}
_DOUBT = (255, 64, 129)


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One slice as data URIs.

    Attributes:
        image: The image in grey.
        classes: Colours over it, the fainter the less probable.
        doubt: Entropy over it.
        place: Where the slice lies, e.g. ``"z = 12 mm"``.
        width: Width in pixels of one square millimetre's side, times the slice's columns.
        height: Height likewise.
    """

    image: str
    classes: str
    doubt: str
    place: str
    width: int
    height: int


def tissue_planes(t1: Volume, tissue: Volume, count: int = 24) -> list[Plane]:
    """Return ``count`` axial slices from the bottom of the brain to its top, seen from the feet.

    The patient's right is on the left of the picture, anterior is up.
    """
    image, labels = reorient(t1, "LPS"), reorient(tissue, "LPS")
    box = _box(labels.array > 0)
    first, last = box[2].start, box[2].stop - 1
    margin = (last - first) * 0.06
    places = np.linspace(first + margin, last - margin, min(count, last - first + 1)).round().astype(int)
    window = _window(image.array)
    return [_plane(image, labels, 2, int(k), box, window) for k in places]


def orthogonal_planes(t1: Volume, tissue: Volume) -> dict[str, Plane]:
    """Return the coronal and the sagittal slice through the middle of the brain."""
    image, labels = reorient(t1, "LPS"), reorient(tissue, "LPS")
    box = _box(labels.array > 0)
    middle = [(side.start + side.stop) // 2 for side in box]
    window = _window(image.array)
    return {
        "coronal": _plane(image, labels, 1, middle[1], box, window),
        "sagittal": _plane(image, labels, 0, middle[0] - 8, box, window),
    }


def ct_plane(ct: Volume, classes: Volume) -> Plane:
    """Return a CT slice in a window of -160 to 240 HU, cropped to the head.

    The slice is shown in its own grid, columns to the right and rows down, as a scanner shows it.
    """
    box = _box(classes.array > 0)
    return _plane(ct, classes, 2, 0, box, (-160.0, 240.0))


def _plane(
    image: Volume, labels: Volume, axis: int, index: int, box: Sequence[slice], window: tuple[float, float]
) -> Plane:
    assert labels.probabilities is not None, "pictures are drawn of segmentations with probabilities"
    cut: list[Any] = list(box)
    cut[axis] = index
    grey = np.clip((image.array[tuple(cut)].astype(np.float64) - window[0]) / (window[1] - window[0]), 0, 1)
    probabilities = labels.probabilities[tuple(cut)].astype(np.float64)
    shown = [side for side in range(3) if side != axis]
    spacing = [labels.geometry.spacing[side] for side in shown]
    flip = axis != 2  # rows run down: towards the feet in an upright slice, to the back in an axial one
    size = (round(grey.shape[0] * spacing[0]), round(grey.shape[1] * spacing[1]))
    world = labels.geometry.index_to_world([index if side == axis else box[side].start for side in range(3)])
    return Plane(
        image=_png(_turn((grey * 255).round().astype(np.uint8), flip)),
        classes=_png(_turn(_class_colours(probabilities, labels.classes), flip)),
        doubt=_png(_turn(_doubt_colours(probabilities), flip)),
        place=f"{'xyz'[axis]} = {world[axis]:.0f} mm",
        width=size[0],
        height=size[1],
    )


def _class_colours(probabilities: NDArray[np.float64], classes: Sequence[str]) -> NDArray[np.uint8]:
    colours = np.array([COLOURS[name] for name in classes], dtype=np.float64)
    best = probabilities.argmax(axis=-1)
    chance = 1 / len(classes)
    sure = np.clip((probabilities.max(axis=-1) - chance) / (1 - chance), 0, 1)
    alpha = np.where(probabilities.sum(axis=-1) > 0, 30 + 150 * sure**2, 0)
    return np.dstack([colours[best], alpha[..., None]]).round().astype(np.uint8)


def _doubt_colours(probabilities: NDArray[np.float64]) -> NDArray[np.uint8]:
    share = entropy_bits(probabilities) / np.log2(probabilities.shape[-1])
    rgba = np.empty((*share.shape, 4), dtype=np.uint8)
    rgba[..., :3] = _DOUBT
    rgba[..., 3] = np.clip(255 * share * 1.1, 0, 235)
    return rgba


def _turn(picture: NDArray[np.uint8], flip: bool) -> NDArray[np.uint8]:
    """From (first axis, second axis) to rows and columns, rows down."""
    turned = picture.swapaxes(0, 1)
    return turned[::-1] if flip else turned


def _png(picture: NDArray[np.uint8]) -> str:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _box(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    where = [np.flatnonzero(mask.any(axis=tuple(o for o in range(3) if o != a))) for a in range(3)]
    first, second, third = (
        slice(max(int(w[0]) - 4, 0), min(int(w[-1]) + 5, n)) for w, n in zip(where, mask.shape, strict=True)
    )
    return first, second, third


def _window(array: NDArray[Any]) -> tuple[float, float]:
    return 0.0, float(np.percentile(array[array > 0], 99.5))
