"""What a segmentation network is: its architecture, what it sees and what it names; and its layers.

Two architectures, in a plane, in a plane with its neighbours, or in space: VoxResNet (Chen, Dou, Yu, Qin,
Heng 2016, arXiv:1608.05895) and a U-Net of residual blocks (MONAI's DynUNet).

Both normalise over batch and space ("batch norm"), as VoxResNet does. The statistics of one patch in space
run over its voxels, so that a batch of 1 is well defined; they are measured anew, over many patches, when a
training ends. A norm over each image alone (instance, group) would need no statistics, but then what a voxel
is called would depend on the window that it is seen in. So the trained network is one fixed function of a
voxel's surroundings, and windows of any size may be used. [inference: the choice is ours]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import ModelError
from sagittal.core.optional import optional_import
from sagittal.core.randomness import generator

__all__ = ["ARCHITECTURES", "NetworkConfig", "build_network", "initial_weights"]

ARCHITECTURES = ("voxresnet", "residual-unet")
_DIMENSIONS = (2, "2.5", 3)
_INTENSITIES = ("t1", "t1-ir", "t2", "flair", "pd")
_NORMALISATIONS = ("image", "cohort", "none")
_FEATURES = 1 << 10  # channels in the widest layer, at most


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Everything that a network is, apart from its weights.

    Attributes:
        architecture: One of :data:`ARCHITECTURES`.
        dimensions: 2: slice by slice; "2.5": a slice with its neighbours as further channels; 3: in space.
        channels: What it sees, in order, such as ("t1", "jacobian", "curl_x", "curl_y", "curl_z").
        labels: What it names, in order, such as ("csf", "gm", "wm"); label 1 is the first.
        background: Whether a voxel of the brain may be none of the labels. If not, the probabilities of the
            labels sum to 1 in the brain.
        width: Channels at full resolution; twice as many below (VoxResNet), or at each level (U-Net).
        depth: How often the resolution is halved; twice or more in the U-Net.
        spacing_mm: Voxel widths of the grid that it sees, along i, j and k.
        patch: Voxels that one step of training sees, 2 sides in a plane, 3 in space; multiples of
            2**depth. Inference may take other windows.
        axis: Across the slices (not in 3-D).
        neighbours: Slices on either side ("2.5" only).
        normalisation: For each channel "image": mean 0 and variance 1 over each image's brain; "cohort": over
            all brains of training, which leaves what differs between people; "none". By default "image" for
            an MR contrast by its name, and "cohort" for anything else.

    Raises:
        ModelError: A value that is none of these.
    """

    architecture: str = "voxresnet"
    dimensions: Literal[2, "2.5", 3] = 3
    channels: tuple[str, ...] = ("t1",)
    labels: tuple[str, ...] = ("csf", "gm", "wm")
    background: bool = False
    width: int = 16
    depth: int = 3
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    patch: tuple[int, ...] = (64, 64, 64)
    axis: int = 2
    neighbours: int = 1
    normalisation: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("channels", "labels", "spacing_mm", "patch", "normalisation"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.normalisation:
            usual = tuple("image" if name in _INTENSITIES else "cohort" for name in self.channels)
            object.__setattr__(self, "normalisation", usual)
        least = 2 if self.architecture == "residual-unet" else 1  # MONAI's
        block, sides = 2**self.depth, 3 if self.dimensions == 3 else 2
        checks: dict[str, tuple[bool, str]] = {
            "architecture": (self.architecture in ARCHITECTURES, ", ".join(ARCHITECTURES)),
            "dimensions": (self.dimensions in _DIMENSIONS, '2, "2.5" or 3'),
            "channels": (_names(self.channels), "one name or more, none twice"),
            "labels": (_names(self.labels) and self.classes >= 2, "two classes or more, none twice"),
            "width": (1 <= self.width <= _FEATURES, f"1 to {_FEATURES}"),
            "depth": (least <= self.depth <= 6, f"{least} to 6"),
            "spacing_mm": (
                len(self.spacing_mm) == 3 and all(math.isfinite(s) and s > 0 for s in self.spacing_mm),
                "three voxel widths in mm",
            ),
            "patch": (
                len(self.patch) == sides and all(n > 0 and n % block == 0 for n in self.patch),
                f"{sides} multiples of {block}",
            ),
            "axis": (self.axis in (0, 1, 2), "0, 1 or 2"),
            "neighbours": (self.neighbours >= 1, "1 or more"),
            "normalisation": (
                len(self.normalisation) == len(self.channels)
                and all(kind in _NORMALISATIONS for kind in self.normalisation),
                f"for each channel one of {', '.join(_NORMALISATIONS)}",
            ),
        }
        for name, (fits, expected) in checks.items():
            if not fits:
                raise ModelError(
                    "a network cannot be so", source=name, value=getattr(self, name), expected=expected
                )

    @property
    def classes(self) -> int:
        """How many classes the network tells apart: the labels, and the background where there is one."""
        return len(self.labels) + int(self.background)

    @property
    def inputs(self) -> int:
        """How many planes or images enter it: each channel, with its neighbours in 2.5-D."""
        return len(self.channels) * (2 * self.neighbours + 1 if self.dimensions == "2.5" else 1)

    @property
    def flat(self) -> bool:
        """Whether it works slice by slice."""
        return self.dimensions != 3

    @property
    def window(self) -> tuple[int, int, int]:
        """The patch along i, j and k: one voxel across the slices where it works slice by slice."""
        sides = list(self.patch)
        if self.flat:
            sides.insert(self.axis, 1)
        i, j, k = sides
        return i, j, k

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> NetworkConfig:
        """Rebuild a configuration from :meth:`to_json`.

        Raises:
            ModelError: A field that there is not, or a value that does not fit.
        """
        try:
            fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in value.items()}
            return cls(**fields)
        except TypeError as error:
            raise ModelError("this is no configuration of a network", value=str(error)) from error


def build_network(config: NetworkConfig, weights: Mapping[str, NDArray[Any]] | None = None) -> Any:
    """Return the layers as a ``torch.nn.Module``, in inference mode.

    It maps (B, inputs, *spatial), sides multiples of 2**depth, to logits (B, classes, *spatial). While it is
    in training mode it returns a list: the logits, then those of each auxiliary head at full resolution
    (VoxResNet's four; the U-Net has none).

    Args:
        config: What to build.
        weights: Arrays by name, as ``state_dict`` names them; by default :func:`initial_weights` of seed 0.

    Raises:
        ModelError: Weights of another network.
        MissingDependencyError: torch, or for the U-Net MONAI, is not installed.
    """
    torch = optional_import("torch", "language")
    if config.architecture == "voxresnet":
        module = optional_import("sagittal.segmentation.voxresnet", "language").VoxResNet(config)
    else:
        module = _residual_unet(config)
    wanted = {name: tuple(t.shape) for name, t in module.state_dict().items() if t.is_floating_point()}
    given = initial_weights(wanted, 0) if weights is None else weights
    found = {name: tuple(array.shape) for name, array in given.items()}
    if found != wanted:
        odd = sorted(set(wanted.items()) ^ set(found.items()))
        raise ModelError(
            "the weights are those of another network", value=f"{len(odd)} that do not fit, as {odd[0]}"
        )
    own = module.state_dict()
    for name, array in given.items():
        own[name].copy_(torch.from_numpy(np.array(array, np.float32)))
    return module.eval()


def initial_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, NDArray[np.float32]]:
    """Return weights that follow from a seed, whatever the order of the layers.

    Kernels are drawn as He, Zhang, Ren, Sun 2015 say; a norm leaves its input as it is.

    Args:
        shapes: Of each weight and running statistic, by its name.
        seed: Of the draw.
    """
    found = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            sd = math.sqrt(2 / math.prod(shape[1:]))
            found[name] = generator(seed, "weights", name).normal(0, sd, shape).astype(np.float32)
        elif name.endswith(("weight", "running_var")):
            found[name] = np.ones(shape, np.float32)
        else:
            found[name] = np.zeros(shape, np.float32)
    return found


def _residual_unet(config: NetworkConfig) -> Any:
    """MONAI's U-Net of residual blocks, with twice the channels at each level."""
    nets = optional_import("monai.networks.nets.dynunet", "all")
    levels = config.depth + 1
    strides = [1] + [2] * config.depth
    return nets.DynUNet(
        spatial_dims=2 if config.flat else 3,
        in_channels=config.inputs,
        out_channels=config.classes,
        kernel_size=[3] * levels,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=[min(config.width * 2**level, _FEATURES) for level in range(levels)],
        norm_name="batch",
        res_block=True,
    )


def _names(names: tuple[str, ...]) -> bool:
    return bool(names) and all(names) and len(set(names)) == len(names)
