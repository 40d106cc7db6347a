"""Which person the received files are of: read from their headers when somebody asks, and not kept."""

from __future__ import annotations

import io

from sagittal.case.record import Artifact
from sagittal.case.store import CaseStore
from sagittal.core.optional import optional_import
from sagittal.workflow import artifacts
from sagittal.workflow.artifacts import SourceFiles

__all__ = ["FIELDS", "identifying_fields"]

FIELDS = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "OtherPatientIDs",
    "AccessionNumber",
    "StudyDate",
    "StudyInstanceUID",
    "InstitutionName",
    "ReferringPhysicianName",
)
"""DICOM attributes, by keyword."""

_MOST_VALUES = 20


def identifying_fields(store: CaseStore, case_id: str) -> dict[str, dict[str, list[str]]]:
    """Return the identifying DICOM fields of a case's files: role, then keyword, then its distinct values.

    Files that are not DICOM have none.

    Raises:
        MissingDependencyError: pydicom is not installed.
    """
    case, _ = store.outline(case_id)
    received: dict[str, Artifact] = {
        output.role.removesuffix(".files"): output
        for run in case.runs
        for output in run.outputs
        if output.kind == "files"
    }
    found = {}
    for role, artifact in received.items():
        source: SourceFiles = artifacts.load(store.objects, artifact)
        if fields := _fields(source):
            found[role] = fields
    return found


def _fields(source: SourceFiles) -> dict[str, list[str]]:
    pydicom = optional_import("pydicom")
    found: dict[str, dict[str, None]] = {}
    for _, content in source.files:
        if content[128:132] != b"DICM":
            continue
        try:
            header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, specific_tags=list(FIELDS))
        except Exception:  # a file is received as it is, however damaged: then it names nobody here
            continue
        for keyword in FIELDS:
            value = str(header.get(keyword, "") or "").strip()
            if value and len(found.setdefault(keyword, {})) < _MOST_VALUES:
                found[keyword][value] = None
    return {keyword: list(values) for keyword, values in found.items() if values}
