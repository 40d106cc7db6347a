"""Read an image file into a volume."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sagittal.case.record import FindingDraft
from sagittal.core.errors import SagittalError
from sagittal.volume import Volume, read_volume
from sagittal.workflow.artifacts import Kind, SourceFiles
from sagittal.workflow.step import Context, Result, Step

__all__ = ["ReadImage", "source_volume"]


@dataclass(frozen=True, kw_only=True)
class ReadImage(Step):
    """Read the files of ``role`` (NIfTI, NRRD, MetaImage, or DICOM images of one series) into a volume.

    Attributes:
        role: The image's part in the case, e.g. ``"t1"``; its files are under ``role + ".files"``.
        title: What the report calls it.
        note: What a reader must know of it, e.g. that it shows no single person.
        unit: Unit to assume where the file states none, as NIfTI never does; the report then says so.
    """

    name: ClassVar[str] = "read-image"
    version: ClassVar[str] = "1"
    doubt: ClassVar[str] = "starts none: voxels are taken as the scanner wrote them, without a variance"
    packages: ClassVar[tuple[str, ...]] = ("nibabel", "pydicom", "SimpleITK")

    role: str
    title: str
    note: str = ""
    unit: str = ""

    @property
    def reads(self) -> Mapping[str, Kind]:
        return {f"{self.role}.files": Kind.FILES}

    @property
    def writes(self) -> Mapping[str, Kind]:
        return {self.role: Kind.VOLUME}

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        source: SourceFiles = inputs[f"{self.role}.files"]
        volume = source_volume(source)
        assumed = bool(self.unit) and volume.unit == "1"
        if assumed:
            volume = volume.replace(unit=self.unit)
        return Result(
            outputs={self.role: volume}, findings=[self._describe(volume, len(source.files), assumed)]
        )

    def _describe(self, volume: Volume, files: int, assumed: bool) -> FindingDraft:
        shape = " x ".join(str(n) for n in volume.shape)
        spacing = " x ".join(f"{mm:.2f}" for mm in volume.geometry.spacing)
        plural = "s" if files > 1 else ""
        return FindingDraft(
            code="image.source",
            subject=self.title,
            statement=f"{self.title}: {shape} voxels of {spacing} mm, in {files} file{plural}.",
            caution=f"{self.note} {f'The file states no unit: {self.unit} is assumed.' * assumed}".strip(),
            details={"shape": list(volume.shape), "unit": volume.unit, "facts": dict(volume.facts)},
        )


def source_volume(source: SourceFiles) -> Volume:
    """Return the volume in received files; an error names the file as it was received."""
    with tempfile.TemporaryDirectory(prefix="sagittal-") as folder:
        paths = []
        for index, (name, content) in enumerate(source.files):
            path = Path(folder) / (name if len(source.files) == 1 else f"{index:05d}-{name}")
            path.write_bytes(content)
            paths.append(path)
        try:
            return read_volume(paths[0] if len(paths) == 1 else Path(folder))
        except SagittalError as error:
            # The reader names the copy it was given; the user knows the file by its own name.
            where = (error.source or "").replace(folder, "").lstrip("/") or ", ".join(
                path.name for path in paths[:3]
            )
            raise type(error)(
                error.problem, source=where, value=error.value, expected=error.expected
            ) from error
