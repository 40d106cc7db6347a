"""Register a case's head to an atlas, and bring the atlas's labels over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sagittal.case.record import FindingDraft
from sagittal.core import assets
from sagittal.core.errors import GeometryError, InputError
from sagittal.core.files import sha256_file, storage_errors
from sagittal.core.provenance import Measurement, hash_array, hash_json
from sagittal.volume import (
    DisplacementField,
    Geometry,
    Volume,
    read_volume,
    require_same_space,
)
from sagittal.workflow.artifacts import Kind
from sagittal.workflow.map_files import file_fields, map_files
from sagittal.workflow.step import Context, Result, Step

if TYPE_CHECKING:
    from sagittal.registration import Registration

__all__ = ["DEFAULT_ATLAS", "RegisterToAtlas", "image_hash", "to_atlas"]

DEFAULT_ATLAS = "mni152-t1"
_TEMPLATE_MAPS = {"gm": "mni152-gm", "wm": "mni152-wm"}
_NAMES = {"csf": "cerebrospinal fluid", "gm": "grey matter", "wm": "white matter"}
_TIED = 2.4  # voxels over which errors go together; fitted on simulated warps of the MNI152 template
_BEYOND = 1.96
_FEW = 8  # classes that are findings one by one
_INSIDE = 0.1  # of the brightest voxels: what belongs to the head
_CARRIED = (
    "Carried over from the atlas, not measured on the image: what this anatomy has and the atlas lacks is "
    "not in it."
)
_INTERVAL = "The interval is that of the map's volume change, all places taken to err together."


@dataclass(frozen=True, kw_only=True)
class RegisterToAtlas(Step):
    """Find where each point of the image lies in an atlas, and carry the atlas's labels over.

    Everything is on one grid over the image's box, about ``spacing_mm`` wide. A map that its own checks
    speak against is kept for who wants to look at it and said to have failed: no label is carried over then,
    and nothing is made of its volume change.

    Attributes:
        role: The image's part in the case.
        prefix: What the roles of the outputs begin with: ``-map.files`` (``to-atlas.nii`` from the image
            into the atlas, ``from-atlas.nii`` back; displacement fields in NIfTI), ``-registration``
            (the affine part, the checks, what the atlas is), ``-volume-change`` (logarithm of how many times
            as large a place is as in the atlas, with its variance), ``-error`` (expected distance between the
            found and the true place, mm), ``-labels`` where the atlas has any.
        atlas: The atlas's image: an asset's name or a file.
        maps: Files or assets with the probability of each class, on the atlas's grid.
        rest: Class that takes what the maps leave of the atlas's head; empty for none.
        labels: File with labels on the atlas's grid instead of maps; empty for none.
        sha256: What files that are no assets must contain.
        spacing_mm: Width of a voxel of the grid.
        measure: How images are compared, as :func:`sagittal.registration.register` has it.
        truth: Part in the case of the known map from the image to the atlas, where it was simulated.
        level: Coverage of the intervals.
    """

    name: ClassVar[str] = "register-to-atlas"
    version: ClassVar[str] = "1"
    doubt: ClassVar[str] = (
        "starts it: how far each point may be off blurs the labels that are carried over and is the variance "
        "of the volume change; a map that fails its own checks carries nothing over"
    )
    packages: ClassVar[tuple[str, ...]] = ("torch", "scipy")

    role: str = "t1"
    prefix: str = "atlas"
    atlas: str = DEFAULT_ATLAS
    maps: dict[str, str] = field(default_factory=lambda: dict(_TEMPLATE_MAPS))
    rest: str = "csf"
    labels: str = ""
    sha256: dict[str, str] = field(default_factory=dict)
    spacing_mm: float = 3.0
    measure: str = "local-correlation"
    truth: str = ""
    level: float = 0.9

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the assets and files that it needs besides the case's own."""
        return (self.atlas, *self.maps.values(), *([self.labels] if self.labels else []))

    @property
    def reads(self) -> Mapping[str, Kind]:
        truth = {f"{self.truth}.files": Kind.FILES} if self.truth else {}
        return {self.role: Kind.VOLUME, **truth}

    @property
    def writes(self) -> Mapping[str, Kind]:
        labels = {f"{self.prefix}-labels": Kind.VOLUME} if self.maps or self.labels else {}
        return {
            f"{self.prefix}-map.files": Kind.FILES,
            f"{self.prefix}-registration": Kind.JSON,
            f"{self.prefix}-volume-change": Kind.VOLUME,
            f"{self.prefix}-error": Kind.VOLUME,
            **labels,
        }

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        from sagittal.registration.carried import carried_probabilities, volume_change
        from sagittal.registration.confidence import displacement_error

        image: Volume = inputs[self.role]
        atlas = self._read(self.atlas, context)
        fixed, moving = _coarse(image, self.spacing_mm), _coarse(atlas, self.spacing_mm)
        classes = self._classes(atlas, context)
        context.report(f"registering {self.role} to {self._atlas_name}")
        found = self._registered(moving, fixed, context)
        error = displacement_error(moving, fixed, found, measure=self.measure)
        failed = list(found.problems)
        facts: dict[str, Any] = {"simulated": True} if _simulated(image) else {}
        facts |= {"failed": failed} if failed else {}
        tied = _TIED * min(step for step, n in zip(fixed.geometry.spacing, fixed.shape, strict=True) if n > 1)
        made = {
            "volume-change": volume_change(found.field, error, correlation_mm=tied),
            "error": Volume(error, fixed.geometry, unit="mm"),
        }
        if classes is not None:
            labels = carried_probabilities(classes, found.field, error)
            made["labels"] = _nothing(labels) if failed else labels
        made = {name: volume.replace(facts=facts) for name, volume in made.items()}
        said = self._said(found, atlas, fixed.geometry, context)
        head = _head(moving, found.field)
        if self.truth and image.facts.get("deformed") == image_hash(atlas):
            truth = file_fields(inputs[f"{self.truth}.files"])["to-origin.nii"]
            said["against_truth"] = _against(truth, found.field, made, head)
        fields = {"to-atlas.nii": found.field, "from-atlas.nii": found.inverse}
        return Result(
            outputs={
                f"{self.prefix}-map.files": map_files(fields),
                f"{self.prefix}-registration": said,
                **{f"{self.prefix}-{name}": volume for name, volume in made.items()},
            },
            findings=self._findings(image, made, head, said),
        )

    def _registered(self, moving: Volume, fixed: Volume, context: Context) -> Registration:
        from sagittal.registration import register

        try:
            return register(moving, fixed, measure=self.measure, report=context.report)
        except GeometryError as error:
            if fixed.shape.count(1) != moving.shape.count(1):
                raise
            raise InputError(
                f"nothing in the image could be brought to the atlas ({error.problem})",
                source=self.role,
                expected="an image of what the atlas shows",
            ) from error

    @property
    def _atlas_name(self) -> str:
        return self.atlas if self.atlas in assets.REGISTRY else "an atlas of the user's"

    def _read(self, name: str, context: Context) -> Volume:
        path = context.file(name)
        wanted = self.sha256.get(name)
        if wanted is not None and context.models[name] != wanted:
            raise InputError(
                "the file is not the one that was asked for",
                source=name,
                value=f"sha256 {context.models[name]}",
                expected=f"sha256 {wanted}",
            )
        return read_volume(path)

    def _classes(self, atlas: Volume, context: Context) -> Volume | None:
        """Return the atlas's classes at twice the resolution of the registration; many, at the same."""
        from sagittal.registration.carried import class_shares
        from sagittal.registration.levels import coarsened

        maps = {name: self._read(file, context) for name, file in self.maps.items()}
        labels = self._read(self.labels, context) if self.labels else None
        for name, volume in {**maps, **({"labels": labels} if labels else {})}.items():
            require_same_space(volume, atlas, 0.01, source=f"the atlas's {name}")
        if not maps and labels is None:
            return None
        many = labels is not None and len(np.unique(labels.array)) > _FEW + 1
        grid = coarsened(atlas.geometry, self.spacing_mm * (1.0 if many else 0.5))
        return class_shares(labels, maps, grid, rest=self.rest, within=atlas.array > 0)

    def _said(self, found: Registration, atlas: Volume, grid: Geometry, context: Context) -> dict[str, Any]:
        """The registration in numbers, for the page, DICOM and whoever asks the case."""
        return {
            "atlas": self._atlas_name,
            "atlas_image": image_hash(atlas),
            "files": dict(context.models),
            "affine": found.affine.tolist(),
            "overall": -float(np.linalg.slogdet(found.affine[:3, :3])[1]),
            "inverse_consistency_mm": found.inverse_consistency_mm,
            "similarity": [[level[0], min(level)] for level in found.energies],
            "problems": list(found.problems),
            "spacing_mm": list(grid.spacing),
            **found.field.summary(),
        }

    def _findings(
        self,
        image: Volume,
        made: Mapping[str, Volume],
        head: NDArray[np.bool_],
        said: Mapping[str, Any],
    ) -> list[FindingDraft]:
        code, where = ("simulated-atlas", " of the simulation") if _simulated(image) else ("atlas", "")
        title = f"registration{where} to {said['atlas']}"
        width = max(said["spacing_mm"])
        details = {name: said[name] for name in ("problems", "overall", "inverse_consistency_mm", "folds")}
        if said["problems"]:
            reasons = "; ".join(said["problems"])
            return [
                FindingDraft(
                    code=f"{code}.failed",
                    subject=title,
                    statement=f"The registration{where} to {said['atlas']} failed its own checks: {reasons}.",
                    caution="Nothing was carried over, and no volume change is reported.",
                    details=details,
                )
            ]
        error, change = made["error"].array[head], made["volume-change"]
        median, most = (float(q) for q in np.quantile(error, [0.5, 0.95]))
        local = change.array[head].astype(np.float64) - said["overall"]
        low, high = (float(np.exp(q)) for q in np.quantile(local, [0.05, 0.95]))
        assert change.variance is not None, "the expected error makes a variance"
        beyond = float(np.mean(np.abs(local) > _BEYOND * np.sqrt(change.variance[head])))
        truth = said.get("against_truth")
        findings = [
            FindingDraft(
                code=f"{code}.registration",
                subject=title,
                statement=f"The head{where} was registered to {said['atlas']} on voxels of {width:.1f} mm; "
                f"overall it is {np.exp(said['overall']):.2f} times as large as the atlas. A point is "
                f"expected {median:.1f} mm off (median over the head; {most:.1f} mm or less in 95 % of it)"
                f"{_error_said(truth)}.",
                caution="The registration passed its own checks, which do not find every wrong one.",
                details={**details, "error_median_mm": median, "error_95_mm": most},
            ),
            FindingDraft(
                code=f"{code}.volume-change",
                subject=f"local volume{where} against the atlas",
                statement=f"Local volume{where} against the atlas, overall size taken out: 90 % of the "
                f"head's voxels are between {low:.2f} and {high:.2f} times as large; in {100 * beyond:.0f} % "
                f"the difference is larger than {_BEYOND} of its standard deviations{_change_said(truth)}.",
                caution="A difference from the atlas is no change over time and no disease: heads differ.",
                details={"low": low, "high": high, "beyond": beyond},
            ),
        ]
        return findings + self._labelled(made, code, where)

    def _labelled(self, made: Mapping[str, Volume], code: str, where: str) -> list[FindingDraft]:
        labels, change = made.get("labels"), made["volume-change"]
        if labels is None or labels.probabilities is None:
            return []
        if len(labels.classes) > _FEW:
            return [
                FindingDraft(
                    code=f"{code}.labels",
                    subject=f"labels{where} of the atlas",
                    statement=f"{len(labels.classes)} labels{where} were carried over from the atlas.",
                    caution=_CARRIED,
                )
            ]
        return [
            self._amount(name, labels.probabilities[..., index], change, (code, where))
            for index, name in enumerate(labels.classes)
        ]

    def _amount(
        self, name: str, probability: NDArray[Any], change: Volume, told: tuple[str, str]
    ) -> FindingDraft:
        code, where = told
        size = change.geometry.voxel_volume_ml
        value = size * float(probability.sum(dtype=np.float64))
        assert change.variance is not None, "the expected error makes a variance"
        far = NormalDist().inv_cdf(0.5 + self.level / 2) * np.sqrt(change.variance.astype(np.float64))
        low, high = (size * float((probability * np.exp(sign * far)).sum()) for sign in (-1, 1))
        amount = Measurement(value=value, low=low, high=high, level=self.level, unit="ml")
        subject = f"{_NAMES.get(name, name)}{where}, by the atlas"
        return FindingDraft(
            code=f"{code}.label",
            subject=subject,
            statement=f"{subject[0].upper()}{subject[1:]}: {amount.amount} ({amount.interval}).",
            measurement=amount,
            caution=f"{_CARRIED} {_INTERVAL}",
            details={"label": name},
        )


def to_atlas(atlas: str = DEFAULT_ATLAS, labels: str = "") -> RegisterToAtlas:
    """Return the step for an atlas as a person names it, its own files pinned by their contents.

    Args:
        atlas: An asset's name or a file.
        labels: A file of labels on the atlas's grid; the tissue maps of the template are for that one only.

    Raises:
        InputError: There is no such file.
    """
    files = [name for name in (atlas, labels) if name and name not in assets.REGISTRY]
    pins = {}
    for name in files:
        if not Path(name).is_file():
            raise InputError(
                "there is no such file",
                source=name,
                expected=f"an image file, or an asset such as {DEFAULT_ATLAS}",
            )
        with storage_errors(Path(name)):
            pins[str(Path(name).absolute())] = sha256_file(Path(name))
    atlas, labels = (str(Path(name).absolute()) if name in files else name for name in (atlas, labels))
    template = atlas == DEFAULT_ATLAS and not labels
    return RegisterToAtlas(
        atlas=atlas,
        maps=dict(_TEMPLATE_MAPS) if template else {},
        rest="csf" if template else "",
        labels=labels,
        sha256=pins,
    )


def image_hash(image: Volume) -> str:
    """Return the sha256 of voxels and grid: a file gives it with and without what says its unit."""
    return hash_json({"array": hash_array(image.array), "geometry": image.geometry.to_json()})


def _coarse(volume: Volume, spacing_mm: float) -> Volume:
    from sagittal.registration.levels import coarsened, on_grid

    grid = coarsened(volume.geometry, spacing_mm)
    return Volume(on_grid(volume.array.astype(np.float32), volume.geometry, grid), grid, unit=volume.unit)


def _head(atlas: Volume, found: DisplacementField) -> NDArray[np.bool_]:
    """Where the atlas's head lies in the image: voxels above a tenth of the brightest."""
    low, high = np.percentile(atlas.array, [0, 99.5])
    seen: NDArray[np.bool_] = found.warp(atlas).array > low + _INSIDE * (high - low)
    return seen


def _nothing(labels: Volume) -> Volume:
    """The same classes, none of which anything belongs to."""
    assert labels.probabilities is not None, "labels are carried with probabilities"
    return labels.replace(
        array=np.zeros_like(labels.array), probabilities=np.zeros_like(labels.probabilities)
    )


def _against(
    truth: DisplacementField,
    found: DisplacementField,
    made: Mapping[str, Volume],
    head: NDArray[np.bool_],
) -> dict[str, float]:
    """Compare a registration and what it says of its doubt with the map that is known."""
    wanted = truth.resample(found.geometry)
    apart = np.linalg.norm(found.vectors.astype(np.float64) - wanted.vectors, axis=0)[head]
    unmoved = wanted.magnitude[head]
    change, error = made["volume-change"], made["error"].array[head].astype(np.float64)
    assert change.variance is not None, "the expected error makes a variance"
    wrong = np.abs(change.array.astype(np.float64) + wanted.log_jacobian().array)[head]
    return {
        "before_mm": float(np.median(unmoved)),
        "median_mm": float(np.median(apart)),
        "rms_mm": float(np.sqrt(np.mean(apart**2))),
        "expected_rms_mm": float(np.sqrt(np.mean(error**2))),
        "change_median": float(np.median(wrong)),
        "change_held": float(np.mean(wrong <= _BEYOND * np.sqrt(change.variance[head]))),
    }


def _error_said(truth: Mapping[str, float] | None) -> str:
    if truth is None:
        return ""
    return f"; by the known map it is {truth['median_mm']:.1f} mm off, and {truth['before_mm']:.1f} mm before"


def _change_said(truth: Mapping[str, float] | None) -> str:
    if truth is None:
        return ""
    return f"; so many hold the known difference in {100 * truth['change_held']:.0f} % of the head"


def _simulated(image: Volume) -> bool:
    return bool(image.facts.get("simulated"))
