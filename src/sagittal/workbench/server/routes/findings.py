"""Findings of a case, and what a reader says of them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from sagittal.case.record import Verdict
from sagittal.workbench.server.access import Here, Who, signed
from sagittal.workbench.server.models import (
    CaseId,
    FindingModel,
    FindingNumber,
    FindingsModel,
    Limit,
    Offset,
    StatementRequest,
    StateModel,
    VerdictRequest,
)
from sagittal.workbench.server.problems import problems
from sagittal.workbench.server.views import finding_model

__all__ = ["router"]

router = APIRouter(prefix="/api/cases/{case_id}/findings", tags=["findings"])


@router.get("", responses=problems(404))
def findings(
    here: Here,
    who: Who,
    case_id: CaseId,
    offset: Offset = 0,
    limit: Limit = 100,
    standing: Annotated[bool, Query(description="Only those that a report may use.")] = False,
) -> FindingsModel:
    """List findings by number."""
    found = here.findings(who, case_id, offset=offset, limit=limit, standing=standing)
    return FindingsModel(total=found.total, rows=[finding_model(finding) for finding in found.rows])


@router.get("/{number}", responses=problems(404))
def finding(here: Here, who: Who, case_id: CaseId, number: FindingNumber) -> FindingModel:
    """Return one finding."""
    return finding_model(here.finding(who, case_id, number))


@router.post("/{number}/verdict", responses=problems(404, 409))
def verdict(here: Here, who: Who, case_id: CaseId, number: FindingNumber, said: VerdictRequest) -> StateModel:
    """Accept or reject a finding. One that no longer stands is refused with 409."""
    name = signed(who, said.who)
    judged = here.judge(name, case_id, number, Verdict(said.verdict), said.note)
    return StateModel(
        case=case_id, finding=number, state=said.verdict, who=judged.events[-1].who, successor=None
    )


@router.post("/{number}/statement", status_code=201, responses=problems(404, 409))
def statement(
    here: Here, who: Who, case_id: CaseId, number: FindingNumber, said: StatementRequest
) -> StateModel:
    """Put a statement of the reader's in the place of a finding; the old one stays in the record."""
    name = signed(who, said.who)
    new = here.restate(name, case_id, number, said.statement, said.note)
    return StateModel(case=case_id, finding=number, state="superseded", who=new.author, successor=new.number)
