"""From a case's images to what a segmentation network sees, and from what it says back to the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import GeometryError, InputError
from sagittal.segmentation.tissue import brain_mask
from sagittal.volume import DisplacementField, Geometry, Volume, reorient, require_same_space, resample
from sagittal.workflow.artifacts import SourceFiles
from sagittal.workflow.map_files import file_fields

__all__ = [
    "GEOMETRIC",
    "NetworkInput",
    "expanded",
    "field_of",
    "image_roles",
    "labels_on",
    "network_input",
    "on_image",
    "wants_field",
]

GEOMETRIC = {"jacobian": ("jacobian",), "curl": ("curl_x", "curl_y", "curl_z")}
"""Channels that come from the registration to the atlas, by the word that a person types."""

_SAME = 0.02  # of a voxel's width: so near, no voxel is interpolated
_COARSEST = 1.5  # times as wide as the network's voxels, at most
_TOLERANCE_MM = 0.01
_MAP = "to-atlas.nii"


@dataclass(frozen=True, eq=False, kw_only=True)
class NetworkInput:
    """Channels (C, i, j, k) and the brain's mask on the network's grid, whose axes point as in RAS."""

    channels: NDArray[np.float32]
    mask: NDArray[np.bool_]
    geometry: Geometry


def expanded(words: Sequence[str]) -> tuple[str, ...]:
    """Return the channels' names from what a person types: "curl" is three.

    Raises:
        InputError: No image among them first, or a name twice.
    """
    found = tuple(name for word in words for name in GEOMETRIC.get(word, (word,)))
    if not found or not all(found) or len(set(found)) < len(found):
        raise InputError(
            "channels need names, none twice", source="channels", value=", ".join(words) or "none"
        )
    if found[0] in _geometric():
        raise InputError(
            "the first channel is no image",
            source="channels",
            value=found[0],
            expected="an image of the case, such as t1, which is 0 outside the brain",
        )
    return found


def image_roles(channels: Sequence[str]) -> tuple[str, ...]:
    """Return the channels that are images of the case, by their part in it."""
    return tuple(name for name in channels if name not in _geometric())


def wants_field(channels: Sequence[str]) -> bool:
    """Whether a channel comes from the registration to the atlas."""
    return any(name in _geometric() for name in channels)


def field_of(files: SourceFiles) -> DisplacementField:
    """Return the map from the image to the atlas among the files of a registration."""
    return file_fields(files)[_MAP]


def network_input(
    images: Mapping[str, Volume],
    channels: Sequence[str],
    spacing_mm: Sequence[float],
    field: DisplacementField | None = None,
) -> NetworkInput:
    """Return what a network sees of a case.

    Images keep their voxels where those are as wide as the network's, else they are interpolated linearly.

    Args:
        images: By their part in the case; the first channel's is 0 outside the brain.
        channels: Names, in the network's order.
        spacing_mm: The network's voxel widths, along axes that point right, anterior and superior.
        field: The map from the image to the atlas, where a channel comes from it.

    Raises:
        GeometryError: An image on another grid than the first, or far coarser than the network's.
        InputError: No such image, or one that is not brain-masked.
    """
    missing = [name for name in image_roles(channels) if name not in images]
    if missing or (wants_field(channels) and field is None):
        wanted = ", ".join(missing) or "the registration to the atlas"
        raise InputError("a channel of the network is missing", value=wanted, expected=", ".join(channels))
    first = images[channels[0]]
    grid = _network_grid(first.geometry, spacing_mm, channels[0])
    geometric = _geometric_layers(channels, field, grid)
    layers = []
    for name in channels:
        if name in geometric:
            layers.append(geometric[name])
            continue
        require_same_space(images[name], first, _TOLERANCE_MM, source=f"{name} beside {channels[0]}")
        layers.append(_brought(images[name], grid, "linear").array.astype(np.float32))
    inside = first.with_array(brain_mask(first).astype(np.uint8), unit="1")
    mask = _brought(inside, grid, "nearest").array > 0
    return NetworkInput(channels=np.stack(layers), mask=mask, geometry=grid)


def labels_on(labels: Volume, grid: Geometry) -> NDArray[np.int16]:
    """Return labels on the network's grid: the nearest voxel's."""
    return _brought(labels, grid, "nearest").array.astype(np.int16)


def on_image(
    probabilities: NDArray[np.float32], seen: NetworkInput, image: Volume, classes: Sequence[str]
) -> Volume:
    """Return probabilities (i, j, k, classes) of the network's grid as labels on the image's grid.

    Where voxels were interpolated, probabilities are, linearly; they are 0 outside the image's brain. A voxel
    is background where that is more probable than any label.
    """
    found = Volume(
        np.zeros(seen.geometry.shape, np.uint8),
        seen.geometry,
        probabilities=probabilities,
        classes=tuple(classes),
    )
    if seen.geometry.shape == reorient(image).shape and reorient(image).geometry.is_aligned(seen.geometry):
        back = reorient(found, image.geometry.axis_codes).probabilities
    else:
        back = resample(found, image.geometry).probabilities
    assert back is not None, "probabilities are carried along"
    shares = np.where(brain_mask(image)[..., None], np.clip(back, 0, 1), 0).astype(np.float32)
    total = shares.sum(axis=-1)
    # rounding in float32 may leave a sum a little above 1
    shares /= np.maximum(total, 1)[..., None]
    best = shares.argmax(axis=-1)
    named = (total > 0) & (shares.max(axis=-1) >= 1 - total)
    return image.with_array(
        np.where(named, best + 1, 0).astype(np.uint8),
        unit="1",
        probabilities=shares,
        classes=tuple(classes),
    )


def _geometric() -> set[str]:
    return {name for names in GEOMETRIC.values() for name in names}


def _geometric_layers(
    channels: Sequence[str], field: DisplacementField | None, grid: Geometry
) -> dict[str, NDArray[np.float32]]:
    from sagittal.segmentation.channels import geometric_channels

    if field is None or not wants_field(channels):
        return {}
    kinds = [word for word, names in GEOMETRIC.items() if set(names) & set(channels)]
    found = geometric_channels(field.resample(grid), kinds)
    return dict(zip(found.names, found.array, strict=True))


def _network_grid(geometry: Geometry, spacing_mm: Sequence[float], name: str) -> Geometry:
    """Return the image's own grid with its axes in RAS order, or one over its box on the network's voxels."""
    turned = reorient(Volume(np.zeros(geometry.shape, np.uint8), geometry)).geometry
    ratio = np.array(turned.spacing) / np.array(spacing_mm)
    if (ratio > _COARSEST).any():
        raise GeometryError(
            "the image is far coarser than those that the network was trained on",
            source=name,
            value=" x ".join(f"{mm:.3g}" for mm in turned.spacing) + " mm",
            expected=" x ".join(f"{mm:.3g}" for mm in spacing_mm) + " mm, or finer",
        )
    if (np.abs(ratio - 1) <= _SAME).all():
        return turned
    shape = np.maximum(np.round(np.array(turned.shape) * ratio), 1).astype(int)
    step = np.array(turned.shape) / shape  # of a voxel, so that both cover the same box
    affine = turned.affine.copy()
    affine[:3, :3] *= step
    affine[:3, 3] = turned.index_to_world((step - 1) / 2)
    return Geometry((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def _brought(volume: Volume, grid: Geometry, interpolation: Any) -> Volume:
    turned = reorient(volume)
    if turned.shape == grid.shape and turned.geometry.is_aligned(grid, _TOLERANCE_MM):
        return turned
    return resample(volume, grid, interpolation)
