"""What held-out subjects say of a network, and what they calibrate."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from labelled_images import SPACE, head
from sagittal.segmentation import LabelledImage, SegmentationModel, calibration_error, fit_temperatures, train
from sagittal.segmentation.inference import predict_logits, probabilities_of
from sagittal.volume import Geometry
from sagittal.volume.metrics import dice
from sagittal.workflow.network_input import NetworkInput
from sagittal.workflow.segment_judgement import judged, median_interval, share_interval

pytest.importorskip("torch")
SHAPE = (16, 16, 8)
GRID = Geometry.from_spacing(SHAPE, (2.0, 2.0, 2.0))


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    return train([head(n, SHAPE) for n in (0, 1)], SPACE, seed=0, steps=15).model


def held(*seeds: int) -> list[tuple[LabelledImage, NetworkInput]]:
    heads = [head(seed, SHAPE, noise=0.3) for seed in seeds]
    return [(one, NetworkInput(channels=one.channels, mask=one.mask, geometry=GRID)) for one in heads]


def shares(model: SegmentationModel, image: LabelledImage) -> np.ndarray:
    plain = dataclasses.replace(model, temperatures=())
    logits = predict_logits(plain, image.channels, image.mask)
    return probabilities_of(plain, logits, image.mask)[image.mask]


def test_the_interval_of_the_median_is_that_of_the_sign_test() -> None:
    values = [0.9, 0.5, 0.8, 0.6, 0.7, 0.4, 0.95, 0.3, 0.2]
    assert median_interval(values[:5]) is None
    assert median_interval(values[:6]) == [0.4, 0.9]
    assert median_interval(values) == [0.3, 0.9], "the second and the eighth of nine"


def test_the_interval_of_a_share_is_the_exact_one_of_as_many_trials_as_subjects() -> None:
    assert share_interval([1] * 10) == pytest.approx([0.025 ** (1 / 10), 1])
    assert share_interval([0] * 10) == pytest.approx([0, 1 - 0.025 ** (1 / 10)])
    # 9 of 10: the chance of 9 or more at the lower end, and of 9 or fewer at the upper, is 2.5 % each
    low, high = share_interval([1] * 9 + [0])
    assert 10 * low**9 * (1 - low) + low**10 == pytest.approx(0.025)
    assert 1 - high**10 == pytest.approx(0.025)
    assert share_interval([1], level=0.5) == pytest.approx([0.25, 1])


def test_many_intervals_of_few_subjects_say_no_more_than_the_subjects() -> None:
    thirds = [1.0, 2 / 3, 1 / 3, 1.0, 1.0, 1.0]
    low, high = share_interval(thirds)
    assert (low, high) == pytest.approx(tuple(share_interval([1.0] * 5 + [0.0])))
    pooled = share_interval([1.0] * 15 + [0.0] * 3)  # as if the three labels of each were people of their own
    assert high - low > 1.4 * (pooled[1] - pooled[0])
    assert low < np.mean(thirds) < high


def test_the_interval_of_a_share_holds_it_where_what_is_of_one_subject_goes_together() -> None:
    random = np.random.default_rng(0)
    held = random.random((2000, 12)) < 0.9  # all labels of a subject hold, or none does
    ends = np.array([share_interval(row.astype(float).tolist()) for row in held])
    assert np.mean((ends[:, 0] <= 0.9) & (ends[:, 1] >= 0.9)) >= 0.95


def test_a_subject_is_judged_by_what_the_others_calibrated(model: SegmentationModel) -> None:
    subjects = held(10, 11)
    _, said = judged(model, subjects)
    one, other = (image for image, _ in subjects)
    rows = {image.subject: (shares(model, image), image.labels[image.mask] - 1) for image in (one, other)}
    errors, overlaps = [], {}
    for mine, theirs in ((one, other), (other, one)):
        told = fit_temperatures(*rows[theirs.subject]).apply(rows[mine.subject][0])
        truth = rows[mine.subject][1]
        errors.append(calibration_error(told, truth).equal_width)
        overlaps[mine.subject] = [dice(told.argmax(axis=-1) == n, truth == n) for n in range(3)]
    assert said["ece"] == pytest.approx(np.mean(errors))
    for row in said["subjects"]:
        assert list(row["dice"].values()) == pytest.approx(overlaps[row["subject"]])


def test_volumes_are_scaled_from_three_subjects_and_checked_from_four(model: SegmentationModel) -> None:
    found, said = judged(model, held(10, 11))
    assert found.volumes is None
    assert said["volumes"]["why_not"] == "3 held-out subjects are needed; there are 2"
    found, said = judged(model, held(10, 11, 12))
    assert found.volumes is not None
    assert (found.volumes.subjects, said["volumes"]["held"]) == (3, None)
    _, said = judged(model, held(10, 11, 12, 13))
    assert said["volumes"]["of"] == 12
    assert 0 <= said["volumes"]["held"] <= 12


def test_volumes_of_what_is_not_all_labelled_are_not_known(model: SegmentationModel) -> None:
    subjects = held(10, 11, 12)
    image, seen = subjects[0]
    labels = image.labels.copy()
    labels[:, :, :4] = -1
    subjects[0] = (dataclasses.replace(image, labels=labels), seen)
    found, said = judged(model, subjects)
    assert found.volumes is None
    assert said["volumes"]["why_not"] == "parts of the held-out subjects are not labelled"
    labels = image.labels.copy()
    labels[labels == 3] = 2
    subjects[0] = (dataclasses.replace(image, labels=labels), seen)
    assert judged(model, subjects)[1]["volumes"]["why_not"] == "a held-out subject has nothing of a label"
