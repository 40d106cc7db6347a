"""The client against a server on a real socket: what a store would say, it says too."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sagittal.case.archive import import_archive
from sagittal.case.record import FindingDraft, Verdict
from sagittal.case.store import CaseStore
from sagittal.core.errors import ConflictError, InputError, StorageError
from sagittal.volume import Volume
from sagittal.workbench.cli import app
from sagittal.workbench.client import Client

SCRIPT = Path(__file__).parents[2] / "evidence" / "api_fuzz.py"


@pytest.fixture
def client(store_folder: Path) -> Iterator[Client]:
    spec = importlib.util.spec_from_file_location("evidence_api_fuzz", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with script.serving(store_folder) as url, Client(f"{url}/?token={script.TOKEN}") as opened:
        yield opened


@pytest.fixture
def store(client: Client, store_folder: Path) -> Iterator[CaseStore]:
    with CaseStore(store_folder) as opened:
        yield opened


def test_reading_gives_what_the_store_gives(client: Client, store: CaseStore, case_id: str) -> None:
    assert client.worklist(order="label") == store.worklist(order="label")
    client.judge(case_id, 2, Verdict.REJECTED, who="Reader A", note="no")
    assert client.findings(case_id, standing=True, limit=5) == store.findings(case_id, standing=True, limit=5)
    assert client.finding(case_id, 2) == store.finding(case_id, 2)
    assert client.case(case_id) == store.case(case_id)
    assert client.audit_lines(case_id)[1:] == store.audit_lines(case_id)[2:]


def test_a_statement_takes_the_place_of_a_finding(client: Client, store: CaseStore, case_id: str) -> None:
    old = store.finding(case_id, 1).content
    draft = FindingDraft(code=old.code, subject=old.subject, statement="Another.")
    with pytest.raises(InputError, match="statement only"):
        client.supersede(case_id, 1, replace(draft, caution="More."), who="Reader A")
    new = client.supersede(case_id, 1, draft, who="Reader A")
    assert store.finding(case_id, new.number) == new
    assert "Another." in str(client.report(case_id, again=True))


def test_the_commands_speak_to_a_server(client: Client, store: CaseStore, case_id: str) -> None:
    server = f"{client.url}/?token={client.token}"
    for command in (["list"], ["show", case_id], ["accept", case_id, "1", "--who", "Reader A"]):
        done = CliRunner().invoke(app, ["case", *command, "--store", server, "--json"])
        assert done.exit_code == 0, done.output
        assert case_id in done.stdout
    assert store.finding(case_id, 1).events[-1].who == "Reader A"
    refused = CliRunner().invoke(app, ["case", "list", "--store", f"{client.url}/?token={'x' * 20}"])
    assert refused.exit_code == 2
    assert "token" in refused.output


def test_a_mask_is_fetched_corrected_and_fetched_again(client: Client, case_id: str) -> None:
    (tissue,) = [v for v in client.outline(case_id)["volumes"] if v["role"] == "tissue"]
    mask = client.volume(case_id, "tissue")
    labels = np.array(mask.array)
    labels[labels == 3] = 2
    corrected = Volume(labels, mask.geometry)
    client.correct(case_id, "tissue", corrected, edited=tissue["content"], who="Reader A")
    np.testing.assert_array_equal(client.volume(case_id, "tissue").array, labels)
    with pytest.raises(ConflictError, match="Reader A"):
        client.correct(case_id, "tissue", corrected, edited=tissue["content"], who="Reader B")


def test_an_archive_goes_out_and_in(client: Client, case_id: str, tmp_path: Path) -> None:
    path = client.export_archive(case_id, tmp_path / "case.zip")
    assert client.import_archive(path) == case_id
    with CaseStore(tmp_path / "other") as other:
        assert import_archive(other, path) == case_id


def test_refusals_are_the_stores_own(client: Client, case_id: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no case has this id"):
        client.outline("000000000000")
    with pytest.raises(InputError, match="no case has this id"):
        client.export_archive("000000000000", tmp_path / "none.zip")
    assert not (tmp_path / "none.zip").exists()
    client.judge(case_id, 1, Verdict.REJECTED, who="Reader A")
    with pytest.raises(ConflictError, match="no longer stands"):
        client.judge(case_id, 1, Verdict.ACCEPTED, who="Reader B")
    with Client(client.url, "another-token") as other, pytest.raises(InputError, match="another one"):
        other.worklist()


def test_a_server_that_is_not_there_is_named() -> None:
    away = r"http://127.0.0.1:9: the server cannot be reached"
    with Client("http://127.0.0.1:9", "a-token") as client, pytest.raises(StorageError, match=away):
        client.worklist()


@pytest.mark.parametrize("url", ["", "ftp://x?token=a", "http://127.0.0.1:8321/", "/folder"])
def test_what_is_no_url_with_a_token_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        Client(url)
