from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.segmentation import TISSUES, MarkovFieldSegmenter, brain_mask
from sagittal.volume import Geometry, Volume

MEANS = np.array([0.0, 40.0, 100.0, 160.0])


def image(array: NDArray[np.generic], spacing: float = 1.0) -> Volume:
    return Volume(array, Geometry.from_spacing(array.shape, (spacing,) * 3), unit="a.u.")


@pytest.fixture(scope="module")
def truth() -> NDArray[np.uint8]:
    """Shells about one centre, 40 voxels wide: white matter inside, grey around it, fluid outside."""
    radius = np.sqrt(sum((axis - 19.5) ** 2 for axis in np.indices((40, 40, 40))))
    return np.select([radius < 9, radius < 13, radius < 16], [3, 2, 1], 0).astype(np.uint8)


@pytest.fixture(scope="module")
def brain(truth: NDArray[np.uint8]) -> Volume:
    noise = 12 * np.random.default_rng(0).standard_normal(truth.shape)
    return image(np.where(truth > 0, np.maximum(MEANS[truth] + noise, 1), 0).astype(np.float32))


@pytest.fixture(scope="module")
def segmented(brain: Volume) -> Volume:
    pytest.importorskip("dipy")
    return MarkovFieldSegmenter().segment(brain, seed=1)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((4, 4, 4), -1.0), "a T1 image has negative voxels; got -1.0; expected 0 for background"),
        (np.zeros((4, 4, 4)), "the image is empty; got all voxels 0; expected a brain-masked T1 image"),
        (np.ones((4, 4, 4)), r"not look brain-masked; got 0.0 % .* exactly 0; expected at least 10 %"),
    ],
)
def test_what_is_not_a_masked_brain_is_refused(array: NDArray[np.float64], message: str) -> None:
    with pytest.raises(InputError, match=message):
        brain_mask(image(array))


def test_the_mask_is_what_is_above_0() -> None:
    array = np.zeros((10, 10, 10), np.int16)
    array[2:9, 1:9, 1:9] = 5
    array[5, 5, 5] = 0
    assert np.array_equal(brain_mask(image(array)), array > 0)


def test_three_shells_are_told_apart(segmented: Volume, truth: NDArray[np.uint8]) -> None:
    for label in (1, 2, 3):
        found, true = segmented.array == label, truth == label
        dice = 2 * np.count_nonzero(found & true) / (np.count_nonzero(found) + np.count_nonzero(true))
        assert dice > 0.98, (TISSUES[label - 1], dice)  # measured: 0.995 and more


def test_probabilities_sum_to_one_inside_and_are_none_outside(
    segmented: Volume, truth: NDArray[np.uint8]
) -> None:
    assert segmented.classes == TISSUES
    assert segmented.probabilities is not None
    assert segmented.array.dtype == np.uint8
    total = segmented.probabilities.sum(axis=-1)
    assert np.allclose(total[truth > 0], 1, atol=1e-5)
    assert np.all(segmented.probabilities[truth == 0] == 0)
    assert np.array_equal(segmented.array > 0, truth > 0)
    best = segmented.probabilities.argmax(axis=-1) + 1
    assert np.array_equal(segmented.array[truth > 0], best[truth > 0])


def test_a_seed_gives_one_result_whatever_numpy_drew_before(brain: Volume, segmented: Volume) -> None:
    np.random.seed(5)
    np.random.random(100)
    again = MarkovFieldSegmenter().segment(brain, seed=1)
    assert again.content_hash == segmented.content_hash


def test_scale_and_place_do_not_matter(brain: Volume, segmented: Volume) -> None:
    scaled = MarkovFieldSegmenter().segment(brain.with_array(brain.array * np.float32(8)), seed=1)
    assert np.array_equal(scaled.array, segmented.array)
    assert segmented.geometry == brain.geometry


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("values", [(100,), (50, 100)])
def test_an_image_without_three_tissues_is_not_called_fluid(values: tuple[float, ...]) -> None:
    pytest.importorskip("dipy")
    array = np.zeros((10, 10, 10), np.float32)
    for index, value in enumerate(values):
        array[2 + 3 * index : 8, 2:8, 2:8] = value
    with pytest.raises(InputError, match=f"fewer grey values than tissues; got {len(values)} distinct"):
        MarkovFieldSegmenter().segment(image(array), seed=1)


@pytest.mark.parametrize("change", [{"beta": -0.1}, {"iterations": 0}, {"tolerance": -1e-9}])
def test_parameters_out_of_range_are_refused(change: dict[str, float]) -> None:
    (value,) = change.values()
    with pytest.raises(InputError, match=f"parameters are out of range; got .*{value}.*; expected beta >= 0"):
        MarkovFieldSegmenter(**change)
