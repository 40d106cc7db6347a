"""What a model's cache holds: massive activations, sinks, means, outliers and sensitivities of each layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.cache_utils import get_layer_types_and_kwargs

from sagittal.core.errors import ModelError
from sagittal.language.calibration import Calibration, Moments, calibrate, text_windows
from sagittal.language.models import LanguageModel
from sagittal.language.sinks import NoSinks

__all__ = ["FAR", "LayerProfile", "ModelProfile", "StateProfile", "profile_model"]

FAR = 4.0
"""Standard deviations of its channel beyond which a number is an outlier, as 0.006 % of normal ones are."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class StateProfile:
    """Keys before RoPE, or values, of one layer; sink tokens are left out.

    Args:
        mean_share: Squared mean over variance of each channel, ``(H, D)``: what a fixed offset would save.
        kurtosis: Excess kurtosis of a channel over tokens, mean over channels; 0 for normal numbers.
        outliers: Share of numbers further than :data:`FAR` standard deviations from their channel's mean.
        sensitivity: Sum over channels of Fisher information times variance, in nats: about twice what one
            token's states are worth to what follows.
    """

    mean_share: Array
    kurtosis: float
    outliers: float
    sensitivity: float

    @classmethod
    def of(cls, moments: Moments) -> StateProfile:
        """Return the profile of measured moments."""
        variance = np.einsum("hdd->hd", moments.covariance)
        safe = np.maximum(variance, _TINY)
        sample = moments.sample.astype(np.float64)
        units = sample - sample.mean(1, keepdims=True)
        units /= np.maximum(sample.std(1, keepdims=True), _TINY)
        return cls(
            mean_share=moments.mean**2 / safe,
            kurtosis=float((units**4).mean(1).mean() - 3),
            outliers=float((np.abs(units) > FAR).mean()),
            sensitivity=float((moments.fisher * variance).sum()),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers and lists."""
        return {
            "mean_squared_over_variance": self.mean_share.tolist(),
            "excess_kurtosis": self.kurtosis,
            "outlier_share": self.outliers,
            "sensitivity_nats": self.sensitivity,
        }


@dataclass(frozen=True, eq=False)
class LayerProfile:
    """One decoder layer.

    Args:
        layer: Its number, from 0.
        largest: Largest absolute activation of its output.
        median: Median absolute activation of its output.
        keys: None unless it is a layer of full attention.
        values: Likewise.
    """

    layer: int
    largest: float
    median: float
    keys: StateProfile | None
    values: StateProfile | None


@dataclass(frozen=True, eq=False)
class ModelProfile:
    """A model on a text.

    Args:
        model: The model's name.
        weights_sha256: Digest of its weights.
        calibration: What was measured, with the sinks.
        layers: One for each decoder layer.
    """

    model: str
    weights_sha256: str
    calibration: Calibration
    layers: tuple[LayerProfile, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers and lists.

        ``model``, ``weights_sha256``; ``text``: ``tokens``, ``window`` and ``sha256`` of the token numbers;
        ``sinks``: the profile's fields (see :class:`~sagittal.language.sinks.SinkProfile`), or ``none`` with
        the reason; ``layers``: for each ``layer``, ``largest_activation`` and ``median_activation`` of its
        output, and for one of full attention ``keys`` and ``values``, null for another, each with
        ``mean_squared_over_variance`` (``(H, D)``), ``excess_kurtosis``, ``outlier_share`` and
        ``sensitivity_nats``, see :class:`StateProfile`.
        """
        found = self.calibration.sinks
        return {
            "model": self.model,
            "weights_sha256": self.weights_sha256,
            "text": {
                "tokens": self.calibration.tokens,
                "window": self.calibration.length,
                "sha256": self.calibration.text_sha256,
            },
            "sinks": {"none": found.reason} if isinstance(found, NoSinks) else found.to_json(),
            "layers": [
                {
                    "layer": each.layer,
                    "largest_activation": each.largest,
                    "median_activation": each.median,
                    "keys": None if each.keys is None else each.keys.to_json(),
                    "values": None if each.values is None else each.values.to_json(),
                }
                for each in self.layers
            ],
        }


def profile_model(
    model: LanguageModel,
    text: str,
    *,
    windows: int = 8,
    length: int = 512,
    report: Callable[[str], None] | None = None,
) -> ModelProfile:
    """Profile a model on a text.

    Args:
        model: The model.
        text: A text of at least ``windows * length`` tokens.
        windows: Windows that are read.
        length: Tokens of each.
        report: Told what is being done.

    Raises:
        InputError: The text is too short.
        ModelError: The model has no decoder layers that can be looked into, or none of full attention.
    """
    first = text_windows(model.tokenizer, text, windows, length)[0]
    sizes = _activations(model.model, first)
    found = calibrate(model.model, model.tokenizer, text=text, windows=windows, length=length, report=report)
    kinds, _ = get_layer_types_and_kwargs(model.model.config.get_text_config(decoder=True))
    sides = zip(map(StateProfile.of, found.keys), map(StateProfile.of, found.values), strict=True)
    layers = []
    for number, (kind, (largest, median)) in enumerate(zip(kinds, sizes, strict=True)):
        keys, values = next(sides) if kind == "full_attention" else (None, None)
        layers.append(LayerProfile(number, largest, median, keys, values))
    return ModelProfile(model.name, model.weights_sha256, found, tuple(layers))


_TINY = 1e-30


def _activations(model: Any, ids: torch.Tensor) -> list[tuple[float, float]]:
    """Return the largest and the median absolute activation of each layer's output."""
    layers = getattr(model.get_decoder(), "layers", None) if hasattr(model, "get_decoder") else None
    if layers is None or not len(layers):
        raise ModelError(
            "the model cannot be looked into", value=type(model).__name__, expected="a decoder with layers"
        )
    found: list[tuple[float, float]] = []

    def look(module: Any, given: Any, output: Any) -> None:
        size = (output[0] if isinstance(output, tuple) else output).abs().float()
        found.append((float(size.max()), float(size.median())))

    hooks = [layer.register_forward_hook(look) for layer in layers]
    try:
        with torch.inference_mode():
            model(ids.to(model.device), use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return found
