"""The layers of VoxResNet (Chen, Dou, Yu, Qin, Heng 2016, arXiv:1608.05895), in a plane or in space.

Its published size is ``width=32, depth=3``: 25 layers. Importing this module imports torch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sagittal.segmentation.networks import NetworkConfig

__all__ = ["VoxResNet"]

_RESIDUALS = 2  # modules a stage


class VoxResNet(nn.Module):
    """Two convolutions, then stages of a convolution of stride 2 and two residual modules; heads are summed.

    One head a resolution: a transposed convolution to full resolution. It gives the classes at once; in
    the paper it gives features, and a further 1x1x1 convolution the classes, with no bend between them, so
    that the maps it can be are the same. [inference]
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        flat = config.flat
        body = 2 * config.width
        self.first = _conv(flat, config.inputs, config.width)
        self.second = _Activated(flat, config.width, config.width)
        self.stages = nn.ModuleList(
            nn.Sequential(
                _Activated(flat, config.width if level == 0 else body, body, stride=2),
                *(_Residual(flat, body) for _ in range(_RESIDUALS)),
            )
            for level in range(config.depth)
        )
        self.heads = nn.ModuleList(
            _Head(flat, config.width if level == 0 else body, config.classes, 2**level)
            for level in range(config.depth + 1)
        )

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Return logits (B, classes, *spatial); in training a list: their sum, and each head's."""
        found = self.second(self.first(images))
        seen = [self.heads[0](found)]
        for stage, head in zip(self.stages, list(self.heads)[1:], strict=True):
            found = stage(found)
            seen.append(head(found))
        total = seen[0]
        for one in seen[1:]:
            total = total + one
        return [total, *seen] if self.training else total


class _Activated(nn.Module):
    """Norm, rectifier, convolution."""

    def __init__(self, flat: bool, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.norm = _norm(flat, inputs)
        self.conv = _conv(flat, inputs, outputs, stride)

    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = self.conv(torch.relu(self.norm(values)))
        return found


class _Residual(nn.Module):
    """VoxRes: twice norm, rectifier and convolution, beside the identity."""

    def __init__(self, flat: bool, channels: int) -> None:
        super().__init__()
        self.one = _Activated(flat, channels, channels)
        self.two = _Activated(flat, channels, channels)

    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = values + self.two(self.one(values))
        return found


class _Head(nn.Module):
    """Norm, rectifier, and a transposed convolution to full resolution and to the classes."""

    def __init__(self, flat: bool, inputs: int, classes: int, scale: int) -> None:
        super().__init__()
        self.norm = _norm(flat, inputs)
        if scale == 1:
            self.up: nn.Module = (nn.Conv2d if flat else nn.Conv3d)(inputs, classes, 1)
        else:
            kind = nn.ConvTranspose2d if flat else nn.ConvTranspose3d
            self.up = kind(inputs, classes, 2 * scale, stride=scale, padding=scale // 2)

    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = self.up(torch.relu(self.norm(values)))
        return found


def _conv(flat: bool, inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return (nn.Conv2d if flat else nn.Conv3d)(inputs, outputs, 3, stride=stride, padding=1)


def _norm(flat: bool, channels: int) -> nn.Module:
    return (nn.BatchNorm2d if flat else nn.BatchNorm3d)(channels)
