"""Routes of the pages. They read and change a case through the same desk as the HTTP interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from fastapi import Path as InPath
from fastapi.responses import FileResponse, RedirectResponse, Response

from sagittal.case.record import Finding, FindingState, Run, Verdict
from sagittal.core.errors import SagittalError
from sagittal.workbench.pages.frontend import STYLE
from sagittal.workbench.pages.page import THEMES, Refusal, page, refusal
from sagittal.workbench.pages.stills import still_pictures
from sagittal.workbench.pages.view import differences, drawn, findings_of, replaced_by, report_view, title_of
from sagittal.workbench.server.access import Here, Who
from sagittal.workbench.server.desk import Desk
from sagittal.workbench.server.problems import Problem
from sagittal.workbench.server.security import clean_name
from sagittal.workbench.server.views import latest_volumes, volume_model
from sagittal.workflow import artifacts

__all__ = ["router"]

_ROWS = 50
_FINDINGS = 100
_MOST_WHOLE = 2000  # findings of a case that is read whole, so that what lies on other pages is known too
_FAR = 2**31 - 1
_STATES = (("", "Any"), ("open", "Open"), ("reviewed", "Reviewed"), ("empty", "Empty"))
_ORDERS = (
    ("doubt", "Worst doubt first"),
    ("changed", "Changed last first"),
    ("created", "Created last first"),
    ("label", "Label"),
)
_VIEWS = (("all", "All"), ("axial", "Axial"), ("coronal", "Coronal"), ("sagittal", "Sagittal"), ("3d", "3-D"))

_REFUSALS = (SagittalError, Problem)

_CaseId = Annotated[str, InPath(pattern="^[0-9a-f]{12}$")]
_Number = Annotated[int, InPath(ge=1, le=_FAR)]
_Numbered = Annotated[int, Query(ge=1, le=_FAR)]
_Offset = Annotated[int, Query(ge=0, le=_FAR)]
_Text = Annotated[str, Form(max_length=10_000)]
_Name = Annotated[str, Form(max_length=200)]


def router() -> APIRouter:
    """Return the routes of the pages; the application's ``state.desk`` is what they read and change."""
    routes = APIRouter(include_in_schema=False)
    gets: dict[str, Callable[..., Response]] = {
        "/": _worklist,
        "/cases/{case_id}": _case,
        "/cases/{case_id}/compare": _compare,
        "/theme": _theme,
        "/static/page.css": _style,
    }
    posts: dict[str, Callable[..., Response]] = {
        "/cases/{case_id}/identity": _identity,
        "/cases/{case_id}/report": _draft,
        "/cases/{case_id}/findings/{number}/verdict": _verdict,
        "/cases/{case_id}/findings/{number}/statement": _statement,
    }
    for method, table in (("GET", gets), ("POST", posts)):
        for path, answer in table.items():
            routes.add_api_route(path, answer, methods=[method], response_class=Response)
    return routes


def _worklist(
    request: Request,
    here: Here,
    who: Who,
    search: Annotated[str, Query(max_length=200)] = "",
    state: str = "",
    order: str = "doubt",
    offset: _Offset = 0,
) -> Response:
    try:
        found = here.worklist(
            who, search=search, state=state or None, order=order, offset=offset, limit=_ROWS
        )
    except _REFUSALS as error:
        return _refused(request, refusal(error), back="/")

    def at(start: int) -> str:
        return "/?" + urlencode({"search": search, "state": state, "order": order, "offset": start})

    return page(
        request,
        "worklist.html.j2",
        rows=found.rows,
        total=found.total,
        offset=offset,
        limit=_ROWS,
        search=search,
        state=state,
        order=order,
        states=_STATES,
        orders=_ORDERS,
        filtered=bool(search or state),
        **_neighbours(at, offset, _ROWS, found.total),
    )


def _case(
    request: Request,
    here: Here,
    who: Who,
    case_id: _CaseId,
    show: str = "standing",
    offset: _Offset = 0,
    image: str = "",
    over: str | None = None,
) -> Response:
    try:
        return _case_page(
            request, here, who, case_id, everything=show == "all", offset=offset, image=image, over=over
        )
    except _REFUSALS as error:
        return _refused(request, refusal(error), back="/")


def _compare(
    request: Request, here: Here, who: Who, case_id: _CaseId, a: _Numbered, b: _Numbered
) -> Response:
    try:
        case, _ = here.outline(case_id)
        pair = [here.finding(who, case_id, number) for number in (a, b)]
        runs = {run.number: run for run in case.runs}
        shown = findings_of(pair, runs=runs, replaced=replaced_by(pair), report=None)
    except _REFUSALS as error:
        return _refused(request, refusal(error), back=f"/cases/{case_id}")
    return page(
        request,
        "compare.html.j2",
        case=case,
        pair=shown,
        differences=differences(shown[0], shown[1], runs),
    )


def _verdict(
    request: Request,
    here: Here,
    who: Who,
    case_id: _CaseId,
    number: _Number,
    verdict: Annotated[str, Form(pattern="^(accepted|rejected)$")],
    note: _Text = "",
    name: _Name = "",
) -> Response:
    def judge() -> str:
        here.judge(_signed(request, name), case_id, number, Verdict(verdict), note)
        gone = "?show=all" if verdict == Verdict.REJECTED else ""
        return f"/cases/{case_id}{gone}#finding-{number}"

    return _changed(request, here, who, case_id, judge)


def _statement(
    request: Request,
    here: Here,
    who: Who,
    case_id: _CaseId,
    number: _Number,
    statement: _Text,
    note: _Text = "",
    name: _Name = "",
) -> Response:
    def restate() -> str:
        new = here.restate(_signed(request, name), case_id, number, statement.strip(), note)
        return f"/cases/{case_id}#finding-{new.number}"

    return _changed(request, here, who, case_id, restate)


def _draft(request: Request, here: Here, who: Who, case_id: _CaseId) -> Response:
    def draft() -> str:
        here.draft(who, case_id)
        return f"/cases/{case_id}#report"

    return _changed(request, here, who, case_id, draft)


def _identity(request: Request, here: Here, who: Who, case_id: _CaseId) -> Response:
    try:
        case, _ = here.outline(case_id)
        roles = here.identity(who, case_id)
    except _REFUSALS as error:
        return _refused(request, refusal(error), back=f"/cases/{case_id}")
    return page(request, "identity.html.j2", case=case, roles=roles)


def _theme(to: str = "dark", back: str = "/") -> Response:
    safe = back if back.startswith("/") and back[1:2] not in {"/", "\\"} and back.isprintable() else "/"
    response = RedirectResponse(safe, status_code=303)
    if to in THEMES:
        response.set_cookie("sagittal_theme", to, max_age=31_536_000, samesite="strict", path="/")
    return response


def _style() -> Response:
    return FileResponse(
        STYLE, media_type="text/css", headers={"Cache-Control": "public, max-age=31536000, immutable"}
    )


def _changed(request: Request, here: Desk, who: str, case_id: str, change: Callable[[], str]) -> Response:
    """Make a change and go back to the case; what was refused is said on top of the case as it is."""
    try:
        return RedirectResponse(change(), status_code=303)
    except _REFUSALS as error:
        said = refusal(error)
    try:
        return _case_page(request, here, who, case_id, refused=said)
    except _REFUSALS as error:
        return _refused(request, refusal(error), back="/")


def _case_page(
    request: Request,
    here: Desk,
    who: str,
    case_id: str,
    *,
    everything: bool = False,
    offset: int = 0,
    image: str = "",
    over: str | None = None,
    refused: Refusal | None = None,
) -> Response:
    case, summary, total = here.open_case(who, case_id)
    found = here.store.findings(case_id, offset=offset, limit=_FINDINGS, standing=not everything)
    whole = total <= _MOST_WHOLE
    known = here.store.case(case_id).findings if whole else found.rows
    by_number = {finding.number: finding for finding in known}
    runs = {run.number: run for run in case.runs}
    report = report_view(_latest_report(here, case.runs), by_number, case_id, whole=whole)
    volumes = [
        {**volume_model(here.store, case.runs, *pair).model_dump(), "title": title_of(role)}
        for role, pair in latest_volumes(case.runs).items()
    ]

    def at(start: int) -> str:
        shown = "all" if everything else "standing"
        return f"/cases/{case_id}?{urlencode({'show': shown, 'offset': start})}#findings"

    graph, counts = drawn(case, known if whole else None)
    response = page(
        request,
        "case.html.j2",
        case=case,
        summary=summary,
        show="all" if everything else "standing",
        total=found.total,
        undecided=_undecided(known) if whole else summary.undecided,
        findings=findings_of(found.rows, runs=runs, replaced=replaced_by(known), report=report),
        offset=offset,
        limit=_FINDINGS,
        **_neighbours(at, offset, _FINDINGS, found.total),
        report=report,
        volumes=volumes,
        still=still_pictures(case_id, volumes, request.query_params, image, over),
        views=_VIEWS,
        graph=graph,
        runs=case.runs,
        counts=counts,
        problem=refused,
    )
    response.status_code = 200 if refused is None else refused.status
    return response


def _latest_report(here: Desk, runs: Sequence[Run]) -> Mapping[str, Any] | None:
    written = [artifact for run in runs for artifact in run.outputs if artifact.role == "report"]
    draft: Mapping[str, Any] | None = artifacts.load(here.store.objects, written[-1]) if written else None
    return draft


def _undecided(findings: Sequence[Finding]) -> int:
    return sum(finding.state is FindingState.DRAFT for finding in findings)


def _neighbours(at: Callable[[int], str], offset: int, limit: int, total: int) -> dict[str, str | None]:
    return {
        "earlier": at(max(offset - limit, 0)) if offset else None,
        "later": at(offset + limit) if offset + limit < total else None,
    }


def _signed(request: Request, given: str) -> str:
    """Return the session's name; without one, take the given name, which the session then keeps."""
    if request.state.user:
        return str(request.state.user)
    name = clean_name(given)
    if request.state.session is not None:
        request.state.session.name = name
    return name


def _refused(request: Request, said: Refusal, *, back: str) -> Response:
    response = page(request, "problem.html.j2", title=said.title, detail=said.detail, back=back)
    response.status_code = said.status
    return response
