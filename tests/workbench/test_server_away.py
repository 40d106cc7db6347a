"""A store that goes away and comes back, full disks, and stores that cannot be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from sagittal.case.archive import import_archive
from sagittal.case.store import CaseStore
from sagittal.workbench.server import ServerSettings

TOKEN = "a-token-that-nobody-would-guess"


def test_a_postgresql_that_goes_away_is_503_and_works_when_it_is_back(
    serve: Callable[..., TestClient],
    browser: TestClient,
    own_postgresql: Any,
    case_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SAGITTAL_OBJECTS", str(tmp_path / "objects"))
    archive = tmp_path / "case.zip"
    archive.write_bytes(browser.get(f"/api/cases/{case_id}/archive").content)
    url = own_postgresql.create()
    with CaseStore(url, objects=tmp_path / "objects") as store:
        import_archive(store, archive)
    client = serve(ServerSettings(store=url, token=TOKEN))
    client.headers["Authorization"] = f"Bearer {TOKEN}"
    verdict = f"/api/cases/{case_id}/findings/1/verdict"
    said = {"verdict": "accepted", "who": "Reader A"}
    assert client.get("/api/cases").json()["total"] == 1
    own_postgresql.stop()
    for away in (client.get("/api/cases"), client.post(verdict, json=said), client.get(f"/cases/{case_id}")):
        assert away.status_code == 503
        assert "sagittal@" not in away.text
    assert client.get("/api/cases").headers["retry-after"] == "5"
    assert client.get("/api/health").status_code == 200
    own_postgresql.start()
    assert client.get(f"/api/cases/{case_id}/findings/1").json()["state"] == "draft"
    assert client.post(verdict, json=said).status_code == 200
    assert client.get(f"/api/cases/{case_id}/findings/1").json()["state"] == "accepted"


def test_a_content_that_is_damaged_is_said_and_breaks_nothing(
    browser: TestClient, store_folder: Path, case_id: str
) -> None:
    volumes = {v["role"]: v for v in browser.get(f"/api/cases/{case_id}").json()["volumes"]}
    content = volumes["t1"]["content"]
    path = store_folder / "objects" / content[:2] / f"{content[2:]}.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    broken = browser.get(f"/api/cases/{case_id}/volumes/t1/image.nii.gz")
    assert broken.status_code == 503
    assert str(store_folder) not in broken.text
    assert browser.get(f"/api/cases/{case_id}/volumes/tissue/image.nii.gz").status_code == 200


def test_a_store_that_cannot_be_written_refuses_a_verdict(
    serve: Callable[..., TestClient],
    settings: ServerSettings,
    store_folder: Path,
    case_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = serve(settings)
    client.headers["Authorization"] = f"Bearer {TOKEN}"
    monkeypatch.setattr(client.app.state.desk.store.database, "read_only", True)
    said = client.post(
        f"/api/cases/{case_id}/findings/1/verdict", json={"verdict": "accepted", "who": "Reader A"}
    )
    assert said.status_code == 503
    assert said.json()["detail"] == "the store was opened read-only"
