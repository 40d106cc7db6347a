"""Pairs of images for evidence/registration.py: warped by maps that are known, and real pairs without a truth.

A known map S leads from the moving image's space into the fixed one's: first a small turn, scale and shift, then
a flow in time of random Gaussian bumps, stepped through; no such flow is the exponential of one velocity, which
is what our method looks for. The moving image is the original, read once by cubic interpolation on its own grid
where S leads; the truth T is the inverse of S, found by iteration. Then both images are degraded, each by itself:
noise, and in the moving one a bias field, another contrast and a lesion. The images are real, the maps and what
degrades are simulated.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture

from sagittal.core import assets
from sagittal.registration.filters import gaussian
from sagittal.registration.levels import coarsened, on_grid
from sagittal.volume import DisplacementField, Geometry, Volume, read_volume
from sagittal.volume.field_maps import nearest, places, sample

__all__ = ["STRENGTHS", "Pair", "colin_mni", "known_pair", "mni_tissues", "originals"]

STRENGTHS = {"small": 2.5, "medium": 5.0, "large": 9.0}
"""Mean displacement of the flow in the head, mm."""

_STEPS = 8
_BUMPS = 30
_WIDTH_MM = 14.0, 35.0
_LATTICE_MM = 4.0
_POSE = 4.0, 0.03, 4.0  # degrees, share, mm: standard deviations
_NOISE = 0.04  # of the brightest tissue
_BIAS = 0.25
_GAMMA = 0.75, 1.3
_LESION_MM = 7.0, 12.0
_ROUNDS = 40
_MISSED_MM = 0.01


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images, and what is known of them.

    Attributes:
        moving: What is brought to ``fixed``.
        fixed: What stays.
        truth: The map from the fixed image's grid into the moving one's space, where it is known.
        mask: Voxels of the fixed image that count, the lesion left out.
        labels: Labels of the fixed and of the moving image, where there are some.
    """

    moving: Volume
    fixed: Volume
    truth: DisplacementField | None
    mask: NDArray[np.bool_]
    labels: tuple[Volume, Volume] | None = None


def originals(colin: Path | None, heads: Path | None) -> dict[str, tuple[Volume, Volume | None]]:
    """Return the real images that judge, with their labels: Colin27 without its skull, and pyradiomics' two heads.

    Args:
        colin: Folder of Debian's mricron-data that holds ch2bet.nii.gz and aal.nii.gz.
        heads: Source distribution of pyradiomics 3.0.1.
    """
    found: dict[str, tuple[Volume, Volume | None]] = {}
    if colin is not None:
        found["Colin27"] = read_volume(colin / "ch2bet.nii.gz"), read_volume(colin / "aal.nii.gz")
    if heads is not None:
        with tarfile.open(heads) as archive:
            for name in ("brain1", "brain2"):
                member = next(m for m in archive.getmembers() if m.name.endswith(f"{name}_image.nrrd"))
                stream = archive.extractfile(member)
                assert isinstance(stream, io.BufferedIOBase)
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "image.nrrd"
                    path.write_bytes(stream.read())
                    found[f"pyradiomics {name}"] = read_volume(path), None
    return found


def template() -> tuple[Volume, None]:
    """Return the MNI152 template, an average of 152 people, with which settings are chosen."""
    return read_volume(assets.fetch(assets.asset("mni152-t1"))), None


def known_pair(
    original: Volume, labels: Volume | None, *, strength: str, seed: int, spacing_mm: float
) -> Pair:
    """Return an image and itself, warped by a random map of one strength."""
    random = np.random.default_rng(seed)
    grid = coarsened(original.geometry, spacing_mm)
    array = original.array.astype(np.float32)
    head = array > 0.15 * np.percentile(array, 99.5)
    back = _flow(random, original.geometry, head, STRENGTHS[strength])
    at = places(back.vectors, original.geometry.affine, original.geometry.affine)
    warped = sample(array.astype(np.float64), at, 3).clip(0).astype(np.float32)
    truth = _inverse(back, grid)
    level = float(np.percentile(array[head], 90))
    still = on_grid(array, original.geometry, grid)
    fixed = still + random.normal(0, _NOISE * level, grid.shape)
    bright, where = _degraded(random, warped / level, original.geometry, head)
    moved = on_grid(bright * level, original.geometry, grid) + random.normal(0, _NOISE * level, grid.shape)
    images = (Volume(image.clip(0).astype(np.float32), grid) for image in (moved, fixed))
    lesion = sample(on_grid(where, original.geometry, grid), places(truth.vectors, grid.affine, grid.affine))
    mask = (still > 0.15 * level) & (lesion < 0.05)
    pair = None
    if labels is not None:
        own = places(np.zeros((3, *grid.shape)), grid.affine, labels.geometry.affine)
        moves = DisplacementField(back.vectors, back.geometry).resample(grid)
        there = places(moves.vectors, grid.affine, labels.geometry.affine)
        pair = tuple(Volume(nearest(labels.array, index), grid) for index in (own, there))
    return Pair(*images, truth, mask, pair)  # type: ignore[arg-type]


def _inverse(back: DisplacementField, grid: Geometry) -> DisplacementField:
    """Return the inverse of a map on a grid, by steps that undo what is missed, to a hundredth of a mm."""
    found = -back.resample(grid).vectors
    for _ in range(_ROUNDS):
        missed = found + sample(back.vectors, places(found, grid.affine, back.geometry.affine))
        found = found - 0.8 * missed
    if float(np.abs(missed).max()) > _MISSED_MM:
        raise ValueError(f"a known map has no inverse: {np.abs(missed).max():.2g} mm are missed")
    return DisplacementField(found, grid)


def _flow(
    random: np.random.Generator, geometry: Geometry, head: NDArray[np.bool_], mean_mm: float
) -> DisplacementField:
    """Return a turn, scale and shift after a flow: from a point of the moving image to one of the fixed."""
    lattice = coarsened(geometry, _LATTICE_MM)
    inside = on_grid(head.astype(np.float32), geometry, lattice) > 0.5
    index = np.stack(np.meshgrid(*map(np.arange, lattice.shape), indexing="ij"), -1)
    points = np.moveaxis(lattice.index_to_world(index), -1, 0)
    within = points[:, inside]
    velocities = []
    for _ in range(_STEPS):
        vectors = np.zeros((3, *lattice.shape))
        for _ in range(_BUMPS):
            middle = within[:, random.integers(within.shape[1])]
            width = random.uniform(*_WIDTH_MM)
            apart = ((points - middle[:, None, None, None]) ** 2).sum(axis=0)
            vectors += random.normal(size=(3, 1, 1, 1)) * np.exp(-0.5 * apart / width**2)
        velocities.append(vectors)
    scale = mean_mm / _STEPS
    for _ in range(6):  # until the whole flow is as far as was asked
        moved = DisplacementField.identity(lattice)
        for vectors in velocities:
            size = np.sqrt((vectors**2).sum(axis=0))[inside].mean()
            moved = DisplacementField(vectors * (scale / size), lattice).compose(moved)
        far = float(moved.magnitude[inside].mean())
        if abs(far / mean_mm - 1) < 0.02:
            break
        scale *= mean_mm / far
    if moved.folds:
        raise ValueError("a known map folds")
    matrix = _pose(random, within.mean(axis=1))
    whole = DisplacementField.from_affine(matrix, lattice).compose(moved)
    smooth = DisplacementField(
        whole.vectors - DisplacementField.from_affine(matrix, lattice).vectors, lattice
    ).resample(geometry)  # the affine part is exact beyond the lattice, too
    return DisplacementField(
        smooth.vectors + DisplacementField.from_affine(matrix, geometry).vectors, geometry
    )


def _pose(random: np.random.Generator, middle: NDArray[np.float64]) -> NDArray[np.float64]:
    turns, scale, shift = (random.normal(0, size, 3) for size in _POSE)
    matrix = np.eye(4)
    for axis, degrees in enumerate(turns):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        a, b = (other for other in range(3) if other != axis)
        rotation = np.eye(4)
        rotation[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
        matrix = rotation @ matrix
    matrix[:3, :3] *= 1 + scale
    matrix[:3, 3] = middle - matrix[:3, :3] @ middle + shift
    return matrix


def _degraded(
    random: np.random.Generator, image: NDArray[np.float32], geometry: Geometry, head: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return an image of another contrast, with a bias field and a lesion, and where the lesion is."""
    changed = image ** random.uniform(*_GAMMA)
    lattice = coarsened(geometry, 12.0)
    smooth = gaussian(random.normal(size=lattice.shape), [40 / step for step in lattice.spacing])
    smooth = 1 + _BIAS * smooth / np.abs(smooth).max()
    changed *= sample(
        smooth, places(np.zeros((3, *geometry.shape), np.float32), geometry.affine, lattice.affine)
    )
    place = np.argwhere(head)[random.integers(int(head.sum()))]
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), -1)
    apart = np.abs(geometry.index_to_world(index) - geometry.index_to_world(place))
    size = random.uniform(*_LESION_MM, 3)
    within = ((apart / size) ** 2).sum(axis=-1) < 1
    lesion = gaussian(within.astype(np.float32), [1.0, 1.0, 1.0])
    bright = random.choice([0.15, 1.4])
    return (changed * (1 - lesion) + bright * lesion).astype(np.float32), lesion


def mni_tissues(grid: Geometry) -> Volume:
    """Return the most likely tissue of the MNI152 template: 1 fluid, 2 grey and 3 white matter, 0 outside."""
    t1, _ = template()
    maps = [read_volume(assets.fetch(assets.asset(f"mni152-{name}"))) for name in ("gm", "wm")]
    gm, wm = (m.array.astype(np.float32) / 255 for m in maps)
    csf = np.where(t1.array > 0, np.clip(1 - gm - wm, 0, 1), 0)
    shares = np.stack([on_grid(share, t1.geometry, grid) for share in (csf, gm, wm)])
    found = np.where(shares.sum(axis=0) > 0.5, shares.argmax(axis=0) + 1, 0)
    return Volume(found.astype(np.uint8), grid)


def colin_mni(colin: Path, spacing_mm: float) -> Pair:
    """Return Colin27 (a person) as moving and MNI152 (an average) as fixed image, with tissues of each.

    Colin27's are three classes of its own brightness, of equal spread within (a Gaussian mixture of three);
    MNI152's come with the template. Neither was seen by a method.
    """
    person = read_volume(colin / "ch2bet.nii.gz")
    fixed, _ = template()
    grids = [coarsened(v.geometry, spacing_mm) for v in (person, fixed)]
    images = [
        Volume(on_grid(v.array.astype(np.float32), v.geometry, grid), grid)
        for v, grid in zip((person, fixed), grids, strict=True)
    ]
    bright = images[0].array
    brain = bright > 0.1 * np.percentile(bright, 99)
    values = bright[brain].reshape(-1, 1)
    fitted = GaussianMixture(3, covariance_type="tied", random_state=0).fit(
        values[:: max(1, len(values) // 50000)]
    )
    order = np.argsort(np.argsort(fitted.means_[:, 0]))
    tissues = np.zeros(bright.shape, np.uint8)
    tissues[brain] = order[fitted.predict(values)] + 1
    still = mni_tissues(grids[1])
    return Pair(images[0], images[1], None, still.array > 0, (still, Volume(tissues, grids[0])))
