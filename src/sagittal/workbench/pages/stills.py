"""Still pictures of a case, for a browser without scripts or without WebGL2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

__all__ = ["still_pictures"]

_PLANES = ("axial", "coronal", "sagittal")
_LONGEST_NUMBER = 6


def still_pictures(
    case_id: str,
    volumes: Sequence[Mapping[str, Any]],
    asked: Mapping[str, str],
    image: str = "",
    over: str | None = None,
) -> dict[str, Any]:
    """Return three slices of one image as URLs, and what a form can choose.

    Args:
        case_id: The case.
        volumes: Its volumes as the HTTP interface says them, each with a ``title``.
        asked: Number of the slice for each plane, where one was asked for; another is the middle one.
        image: Role of the image; by default the first that is no segmentation.
        over: ``role/part`` that lies over it; empty for nothing, None for the first there is.
    """
    if not volumes:
        return {"role": "", "over": "", "overs": [], "title": "", "planes": []}
    plain = [volume for volume in volumes if not volume["classes"]] or list(volumes)
    chosen = next((volume for volume in volumes if volume["role"] == image), plain[0])
    overs = [
        (f"{volume['role']}/{part['name']}", f"{volume['title']}: {part['title']}")
        for volume in volumes
        for part in volume["parts"]
        if part["kind"] != "image" and volume["shape"] == chosen["shape"]
    ]
    names = [name for name, _ in overs]
    shown = over if over in names else (names[0] if names and over is None else "")
    flat = [axis for axis in _PLANES if 1 in chosen["shape"] and chosen["slices"][axis] == 1]
    return {
        "role": chosen["role"],
        "title": chosen["title"],
        "over": shown,
        "overs": overs,
        "planes": [_plane(case_id, chosen, axis, asked.get(axis, ""), shown) for axis in flat or _PLANES],
    }


def _plane(case_id: str, volume: Mapping[str, Any], axis: str, given: str, over: str) -> dict[str, Any]:
    last = volume["slices"][axis] - 1
    index = min(int(given), last) if given.isdecimal() and len(given) <= _LONGEST_NUMBER else last // 2
    query = f"?{urlencode({'over': over})}" if over else ""
    return {
        "field": axis,
        "title": axis.capitalize(),
        "index": index,
        "last": last,
        "url": f"/api/cases/{case_id}/slices/{volume['role']}/{axis}/{index}.png{query}",
    }
