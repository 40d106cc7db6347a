"""Segmentation models and trainings as bytes: safetensors with everything else in the header; and ONNX.

Nothing is unpickled. A model's header holds its whole configuration, the scale of its channels, its
temperatures, what its volumes are off by, and the id and the labels' sha256 of each subject of its training.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import FormatError, ModelError, SagittalError
from sagittal.core.optional import optional_import
from sagittal.core.weights_file import packed_weights, unpacked_weights
from sagittal.segmentation.model import SegmentationModel
from sagittal.segmentation.networks import NetworkConfig, build_network
from sagittal.segmentation.training import TrainingState
from sagittal.segmentation.volumes import VolumeScaling

__all__ = [
    "model_bytes",
    "model_from_bytes",
    "onnx_bytes",
    "require_channels",
    "state_bytes",
    "state_from_bytes",
]

_MODEL, _STATE = "segmentation-model", "segmentation-training"
_FORMAT = 1  # of the header, the layers and the channels' scale
_MAKER = "sagittal segment train"
_WANTED = f"a model that {_MAKER} has written"
_OPSET = 17


def model_bytes(model: SegmentationModel) -> bytes:
    """Return a model as the content of a file."""
    header = {
        "config": model.config.to_json(),
        "scale": [list(pair) for pair in model.scale],
        "temperatures": list(model.temperatures),
        "subjects": [list(pair) for pair in model.subjects],
        "seed": model.seed,
        "steps": model.steps,
        "volumes": None if model.volumes is None else model.volumes.to_json(),
        "facts": dict(model.facts),
    }
    return packed_weights(_MODEL, _FORMAT, model.weights, header)


def model_from_bytes(content: bytes, source: object = None) -> SegmentationModel:
    """Return the model that a file holds, its weights checked against its configuration.

    Args:
        content: The whole file.
        source: What to call it in an error.

    Raises:
        FormatError: Another kind of file, one that was cut short or changed, or one of a later version.
    """
    arrays, header = unpacked_weights(
        _MODEL, _FORMAT, content, source, what="segmentation model", made_by=_MAKER
    )
    try:
        config = NetworkConfig.from_json(header["config"])
        model = SegmentationModel(
            config=config,
            weights=arrays,
            scale=tuple((float(mean), float(sd)) for mean, sd in header["scale"]),
            temperatures=tuple(float(t) for t in header["temperatures"]),
            subjects=tuple((str(name), str(digest)) for name, digest in header["subjects"]),
            seed=int(header["seed"]),
            steps=int(header["steps"]),
            volumes=None if header["volumes"] is None else _scaling(header["volumes"]),
            facts=dict(header["facts"]),
        )
        build_network(config, arrays)
    except SagittalError as error:
        problem = error.problem if error.source is None else f"{error.source}: {error.problem}"
        raise FormatError(problem, source=source, value=error.value, expected=_WANTED) from error
    except (LookupError, TypeError, ValueError) as error:
        raise FormatError("the model is damaged", source=source, expected=_WANTED) from error
    return model


def _scaling(kept: Mapping[str, Any]) -> VolumeScaling:
    mean, sd = (tuple(float(one) for one in kept[name]) for name in ("mean", "sd"))
    return VolumeScaling(mean, sd, int(kept["subjects"]))


def require_channels(model: SegmentationModel, channels: Sequence[str], source: object = None) -> None:
    """Refuse a model that was trained for other channels than those at hand.

    Raises:
        ModelError: The message names both.
    """
    if tuple(channels) != model.config.channels:
        raise ModelError(
            "the model was trained for other channels",
            source=source,
            value=", ".join(channels) or "none",
            expected=", ".join(model.config.channels),
        )


def state_bytes(state: TrainingState, about: Mapping[str, Any]) -> bytes:
    """Return a training that can be gone on with as the content of a file.

    Args:
        state: Where it is.
        about: JSON values that say which training it is; :func:`state_from_bytes` compares them.
    """
    arrays = {f"{part}.{name}": array for part in _PARTS for name, array in getattr(state, part).items()}
    arrays["losses"] = np.array(state.losses, np.float64)
    return packed_weights(_STATE, _FORMAT, arrays, {"step": state.step, "about": dict(about)})


def state_from_bytes(content: bytes, about: Mapping[str, Any], source: object = None) -> TrainingState:
    """Return the training that a file holds.

    Raises:
        FormatError: Another kind of file, or one that was cut short or changed.
        ModelError: It is another training; the message names what differs.
    """
    arrays, header = unpacked_weights(
        _STATE, _FORMAT, content, source, what="segmentation training", made_by=_MAKER
    )
    known = header.get("about", {})
    differs = sorted(name for name in {*known, *about} if known.get(name) != about.get(name))
    if differs:
        name = differs[0]
        raise ModelError(
            f"the training that was begun there differs in {', '.join(differs)}",
            source=source,
            value=known.get(name),
            expected=f"{about.get(name)}, or another folder",
        )
    parts: dict[str, dict[str, NDArray[np.float32]]] = {part: {} for part in _PARTS}
    losses = arrays.pop("losses", np.zeros(0))
    for key, array in arrays.items():
        part, _, name = key.partition(".")
        if part in parts:
            parts[part][name] = array
    return TrainingState(step=int(header["step"]), losses=tuple(losses.tolist()), **parts)


_PARTS = ("weights", "means", "squares")


def onnx_bytes(model: SegmentationModel) -> bytes:
    """Return the network as ONNX: from "channels" (batch, inputs, *spatial) to "logits", any sides.

    Channels go in as :func:`~sagittal.segmentation.labelled.as_seen` gives them (scaled, 0 outside the
    brain), sides in multiples of 2**depth. The configuration is not in it; keep the model's file beside it.

    Raises:
        MissingDependencyError: torch or onnx is not installed.
    """
    torch = optional_import("torch", "language")
    optional_import("onnx", "all")
    config = model.config
    network = build_network(config, model.weights)
    example = torch.zeros(1, config.inputs, *config.patch)
    free = {0: "batch", **{axis + 2: f"side{axis}" for axis in range(len(config.patch))}}
    found = io.BytesIO()
    torch.onnx.export(
        network,
        (example,),
        found,
        input_names=["channels"],
        output_names=["logits"],
        dynamic_axes={"channels": free, "logits": free},
        opset_version=_OPSET,
        dynamo=False,
    )
    return found.getvalue()
