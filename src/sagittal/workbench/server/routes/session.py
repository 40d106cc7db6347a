"""Who is signed in, and whether the server answers."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from sagittal import __version__
from sagittal.workbench.server.access import Here
from sagittal.workbench.server.models import HealthModel, NameModel, SessionModel
from sagittal.workbench.server.problems import Problem, problems
from sagittal.workbench.server.security import COOKIE, Session, clean_name

__all__ = ["router"]

router = APIRouter(prefix="/api", tags=["session"])


@router.get("/health", responses=problems())
def health() -> HealthModel:
    """Say that the server answers; asks for no token."""
    return HealthModel(version=__version__)


@router.get("/session", responses=problems())
def session(request: Request) -> SessionModel:
    """Say who is signed in."""
    return SessionModel(name=request.state.user, csrf=request.state.csrf)


@router.post("/session", responses=problems(409))
def name(request: Request, here: Here, named: NameModel) -> SessionModel:
    """Give the reader's name, which verdicts of this browser are signed with from then on."""
    held: Session | None = request.state.session
    if held is None:
        raise Problem(409, "there is no session to name", expected="a browser that signed in with a token")
    before, held.name = held.name, clean_name(named.name)
    if held.name != before:
        here.store.audit("name-session", who=held.name, detail={"before": before})
    return SessionModel(name=held.name, csrf=held.csrf)


@router.delete("/session", status_code=204, responses=problems())
def leave(request: Request) -> Response:
    """End this browser's session."""
    request.state.sessions.close(request.cookies.get(COOKIE))
    response = Response(status_code=204)
    response.delete_cookie(COOKIE)
    return response
