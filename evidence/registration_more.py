"""More pairs for evidence/registration.py: heads of the simulated cohort, and slices of six people.

The cohort (cohort.py) is simulated, and its maps are known; its tissues are folded anew in each head, which no
smooth map undoes, so that no method reaches a Dice of 1. The slices come with antspyx's source distribution;
they are real, of six people, with no truth: what counts is the overlap of tissues, a proxy, which come from the
brightness of the same images.
"""

from __future__ import annotations

import io
import tarfile
from itertools import combinations
from pathlib import Path

import cohort
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from registration_data import Pair
from sklearn.mixture import GaussianMixture

from sagittal.volume import Geometry, Volume

__all__ = ["SLICES", "cohort_pair", "slice_pair", "slice_pairs", "slices"]

SLICES = ("r16", "r27", "r30", "r62", "r64", "r85")
COHORT_MM, FLAT_MM = 3.0, 1.0
_SHIFT = np.diag([-1.0, -1.0, 1.0, 1.0])  # of a picture: columns run to the left, rows to the back
_CLASSES = 3
_FAINT = 0.1  # of the bright end: below it there is no head


def cohort_pair(seed: int, *, flat: bool = False) -> Pair:
    """Return two heads of a cohort of two, the map between them, and their tissues."""
    width = FLAT_MM if flat else COHORT_MM
    moving, fixed = cohort.subjects(2, seed=seed, spacing_mm=width, flat=flat, pose=True)
    home = fixed.field.invert(tolerance_mm=1e-2).field  # from the fixed head to the template
    truth = moving.field.compose(home)
    mask = fixed.labels.array > 0
    return Pair(moving.image, fixed.image, truth, mask, (fixed.labels, moving.labels))


def slices(sdist: Path) -> dict[str, Volume]:
    """Return antspyx's slices, of voxels of 1 mm as they are taken to be (the files do not say)."""
    found = {}
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            name = Path(member.name).name.removesuffix("slice.jpg")
            if name in SLICES:
                stream = archive.extractfile(member)
                assert isinstance(stream, io.BufferedIOBase)
                picture = np.asarray(Image.open(io.BytesIO(stream.read())).convert("L"), dtype=np.float32)
                image = np.ascontiguousarray(picture.T[..., None])
                found[name] = Volume(image, Geometry(image.shape, _SHIFT))
    return found


def slice_pairs() -> list[tuple[str, str]]:
    """Return every two of the slices, the moving one first."""
    return list(combinations(SLICES, 2))


def slice_pair(images: dict[str, Volume], moving: str, fixed: str) -> Pair:
    """Return two slices with the tissues that their own brightness tells."""
    pair = images[moving], images[fixed]
    classes = [tissues(image.array) for image in pair]
    labels = tuple(Volume(each, image.geometry) for each, image in zip(classes, pair, strict=True))
    return Pair(*pair, None, classes[1] > 0, (labels[1], labels[0]))


def tissues(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return three classes of brightness, 1 the darkest, 0 outside (a Gaussian mixture of equal spread)."""
    head = image > _FAINT * np.percentile(image, 99)
    values = image[head].reshape(-1, 1)
    fitted = GaussianMixture(_CLASSES, covariance_type="tied", random_state=0).fit(values)
    rank = np.argsort(np.argsort(fitted.means_[:, 0]))
    found = np.zeros(image.shape, dtype=np.uint8)
    found[head] = rank[fitted.predict(values)] + 1
    return found
