"""An atlas of several images: the shape that they deviate from by nothing on average, and their mean in it.

Each image is brought to a template, at first one of the images themselves. The maps that do so are averaged:
their affine parts in the group of affine maps, the rest by Jacobian determinant and curl. The average leads
from the template to the mean shape; there the images are averaged, which makes the next template. Source:
Zhu, Zhou, Liao and Yuan 2019 for the use of the average transformation; Chen and Liao, arXiv 1611.03946, for
the average; the iteration and the handling of the affine part are ours [inference].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import GeometryError, InputError
from sagittal.registration.average import average_transformation, mean_affine
from sagittal.registration.levels import coarsened, normalised
from sagittal.registration.optimise import register
from sagittal.registration.variational import Report, silent
from sagittal.volume import DisplacementField, Geometry, Volume
from sagittal.volume.field_calculus import combine, gradient
from sagittal.volume.field_maps import inside, places

__all__ = [
    "Atlas",
    "Average",
    "Found",
    "Round",
    "build_atlas",
    "gradient_energy",
    "jacobian_average",
]

_HEAD = 0.1  # of the brightest: what is darker is not counted as part of the body
_MANY = 1 << 18  # voxels above which the average is constructed on a coarser grid
_FEWEST = 2


class Found(Protocol):
    """What a registration has to tell, as :class:`sagittal.registration.Registration` does."""

    @property
    def field(self) -> DisplacementField:
        """From the template's grid into the image's space."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """The affine part of the field, (4, 4)."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What speaks against it; empty where nothing does."""


Average = Callable[[Sequence[DisplacementField]], DisplacementField]


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one template was worth: figures over the body, of all images brought to it.

    Attributes:
        displacement_mm: Mean distance from a point of the template to where it lies in an image.
        deformation_mm: The same without the affine parts.
        log_jacobian: Mean logarithm of the Jacobian determinant; below 0 the template is larger than the
            images are.
        moved_mm: Mean distance by which the average moves the template.
        left_out: Name of each image whose registration has problems, and what they are.
    """

    displacement_mm: float
    deformation_mm: float
    log_jacobian: float
    moved_mm: float
    left_out: dict[str, tuple[str, ...]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Atlas:
    """An atlas.

    Attributes:
        image: Mean of the images, each from 0 to 1; its variance is that between the images.
        labels: Most common label, with the share of the images that have each as its probability.
        plain: Mean of the images after affine registration alone, in the same pose: what it is to be
            sharper than.
        fields: From the atlas into each image's space; absent where the image was left out.
        rounds: The figures of each template, the first being one of the images.
        centred: The figures of the atlas itself, by the maps of the last round carried to it.
    """

    image: Volume
    labels: Volume | None
    plain: Volume
    fields: tuple[DisplacementField | None, ...]
    rounds: tuple[Round, ...]
    centred: Round


def jacobian_average(fields: Sequence[DisplacementField]) -> DisplacementField:
    """Return :func:`average_transformation` of fields, on a grid that it can be had on in seconds.

    The fields are smooth: on a fine grid, the mean displacement is corrected by what the construction
    changes on a coarser one.
    """
    grid = fields[0].geometry
    coarse = grid
    while np.prod(coarse.shape) > _MANY:
        coarse = coarsened(
            coarse, 1.25 * min(s for s, n in zip(coarse.spacing, coarse.shape, strict=True) if n > 1)
        )
    if coarse is grid:
        return average_transformation(fields).field
    few = [field.resample(coarse) for field in fields]
    change = average_transformation(few).field.vectors - _mean_vectors(few)
    correction = DisplacementField(change, coarse).resample(grid)
    return DisplacementField(_mean_vectors(fields) + correction.vectors, grid)


def build_atlas(
    subjects: Sequence[Volume],
    *,
    labels: Sequence[Volume] | None = None,
    names: Sequence[str] | None = None,
    start: int = 0,
    iterations: int = 3,
    registered: Callable[[Volume, Volume], Found] = register,
    average: Average = jacobian_average,
    report: Report = silent,
) -> Atlas:
    """Build an atlas of images that show the same anatomy, in the mean pose, size and shape.

    An image whose registration has problems is left out of that round and tried again in the next: one
    failure among many does not cost the rest, and each is told.

    Args:
        subjects: Two or more, of one modality; their grids may differ.
        labels: Whole numbers for each subject, on grids of their own; 0 is the background.
        names: What to call the subjects; by default their numbers, from 1.
        start: Which subject is the first template. Its voxels' width and directions are the atlas's.
        iterations: How many templates; the first is that subject.
        registered: Brings the first image to the second; :func:`register` or something that keeps what it
            finds, so that a later call with the same images is quick.
        average: Of maps on one grid whose affine part has been taken away.
        report: Is told each registration.

    Raises:
        InputError: Fewer than two subjects, or fewer than two without problems; a constant image; labels
            that are not one for each subject; no iteration; a start that is none of the subjects.
        GeometryError: Slices among volumes; images that do not overlap.
        MissingDependencyError: torch or scipy is not installed.
    """
    names = [str(number + 1) for number in range(len(subjects))] if names is None else list(names)
    _check(subjects, labels, names, start, iterations)
    images = [
        subject.with_array(normalised(subject, name), unit="1")
        for subject, name in zip(subjects, names, strict=True)
    ]
    template, rounds, plain = images[start], [], None
    for number in range(iterations):
        maps: list[tuple[DisplacementField, NDArray[np.float64]] | None] = []
        left_out = {}
        for place, (image, name) in enumerate(zip(images, names, strict=True)):
            report(f"template {number + 1} of {iterations}: {name}, {place + 1} of {len(images)}")
            if number == 0 and place == start:
                maps.append((DisplacementField.identity(template.geometry), np.eye(4)))
                continue
            try:
                found = registered(image, template)
            except GeometryError as error:
                raise GeometryError(
                    error.problem, source=name, value=error.value, expected=error.expected
                ) from error
            if found.problems:
                left_out[name] = tuple(found.problems)
            maps.append(None if found.problems else (found.field, found.affine))
        kept = [one for one in maps if one is not None]
        if len(kept) < _FEWEST:
            raise InputError(
                "hardly a subject can be brought to the template",
                source=f"template {number + 1}",
                value="; ".join(f"{name}: {', '.join(why)}" for name, why in left_out.items()),
                expected="images of one anatomy and modality, or another start",
            )
        back, middle = _mean_shape(kept, template.geometry, average)
        before = template
        carried = [None if one is None else (_carried(one[0], back), one[1] @ middle) for one in maps]
        whole = [None if one is None else one[0] for one in carried]
        template = _mean_image(images, whole)
        rounds.append(_round(kept, before, _away(back, _body(template.array)), left_out))
        if plain is None:
            flat = [DisplacementField.from_affine(one[1], template.geometry) for one in carried if one]
            used = [image for image, one in zip(images, carried, strict=True) if one]
            plain = _mean_image(used, flat)
    assert plain is not None
    centred = _round([one for one in carried if one is not None], template, 0.0, left_out)
    shares = None if labels is None else _mean_labels(labels, whole, template.geometry)
    return Atlas(
        image=template,
        labels=shares,
        plain=plain,
        fields=tuple(whole),
        rounds=tuple(rounds),
        centred=centred,
    )


def gradient_energy(image: Volume) -> float:
    """Return how sharp an image is: mean squared length of its gradient over the body, per mm2."""
    slopes = gradient(image.array.astype(np.float64), image.geometry.affine)
    squares: NDArray[np.float64] = sum((slope * slope for slope in slopes), np.zeros(image.shape))
    return float(squares[_body(image.array)].mean())


def _check(
    subjects: Sequence[Volume],
    labels: Sequence[Volume] | None,
    names: Sequence[str],
    start: int,
    iterations: int,
) -> None:
    if len(subjects) < _FEWEST:
        raise InputError("an atlas needs several subjects", value=len(subjects), expected="2 or more")
    for what, given in (("names", names), ("labels", labels)):
        if given is not None and len(given) != len(subjects):
            raise InputError(f"not as many {what} as subjects", value=len(given), expected=str(len(subjects)))
    if not 0 <= start < len(subjects):
        raise InputError("there is no such subject to start from", value=start)
    if iterations < 1:
        raise InputError("not a number of iterations", value=iterations, expected="1 or more")
    thin = [min(subject.shape) == 1 for subject in subjects]
    for one, name in zip(thin, names, strict=True):
        if one != thin[start]:
            kinds = ("a volume", "a slice")
            raise GeometryError(
                "slices and volumes have no atlas in common",
                source=name,
                value=kinds[one],
                expected=f"{kinds[thin[start]]}, as {names[start]}",
            )
    for image, name in zip(labels or (), names, strict=False):
        if image.array.dtype.kind == "f" and (image.array != np.rint(image.array)).any():
            raise InputError("labels are not whole numbers", source=name)


def _mean_shape(
    maps: Sequence[tuple[DisplacementField, NDArray[np.float64]]], grid: Geometry, average: Average
) -> tuple[DisplacementField, NDArray[np.float64]]:
    """Return the map from the mean shape's grid to the template, and the inverse of its affine part."""
    middle = mean_affine([matrix for _, matrix in maps])
    rest = [_after(_inverse(matrix), field) for field, matrix in maps]
    bent = average(rest).invert(tolerance_mm=1e-3 * max(grid.spacing)).field
    home = _inverse(middle)
    straight = DisplacementField.from_affine(home, _moved(grid, middle))
    return bent.compose(straight), home


def _carried(field: DisplacementField, back: DisplacementField) -> DisplacementField:
    found = field.compose(back)
    return DisplacementField(found.vectors.astype(np.float32), found.geometry)


def _inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def _after(matrix: NDArray[np.float64], field: DisplacementField) -> DisplacementField:
    """Return the affine map applied to where a field leads."""
    linear = DisplacementField.from_affine(matrix, field.geometry).vectors
    turned = np.stack([combine(row, list(field.vectors)) for row in matrix[:3, :3]])
    return DisplacementField((linear + turned).astype(np.float32), field.geometry)


def _moved(grid: Geometry, matrix: NDArray[np.float64]) -> Geometry:
    """Return a grid of the same voxels and directions over where an affine map brings a grid's box."""
    ends = np.array([[0, count - 1] for count in grid.shape])
    corners = grid.index_to_world(np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3))
    index = grid.world_to_index(corners @ matrix[:3, :3].T + matrix[:3, 3])
    low, high = index.min(axis=0), index.max(axis=0)
    shape = [
        1 if count == 1 else round(float(wide)) + 1
        for count, wide in zip(grid.shape, high - low, strict=True)
    ]
    affine = grid.affine.copy()
    affine[:3, 3] = grid.index_to_world((low + high) / 2 - (np.array(shape) - 1) / 2)
    return Geometry((shape[0], shape[1], shape[2]), affine)


def _mean_image(images: Sequence[Volume], fields: Sequence[DisplacementField | None]) -> Volume:
    """Return the mean and the variance of those that reach each voxel; 0 where none does."""
    pairs = [(image, field) for image, field in zip(images, fields, strict=True) if field is not None]
    grid = pairs[0][1].geometry
    count, mean, squares = (np.zeros(grid.shape) for _ in range(3))
    for image, field in pairs:
        seen = inside(places(field.vectors, grid.affine, image.geometry.affine), image.shape)
        warped = field.warp(image, outside=0.0).array.astype(np.float64)
        count += seen
        step = np.where(seen, warped - mean, 0.0)
        mean += step / np.maximum(count, 1)
        squares += step * np.where(seen, warped - mean, 0.0)
    variance = squares / np.maximum(count - 1, 1)
    return Volume(mean.astype(np.float32), grid, variance=variance.astype(np.float32))


def _mean_labels(
    labels: Sequence[Volume], fields: Sequence[DisplacementField | None], grid: Geometry
) -> Volume:
    """Return the share of the subjects that have each label in each voxel."""
    pairs = [(one, field) for one, field in zip(labels, fields, strict=True) if field is not None]
    values = sorted({int(value) for one, _ in pairs for value in np.unique(one.array)} - {0})
    if not values:
        raise InputError("there are no labels", value="only 0", expected="whole numbers above it")
    shares = np.zeros((*grid.shape, len(values)), dtype=np.float32)
    for one, field in pairs:
        present = set(np.unique(one.array).astype(int).tolist())
        for place, value in enumerate(values):
            if value in present:
                mask = one.with_array((one.array == value).astype(np.float32), unit="1")
                shares[..., place] += field.warp(mask, outside=0.0).array / len(pairs)
    shares = np.clip(shares, 0, 1)
    rest = 1 - shares.sum(axis=-1)
    best = np.array(values)[shares.argmax(axis=-1)]
    common = np.where(shares.max(axis=-1) > rest, best, 0)
    return Volume(
        common.astype(np.min_scalar_type(max(values)) if min(values) >= 0 else np.int32),
        grid,
        probabilities=shares,
        classes=tuple(str(value) for value in values),
    )


def _round(
    maps: Sequence[tuple[DisplacementField, NDArray[np.float64]]],
    template: Volume,
    moved: float,
    left_out: dict[str, tuple[str, ...]],
) -> Round:
    body = _body(template.array)
    whole = [_away(field, body) for field, _ in maps]
    rest = [_away(_after(_inverse(matrix), field), body) for field, matrix in maps]
    growth = [float(field.log_jacobian().array[body].mean(dtype=np.float64)) for field, _ in maps]
    means = [float(np.mean(values)) for values in (whole, rest, growth)]
    return Round(
        displacement_mm=means[0],
        deformation_mm=means[1],
        log_jacobian=means[2],
        moved_mm=moved,
        left_out=dict(left_out),
    )


def _body(image: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(image > _HEAD * image.max())


def _away(field: DisplacementField, body: NDArray[np.bool_]) -> float:
    return float(field.magnitude[body].mean()) if body.any() else 0.0


def _mean_vectors(fields: Sequence[DisplacementField]) -> NDArray[np.float64]:
    total = np.zeros((3, *fields[0].shape))
    for field in fields:
        total += field.vectors / len(fields)
    return total
