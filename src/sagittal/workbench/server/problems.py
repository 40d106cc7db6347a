"""Errors as ``application/problem+json`` (RFC 9457), the same shape for every refusal."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import PurePath
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from sagittal.core.errors import (
    ArchiveError,
    AssetError,
    ConflictError,
    InputError,
    MissingDependencyError,
    SagittalError,
    StorageError,
)

__all__ = ["TOO_LARGE", "Problem", "ProblemModel", "handle_errors", "problem_response", "problems"]

TOO_LARGE = "sagittal.too_large"
"""Set in the scope of a request whose body ran over its limit."""

_RETRY_SECONDS = "5"


class Problem(Exception):  # noqa: N818 (a problem in the words of RFC 9457)
    """A refusal with its HTTP status.

    Args:
        status: HTTP status.
        problem: What is wrong, in one clause.
        source: The field or header the problem is in.
        value: What was found there; nothing that identifies a person.
        expected: What would have been right.
        headers: Headers of the answer.
    """

    def __init__(
        self,
        status: int,
        problem: str,
        *,
        source: str | None = None,
        value: Any = None,
        expected: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(problem)
        self.status = status
        self.problem = problem
        self.source = source
        self.value = value
        self.expected = expected
        self.headers = headers or {}


class ProblemModel(BaseModel):
    """A refusal."""

    type: str = "about:blank"
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["no case has this id"])
    source: str | None = Field(None, description="The field, header or file that the problem is in.")
    value: Any = Field(None, description="What was found there.")
    expected: str | None = Field(None, description="What would have been right.")


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of these statuses, and of those that any route may answer with."""
    always = (400, 401, 403, 413, 421, 422, 503)
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemModel"}}
            },
        }
        for status in sorted({*always, *statuses})
    }


def problem_response(problem: Problem) -> Response:
    """Return a refusal as an answer."""
    headers = dict(problem.headers)
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if problem.status == 503:
        headers["Retry-After"] = _RETRY_SECONDS
    value = problem.value
    body = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.problem,
        "source": problem.source,
        "value": value if isinstance(value, int | float | dict | list) or value is None else str(value),
        "expected": problem.expected,
    }
    return JSONResponse(body, problem.status, headers, media_type="application/problem+json")


def handle_errors(app: FastAPI) -> None:
    """Let every error of ``app`` end as a problem, without a traceback."""

    async def refused(_request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return problem_response(error)

    async def ours(_request: Request, error: Exception) -> Response:
        assert isinstance(error, SagittalError)
        status = _status(error)
        source = None if status == 503 else error.source
        if source is not None and source.startswith("/"):  # a path of this machine helps no reader
            source = PurePath(source).name
        return problem_response(
            Problem(status, error.problem, source=source, value=error.value, expected=error.expected)
        )

    async def invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found = [
            {"where": ".".join(map(str, one["loc"])), "problem": one["msg"]} for one in error.errors()[:20]
        ]
        where = found[0]["where"] if found else None
        return problem_response(
            Problem(422, "the request is not as the API asks", source=where, value=jsonable_encoder(found))
        )

    async def other(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if (limit := request.scope.get(TOO_LARGE)) is not None:
            return problem_response(Problem(413, "the body is too large", expected=f"{limit} bytes or fewer"))
        headers = dict(error.headers or {})
        return problem_response(Problem(error.status_code, str(error.detail), headers=headers))

    app.add_exception_handler(Problem, refused)
    app.add_exception_handler(SagittalError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, other)


def _status(error: SagittalError) -> int:
    if isinstance(error, ConflictError):
        return 409
    if isinstance(error, ArchiveError):
        return 502
    if isinstance(error, StorageError | AssetError):
        return 503
    if isinstance(error, MissingDependencyError):
        return 501
    return 422 if isinstance(error, InputError) else 500
