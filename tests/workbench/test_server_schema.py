"""Requests made from the schema, on a real socket (see evidence/api_fuzz.py for many more)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("schemathesis")

SCRIPT = Path(__file__).parents[2] / "evidence" / "api_fuzz.py"


@pytest.fixture(scope="module")
def fuzzer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence_api_fuzz", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def url(fuzzer: ModuleType, store_folder: Path) -> Iterator[str]:
    with fuzzer.serving(store_folder) as address:
        yield address


def test_no_request_from_the_schema_breaks_the_server(fuzzer: ModuleType, url: str, case_id: str) -> None:
    found = fuzzer.fuzz(url, case_id, examples=3)
    assert found["routes"] == 25
    assert found["server_errors_at"] == []
    assert found["undocumented_at"] == []


def test_a_server_that_breaks_off_is_seen(
    fuzzer: ModuleType, url: str, case_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("sagittal.workbench.server.desk.Desk.report", broken)
    found = fuzzer.fuzz(url, case_id, examples=5, only="/report")
    assert found["server_errors"] > 0
    assert found["undocumented"] > 0


def test_what_breaks_off_is_logged_without_its_values(
    fuzzer: ModuleType,
    url: str,
    case_id: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import httpx

    patient = "Jane"

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"{patient} Doe")

    monkeypatch.setattr("sagittal.workbench.server.desk.Desk.report", broken)
    answer = httpx.get(
        f"{url}/api/cases/{case_id}/report", headers={"Authorization": f"Bearer {fuzzer.TOKEN}"}
    )
    assert answer.status_code == 500
    assert f"{patient} Doe" not in answer.text + caplog.text
    assert "GET /api/cases/{case_id}/report: RuntimeError" in caplog.text
