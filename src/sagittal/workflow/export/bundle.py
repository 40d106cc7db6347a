"""One folder with everything a case has to show, written whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagittal.case.record import Case
from sagittal.case.store import CaseStore
from sagittal.core.errors import InputError
from sagittal.core.files import staging_folder, write_text
from sagittal.core.optional import optional_import
from sagittal.core.progress import Report, silent
from sagittal.volume import write_field, write_nifti
from sagittal.workflow import artifacts

__all__ = ["Exported", "export_case", "require_libraries"]

_MARK = "sagittal-case.json"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Paths of an exported case, relative names below ``folder`` by what they are."""

    folder: Path
    report: Path
    files: Mapping[str, Path]


def require_libraries() -> None:
    """Refuse now, before minutes are spent, when a library that the export needs is missing.

    Raises:
        MissingDependencyError: The message names the extra.
    """
    for name in ("nibabel", "pydicom", "highdicom", "fhir.resources", "PIL"):
        optional_import(name)
    optional_import("jinja2", "web")


def export_case(store: CaseStore, case_id: str, folder: Path, *, report: Report = silent) -> Exported:
    """Write a case to ``folder``: NIfTI and JSON, DICOM series and what refers to it, FHIR, and the page.

    The folder is filled under a temporary name and then renamed. One that an earlier export made is
    replaced; any other folder that is not empty is refused.

    Raises:
        InputError: The case has no report yet, or ``folder`` holds something else.
        StorageError: The disk is full, read-only or forbidden; what was there before is still there.
    """
    require_libraries()
    case = store.case(case_id)
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).is_file():
        raise InputError(
            "the folder holds something else",
            source=folder,
            expected="a new or empty folder, or an earlier export",
        )
    with staging_folder(folder) as temporary:
        files = _fill(store, case, temporary, report)
        _swap(temporary, folder)
    moved = {name: folder / path.relative_to(temporary) for name, path in files.items()}
    return Exported(folder=folder, report=moved["page"], files=moved)


def _fill(store: CaseStore, case: Case, folder: Path, report: Report) -> dict[str, Path]:
    from sagittal.workflow.export.fhir import write_fhir
    from sagittal.workflow.export.page import SHOWN, write_page

    draft = _value(store, case, "report")
    if draft is None:
        raise InputError("the case has no report yet", source=case.id, expected="a run of draft-report")
    report("writing the record and the FHIR bundle")
    files = {
        "record": write_text(folder / _MARK, json.dumps(_record(case), indent=2, ensure_ascii=False) + "\n"),
        "fhir": write_fhir(case, draft, folder / "report.fhir.json"),
    }
    volumes = {role: _value(store, case, role) for role in SHOWN}
    if volumes["t1"] is not None and volumes["tissue"] is not None:
        report("writing NIfTI")
        files["nifti"] = folder / "nifti" / "tissue.nii.gz"
        write_nifti(volumes["tissue"], files["nifti"])
    files |= _atlas_files(store, case, folder / "nifti", report)
    report("writing DICOM")
    files |= _dicom_files(store, case, folder / "dicom", report)
    report("drawing the page")
    reading = _value(store, case, "reading")
    said = {prefix: _value(store, case, f"{prefix}-registration") for prefix in ("atlas", "simulated-atlas")}
    registrations = {prefix: found for prefix, found in said.items() if found is not None}
    files["page"] = write_page(case, draft, volumes, reading, registrations, folder / "report.html")
    return files


def _atlas_files(store: CaseStore, case: Case, folder: Path, report: Report) -> dict[str, Path]:
    """Write what a registration to an atlas found, unless it failed its own checks."""
    from sagittal.workflow.map_files import file_fields

    said = _value(store, case, "atlas-registration")
    if said is None or said["problems"]:
        return {}
    report("writing the registration as NIfTI")
    files = {}
    for name, field in file_fields(_value(store, case, "atlas-map.files")).items():
        files[f"nifti {Path(name).stem}"] = write_field(field, folder / f"{name}.gz")
    for name in ("volume-change", "error", "labels"):
        volume = _value(store, case, f"atlas-{name}")
        if volume is not None:
            files[f"nifti atlas-{name}"] = folder / f"atlas-{name}.nii.gz"
            write_nifti(volume, files[f"nifti atlas-{name}"])
    return files


def _dicom_files(store: CaseStore, case: Case, folder: Path, report: Report) -> dict[str, Path]:
    from sagittal.workflow.export.dicom import IMAGES, write_dicom

    files = {}
    for role, image in IMAGES.items():
        try:
            written = write_dicom(store, case, role, folder)
        except InputError as error:
            report(f"{role}: the received series cannot be referred to, a new one is written: {error}")
            written = write_dicom(store, case, role, folder, join=False)
        if written is None:
            continue
        before = image.prefix.replace("-", " ")
        if written.series:
            files[f"{before}dicom"] = folder / role
        files |= {f"{before}dicom-seg {kind}": path for kind, path in written.segmentations.items()}
        files |= {f"{before}dicom-reg {kind}": path for kind, path in written.registrations.items()}
        if written.report:
            files[f"{before}dicom-sr"] = written.report
    return files


def _record(case: Case) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(case)


def _value(store: CaseStore, case: Case, role: str) -> Any:
    artifact = case.latest(role)
    return None if artifact is None else artifacts.load(store.objects, artifact)


def _swap(temporary: Path, folder: Path) -> None:
    """Put ``temporary`` in the place of ``folder``; on failure the old folder is put back."""
    if not folder.exists():
        temporary.replace(folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
    folder.replace(aside / "old")
    try:
        temporary.replace(folder)
    except OSError:
        (aside / "old").replace(folder)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
