"""What the numbers of one CT slice say by themselves: air, soft tissue, bone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import
from sagittal.core.provenance import Measurement
from sagittal.segmentation.doubt import quantity
from sagittal.volume import Volume

__all__ = [
    "LEAST_NOISE_HU",
    "MATERIALS",
    "HounsfieldClasses",
    "SliceComposition",
    "mean_with_interval",
    "noise_sd",
]

MATERIALS = ("air", "soft tissue", "bone")
"""What a CT slice is divided into, by rising HU."""
_LOWEST_HU = -1100.0  # a voxel below was not scanned: scanners fill the corners with such numbers
_CORRELATION_MM = 1.7  # apart enough that a soft-tissue kernel leaves little noise in common
LEAST_NOISE_HU = 0.5
"""Noise that is assumed where less is measured, or where the variance says less: HU are whole numbers."""


@dataclass(frozen=True, kw_only=True)
class SliceComposition:
    """Areas inside the head's outline on one slice.

    Attributes:
        classes: Labels (1 air, 2 soft tissue, 3 bone, 0 outside) with their probabilities.
        outline: Area inside the outline, cm2; its interval moves the outline by the noise.
        areas: Area of each material inside the outline, cm2.
        soft_tissue: Mean of the voxels that are soft tissue, HU, by :func:`mean_with_interval`; None where
            there are none.
        noise: Standard deviation of the noise in soft tissue, HU; not below :data:`LEAST_NOISE_HU`. The
            median of the voxels' own where the image has a variance.
    """

    classes: Volume
    outline: Measurement
    areas: dict[str, Measurement]
    soft_tissue: Measurement | None
    noise: float


@dataclass(frozen=True, kw_only=True)
class HounsfieldClasses:
    """Classes by two thresholds, each voxel with the probability that noise leaves it.

    A voxel of ``h`` HU under noise of standard deviation ``s`` lies below a threshold ``t`` with
    probability ``Phi((t - h) / s)``. ``s`` is the voxel's own where the image has a variance, as a
    reconstruction has; else it is measured on the slice and the same everywhere. (A smoothing method
    leaves little to measure: its errors are shared by neighbours, and differences do not see them.)
    Partial volume is not in it: at an edge the voxel holds both materials, and the thresholds are a
    convention. The noise is in ``h`` already and counts once more, so a material close to its threshold
    reads low. [inference: the design is ours]

    Attributes:
        air_below: HU under which a voxel is air.
        bone_above: HU over which a voxel is bone.
        level: Coverage of the intervals.
    """

    air_below: float = -300.0
    bone_above: float = 300.0
    level: float = 0.9

    def __post_init__(self) -> None:
        if not self.air_below < self.bone_above:
            raise InputError("the thresholds are out of order", value=(self.air_below, self.bone_above))

    def measure(self, image: Volume) -> SliceComposition:
        """Measure one CT slice.

        Args:
            image: One slice, shape (i, j, 1), in HU.

        Raises:
            InputError: Not in HU, more than one slice, or nothing in it that is not air.
        """
        if image.unit != "HU":
            raise InputError("CT classes need Hounsfield units", value=image.unit, expected="HU")
        if image.shape[2] != 1:
            raise InputError("one slice is measured at a time", value=image.shape, expected="shape (i, j, 1)")
        ndimage, special = optional_import("scipy.ndimage"), optional_import("scipy.special")
        hu = image.array[..., 0].astype(np.float64)
        scanned = hu > _LOWEST_HU
        body = _largest(scanned & (hu > self.air_below))
        if not body.any():
            raise InputError("nothing on the slice is denser than air", value=f"maximum {hu.max()} HU")
        outline: NDArray[np.bool_] = ndimage.binary_fill_holes(body)
        spacing = image.geometry.spacing
        stride = max(1, round(_CORRELATION_MM / min(spacing[:2])))
        soft = body & (np.abs(hu) < 100)
        noise: NDArray[np.float64] | float
        if image.variance is None:
            noise = typical = max(noise_sd(hu, soft, stride=stride), LEAST_NOISE_HU)
        else:
            noise = np.maximum(np.sqrt(image.variance[..., 0].astype(np.float64)), LEAST_NOISE_HU)
            typical = float(np.median(noise[soft if soft.any() else body]))
        below_air = special.ndtr((self.air_below - hu) / noise)
        above_bone = special.ndtr((hu - self.bone_above) / noise)
        stack = np.stack([below_air, 1 - below_air - above_bone, above_bone], axis=-1)
        stack = np.where(outline[..., None], np.clip(stack, 0, 1), 0).astype(np.float32)
        size = spacing[0] * spacing[1] / 100
        inside_or_at_edge = ndimage.binary_dilation(outline)
        at_edge = np.where(outline, 1.0, np.where(inside_or_at_edge, 1 - below_air, 0.0))
        labels = np.where(outline, stack.argmax(axis=-1) + 1, 0).astype(np.uint8)
        middle = labels == 1 + MATERIALS.index("soft tissue")
        return SliceComposition(
            classes=image.with_array(
                labels[..., None], unit="1", probabilities=stack[:, :, None, :], classes=MATERIALS
            ),
            outline=quantity(at_edge, size=size, unit="cm2", level=self.level),
            areas={
                name: quantity(stack[..., index], size=size, unit="cm2", level=self.level)
                for index, name in enumerate(MATERIALS)
            },
            soft_tissue=mean_with_interval(
                hu[middle], np.broadcast_to(noise, hu.shape)[middle], unit="HU", level=self.level
            )
            if middle.any()
            else None,
            noise=typical,
        )


def mean_with_interval(
    values: NDArray[np.float64], sd: NDArray[np.float64], *, unit: str, level: float = 0.9
) -> Measurement:
    """Return the mean of voxels, with an interval that holds however their errors go together.

    A map of variances does not say how the errors of two voxels go together. In an image that was
    smoothed or regularised neighbours err nearly alike, so that dividing the sum of the variances by the
    square of their number would give a doubt that shrinks with the region and is far too small. The
    root of the expected square of a sum of errors is at most the sum of the voxels' own roots, whatever the
    covariances and shifts (the triangle inequality of the L2 norm), and equal to it where all err together.
    The mean's is therefore taken to be the mean of ``sd``: never too small where ``sd`` is right, and
    usually too large. [inference: the choice is ours]

    Args:
        values: One or more voxels.
        sd: Root of the expected square of each one's error: its standard deviation, where it has no shift.
        unit: Unit of both.
        level: Coverage of the interval under a Gaussian error.
    """
    value = math.fsum(values) / values.size
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.fsum(sd) / sd.size
    return Measurement(value=value, low=value - reach, high=value + reach, level=level, unit=unit)


def noise_sd(image: NDArray[np.float64], where: NDArray[np.bool_], *, stride: int = 1) -> float:
    """Return the standard deviation of the noise of a 2-D image, robustly, from a Laplacian difference.

    The kernel of Immerkaer (Computer Vision and Image Understanding 64:300, 1996), which is blind to
    planes and has a gain of 6 for white noise; the median absolute deviation stands for his mean, so
    that edges count little. Reconstruction kernels leave noise that neighbours share, which differences
    between neighbours do not see: the kernel's taps are therefore ``stride`` voxels apart.
    [inference: the stride is ours, and the 1.7 mm that HounsfieldClasses uses were chosen on one head CT
    slice, the demonstration's; what tissue varies over that distance is read as noise too]

    Args:
        image: Shape (i, j).
        where: Voxels to use, shape (i, j).
        stride: Distance of the taps, in voxels.

    Raises:
        InputError: Fewer than 100 voxels to use.
    """
    ndimage = optional_import("scipy.ndimage")
    width = 2 * stride + 1
    kernel = np.zeros((width, width))
    kernel[::stride, ::stride] = [[1, -2, 1], [-2, 4, -2], [1, -2, 1]]
    usable = ndimage.binary_erosion(where, structure=np.ones((width, width), dtype=bool))
    count = int(np.count_nonzero(usable))
    if count < 100:
        raise InputError(
            "too little even tissue to measure noise in", value=f"{count} voxels", expected="100"
        )
    residual = ndimage.convolve(image, kernel)[usable]
    return float(np.median(np.abs(residual))) / (0.6745 * 6)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, count = optional_import("scipy.ndimage").label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest: NDArray[np.bool_] = labels == sizes.argmax()
    return largest
