"""What a trained network says of an image: probabilities on its grid, window by window.

One thread works on a window and several windows are worked on at once, so that the bits do not depend on the
number of threads. Windows without brain are left out, and where the brain fits into one window there is only
that one: the network is one function of a voxel's surroundings, whatever the window.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import
from sagittal.segmentation.calibration import TemperatureScaling
from sagittal.segmentation.labelled import as_seen
from sagittal.segmentation.model import SegmentationModel
from sagittal.segmentation.networks import NetworkConfig, build_network
from sagittal.segmentation.patches import planes
from sagittal.segmentation.training import one_thread

__all__ = ["PRECISIONS", "fast_precision", "predict", "predict_logits", "probabilities_of"]

PRECISIONS = ("float32", "bfloat16")
_SIGMA = 1 / 8  # of a window's side, of the weights (Isensee et al. 2021, nnU-Net)
_LEAST_WEIGHT = 1e-3
_WHOLE = 1 << 18  # voxels of a window, at most, unless the caller says how large it is
_SLICES = 8  # at once
_MARGIN = 8  # voxels around the brain

_Box = tuple[NDArray[np.int64], NDArray[np.int64]]  # start and size


def predict(
    model: SegmentationModel,
    channels: NDArray[np.float32],
    mask: NDArray[np.bool_],
    *,
    window: Sequence[int] | None = None,
    overlap: float = 0.25,
    precision: str = "float32",
    threads: int = 1,
    device: str = "cpu",
) -> NDArray[np.float32]:
    """Return the probability of each label in each voxel.

    Args:
        model: What was trained.
        channels: float32, (C, i, j, k) on the network's voxel widths, or (C, i, j) for one slice.
        mask: Where the brain is, (i, j, k) or (i, j).
        window: Voxels seen at once, 2 sides in a plane, 3 in space; multiples of 2**depth. By default the
            whole slice, and in space the brain's box where it is small, else parts of it of equal size.
        overlap: Share of a window's side that neighbours have in common, 0 to below 1.
        precision: "float32", or "bfloat16" where :func:`fast_precision` says so.
        threads: Windows worked on at once; the result is the same.
        device: Torch's name of where to compute.

    Returns:
        float32, (i, j, k, labels) or (i, j, labels): the labels' probabilities, with the model's
        temperatures. 0 outside the mask; in it they sum to 1, or to what is left of the background.

    Raises:
        InputError: A setting out of range, or a mask of another shape, or empty.
        ModelError: Other channels than the network's.
        MissingDependencyError: torch, or for the U-Net MONAI, is not installed.
    """
    logits = predict_logits(
        model,
        channels,
        mask,
        window=window,
        overlap=overlap,
        precision=precision,
        threads=threads,
        device=device,
    )
    return probabilities_of(model, logits, mask)


def probabilities_of(
    model: SegmentationModel, logits: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return the labels' probabilities from logits (*spatial, classes): softmax, then temperatures."""
    shares = _softmax(logits[mask])
    if set(model.temperatures) != {1.0}:
        shares = TemperatureScaling(model.temperatures).apply(shares)
    found = np.zeros((*mask.shape, len(model.config.labels)), np.float32)
    found[mask] = np.clip(shares[:, int(model.config.background) :], 0, 1)
    return found


def predict_logits(
    model: SegmentationModel,
    channels: NDArray[np.float32],
    mask: NDArray[np.bool_],
    *,
    window: Sequence[int] | None = None,
    overlap: float = 0.25,
    precision: str = "float32",
    threads: int = 1,
    device: str = "cpu",
) -> NDArray[np.float32]:
    """Return logits (*spatial, classes), without temperatures; 0 outside the mask. See :func:`predict`.

    Where windows overlap, logits are averaged with Gaussian weights about each window's centre. [inference:
    nnU-Net averages softmax or logits by version; logits keep temperatures exact]
    """
    torch = optional_import("torch", "language")
    config = model.config
    if mask.shape != channels.shape[1:] or not mask.any():
        raise InputError(
            "the mask is empty, or not on the image's grid",
            value=mask.shape,
            expected=str(channels.shape[1:]),
        )
    if not 0 <= overlap < 1 or threads < 1 or precision not in PRECISIONS:
        raise InputError(
            "overlap, threads or precision is out of range",
            value=f"{overlap}, {threads}, {precision}",
            expected=f"0 to below 1, 1 or more, {' or '.join(PRECISIONS)}",
        )
    seen = as_seen(config, channels, mask, model.scale)
    inside = mask if mask.ndim == 3 else np.expand_dims(mask, config.axis)
    boxes = list(_boxes(config, inside, window, overlap))
    several = _SLICES if config.flat else 1
    groups = [boxes[n : n + several] for n in range(0, len(boxes), several)]
    kind = getattr(torch, precision)
    layout = torch.channels_last if config.flat else torch.channels_last_3d
    total = np.zeros((config.classes, *inside.shape), np.float32)
    amount = np.zeros(inside.shape, np.float32)
    with one_thread():
        network = build_network(config, model.weights).to(device, kind).to(memory_format=layout)

        def said(group: Sequence[_Box]) -> NDArray[np.float32]:
            torch.set_num_threads(1)
            batch = torch.from_numpy(np.stack([planes(config, seen, *box) for box in group]))
            with torch.inference_mode():
                found = network(batch.to(device, kind).contiguous(memory_format=layout))
            answer: NDArray[np.float32] = found.float().cpu().contiguous().numpy()
            return answer

        with ThreadPoolExecutor(threads) as pool:
            # in the order of the groups, whichever is ready first
            for group, answers in zip(groups, pool.map(said, groups), strict=True):
                for (start, size), answer in zip(group, answers, strict=True):
                    _add(total, amount, answer.reshape(config.classes, *size.tolist()), start, size)
    total /= np.maximum(amount, _LEAST_WEIGHT**3)
    total[:, ~inside] = 0
    found = np.moveaxis(total, 0, -1)
    return np.ascontiguousarray(found.reshape(*mask.shape, config.classes))


def fast_precision() -> str:
    """Return "bfloat16" where the processor multiplies it itself (AVX-512 BF16 or AMX), else "float32"."""
    cpu = optional_import("torch", "language").cpu
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return "bfloat16" if any(getattr(cpu, name, lambda: False)() for name in known) else "float32"


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: NDArray[np.float32] = shares / shares.sum(axis=-1, keepdims=True)
    return found


def _boxes(
    config: NetworkConfig, inside: NDArray[np.bool_], window: Sequence[int] | None, overlap: float
) -> Iterator[_Box]:
    """Yield the windows that hold brain: the start and size of each."""
    block = 2**config.depth
    if window is not None and (len(window) != len(config.patch) or any(n < 1 or n % block for n in window)):
        raise InputError(
            "the window does not fit the network",
            value=tuple(window),
            expected=f"{len(config.patch)} multiples of {block}",
        )
    axes = [axis for axis in range(3) if not (config.flat and axis == config.axis)]
    low, high = np.zeros(3, np.int64), np.array(inside.shape, np.int64)
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        there = np.flatnonzero(inside.any(axis=others))
        margin = _MARGIN if axis in axes else 0
        low[axis], high[axis] = max(there[0] - margin, 0), min(there[-1] + 1 + margin, inside.shape[axis])
    length = high - low
    size = np.ones(3, np.int64)
    size[axes] = _whole(length[axes], block, config.flat, overlap) if window is None else window
    starts: list[Sequence[int]] = []
    for axis in range(3):
        if axis not in axes:
            starts.append(range(int(low[axis]), int(high[axis])))
            continue
        stride = max(int(size[axis] * (1 - overlap)), 1)
        count = 1 + max(0, math.ceil((length[axis] - size[axis]) / stride))
        room = int(length[axis] - size[axis])
        starts.append(
            [
                int(low[axis]) + (room // 2 if count == 1 else round(n * room / (count - 1)))
                for n in range(count)
            ]
        )
    for corner in itertools.product(*starts):
        start = np.array(corner, np.int64)
        first, last = np.maximum(start, 0), np.minimum(start + size, inside.shape)
        if inside[tuple(slice(a, b) for a, b in zip(first, last, strict=True))].any():
            yield start, size


def _whole(length: NDArray[np.int64], block: int, flat: bool, overlap: float) -> NDArray[np.int64]:
    """Return sides of windows that cover a box in as few as are small enough, in multiples of ``block``."""
    parts = np.ones(len(length), np.int64)
    while True:
        # n windows of side s that share a part of it cover s (1 + (n - 1)(1 - overlap))
        side = length / (1 + (parts - 1) * (1 - overlap))
        size: NDArray[np.int64] = (np.ceil(side / block) * block).astype(np.int64)
        if flat or size.prod() <= _WHOLE or (size <= 2 * block).all():
            return size
        parts[int(np.argmax(size))] += 1


def _add(
    total: NDArray[np.float32],
    amount: NDArray[np.float32],
    answer: NDArray[np.float32],
    start: NDArray[np.int64],
    size: NDArray[np.int64],
) -> None:
    """Add a window's answer with its weights, where it lies in the image."""
    weights = np.ones((1, 1, 1), np.float32)
    for axis, count in enumerate(size.tolist()):
        if count > 1:
            away = np.arange(count) - (count - 1) / 2
            row = np.maximum(np.exp(-0.5 * (away / (_SIGMA * count)) ** 2), _LEAST_WEIGHT).astype(np.float32)
            weights = weights * row.reshape([-1 if a == axis else 1 for a in range(3)])
    low, high = np.maximum(start, 0), np.minimum(start + size, amount.shape)
    outer = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    inner = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
    total[(slice(None), *outer)] += (answer * weights)[(slice(None), *inner)]
    amount[outer] += weights[inner]
