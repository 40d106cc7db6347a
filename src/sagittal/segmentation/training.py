"""Training of a segmentation network on labelled images, so that it can be broken off and gone on with.

Every draw follows from the seed and the number of the step, and one thread works: the same images, seed and
number of steps give the same weights on one machine, whatever the threads and however often it was resumed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import
from sagittal.core.randomness import generator
from sagittal.segmentation.labelled import UNKNOWN, LabelledImage, as_seen, fitted_scale
from sagittal.segmentation.model import SegmentationModel
from sagittal.segmentation.networks import NetworkConfig, build_network, initial_weights
from sagittal.segmentation.patches import Patches

__all__ = ["Training", "TrainingState", "one_thread", "train"]

_TOLD = 50  # steps between two reports
_KEEP = 0.9, 0.99  # of Adam's means, each step
_LEAST_ROOT = 1e-8
_DECAY = 1e-4
_MEASURED = 16  # batches, at most, over which the running statistics are measured anew
_AUXILIARY = 0.5  # weight of the heads' own losses at the first step
_SMOOTH = 1.0  # voxel, of the Dice loss

Arrays = dict[str, NDArray[np.float32]]
Report = Callable[[str], None]


def silent(message: str) -> None:
    """Report nothing."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingState:
    """A training after some steps; it is all that is needed to go on.

    Attributes:
        step: How many steps are done.
        weights: Weights and running statistics by name.
        means: Adam's means of the slopes, by name.
        squares: Adam's means of the squared slopes.
        losses: Of each step done.
    """

    step: int
    weights: Arrays
    means: Arrays
    squares: Arrays
    losses: tuple[float, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Training:
    """A trained model, and how its training went.

    Attributes:
        model: The model after the last step.
        losses: The loss curve: cross-entropy plus Dice loss of each step.
        state: What to go on from with more steps.
    """

    model: SegmentationModel
    losses: tuple[float, ...]
    state: TrainingState


def train(
    images: Sequence[LabelledImage],
    config: NetworkConfig,
    *,
    seed: int,
    steps: int,
    batch: int | None = None,
    rate: float = 1e-2,
    foreground: float = 0.5,
    augment: bool = True,
    state: TrainingState | None = None,
    keep: Callable[[TrainingState], None] | None = None,
    keep_every: int = 100,
    report: Report = silent,
    device: str = "cpu",
) -> Training:
    """Train a network.

    The loss is cross-entropy plus the Dice loss over the batch, of labelled voxels in the brain. Classes
    weigh in the cross-entropy by the root of how rare they are at first, so that a small one is learned at
    all, and equally per voxel at last, so that the probabilities are those of voxels. [inference] AdamW
    (Loshchilov, Hutter 2019), at a rate that falls to 0 along half a cosine.

    Args:
        images: Of training. Labels beyond the network's are refused; where it has no background,
            background in the brain counts as not labelled.
        config: What to train.
        seed: Of weights, patches and augmentation.
        steps: Of training, in all.
        batch: Patches a step; by default 8 in a plane and 2 in space.
        rate: Of learning, at the first step.
        foreground: Share of patches around a voxel of a class that is drawn with equal chances; the others
            are drawn from the whole brain.
        augment: Whether patches are flipped left to right and their intensities changed a little.
        state: What to go on from, of a training with the same arguments.
        keep: Is given the state every ``keep_every`` steps.
        keep_every: See ``keep``.
        report: Is told the loss now and then.
        device: Torch's name of where to compute. The same bits are only promised on "cpu".

    Raises:
        InputError: No image, labels outside the network's, a class that no image has, a setting out of
            range, or a loss that is not finite.
        ModelError: An image with other channels.
        MissingDependencyError: torch, or for the U-Net MONAI, is not installed.
    """
    torch = optional_import("torch", "language")
    if not images:
        raise InputError("there is no image to train on")
    batch = (8 if config.flat else 2) if batch is None else batch
    if min(batch, steps, keep_every) < 1 or not rate > 0 or not 0 <= foreground <= 1:
        raise InputError(
            "batch and steps must be 1 or more, the rate above 0, the share of foreground 0 to 1",
            value=f"{batch}, {steps}, {rate} and {foreground}",
        )
    if state is not None and state.step > steps:
        raise InputError(
            "the training is past its end", value=f"step {state.step}", expected=f"{steps} steps"
        )
    scale = fitted_scale(config, images)
    patches = Patches(config, images, [as_seen(config, i.channels, i.mask, scale) for i in images])
    rarity = _rarity(config, patches.shares())
    with one_thread(), _repeatable(device):
        network = build_network(config, None if state is None else state.weights).to(device)
        if state is None:
            shapes = {
                name: tuple(t.shape) for name, t in network.state_dict().items() if t.is_floating_point()
            }
            network = build_network(config, initial_weights(shapes, seed)).to(device)
        weights = dict(network.named_parameters())
        means, squares = (
            {
                name: torch.zeros_like(t)
                if known is None
                else torch.from_numpy(known[name].copy()).to(device)
                for name, t in weights.items()
            }
            for known in ((None, None) if state is None else (state.means, state.squares))
        )
        losses = [] if state is None else list(state.losses)
        network.train()

        def current() -> TrainingState:
            return TrainingState(
                step=len(losses),
                weights=_arrays(network.state_dict()),
                means=_arrays(means),
                squares=_arrays(squares),
                losses=tuple(losses),
            )

        for step in range(len(losses), steps):
            random = generator(seed, "batch", str(step))
            seen, truth = patches.draw(batch, random, foreground=foreground, augment=augment)
            done = step / steps
            weighing = torch.from_numpy(rarity ** (1 - done)).to(device)
            outputs = network(torch.from_numpy(seen).to(device))
            target = _Truth.of(truth, config.classes, device)
            loss = _loss(outputs, target, weighing, _AUXILIARY * (1 - done))
            losses.append(float(loss.detach()))
            if not np.isfinite(losses[-1]):
                raise InputError("the loss is not finite", source=f"step {step}", expected="a smaller rate")
            loss.backward()
            now = rate * 0.5 * (1 + float(np.cos(np.pi * done)))
            with torch.no_grad():
                for name, tensor in weights.items():
                    _adam(tensor, means[name], squares[name], now, step + 1)
            if (step + 1) % _TOLD == 0:
                report(f"step {step + 1} of {steps}: loss {np.mean(losses[-_TOLD:]):.4f}")
            if keep is not None and (step + 1) % keep_every == 0:
                keep(current())
        last = current()
        _measure(network, patches, batch, seed, min(_MEASURED, steps), device)
        final = _arrays(network.state_dict())
    model = SegmentationModel(
        config=config,
        weights=final,
        scale=scale,
        subjects=tuple((image.subject, image.label_hash) for image in images),
        seed=seed,
        steps=steps,
    )
    return Training(model=model, losses=tuple(losses), state=last)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work with one thread: its convolutions in space have other bits with more."""
    torch = optional_import("torch", "language")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _repeatable(device: str) -> Iterator[None]:
    """Let a GPU's library choose the same kernels each time."""
    cudnn = optional_import("torch", "language").backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    if device != "cpu":
        cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


@dataclass(frozen=True, eq=False)
class _Truth:
    """The classes of a batch: (B, classes, *spatial), and what is counted of them once."""

    wanted: Any
    known: Any
    count: int
    amounts: Any

    @classmethod
    def of(cls, truth: NDArray[np.int64], classes: int, device: str) -> _Truth:
        """Return it from classes (B, *spatial), with UNKNOWN where there is no label."""
        torch = optional_import("torch", "language")
        wanted = np.stack([truth == number for number in range(classes)], 1).astype(np.float32)
        amounts = wanted.sum((0, *range(2, wanted.ndim)), dtype=np.float64).astype(np.float32)
        known = (truth != UNKNOWN)[:, None].astype(np.float32)
        a, b, c = (torch.from_numpy(array).to(device) for array in (wanted, known, amounts))
        return cls(a, b, max(int(known.sum()), 1), c)


def _loss(outputs: Any, truth: _Truth, weighing: Any, auxiliary: float) -> Any:
    """Return the loss of the logits, and with a weight the mean of the heads'."""
    if not isinstance(outputs, list):
        return _one_loss(outputs, truth, weighing)
    heads = sum(_one_loss(one, truth, weighing) for one in outputs[1:]) / len(outputs[1:])
    return _one_loss(outputs[0], truth, weighing) + auxiliary * heads


def _one_loss(logits: Any, truth: _Truth, weighing: Any) -> Any:
    """Return cross-entropy, with a weight for each class, plus Dice loss over the batch."""
    logs = logits.log_softmax(1)
    over = (0, *range(2, logits.ndim))
    entropy = -((truth.wanted * logs).sum(over) * weighing).sum() / truth.count
    shares = logs.exp() * truth.known
    both, each = (truth.wanted * shares).sum(over), truth.amounts + shares.sum(over)
    there = truth.amounts > 0  # a class that the batch does not hold has no overlap to speak of
    dice = 1 - (2 * both + _SMOOTH) / (each + _SMOOTH)
    return entropy + (dice * there).sum() / there.sum().clamp(min=1)


def _adam(tensor: Any, mean: Any, square: Any, rate: float, step: int) -> None:
    """Move a weight by one step of AdamW; written out, as importing torch's takes seconds."""
    slope = tensor.grad
    mean.lerp_(slope, 1 - _KEEP[0])
    square.lerp_(slope * slope, 1 - _KEEP[1])
    root = (square / (1 - _KEEP[1] ** step)).sqrt_().add_(_LEAST_ROOT)
    tensor.mul_(1 - rate * _DECAY)
    tensor.addcdiv_(mean, root, value=-rate / (1 - _KEEP[0] ** step))
    tensor.grad = None


def _measure(network: Any, patches: Patches, batch: int, seed: int, count: int, device: str) -> None:
    """Measure the running statistics anew, with the last weights, as plain means over fresh patches."""
    torch = optional_import("torch", "language")
    norms = [module for module in network.modules() if hasattr(module, "running_mean")]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        for number in range(count):
            random = generator(seed, "statistics", str(number))
            seen, _ = patches.draw(batch, random, foreground=0.0, augment=False)
            network(torch.from_numpy(seen).to(device))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    network.eval()


def _rarity(config: NetworkConfig, shares: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the weight of each class at first: the root of how rare it is; 1 in the mean over voxels."""
    if not shares.all():
        names = (*(("background",) if config.background else ()), *config.labels)
        missing = [name for name, share in zip(names, shares, strict=True) if share == 0]
        raise InputError("no image has voxels of a class", value=", ".join(missing), expected="some of each")
    weights = shares**-0.5
    found: NDArray[np.float32] = (weights / (weights * shares).sum()).astype(np.float32)
    return found


def _arrays(tensors: Mapping[str, Any]) -> Arrays:
    """Return copies as arrays, without torch's counts of batches."""
    return {name: t.detach().cpu().numpy().copy() for name, t in tensors.items() if t.is_floating_point()}
