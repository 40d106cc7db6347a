"""A case's images, findings and what was made of them as DICOM, in the study that an image came with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import pydicom

from sagittal.case.record import Case, Finding, Run
from sagittal.case.store import CaseStore
from sagittal.core.errors import InputError
from sagittal.volume import Volume, write_dicom_series
from sagittal.workflow import artifacts
from sagittal.workflow._dicom_json import quiet
from sagittal.workflow.export.dicom_reg import write_registrations
from sagittal.workflow.export.dicom_seg import write_segmentations
from sagittal.workflow.export.dicom_sr import write_report
from sagittal.workflow.map_files import file_fields

__all__ = ["IMAGES", "DicomObjects", "received_instances", "write_dicom"]


@dataclass(frozen=True, kw_only=True)
class Image:
    """What an image of a case is in DICOM.

    Attributes:
        labels: Role of its segmentation.
        atlas: What the roles of its registration to an atlas begin with; empty for none.
        modality: Modality of a series that is made of it.
        title: What the series is called.
        content: What the segmentation is called.
        prefix: What the names of its files begin with.
    """

    labels: str
    atlas: str
    modality: Literal["CT", "MR"]
    title: str
    content: str
    prefix: str


IMAGES = {
    "t1": Image(
        labels="tissue",
        atlas="atlas",
        modality="MR",
        title="T1, from the case",
        content="Brain tissue, not reviewed",
        prefix="",
    ),
    "ct": Image(
        labels="ct-classes",
        atlas="",
        modality="CT",
        title="CT slice, from the case",
        content="Materials on a CT slice, not reviewed",
        prefix="ct-",
    ),
}
"""Images that go into DICOM, by their role in the case."""

_PATIENT_AND_STUDY = (
    "PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime "
    "ReferringPhysicianName"
).split()


@dataclass(frozen=True, kw_only=True)
class DicomObjects:
    """What was written of one image.

    Attributes:
        series: The image's own files; none where it was received as DICOM and stays where it is.
        segmentations: By segmentation type.
        registrations: ``"affine"`` and ``"deformable"``, where it was registered to an atlas.
        report: The structured report.
    """

    series: tuple[Path, ...]
    segmentations: dict[str, Path]
    registrations: dict[str, Path]
    report: Path | None

    @property
    def files(self) -> list[Path]:
        """All of them, in the order in which they refer to each other."""
        others = (*self.segmentations.values(), *self.registrations.values())
        return [*self.series, *others, *([self.report] if self.report else [])]


def write_dicom(
    store: CaseStore, case: Case, role: str, folder: Path, *, join: bool = True
) -> DicomObjects | None:
    """Write an image of a case, its segmentations, its registration and its findings to ``folder``.

    A registration that failed its own checks is not written.

    Where the image was read from DICOM instances, the objects refer to those, in their study and frame of
    reference and with their patient, and the image is not written again. Otherwise a series is made of it.

    Args:
        store: Where the case is.
        case: The case.
        role: One of :data:`IMAGES`.
        folder: Where to write.
        join: Refer to instances that were received; False makes a series, without anybody's name.

    Returns:
        None where the case has no such image, or neither a segmentation nor a registration of it.

    Raises:
        InputError: Images that DICOM objects cannot refer to.
        StorageError: The disk is full, read-only or forbidden.
    """
    image = IMAGES[role]
    voxels, labels = case.latest(role), case.latest(image.labels)
    mapped = case.latest(f"{image.atlas}-map.files") if image.atlas else None
    if voxels is None or (labels is None and mapped is None):
        return None
    volume: Volume = artifacts.load(store.objects, voxels)
    source = received_instances(store, case, role) if join else []
    series: list[Path] = []
    if not source:
        series = write_dicom_series(volume, folder / role, modality=image.modality, description=image.title)
        source = [pydicom.dcmread(path) for path in series]
    roles = {role, f"{role}.files"}
    registrations: dict[str, Path] = {}
    if mapped is not None:
        registrations = _registrations(store, case, image, source, folder / f"{role}-registration")
    segmented: Volume | None = None
    segmentations: dict[str, Path] = {}
    with quiet():  # highdicom quotes an odd patient name in a warning
        if labels is not None:
            roles.add(image.labels)
            segmented = artifacts.load(store.objects, labels)
            assert segmented is not None, "an artifact that is there has a value"
            run = _writer(case, image.labels)
            segmentations = write_segmentations(
                segmented,
                source,
                folder,
                algorithm=run.step,
                version=run.version,
                when=datetime.fromisoformat(run.started),
                description=image.content,
                prefix=image.prefix,
            )
        report = None
        if findings := _findings_on(case, roles):
            objects = {kind: pydicom.dcmread(path) for kind, path in segmentations.items()}
            fractional = objects.pop("FRACTIONAL", None)
            report = write_report(
                case,
                findings,
                source,
                fractional,
                folder / f"{image.prefix}findings.dcm",
                classes=segmented.classes if segmented is not None else (),
                others=list(objects.values()),
            )
    return DicomObjects(
        series=tuple(series), segmentations=segmentations, registrations=registrations, report=report
    )


def _registrations(
    store: CaseStore, case: Case, image: Image, source: Sequence[Any], folder: Path
) -> dict[str, Path]:
    found = {part: case.latest(f"{image.atlas}-{part}") for part in ("map.files", "registration")}
    values = [artifacts.load(store.objects, one) for one in found.values() if one is not None]
    files, said = values
    if said["problems"]:
        return {}
    run = _writer(case, f"{image.atlas}-map.files")
    with quiet():
        return write_registrations(
            file_fields(files)["to-atlas.nii"],
            said,
            source,
            folder,
            algorithm=run.step,
            version=run.version,
            when=datetime.fromisoformat(run.started),
        )


def received_instances(store: CaseStore, case: Case, role: str) -> list[Any]:
    """Return the DICOM instances that an image of the case was read from; none where it was no DICOM.

    Attributes that the standard asks for, empty or not, and that are missing are there, empty.
    """
    artifact = case.latest(role)
    if artifact is None:
        return []
    run = _writer(case, role)
    files = next((one for one in run.inputs if one.role == f"{role}.files"), None)
    if files is None:
        return []
    received: artifacts.SourceFiles = artifacts.load(store.objects, files)
    instances = []
    for _, content in received.files:
        if content[128:132] != b"DICM":
            return []
        with quiet():
            dataset = pydicom.dcmread(BytesIO(content))
        if "PixelData" not in dataset:
            continue
        for name in _PATIENT_AND_STUDY:
            if name not in dataset:
                setattr(dataset, name, None)
        instances.append(dataset)
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
        if any(not dataset.get(name) for dataset in instances):
            raise InputError(
                "a received instance lacks an attribute that others refer to it by", source=role, value=name
            )
    return instances


def _findings_on(case: Case, roles: set[str]) -> Sequence[Finding]:
    runs = {run.number: {one.role for one in (*run.inputs, *run.outputs)} for run in case.runs}
    observed = (finding for finding in case.standing() if not finding.content.simulated)
    return [finding for finding in observed if roles & runs.get(finding.run or 0, set())]


def _writer(case: Case, role: str) -> Run:
    return next(run for run in reversed(case.runs) if any(output.role == role for output in run.outputs))
