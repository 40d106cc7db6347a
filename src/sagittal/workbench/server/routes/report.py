"""The drafted report."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from starlette.responses import JSONResponse

from sagittal.case.record import Run
from sagittal.workbench.server.access import Here, Who
from sagittal.workbench.server.models import CaseId, JobModel, ReportModel, ReportRequest
from sagittal.workbench.server.problems import problems
from sagittal.workbench.server.views import job_model

__all__ = ["router"]

router = APIRouter(prefix="/api/cases/{case_id}", tags=["report"])


@router.get("/report", responses=problems(404))
def report(here: Here, who: Who, case_id: CaseId) -> ReportModel:
    """Return the latest draft: each sentence with the numbers of the findings that hold it."""
    return _model(*here.report(who, case_id))


@router.post(
    "/report",
    status_code=201,
    response_model=ReportModel,
    responses={
        202: {"description": "A model drafts it: a job, which can be asked after.", "model": JobModel},
        **problems(404, 409),
    },
)
def draft(here: Here, who: Who, case_id: CaseId, how: ReportRequest | None = None) -> ReportModel | Response:
    """Draft again from the findings that stand now: at once by rules, or as a job by a language model."""
    if how is not None and how.model:
        job = job_model(here.draft_with(who, case_id, how.model))
        return JSONResponse(job.model_dump(), 202)
    return _model(*here.draft(who, case_id))


def _model(run: Run, draft: dict[str, Any]) -> ReportModel:
    return ReportModel.model_validate({"run": run.number, "started": run.started, **draft})
