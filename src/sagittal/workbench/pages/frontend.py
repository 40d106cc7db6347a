"""The files that a page loads: the style sheet, and the front end where it was built."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

__all__ = ["STATIC", "STYLE", "scripts", "style_url"]

STATIC = Path(__file__).parent.parent / "static"
"""Where `make web` builds the front end; absent in a checkout without Node."""

STYLE = Path(__file__).parent.parent / "templates" / "page.css"

_ENTRY = "src/main.ts"


@functools.cache
def style_url() -> str:
    """Return the style sheet's URL, which changes with its content."""
    return f"/static/page.css?v={hashlib.sha256(STYLE.read_bytes()).hexdigest()[:12]}"


def scripts() -> list[str]:
    """Return the URLs of the scripts of a page; empty when the front end was not built."""
    manifest = STATIC / "manifest.json"
    if not manifest.is_file():
        return []
    return [f"/static/{json.loads(manifest.read_text())[_ENTRY]['file']}"]
