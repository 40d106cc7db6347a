from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagittal.annotation.effort import campaign_saving, correction_effort, expected_effort
from sagittal.core.errors import InputError

ndimage: Any = pytest.importorskip("scipy.ndimage")
stats: Any = pytest.importorskip("scipy.stats")

SPACING = (1.0, 1.0, 3.0)
ONE = {"gm": 1}


def boxes(shift: int = 2) -> tuple[Any, Any]:
    """A box of 6 x 6 in 3 of 5 slices as it was kept, and as it was proposed, moved along the first axis."""
    final, proposal = np.zeros((14, 12, 5), int), np.zeros((14, 12, 5), int)
    final[3:9, 3:9, 1:4] = 1
    proposal[3 + shift : 9 + shift, 3:9, 1:4] = 1
    return proposal, final


def test_a_box_moved_by_two_voxels() -> None:
    effort = correction_effort(*boxes(), ONE, SPACING)
    gm = effort.tissues["gm"]
    # In each slice 12 of 36 voxels are missing and 12 too many, in two pieces.
    assert gm.voxels == pytest.approx(24 / 36)
    assert (gm.components, gm.slices, effort.slices, effort.components) == (6, 3, 3, 6)
    # Of an outline of 20 voxels, 8 lie further than 1 mm from that of the box from 5 to 10: all 6 in row 3,
    # none in rows 4 to 7, and the middle 2 of row 8.
    assert gm.edge == pytest.approx(8 / 20)
    assert gm.edge_mm == effort.edge_mm == 3 * 8


def test_a_shift_within_the_tolerance_moves_no_outline() -> None:
    gm = correction_effort(*boxes(1), ONE, SPACING).tissues["gm"]
    assert (gm.edge, gm.edge_mm) == (0, 0)
    assert gm.voxels == pytest.approx(12 / 36)
    strict = correction_effort(*boxes(1), ONE, SPACING, tolerance_mm=0.5).tissues["gm"]
    assert strict.edge > 0.3
    coarse = correction_effort(*boxes(), ONE, (2.0, 2.0, 3.0)).tissues["gm"]
    assert coarse.edge_mm == 2 * 3 * 8
    fine = correction_effort(*boxes(), ONE, (0.5, 0.5, 3.0), tolerance_mm=1).tissues["gm"]
    assert fine.edge == 0


def test_slices_lie_across_the_largest_spacing_or_the_axis_asked_for() -> None:
    assert (
        correction_effort(*boxes(), ONE, (3.0, 1.0, 1.0)).slices == 4
    )  # those of the first axis that changed
    assert correction_effort(*boxes(), ONE, (1.0, 1.0, 1.0)).slices == 3
    assert correction_effort(*boxes(), ONE, (1.0, 1.0, 1.0), axis=1).slices == 6


def test_from_nothing_costs_one_and_nothing_costs_nothing() -> None:
    _, final = boxes()
    gm = correction_effort(np.zeros_like(final), final, ONE, SPACING).tissues["gm"]
    assert (gm.voxels, gm.edge, gm.components, gm.edge_mm) == (1, 1, 3, 60)
    done = correction_effort(final, final, {"gm": 1, "wm": 2}, SPACING)
    assert (done.slices, done.components, done.edge_mm) == (0, 0, 0)
    assert all(effort.voxels == effort.edge == 0 for effort in done.tissues.values())
    gone = correction_effort(final, np.zeros_like(final), ONE, SPACING).tissues["gm"]
    assert (gone.voxels, gone.edge, gone.components, gone.slices) == (1, 0, 3, 3)


def test_specks_are_left_as_they_are() -> None:
    _, final = boxes()
    speck = final.copy()
    speck[12, 2:6, 2] = 1
    assert correction_effort(speck, final, ONE, SPACING).components == 0
    assert correction_effort(speck, final, ONE, SPACING).slices == 0
    assert correction_effort(speck, final, ONE, SPACING, ignore_voxels=3).components == 1


def test_voxels_follow_from_dice() -> None:
    rng = np.random.default_rng(1)
    p, y = (ndimage.gaussian_filter(rng.normal(size=(20, 20, 8)), 2) > 0 for _ in range(2))
    dice = 2 * np.count_nonzero(p & y) / (np.count_nonzero(p) + np.count_nonzero(y))
    wanted = (1 - dice) * (np.count_nonzero(p) + np.count_nonzero(y)) / np.count_nonzero(y)
    got = correction_effort(p.astype(int), y.astype(int), ONE, SPACING).tissues["gm"].voxels
    assert got == pytest.approx(wanted)


def test_a_tissue_taken_for_another_is_work_on_both() -> None:
    _, final = boxes()
    effort = correction_effort(2 * final, final, {"gm": 1, "wm": 2}, SPACING)
    assert (effort.components, effort.slices) == (6, 3)
    assert effort.tissues["wm"].voxels == 1


def test_what_is_sure_needs_no_work() -> None:
    proposal, _ = boxes()
    sure = (proposal == 1)[..., None].astype(np.float32)
    expected = expected_effort(proposal, sure, ("gm",), SPACING)
    assert (expected.slices, expected.components, expected.edge_mm) == (0, 0, 0)
    assert expected.tissues["gm"].voxels == 0
    nothing = expected_effort(0 * proposal, 0 * sure, ("gm",), SPACING)
    assert nothing.tissues["gm"].voxels == nothing.tissues["gm"].edge == 0


def test_expected_work_by_hand() -> None:
    # A second box of 3 x 4 voxels in one slice holds 0.4: it is there for the levels 0.1 and 0.3, not beyond.
    proposal, _ = boxes()
    held = (proposal == 1).astype(np.float64)
    held[0:3, 0:4, 2] = 0.4
    gm = expected_effort(proposal, held[..., None], ("gm",), SPACING).tissues["gm"]
    assert gm.components == gm.slices == pytest.approx(2 / 5)
    assert gm.edge_mm == pytest.approx(2 / 5 * 10)
    assert gm.edge == pytest.approx(2 * 10 / (5 * 60 + 2 * 10))
    assert gm.voxels == pytest.approx(12 * 0.4 / (108 + 12 * 0.4))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_expected_voxels_are_the_mean_over_all_that_is_possible(seed: int) -> None:
    rng = np.random.default_rng(seed)
    held = rng.choice([0.0, 0.2, 0.4, 0.8, 1.0], size=(6, 5, 3))
    proposal = (held > 0.5).astype(int)
    uniform = (np.arange(100) + 0.5) / 100
    done = [np.count_nonzero((held > level) != (proposal == 1)) for level in uniform]
    got = expected_effort(proposal, held[..., None], ("gm",), SPACING).tissues["gm"].voxels
    assert got == pytest.approx(np.mean(done) / max(held.sum(), 1e-9))


def case(seed: int) -> tuple[float, float, float, float]:
    """A simulated case: expected and real length to draw again, and expected and real slices.

    The model's doubt is known. The truth is drawn with errors that agree over about 12 voxels, not over all.
    """
    rng = np.random.default_rng(seed)
    doubt = rng.uniform(0.05, 1.5)
    i, j, k = np.indices((40, 40, 8))
    radius = rng.uniform(8, 15) + 2 * np.sin(3 * np.arctan2(i - 20, j - 20)) - 0.4 * (k - 4) ** 2
    depth = radius - np.hypot(i - 20, j - 20)
    held = 1 / (1 + np.exp(-depth / doubt))
    noise = ndimage.gaussian_filter(rng.normal(size=depth.shape), (6, 6, 1))
    level = stats.norm.cdf(noise / noise.std())
    final, proposal = (held > level).astype(int), (held > 0.5).astype(int)
    done = correction_effort(proposal, final, ONE, SPACING)
    told = expected_effort(proposal, held[..., None], ("gm",), SPACING)
    return told.edge_mm, done.edge_mm, told.tissues["gm"].voxels, done.tissues["gm"].voxels


def test_expected_work_ranks_cases_as_the_real_one_does() -> None:
    told_mm, mm, told_voxels, voxels = np.array([case(seed) for seed in range(40)]).T
    assert stats.spearmanr(told_mm, mm).statistic > 0.8
    assert stats.spearmanr(told_voxels, voxels).statistic > 0.8


def test_a_saving_tells_its_two_factors_apart() -> None:
    saving = campaign_saving([0.1, 0.3, 0.2], 5)
    assert saving.total == pytest.approx(0.88)
    assert (saving.by_selection, saving.by_correction) == (pytest.approx(0.4), pytest.approx(0.8))
    assert 1 - saving.total == pytest.approx((1 - saving.by_selection) * (1 - saving.by_correction))
    scratch = campaign_saving([1.0] * 3, 5)
    assert (scratch.total, scratch.by_correction) == (pytest.approx(0.4), 0)
    for efforts, candidates in (([], 5), ([0.1, -0.1], 5), ([0.1, 0.1], 1)):
        with pytest.raises(InputError, match="efforts of a campaign"):
            campaign_saving(efforts, candidates)


def test_what_has_no_effort_is_refused() -> None:
    proposal, final = boxes()
    with pytest.raises(InputError, match="differ in shape"):
        correction_effort(proposal, final[..., 1:], ONE, SPACING)
    for spacing in ((1.0, 1.0), (1.0, 0.0, 1.0), (1.0, math.nan, 1.0)):
        with pytest.raises(InputError, match="three lengths above 0"):
            correction_effort(proposal, final, ONE, spacing)
    with pytest.raises(InputError, match="axis"):
        correction_effort(proposal, final, ONE, SPACING, axis=3)
    with pytest.raises(InputError, match="tolerance -1 mm"):
        correction_effort(proposal, final, ONE, SPACING, tolerance_mm=-1)
    for classes in ({}, {"background": 0}):
        with pytest.raises(InputError, match="labels from 1 on"):
            correction_effort(proposal, final, classes, SPACING)
    with pytest.raises(InputError, match=r"expected \(14, 12, 5, 1\)"):
        expected_effort(proposal, np.zeros((14, 12, 5, 2)), ("gm",), SPACING)
    with pytest.raises(InputError, match="0 to 1"):
        expected_effort(proposal, np.full((14, 12, 5, 1), 1.5), ("gm",), SPACING)
