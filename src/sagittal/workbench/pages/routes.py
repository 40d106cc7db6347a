"""Routes of the pages. They read and change a case with the same functions as the HTTP interface."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Path, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from sagittal import __version__
from sagittal.case.record import Case, Finding, Run, Verdict
from sagittal.case.store import CaseStore
from sagittal.core.errors import ConflictError, InputError, SagittalError, StorageError
from sagittal.workbench.pages.frontend import STYLE, scripts, style_url
from sagittal.workbench.pages.view import differences, findings_of, report_view, title_of
from sagittal.workflow import artifacts
from sagittal.workflow.export.graph import provenance_graph

__all__ = ["router"]

_ROWS = 50
_FINDINGS = 100
_MOST_OFFSET = 2**31 - 1
_STATES = (("", "Any"), ("open", "Open"), ("reviewed", "Reviewed"), ("empty", "Empty"))
_ORDERS = (
    ("doubt", "Worst doubt first"),
    ("changed", "Changed last first"),
    ("created", "Created last first"),
    ("label", "Label"),
)
_VIEWS = (("all", "All"), ("axial", "Axial"), ("coronal", "Coronal"), ("sagittal", "Sagittal"), ("3d", "3-D"))
_THEMES = ("dark", "light", "system")
_PLANES = ("axial", "coronal", "sagittal")

_CaseId = Annotated[str, Path(pattern="^[0-9a-f]{12}$")]
_Number = Annotated[int, Path(ge=1, le=_MOST_OFFSET)]
_Offset = Annotated[int, Query(ge=0, le=_MOST_OFFSET)]
_Text = Annotated[str, Form(max_length=4000)]
_Name = Annotated[str, Form(max_length=200)]


def router(store: CaseStore) -> APIRouter:
    """Return the routes of the pages.

    Args:
        store: The cases.
    """
    pages = _Pages(store)
    routes = APIRouter(include_in_schema=False)
    routes.add_api_route("/static/page.css", _style, methods=["GET"])
    routes.add_api_route("/theme", pages.theme, methods=["GET"])
    routes.add_api_route("/", pages.worklist, methods=["GET"])
    routes.add_api_route("/cases/{case_id}", pages.case, methods=["GET"])
    routes.add_api_route("/cases/{case_id}/compare", pages.compare, methods=["GET"])
    routes.add_api_route("/cases/{case_id}/identity", pages.identity, methods=["POST"])
    routes.add_api_route("/cases/{case_id}/report", pages.report, methods=["POST"])
    routes.add_api_route("/cases/{case_id}/findings/{number}/verdict", pages.verdict, methods=["POST"])
    routes.add_api_route("/cases/{case_id}/findings/{number}/statement", pages.statement, methods=["POST"])
    return routes


class _Pages:
    def __init__(self, store: CaseStore) -> None:
        self._store = store
        self._templates = Environment(
            loader=PackageLoader("sagittal.workbench", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters["tojson_plain"] = lambda value: json.dumps(
            value, indent=1, ensure_ascii=False, default=dict
        )

    def worklist(
        self,
        request: Request,
        search: Annotated[str, Query(max_length=200)] = "",
        state: str = "",
        order: str = "doubt",
        offset: _Offset = 0,
    ) -> Response:
        """The worklist; a bad state or order is said on a page, not guessed."""
        try:
            found = self._store.worklist(
                search=search, state=state or None, order=order, offset=offset, limit=_ROWS
            )
        except SagittalError as error:
            return self._problem(request, error, back="/")
        self._store.audit("see worklist", who=_who(request), detail={"rows": len(found.rows)})

        def at(start: int) -> str:
            return "/?" + urlencode({"search": search, "state": state, "order": order, "offset": start})

        return self._page(
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

    def case(
        self,
        request: Request,
        case_id: _CaseId,
        show: str = "standing",
        offset: _Offset = 0,
        image: str = "",
        over: str = "",
    ) -> Response:
        """One case: images, report, findings, and where they came from."""
        try:
            return self._case(request, case_id, show=show, offset=offset, image=image, over=over)
        except SagittalError as error:
            return self._problem(request, error, back="/")

    def compare(
        self,
        request: Request,
        case_id: _CaseId,
        a: Annotated[int, Query(ge=1, le=_MOST_OFFSET)],
        b: Annotated[int, Query(ge=1, le=_MOST_OFFSET)],
    ) -> Response:
        """Two findings of a case, side by side."""
        try:
            case = self._store.case(case_id)
            pair = [self._store.finding(case_id, number) for number in (a, b)]
        except SagittalError as error:
            return self._problem(request, error, back=f"/cases/{case_id}")
        self._store.audit("see findings", who=_who(request), case_id=case_id, detail={"numbers": [a, b]})
        runs = {run.number: run for run in case.runs}
        report = report_view(self._draft(case.runs), {f.number: f for f in case.findings}, case_id)
        shown = findings_of(pair, runs=runs, replaced=_replaced(case.findings), report=report)
        shown = [replace(one, sentences=()) for one in shown]  # the sentences are on another page
        return self._page(
            request,
            "compare.html.j2",
            case=case,
            pair=shown,
            differences=differences(shown[0], shown[1], runs),
        )

    def verdict(
        self,
        request: Request,
        case_id: _CaseId,
        number: _Number,
        verdict: Annotated[str, Form(pattern="^(accepted|rejected)$")],
        note: _Text = "",
        who: _Name = "",
    ) -> Response:
        """Accept or reject a finding."""
        try:
            self._store.judge(case_id, number, Verdict(verdict), who=_signed(request, who), note=note)
        except SagittalError as error:
            return self._case_problem(request, case_id, error)
        return _back(case_id, number)

    def statement(
        self,
        request: Request,
        case_id: _CaseId,
        number: _Number,
        statement: _Text,
        note: _Text = "",
        who: _Name = "",
    ) -> Response:
        """Put a reader's sentence in the place of a finding; its number is dropped, for nobody measured it."""
        try:
            old = self._store.finding(case_id, number).content
            draft = replace(
                old, statement=statement.strip(), measurement=None, confidence=None, caution="", details={}
            )
            new = self._store.supersede(case_id, number, draft, who=_signed(request, who), note=note)
        except SagittalError as error:
            return self._case_problem(request, case_id, error)
        return _back(case_id, new.number)

    def report(self, request: Request, case_id: _CaseId) -> Response:
        """Draft the report again, by rules."""
        from sagittal.workflow.models import ModelShelf
        from sagittal.workflow.runner import Runner
        from sagittal.workflow.steps import DraftReport

        try:
            runner = Runner(store=self._store, shelf=ModelShelf(offline=True))
            runner.run(case_id, DraftReport(model=""))
        except SagittalError as error:
            return self._case_problem(request, case_id, error)
        return RedirectResponse(f"/cases/{case_id}#report", status_code=303)

    def identity(self, request: Request, case_id: _CaseId) -> Response:
        """Show the identifying fields of the received files, and write down that somebody looked."""
        from sagittal.workbench.server.identity import identifying_fields

        try:
            case = self._store.case(case_id)
            self._store.audit("see identity", who=_who(request), case_id=case_id)
            roles = identifying_fields(self._store, case)
        except SagittalError as error:
            return self._problem(request, error, back=f"/cases/{case_id}")
        return self._page(request, "identity.html.j2", case=case, roles=roles)

    def theme(self, request: Request, to: str = "dark", back: str = "/") -> Response:
        """Keep the choice of dark or light in a cookie."""
        safe = back if back.startswith("/") and not back.startswith(("//", "/\\")) else "/"
        response = RedirectResponse(safe, status_code=303)
        if to in _THEMES:
            response.set_cookie("sagittal_theme", to, max_age=31_536_000, samesite="strict", path="/")
        return response

    def _case(
        self, request: Request, case_id: str, *, problem: SagittalError | None = None, **asked: Any
    ) -> Response:
        show, offset = asked.get("show", "standing"), asked.get("offset", 0)
        case = self._store.case(case_id)
        page = self._store.findings(case_id, offset=offset, limit=_FINDINGS, standing=show != "all")
        if problem is None:
            self._store.audit("see case", who=_who(request), case_id=case_id)
        runs = {run.number: run for run in case.runs}
        report = report_view(self._draft(case.runs), {f.number: f for f in case.findings}, case_id)

        def at(start: int) -> str:
            return f"/cases/{case_id}?" + urlencode({"show": show, "offset": start}) + "#findings"

        volumes = self._volumes(case.runs)
        response = self._page(
            request,
            "case.html.j2",
            case=case,
            show="all" if show == "all" else "standing",
            total=page.total,
            undecided=sum(f.state.value == "draft" for f in case.findings),
            findings=findings_of(
                page.rows, runs=runs, replaced=_replaced(case.findings), report=report
            ),
            offset=offset,
            limit=_FINDINGS,
            **_neighbours(at, offset, _FINDINGS, page.total),
            report=report,
            volumes=volumes,
            still=_still(request, case_id, volumes, asked.get("image", ""), asked.get("over", "")),
            views=_VIEWS,
            graph=provenance_graph(case),
            runs=case.runs,
            counts=_counts(case),
            problem=None if problem is None else _said(problem),
        )
        response.status_code = 200 if problem is None else _status(problem)
        return response

    def _volumes(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        from sagittal.workbench.server.views import latest_volumes, volume_model

        found = [volume_model(self._store, runs, *pair) for pair in latest_volumes(runs).values()]
        return [{**one.model_dump(), "title": title_of(one.role)} for one in found]

    def _draft(self, runs: Sequence[Run]) -> Mapping[str, Any] | None:
        written = [artifact for run in runs for artifact in run.outputs if artifact.role == "report"]
        draft: Mapping[str, Any] | None = artifacts.load(self._store.objects, written[-1]) if written else None
        return draft

    def _page(self, request: Request, template: str, **values: Any) -> HTMLResponse:
        theme = request.cookies.get("sagittal_theme", "dark")
        here = request.url.path if request.method == "GET" else "/"
        return HTMLResponse(
            self._templates.get_template(template).render(
                theme=theme if theme in _THEMES else "dark",
                csrf=request.state.csrf,
                user=request.state.user,
                style=style_url(),
                scripts=scripts(),
                here=f"{here}?{request.url.query}" if request.url.query and here != "/" else here,
                version=__version__,
                **values,
            ),
            headers={"Cache-Control": "no-store"},
        )

    def _problem(self, request: Request, error: SagittalError, *, back: str) -> Response:
        response = self._page(request, "problem.html.j2", **_said(error), back=back)
        response.status_code = _status(error)
        return response

    def _case_problem(self, request: Request, case_id: str, error: SagittalError) -> Response:
        """The case as it is, with what was refused on top."""
        try:
            return self._case(request, case_id, problem=error)
        except SagittalError as worse:
            return self._problem(request, worse, back="/")


def _style() -> Response:
    return FileResponse(
        STYLE, media_type="text/css", headers={"Cache-Control": "private, max-age=31536000, immutable"}
    )


def _still(
    request: Request, case_id: str, volumes: Sequence[Mapping[str, Any]], image: str, over: str
) -> dict[str, Any]:
    """The still pictures: three slices of one image, and what lies over them."""
    if not volumes:
        return {"role": "", "over": "", "overs": [], "title": "", "planes": []}
    plain = [volume for volume in volumes if not volume["classes"]] or list(volumes)
    chosen = next((volume for volume in volumes if volume["role"] == image), plain[0])
    overs = [
        (f"{volume['role']}.{part['name']}", f"{volume['title']}: {part['title']}")
        for volume in volumes
        for part in volume["parts"]
        if part["kind"] != "image" and volume["shape"] == chosen["shape"]
    ]
    names = [name for name, _ in overs]
    if over not in names:
        over = names[0] if names and "over" not in request.query_params else ""
    planes = []
    for axis in _PLANES:
        last = chosen["slices"][axis] - 1
        given = request.query_params.get(axis, "")
        index = min(int(given), last) if given.isdecimal() and len(given) < 7 else last // 2
        query = f"?{urlencode({'over': over})}" if over else ""
        planes.append(
            {
                "field": axis,
                "title": axis.capitalize(),
                "index": index,
                "last": last,
                "url": f"/api/cases/{case_id}/slices/{chosen['role']}/{axis}/{index}.png{query}",
            }
        )
    return {"role": chosen["role"], "over": over, "overs": overs, "title": chosen["title"], "planes": planes}


def _neighbours(at: Any, offset: int, limit: int, total: int) -> dict[str, str | None]:
    return {
        "earlier": at(max(offset - limit, 0)) if offset else None,
        "later": at(offset + limit) if offset + limit < total else None,
    }


def _replaced(findings: Sequence[Finding]) -> dict[int, list[int]]:
    replaced: dict[int, list[int]] = {}
    for finding in findings:
        for event in finding.events:
            if event.successor is not None:
                replaced.setdefault(event.successor, []).append(finding.number)
    return replaced


def _counts(case: Case) -> dict[int, str]:
    numbers = {run.number: 0 for run in case.runs}
    for finding in case.findings:
        if finding.run in numbers:
            numbers[finding.run] += 1
    return {run: f"{count} finding{'' if count == 1 else 's'}" for run, count in numbers.items()}


def _who(request: Request) -> str:
    return str(request.state.user)


def _signed(request: Request, given: str) -> str:
    """Return the session's name, or the one that was given, which the session then keeps."""
    from sagittal.workbench.server.security import clean_name

    if request.state.user:
        return str(request.state.user)
    name = given.strip()
    if name:
        name = clean_name(name)
        if request.state.session is not None:
            request.state.session.name = name
    return name


def _back(case_id: str, number: int) -> Response:
    return RedirectResponse(f"/cases/{case_id}?show=all#finding-{number}", status_code=303)


def _said(error: SagittalError) -> dict[str, str]:
    wanted = f" Expected: {error.expected}." if error.expected else ""
    value = "" if error.value is None else f" ({error.value})"
    return {"title": "That was not done", "detail": f"{error.problem[:1].upper()}{error.problem[1:]}{value}.{wanted}"}


def _status(error: SagittalError) -> int:
    if isinstance(error, ConflictError):
        return 409
    if isinstance(error, StorageError):
        return 503
    return 404 if isinstance(error, InputError) and "no case has this id" in error.problem else 422
