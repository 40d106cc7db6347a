"""A simulated cohort of heads whose deformations are known: the MNI152 template, warped, folded anew, re-imaged.

Simulated, not measured. Each subject is made from the tissue maps of the MNI152 template, an average of 152
people: a random smooth diffeomorphism; noise on the tissues' logits, which changes their borders as
individual folding does and no smooth warp can undo; then contrast, gain, non-uniformity and noise. The same
seed gives the same anatomy at any voxel width. Lengths that the recipe counts in voxels are those of voxels
of 3 mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sagittal.core import assets
from sagittal.core.randomness import derive_seed, generator
from sagittal.registration.levels import coarsened, on_grid
from sagittal.volume import DisplacementField, Geometry, Volume, read_nifti
from sagittal.volume.field_maps import places, sample

__all__ = ["KINDS", "TISSUES", "Subject", "subjects", "template"]

TISSUES = ("csf", "gm", "wm")
KINDS = {"T1": (0.25, 0.62, 0.90), "T1-IR": (0.15, 0.50, 0.85), "FLAIR": (0.95, 0.62, 0.45)}
"""Brightness of the tissues, in their order."""
SLICE_MM = 12.0
"""Height of the slice where the cohort is flat, superior of the template's origin."""

_LATTICE_MM = 6.0, 3.0  # on which the warp and the folding are drawn
_SMOOTH_MM, _FAR_MM = (18.0, 30.0), (9.0, 15.0)
_FOLD_MM, _FOLD_SD = 9.0, (0.5, 0.7)
_LEAST_DETERMINANT = 0.1
_FAINT = 1e-3  # the least share that a tissue is given
_BLUR = 0.7  # voxels
_BIAS, _BIAS_MM = 0.15, 45.0
_POSE = 4.0, 0.04, 5.0  # degrees, share, mm: standard deviations of turn, scale and shift


@dataclass(frozen=True, eq=False)
class Subject:
    """A simulated head.

    Attributes:
        image: Brain-masked, float32; 0 outside the brain.
        labels: uint8: 0 outside, then 1 and on for :data:`TISSUES`; what the image was made from.
        field: The true map from the template's grid into this head's space: it warps ``image`` to the
            template.
        seed: Gives this subject again, alone.
    """

    image: Volume
    labels: Volume
    field: DisplacementField
    seed: int


def template(spacing_mm: float, *, flat: bool = False) -> tuple[Volume, Volume]:
    """Return the MNI152 T1, 0 to 1, and its most likely tissues (0 outside, 1 and on for ``TISSUES``)."""
    t1, shares, grid = _maps(spacing_mm, flat)
    labels = np.where(shares.sum(axis=0) > 0.5, shares.argmax(axis=0) + 1, 0)
    return Volume(t1, grid), Volume(labels.astype(np.uint8), grid)


def subjects(
    n: int,
    *,
    seed: int,
    spacing_mm: float,
    flat: bool = False,
    kind: str = "T1",
    noise: tuple[float, float] = (0.10, 0.20),
    pose: bool = False,
) -> list[Subject]:
    """Return n heads.

    Args:
        n: How many; the first ones do not depend on it.
        seed: Of the cohort.
        spacing_mm: Voxel width.
        flat: One slice of each head, moved in its plane; else volumes.
        kind: Of image, a key of :data:`KINDS`. It changes the image and not the anatomy.
        noise: The standard deviation of the noise is drawn from this range; white matter is about 0.9.
        pose: Turn, scale and shift each head as well.
    """
    seeds = [derive_seed(seed, "cohort", str(number)) for number in range(n)]
    return [_subject(own, spacing_mm, flat=flat, kind=kind, noise=noise, pose=pose) for own in seeds]


@cache
def _whole() -> tuple[NDArray[np.float32], NDArray[np.float32], Geometry]:
    """The template at 1 mm: T1 from 0 to 1, shares of the tissues, grid."""
    t1 = read_nifti(assets.fetch(assets.asset("mni152-t1")))
    gm, wm = (
        read_nifti(assets.fetch(assets.asset(f"mni152-{name}"))).array.astype(np.float32) / 255
        for name in ("gm", "wm")
    )
    csf = np.where(t1.array > 0, np.clip(1 - gm - wm, 0, 1), 0)
    image = t1.array.astype(np.float32)
    return image / image.max(), np.stack([csf, gm, wm]).astype(np.float32), t1.geometry


@cache
def _maps(spacing_mm: float, flat: bool) -> tuple[NDArray[np.float32], NDArray[np.float32], Geometry]:
    """The template on the cohort's grid."""
    t1, shares, grid = _whole()
    coarse = coarsened(grid, spacing_mm)
    layers = np.stack([on_grid(layer, grid, coarse) for layer in (t1, *shares)])
    if flat:
        height = round(float(coarse.world_to_index([0.0, 0.0, SLICE_MM])[2]))
        layers = layers[..., height : height + 1]
        coarse = coarse.cropped([slice(None), slice(None), slice(height, height + 1)])
    layers.setflags(write=False)
    return layers[0], layers[1:], coarse


def _subject(
    seed: int, spacing_mm: float, *, flat: bool, kind: str, noise: tuple[float, float], pose: bool
) -> Subject:
    _, shares, grid = _maps(spacing_mm, flat)
    out = _home(seed, grid, pose)  # from the head to the template
    faint = np.log(np.clip(shares, _FAINT, 1))
    at = places(out.vectors, grid.affine, grid.affine)
    logits = sample(faint, at)
    random = generator(seed, "folding")
    strength = random.uniform(*_FOLD_SD)
    for layer in logits:
        layer += strength * _smooth(random, _FOLD_MM, _LATTICE_MM[1], grid)
    brain = sample(shares.sum(axis=0), at) > 0.5
    labels = np.where(brain, logits.argmax(axis=0) + 1, 0).astype(np.uint8)
    random = generator(seed, "image", kind)
    image = np.zeros(grid.shape)
    blur = [_BLUR if count > 1 else 0.0 for count in grid.shape]
    for number, bright in enumerate(KINDS[kind], start=1):
        image += bright * ndimage.gaussian_filter((labels == number).astype(np.float64), blur)
    bias = _smooth(random, _BIAS_MM, _LATTICE_MM[0], grid)
    image *= random.uniform(0.93, 1.07) * (1 + _BIAS * bias / np.abs(bias).max())
    image += random.normal(0, random.uniform(*noise), grid.shape)
    image = np.where(brain, np.maximum(image, _FAINT), 0).astype(np.float32)
    field = out.invert(tolerance_mm=1e-2).field
    return Subject(Volume(image, grid), Volume(labels, grid), field, seed)


def _home(seed: int, grid: Geometry, pose: bool) -> DisplacementField:
    """Return a random map from a head to the template, on the cohort's grid."""
    random = generator(seed, "warp")
    flat = grid.shape[2] == 1
    while True:
        wide, far = random.uniform(*_SMOOTH_MM), random.uniform(*_FAR_MM)
        vectors = np.stack([_smooth(random, wide, _LATTICE_MM[0], grid) for _ in range(3)])
        if flat:
            vectors[2] = 0
        vectors *= far / np.sqrt((vectors**2).sum(axis=0)).max()
        warp = DisplacementField(vectors, grid)
        if warp.determinant.min() > _LEAST_DETERMINANT:
            break
    if not pose:
        return warp
    random = generator(seed, "pose")
    turn, scale, shift = (random.normal(0, size, 3) for size in _POSE)
    matrix = np.eye(4)
    for axis in (2,) if flat else (0, 1, 2):
        c, s = np.cos(np.radians(turn[axis])), np.sin(np.radians(turn[axis]))
        a, b = (other for other in range(3) if other != axis)
        rotation = np.eye(4)
        rotation[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
        matrix = rotation @ matrix
    if flat:
        scale[2] = shift[2] = 0
    matrix[:3, :3] *= 1 + scale
    middle = grid.index_to_world((np.array(grid.shape) - 1) / 2)
    matrix[:3, 3] = middle - matrix[:3, :3] @ middle + shift
    return DisplacementField(DisplacementField.from_affine(matrix, grid).compose(warp).vectors, grid)


def _smooth(
    random: np.random.Generator, sigma_mm: float, lattice_mm: float, grid: Geometry
) -> NDArray[np.float64]:
    """Return smooth noise of standard deviation 1 on a grid; it is drawn on a lattice over the template."""
    lattice = coarsened(_whole()[2], lattice_mm)
    sigmas = [sigma_mm / step for step in lattice.spacing]
    drawn = ndimage.gaussian_filter(random.normal(size=lattice.shape), sigmas, mode="reflect", truncate=3)
    drawn /= drawn.std()
    at = places(np.zeros((3, *grid.shape)), grid.affine, lattice.affine)
    return np.asarray(sample(drawn, at, 3), dtype=np.float64)
