"""Slices of simulated heads for brain_tissue.py: three kinds of image, tissues, and where each point lies in
the template.

Simulated, not measured: evidence/cohort.py makes every head from the MNI152 template, an average of 152
people. One slice of each head. The map to the template comes from `sagittal.registration.register` on the T1
image alone; it has seen no labels of the head. Made once and kept as files.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from cohort import KINDS, TISSUES, subjects, template
from numpy.typing import NDArray
from scipy import ndimage

from sagittal.core.files import atomic_path
from sagittal.core.randomness import generator
from sagittal.registration import register
from sagittal.segmentation import LabelledImage
from sagittal.segmentation.channels import Channels, geometric_channels, noise_channels, prior_channels
from sagittal.volume import DisplacementField, Volume

SPACING = 3.0
COHORTS = {"pool": 11, "hold": 12, "judge": 13}
"""Seeds of the cohorts: those that train, those that calibrate, those that judge. Nobody is in two."""
LABELS = {name: number for number, name in enumerate(TISSUES, start=1)}
INTENSITIES = {"T1": "t1", "T1-IR": "t1-ir", "FLAIR": "flair"}
STILL = np.eye(4)
DUPLICATES, OUTLIERS = 0.35, 0.10
"""Shares of the pool that suggestive annotation chooses from."""
NOISE_SMOOTH = 3.0
"""Voxels: about as smooth as the channels that noise stands in for."""


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice of a head.

    Attributes:
        subject: Whose.
        images: float32, (3, i, j, 1), in the order of INTENSITIES.
        labels: On the same grid: 0 outside, 1 and on for TISSUES.
        field: From the slice's grid into the template, as a registration found it.
        truth: The map that the slice was made with, on the same grid; ``None`` of a real one.
        kind: "own", "near duplicate" or "outlier".
    """

    subject: str
    images: NDArray[np.float32]
    labels: Volume
    field: DisplacementField
    truth: DisplacementField | None = None
    kind: str = "own"

    @property
    def mask(self) -> NDArray[np.bool_]:
        return self.labels.array > 0

    @property
    def t1(self) -> Volume:
        return self.labels.with_array(self.images[0])

    @property
    def noise(self) -> float:
        """Return the standard deviation of the T1 image's noise, as its white matter shows it."""
        white = self.labels.array == LABELS["wm"]
        flat = self.images[0] - ndimage.gaussian_filter(self.images[0], (1, 1, 0))
        return float(flat[white].std())


@functools.cache
def heads(side: str, folder: Path, count: int) -> tuple[Slice, ...]:
    """Return the slices of one side of the split, made where they are not yet in the folder."""
    grid = template(SPACING, flat=True)[1].geometry
    files = [folder / f"{side}-{number}.npz" for number in range(count)]
    if not all(file.is_file() for file in files):
        folder.mkdir(parents=True, exist_ok=True)
        made = {
            kind: subjects(count, seed=COHORTS[side], spacing_mm=SPACING, flat=True, kind=kind)
            for kind in KINDS
        }
        fixed = template(SPACING, flat=True)[0]
        for number, file in enumerate(files):
            one = made["T1"][number]
            found = register(fixed, one.image, affine=STILL).field
            kept = {
                "images": np.stack([made[kind][number].image.array for kind in KINDS]),
                "labels": one.labels.array,
                "vectors": found.vectors,
                "truth": one.field.invert(tolerance_mm=1e-2).field.vectors,
            }
            with atomic_path(file) as place, Path(place).open("wb") as stream:
                np.savez(stream, **kept)
    slices = []
    for number, file in enumerate(files):
        with np.load(file) as kept:
            slices.append(
                Slice(
                    f"{side} {number}",
                    kept["images"],
                    Volume(kept["labels"], grid),
                    DisplacementField(kept["vectors"], grid),
                    DisplacementField(kept["truth"], grid),
                )
            )
    return tuple(slices)


def order(seed: int, folder: Path, count: int) -> list[Slice]:
    """Return the pool in an order of its own for each seed: the first n are the n that are labelled."""
    pool = heads("pool", folder, count)
    return [pool[number] for number in generator(seed, "order").permutation(len(pool))]


def redundant(seed: int, folder: Path, count: int) -> list[Slice]:
    """Return a pool with near duplicates and outliers, as large archives have them, in random order.

    A near duplicate is another slice of the pool, shifted by up to a voxel and with a little more noise. An
    outlier is a head of which nothing else is in the pool, and whose image is spoilt: a ghost of itself,
    moved by a quarter of the field of view, and noise of 0.4.
    """
    own = order(seed, folder, count)
    random = generator(seed, "redundant")
    duplicates, outliers = round(DUPLICATES * count), round(OUTLIERS * count)
    unique = count - duplicates - outliers
    made = own[:unique]
    for number in range(duplicates):
        made.append(_duplicate(own[int(random.integers(unique))], number, random))
    made += [_outlier(one, random) for one in own[unique : unique + outliers]]
    return [made[number] for number in random.permutation(len(made))]


def _duplicate(one: Slice, number: int, random: np.random.Generator) -> Slice:
    shift = random.integers(-1, 2, 2)
    images = np.roll(one.images, shift, (1, 2))
    labels = np.roll(one.labels.array, shift, (0, 1))
    noisy = images + random.normal(0, 0.03, images.shape).astype(np.float32)
    vectors = np.roll(one.field.vectors, shift, (1, 2))
    return replace(
        one,
        subject=f"{one.subject} again {number}",
        images=np.where(labels > 0, np.maximum(noisy, 1e-3), 0).astype(np.float32),
        labels=one.labels.with_array(labels),
        field=DisplacementField(vectors, one.field.geometry),
        kind="near duplicate",
    )


def _outlier(one: Slice, random: np.random.Generator) -> Slice:
    ghost = np.roll(one.images, one.images.shape[2] // 4, 2)
    noisy = 0.6 * one.images + 0.5 * ghost + random.normal(0, 0.4, one.images.shape)
    images = np.where(one.mask, np.maximum(noisy, 1e-3), 0).astype(np.float32)
    return replace(one, images=images, kind="outlier")


def named(one: Slice, kind: str) -> Channels:
    """Return one kind of channel of a slice.

    "t1", "images", "jacobian", "curl"; "true jacobian" and "true curl", of the map that the slice was made
    with; "noise 1" to "noise 3", as many channels without content; "atlas 3", the template's labels brought
    here by the field, and "atlas 2", those of grey and white matter, which tell the third.
    """
    if kind == "t1":
        return Channels(one.images[:1], ("t1",))
    if kind == "images":
        return Channels(one.images, tuple(INTENSITIES.values()))
    if kind in ("jacobian", "curl"):
        return geometric_channels(one.field, [kind])
    if kind in ("true jacobian", "true curl") and one.truth is not None:
        return geometric_channels(one.truth, [kind.removeprefix("true ")])
    if kind in ("noise 1", "noise 2", "noise 3"):
        return noise_channels(
            one.labels.shape, int(kind[-1]), seed=1, subject=one.subject, smooth=NOISE_SMOOTH
        )
    if kind in ("atlas 2", "atlas 3"):
        wanted = list(LABELS.items())[-int(kind[-1]) :]
        return prior_channels(one.field, template(SPACING, flat=True)[1], dict(wanted))
    raise ValueError(kind)


def channels(one: Slice, kinds: tuple[str, ...]) -> Channels:
    """Return several kinds of channel of a slice, one after the other."""
    found = named(one, kinds[0])
    for kind in kinds[1:]:
        found = found.beside(named(one, kind))
    return found


def labelled(one: Slice, seen: Channels) -> LabelledImage:
    return LabelledImage(
        channels=seen.array, labels=one.labels.array.astype(np.int64), mask=one.mask, subject=one.subject
    )
