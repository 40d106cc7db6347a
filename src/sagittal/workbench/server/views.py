"""From the record to what the API says of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from sagittal.case.record import Artifact, Finding, Run
from sagittal.case.store import CaseStore
from sagittal.volume import Geometry
from sagittal.workbench.server.jobs import Job
from sagittal.workbench.server.models import (
    EventModel,
    FindingModel,
    JobModel,
    MeasurementModel,
    PartModel,
    RunModel,
    VolumeModel,
)
from sagittal.workflow.artifacts import volume_manifest
from sagittal.workflow.correction import correctable

__all__ = ["finding_model", "job_model", "latest_volumes", "run_model", "volume_model"]


def run_model(run: Run) -> RunModel:
    """Return a run as the API says it."""
    return RunModel.model_validate({**asdict(run), "seed": str(run.seed)})


def finding_model(finding: Finding) -> FindingModel:
    """Return a finding as the API says it."""
    content = finding.content
    amount = content.measurement
    return FindingModel(
        number=finding.number,
        state=finding.state.value,
        author=finding.author,
        added=finding.added,
        run=finding.run,
        code=content.code,
        subject=content.subject,
        statement=content.statement,
        measurement=None if amount is None else MeasurementModel.model_validate(amount),
        confidence=content.confidence,
        caution=content.caution,
        details=dict(content.details),
        doubt=content.doubt,
        events=[EventModel.model_validate(event) for event in finding.events],
    )


def job_model(job: Job) -> JobModel:
    """Return a job as the API says it."""
    return JobModel(
        id=job.id,
        case=job.case,
        what=job.what,
        state=job.state,
        started=job.started,
        seconds=round(job.elapsed, 3),
        problem=job.problem,
    )


def latest_volumes(runs: Iterable[Run]) -> dict[str, tuple[Run, Artifact]]:
    """Return the volume last written for each role, in the order in which roles first came."""
    found: dict[str, tuple[Run, Artifact]] = {}
    for run in runs:
        found |= {artifact.role: (run, artifact) for artifact in run.outputs if artifact.kind == "volume"}
    return found


def volume_model(store: CaseStore, runs: Iterable[Run], run: Run, artifact: Artifact) -> VolumeModel:
    """Return a volume as the API says it; its voxels are not read."""
    manifest = volume_manifest(store.objects, artifact)
    geometry = Geometry.from_json(manifest["geometry"])
    extent = {world: geometry.shape[axis] for axis, (world, _) in enumerate(geometry.orientation)}
    return VolumeModel(
        role=artifact.role,
        run=run.number,
        unit=manifest["unit"],
        shape=list(geometry.shape),
        spacing=list(geometry.spacing),
        classes=manifest["classes"],
        content=artifact.content,
        slices={name: extent[world] for name, world in (("axial", 2), ("coronal", 1), ("sagittal", 0))},
        correctable=correctable(runs, artifact.role),
        parts=_parts(manifest),
    )


def _parts(manifest: dict[str, Any]) -> list[PartModel]:
    classes: list[str] = manifest["classes"]
    unit: str = manifest["unit"]
    parts = [
        PartModel(name="image", title="classes", kind="labels", unit="1")
        if classes
        else PartModel(name="image", title="image", kind="image", unit=unit)
    ]
    parts += [
        PartModel(name=f"probability-{name}", title=f"probability of {name}", kind="map", unit="1")
        for name in classes
    ]
    if classes:
        parts.append(PartModel(name="doubt", title="doubt (entropy)", kind="map", unit="bits"))
    elif manifest["variance"] is not None:
        parts.append(PartModel(name="doubt", title="doubt (standard deviation)", kind="map", unit=unit))
    return parts
