"""Files and archives that come in and go out."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from sagittal.case.archive import import_archive
from sagittal.case.store import CaseStore
from sagittal.workbench.server import ServerSettings
from t1_phantom import t1_phantom

TOKEN = "a-token-that-nobody-would-guess"
Files = list[tuple[str, tuple[str, bytes]]]


@pytest.fixture
def t1(as_nifti: Callable[..., bytes]) -> bytes:
    return as_nifti(t1_phantom())


def finished(client: TestClient, case_id: str) -> dict[str, Any]:
    for _ in range(600):
        (job,) = client.get(f"/api/cases/{case_id}/jobs").json()
        if job["state"] in {"done", "failed"}:
            return job
        time.sleep(0.1)
    raise AssertionError(job)


def upload(client: TestClient, *files: tuple[str, str, bytes], **fields: str) -> Any:
    sent: Files = [(field, (name, content)) for field, name, content in files]
    return client.post("/api/cases", files=sent, data=fields)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("sagittal-*")}


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which temporary files lie."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_uploaded_files_become_a_case_that_is_measured_and_drafted(
    browser: TestClient, t1: bytes, spool: Path
) -> None:
    made = upload(
        browser,
        ("t1", "../../t1.nii.gz", t1),
        ("record", "record.txt", "Allergie: Pénicilline.\n".encode("latin-1")),
        label="Fall 7",
        encoding="latin-1",
    )
    assert made.status_code == 201
    case_id = made.json()["case"]
    job = finished(browser, case_id)
    assert (job["id"], job["state"], job["problem"]) == (made.json()["job"], "done", None)
    case = browser.get(f"/api/cases/{case_id}").json()
    assert case["label"] == "Fall 7"
    assert [volume["role"] for volume in case["volumes"]] == ["t1", "tissue"]
    assert browser.get(f"/api/cases/{case_id}/report").status_code == 200
    actions = [line["action"] for line in browser.get("/api/audit", params={"case": case_id}).json()["rows"]]
    assert {"create-case", "receive-files"} <= set(actions)
    assert names(spool) == set()


def test_a_job_that_fails_says_why(browser: TestClient, t1: bytes) -> None:
    truncated = upload(browser, ("t1", "t1.nii.gz", t1[: len(t1) // 2]))
    assert truncated.status_code == 201
    job = finished(browser, truncated.json()["case"])
    assert job["state"] == "failed"
    assert "t1.nii.gz" in job["problem"]
    assert "truncated" in job["problem"]


@pytest.mark.parametrize(
    ("field", "content", "status"),
    [
        ("t1", b"", 415),
        ("t1", b"%PDF-1.7", 415),
        ("ct", b"<script>alert(1)</script>", 415),
        ("record", b"\xff\xfe\x00", 422),
        ("other", b"x", 422),
    ],
)
def test_a_file_of_another_type_is_refused(
    browser: TestClient, spool: Path, field: str, content: bytes, status: int
) -> None:
    before = browser.get("/api/cases").json()["total"]
    refused = upload(browser, (field, "file.bin", content))
    assert refused.status_code == status
    assert browser.get("/api/cases").json()["total"] == before
    assert names(spool) == set()


def test_an_upload_without_a_file_is_refused(browser: TestClient) -> None:
    assert upload(browser, label="empty").status_code in {415, 422}
    boundary = "multipart/form-data; boundary=b"
    chosen_none = (
        b'--b\r\nContent-Disposition: form-data; name="t1"; filename=""\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n\r\n--b--\r\n"
    )
    refused = browser.post("/api/cases", content=chosen_none, headers={"Content-Type": boundary})
    assert refused.status_code == 422
    assert refused.json()["detail"] == "no file was given"


@pytest.mark.parametrize(
    "name", ["a\nb.nii", "a\x00.nii", "..", ".", "/", "x" * 300, "\u202egnp.nii", "a\\.."]
)
def test_a_name_that_cannot_be_a_files_is_refused(name: str) -> None:
    from sagittal.workbench.server.problems import Problem
    from sagittal.workbench.server.uploads import base_name

    with pytest.raises(Problem):
        base_name(name)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\scan\\t1.nii", "t1.nii"),
        ("病 1.nii", "病 1.nii"),
        ("a'b", "a'b"),
    ],
)
def test_a_received_name_is_cut_to_its_last_part(name: str, kept: str) -> None:
    from sagittal.workbench.server.uploads import base_name

    assert base_name(name) == kept


def test_too_many_files_are_refused(
    serve: Callable[..., TestClient], settings: ServerSettings, t1: bytes
) -> None:
    client = serve(replace(settings, most_files=2))
    client.headers["Authorization"] = f"Bearer {TOKEN}"
    files = [("t1", f"{n}.nii.gz", t1) for n in range(3)]
    assert upload(client, *files).status_code == 413


@pytest.mark.parametrize("announced", [True, False])
def test_an_upload_that_is_too_large_is_refused_before_it_is_kept(
    serve: Callable[..., TestClient], settings: ServerSettings, spool: Path, announced: bool
) -> None:
    client = serve(replace(settings, largest_upload=100_000))
    client.headers["Authorization"] = f"Bearer {TOKEN}"
    sent = 0

    def endless() -> Any:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="t1"; filename="a.nii"\r\n\r\n'
        for _ in range(1000):
            sent += 10_000
            yield b"\0" * 10_000

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    content: Any = b"".join(endless()) if announced else endless()
    refused = client.post("/api/cases", content=content, headers=headers)
    assert refused.status_code == 413
    assert names(spool) == set()


def test_other_bodies_are_bounded_too(
    serve: Callable[..., TestClient], settings: ServerSettings, case_id: str
) -> None:
    client = serve(replace(settings, largest_json=1000, largest_correction=1000))
    client.headers["Authorization"] = f"Bearer {TOKEN}"
    verdict = f"/api/cases/{case_id}/findings/1/verdict"
    long = {"verdict": "accepted", "who": "A", "note": "x" * 2000}
    assert client.post(verdict, json=long).status_code == 413

    def chunks() -> Any:
        yield b'{"verdict": "accepted", "who": "A", "note": "'
        yield b"x" * 2000

    kind = {"Content-Type": "application/json"}
    assert client.post(verdict, content=chunks(), headers=kind).status_code == 413
    correction = f"/api/cases/{case_id}/volumes/tissue/correction"
    tag = {"If-Match": f'"{"0" * 64}"'}
    assert client.post(correction, content=b"\0" * 1001, headers=tag).status_code == 413


def test_a_length_that_is_none_is_refused(program: TestClient) -> None:
    wrong = program.post("/api/cases", content=b"", headers={"Content-Length": "ten"})
    assert wrong.status_code == 413


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "multipart/form-data", 415),
        (b"", "text/plain", 415),
        (b"{}", "application/json", 415),
        (b"junk", "multipart/form-data; boundary=b", 400),
        (b"--b\r\n\r\n--b--", "multipart/form-data; boundary=b", 400),
        (b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\nabc", "multipart/form-data; boundary=b", 400),
        (b"--b\r\n" + b"A: b\r\n" * 100 + b"\r\n\r\n--b--", "multipart/form-data; boundary=b", 400),
        (b"--b\r\nA: " + b"b" * 10_000 + b"\r\n\r\n\r\n--b--", "multipart/form-data; boundary=b", 400),
    ],
)
def test_a_form_that_is_none_is_refused(
    program: TestClient, spool: Path, content: bytes, kind: str, status: int
) -> None:
    refused = program.post("/api/cases", content=content, headers={"Content-Type": kind})
    assert refused.status_code == status
    assert names(spool) == set()


def test_the_archive_of_a_case_is_taken_by_another_store(
    browser: TestClient, case_id: str, tmp_path: Path, spool: Path
) -> None:
    answer = browser.get(f"/api/cases/{case_id}/archive")
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == f'attachment; filename="case-{case_id}.zip"'
    (tmp_path / "case.zip").write_bytes(answer.content)
    with CaseStore(tmp_path / "other") as other:
        assert import_archive(other, tmp_path / "case.zip") == case_id
    assert names(spool) == set()


def test_an_archive_is_taken_once(
    browser: TestClient, serve: Callable[..., TestClient], case_id: str, tmp_path: Path
) -> None:
    files = {"archive": ("case.zip", browser.get(f"/api/cases/{case_id}/archive").content)}
    empty = serve(ServerSettings(store=str(tmp_path / "empty"), token=TOKEN))
    empty.headers["Authorization"] = f"Bearer {TOKEN}"
    taken = [empty.post("/api/cases/import", files=files) for _ in range(2)]
    assert [one.status_code for one in taken] == [201, 200]
    assert taken[0].json() == {"case": case_id, "job": None}
    here = browser.get(f"/api/cases/{case_id}/findings").json()
    assert empty.get(f"/api/cases/{case_id}/findings").json() == here


def test_another_record_of_the_same_case_is_a_conflict(browser: TestClient, case_id: str) -> None:
    files = {"archive": ("case.zip", browser.get(f"/api/cases/{case_id}/archive").content)}
    browser.post(f"/api/cases/{case_id}/findings/1/verdict", json={"verdict": "accepted"})
    assert browser.post("/api/cases/import", files=files).status_code == 409


def bomb() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("case.json", b"0" * (300 << 20))
    return packed.getvalue()


def crooked(name: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("case.json", "{}")
        archive.writestr(name, "x")
    return packed.getvalue()


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 415),
        (b"not a zip", 415),
        (b"PK\x03\x04 and no more", 422),
        (crooked("../../evil"), 422),
        (crooked("/etc/evil"), 422),
    ],
)
def test_an_archive_that_is_none_is_refused(
    browser: TestClient, tmp_path: Path, spool: Path, content: bytes, status: int
) -> None:
    refused = browser.post("/api/cases/import", files={"archive": ("case.zip", content)})
    assert refused.status_code == status
    assert str(tmp_path) not in refused.text
    assert names(spool) == set()
    assert not list(tmp_path.rglob("*evil*"))


def test_an_archive_that_would_fill_the_disk_is_refused(browser: TestClient) -> None:
    refused = browser.post("/api/cases/import", files={"archive": ("case.zip", bomb())})
    assert refused.status_code == 422


def test_without_an_image_archive_the_server_says_so(browser: TestClient, case_id: str) -> None:
    assert browser.get("/api/studies").status_code == 501
    assert browser.post("/api/studies/fetch", json={"study": "1.2.3"}).status_code == 501
    assert browser.post(f"/api/cases/{case_id}/send").status_code == 501


def test_an_image_archive_that_is_away_is_named_as_the_reason(
    serve: Callable[..., TestClient], settings: ServerSettings, case_id: str
) -> None:
    client = serve(replace(settings, dicomweb="http://127.0.0.1:9/dicom-web"))
    client.headers["Authorization"] = f"Bearer {TOKEN}"
    assert client.get("/api/studies").status_code == 502
    assert client.post("/api/studies/fetch", json={"study": "1.2.3"}).status_code == 502
    assert client.post(f"/api/cases/{case_id}/send").status_code == 502


def test_a_case_goes_to_an_image_archive_and_a_study_comes_from_it(
    serve: Callable[..., TestClient], settings: ServerSettings, case_id: str, tmp_path: Path
) -> None:
    from dicom_archive import orthanc

    with orthanc(tmp_path / "orthanc") as url:
        client = serve(replace(settings, dicomweb=url))
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        sent = client.post(f"/api/cases/{case_id}/send")
        assert sent.status_code == 201, sent.text
        assert any(one["kind"].startswith("SEG") for one in sent.json())
        studies = client.get("/api/studies", params={"modality": "MR"}).json()
        (study,) = [one["uid"] for one in studies]
        fetched = client.post("/api/studies/fetch", json={"study": study, "label": "back again"})
        assert fetched.status_code == 201, fetched.text
        back = fetched.json()["case"]
        assert finished(client, back)["state"] == "done"
        assert "tissue" in [volume["role"] for volume in client.get(f"/api/cases/{back}").json()["volumes"]]
