"""Voxels of a case: as NIfTI for a viewer, as pictures, and back as a corrected mask."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi import Path as InPath
from starlette.concurrency import run_in_threadpool

from sagittal.core.files import storage_errors
from sagittal.workbench.server.access import Here, Who, signed
from sagittal.workbench.server.models import CaseId, ContentQuery, CorrectedModel, Role
from sagittal.workbench.server.problems import Problem, problems
from sagittal.workbench.server.volumes import VolumeResponse

__all__ = ["router"]

router = APIRouter(prefix="/api/cases/{case_id}", tags=["volumes"])

Part = Annotated[
    str,
    InPath(
        max_length=100, description='"image", "probability-<class>" or "doubt".', examples=["image", "doubt"]
    ),
]
_FILE = {"content": {"application/gzip": {"schema": {"type": "string", "format": "binary"}}}}
_PICTURE = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
_ETAG = re.compile(r'"([0-9a-f]{64})"')


@router.get(
    "/volumes/{role}/{part}.nii.gz",
    response_class=Response,
    responses={
        200: {"description": "The file.", **_FILE},
        206: {"description": "The part of the file that Range asked for.", **_FILE},
        304: {"description": "The file is the one that If-None-Match names."},
        416: {"description": "Range lies outside the file."},
        **problems(404),
    },
)
def volume(
    here: Here, who: Who, case_id: CaseId, role: Role, part: Part, content: ContentQuery = None
) -> Response:
    """Return a part of a volume as gzipped NIfTI; ranges and If-None-Match as RFC 9110 has them."""
    path, found = here.volume_file(who, case_id, role, part, content)
    name = re.sub(r"[^a-z0-9-]", "_", part)
    return VolumeResponse(path, f"{found}-{name}", immutable=content is not None)


@router.get(
    "/slices/{role}/{axis}/{index}.png",
    response_class=Response,
    responses={200: {"description": "The picture.", **_PICTURE}, **problems(404)},
)
def picture(
    here: Here,
    who: Who,
    case_id: CaseId,
    role: Role,
    axis: Literal["axial", "coronal", "sagittal"],
    index: Annotated[int, InPath(ge=0, le=100_000, description="From the feet, the front or the right.")],
    over: Annotated[
        str | None,
        Query(
            max_length=170, description="A part to lay over it, or role/part of a volume on the same grid."
        ),
    ] = None,
) -> Response:
    """Return a slice as a picture, for pages without scripts."""
    return Response(here.slice(who, case_id, role, axis, index, over), media_type="image/png")


@router.post(
    "/volumes/{role}/correction",
    status_code=201,
    responses=problems(404, 409, 412, 428),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/gzip": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def correct(
    request: Request,
    here: Here,
    session_name: Who,
    case_id: CaseId,
    role: Role,
    if_match: Annotated[
        str | None, Header(description="The content of the mask that was edited, in quotes.")
    ] = None,
    who: Annotated[str | None, Query(max_length=200)] = None,
    note: Annotated[str, Query(max_length=2000)] = "",
) -> CorrectedModel:
    """Keep a mask as the reader painted it: NIfTI, plain or gzipped; 0 is none, 1 the first class, and so on.

    409 says that somebody else changed the mask since; nothing was written then.
    """
    name = signed(session_name, who)
    if if_match is None:
        raise Problem(428, "which mask was edited is not said", source="If-Match", expected='"<content>"')
    edited = _ETAG.fullmatch(if_match.strip())
    if edited is None:
        raise Problem(412, "this names no mask", source="If-Match", expected='"<content>", 64 digits')
    with tempfile.TemporaryDirectory(prefix="sagittal-correction-") as folder:
        path = Path(folder) / "mask.nii.gz"
        with storage_errors(path), path.open("xb") as stream:
            async for chunk in request.stream():
                await run_in_threadpool(stream.write, chunk)
        kept = await run_in_threadpool(
            here.correct, name, case_id, role, path, edited=edited.group(1), note=note
        )
    return CorrectedModel(
        content=kept.artifact.content, run=kept.run.number, changed=kept.changed, findings=list(kept.findings)
    )
