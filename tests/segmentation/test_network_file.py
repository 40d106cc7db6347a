from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from labelled_images import PLANE, SPACE, head
from sagittal.core.errors import FormatError, ModelError
from sagittal.segmentation import (
    SegmentationModel,
    TrainingState,
    VolumeScaling,
    model_bytes,
    model_from_bytes,
    predict,
    train,
)
from sagittal.segmentation.inference import predict_logits
from sagittal.segmentation.labelled import as_seen
from sagittal.segmentation.network_file import onnx_bytes, require_channels, state_bytes, state_from_bytes

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

HEADS = [head(0), head(1)]
MADE_UP = {"data": "made up"}


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    found = train(HEADS, PLANE, seed=0, steps=3).model
    volumes = VolumeScaling((0.1, 0.0, -0.1), (0.2, 0.1, 0.3), 7)
    return dataclasses.replace(found, temperatures=(1.5, 1.0, 0.5), volumes=volumes, facts=MADE_UP)


def test_a_file_gives_back_the_model_with_all_it_knows(model: SegmentationModel) -> None:
    content = model_bytes(model)
    back = model_from_bytes(content)
    assert model_bytes(back) == content
    assert (back.config, back.temperatures, back.scale) == (model.config, model.temperatures, model.scale)
    assert (back.volumes, back.facts) == (model.volumes, MADE_UP)
    assert back.subjects == (("head 0", HEADS[0].label_hash), ("head 1", HEADS[1].label_hash))
    one, other = (predict(m, HEADS[0].channels, HEADS[0].mask) for m in (model, back))
    np.testing.assert_array_equal(one, other)


def test_volumes_of_other_labels_are_refused(model: SegmentationModel) -> None:
    with pytest.raises(ModelError, match="a model is not whole; got 1; expected 3"):
        dataclasses.replace(model, volumes=VolumeScaling((0.1,), (0.2,), 7))


def test_a_file_that_is_damaged_or_foreign_is_refused_by_its_name(model: SegmentationModel) -> None:
    import safetensors.numpy

    whole = model_bytes(model)
    foreign = safetensors.numpy.save({"w": np.zeros(3, np.float32)})
    for content in (b"", whole[:60], foreign, b"\x80\x04" + whole):
        with pytest.raises(FormatError, match="m.safetensors: this is no segmentation model.*segment train"):
            model_from_bytes(content, "m.safetensors")
    with pytest.raises(FormatError, match="damaged"):
        model_from_bytes(whole[:-8])
    changed = bytearray(whole)
    changed[-100] ^= 1
    with pytest.raises(FormatError, match="the weights are damaged"):
        model_from_bytes(bytes(changed))


def test_a_header_that_fits_other_weights_or_a_later_version_is_refused(model: SegmentationModel) -> None:
    whole = model_bytes(model)
    length = int.from_bytes(whole[:8], "little")
    for old, new, said in (
        ('"width": 4', '"width": 5', "another network"),
        ('"format": 1', '"format": 9', "another format; got 9"),
        ('"csf"', '"gm"', "labels"),
    ):
        header = json.loads(whole[8 : 8 + length])
        key = next(iter(header["__metadata__"]))
        assert old in header["__metadata__"][key]
        header["__metadata__"][key] = header["__metadata__"][key].replace(old, new)
        text = json.dumps(header).encode()
        with pytest.raises(FormatError, match=said):
            model_from_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


def test_a_model_for_other_channels_is_named_with_both(model: SegmentationModel) -> None:
    require_channels(model, ["t1"])
    with pytest.raises(
        ModelError, match=r"model/: the model was trained for other channels; got t1, flair; expected t1"
    ):
        require_channels(model, ["t1", "flair"], "model/")


def test_a_training_goes_on_from_its_file_and_from_no_other() -> None:
    kept: list[TrainingState] = []
    whole = train(HEADS, SPACE, seed=0, steps=4, keep=kept.append, keep_every=2)
    about = {"seed": 0, "labels": ["a", "b"]}
    content = state_bytes(kept[0], about)
    state = state_from_bytes(content, about)
    assert state.step == 2
    again = train(HEADS, SPACE, seed=0, steps=4, state=state)
    assert model_bytes(again.model) == model_bytes(whole.model)
    with pytest.raises(
        ModelError, match=r"begun there differs in seed; got 0; expected 1, or another folder"
    ):
        state_from_bytes(content, {**about, "seed": 1}, "model/")
    with pytest.raises(FormatError, match="no segmentation training"):
        state_from_bytes(model_bytes(whole.model), about)


@pytest.mark.parametrize("plan", [PLANE, SPACE])
def test_onnx_says_the_same_in_another_runtime(plan: object) -> None:
    onnx = pytest.importorskip("onnx")
    trained = train(HEADS, plan, seed=0, steps=2).model
    content = onnx_bytes(trained)
    onnx.checker.check_model(onnx.load_from_string(content))
    runtime = pytest.importorskip("onnxruntime")
    image = head(5, (32, 24, 16))
    seen = as_seen(trained.config, image.channels, image.mask, trained.scale)
    seen = np.moveaxis(seen, 3, 0) if plan is PLANE else seen[None]
    (found,) = runtime.InferenceSession(content).run(None, {"channels": np.ascontiguousarray(seen)})
    found = np.moveaxis(found, 0, -1) if plan is PLANE else found[0]
    window = (32, 24) if plan is PLANE else (32, 24, 16)
    ours = predict_logits(trained, image.channels, image.mask, window=window)
    if plan is SPACE:
        middle = (slice(12, 20), slice(8, 16), slice(6, 10))
        np.testing.assert_allclose(np.moveaxis(found, 0, -1)[middle], ours[middle], atol=1e-2)
    else:
        np.testing.assert_allclose(np.moveaxis(found, 0, -1)[image.mask], ours[image.mask], atol=1e-3)
