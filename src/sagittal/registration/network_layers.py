"""The layers of a registration network, and the grids it works on; in torch, differentiable.

Written with torch's functions and not with its module classes: torch is optional, and the weights are then
one table of arrays, which is what a file holds.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import GeometryError
from sagittal.core.optional import optional_import
from sagittal.core.randomness import generator
from sagittal.volume import Geometry
from sagittal.volume.field_calculus import Array, combine, curl, log_jacobian
from sagittal.volume.field_maps import exponentiate, places, sample

__all__ = ["EXTRAS", "Frame", "extra_count", "initial_weights", "layer_shapes", "one_thread", "velocity_of"]

_SLOPE = 0.2  # of the leaky rectifiers
_DEPTH = 4  # times that the resolution is halved
_WIDEST = 3.0  # images' voxels over the network's: detail that it learned from is not there
_PARALLEL = 0.9999  # cosine between two slices
_LARGEST_LOG = 1.5  # a growth of 4.5, or a shrinking

EXTRAS: dict[str, Callable[[Array, Array], Array]] = {
    "jacobian-curl": lambda growth, turning: _joined(growth, turning),
    "zeros": lambda growth, turning: _joined(growth, turning) * 0,
}
"""Channels of a second stage, from log Jacobian determinant and curl of the first; "zeros" is the control."""


@dataclass(frozen=True)
class Frame:
    """The grid on which images enter the network, and the one of half the resolution of its velocity.

    Attributes:
        whole: The images' grid: its sides are multiples of 16 voxels, but for the one of a slice.
    """

    whole: Geometry

    @classmethod
    def around(cls, trained: Geometry, fixed: Geometry) -> Frame:
        """Return the frame around a fixed image with the directions and the voxels of another grid.

        Where the two are one grid, its first voxel stays the first. An image elsewhere, of another size, or
        turned is met on a grid that covers its box; how finely it was sampled does not matter, as long as it
        is not far coarser than what the network was trained on.

        Raises:
            GeometryError: One is a slice and the other is not, the slices are not parallel, or the image's
                voxels are more than three times as wide.
        """
        flat = [[axis for axis in range(3) if grid.shape[axis] == 1] for grid in (trained, fixed)]
        if len(flat[0]) != len(flat[1]):
            raise GeometryError(
                "the network was trained for another number of dimensions",
                value=f"an image of {3 - len(flat[1])}",
                expected=str(3 - len(flat[0])),
            )
        if flat[0]:
            rows = [
                np.linalg.inv(g.affine[:3, :3])[f[0]] for g, f in zip((trained, fixed), flat, strict=True)
            ]
            cosine = abs(float(rows[0] @ rows[1])) / float(np.prod([np.linalg.norm(row) for row in rows]))
            if cosine < _PARALLEL:
                raise GeometryError(
                    "the slice is not parallel to those that the network was trained on",
                    value=f"{np.degrees(np.arccos(cosine)):.3g} degrees",
                    expected="0",
                )
        steps = [max(s for s, n in zip(g.spacing, g.shape, strict=True) if n > 1) for g in (trained, fixed)]
        if steps[1] > _WIDEST * steps[0]:
            raise GeometryError(
                "the image is far coarser than those that the network was trained on",
                value=f"{steps[1]:.3g} mm",
                expected=f"at most {_WIDEST * steps[0]:.3g} mm",
            )
        if fixed == trained:
            low, count = np.zeros(3), np.array(trained.shape)
        else:
            faces = itertools.product(*((-0.5, size - 0.5) for size in fixed.shape))
            found = trained.world_to_index(fixed.index_to_world(list(faces)))
            low, high = found.min(axis=0) + 0.5, found.max(axis=0) - 0.5
            count = np.maximum(np.ceil(high - low - 1e-6).astype(int) + 1, 1)
            if flat[0]:  # the slice's own plane
                low[flat[0][0]], count[flat[0][0]] = found[:, flat[0][0]].mean(), 1
        block = 2**_DEPTH
        shape = [
            int(n) if trained.shape[axis] == 1 else -(-int(n) // block) * block
            for axis, n in enumerate(count)
        ]
        affine = trained.affine.copy()
        affine[:3, 3] = trained.index_to_world(low)
        return cls(Geometry((shape[0], shape[1], shape[2]), affine))

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes along which there is more than one voxel."""
        return tuple(axis for axis, count in enumerate(self.whole.shape) if count > 1)

    @cached_property
    def half(self) -> Geometry:
        """The grid of the velocity: over the same box."""
        ratio = np.array([2 if axis in self.axes else 1 for axis in range(3)])
        affine = self.whole.affine.copy()
        affine[:3, :3] *= ratio
        affine[:3, 3] = self.whole.index_to_world((ratio - 1) / 2)
        i, j, k = (np.array(self.whole.shape) // ratio).tolist()
        return Geometry((i, j, k), affine)

    def vectors(self, steps: Array) -> Array:
        """Return velocities in mm, (B, 3, i, j, k) in RAS+, from those in voxels of the whole grid.

        Args:
            steps: Shape (B, axes, ...), as the network gives them.
        """
        flat = [axis for axis in range(3) if axis not in self.axes]
        layers = [layer.unsqueeze(1 + flat[0]) if flat else layer for layer in steps.unbind(1)]
        matrix = self.whole.affine[:3, :3][:, list(self.axes)]
        return optional_import("torch", "language").stack([combine(row, layers) for row in matrix], 1)

    def moved(self, velocity: Array) -> Array:
        """Return the displacement that a velocity on the half grid leads to, on the whole grid."""
        found = exponentiate(velocity, self.half.affine)
        still = np.zeros((3, *self.whole.shape), np.float32)
        index = places(still, self.whole.affine, self.half.affine)
        return sample(found, optional_import("torch", "language").from_numpy(index))

    def warped(self, images: Array, displacement: Array) -> Array:
        """Return images of shape (B, C, i, j, k) on the whole grid at x + displacement(x)."""
        return sample(images, places(displacement, self.whole.affine))

    def described(self, displacement: Array) -> tuple[Array, Array]:
        """Return log Jacobian determinant and curl, (B, 1 and 3 or 1, i, j, k), of displacements.

        The logarithm is cut off at 1.5 either way. In a slice the curl is its part across the slice.
        """
        affine = self.whole.affine
        growth = log_jacobian(displacement, affine).clip(-_LARGEST_LOG, _LARGEST_LOG).unsqueeze(1)
        turning = curl(displacement, affine)
        if len(self.axes) == 2:
            flat = ({0, 1, 2} - set(self.axes)).pop()
            normal = np.linalg.inv(affine[:3, :3])[flat]
            turning = combine(normal / np.linalg.norm(normal), list(turning.unbind(1))).unsqueeze(1)
        return growth, turning

    def flattened(self, channels: Array) -> Array:
        """Return channels without the axis of a single voxel: (B, C, ...)."""
        flat = [axis for axis in range(3) if axis not in self.axes]
        return channels.squeeze(2 + flat[0]) if flat else channels


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


def extra_count(extra: str | None, dimensions: int) -> int:
    """Return how many channels a second stage has beside the two images."""
    return 0 if extra is None else (2 if dimensions == 2 else 4)


def layer_shapes(width: int, inputs: int, dimensions: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight: of ``width`` channels at half resolution, of twice as many below.

    Four convolutions of stride 2 lead down and as many of stride 1 up again, to half the resolution, with
    what was there on the way down; one more, and the velocity. Source: Balakrishnan et al. 2019 (VoxelMorph),
    whose width is 16; without its layers at full resolution, as the velocity has half (Dalca et al. 2019).
    """
    deep = 2 * width
    plan = [
        ("down1", inputs, width),
        *((f"down{n}", deep if n > 2 else width, deep) for n in range(2, _DEPTH + 1)),
    ]
    plan += [
        ("up4", deep, deep),
        ("up3", 2 * deep, deep),
        ("up2", 2 * deep, deep),
        ("up1", deep + width, deep),
    ]
    plan += [("last", deep, width), ("velocity", width, dimensions)]
    shapes: dict[str, tuple[int, ...]] = {}
    for name, into, out in plan:
        shapes[f"{name}.weight"] = (out, into, *(3 for _ in range(dimensions)))
        shapes[f"{name}.bias"] = (out,)
    return shapes


def initial_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, NDArray[np.float32]]:
    """Return weights that follow from a seed; those of the velocity are 0, so that nothing moves at first.

    Source of the others: He, Zhang, Ren, Sun 2015.
    """
    found = {}
    for name, shape in shapes.items():
        if name.endswith(".bias") or name.startswith("velocity."):
            found[name] = np.zeros(shape, np.float32)
        else:
            sd = np.sqrt(2 / ((1 + _SLOPE**2) * np.prod(shape[1:])))
            found[name] = generator(seed, "weights", name).normal(0, sd, shape).astype(np.float32)
    return found


def velocity_of(weights: Mapping[str, Array], channels: Array) -> Array:
    """Return the velocity, in voxels, that a network sees in channels.

    Args:
        weights: Tensors by name, as :func:`layer_shapes` says.
        channels: Shape (B, C, i, j) or (B, C, i, j, k); sides are multiples of 16.

    Returns:
        Shape (B, 2, i/2, j/2) or (B, 3, i/2, j/2, k/2).
    """
    functional = optional_import("torch.nn.functional", "language")
    torch = optional_import("torch", "language")
    convolve = functional.conv2d if channels.ndim == 4 else functional.conv3d

    def layer(name: str, values: Array, stride: int = 1) -> Array:
        found = convolve(values, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=stride, padding=1)
        return found if name == "velocity" else functional.leaky_relu(found, _SLOPE)

    kept = [channels]
    for level in range(1, _DEPTH + 1):
        kept.append(layer(f"down{level}", kept[-1], stride=2))
    found = layer(f"up{_DEPTH}", kept[_DEPTH])
    for level in range(_DEPTH - 1, 0, -1):
        found = functional.interpolate(found, scale_factor=2, mode="nearest")
        found = layer(f"up{level}", torch.cat([found, kept[level]], 1))
    return layer("velocity", layer("last", found))


def _joined(*channels: Array) -> Array:
    return optional_import("torch", "language").cat(channels, 1)
