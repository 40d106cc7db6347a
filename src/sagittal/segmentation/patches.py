"""Patches of labelled images: where they lie, what a network sees in them, and light augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.segmentation.labelled import UNKNOWN, LabelledImage
from sagittal.segmentation.networks import NetworkConfig

__all__ = ["Patches", "cut", "planes"]

_SCALE, _SHIFT, _NOISE = 0.1, 0.1, 0.1  # of a channel with variance 1
_Array = NDArray[Any]
_TURNING = {"curl_x": 0, "curl_y": 1, "curl_z": 2}


class Patches:
    """Draws patches from images.

    Args:
        config: Of the network that sees them.
        images: With their labels.
        seen: Their channels as the network sees them, (C, i, j, k) each.

    Raises:
        InputError: A label that the network does not name, or an image without one labelled voxel.
    """

    def __init__(
        self, config: NetworkConfig, images: Sequence[LabelledImage], seen: Sequence[NDArray[np.float32]]
    ) -> None:
        self.config, self.seen = config, list(seen)
        self.truth = [
            _classes(config, image).reshape(s.shape[1:]) for image, s in zip(images, seen, strict=True)
        ]
        # of each image and class, the flat indices of its voxels; and of all that are labelled
        self.places = [
            [np.flatnonzero(truth == number) for number in range(config.classes)] for truth in self.truth
        ]
        self.labelled = [np.flatnonzero(truth != UNKNOWN) for truth in self.truth]
        for image, places in zip(images, self.labelled, strict=True):
            if not places.size:
                raise InputError("nothing in the brain is labelled", source=image.subject)

    def shares(self) -> NDArray[np.float64]:
        """Return the share of each class in all labelled voxels."""
        counts = np.array([[p.size for p in places] for places in self.places], np.float64).sum(0)
        found: NDArray[np.float64] = counts / counts.sum()
        return found

    def draw(
        self, count: int, random: np.random.Generator, *, foreground: float, augment: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return patches, (B, inputs, *spatial), and their classes, (B, *spatial)."""
        drawn = [self._one(random, foreground, augment) for _ in range(count)]
        return np.stack([seen for seen, _ in drawn]), np.stack([truth for _, truth in drawn])

    def _one(
        self, random: np.random.Generator, foreground: float, augment: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        config = self.config
        number = int(random.integers(len(self.seen)))
        image, truth = self.seen[number], self.truth[number]
        places = self.labelled[number]
        if random.random() < foreground:
            there = [p for p in self.places[number] if p.size]
            places = there[int(random.integers(len(there)))]
        centre = np.array(np.unravel_index(places[int(random.integers(places.size))], truth.shape))
        size = np.array(config.window)
        shift = random.integers(-(size // 4), size // 4 + 1)
        start = centre - size // 2 + np.where(size > 1, shift, 0)
        # an image that fits into the patch lies whole in it
        room = np.array(truth.shape) - size
        start = np.where(room <= 0, room // 2, np.clip(start, 0, np.maximum(room, 0)))
        seen = planes(config, image, start, size)
        found = cut(truth, start, size, UNKNOWN)
        if config.flat:
            found = found.squeeze(config.axis)
        if augment:
            seen, found = self._changed(seen, found, random)
        return np.ascontiguousarray(seen), np.ascontiguousarray(found)

    def _changed(
        self, seen: NDArray[np.float32], truth: NDArray[np.int64], random: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Flip along i in half of all cases; change contrast, brightness and noise of images."""
        config = self.config
        layers = seen.reshape(len(config.channels), -1, *seen.shape[1:]).copy()
        inside = (layers != 0).any(axis=(0, 1))
        sideways = config.axis != 0 or not config.flat
        if sideways and random.random() < 0.5:
            layers, truth, inside = layers[:, :, ::-1].copy(), truth[::-1], inside[::-1]
            for number, name in enumerate(config.channels):
                if _TURNING.get(name, 0) != 0:  # a mirror turns what turns about an axis in it
                    layers[number] *= -1
        for number, kind in enumerate(config.normalisation):
            if kind != "image":
                continue
            scale, shift = 1 + _SCALE * random.standard_normal(), _SHIFT * random.standard_normal()
            noise = _NOISE * random.random() * random.standard_normal(layers[number].shape, np.float32)
            layers[number] = np.where(inside, layers[number] * scale + shift + noise, 0)
        return layers.reshape(seen.shape), truth


def cut(array: _Array, start: NDArray[np.integer], size: NDArray[np.integer], fill: float) -> _Array:
    """Return a box of the last three axes, with ``fill`` where it reaches beyond the array."""
    shape = np.array(array.shape[-3:])
    low, high = np.maximum(start, 0), np.minimum(start + size, shape)
    found = np.full((*array.shape[:-3], *size.tolist()), fill, array.dtype)
    if (high > low).all():
        inner = [slice(a, b) for a, b in zip(low - start, high - start, strict=True)]
        outer = [slice(a, b) for a, b in zip(low, high, strict=True)]
        found[..., inner[0], inner[1], inner[2]] = array[..., outer[0], outer[1], outer[2]]
    return found


def planes(
    config: NetworkConfig, image: NDArray[np.float32], start: NDArray[np.integer], size: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Return what enters the network for one window: (inputs, *spatial).

    Args:
        config: Of the network.
        image: (C, i, j, k) as :func:`~sagittal.segmentation.labelled.as_seen` gives it.
        start: First voxel along each axis; it may lie outside.
        size: Voxels along each axis; 1 across the slices.
    """
    if config.dimensions != "2.5":
        found = cut(image, start, size, 0)
        return found.squeeze(1 + config.axis) if config.flat else found
    start, size = np.array(start), np.array(size)
    start[config.axis] -= config.neighbours
    size[config.axis] = 2 * config.neighbours + 1
    found = np.moveaxis(cut(image, start, size, 0), 1 + config.axis, 1)
    return found.reshape(-1, *found.shape[2:])


def _classes(config: NetworkConfig, image: LabelledImage) -> NDArray[np.int64]:
    """Return the network's class of each voxel, UNKNOWN outside the brain and where there is no label."""
    labels = image.labels.astype(np.int64)
    values = np.unique(labels[image.mask])
    odd = values[(values < UNKNOWN) | (values > len(config.labels))]
    if odd.size:
        raise InputError(
            "a label is outside the list",
            source=image.subject,
            value=", ".join(str(value) for value in odd[:5]),
            expected=f"0 to {len(config.labels)} ({', '.join(config.labels)}), or {UNKNOWN}",
        )
    found = labels if config.background else np.where(labels > 0, labels - 1, UNKNOWN)
    return np.where(image.mask, found, UNKNOWN)
