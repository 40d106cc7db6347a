"""A case server from Python: the methods of a case store, by HTTP."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sagittal.case.audit import AuditLine
from sagittal.case.reading import FindingPage
from sagittal.case.record import Case, Event, Finding, FindingDraft, Run, Verdict
from sagittal.case.rows import artifact_of
from sagittal.case.worklist import CaseSummary, Worklist
from sagittal.core.errors import ConflictError, InputError, SagittalError, StorageError
from sagittal.core.files import atomic_path
from sagittal.core.optional import optional_import
from sagittal.core.provenance import Measurement
from sagittal.volume import Volume, read_nifti, write_nifti

__all__ = ["Client"]

_CHUNK = 1 << 20
_AT_ONCE = 500


class Client:
    """A case server, with the methods of :class:`~sagittal.case.store.CaseStore` under the same names.

    ``sagittal case list``, ``show``, ``accept``, ``reject`` and ``supersede`` speak to a server through it.

    Args:
        url: The server's URL; the one that ``sagittal serve`` printed, token and all, will do.
        token: The token, where it is not in the URL.
        timeout: Seconds to wait for an answer to begin.

    Raises:
        InputError: The URL is none, or no token is given.
        MissingDependencyError: httpx is not installed.
    """

    def __init__(self, url: str, token: str | None = None, *, timeout: float = 60.0) -> None:
        httpx = optional_import("httpx", "web")
        parts = urlsplit(url)
        token = token or next(iter(parse_qs(parts.query).get("token", [])), None)
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise InputError("not the URL of a server", value=parts.scheme, expected="http://127.0.0.1:8321/")
        if not token:
            raise InputError("a server asks for a token", expected="the URL that 'sagittal serve' printed")
        self.url, self.token = f"{parts.scheme}://{parts.netloc}", token
        self._http = httpx.Client(
            base_url=f"{self.url}/api",
            headers={"Authorization": f"Bearer {token}"},
            timeout=timeout,
            trust_env=False,  # no proxy of the environment sees a case
        )
        self._unreachable: type[Exception] = httpx.TransportError

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def worklist(
        self,
        *,
        search: str = "",
        state: str | None = None,
        order: str = "doubt",
        offset: int = 0,
        limit: int = 50,
    ) -> Worklist:
        """Return a part of the worklist."""
        asked = {"search": search, "order": order, "offset": offset, "limit": limit}
        found = self._json("GET", "/cases", params=asked | ({"state": state} if state else {}))
        return Worklist(total=found["total"], rows=tuple(CaseSummary(**row) for row in found["rows"]))

    def case(self, case_id: str) -> Case:
        """Return the case as it stands now, whole."""
        found = self.outline(case_id)
        findings: list[Finding] = []
        while len(findings) < found["findings_total"]:
            part = self.findings(case_id, offset=len(findings), limit=_AT_ONCE)
            if not part.rows:
                break
            findings += part.rows
        return Case(
            id=found["id"],
            label=found["label"],
            created=found["created"],
            runs=tuple(map(_run, found["runs"])),
            findings=tuple(findings),
        )

    def outline(self, case_id: str) -> dict[str, Any]:
        """Return a case's runs and volumes as the API says them."""
        found: dict[str, Any] = self._json("GET", f"/cases/{case_id}")
        return found

    def findings(
        self, case_id: str, *, offset: int = 0, limit: int = 100, standing: bool = False
    ) -> FindingPage:
        """Return a part of a case's findings, by number."""
        asked = {"offset": offset, "limit": limit, "standing": standing}
        found = self._json("GET", f"/cases/{case_id}/findings", params=asked)
        return FindingPage(total=found["total"], rows=tuple(map(_finding, found["rows"])))

    def finding(self, case_id: str, number: int) -> Finding:
        """Return one finding of a case."""
        return _finding(self._json("GET", f"/cases/{case_id}/findings/{number}"))

    def judge(self, case_id: str, number: int, verdict: Verdict, *, who: str, note: str = "") -> None:
        """Accept or reject a finding."""
        said = {"verdict": verdict.value, "who": who, "note": note}
        self._json("POST", f"/cases/{case_id}/findings/{number}/verdict", json=said)

    def supersede(
        self, case_id: str, number: int, draft: FindingDraft, *, who: str, note: str = ""
    ) -> Finding:
        """Put a person's statement in the place of a finding; return the new one.

        Raises:
            InputError: The draft is more than a statement with the code and subject of the old finding.
            ConflictError: The finding no longer stands.
        """
        old = self.finding(case_id, number).content
        if draft != FindingDraft(code=old.code, subject=old.subject, statement=draft.statement):
            raise InputError(
                "a server takes a statement only",
                source=f"finding {number}",
                expected="the old finding's code and subject, and nothing beside the statement",
            )
        said = {"statement": draft.statement, "who": who, "note": note}
        done = self._json("POST", f"/cases/{case_id}/findings/{number}/statement", json=said)
        return self.finding(case_id, done["successor"])

    def report(self, case_id: str, *, again: bool = False) -> dict[str, Any]:
        """Return the drafted report; ``again`` drafts it anew by rules."""
        found: dict[str, Any] = self._json("POST" if again else "GET", f"/cases/{case_id}/report")
        return found

    def volume(self, case_id: str, role: str, part: str = "image") -> Volume:
        """Return a part of a volume; its unit is in :meth:`outline`, for NIfTI does not hold it."""
        with tempfile.TemporaryDirectory(prefix="sagittal-client-") as folder:
            path = Path(folder) / "part.nii.gz"
            self._download(f"/cases/{case_id}/volumes/{role}/{part}.nii.gz", path)
            return read_nifti(path)

    def correct(
        self, case_id: str, role: str, labels: Volume, *, edited: str, who: str, note: str = ""
    ) -> dict[str, Any]:
        """Put a person's labels in the place of those of the segmentation with content ``edited``."""
        with tempfile.TemporaryDirectory(prefix="sagittal-client-") as folder:
            write_nifti(Volume(labels.array, labels.geometry), Path(folder) / "mask.nii.gz")
            body = (Path(folder) / "mask.nii.gz").read_bytes()
        found: dict[str, Any] = self._json(
            "POST",
            f"/cases/{case_id}/volumes/{role}/correction",
            content=body,
            headers={"If-Match": f'"{edited}"'},
            params={"who": who, "note": note},
        )
        return found

    def export_archive(self, case_id: str, path: Path) -> Path:
        """Write a case's archive to ``path``, whole or not at all."""
        with atomic_path(path) as temporary:
            self._download(f"/cases/{case_id}/archive", temporary)
        return path

    def import_archive(self, path: Path) -> str:
        """Give the server a case's archive; return the case's id."""
        with Path(path).open("rb") as stream:
            sent = {"archive": (os.path.basename(path), stream)}  # noqa: PTH119 (a name, not a path)
            return str(self._json("POST", "/cases/import", files=sent)["case"])

    def audit_lines(
        self, case_id: str | None = None, offset: int = 0, limit: int = 100
    ) -> tuple[AuditLine, ...]:
        """Return audit lines, the newest first, of one case or of all."""
        asked = {"offset": offset, "limit": limit} | ({"case": case_id} if case_id else {})
        return tuple(AuditLine(**row) for row in self._json("GET", "/audit", params=asked)["rows"])

    def _json(self, method: str, path: str, **options: Any) -> Any:
        try:
            answer = self._http.request(method, path, **options)
        except self._unreachable as error:
            raise self._away(error) from error
        if answer.is_error:
            raise _error(answer.json() if "json" in answer.headers.get("content-type", "") else {}, answer)
        return answer.json()

    def _download(self, path: str, to: Path) -> None:
        try:
            with self._http.stream("GET", path) as answer, to.open("wb") as stream:
                if answer.is_error:
                    answer.read()
                    raise _error(answer.json(), answer)
                for chunk in answer.iter_raw(_CHUNK):
                    stream.write(chunk)
        except self._unreachable as error:
            raise self._away(error) from error

    def _away(self, error: Exception) -> StorageError:
        return StorageError(
            f"the server cannot be reached ({type(error).__name__})",
            source=self.url,
            expected="sagittal serve",
        )


def _error(problem: Mapping[str, Any], answer: Any) -> SagittalError:
    """Return the error that the same call on a store would have raised."""
    status = answer.status_code
    kind: type[SagittalError] = (
        ConflictError if status == 409 else InputError if status < 500 else StorageError
    )
    return kind(
        problem.get("detail") or f"the server answered {status}",
        source=problem.get("source"),
        value=problem.get("value"),
        expected=problem.get("expected"),
    )


def _run(row: Mapping[str, Any]) -> Run:
    return Run(
        **{
            **row,
            "inputs": tuple(map(artifact_of, row["inputs"])),
            "outputs": tuple(map(artifact_of, row["outputs"])),
            "findings": tuple(row["findings"]),
            "used": tuple(row["used"]),
            "seed": int(row["seed"]),
        }
    )


def _finding(row: Mapping[str, Any]) -> Finding:
    content = FindingDraft(
        code=row["code"],
        subject=row["subject"],
        statement=row["statement"],
        measurement=Measurement(**row["measurement"]) if row["measurement"] else None,
        confidence=row["confidence"],
        caution=row["caution"],
        details=row["details"],
    )
    return Finding(
        number=row["number"],
        run=row["run"],
        author=row["author"],
        added=row["added"],
        content=content,
        events=tuple(Event(**event | {"verdict": Verdict(event["verdict"])}) for event in row["events"]),
    )
