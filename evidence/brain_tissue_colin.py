"""The arm of brain_tissue.py with a real person: Colin27, outside the cohort.

Colin27 is one head, imaged 27 times; Debian's mricron-data holds it (ch2bet.nii.gz, the skull taken off) with
the AAL atlas that was drawn on it (aal.nii.gz). AAL's regions are grey matter as it was outlined by hand and
generously: they hold sulci and some white matter. Nobody has segmented this head's tissues, so two proxies
stand in: the regions as they are, for grey matter alone; and, for three tissues, the regions together with
three classes of the same image's brightness, which is near to what the hidden Markov field does and favours
it. Neither is a truth.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from brain_tissue_arms import Row, Settings, fitted, with_channels
from brain_tissue_data import LABELS, SPACING, order
from cohort import SLICE_MM, template
from numpy.typing import NDArray
from scipy import ndimage

from sagittal.core.randomness import derive_seed
from sagittal.segmentation import MarkovFieldSegmenter, predict
from sagittal.volume import Volume, read_volume
from sagittal.volume.metrics import dice

HEIGHTS = (-6.0, -3.0, 0.0, 3.0, 6.0)
"""Of the slices, mm above the one that the networks were trained on."""
CLASSES_SEED = 0


def colin(seed: int, settings: Settings) -> Row:
    """Train on all simulated subjects, and judge on five slices of Colin27; the Markov field beside it."""
    if settings.colin is None:
        raise SystemExit("the arm colin27 needs --colin FOLDER, that of mricron-data's ch2bet.nii.gz")
    see = with_channels(("t1",))
    training = [see(one) for one in order(seed, settings.folder, settings.pool)]
    model = fitted(training, derive_seed(seed, "network"), settings)
    found: Row = {"slices": []}
    for height, image, regions, classes in slices(settings.colin):
        mask = classes > 0
        network = predict(model, image.array[None], mask)
        field = np.asarray(MarkovFieldSegmenter().segment(image, seed=seed).probabilities)
        found["slices"].append(
            {
                "height_mm": SLICE_MM + height,
                "network": judged(network, mask, regions, classes),
                "untrained": judged(field, mask, regions, classes),
            }
        )
    return found


def judged(
    shares: NDArray[np.floating],
    mask: NDArray[np.bool_],
    regions: NDArray[np.bool_],
    classes: NDArray[np.int64],
) -> Row:
    """Return the Dice of grey matter with AAL's regions, and of three tissues with the proxy of both."""
    told = np.where(mask, shares.argmax(axis=-1) + 1, 0)
    proxy = tissues(regions, classes)
    known = proxy > 0
    return {
        "gm_regions": dice(told == LABELS["gm"], regions & mask),
        **{name: dice((told == value) & known, proxy == value) for name, value in LABELS.items()},
    }


def tissues(regions: NDArray[np.bool_], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the tissues that AAL's regions and the classes of brightness (1 dark to 3 bright) tell together.

    Dark is fluid and bright is white matter, inside the regions and outside; what lies between is grey
    matter inside them, and not told outside (0): partial volume, or grey matter that AAL leaves out. What is
    not told is not judged.
    """
    return np.where((classes == LABELS["gm"]) & ~regions, 0, classes)


def slices(
    folder: Path,
) -> list[tuple[float, Volume, NDArray[np.bool_], NDArray[np.int64]]]:
    """Return heights above the cohort's slice, images on the cohort's grid, regions, and classes of
    brightness."""
    from sklearn.mixture import GaussianMixture

    image, regions = (read_volume(folder / name) for name in ("ch2bet.nii.gz", "aal.nii.gz"))
    grid = template(SPACING, flat=True)[1].geometry
    bright = image.array.astype(np.float64)
    bright /= np.percentile(bright[bright > 0], 99)
    inside = bright[bright > 0.1].reshape(-1, 1)
    mixture = GaussianMixture(3, covariance_type="tied", random_state=CLASSES_SEED).fit(inside[::25])
    rank = np.argsort(np.argsort(mixture.means_[:, 0])) + 1
    found = []
    for height in HEIGHTS:
        index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
        world = grid.index_to_world(index) + np.array([0.0, 0.0, height])

        def sampled(volume: Volume, array: NDArray[np.generic], order: int) -> NDArray[np.float64]:
            at = np.moveaxis(volume.geometry.world_to_index(world), -1, 0)  # noqa: B023
            return np.asarray(ndimage.map_coordinates(array.astype(np.float64), at, order=order))

        coarse = sampled(image, ndimage.gaussian_filter(bright, SPACING / 2.355), 1)
        mask = ndimage.binary_fill_holes(sampled(image, bright > 0.1, 0)[..., 0] > 0)[..., None]
        array = np.where(mask, np.maximum(coarse, 1e-3), 0).astype(np.float32)
        classes = np.zeros(mask.shape, np.int64)
        classes[mask] = rank[mixture.predict(array[mask].reshape(-1, 1).astype(np.float64))]
        found.append((height, Volume(array, grid), sampled(regions, regions.array > 0, 0) > 0, classes))
    return found
