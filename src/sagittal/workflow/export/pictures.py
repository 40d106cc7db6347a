"""Pictures of a volume for the page: slices, tissue that fades where it is doubtful, and doubt itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sagittal.core.errors import InputError
from sagittal.segmentation import entropy_bits
from sagittal.volume import Volume, reorient, require_same_space, resample

__all__ = [
    "COLOURS",
    "Plane",
    "SlicePictures",
    "change_pictures",
    "class_colour",
    "ct_plane",
    "disagreement_pictures",
    "low_dose_pictures",
    "orthogonal_planes",
    "slice_png",
    "tissue_planes",
]

COLOURS: dict[str, tuple[int, int, int]] = {
    "csf": (64, 156, 255),
    "gm": (255, 176, 32),
    "wm": (38, 198, 165),
    "air": (64, 156, 255),
    "soft tissue": (38, 198, 165),
    "bone": (255, 176, 32),
}
_DOUBT = (255, 64, 129)
_SMALLER, _LARGER = (64, 156, 255), (255, 140, 32)
_BEYOND = 1.96  # standard deviations from which on a difference has its full colour; at one it has none
_FURTHER = ((232, 106, 240), (160, 214, 72), (255, 112, 92), (120, 140, 255))
_CT_WINDOW = (-160.0, 240.0)
_LARGEST_PICTURE = 4096
_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}


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


@dataclass(frozen=True, kw_only=True)
class SlicePictures:
    """One slice in several pictures of the same place, as data URIs by name.

    Attributes:
        images: The pictures.
        most: Standard deviation that is drawn brightest, in the unit of the slice.
        strongest: Difference that has the full colour, where one is drawn.
        width: Width of each in pixels of one square millimetre's side.
        height: Height likewise.
    """

    images: dict[str, str]
    most: float
    width: int
    height: int
    strongest: float = 0.0


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
    return _plane(ct, classes, 2, 0, box, _CT_WINDOW)


def low_dose_pictures(volumes: Mapping[str, Volume], classes: Volume, doubtful: str) -> SlicePictures:
    """Return slices in the CT window of -160 to 240 HU, cropped alike to the head, and the doubt of one.

    The patient's right is on the left of the pictures, anterior is up.

    Args:
        volumes: Slices by name, on the same grid.
        classes: Labels on that grid: what is above 0 is the head.
        doubtful: Name of a slice with a variance; its standard deviation is the picture ``"doubt"``, from
            black at 0 to white at the 99 % quantile inside the head.

    Raises:
        GeometryError: Slices of another grid.
    """
    for name, volume in volumes.items():
        require_same_space(volume, classes, source=name)
    head = reorient(classes, "LPS")
    box = (*_box(head.array > 0)[:2], 0)
    low, high = _CT_WINDOW
    images = {}
    for name, volume in volumes.items():
        images[name] = _grey((reorient(volume, "LPS").array[box].astype(np.float64) - low) / (high - low))
    variance = reorient(volumes[doubtful], "LPS").variance
    assert variance is not None, "the caller chose a slice with a variance"
    sd = np.sqrt(variance[box].astype(np.float64))
    most = max(float(np.percentile(sd[head.array[box] > 0], 99)), 1.0)
    images["doubt"] = _grey(sd / most)
    spacing = head.geometry.spacing
    return SlicePictures(
        images=images,
        most=most,
        width=round(sd.shape[0] * spacing[0]),
        height=round(sd.shape[1] * spacing[1]),
    )


def change_pictures(
    image: Volume, change: Volume, overall: float, *, known: Volume | None, labels: Volume | None
) -> SlicePictures:
    """Return the axial slice in which local volume differs most, and over it the differences, and the doubt.

    The patient's right is on the left of the pictures, anterior is up. Blue is smaller than in the atlas,
    orange larger; a difference of 1.96 of its standard deviations has its full colour, and one of a single
    standard deviation none.

    Args:
        image: What was registered.
        change: Logarithm of the volume against the atlas, with its variance.
        overall: The part of it that all of the image has.
        known: The change that was made in simulation, on the same grid; None where nobody knows.
        labels: Class probabilities that were carried over, on the same grid.

    Returns:
        Pictures ``"image"``, ``"change"``, ``"doubt"``, and ``"known"`` and ``"labels"`` where there are any.

    Raises:
        GeometryError: A volume of another grid.
    """
    for other in (known, labels):
        if other is not None:
            require_same_space(other, change)
    assert change.variance is not None, "the caller chose a change with its doubt"
    shown = reorient(resample(image, change.geometry), "LPS")
    turned = reorient(change, "LPS")
    assert turned.variance is not None, "turning keeps the variance"
    low, high = _window(shown.array)
    head = shown.array > 0.1 * high
    box = _box(head)
    local = np.where(head, turned.array.astype(np.float64) - overall, 0)
    inner = range(box[2].start, box[2].stop)
    size = [float(np.square(local[..., k]).sum()) for k in inner]
    cut = (*box[:2], inner[int(np.argmax(size))])
    strongest = max(float(np.quantile(np.abs(local[head]), 0.99)), 0.05)
    sd = np.sqrt(turned.variance[cut].astype(np.float64))
    most = max(float(np.quantile(np.sqrt(turned.variance[head]), 0.99)), 1e-3)
    grey = np.clip((shown.array[cut].astype(np.float64) - low) / max(high - low, 1e-9), 0, 1)
    base = (grey * 255).round().astype(np.uint8)
    sure = np.clip((np.abs(local[cut]) / np.maximum(sd, 1e-9) - 1) / (_BEYOND - 1), 0, 1)
    images = {
        "image": _grey(grey),
        "change": _layered(base, _change_colours(local[cut], strongest, sure * head[cut])),
        "doubt": _grey(np.where(head[cut], sd / most, 0)),
    }
    if known is not None:
        truth = reorient(known, "LPS").array.astype(np.float64) - overall
        images["known"] = _layered(base, _change_colours(truth[cut], strongest, head[cut].astype(np.float64)))
    if labels is not None and labels.probabilities is not None:
        probabilities = reorient(labels, "LPS").probabilities
        assert probabilities is not None, "turning keeps the probabilities"
        shares = probabilities[cut].astype(np.float64)
        colours = _class_colours(shares, labels.classes)
        colours[..., 3] = (colours[..., 3] * np.clip(shares.sum(axis=-1), 0, 1) * head[cut]).round()
        images["labels"] = _layered(base, colours)
    spacing = turned.geometry.spacing
    return SlicePictures(
        images=images,
        most=most,
        strongest=strongest,
        width=round(base.shape[0] * spacing[0]),
        height=round(base.shape[1] * spacing[1]),
    )


def disagreement_pictures(image: Volume, one: Volume, other: Volume) -> SlicePictures:
    """Return the axial slice in which two segmentations differ most, both of them, and where they differ.

    The patient's right is on the left of the pictures, anterior is up. How far they differ in a voxel is the
    share of probability that would have to move from class to class to make them alike, from 0 to 1.

    Args:
        image: What was segmented.
        one: A segmentation with probabilities on the image's grid.
        other: Another, of the same classes.

    Returns:
        Pictures ``"image"``, ``"one"``, ``"other"`` and ``"disagreement"``.

    Raises:
        GeometryError: A volume of another grid.
        InputError: Other classes, or no probabilities.
    """
    for volume in (one, other):
        require_same_space(volume, image)
    shown, first, second = (reorient(volume, "LPS") for volume in (image, one, other))
    if first.probabilities is None or second.probabilities is None or first.classes != second.classes:
        raise InputError(
            "the segmentations cannot be compared",
            value=", ".join(other.classes),
            expected=f"probabilities of {', '.join(one.classes)}",
        )
    apart = np.abs(first.probabilities.astype(np.float32) - second.probabilities).sum(axis=-1) / 2
    box = _box((first.array > 0) | (second.array > 0))
    inner = range(box[2].start, box[2].stop)
    cut = (*box[:2], inner[int(np.argmax([float(apart[..., k].sum()) for k in inner]))])
    low, high = _window(shown.array)
    grey = np.clip((shown.array[cut].astype(np.float64) - low) / max(high - low, 1e-9), 0, 1)
    base = (grey * 255).round().astype(np.uint8)
    images = {"image": _grey(grey)}
    for name, volume in (("one", first), ("other", second)):
        assert volume.probabilities is not None, "checked above"
        colours = _class_colours(volume.probabilities[cut].astype(np.float64), volume.classes)
        images[name] = _layered(base, colours)
    marks = np.empty((*base.shape, 4), dtype=np.uint8)
    marks[..., :3] = _DOUBT
    marks[..., 3] = (235 * np.clip(apart[cut], 0, 1)).round()
    images["disagreement"] = _layered(base, marks)
    spacing = shown.geometry.spacing
    return SlicePictures(
        images=images,
        most=float(apart[cut].max()),
        width=round(base.shape[0] * spacing[0]),
        height=round(base.shape[1] * spacing[1]),
    )


def slice_png(volume: Volume, axis: str, index: int, *, over: Volume | None = None) -> bytes:
    """Return one whole slice of a volume as PNG, square millimetres as square pixels as nearly as they go.

    The patient's right is on the left of an axial or coronal picture, anterior is on the left of a sagittal
    one; anterior or superior is up.

    Args:
        volume: What is shown in grey; a segmentation in its colours.
        axis: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        index: Number of the slice from the feet, the front or the right.
        over: A volume on the same grid: classes in their colours where it has any, doubt in bits, or a
            probability or another map, each the stronger the higher.

    Raises:
        InputError: No such axis or slice.
        GeometryError: ``over`` does not lie on the same grid.
    """
    if axis not in _AXES:
        raise InputError("no slice has this axis", value=axis, expected=f"one of {', '.join(_AXES)}")
    if over is not None:
        require_same_space(volume, over, source="over")
    side = _AXES[axis]
    image = reorient(volume, "LPS")
    if not 0 <= index < image.shape[side]:
        raise InputError("there is no such slice", value=index, expected=f"0 to {image.shape[side] - 1}")
    cut: list[Any] = [slice(None)] * 3
    cut[side] = index
    flip = side != 2
    if volume.classes:
        assert image.probabilities is not None, "classes come with probabilities"
        grey = np.zeros(image.array[tuple(cut)].shape, dtype=np.uint8)
        layers = [_class_colours(image.probabilities[tuple(cut)].astype(np.float64), image.classes)]
    else:
        low, high = _CT_WINDOW if volume.unit == "HU" else _window(image.array)
        plane = image.array[tuple(cut)].astype(np.float64)
        grey = (np.clip((plane - low) / max(high - low, 1e-9), 0, 1) * 255).round().astype(np.uint8)
        layers = []
    if over is not None:
        layers.append(_cover(reorient(over, "LPS"), tuple(cut)))
    picture = Image.fromarray(np.ascontiguousarray(_turn(grey, flip))).convert("RGBA")
    for layer in layers:
        picture.alpha_composite(Image.fromarray(np.ascontiguousarray(_turn(layer, flip))))
    spacing = [image.geometry.spacing[other] for other in range(3) if other != side]
    finest = min(spacing)
    size = [max(1, round(pixels * mm / finest)) for pixels, mm in zip(picture.size, spacing, strict=True)]
    if max(size) <= _LARGEST_PICTURE and tuple(size) != picture.size:
        picture = picture.resize((size[0], size[1]), Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def _cover(over: Volume, cut: tuple[Any, ...]) -> NDArray[np.uint8]:
    """Return a slice of ``over`` as colours with an opacity."""
    if over.probabilities is not None:
        return _class_colours(over.probabilities[cut].astype(np.float64), over.classes)
    plane = over.array[cut].astype(np.float64)
    top = float(over.array.max())
    share = np.clip(plane / top, 0, 1) if top > 0 else np.zeros_like(plane)
    rgba = np.empty((*share.shape, 4), dtype=np.uint8)
    rgba[..., :3] = _DOUBT
    rgba[..., 3] = np.clip(220 * share, 0, 220)
    return rgba


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


def class_colour(classes: Sequence[str], index: int) -> tuple[int, int, int]:
    """Return the colour that a class is drawn in."""
    return COLOURS.get(classes[index], _FURTHER[index % len(_FURTHER)])


def _class_colours(probabilities: NDArray[np.float64], classes: Sequence[str]) -> NDArray[np.uint8]:
    colours = np.array([class_colour(classes, index) for index in range(len(classes))], np.float64)
    best = probabilities.argmax(axis=-1)
    chance = 1 / len(classes) if len(classes) > 1 else 0.0
    sure = np.clip((probabilities.max(axis=-1) - chance) / (1 - chance), 0, 1)
    alpha = np.where(probabilities.sum(axis=-1) > 0, 30 + 150 * sure**2, 0)
    return np.dstack([colours[best], alpha[..., None]]).round().astype(np.uint8)


def _change_colours(
    local: NDArray[np.float64], strongest: float, shown: NDArray[np.float64]
) -> NDArray[np.uint8]:
    rgba = np.empty((*local.shape, 4), dtype=np.uint8)
    rgba[..., :3] = np.where((local > 0)[..., None], _LARGER, _SMALLER)
    rgba[..., 3] = (230 * np.clip(np.abs(local) / strongest, 0, 1) * shown).round()
    return rgba


def _layered(grey: NDArray[np.uint8], layer: NDArray[np.uint8]) -> str:
    """One picture of colours over grey."""
    share = layer[..., 3:].astype(np.float64) / 255
    mixed = grey[..., None] * (1 - share) + layer[..., :3] * share
    return _png(_turn(mixed.round().astype(np.uint8), False))


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


def _grey(share: NDArray[np.float64]) -> str:
    return _png(_turn((np.clip(share, 0, 1) * 255).round().astype(np.uint8), False))


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
    above = array[array > 0]
    return 0.0, float(np.percentile(above, 99.5)) if above.size else 1.0
