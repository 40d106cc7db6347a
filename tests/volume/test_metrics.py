from __future__ import annotations

import itertools
import math
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagittal.core.errors import GeometryError, InputError
from sagittal.volume import Geometry, Volume
from sagittal.volume.metrics import (
    average_surface_distance,
    compare_labels,
    dice,
    hausdorff_distance,
    jaccard,
    surface_dice,
    surface_distances,
    surface_voxels,
    volume_difference,
)

pytest.importorskip("scipy.ndimage")

SPACING = (1.0, 1.0, 3.0)


def cubes(axis: int, shift: int = 2) -> tuple[Any, Any]:
    """Two cubes of 4 voxels a side, the second moved along an axis."""
    first, second = np.zeros((12, 12, 12), bool), np.zeros((12, 12, 12), bool)
    first[3:7, 3:7, 3:7] = True
    where = [slice(3, 7)] * 3
    where[axis] = slice(3 + shift, 7 + shift)
    second[tuple(where)] = True
    return first, second


# The surface of such a cube has 64 - 8 voxels. Of those of one cube, 16 lie on the face that points away (2
# voxels from the other cube's face), 12 on the next layer's outline (1 voxel), 24 on outlines that both have,
# and 4 within the other cube, behind its face, 1 mm from the outline around them.
BY_HAND = [
    # axis, HD95, ASSD, surface Dice at 1 mm, at 3 mm
    (0, 2.0, (16 * 2 + 12 * 1 + 4) / 56, 40 / 56, 1.0),
    (2, 6.0, (16 * 6 + 12 * 3 + 4) / 56, 28 / 56, 40 / 56),
]


@pytest.mark.parametrize(("axis", "hd95", "assd", "near", "far"), BY_HAND)
def test_two_cubes_shifted_by_two_voxels(
    axis: int, hd95: float, assd: float, near: float, far: float
) -> None:
    one, other = cubes(axis)
    for found, reference in ((one, other), (other, one)):
        assert dice(found, reference) == 0.5
        assert jaccard(found, reference) == pytest.approx(1 / 3)
        assert hausdorff_distance(found, reference, SPACING) == hd95
        assert hausdorff_distance(found, reference, SPACING, percentile=100) == hd95
        assert average_surface_distance(found, reference, SPACING) == pytest.approx(assd)
        assert surface_dice(found, reference, SPACING, tolerance_mm=1) == pytest.approx(near)
        assert surface_dice(found, reference, SPACING, tolerance_mm=3) == pytest.approx(far)


def test_the_larger_direction_counts_and_directions_are_not_pooled() -> None:
    # One of 20 voxels of a line lies 5 mm off: from the line to the dot's 20 nothing is far.
    line, dotted = np.zeros((40, 8), bool), np.zeros((40, 8), bool)
    line[:19, 0] = dotted[:19, 0] = True
    dotted[18, 5] = True
    to_line, to_dotted = surface_distances(dotted, line, (1, 1))
    assert (to_line.max(), to_dotted.max()) == (5, 0)
    assert to_line.size == 20
    assert to_dotted.size == 19
    # 95 % of 19 steps is 18.05: a twentieth of the way from 0 to 5.
    assert hausdorff_distance(dotted, line, (1, 1)) == pytest.approx(0.25)
    pooled = np.percentile(np.concatenate([to_line, to_dotted]), 95)
    assert pooled == 0


def test_nothing_against_nothing_and_something() -> None:
    none, some = np.zeros((4, 5, 1), bool), np.zeros((4, 5, 1), bool)
    some[1, 1:3] = True
    assert dice(none, none) == jaccard(none, none) == 1
    assert surface_dice(none, none, SPACING, tolerance_mm=1) == 1
    assert hausdorff_distance(none, none, SPACING) == average_surface_distance(none, none, SPACING) == 0
    assert volume_difference(none, none, 0.5) == (0, 0)
    for found, reference in ((none, some), (some, none)):
        assert dice(found, reference) == jaccard(found, reference) == 0
        assert surface_dice(found, reference, SPACING, tolerance_mm=1e6) == 0
        assert hausdorff_distance(found, reference, SPACING) == pytest.approx(5)  # of 3 by 4 mm
        assert average_surface_distance(found, reference, SPACING) == pytest.approx(5)
    assert volume_difference(none, some, 0.5) == (-1, -1)
    assert volume_difference(some, none, 0.5) == (1, None)


def test_a_slice_has_an_outline_and_the_grid_an_outside() -> None:
    full = np.ones((5, 5, 1), bool)
    assert np.count_nonzero(surface_voxels(full)) == 16
    assert np.count_nonzero(surface_voxels(np.ones((3, 3, 3), bool))) == 26
    one = np.ones((1, 1, 1), bool)
    assert surface_voxels(one).all()
    assert hausdorff_distance(one, one, SPACING) == 0


MASKS = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda shape: st.tuples(*[st.integers(0, 2**32 - 1)] * 2, st.sampled_from([0.05, 0.4, 0.9])).map(
        lambda told: tuple(np.random.default_rng(seed).random(shape) < told[2] for seed in told[:2])
    )
)


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_symmetric_bounded_and_exact_of_itself(masks: tuple[Any, Any]) -> None:
    found, reference = masks
    spacing = (0.5, 2.0, 1.25)
    for measure in (dice, jaccard):
        assert measure(found, reference) == measure(reference, found)
        assert 0 <= measure(found, reference) <= 1
        assert measure(found, found) == 1
    d = dice(found, reference)
    assert jaccard(found, reference) == pytest.approx(d / (2 - d))
    for distance in (hausdorff_distance, average_surface_distance):
        assert distance(found, reference, spacing) == pytest.approx(distance(reference, found, spacing))
        assert distance(found, found, spacing) == 0
        doubled = distance(found, reference, [2 * step for step in spacing])
        assert doubled == pytest.approx(2 * distance(found, reference, spacing))
    shares = [surface_dice(found, reference, spacing, tolerance_mm=t) for t in (0, 1, 2, 4)]
    assert shares == sorted(shares)


@settings(max_examples=40, deadline=None)
@given(MASKS)
def test_distances_are_those_of_all_pairs(masks: tuple[Any, Any]) -> None:
    found, reference = masks
    spacing = np.array([0.5, 2.0, 1.25])
    got = surface_distances(found, reference, tuple(spacing))
    places = [np.argwhere(surface_voxels(mask)) * spacing for mask in masks]
    for mine, ours, theirs in ((got[0], *places), (got[1], *reversed(places))):
        assert mine.size == len(ours)
        if len(ours) and len(theirs):
            wanted = np.linalg.norm(ours[:, None] - theirs[None], axis=-1).min(axis=1)
            np.testing.assert_allclose(mine, wanted, atol=1e-12)


def test_monai_says_the_same() -> None:
    metrics, torch = pytest.importorskip("monai.metrics"), pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    smooth = pytest.importorskip("scipy.ndimage").gaussian_filter
    found, reference = (smooth(rng.normal(size=(24, 20, 12)), 2) > 0.02 for _ in range(2))
    a, b = (torch.from_numpy(mask)[None, None].float() for mask in (found, reference))
    told = {"include_background": True, "spacing": list(SPACING)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert dice(found, reference) == pytest.approx(float(metrics.compute_dice(a, b)))
        assert jaccard(found, reference) == pytest.approx(float(metrics.compute_iou(a, b)))
        theirs = float(metrics.compute_hausdorff_distance(a, b, percentile=95, **told))
        assert hausdorff_distance(found, reference, SPACING) == pytest.approx(theirs, rel=1e-6)
        theirs = float(metrics.compute_average_surface_distance(a, b, symmetric=True, **told))
        assert average_surface_distance(found, reference, SPACING) == pytest.approx(theirs, rel=1e-6)
        theirs = float(metrics.compute_surface_dice(a, b, [1.5], **told))
        assert surface_dice(found, reference, SPACING, tolerance_mm=1.5) == pytest.approx(theirs, rel=1e-6)


def labels(*masks: Any, spacing: tuple[float, float, float] = SPACING) -> Volume:
    array = np.zeros(masks[0].shape, np.uint8)
    for label, mask in enumerate(masks, 1):
        array[mask] = label
    return Volume(array, Geometry.from_spacing(array.shape, spacing), unit="1")


def test_label_volumes_are_compared_by_class() -> None:
    one, other = cubes(0)
    nothing = np.zeros_like(one)
    found = labels(one, nothing, np.roll(one, 5, axis=1))
    scores = compare_labels(found, labels(other, np.roll(one, 5, axis=2)), {"a": 1, "b": 2, "c": 3, "d": 4})
    assert list(scores) == ["a", "b", "c", "d"]
    a = scores["a"]
    assert (a.dice, a.hd95_mm, a.empty, a.tolerance_mm) == (0.5, 2, None, 1)
    assert (a.assd_mm, a.surface_dice) == (pytest.approx(48 / 56), pytest.approx(40 / 56))
    assert (a.volume_ml, a.volume_difference_ml) == (pytest.approx(0.192), 0)
    assert a.relative_volume_difference == 0
    diagonal = math.hypot(11, 11, 33)
    assert (scores["b"].empty, scores["b"].dice, scores["b"].surface_dice) == ("found", 0, 0)
    assert scores["b"].hd95_mm == scores["b"].assd_mm == pytest.approx(diagonal)
    assert scores["b"].relative_volume_difference == -1
    assert (scores["c"].empty, scores["c"].relative_volume_difference) == ("reference", None)
    assert (scores["d"].empty, scores["d"].dice, scores["d"].hd95_mm, scores["d"].surface_dice) == (
        "both",
        1,
        0,
        1,
    )
    assert scores["d"].relative_volume_difference == 0


def test_what_cannot_be_compared_is_refused() -> None:
    one, other = cubes(0)
    with pytest.raises(InputError, match=r"bool \(12, 12, 12\) and bool \(12, 12, 11\); expected bool"):
        dice(one, other[..., :-1])
    with pytest.raises(InputError, match="uint8"):
        jaccard(one.astype(np.uint8), other)
    with pytest.raises(InputError, match="expected 3 lengths"):
        hausdorff_distance(one, other, (1, 1))
    with pytest.raises(InputError, match="spacing"):
        average_surface_distance(one, other, (1, 1, 0))
    with pytest.raises(InputError, match="got 101"):
        hausdorff_distance(one, other, SPACING, percentile=101)
    for tolerance in (-1.0, math.nan):
        with pytest.raises(InputError, match="tolerance_mm"):
            surface_dice(one, other, SPACING, tolerance_mm=tolerance)
    with pytest.raises(InputError, match="more than 0 ml"):
        volume_difference(one, other, 0)
    with pytest.raises(GeometryError):
        compare_labels(labels(one), labels(other, spacing=(1, 1, 1)), {"a": 1})
    with pytest.raises(InputError, match=r"found: a label belongs to no class; got 2; expected 1 \(a\)"):
        compare_labels(labels(one, np.roll(one, 5, axis=1)), labels(other), {"a": 1})
    with pytest.raises(InputError, match="labels from 1 on"):
        compare_labels(labels(one), labels(other), {"background": 0})


def test_neither_monai_nor_torch_nor_scipy_comes_with_the_import() -> None:
    code = (
        "import sys, sagittal.volume.metrics; print(sorted({'monai', 'torch', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_axis_counts_with_its_own_spacing() -> None:
    for axis, shift in itertools.product(range(3), (1, 3)):
        one, other = cubes(axis, shift)
        assert hausdorff_distance(one, other, (1, 2, 3), percentile=100) == shift * (axis + 1)
