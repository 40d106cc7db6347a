"""Turn roles in docstrings, such as ``:class:`~a.b.C```, and simple tables into code for the API page."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`(~?)([^`]+)`")
_BORDER = r"=+(?: +=+)+"
_TABLE = re.compile(rf"^{_BORDER}\n(.*?)\n{_BORDER}$", re.MULTILINE | re.DOTALL)


def _plain(match: re.Match[str]) -> str:
    tilde, name = match.groups()
    return f"`{name.rsplit('.', 1)[-1] if tilde else name}`"


class DocstringRoles(griffe.Extension):
    """Rewrite each docstring as it is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replace the roles and the tables of one object's docstring."""
        if obj.docstring:
            text = _ROLE.sub(_plain, obj.docstring.value)
            obj.docstring.value = _TABLE.sub(lambda found: f"```text\n{found[1]}\n```", text)
