from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from labelled_images import PLANE, SPACE, head
from sagittal.core.errors import InputError, ModelError
from sagittal.segmentation import SegmentationModel, inference, predict, train
from sagittal.segmentation.networks import NetworkConfig, build_network

torch = pytest.importorskip("torch")


def untrained(config: NetworkConfig) -> SegmentationModel:
    weights = {n: t.numpy() for n, t in build_network(config).state_dict().items() if t.is_floating_point()}
    return SegmentationModel(
        config=config,
        weights=weights,
        scale=((0.0, 1.0),) * len(config.channels),
        subjects=(),
        seed=0,
        steps=0,
    )


@pytest.mark.parametrize("plan", [PLANE, dataclasses.replace(PLANE, dimensions="2.5"), SPACE])
def test_probabilities_sum_to_one_in_the_brain_and_are_nothing_outside(plan: NetworkConfig) -> None:
    image = head(0, (30, 23, 7))
    found = predict(untrained(plan), image.channels, image.mask)
    assert found.shape == (30, 23, 7, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(-1)[image.mask], 1, atol=1e-5)
    assert not found[~image.mask].any()


def test_with_a_background_the_labels_leave_it_its_share() -> None:
    image = head(0)
    found = predict(untrained(dataclasses.replace(PLANE, background=True)), image.channels, image.mask)
    assert found.shape[-1] == 3
    assert (found.sum(-1)[image.mask] < 1).all()


@pytest.mark.parametrize("plan", [PLANE, SPACE])
def test_threads_do_not_change_a_bit(plan: NetworkConfig) -> None:
    image, model = head(0, (40, 40, 20)), untrained(plan)
    window = (8, 8) if plan.flat else (8, 8, 8)
    one, many = (predict(model, image.channels, image.mask, window=window, threads=n) for n in (1, 3))
    np.testing.assert_array_equal(one, many)


def test_windows_agree_with_the_whole_where_they_see_enough() -> None:
    image, model = head(0, (48, 48, 16)), untrained(dataclasses.replace(SPACE, depth=1))
    whole = predict(model, image.channels, image.mask, window=(64, 64, 32))
    parts = predict(model, image.channels, image.mask, window=(40, 40, 32), overlap=0.5)
    assert np.abs(whole - parts)[image.mask].mean() < 0.01


def test_a_slice_is_seen_as_in_its_volume() -> None:
    volume, model = head(0, (32, 24, 1)), untrained(PLANE)
    flat = predict(model, volume.channels[..., 0], volume.mask[..., 0])
    np.testing.assert_array_equal(flat, predict(model, volume.channels, volume.mask)[:, :, 0])


def test_windows_without_brain_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((64, 64, 64), bool)
    mask[4:10, 4:10, 4:10] = mask[54:60, 54:60, 54:60] = True
    boxes = list(inference._boxes(SPACE, mask, (16, 16, 16), 0.25))
    assert len(boxes) < 16
    covered = np.zeros_like(mask)
    for start, size in boxes:
        low, high = np.maximum(start, 0), start + size
        covered[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    assert covered[mask].all()


def test_every_voxel_of_the_brain_is_seen_whatever_its_box() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        shape = tuple(int(n) for n in random.integers(3, 90, 3))
        mask = random.random(shape) < 0.01
        mask[tuple(n // 2 for n in shape)] = True
        for window in (None, (16, 32, 8)):
            covered = np.zeros_like(mask)
            for start, size in inference._boxes(SPACE, mask, window, 0.25):
                low, high = np.maximum(start, 0), start + size
                covered[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
            assert covered[mask].all()


def test_half_precision_says_nearly_the_same() -> None:
    image, model = head(0), train([head(1)], PLANE, seed=0, steps=10).model
    whole, half = (predict(model, image.channels, image.mask, precision=p) for p in inference.PRECISIONS)
    assert np.abs(whole - half).max() < 0.1
    assert np.mean(whole.argmax(-1) == half.argmax(-1)) > 0.98
    assert inference.fast_precision() in inference.PRECISIONS


def test_a_temperature_softens_and_changes_no_label() -> None:
    image, model = head(0), train([head(1)], PLANE, seed=0, steps=10).model
    soft = dataclasses.replace(model, temperatures=(2.0,) * 3)
    one, other = (predict(m, image.channels, image.mask) for m in (model, soft))
    np.testing.assert_array_equal(one.argmax(-1), other.argmax(-1))
    assert other.max(-1)[image.mask].mean() < one.max(-1)[image.mask].mean()


def test_a_model_for_other_channels_says_which_it_expects() -> None:
    model, image = untrained(dataclasses.replace(PLANE, channels=("t1", "flair"), normalisation=())), head(0)
    with pytest.raises(ModelError, match="trained for other channels.*t1, flair"):
        predict(model, image.channels, image.mask)


def test_bad_settings_are_refused() -> None:
    image, model = head(0), untrained(PLANE)
    with pytest.raises(InputError, match="multiples of 4"):
        predict(model, image.channels, image.mask, window=(30, 30))
    with pytest.raises(InputError, match="float16"):
        predict(model, image.channels, image.mask, precision="float16")
    with pytest.raises(InputError, match="mask"):
        predict(model, image.channels, image.mask[:-1])
    with pytest.raises(ModelError, match="one slice"):
        predict(untrained(SPACE), image.channels[..., 0], image.mask[..., 0])
