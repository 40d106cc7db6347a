from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from labelled_images import PLANE, SPACE, dice, head
from sagittal.core.errors import InputError, ModelError
from sagittal.segmentation import UNKNOWN, LabelledImage, TrainingState, predict, train
from sagittal.segmentation.labelled import as_seen, fitted_scale
from sagittal.segmentation.networks import NetworkConfig
from sagittal.segmentation.patches import Patches

torch = pytest.importorskip("torch")

HEADS = [head(seed) for seed in range(3)]


def test_it_learns_all_three_tissues_of_a_head_it_has_not_seen() -> None:
    found = train(HEADS, PLANE, seed=0, steps=60)
    other = head(9)
    labels = (predict(found.model, other.channels, other.mask).argmax(-1) + 1) * other.mask
    assert min(dice(labels, other.labels)) > 0.85
    assert np.mean(found.losses[-10:]) < 0.5 * np.mean(found.losses[:10])
    assert [subject for subject, _ in found.model.subjects] == ["head 0", "head 1", "head 2"]


@pytest.mark.parametrize("plan", [PLANE, SPACE])
def test_a_training_that_was_broken_off_ends_in_the_same_bits(plan: NetworkConfig) -> None:
    kept: list[TrainingState] = []
    whole = train(HEADS, plan, seed=4, steps=6, keep=kept.append, keep_every=2)
    assert [state.step for state in kept] == [2, 4, 6]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = train(HEADS, plan, seed=4, steps=6, state=kept[1])
    finally:
        torch.set_num_threads(threads)
    assert again.losses == whole.losses
    for name, array in whole.model.weights.items():
        np.testing.assert_array_equal(again.model.weights[name], array)


def test_another_seed_is_another_training() -> None:
    one, other = (train(HEADS, PLANE, seed=seed, steps=2).losses for seed in (0, 1))
    assert one != other


def test_voxels_without_a_label_teach_nothing() -> None:
    # half of each head is not labelled; what its voxels look like there may be anything for the truth
    wrong = []
    for image in HEADS:
        labels = image.labels.copy()
        labels[:16] = np.where(image.mask[:16], UNKNOWN, 0)
        wrong.append(dataclasses.replace(image, labels=labels))
    found = train(wrong, PLANE, seed=0, steps=60)
    other = head(9)
    labels = (predict(found.model, other.channels, other.mask).argmax(-1) + 1) * other.mask
    assert min(dice(labels, other.labels)) > 0.8


def test_labels_outside_the_list_are_refused_with_their_value_and_subject() -> None:
    odd = dataclasses.replace(HEADS[0], labels=np.where(HEADS[0].labels == 3, 7, HEADS[0].labels))
    with pytest.raises(InputError, match=r"head 0.*outside the list.*7.*0 to 3"):
        train([odd], PLANE, seed=0, steps=1)


def test_a_class_that_nobody_has_labelled_is_named() -> None:
    poor = dataclasses.replace(HEADS[0], labels=np.where(HEADS[0].labels == 1, 2, HEADS[0].labels))
    with pytest.raises(InputError, match="csf"):
        train([poor], PLANE, seed=0, steps=1)


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(ModelError, match="other channels"):
        train(
            HEADS, dataclasses.replace(PLANE, channels=("t1", "jacobian"), normalisation=()), seed=0, steps=1
        )


def test_grids_that_differ_and_empty_masks_are_refused() -> None:
    image = HEADS[0]
    with pytest.raises(InputError, match="grids of their own"):
        dataclasses.replace(image, labels=image.labels[:-1])
    with pytest.raises(InputError, match="head 0.*mask is empty"):
        dataclasses.replace(image, mask=np.zeros_like(image.mask))
    with pytest.raises(InputError, match="not finite"):
        dataclasses.replace(image, channels=image.channels * np.nan)


def test_a_cohorts_scale_leaves_the_difference_between_people() -> None:
    plan = NetworkConfig(dimensions=2, channels=("t1", "jacobian"), width=2, depth=2, patch=(32, 24))
    images = [
        dataclasses.replace(image, channels=np.concatenate([image.channels, 0 * image.channels + number]))
        for number, image in enumerate(HEADS[:2])
    ]
    scale = fitted_scale(plan, images)
    assert scale[0] == (0.0, 1.0)
    seen = [as_seen(plan, image.channels, image.mask, scale) for image in images]
    for image, channels in zip(images, seen, strict=True):
        assert channels[0][image.mask].mean() == pytest.approx(0, abs=1e-5)
        assert channels[0][image.mask].std() == pytest.approx(1, abs=1e-5)
        assert (channels[:, ~image.mask] == 0).all()
    low, high = (channels[1][image.mask].mean() for image, channels in zip(images, seen, strict=True))
    sizes = [image.mask.sum() for image in images]
    assert low < 0 < high
    assert low * sizes[0] + high * sizes[1] == pytest.approx(0, abs=1)
    assert high - low == pytest.approx(1 / scale[1][1], rel=1e-5)


def test_patches_around_a_class_hold_it_and_a_mirror_turns_the_curl() -> None:
    plan = NetworkConfig(
        dimensions=3,
        channels=("curl_x", "curl_y"),
        width=2,
        depth=1,
        patch=(32, 24, 4),
        normalisation=("none",) * 2,
    )
    image = head(0)
    ramp = np.indices(image.mask.shape)[0].astype(np.float32) + 1
    both = dataclasses.replace(image, channels=np.stack([ramp, ramp]))
    patches = Patches(plan, [both], [both.channels])
    seen = []
    for number in range(20):
        drawn, _ = patches.draw(1, np.random.default_rng(number), foreground=1.0, augment=True)
        seen.append(drawn[0])
    mirrored = [s for s in seen if s[0, 0, 0, 0] > s[0, -1, 0, 0]]
    assert 0 < len(mirrored) < 20
    assert all((s[1] < 0).all() and (s[0] > 0).all() for s in mirrored)
    assert all(np.array_equal(s[0], s[1]) for s in seen if s[0, 0, 0, 0] < s[0, -1, 0, 0])


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"steps": 0}, {"rate": 0.0}, {"foreground": 1.5}, {"batch": 0}):
        with pytest.raises(InputError, match="must be"):
            train(HEADS, PLANE, seed=0, **{"steps": 1, **wrong})
    with pytest.raises(InputError, match="no image"):
        train(list[LabelledImage](), PLANE, seed=0, steps=1)
