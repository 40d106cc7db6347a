"""What a reader can do with a case: each act with its audit line, for the API and the pages alike."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sagittal.case.archive import Limits, export_archive, import_case
from sagittal.case.location import open_store
from sagittal.case.record import Artifact, Case, Finding, FindingDraft, Run, Verdict
from sagittal.case.store import CaseStore, FindingPage
from sagittal.case.worklist import CaseSummary, Worklist
from sagittal.core import assets
from sagittal.core.errors import ConflictError, InputError
from sagittal.core.files import storage_errors
from sagittal.records import decode_record
from sagittal.volume import Volume, read_nifti
from sagittal.workbench.server import worker
from sagittal.workbench.server.jobs import Job, Jobs
from sagittal.workbench.server.problems import Problem
from sagittal.workbench.server.settings import ServerSettings
from sagittal.workbench.server.uploads import Upload
from sagittal.workbench.server.volumes import ServedVolumes, part_of
from sagittal.workflow import artifacts
from sagittal.workflow.artifacts import SourceFiles
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.runner import Runner
from sagittal.workflow.steps import DraftReport

if TYPE_CHECKING:
    from sagittal.workflow.correction import Corrected
    from sagittal.workflow.dicomweb import Archive, Study
    from sagittal.workflow.exchange import Fetched, Sent

__all__ = ["Desk"]


class Desk:
    """The store behind a server, with what a reader can do to it.

    Args:
        settings: Where the store lies, and limits.

    Attributes:
        store: The store; its methods may be used where nothing is left to be audited.
        jobs: Work that goes on in the worker process.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.store: CaseStore = open_store(settings.store)
        self.jobs = Jobs()
        self._served = ServedVolumes(self.store.objects.folder.parent / "served", settings.served_bytes)

    def close(self) -> None:
        """Let the running job end, and close the store."""
        self.jobs.close()
        self.store.close()

    def worklist(
        self,
        who: str,
        *,
        search: str = "",
        state: str | None = None,
        order: str = "doubt",
        offset: int = 0,
        limit: int = 50,
    ) -> Worklist:
        """Return a part of the worklist; a search may name somebody, so the audit keeps its length."""
        found = self.store.worklist(search=search, state=state, order=order, offset=offset, limit=limit)
        detail = {"search_letters": len(search), "state": state, "order": order, "offset": offset}
        self.store.audit("worklist", who=who, detail=detail)
        return found

    def outline(self, case_id: str) -> tuple[Case, CaseSummary]:
        """Return a case without its findings, and its line of the worklist; not audited.

        Raises:
            Problem: There is no such case.
        """
        with _or_not_found():
            return self.store.outline(case_id)

    def open_case(self, who: str, case_id: str) -> tuple[Case, CaseSummary, int]:
        """Return a case without its findings, its line of the worklist, and how many findings it has."""
        case, summary = self.outline(case_id)
        self.store.audit("open-case", who=who, case_id=case_id)
        return case, summary, self.store.findings(case_id, limit=0).total

    def whole_case(self, who: str, case_id: str, action: str) -> Case:
        """Return a case with all its findings, which takes a while where there are tens of thousands."""
        with _or_not_found():
            case = self.store.case(case_id)
        self.store.audit(action, who=who, case_id=case_id)
        return case

    def findings(
        self, who: str, case_id: str, *, offset: int = 0, limit: int = 100, standing: bool = False
    ) -> FindingPage:
        """Return a part of a case's findings."""
        with _or_not_found():
            found = self.store.findings(case_id, offset=offset, limit=limit, standing=standing)
        self.store.audit("read-findings", who=who, case_id=case_id, detail={"offset": offset})
        return found

    def finding(self, who: str, case_id: str, number: int) -> Finding:
        """Return one finding."""
        with _or_not_found():
            found = self.store.finding(case_id, number)
        self.store.audit("read-finding", who=who, case_id=case_id, detail={"finding": number})
        return found

    def judge(self, who: str, case_id: str, number: int, verdict: Verdict, note: str = "") -> Finding:
        """Accept or reject a finding."""
        with _or_not_found():
            self.store.finding(case_id, number)
        self.store.judge(case_id, number, verdict, who=_named(who), note=note)
        return self.store.finding(case_id, number)

    def restate(self, who: str, case_id: str, number: int, statement: str, note: str = "") -> Finding:
        """Put a reader's statement in the place of a finding; return the new finding."""
        with _or_not_found():
            old = self.store.finding(case_id, number).content
        draft = FindingDraft(code=old.code, subject=old.subject, statement=statement)
        return self.store.supersede(case_id, number, draft, who=_named(who), note=note)

    def volume(self, case_id: str, role: str, content: str | None = None) -> tuple[Run, Artifact]:
        """Return a volume of a case and its run: the latest of its role, or the one of ``content``.

        Raises:
            Problem: The case has no such volume.
        """
        for run in reversed(self.outline(case_id)[0].runs):
            for artifact in run.outputs:
                wanted = artifact.role == role and artifact.kind == "volume"
                if wanted and content in {None, artifact.content}:
                    return run, artifact
        raise Problem(404, "the case has no such volume", source="role", value=role)

    def volume_file(
        self, who: str, case_id: str, role: str, part: str, content: str | None = None
    ) -> tuple[Path, str]:
        """Return the NIfTI file of a volume's part, and the content it was made from."""
        _, artifact = self.volume(case_id, role, content)

        def make() -> Volume:
            return part_of(artifacts.load(self.store.objects, artifact), part)

        with _or_not_found():
            path = self._served.get(artifact.content, part, make)
        detail = {"role": role, "part": part, "content": artifact.content}
        self.store.audit("read-volume", who=who, case_id=case_id, detail=detail)
        return path, artifact.content

    def slice(self, who: str, case_id: str, role: str, axis: str, index: int, over: str | None) -> bytes:
        """Return a slice of a volume as PNG, with a part of it or of another volume over it.

        Args:
            who: Who looks.
            case_id: The case.
            role: The volume.
            axis: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
            index: Number of the slice, from the feet, the front or the right.
            over: A part of the volume, or ``role/part`` of another one on the same grid.
        """
        from sagittal.workflow.export.pictures import slice_png

        volume = self._load(case_id, role)
        cover = None
        if over is not None:
            other, _, part = over.rpartition("/")
            source = self._load(case_id, other) if other else volume
            with _or_not_found():
                cover = source if part == "image" and source.classes else part_of(source, part)
        picture = slice_png(volume, axis, index, over=cover)
        detail = {"role": role, "axis": axis, "index": index, "over": over}
        self.store.audit("read-slice", who=who, case_id=case_id, detail=detail)
        return picture

    def correct(
        self, who: str, case_id: str, role: str, labels: Path, *, edited: str, note: str = ""
    ) -> Corrected:
        """Keep a mask as the reader painted it; see :func:`sagittal.workflow.correction.correct_mask`."""
        from sagittal.workflow.correction import correct_mask

        self.volume(case_id, role)
        painted = read_nifti(labels, max_bytes=self.settings.largest_volume)
        return correct_mask(self.store, case_id, role, painted, edited=edited, who=_named(who), note=note)

    def report(self, who: str, case_id: str) -> tuple[Run, dict[str, Any]]:
        """Return the latest draft and the run that wrote it.

        Raises:
            Problem: There is no case, or no draft.
        """
        for run in reversed(self.outline(case_id)[0].runs):
            for artifact in run.outputs:
                if artifact.role == "report":
                    self.store.audit("read-report", who=who, case_id=case_id, detail={"run": run.number})
                    return run, artifacts.load(self.store.objects, artifact)
        raise Problem(404, "the case has no report yet", expected="POST, to draft one")

    def draft(self, who: str, case_id: str) -> tuple[Run, dict[str, Any]]:
        """Draft the report again, by rules alone."""
        self.outline(case_id)
        self.store.audit("draft-report", who=who, case_id=case_id, detail={"model": ""})
        Runner(store=self.store, shelf=ModelShelf(offline=True)).run(case_id, DraftReport(model=""))
        return self.report(who, case_id)

    def identity(self, who: str, case_id: str) -> dict[str, dict[str, list[str]]]:
        """Return the identifying fields of a case's DICOM files; that they were shown is audited before."""
        from sagittal.workflow.identity import identifying_fields

        self.outline(case_id)
        self.store.audit("show-identity", who=who, case_id=case_id)
        return identifying_fields(self.store, case_id)

    def archive(self, who: str, case_id: str) -> BinaryIO:
        """Return a case's archive, open for reading; its file has no name any more and goes when closed."""
        self.outline(case_id)
        self.store.audit("download-archive", who=who, case_id=case_id)
        with tempfile.TemporaryDirectory(prefix="sagittal-archive-") as folder:
            path = export_archive(self.store, case_id, Path(folder) / "case.zip")
            return path.open("rb")

    def import_case(self, who: str, path: Path) -> tuple[str, bool]:
        """Take a case from an archive; return its id, and whether it was not here before.

        Raises:
            Problem: The file is no zip archive by its first bytes.
            FormatError: It is damaged, contradicts itself, or is too large.
            ConflictError: The store holds another record of the case.
        """
        with storage_errors(path), path.open("rb") as stream:
            if stream.read(4) != b"PK\x03\x04":
                raise Problem(415, "not a zip archive", source="archive", expected="a case archive")
        most = self.settings.largest_upload
        done = import_case(self.store, path, limits=Limits(total=4 * most), who=who)
        return done.case_id, done.new

    def receive(self, who: str, upload: Upload) -> tuple[str, Job]:
        """Open a case with received files; return its id, and the job that runs the steps that follow.

        Raises:
            Problem: No file, one of a type that no step reads, or several records.
            InputError: The record is not in the encoding that was named.
            StorageError: The disk is full or read-only; a case may be left without all its files.
        """
        upload.require_images(("t1", "ct"))
        encoding = upload.fields.get("encoding") or "utf-8"
        contents = {role: upload.contents(role) for role in ("t1", "ct", "record") if role in upload.files}
        if not contents:
            raise Problem(422, "no file was given", expected="a T1 image, a CT slice or a record")
        if len(contents.get("record", ())) > 1:
            raise Problem(422, "a record is one file", source="record", expected="one file")
        for name, content in contents.get("record", ()):
            decode_record(content, encoding=encoding, source=name)
        case_id = self.store.create_case(upload.fields.get("label", "").strip() or "case", who=who)
        runner = Runner(store=self.store, shelf=ModelShelf(offline=True))
        for role, files in contents.items():
            runner.receive(case_id, f"{role}.files", SourceFiles(tuple(files)))
        counts: dict[str, Any] = {role: len(files) for role, files in contents.items()}
        self.store.audit("receive-files", who=who, case_id=case_id, detail=counts)
        job = self._start(case_id, "measure and draft", worker.complete, list(contents), encoding)
        return case_id, job

    def studies(self, who: str, asked: dict[str, str], *, offset: int, limit: int) -> Sequence[Study]:
        """Return studies of the image archive; the audit says which fields were asked by, not what."""
        archive = self._archive()
        fields = sorted(name for name, value in asked.items() if value)
        self.store.audit("search-studies", who=who, detail={"fields": fields, "offset": offset})
        return archive.find_studies(
            uid=asked["uid"],
            patient_id=asked["patient_id"],
            date=asked["date"],
            modality=asked["modality"],
            description=asked["description"],
            limit=limit,
            offset=offset,
        )

    def fetch(self, who: str, study: str, series: Sequence[str], label: str) -> tuple[Fetched, str]:
        """Fetch a study into a new case; return it, and the id of the job that measures it."""
        from sagittal.workflow.exchange import fetch_case

        runner = Runner(store=self.store, shelf=ModelShelf(offline=True))
        limit = self.settings.largest_upload
        fetched = fetch_case(
            runner, self._archive(), study, series=series, label=label, max_bytes=limit, who=who
        )
        job = self._start(fetched.case, "measure and draft", worker.measure_roles, list(fetched.roles))
        return fetched, job.id

    def send(self, who: str, case_id: str) -> Sequence[Sent]:
        """Send what a case found to the image archive."""
        from sagittal.workflow.exchange import send_case

        self.outline(case_id)
        runner = Runner(store=self.store, shelf=ModelShelf(offline=True))
        return send_case(runner, self._archive(), case_id, who=who)

    def draft_with(self, who: str, case_id: str, model: str) -> Job:
        """Have the report drafted with a language model, in the worker process."""
        self.outline(case_id)
        if model not in assets.REGISTRY:
            raise Problem(422, "no model has this name", source="model", value=model)
        self.store.audit("draft-report", who=who, case_id=case_id, detail={"model": model})
        return self._start(case_id, f"draft with {model}", worker.draft_report, model)

    def _start(self, case_id: str, what: str, function: Callable[..., None], *arguments: Any) -> Job:
        place = (self.store.location, self.store.objects.folder)
        return self.jobs.start(case_id, what, function, *place, case_id, *arguments)

    def _archive(self) -> Archive:
        if self.settings.dicomweb is None:
            raise Problem(501, "this server knows no image archive", expected="sagittal serve --dicomweb URL")
        from sagittal.workflow.dicomweb import Archive

        return Archive.from_environment(self.settings.dicomweb)

    def _load(self, case_id: str, role: str) -> Volume:
        _, artifact = self.volume(case_id, role)
        volume: Volume = artifacts.load(self.store.objects, artifact)
        return volume


@contextlib.contextmanager
def _or_not_found() -> Iterator[None]:
    """Turn what a look-up refuses into 404."""
    try:
        yield
    except ConflictError:
        raise
    except InputError as error:
        raise Problem(404, error.problem, value=error.value, expected=error.expected) from error


def _named(who: str) -> str:
    if not who.strip():
        raise Problem(
            422, "this needs a name", source="who", expected="a name in the session, or who in the request"
        )
    return who.strip()
