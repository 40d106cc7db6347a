"""Cases from elsewhere and to elsewhere: archives of one case, and studies of an image archive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from sagittal.workbench.server.access import Here, Who
from sagittal.workbench.server.models import (
    CaseId,
    CreatedModel,
    FetchedModel,
    FetchRequest,
    SentModel,
    StudyModel,
)
from sagittal.workbench.server.problems import Problem, problems
from sagittal.workbench.server.uploads import received

__all__ = ["router"]

router = APIRouter(prefix="/api", tags=["transfer"])

_CHUNK = 1 << 20
_ZIP = {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"archive": {"type": "string", "format": "binary"}},
                    "required": ["archive"],
                }
            }
        },
    }
}
_FILE_LIST = {"type": "array", "items": {"type": "string", "format": "binary"}}
_FILES = {
    "type": "object",
    "properties": {
        "label": {"type": "string", "description": "What to call the case; should identify nobody."},
        "t1": {
            **_FILE_LIST,
            "description": "Brain-masked T1 image: a file, or a series of DICOM files.",
        },
        "ct": {**_FILE_LIST, "description": "CT slice."},
        "record": {**_FILE_LIST, "description": "Patient record, one text file."},
        "encoding": {"type": "string", "description": "Encoding of the record; UTF-8 without."},
    },
}


@router.get(
    "/cases/{case_id}/archive",
    response_class=Response,
    responses={200: {"description": "The archive.", **_ZIP}, **problems(404)},
)
def archive(here: Here, who: Who, case_id: CaseId) -> Response:
    """Return a case as one archive: its record, and every content that it refers to."""
    stream = here.archive(who, case_id)
    headers = {
        "content-length": str(os.fstat(stream.fileno()).st_size),
        "content-disposition": f'attachment; filename="case-{case_id}.zip"',
    }
    return StreamingResponse(_chunks(stream), media_type="application/zip", headers=headers)


@router.post(
    "/cases/import",
    status_code=201,
    responses={
        200: {"description": "The store holds this very case already.", "model": CreatedModel},
        **problems(409, 415),
    },
    openapi_extra=_UPLOAD,
)
async def import_case(request: Request, response: Response, here: Here, who: Who) -> CreatedModel:
    """Take a case from an archive, whole or not at all."""
    async with received(request, ["archive"], most=1) as upload:
        files = upload.files.get("archive", [])
        if not files:
            raise Problem(422, "no file was given", source="archive", expected="a case archive")
        case_id, new = await run_in_threadpool(here.import_case, who, files[0][1])
    response.status_code = 201 if new else 200
    return CreatedModel(case=case_id, job=None)


@router.post(
    "/cases",
    status_code=201,
    responses=problems(415),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": _FILES}},
        }
    },
)
async def create(request: Request, here: Here, who: Who) -> CreatedModel:
    """Open a case with files; what follows from them is run as a job."""
    async with received(request, ["t1", "ct", "record"], most=here.settings.most_files) as upload:
        case_id, job = await run_in_threadpool(here.receive, who, upload)
    return CreatedModel(case=case_id, job=job.id)


@router.get("/studies", responses=problems(501, 502))
def studies(
    here: Here,
    who: Who,
    study: Annotated[str, Query(pattern=r"^[0-9.]{0,64}$", description="Study Instance UID.")] = "",
    patient_id: Annotated[str, Query(max_length=64)] = "",
    date: Annotated[
        str, Query(pattern="^([0-9]{8}(-[0-9]{8})?)?$", description="YYYYMMDD, or YYYYMMDD-YYYYMMDD.")
    ] = "",
    modality: Annotated[str, Query(pattern="^[A-Z]{0,16}$")] = "",
    description: Annotated[str, Query(max_length=64, description="* stands for anything.")] = "",
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> list[StudyModel]:
    """List studies of the image archive, without saying whose they are."""
    asked = {"uid": study, "patient_id": patient_id, "date": date, "modality": modality}
    found = here.studies(who, asked | {"description": description}, offset=offset, limit=limit)
    return [StudyModel.model_validate(one) for one in found]


@router.post("/studies/fetch", status_code=201, responses=problems(501, 502))
def fetch(here: Here, who: Who, asked: FetchRequest) -> FetchedModel:
    """Fetch a study's T1 image or CT slice into a new case; measuring it goes on as a job."""
    fetched, job = here.fetch(who, asked.study, asked.series, asked.label)
    return FetchedModel(
        case=fetched.case,
        roles={role: one.uid for role, one in fetched.roles.items()},
        left=[one.uid for one in fetched.left],
        job=job,
    )


@router.post("/cases/{case_id}/send", status_code=201, responses=problems(404, 501, 502))
def send(here: Here, who: Who, case_id: CaseId) -> list[SentModel]:
    """Send a case's segmentations and findings to the image archive; each is read again and compared."""
    return [SentModel.model_validate(one) for one in here.send(who, case_id)]


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        while chunk := stream.read(_CHUNK):
            yield chunk
