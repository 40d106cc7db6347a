"""Training of a registration network, without labels or known fields: by likeness and smoothness alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import
from sagittal.core.randomness import generator
from sagittal.registration.levels import coarsened, normalised
from sagittal.registration.network import RegistrationNetwork, entered
from sagittal.registration.network_layers import (
    EXTRAS,
    Frame,
    extra_count,
    initial_weights,
    layer_shapes,
    one_thread,
    velocity_of,
)
from sagittal.registration.optimise import affine_between
from sagittal.registration.similarity import Similarity, similarity
from sagittal.registration.variational import Report, silent
from sagittal.volume import Volume
from sagittal.volume.field_calculus import Array, components, gradient

__all__ = ["Training", "train_network"]

_TOLD = 100  # steps between two reports
_LEAST_SCALE = 1e-3
_ENOUGH = 100  # steps that must lower the loss
_KEEP = 0.9, 0.999  # of the means, each step
_LEAST_ROOT = 1e-8

_Pairs = Iterator[NDArray[np.float32]]  # fixed and moving, (1, 2, i, j, k) each
_POOLS = (2, 4)  # voxels a side over which images are averaged before they are compared


@dataclass(frozen=True, eq=False)
class Training:
    """A network, and how its training went.

    Attributes:
        network: The network after the last step.
        losses: Of each step: how unlike its pair was, and how rough its velocity.
    """

    network: RegistrationNetwork
    losses: tuple[float, ...]


def train_network(
    moving: Sequence[Volume],
    fixed: Volume | None = None,
    *,
    affines: Sequence[ArrayLike] | None = None,
    first: RegistrationNetwork | None = None,
    extra: str = "jacobian-curl",
    width: int = 16,
    finest_mm: float | None = None,
    steps: int = 1000,
    rate: float = 1e-3,
    measure: str = "local-correlation",
    regularity: float = 0.1,
    seed: int = 0,
    report: Report = silent,
) -> Training:
    """Train a network to bring images to one fixed image, or to each other.

    Each step takes one pair at random, by Adam (Kingma, Ba 2015) with a rate that falls to 0 along half a
    cosine. One thread works, so that the same input gives the same weights on one machine.

    Args:
        moving: The images of training; each is seen through its affine map.
        fixed: What they are brought to; by default each other, on the first one's grid.
        affines: The affine map from the space of ``fixed``, or of the first image, to each one, (4, 4) in
            RAS+ mm; by default they are looked for.
        first: A trained first stage. The second starts anew, and sees what the first left.
        extra: What a second stage sees: "jacobian-curl", or "zeros" for its control.
        width: Channels at half the resolution.
        finest_mm: Voxel width at which images enter the network; by default that of the fixed image.
        steps: Of training.
        rate: Of learning, at the first step.
        measure: See :func:`~sagittal.registration.register`.
        regularity: Weight of the mean squared gradient of the velocity, which has no unit.
        seed: Of weights and pairs.
        report: Is told the loss now and then.

    Raises:
        InputError: Too few images, a constant one, as many affine maps as there are not images, or a setting
            that is not positive; a loss that is not finite, or does not fall in 100 steps or more.
        GeometryError: An image that does not overlap, or has another number of dimensions.
        MissingDependencyError: torch or scipy is not installed.
    """
    optional_import("torch", "language")
    similarity(measure)
    if not moving or (fixed is None and len(moving) < 2):
        raise InputError(
            "there are too few images", value=len(moving), expected="one and what it is brought to, or two"
        )
    if affines is not None and len(affines) != len(moving):
        raise InputError("not an affine map for each image", value=len(affines), expected=str(len(moving)))
    if min(width, steps) < 1 or not rate > 0 or not regularity >= 0:
        raise InputError(
            "width, steps and rate must be positive, regularity 0 or more",
            value=f"{width}, {steps}, {rate} and {regularity}",
        )
    if finest_mm is not None and not finest_mm > 0:
        raise InputError("a voxel has no width", source="finest_mm", value=finest_mm, expected="mm")
    if first is not None and extra not in EXTRAS:
        raise InputError("a second stage sees nothing of that name", value=extra, expected=", ".join(EXTRAS))
    target = moving[0] if fixed is None else fixed
    grid = target.geometry if finest_mm is None else coarsened(target.geometry, finest_mm)
    grid = grid if first is None else first.grid
    frame = Frame.around(grid, target.geometry)
    images = []
    for number, image in enumerate(moving):
        given = np.eye(4) if fixed is None and number == 0 else None if affines is None else affines[number]
        normalised(image, f"image {number}")  # or it is refused by its number
        matrix, _ = affine_between(image, target, given, measure, silent)
        images.append(entered(image, frame, f"image {number}", matrix))
    still = images if fixed is None else [entered(fixed, frame, "fixed image")]
    drawn = _pairs(len(images), fixed is not None, steps, seed)

    def pairs(count: int) -> _Pairs:
        return (np.stack([still[one], images[other]])[None] for one, other in drawn[:count])

    inputs = 2 + extra_count(None if first is None else extra, len(frame.axes))
    with one_thread():
        network = RegistrationNetwork(
            weights=initial_weights(layer_shapes(width, inputs, len(frame.axes)), seed),
            grid=grid,
            width=width,
            measure=measure,
            regularity=regularity,
            steps=steps,
            seed=seed,
            extra=None if first is None else extra,
            scale=(1.0, 1.0) if first is None else _scale(first, frame, pairs(len(images))),
            first=first,
        )
        learned, losses = _learned(network, frame, pairs(steps), rate, report)
    part = steps // 5
    if steps >= _ENOUGH and not np.mean(losses[-part:]) < np.mean(losses[:part]):
        raise InputError(
            "the training did not lower the loss",
            value=f"{np.mean(losses[:part]):.4f} at first, {np.mean(losses[-part:]):.4f} at last",
            expected="a smaller rate, or more steps",
        )
    return Training(dataclasses.replace(network, weights=learned), tuple(losses))


def _learned(
    network: RegistrationNetwork,
    frame: Frame,
    pairs: _Pairs,
    rate: float,
    report: Report,
) -> tuple[dict[str, NDArray[np.float32]], list[float]]:
    """Return the weights after a step for each pair, and the loss of each."""
    torch = optional_import("torch", "language")
    compare = similarity(network.measure)
    weights = {name: torch.tensor(array, requires_grad=True) for name, array in network.weights.items()}
    means = {name: np.zeros((2, *array.shape), np.float32) for name, array in network.weights.items()}
    losses: list[float] = []
    for step, both in enumerate(pairs):
        pair = torch.from_numpy(both)
        seen = velocity_of(weights, frame.flattened(network.channels(frame, pair)))
        losses.append(descend(frame, frame.vectors(seen), pair, compare, network.regularity))
        if not np.isfinite(losses[-1]):
            raise InputError("the loss is not finite", source=f"step {step}", expected="a smaller rate")
        now = rate * 0.5 * (1 + float(np.cos(np.pi * step / network.steps)))
        for name, tensor in weights.items():
            tensor.detach().numpy()[...] -= now * _adam(means[name], tensor.grad.numpy(), step + 1)
            tensor.grad = None
        if (step + 1) % _TOLD == 0:
            report(f"step {step + 1} of {network.steps}: {np.mean(losses[-_TOLD:]):.4f}")
    return {name: tensor.detach().numpy() for name, tensor in weights.items()}, losses


def descend(frame: Frame, velocity: Array, pair: Array, compare: Similarity, regularity: float) -> float:
    """Return the loss of a pair, after its derivatives have been added to the weights'.

    The similarity's own derivative is used: a sum weighed with it has that gradient.
    """
    torch = optional_import("torch", "language")
    warped = frame.warped(pair[:, 1:], frame.moved(velocity))
    total, value = 0, 0.0
    for size in _POOLS:
        a, b = _pooled(pair[:, :1], size, frame)[0, 0], _pooled(warped, size, frame)[0, 0]
        found, _, slope = compare(a.numpy(), b.detach().numpy())
        total, value = total + (b * torch.from_numpy(slope)).sum() / len(_POOLS), value + found / len(_POOLS)
    slopes = [part for layer in components(velocity) for part in gradient(layer, frame.half.affine)]
    rough = sum((part * part).mean() for part in slopes)
    (total + regularity * rough).backward()
    return float(value) + regularity * float(rough.detach())


def _adam(means: NDArray[np.float32], slope: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """Return a step of Adam for a rate of 1; ``means`` of slopes and of their squares go on.

    Written out, as importing torch's takes seconds.
    """
    for mean, value, keep in zip(means, (slope, slope * slope), _KEEP, strict=True):
        mean += (value - mean) * np.float32(1 - keep)
    one, two = (mean / np.float32(1 - keep**step) for mean, keep in zip(means, _KEEP, strict=True))
    found: NDArray[np.float32] = one / (np.sqrt(two) + np.float32(_LEAST_ROOT))
    return found


def _pooled(images: Array, size: int, frame: Frame) -> Array:
    """Return means over blocks of so many voxels along each axis."""
    blocks = [size if axis in frame.axes else 1 for axis in range(3)]
    return optional_import("torch.nn.functional", "language").avg_pool3d(images, blocks)


def _pairs(count: int, atlas: bool, steps: int, seed: int) -> list[tuple[int, int]]:
    """Return the numbers of fixed and moving image of each step: each pass sees each moving image once."""
    random = generator(seed, "pairs")
    found: list[tuple[int, int]] = []
    while len(found) < steps:
        order = random.permutation(count)
        others = np.zeros(count, int) if atlas else (order + random.integers(1, count, count)) % count
        found += [(int(other), int(one)) for one, other in zip(order, others, strict=True)]
    return found[:steps]


def _scale(first: RegistrationNetwork, frame: Frame, pairs: _Pairs) -> tuple[float, float]:
    """Return the standard deviations of what the first stage leaves of the pairs of one pass."""
    torch = optional_import("torch", "language")
    squares = []
    for pair in pairs:
        left = frame.described(frame.moved(first.velocity(frame, torch.from_numpy(pair))))
        squares.append([float((layer.double() ** 2).mean()) for layer in left])
    growth, turning = np.maximum(np.sqrt(np.mean(squares, axis=0)), _LEAST_SCALE)
    return float(growth), float(turning)
