"""What routes are given: the desk, and who asks."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from sagittal.workbench.server.desk import Desk
from sagittal.workbench.server.security import clean_name

__all__ = ["Here", "Who", "signed"]


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def _who(request: Request) -> str:
    return str(getattr(request.state, "user", ""))


Here = Annotated[Desk, Depends(_desk)]
Who = Annotated[str, Depends(_who)]


def signed(session_name: str, given: str | None) -> str:
    """Return who signs: the session's name where it has one. That a session was named is audited.

    Raises:
        Problem: The given name cannot be used.
    """
    if session_name or not given:
        return session_name
    return clean_name(given)
