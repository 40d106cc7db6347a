"""A real pair by which evidence/registration.py chooses settings for real anatomy: subject S1 of pycortex to MNI152.

The head and its surfaces come with pycortex's source distribution (Gao, Huth, Lescroart, Gallant 2015): one
person's T1 image of about 1 mm, and the outer (pial) and inner (white matter's) surface of each half of the
cerebrum, found by FreeSurfer. They say what is grey and what is white matter of the cerebrum without a threshold
of ours; MNI152's tissues come with the template. How well the two lie on each other is still a **proxy**.

The head comes with its skull, the template without. The brain is cut out by bringing the template's mask to it: an
affine map from what the outer surface holds, then a registration that ends at 4 mm. That registration is ours
[inference: of the programs compared here none cuts out brains, and at 4 mm, dilated, the mask holds no detail].
Judged is the cerebrum alone, as the surfaces tell nothing of the rest.
"""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from registration_data import Pair, mni_tissues, template
from scipy import ndimage

from sagittal.registration import register
from sagittal.registration.levels import coarsened, on_grid
from sagittal.volume import DisplacementField, Geometry, Volume, read_volume

__all__ = ["filled", "person_mni"]

GREY, WHITE = 2, 3
_SUBJECT = "filestore/db/S1"
_FINER = 2  # parts of a voxel's edge, where surfaces are filled
_MASK_MM = 4.0
_FAINT = 0.1  # of the bright end of the brain: below it there is none
_MARGIN = 3  # voxels


def person_mni(sdist: Path, spacing_mm: float) -> Pair:
    """Return S1 (a person) as moving and MNI152 as fixed image, with the grey and white matter of each.

    Args:
        sdist: Source distribution of pycortex 1.4.0.
        spacing_mm: Voxel width of both.
    """
    head, outer, inner = _subject(sdist)
    grid = coarsened(head.geometry, spacing_mm)
    image, within, white = (
        on_grid(values, head.geometry, grid) for values in (head.array, outer, outer * inner)
    )
    t1, _ = template()
    still = coarsened(t1.geometry, spacing_mm)
    fixed = Volume(on_grid(t1.array.astype(np.float32), t1.geometry, still), still)
    cerebrum = ndimage.binary_closing(within > 0.3, iterations=4)
    brain, home = _brain(Volume(image, grid), cerebrum, fixed)
    tissues = np.where(within > 0.5, np.where(white > 0.5 * within, WHITE, GREY), 0).astype(np.uint8)
    corner = np.maximum(np.argwhere(brain).min(axis=0) - _MARGIN, 0)
    box = tuple(
        slice(low, high)
        for low, high in zip(corner, np.argwhere(brain).max(axis=0) + 1 + _MARGIN, strict=True)
    )
    moving, own = (_cut(values, grid, box) for values in (np.where(brain, image, np.float32(0)), tissues))
    there = home.warp(Volume(ndimage.binary_dilation(cerebrum).astype(np.uint8), grid), "label").array > 0
    found = mni_tissues(still).array
    judged = there & (found > 0)
    wanted = Volume(np.where(judged & (found >= GREY), found, 0).astype(np.uint8), still)
    return Pair(moving, fixed, None, judged, (wanted, own))


def _subject(sdist: Path) -> tuple[Volume, NDArray[np.float32], NDArray[np.float32]]:
    """Return the head, and of each voxel the share within its outer and within its inner surfaces."""
    with tarfile.open(sdist) as archive, tempfile.TemporaryDirectory() as folder:
        for member in archive.getmembers():
            inside = member.name.partition(_SUBJECT)[2]
            if inside.startswith(("/anatomicals/", "/surfaces/")) and member.isfile():
                member.name = Path(inside).name
                archive.extract(member, folder, filter="data")
        head = read_volume(Path(folder) / "raw.nii.gz")
        shares = []
        for kind in ("pia", "wm"):
            share = np.zeros(head.shape, np.float32)
            for half in ("lh", "rh"):
                surface = nibabel.load(Path(folder) / f"{kind}_{half}.gii")
                share += filled(*surface.agg_data(("pointset", "triangle")), head.geometry)
            shares.append(share.clip(0, 1))
    return Volume(head.array.astype(np.float32), head.geometry), shares[0], shares[1]


def filled(points: NDArray[np.floating], corners: NDArray[np.integer], grid: Geometry) -> NDArray[np.float32]:
    """Return of each voxel the share that lies within a closed surface, to some eighths.

    Args:
        points: Shape (n, 3), mm in RAS+.
        corners: Shape (m, 3), three points of each triangle.
        grid: Of the voxels.

    Each voxel is cut into 2 x 2 x 2; those that the surface passes count half.
    """
    place = (grid.world_to_index(points) + 0.5) * _FINER
    low = np.floor(place.min(axis=0) / _FINER).astype(int)
    counts = np.ceil(place.max(axis=0) / _FINER).astype(int) + 1 - low
    triangles = (place - low * _FINER)[corners]
    passed = np.zeros(counts * _FINER, bool)
    longest = np.linalg.norm(triangles - np.roll(triangles, 1, axis=1), axis=2).max(axis=1)
    steps = 2 ** np.ceil(np.log2(np.maximum(2 * longest, 1))).astype(int)  # two in each part of a voxel
    for count in np.unique(steps):
        some = triangles[steps == count]
        for first in range(count + 1):
            for second in range(count + 1 - first):
                a, b = first / count, second / count
                on = some[:, 0] * (1 - a - b) + some[:, 1] * a + some[:, 2] * b
                passed[tuple(np.floor(on).astype(int).T)] = True
    whole = ndimage.binary_fill_holes(passed)
    share = whole - 0.5 * passed
    parts = [size for count in counts for size in (count, _FINER)]
    found = np.zeros(grid.shape, np.float32)
    found[tuple(map(slice, low, low + counts))] = share.reshape(parts).mean(axis=(1, 3, 5))
    return found


def _brain(
    head: Volume, cerebrum: NDArray[np.bool_], fixed: Volume
) -> tuple[NDArray[np.bool_], DisplacementField]:
    """Return where the brain is in the head, and the map from ``fixed`` to the head by which it was found."""
    bare = Volume(np.where(cerebrum, head.array, np.float32(0)), head.geometry)
    start = register(bare, fixed, iterations=(0,)).affine
    mask = Volume(ndimage.binary_dilation(fixed.array > _faint(fixed.array)).astype(np.uint8), fixed.geometry)
    found = register(head, fixed, affine=start, fixed_mask=mask, finest_mm=_MASK_MM, iterations=(30, 20))
    brought = found.inverse.warp(mask, "label").array > 0
    whole = ndimage.binary_closing(brought | cerebrum, iterations=2)
    return whole & (head.array > _faint(bare.array)), found.field


def _faint(brain: NDArray[np.float32]) -> float:
    return _FAINT * float(np.percentile(brain[brain > 0], 99))


def _cut(values: NDArray[np.generic], grid: Geometry, box: tuple[slice, ...]) -> Volume:
    """Return the part of an image that a box holds."""
    part = np.ascontiguousarray(values[box])
    affine = grid.affine.copy()
    affine[:3, 3] = grid.index_to_world([each.start for each in box])
    return Volume(part, Geometry(part.shape, affine))
