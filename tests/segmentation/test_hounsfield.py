from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.segmentation import MATERIALS, HounsfieldClasses
from sagittal.segmentation.hounsfield import LEAST_NOISE_HU, mean_with_interval, noise_sd
from sagittal.volume import Geometry, Volume

pytest.importorskip("scipy")

SPACING = 0.5


def ct(hu: NDArray[np.generic], unit: str = "HU") -> Volume:
    shape = hu.shape if hu.ndim == 3 else (*hu.shape, 1)
    return Volume(hu.reshape(shape), Geometry.from_spacing(shape, (SPACING, SPACING, 5.0)), unit=unit)


def head(size: int = 256, bone: float = 1000.0) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """A disc of soft tissue in a ring of bone with a sinus of air, and beside it a headrest."""
    i, j = np.indices((size, size)) - (size - 1) / 2
    radius = SPACING * np.hypot(i, j)
    labels = np.where(radius < 50, 3, 0)
    labels[radius < 45] = 2
    labels[SPACING * np.hypot(i - 20, j) < 8] = 1
    hu = np.array([-1000.0, -1000.0, 40.0, bone])[labels]
    hu[:, :4] = 100  # not the head
    return hu, labels.astype(np.uint8)


@pytest.mark.parametrize("noise", [5.0, 12.0, 25.0])
def test_areas_and_noise_of_a_disc_are_found(noise: float) -> None:
    hu, labels = head()
    hu = hu + noise * np.random.default_rng(0).standard_normal(hu.shape)
    found = HounsfieldClasses().measure(ct(hu.astype(np.float32)))
    assert found.noise == pytest.approx(noise, rel=0.15)
    assert np.array_equal(found.classes.array[..., 0], labels)
    size = SPACING**2 / 100
    for index, name in enumerate(MATERIALS, start=1):
        true = size * np.count_nonzero(labels == index)
        area = found.areas[name]
        assert area.low - 1e-9 <= true <= area.high + 1e-9
        assert area.value == pytest.approx(true, rel=0.001)
        assert area.unit == "cm2"
    assert found.outline.value == pytest.approx(np.pi * 25, rel=0.01)
    assert sum(area.value for area in found.areas.values()) == pytest.approx(found.outline.value, rel=1e-3)


def test_an_area_near_a_threshold_has_an_interval_that_holds_the_truth() -> None:
    hu, labels = head(bone=340.0)
    hu = hu + 20 * np.random.default_rng(1).standard_normal(hu.shape)
    found = HounsfieldClasses().measure(ct(hu.astype(np.float32))).areas["bone"]
    true = SPACING**2 / 100 * np.count_nonzero(labels == 3)
    assert found.low < true <= found.high
    assert found.high - found.low > 0.02 * true


def test_probabilities_are_of_the_materials_inside_the_outline_only() -> None:
    hu, labels = head()
    classes = HounsfieldClasses().measure(ct(hu.astype(np.int16))).classes
    assert classes.classes == MATERIALS
    assert classes.probabilities is not None
    total = classes.probabilities.sum(axis=-1)[..., 0]
    assert np.allclose(total[labels > 0], 1, atol=1e-6)
    assert np.all(total[labels == 0] == 0)


def test_corners_that_were_not_scanned_are_not_air_of_the_head() -> None:
    hu, _ = head()
    plain = HounsfieldClasses().measure(ct(hu.astype(np.int16)))
    hu[:40, :40] = -3024
    assert HounsfieldClasses().measure(ct(hu.astype(np.int16))).areas == plain.areas


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (ct(np.zeros((20, 20)), "a.u."), "CT classes need Hounsfield units; got a.u.; expected HU"),
        (ct(np.zeros((20, 20, 2))), r"one slice is measured at a time; got \(20, 20, 2\); expected shape"),
        (ct(np.full((20, 20), -1000.0)), "nothing on the slice is denser than air; got maximum -1000.0 HU"),
        (ct(np.full((20, 20), -3024.0)), "nothing on the slice is denser than air; got maximum -3024.0 HU"),
        (
            ct(np.full((9, 9), 40.0)),
            "too little even tissue to measure noise in; got .*; expected 100",
        ),
        (ct(np.full((99, 99), 900.0)), "too little even tissue to measure noise in; got 0 voxels"),
    ],
    ids=["unit", "two slices", "air", "not scanned", "small", "all bone"],
)
def test_what_cannot_be_measured_is_refused(volume: Volume, message: str) -> None:
    with pytest.raises(InputError, match=message):
        HounsfieldClasses().measure(volume)


def test_thresholds_out_of_order_are_refused() -> None:
    with pytest.raises(InputError, match=r"thresholds are out of order; got \(300, -300\)"):
        HounsfieldClasses(air_below=300, bone_above=-300)


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_white_noise_is_measured_at_any_stride_on_a_slope_and_across_edges(stride: int) -> None:
    random = np.random.default_rng(2)
    i, j = np.indices((300, 300))
    image = 10 * random.standard_normal((300, 300)) + 0.3 * i - 0.2 * j
    everywhere = np.ones(image.shape, bool)
    assert noise_sd(image, everywhere, stride=stride) == pytest.approx(10, rel=0.03)
    image[150:] += 1000
    assert noise_sd(image, everywhere, stride=stride) == pytest.approx(10, rel=0.1)


def test_noise_that_neighbours_share_needs_a_stride() -> None:
    from scipy import ndimage

    white = np.random.default_rng(3).standard_normal((400, 400))
    smooth = ndimage.gaussian_filter(white, 1.0)
    smooth *= 10 / smooth.std()
    everywhere = np.ones(smooth.shape, bool)
    assert noise_sd(smooth, everywhere, stride=4) == pytest.approx(10, rel=0.05)
    assert noise_sd(smooth, everywhere, stride=1) < 2


def test_noise_is_measured_only_where_it_is_asked_for() -> None:
    random = np.random.default_rng(4)
    image = 3 * random.standard_normal((100, 100))
    image[:, 50:] *= 20
    where = np.zeros(image.shape, bool)
    where[:, :50] = True
    assert noise_sd(image, where) == pytest.approx(3, rel=0.1)


def test_a_variance_stands_in_for_noise_that_smoothing_hides() -> None:
    hu, _ = head()
    plain = ct(hu.astype(np.float32))
    doubtful = plain.replace(variance=np.full(plain.shape, 30.0**2, np.float32))
    measured, told = HounsfieldClasses().measure(plain), HounsfieldClasses().measure(doubtful)
    assert (measured.noise, told.noise) == (LEAST_NOISE_HU, 30)
    assert measured.soft_tissue is not None
    assert told.soft_tissue is not None
    assert told.soft_tissue.value == measured.soft_tissue.value
    assert told.soft_tissue.high - told.soft_tissue.value == pytest.approx(1.6449 * 30, rel=1e-4)


def test_each_voxel_is_as_doubtful_as_its_own_variance() -> None:
    hu, labels = head(bone=340.0)
    variance = np.ones(hu.shape)
    left = np.indices(hu.shape)[0] < 128
    variance[left] = 60.0**2
    found = HounsfieldClasses().measure(ct(hu.astype(np.float32)).replace(variance=variance[..., None]))
    assert found.classes.probabilities is not None
    bone = found.classes.probabilities[..., 0, MATERIALS.index("bone")]
    assert bone[(labels == 3) & ~left].min() > 0.999
    assert 0.7 < bone[(labels == 3) & left].mean() < 0.8
    area = found.areas["bone"]
    assert area.low < SPACING**2 / 100 * np.count_nonzero(labels == 3) <= area.high


def test_a_slice_without_flat_tissue_is_measured_where_its_variance_is_known() -> None:
    hu = np.full((9, 9, 1), 40.0, np.float32)
    with pytest.raises(InputError, match="too little even tissue"):
        HounsfieldClasses().measure(ct(hu))
    assert HounsfieldClasses().measure(ct(hu).replace(variance=np.full(hu.shape, 9.0))).noise == 3


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_the_interval_of_a_mean_holds_however_errors_go_together(shared: float) -> None:
    """400 voxels of 10 HU noise, of which a share is the same in all of them."""
    random = np.random.default_rng(4)
    sd, inside = np.full(400, 10.0), 0
    for _ in range(400):
        noise = np.sqrt(shared) * random.standard_normal() + np.sqrt(1 - shared) * random.standard_normal(400)
        found = mean_with_interval(40 + 10 * noise, sd, unit="HU")
        inside += found.low <= 40 <= found.high
    assert inside >= 0.87 * 400
    if shared == 1:
        assert inside <= 0.93 * 400
