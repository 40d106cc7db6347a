"""What the API says, as OpenAPI shows it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "ArtifactModel",
    "AuditLineModel",
    "AuditModel",
    "CaseId",
    "CaseModel",
    "CaseRowModel",
    "ContentQuery",
    "CorrectedModel",
    "CreatedModel",
    "EdgeModel",
    "EventModel",
    "FetchRequest",
    "FetchedModel",
    "FindingModel",
    "FindingNumber",
    "FindingsModel",
    "HealthModel",
    "IdentityModel",
    "JobModel",
    "Limit",
    "MeasurementModel",
    "NameModel",
    "Offset",
    "PartModel",
    "ProvenanceModel",
    "ReportModel",
    "ReportRequest",
    "Role",
    "RunModel",
    "SentModel",
    "SessionModel",
    "StateModel",
    "StatementRequest",
    "StudyModel",
    "VerdictRequest",
    "VolumeModel",
    "WorklistModel",
]

CaseId = Annotated[
    str, Path(pattern="^[0-9a-f]{12}$", description="Id of the case.", examples=["0f3a9c2b7d14"])
]
FindingNumber = Annotated[int, Path(ge=1, le=2**31 - 1, description="Number of the finding.", examples=[3])]
Role = Annotated[
    str,
    Path(pattern="^[a-z0-9][a-z0-9-]{0,63}$", description="The volume's part in the case.", examples=["t1"]),
]
Offset = Annotated[int, Query(ge=0, le=2**31 - 1, description="Rows to pass over.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Most rows to return.")]
ContentQuery = Annotated[
    str | None,
    Query(pattern="^[0-9a-f]{64}$", description="sha256 of the volume; by default the latest of its role."),
]
_Text = Annotated[str, Field(max_length=10_000)]
_Who = Annotated[str, Field(max_length=200, description="Who says so, where the session has no name.")]


class HealthModel(BaseModel):
    """The server answers."""

    status: Literal["ok"] = "ok"
    version: str = Field(examples=["0.1.0"])


class SessionModel(BaseModel):
    """Who is signed in."""

    name: str = Field(description="What verdicts are signed with; empty until the reader has said.")
    csrf: str = Field(description="What requests that change something carry in X-Sagittal-CSRF.")


class NameModel(BaseModel):
    """The reader's name."""

    name: str = Field(min_length=1, max_length=200, examples=["Reader A"])


class CaseRowModel(BaseModel):
    """A case in the worklist."""

    model_config = ConfigDict(from_attributes=True)
    id: str
    label: str
    created: str
    changed: str
    state: Literal["empty", "open", "reviewed"]
    findings: int
    undecided: int
    doubt: float | None = Field(description="Largest doubt of its standing findings, in [0, 1].")
    worst: str = Field(description="Statement of the finding with that doubt.")


class WorklistModel(BaseModel):
    """A part of the worklist."""

    total: int
    rows: list[CaseRowModel]


class CreatedModel(BaseModel):
    """A case that was added."""

    case: str = Field(examples=["0f3a9c2b7d14"])
    job: str | None = Field(description="Id of the job that runs its steps, where there are any to run.")


class ArtifactModel(BaseModel):
    """Something a run read or wrote."""

    model_config = ConfigDict(from_attributes=True)
    role: str
    kind: str
    content: str
    parts: list[str] = Field(description="sha256 of the further contents that the content names.")


class RunModel(BaseModel):
    """One execution of a step, or a change that a person made."""

    model_config = ConfigDict(from_attributes=True)
    number: int
    step: str
    version: str
    author: str = Field("", description="The person, where a person made it.")
    parameters: dict[str, Any]
    inputs: list[ArtifactModel]
    outputs: list[ArtifactModel]
    findings: list[str] = Field(description="sha256 of its findings.")
    used: list[int] = Field(description="Numbers of the findings that it read.")
    seed: str = Field(description="As digits: larger than a number in JavaScript holds exactly.")
    doubt: str
    models: dict[str, str]
    environment: dict[str, Any]
    started: str
    seconds: float
    seen: int = Field(description="How many events the case held when the step read it.")


class PartModel(BaseModel):
    """What of a volume can be had as NIfTI."""

    name: str = Field(examples=["image", "probability-gm", "doubt"])
    title: str
    kind: Literal["image", "labels", "map"]
    unit: str


class VolumeModel(BaseModel):
    """A volume of a case."""

    role: str
    run: int
    unit: str
    shape: list[int]
    spacing: list[float] = Field(description="mm along each index axis.")
    classes: list[str] = Field(description="Label 1 is the first, 0 is none of them.")
    content: str = Field(description="sha256; goes into ?content= and into If-Match of a correction.")
    slices: dict[str, int] = Field(description="Number of slices: axial, coronal, sagittal.")
    correctable: bool = Field(description="Whether a corrected mask is taken.")
    parts: list[PartModel]


class CaseModel(BaseModel):
    """A case without its findings."""

    id: str
    label: str
    created: str
    state: str = Field(examples=["empty", "open", "reviewed"])
    findings_total: int
    runs: list[RunModel]
    volumes: list[VolumeModel]


class MeasurementModel(BaseModel):
    """A number and the interval it is believed to lie in."""

    model_config = ConfigDict(from_attributes=True)
    value: float
    low: float
    high: float
    level: float
    unit: str


class EventModel(BaseModel):
    """What was said of a finding."""

    model_config = ConfigDict(from_attributes=True)
    number: int = Field(description="Order within the case, whatever the clock said.")
    verdict: Literal["accepted", "rejected", "superseded"]
    who: str
    when: str
    note: str
    successor: int | None


class FindingModel(BaseModel):
    """A finding, with where it stands and what was said of it."""

    number: int
    state: Literal["draft", "accepted", "rejected", "superseded"]
    author: str
    added: str
    run: int | None
    code: str
    subject: str
    statement: str
    measurement: MeasurementModel | None
    confidence: float | None
    caution: str
    details: dict[str, Any]
    doubt: float | None
    events: list[EventModel]


class FindingsModel(BaseModel):
    """A part of a case's findings."""

    total: int
    rows: list[FindingModel]


class VerdictRequest(BaseModel):
    """What a reader says of a finding."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"verdict": "accepted", "note": "agrees"}]})
    verdict: Literal["accepted", "rejected"]
    note: _Text = ""
    who: _Who | None = None


class StatementRequest(BaseModel):
    """What a reader says instead of a finding."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"statement": "Air in the sinuses only."}]})
    statement: Annotated[str, Field(min_length=1, max_length=10_000)]
    note: _Text = ""
    who: _Who | None = None


class StateModel(BaseModel):
    """Where a finding stands now."""

    case: str
    finding: int
    state: Literal["accepted", "rejected", "superseded"]
    who: str
    successor: int | None = Field(description="Number of the finding that took its place.")


class CorrectedModel(BaseModel):
    """A corrected mask as it was kept."""

    content: str = Field(description="sha256 of the corrected volume: If-Match of the next correction.")
    run: int
    changed: int = Field(description="Voxels with another label than before.")
    findings: list[int] = Field(description="Numbers of the new findings.")


class EdgeModel(BaseModel):
    """What one run made and another one read."""

    source: int
    target: int
    label: str


class ProvenanceModel(BaseModel):
    """Runs of a case and what went from one to the other."""

    runs: list[RunModel]
    edges: list[EdgeModel]


class _SentenceModel(BaseModel):
    text: str
    findings: list[int]
    caution: str = ""


class _SectionModel(BaseModel):
    title: str
    sentences: list[_SentenceModel]


class _ImpressionModel(BaseModel):
    text: str
    findings: list[int]
    author: str
    refused: list[dict[str, Any]] = []


class ReportModel(BaseModel):
    """The draft: every sentence with the numbers of the findings that hold it."""

    run: int
    started: str
    sections: list[_SectionModel]
    impression: _ImpressionModel


class ReportRequest(BaseModel):
    """How to draft again."""

    model: str = Field(
        "",
        max_length=100,
        pattern="^[a-z0-9.-]*$",
        description="Language model by its asset's name; rules without.",
    )


class JobModel(BaseModel):
    """Work that goes on after the answer."""

    id: str
    case: str
    what: str
    state: str = Field(examples=["waiting", "running", "done", "failed"])
    started: str
    seconds: float
    problem: str | None = Field(None, description="Why it failed.")


class StudyModel(BaseModel):
    """A study of the image archive, without whose it is."""

    model_config = ConfigDict(from_attributes=True)
    uid: str
    date: str
    modalities: list[str]
    description: str
    series: int | None
    instances: int | None


class FetchRequest(BaseModel):
    """Which study to fetch."""

    study: str = Field(pattern=r"^[0-9][0-9.]{0,63}$", description="Study Instance UID.", examples=["1.2.3"])
    series: list[Annotated[str, Field(pattern=r"^[0-9][0-9.]{0,63}$")]] = Field(
        [],
        max_length=10,
        description="Series to take; without, those that say T1, or are one CT slice.",
    )
    label: str = Field("case", max_length=200, description="What to call the case; should identify nobody.")


class FetchedModel(BaseModel):
    """A case that was made of a study."""

    case: str
    roles: dict[str, str] = Field(description="The series that fills each role.")
    left: list[str] = Field(description="Series of the study that fill no role.")
    job: str = Field(description="Id of the job that measures it.")


class SentModel(BaseModel):
    """An object that is in the image archive now."""

    model_config = ConfigDict(from_attributes=True)
    kind: str
    study: str
    series: str
    instance: str
    was_there: bool


class AuditLineModel(BaseModel):
    """Somebody saw or changed something."""

    model_config = ConfigDict(from_attributes=True)
    number: int
    when: str
    who: str
    action: str
    case_id: str | None
    detail: dict[str, Any]


class AuditModel(BaseModel):
    """Audit lines, newest first."""

    rows: list[AuditLineModel]


class IdentityModel(BaseModel):
    """Identifying fields of the received DICOM files: role, then field, then its distinct values."""

    roles: dict[str, dict[str, list[str]]]
