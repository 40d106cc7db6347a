"""The network that a step was pinned to, read from its file."""

from __future__ import annotations

from collections.abc import Sequence

from sagittal.core.errors import InputError
from sagittal.segmentation import SegmentationModel, model_from_bytes
from sagittal.segmentation.network_file import require_channels
from sagittal.workflow.step import Context

__all__ = ["pinned_network"]


def pinned_network(context: Context, name: str, sha256: str, channels: Sequence[str]) -> SegmentationModel:
    """Return the network in a file, if it is the one that was asked for.

    Args:
        context: Of the run; it notes the file.
        name: An asset, or a path.
        sha256: What the file must contain.
        channels: What the network must take, in order.

    Raises:
        InputError: There is no such file, or it holds something else.
        FormatError: It is no model.
        ModelError: It was trained for other channels.
    """
    path = context.file(name)
    if context.models[name] != sha256:
        raise InputError(
            "the file is not the model that was asked for",
            source=name,
            value=f"sha256 {context.models[name]}",
            expected=f"sha256 {sha256}",
        )
    model = model_from_bytes(path.read_bytes(), path)
    require_channels(model, channels, path)
    return model
