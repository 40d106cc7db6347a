"""The worklist, a case, its provenance, and who saw it."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from sagittal.workbench.server.access import Here, Who
from sagittal.workbench.server.models import (
    AuditLineModel,
    AuditModel,
    CaseId,
    CaseModel,
    CaseRowModel,
    EdgeModel,
    IdentityModel,
    JobModel,
    Limit,
    Offset,
    ProvenanceModel,
    WorklistModel,
)
from sagittal.workbench.server.problems import problems
from sagittal.workbench.server.views import job_model, latest_volumes, run_model, volume_model
from sagittal.workflow.export.graph import provenance_graph

__all__ = ["router"]

router = APIRouter(prefix="/api", tags=["cases"])


@router.get("/cases", responses=problems())
def worklist(
    here: Here,
    who: Who,
    search: Annotated[str, Query(max_length=200, description="Words in the label or the id.")] = "",
    state: Annotated[Literal["empty", "open", "reviewed"] | None, Query()] = None,
    order: Annotated[Literal["doubt", "changed", "created", "label"], Query()] = "doubt",
    offset: Offset = 0,
    limit: Limit = 50,
) -> WorklistModel:
    """List cases, those with the worst doubt first."""
    found = here.worklist(who, search=search, state=state, order=order, offset=offset, limit=limit)
    return WorklistModel(total=found.total, rows=[CaseRowModel.model_validate(row) for row in found.rows])


@router.get("/cases/{case_id}", responses=problems(404))
def case(here: Here, who: Who, case_id: CaseId) -> CaseModel:
    """Open a case: its runs and volumes. Findings are asked for in parts."""
    found, summary, total = here.open_case(who, case_id)
    return CaseModel(
        id=found.id,
        label=found.label,
        created=found.created,
        state=summary.state,
        findings_total=total,
        runs=[run_model(run) for run in found.runs],
        volumes=[
            volume_model(here.store, found.runs, run, artifact)
            for run, artifact in latest_volumes(found.runs).values()
        ],
    )


@router.get("/cases/{case_id}/provenance", responses=problems(404))
def provenance(here: Here, who: Who, case_id: CaseId) -> ProvenanceModel:
    """Return the runs of a case, and what one made that another one read."""
    found = here.whole_case(who, case_id, "read-provenance")
    return ProvenanceModel(
        runs=[run_model(run) for run in found.runs],
        edges=[
            EdgeModel(source=line.source, target=line.target, label=line.label)
            for line in provenance_graph(found).lines
        ],
    )


@router.get("/cases/{case_id}/identity", responses=problems(404, 501))
def identity(here: Here, who: Who, case_id: CaseId) -> IdentityModel:
    """Show whose files they are, from the headers of the DICOM files; that it was shown is audited."""
    return IdentityModel(roles=here.identity(who, case_id))


@router.get("/cases/{case_id}/jobs", responses=problems(404))
def jobs(here: Here, case_id: CaseId) -> list[JobModel]:
    """List what the server does on a case, or has done since it started."""
    here.outline(case_id)
    return [job_model(job) for job in here.jobs.of(case_id)]


@router.get("/audit", tags=["audit"], responses=problems())
def audit(
    here: Here,
    who: Who,
    case: Annotated[
        str | None, Query(pattern="^[0-9a-f]{12}$", description="Lines of this case only.")
    ] = None,
    offset: Offset = 0,
    limit: Limit = 100,
) -> AuditModel:
    """List who saw and changed what, newest first."""
    lines = here.store.audit_lines(case, offset, limit)
    here.store.audit("read-audit", who=who, case_id=case, detail={"offset": offset})
    return AuditModel(rows=[AuditLineModel.model_validate(line) for line in lines])
