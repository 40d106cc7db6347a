"""The application: routes, pages and static files behind the guard."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from sagittal import __version__
from sagittal.workbench.server.desk import Desk
from sagittal.workbench.server.problems import ProblemModel, handle_errors
from sagittal.workbench.server.routes import cases, findings, report, session, transfer, volumes
from sagittal.workbench.server.security import COOKIE, Guard, Sessions
from sagittal.workbench.server.settings import ServerSettings

__all__ = ["api_schema", "create_app"]

_TITLE = "sagittal"
_SUMMARY = "Cases, findings with their doubt, and what readers say of them. Not a medical device."

STATIC = Path(__file__).parent.parent / "static"
"""Where the built front-end lies; absent in a checkout that did not build it."""


def create_app(settings: ServerSettings) -> FastAPI:
    """Return the application over a store, which is opened now and closed when the application ends.

    A store to try it on, without a language model: ``sagittal run --t1 FILE --model none --store FOLDER
    --out REPORT``; for a brain, ``sagittal assets get mni152-t1`` prints a file that fits.

    Raises:
        StorageError: The store cannot be opened.
        InputError: The settings contradict each other.
    """
    from sagittal.workbench import pages  # they use the desk, so they come after this module

    desk = Desk(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()

    guard = Middleware(
        Guard,
        settings=settings,
        sessions=Sessions(settings.session_hours),
        note_sign_in=lambda: desk.store.audit("sign-in", who=""),
    )
    app = FastAPI(
        title=_TITLE,
        version=__version__,
        summary=_SUMMARY,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        openapi_url="/api/openapi.json",
        middleware=[guard],
        lifespan=lifespan,
    )
    app.state.desk = desk
    handle_errors(app)
    _include(app)
    app.include_router(pages.router(), include_in_schema=False)
    if STATIC.is_dir():
        app.mount("/static", _Static(directory=STATIC), name="static")
    return app


def api_schema() -> str:
    """Return the OpenAPI schema as JSON text; needs no store."""
    app = FastAPI(title=_TITLE, version=__version__, summary=_SUMMARY)
    _include(app)
    return json.dumps(app.openapi(), indent=2, ensure_ascii=False) + "\n"


def _include(app: FastAPI) -> None:
    for routes in (session, transfer, cases, findings, volumes, report):
        app.include_router(routes.router)
    made = app.openapi

    def schema() -> dict[str, Any]:
        found = made()
        found["components"]["schemas"]["ProblemModel"] = ProblemModel.model_json_schema()
        found["components"]["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer"},
            "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
        }
        found["security"] = [{"token": []}, {"session": []}]
        return found

    app.openapi = schema  # type: ignore[method-assign]


class _Static(StaticFiles):
    """Files of the front-end: named after their content by the build, so that a browser may keep them."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        if response.status_code == 200:
            response.headers["cache-control"] = "public, max-age=3600"
        return response
