"""Templates: a page from its values, and what was refused in a reader's words."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from sagittal import __version__
from sagittal.core.errors import (
    ConflictError,
    InputError,
    MissingDependencyError,
    SagittalError,
    StorageError,
)
from sagittal.workbench.pages.frontend import scripts, style_url
from sagittal.workbench.server.problems import Problem

__all__ = ["THEMES", "Refusal", "page", "refusal"]

THEMES = ("dark", "light", "system")
"""Dark is what a page is without a choice, as reading rooms are."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """What was refused and why."""

    status: int
    title: str
    detail: str


def page(request: Request, template: str, **values: Any) -> HTMLResponse:
    """Return a page.

    Args:
        request: What was asked; says who reads, and how the page looks.
        template: Name of the template.
        **values: What the template shows.
    """
    theme = request.cookies.get("sagittal_theme", THEMES[0])
    query = f"?{request.url.query}" if request.url.query else ""
    here = f"{request.url.path}{query}" if request.method == "GET" else "/"
    return HTMLResponse(
        _templates()
        .get_template(template)
        .render(
            theme=theme if theme in THEMES else THEMES[0],
            csrf=request.state.csrf,
            user=request.state.user,
            style=style_url(),
            scripts=scripts(),
            here=here,
            version=__version__,
            **values,
        ),
        headers={"Cache-Control": "no-store"},
    )


def refusal(error: SagittalError | Problem) -> Refusal:
    """Return what an error says, and the status it is answered with."""
    parts = [f"{error.problem[:1].upper()}{error.problem[1:]}"]
    if error.value is not None:
        parts[0] += f": {error.value}"
    if error.expected:
        parts.append(f"Expected: {error.expected}")
    status = error.status if isinstance(error, Problem) else _status(error)
    found = status == HTTPStatus.NOT_FOUND
    return Refusal(
        status=status, title="Not found" if found else "That was not done", detail=". ".join(parts) + "."
    )


def _status(error: SagittalError) -> int:
    kinds: tuple[tuple[type[SagittalError], int], ...] = (
        (ConflictError, 409),
        (StorageError, 503),
        (MissingDependencyError, 501),
        (InputError, 422),
    )
    return next((status for kind, status in kinds if isinstance(error, kind)), 500)


@functools.cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("sagittal.workbench", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain_json"] = lambda value: json.dumps(
        value, indent=1, ensure_ascii=False, default=dict
    )
    return environment
