"""Register a case's head to an atlas, and bring the atlas's labels over."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sagittal.case.record import FindingDraft
from sagittal.core import assets
from sagittal.core.errors import InputError
from sagittal.core.files import sha256_file, storage_errors
from sagittal.core.provenance import Measurement
from sagittal.volume import (
    DisplacementField,
    Geometry,
    Volume,
    read_field,
    read_volume,
    require_same_space,
    write_field,
)
from sagittal.workflow.artifacts import Kind, SourceFiles
from sagittal.workflow.step import Context, Result, Step

if TYPE_CHECKING:
    from sagittal.registration import Registration

__all__ = ["DEFAULT_ATLAS", "RegisterToAtlas", "file_fields", "map_files", "to_atlas"]

DEFAULT_ATLAS = "mni152-t1"
_TEMPLATE_MAPS = {"gm": "mni152-gm", "wm": "mni152-wm"}
_NAMES = {"csf": "cerebrospinal fluid", "gm": "grey matter", "wm": "white matter"}
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
            as large a place is as in the atlas), ``-labels`` where the atlas has any.
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
        "starts it: a map that fails its own checks carries nothing over, and says so in a finding"
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
            **labels,
        }

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        from sagittal.registration import register
        from sagittal.registration.carried import carried_probabilities, volume_change

        image: Volume = inputs[self.role]
        atlas = self._read(self.atlas, context)
        fixed, moving = _coarse(image, self.spacing_mm), _coarse(atlas, self.spacing_mm)
        classes = self._classes(atlas, moving.geometry, context)
        context.report(f"registering {self.role} to {self._atlas_name}")
        found = register(moving, fixed, measure=self.measure, report=context.report)
        failed = list(found.problems)
        facts: dict[str, Any] = {"simulated": True} if _simulated(image) else {}
        facts |= {"failed": failed} if failed else {}
        change = volume_change(found.field).replace(facts=facts)
        said = self._said(found, atlas, change, context)
        outputs = {
            f"{self.prefix}-map.files": map_files(
                {"to-atlas.nii": found.field, "from-atlas.nii": found.inverse}
            ),
            f"{self.prefix}-registration": said,
            f"{self.prefix}-volume-change": change,
        }
        labels = None
        if classes is not None:
            labels = carried_probabilities(classes, found.field).replace(facts=facts)
            if failed:
                nothing = np.zeros_like(labels.array), np.zeros_like(labels.probabilities)
                labels = labels.replace(array=nothing[0], probabilities=nothing[1])
            outputs[f"{self.prefix}-labels"] = labels
        head = _head(moving, found.field)
        return Result(outputs=outputs, findings=self._findings(image, change, labels, head, said))

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

    def _classes(self, atlas: Volume, grid: Geometry, context: Context) -> Volume | None:
        from sagittal.registration.carried import class_shares

        maps = {name: self._read(file, context) for name, file in self.maps.items()}
        labels = self._read(self.labels, context) if self.labels else None
        for name, volume in {**maps, **({"labels": labels} if labels else {})}.items():
            require_same_space(volume, atlas, 0.01, source=f"the atlas's {name}")
        if not maps and labels is None:
            return None
        return class_shares(labels, maps, grid, rest=self.rest, within=atlas.array > 0)

    def _said(self, found: Registration, atlas: Volume, change: Volume, context: Context) -> dict[str, Any]:
        """The registration in numbers, for the page, DICOM and whoever asks the case."""
        return {
            "atlas": self._atlas_name,
            "atlas_image": atlas.content_hash,
            "files": dict(context.models),
            "affine": found.affine.tolist(),
            "overall": -float(np.linalg.slogdet(found.affine[:3, :3])[1]),
            "inverse_consistency_mm": found.inverse_consistency_mm,
            "similarity": [[level[0], min(level)] for level in found.energies],
            "problems": list(found.problems),
            "spacing_mm": list(change.geometry.spacing),
            **found.field.summary(),
        }

    def _findings(
        self,
        image: Volume,
        change: Volume,
        labels: Volume | None,
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
        findings = [
            FindingDraft(
                code=f"{code}.registration",
                subject=title,
                statement=f"The head{where} was registered to {said['atlas']} on voxels of {width:.1f} mm; "
                f"overall it is {np.exp(said['overall']):.2f} times as large as the atlas.",
                caution="The registration passed its own checks, which do not find every wrong one.",
                details=details,
            )
        ]
        local = change.array[head].astype(np.float64) - said["overall"]
        if local.size:
            low, high = (float(np.exp(q)) for q in np.quantile(local, [0.05, 0.95]))
            findings.append(
                FindingDraft(
                    code=f"{code}.volume-change",
                    subject=f"local volume{where} against the atlas",
                    statement=f"Local volume{where} against the atlas, overall size taken out: 90 % of the "
                    f"head's voxels are between {low:.2f} and {high:.2f} times as large.",
                    details={"low": low, "high": high},
                )
            )
        return findings + self._labelled(labels, change, code, where)

    def _labelled(self, labels: Volume | None, change: Volume, code: str, where: str) -> list[FindingDraft]:
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
        measurement = None
        if change.variance is not None:
            far = NormalDist().inv_cdf(0.5 + self.level / 2) * np.sqrt(change.variance.astype(np.float64))
            low, high = (size * float((probability * np.exp(sign * far)).sum()) for sign in (-1, 1))
            measurement = Measurement(value=value, low=low, high=high, level=self.level, unit="ml")
        amount = (
            f"{value:.0f} ml" if measurement is None else f"{measurement.amount} ({measurement.interval})"
        )
        subject = f"{_NAMES.get(name, name)}{where}, by the atlas"
        return FindingDraft(
            code=f"{code}.label",
            subject=subject,
            statement=f"{subject[0].upper()}{subject[1:]}: {amount}.",
            measurement=measurement,
            caution=f"{_CARRIED} {_INTERVAL if measurement else ''}".strip(),
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


def map_files(fields: Mapping[str, DisplacementField]) -> SourceFiles:
    """Return displacement fields as NIfTI files by their names; unpacked, so that equal ones are equal."""
    files = []
    with tempfile.TemporaryDirectory(prefix="sagittal-") as folder:
        for name, moved in fields.items():
            files.append((name, write_field(moved, Path(folder) / name).read_bytes()))
    return SourceFiles(tuple(files))


def file_fields(source: SourceFiles) -> dict[str, DisplacementField]:
    """Return the fields that :func:`map_files` wrote, by the names of their files."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="sagittal-") as folder:
        for name, content in source.files:
            path = Path(folder) / Path(name).name
            path.write_bytes(content)
            found[name] = read_field(path)
    return found


def _coarse(volume: Volume, spacing_mm: float) -> Volume:
    from sagittal.registration.levels import coarsened, on_grid

    grid = coarsened(volume.geometry, spacing_mm)
    return Volume(on_grid(volume.array.astype(np.float32), volume.geometry, grid), grid, unit=volume.unit)


def _head(atlas: Volume, found: DisplacementField) -> NDArray[np.bool_]:
    """Where the atlas's head lies in the image: voxels above a tenth of the brightest."""
    low, high = np.percentile(atlas.array, [0, 99.5])
    seen: NDArray[np.bool_] = found.warp(atlas).array > low + _INSIDE * (high - low)
    return seen


def _simulated(image: Volume) -> bool:
    return bool(image.facts.get("simulated"))
