"""Input channels that come from a registration to an atlas, and their controls.

A registration of an atlas to a person tells how much larger or smaller each place is than in the atlas (the
logarithm of the Jacobian determinant) and how it is turned (the curl). Source: the use of both as channels
beside the images is from "Brain MR image segmentation using a convolutional network with Jacobian determinant
and curl vector" (arXiv 1811.04281). The abstract leaves open from which registration they are taken; here
from any :class:`~sagittal.volume.DisplacementField` on the person's grid [inference].

Nothing is normalised here. A network takes these channels on the scale of its training's cohort ("cohort"),
never on that of one image: divided by the person's own spread, a large deformation would look like a small
one.

Two controls tell what a gain means. Noise gives the network as many more channels, and nothing in them. The
atlas's own labels, brought to the person by the same field, are the anatomy that the field has met; if they
help as much, the gain is a registered atlas's and not the geometry's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.core.optional import optional_import
from sagittal.core.randomness import generator
from sagittal.volume import DisplacementField, Volume

__all__ = [
    "CURL",
    "JACOBIAN",
    "LOG_LIMIT",
    "Channels",
    "geometric_channels",
    "noise_channels",
    "prior_channels",
]

JACOBIAN, CURL = "jacobian", "curl"
"""Kinds of geometric channel."""
LOG_LIMIT = 1.5
"""Beyond this, log Jacobian determinants are cut off: a place 4.5 times as large, or as small."""

_CURLS = ("curl_x", "curl_y", "curl_z")


@dataclass(frozen=True, eq=False)
class Channels:
    """Channels with their names.

    Attributes:
        array: float32, (C, i, j, k).
        names: One for each channel.

    Raises:
        InputError: Another number of names, a name that stands twice, or values that are not finite.
    """

    array: NDArray[np.float32]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if (
            self.array.ndim != 4
            or len(self.array) != len(self.names)
            or len(set(self.names)) != len(self.names)
        ):
            raise InputError(
                "channels and their names do not match",
                value=f"shape {self.array.shape} and {', '.join(self.names)}",
                expected="(C, i, j, k) and C names that differ",
            )
        broken = [
            name for name, layer in zip(self.names, self.array, strict=True) if not np.isfinite(layer).all()
        ]
        if broken:
            raise InputError("a channel holds what is not finite", value=", ".join(broken))

    def beside(self, other: Channels) -> Channels:
        """Return these channels and then those of ``other``, which lie on the same grid."""
        if self.array.shape[1:] != other.array.shape[1:]:
            raise InputError(
                "channels lie on grids that differ",
                value=other.array.shape[1:],
                expected=str(self.array.shape[1:]),
            )
        return Channels(np.concatenate([self.array, other.array]), self.names + other.names)


def geometric_channels(field: DisplacementField, kinds: Iterable[str] = (JACOBIAN, CURL)) -> Channels:
    """Return how a map changes sizes and turns, at each place of its grid.

    Args:
        field: On the person's grid, from there into the atlas, as a registration with the person as fixed
            image gives it. It must not come from a registration that saw the person's labels.
        kinds: "jacobian" for the natural logarithm of the Jacobian determinant, cut off at
            ±:data:`LOG_LIMIT`: above 0 the atlas is larger there than the person. "curl" for the curl: in
            space three channels, its components to the patient's right, anterior and superior ("curl_x",
            "curl_y" and "curl_z"); in one slice one channel, its component along the slice's normal, twice
            the angle of a small turn. Of the two normals it is the one that points right, anterior or
            superior, whichever is nearest, and the channel is named after that axis.

    Returns:
        Without unit. Neither depends on the grid's spacing or directions.

    Raises:
        InputError: No kind, an unknown one, or one that is asked for twice.
    """
    wanted = tuple(kinds)
    if not wanted or len(set(wanted)) != len(wanted) or not set(wanted) <= {JACOBIAN, CURL}:
        raise InputError(
            "not the kinds of geometric channel",
            value=", ".join(wanted) or "none",
            expected=f"{JACOBIAN}, {CURL}",
        )
    layers: list[NDArray[np.float64]] = []
    names: list[str] = []
    for kind in wanted:
        if kind == JACOBIAN:
            found = field.log_jacobian(float(np.exp(-LOG_LIMIT))).array
            layers.append(np.minimum(found, LOG_LIMIT))
            names.append("jacobian")
        elif field.is_planar:
            normal = _normal(field)
            layers.append(np.tensordot(normal, field.curl(), 1))
            names.append(_CURLS[int(normal.argmax())])
        else:
            layers.extend(field.curl())
            names.extend(_CURLS)
    return Channels(np.stack(layers).astype(np.float32), tuple(names))


def noise_channels(
    shape: tuple[int, int, int], count: int, *, seed: int, subject: str, smooth: float = 0.0
) -> Channels:
    """Return channels of Gaussian noise with mean 0 and standard deviation 1: a control without content.

    Args:
        shape: Of the grid.
        count: How many.
        seed: Of the experiment.
        subject: Whose. The same seed and subject give the same noise; another subject other noise.
        smooth: Standard deviation in voxels of what smooths the noise along axes of more than one voxel, so
            that it is as smooth as the channels it stands in for; 0 for none.

    Raises:
        InputError: A count below 1 or a negative ``smooth``.
        MissingDependencyError: scipy is not installed, and noise is to be smooth.
    """
    if count < 1 or not smooth >= 0:
        raise InputError(
            "not a noise channel", value=f"{count}, smoothed by {smooth}", expected="1 or more, 0 or more"
        )
    layers = generator(seed, "noise channel", subject).standard_normal((count, *shape))
    if smooth > 0:
        ndimage = optional_import("scipy.ndimage")
        sigmas = (0, *(smooth if side > 1 else 0 for side in shape))
        layers = ndimage.gaussian_filter(layers, sigmas, mode="wrap")
        layers = layers / layers.std(axis=(1, 2, 3), keepdims=True)
    return Channels(layers.astype(np.float32), tuple(f"noise_{number}" for number in range(1, count + 1)))


def prior_channels(field: DisplacementField, atlas: Volume, classes: Mapping[str, int]) -> Channels:
    """Return an atlas's labels at each place of a person: one channel for each class, from 0 to 1.

    Args:
        field: On the person's grid, from there into the atlas.
        atlas: Whole-number labels on the atlas's grid.
        classes: The value of each label by its name.

    Returns:
        The share of the label around the place that the map leads to, by linear interpolation; 0 outside the
        atlas.

    Raises:
        InputError: No class, or one that the atlas does not hold.
        GeometryError: The field leads nowhere into the atlas.
    """
    missing = [name for name, value in classes.items() if not (atlas.array == value).any()]
    if missing or not classes:
        raise InputError(
            "the atlas does not hold the classes",
            value=", ".join(missing) or "none asked for",
            expected="some of each",
        )
    layers = [
        field.warp(atlas.with_array((atlas.array == value).astype(np.float32)), outside=0.0).array
        for value in classes.values()
    ]
    return Channels(np.stack(layers).astype(np.float32), tuple(f"atlas_{name}" for name in classes))


def _normal(field: DisplacementField) -> NDArray[np.float64]:
    """Return the unit normal of a slice, in RAS+; its largest component is positive."""
    axes = [axis for axis, count in enumerate(field.shape) if count > 1]
    if len(axes) != 2:
        raise InputError("a curl needs a slice or a volume", value=f"shape {field.shape}")
    first, second = field.geometry.affine[:3, axes[0]], field.geometry.affine[:3, axes[1]]
    across = np.cross(first, second)
    found: NDArray[np.float64] = across / np.linalg.norm(across) * np.sign(across[np.abs(across).argmax()])
    return found
