"""A study of an archive into a case, and what a case found back into the archive."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagittal.core.errors import ArchiveError, InputError, SagittalError
from sagittal.core.optional import optional_import
from sagittal.core.provenance import canonical_json, hash_array, hash_json
from sagittal.workflow._dicom_json import quiet
from sagittal.workflow.dicomweb import Archive, Series
from sagittal.workflow.runner import Runner
from sagittal.workflow.step import Step
from sagittal.workflow.steps import DraftReport, MeasureCTSlice, ReadImage, SegmentTissue

__all__ = ["Fetched", "Sent", "choose_series", "fetch_case", "measure", "send_case"]

_ROLES = {"MR": "t1", "CT": "ct"}
_READERS: dict[str, ReadImage] = {
    "t1": ReadImage(role="t1", title="T1 image"),
    "ct": ReadImage(role="ct", title="CT slice", unit="HU"),
}
_METHODS: dict[str, type[Step]] = {"t1": SegmentTissue, "ct": MeasureCTSlice}


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A case that was made of a study.

    Attributes:
        case: Its id.
        roles: The series that fills each role.
        instances: Number of instances of each role.
        left: Series of the study that fill no role.
    """

    case: str
    roles: dict[str, Series]
    instances: dict[str, int]
    left: tuple[Series, ...]


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One object that is in the archive now, read again and compared.

    Attributes:
        kind: Such as ``"SEG FRACTIONAL"`` or ``"SR"``.
        study: Study Instance UID.
        series: Series Instance UID.
        instance: SOP Instance UID.
        was_there: Whether the archive held it before.
    """

    kind: str
    study: str
    series: str
    instance: str
    was_there: bool


def choose_series(found: Sequence[Series], wanted: Sequence[str] = ()) -> dict[str, Series]:
    """Return which series fills which role.

    A series that is named fills the role of its modality: MR the T1 image, CT the CT slice. Without a name
    the T1 image is the only MR series whose description says "T1", and the CT slice the only CT series of
    one instance.

    Raises:
        InputError: No series fits, several do, or a named one is of no use; the message lists what there is.
    """
    listed = "; ".join(f"{one.uid} ({one.modality}, {_count(one)}, {one.description!r})" for one in found)
    if wanted:
        by_uid = {one.uid: one for one in found}
        if unknown := [uid for uid in wanted if uid not in by_uid]:
            raise InputError("the study has no such series", value=unknown[0], expected=f"one of {listed}")
        candidates = [by_uid[uid] for uid in dict.fromkeys(wanted)]
        if useless := [one for one in candidates if one.modality not in _ROLES]:
            raise InputError(
                "no step reads a series of this modality", value=useless[0].modality, expected="MR or CT"
            )
    else:
        candidates = [
            one
            for one in found
            if (one.modality == "MR" and "t1" in one.description.lower())
            or (one.modality == "CT" and one.instances == 1)
        ]
    roles: dict[str, Series] = {}
    for one in candidates:
        role = _ROLES[one.modality]
        if role in roles:
            raise InputError(
                f"several series may be the {_READERS[role].title}",
                value=f"{roles[role].uid} and {one.uid}",
                expected="one of them named with --series",
            )
        roles[role] = one
    if not roles:
        raise InputError(
            "no series says that it is a T1 image, and none is a single CT slice",
            expected=f"one named with --series, of: {listed}",
        )
    return roles


def fetch_case(
    runner: Runner,
    archive: Archive,
    study_uid: str,
    *,
    series: Sequence[str] = (),
    label: str = "case",
    who: str = "",
    max_bytes: int = 16 * 1024**3,
) -> Fetched:
    """Fetch a study's series and make a case of them: received and read, and nothing measured yet.

    The case is opened once everything has arrived. An image that cannot be read leaves a case with its files.

    Raises:
        ArchiveError: The archive cannot be reached, refuses, or sends less than it lists.
        InputError: It is not clear which series to take, or a series cannot be read as an image.
    """
    found = archive.find_series(study_uid)
    roles = choose_series(found, series)
    instances = {}
    with tempfile.TemporaryDirectory(prefix="sagittal-fetch-") as folder:
        files: dict[str, list[Path]] = {}
        for role, one in roles.items():
            runner.report(f"fetching {one.modality} series {one.uid}")
            place = Path(folder) / role
            place.mkdir()
            files[role] = archive.fetch(one, place, max_bytes=max_bytes)
        case_id = runner.store.create_case(label, who=who)
        for role, paths in files.items():
            runner.receive(case_id, f"{role}.files", paths)
            instances[role] = len(paths)
        detail = {"archive": archive.url, "instances": instances}
        runner.store.audit("fetch-study", who=who, case_id=case_id, detail=detail)
    with _names_the_case(case_id):
        for role in roles:
            runner.run(case_id, _READERS[role])
    left = tuple(one for one in found if one not in roles.values())
    return Fetched(case=case_id, roles=roles, instances=instances, left=left)


def measure(runner: Runner, case_id: str, roles: Sequence[str], *, model: str = "") -> None:
    """Run the method of each role and draft the report; rules word its impression unless a model is named."""
    with _names_the_case(case_id):
        for role in roles:
            runner.run(case_id, _METHODS[role]())
        runner.run(case_id, DraftReport(model=model))


@contextlib.contextmanager
def _names_the_case(case_id: str) -> Iterator[None]:
    """Say in an error which case the files are in by now."""
    try:
        yield
    except SagittalError as error:
        raise type(error)(
            f"{error.problem} (the files are in case {case_id})",
            source=error.source,
            value=error.value,
            expected=error.expected,
        ) from error


def send_case(runner: Runner, archive: Archive, case_id: str, *, who: str = "") -> list[Sent]:
    """Send a case's segmentations and findings, and its images where they came from no archive.

    Each object is read back by QIDO and WADO and compared with what was sent: pixels by their hash, a report
    by its content. One that is there already, with the same content, is not sent again.

    Raises:
        InputError: The case has no segmented image.
        ArchiveError: The archive refuses an object, or does not give back what was sent.
    """
    pydicom = optional_import("pydicom")
    from sagittal.workflow.export.dicom import IMAGES, write_dicom

    case = runner.store.case(case_id)
    sent: list[Sent] = []
    with tempfile.TemporaryDirectory(prefix="sagittal-send-") as folder:
        try:
            for role in IMAGES:
                written = write_dicom(runner.store, case, role, Path(folder) / role)
                for path in written.files if written else []:
                    with quiet():
                        dataset = pydicom.dcmread(path)
                    runner.report(f"sending {_kind(dataset)} {dataset.SOPInstanceUID}")
                    sent.append(_send(archive, dataset))
        finally:  # what went out went out, whatever came after
            if sent:
                detail = {"archive": archive.url, "objects": len(sent)}
                runner.store.audit("send-case", who=who, case_id=case_id, detail=detail)
    if not sent:
        raise InputError(
            "the case has nothing for an archive", source=case_id, expected="a segmented T1 image or CT slice"
        )
    return sent


def _send(archive: Archive, dataset: Any) -> Sent:
    wanted = _content(dataset)
    there = archive.instance(dataset)
    was_there = there is not None
    if there is None:
        archive.store(dataset)
        there = archive.instance(dataset)
    if there is None:
        raise ArchiveError(
            "the archive said yes and stored nothing", source=archive.url, value=str(dataset.SOPInstanceUID)
        )
    if _content(there) != wanted:
        raise ArchiveError(
            "the archive gives back something other than what was sent"
            if not was_there
            else "the archive holds something else under this UID",
            source=archive.url,
            value=str(dataset.SOPInstanceUID),
        )
    return Sent(
        kind=_kind(dataset),
        study=str(dataset.StudyInstanceUID),
        series=str(dataset.SeriesInstanceUID),
        instance=str(dataset.SOPInstanceUID),
        was_there=was_there,
    )


def _content(dataset: Any) -> str:
    """Return a hash of what an object says, whatever its transfer syntax."""
    with quiet():
        if "PixelData" in dataset:
            return hash_array(dataset.pixel_array)
        tree = [item.to_json_dict() for item in dataset.ContentSequence]
    return hash_json([str(dataset.get("VerificationFlag", "")), canonical_json(tree)])


def _kind(dataset: Any) -> str:
    return f"{dataset.Modality} {dataset.get('SegmentationType', '')}".strip()


def _count(series: Series) -> str:
    return "?" if series.instances is None else f"{series.instances} instances"
