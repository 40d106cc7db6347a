"""A server over a small case: a phantom's T1 image, a CT slice and a short record, drafted by rules."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from sagittal.case.store import CaseStore
from sagittal.volume import Volume, write_nifti
from sagittal.workbench.server import ServerSettings, create_app
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.pipeline import Sources, run_case
from sagittal.workflow.runner import Runner
from t1_phantom import t1_phantom

TOKEN = "a-token-that-nobody-would-guess"


@pytest.fixture(scope="session")
def drafted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder of a store that is only read, and the id of the case in it."""
    from pydicom.data import get_testdata_file

    folder = tmp_path_factory.mktemp("drafted")
    write_nifti(t1_phantom(), folder / "t1.nii.gz")
    (folder / "record.txt").write_text("2024-01-02 Allergy: the patient is allergic to penicillin.\n")
    ct = get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False)
    assert ct is not None
    sources = Sources(t1=[folder / "t1.nii.gz"], ct=[Path(ct)], record=[folder / "record.txt"])
    with CaseStore(folder / "store") as store:
        runner = Runner(store=store, shelf=ModelShelf(offline=True), seed=7)
        return folder / "store", run_case(runner, sources, label="a phantom", model="")


@pytest.fixture
def case_id(drafted: tuple[Path, str]) -> str:
    """The case that every test's own store holds."""
    return drafted[1]


@pytest.fixture
def store_folder(drafted: tuple[Path, str], tmp_path: Path) -> Path:
    """A store of the test's own, with the case in it."""
    return Path(shutil.copytree(drafted[0], tmp_path / "store"))


@pytest.fixture
def settings(store_folder: Path) -> ServerSettings:
    return ServerSettings(store=str(store_folder), token=TOKEN)


@pytest.fixture
def serve() -> Iterator[Callable[..., TestClient]]:
    """Start servers; each call gives a client without cookies. Errors come as answers, as from outside."""
    opened = []

    def start(settings: ServerSettings, **options: Any) -> TestClient:
        options = {"base_url": "http://127.0.0.1", "raise_server_exceptions": False} | options
        client = TestClient(create_app(settings), **options)
        client.__enter__()
        opened.append(client)
        return client

    yield start
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def stranger(serve: Callable[..., TestClient], settings: ServerSettings) -> TestClient:
    """A client that nobody has signed in."""
    return serve(settings)


@pytest.fixture
def program(stranger: TestClient) -> TestClient:
    """A client that sends the token with each request, as a program does."""
    stranger.headers["Authorization"] = f"Bearer {TOKEN}"
    return stranger


@pytest.fixture
def open_browser(stranger: TestClient) -> Callable[[str], TestClient]:
    """Sign further browsers in at one server, each with a reader's name."""

    def browser(name: str) -> TestClient:
        client = TestClient(
            stranger.app, base_url="http://127.0.0.1", follow_redirects=False, raise_server_exceptions=False
        )
        assert client.get("/", params={"token": TOKEN}).status_code == 303
        client.headers["X-Sagittal-CSRF"] = client.get("/api/session").json()["csrf"]
        if name:
            assert client.post("/api/session", json={"name": name}).status_code == 200
        return client

    return browser


@pytest.fixture
def browser(open_browser: Callable[[str], TestClient]) -> TestClient:
    """A browser that is signed in, with a name and the page's CSRF value."""
    return open_browser("Reader A")


@pytest.fixture
def as_nifti(tmp_path: Path) -> Callable[[Volume], bytes]:
    """A volume as the bytes of a NIfTI file."""

    def encode(volume: Volume) -> bytes:
        write_nifti(volume, tmp_path / "sent" / "mask.nii.gz")
        return (tmp_path / "sent" / "mask.nii.gz").read_bytes()

    return encode


@pytest.fixture
def nifti(tmp_path: Path) -> Callable[[bytes], Volume]:
    """The volume in the bytes of a NIfTI file."""
    from sagittal.volume import read_nifti

    def decode(content: bytes) -> Volume:
        (tmp_path / "received.nii.gz").write_bytes(io.BytesIO(content).getvalue())
        return read_nifti(tmp_path / "received.nii.gz")

    return decode
