"""Against archives that are down, wrong, broken off or lying."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dicom_archive
from sagittal.core.errors import ArchiveError, InputError
from sagittal.volume import Geometry, Volume, write_dicom_series
from sagittal.workflow import exchange
from sagittal.workflow._multipart import boundary_of, write_parts
from sagittal.workflow.dicomweb import Archive, Series
from sagittal.workflow.exchange import choose_series

STUDY, BOUNDARY = "1.2.3", "the-boundary"
MULTIPART = {"Content-Type": f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"'}
JSON = {"Content-Type": "application/dicom+json"}


@pytest.fixture
def files(tmp_path: Path) -> list[bytes]:
    volume = Volume(
        np.arange(48, dtype=np.int16).reshape(4, 4, 3),
        Geometry.from_spacing((4, 4, 3), (1, 1, 1), (0, 0, 0)),
        unit="a.u.",
    )
    paths = write_dicom_series(volume, tmp_path / "original", modality="MR", study_uid=STUDY)
    return [path.read_bytes() for path in paths]


@pytest.fixture
def series(tmp_path: Path, files: list[bytes]) -> Series:
    uid = str(pydicom.dcmread(tmp_path / "original" / "slice_00001.dcm").SeriesInstanceUID)
    return Series(study_uid=STUDY, uid=uid, modality="MR", description="T1", instances=3)


def message(parts: list[bytes], kind: str = "application/dicom", end: str = "--") -> bytes:
    body = b"".join(f"\r\n--{BOUNDARY}\r\nContent-Type: {kind}\r\n\r\n".encode() + part for part in parts)
    return body + f"\r\n--{BOUNDARY}{end}".encode()


@pytest.fixture
def got(tmp_path: Path) -> Path:
    (tmp_path / "got").mkdir()
    return tmp_path / "got"


def _fetch(body: bytes, series: Series, got: Path, headers: dict[str, str] = MULTIPART, **bounds: int) -> Any:
    with dicom_archive.liar(lambda *_: (200, headers, body)) as url:
        return Archive(url).fetch(series, got, **bounds)


def test_parts_are_files_as_they_came(files: list[bytes], series: Series, got: Path) -> None:
    paths = _fetch(message(files), series, got)
    assert sorted(path.read_bytes() for path in paths) == sorted(files)


def test_an_instance_that_comes_twice_is_kept_once(files: list[bytes], series: Series, got: Path) -> None:
    paths = _fetch(message([*files, files[1]]), series, got)
    assert len(paths) == len(list(got.iterdir())) == 3


def test_two_different_instances_under_one_uid_are_refused(
    files: list[bytes], series: Series, got: Path
) -> None:
    other = files[1][:-1] + bytes([files[1][-1] ^ 1])
    with pytest.raises(ArchiveError, match="two different instances under one UID"):
        _fetch(message([*files, other]), series, got)


@pytest.mark.parametrize("missing", [1, 10, 500])
def test_a_message_that_breaks_off_is_refused(
    files: list[bytes], series: Series, got: Path, missing: int
) -> None:
    with pytest.raises(ArchiveError, match="ends in the middle"):
        _fetch(message(files)[:-missing], series, got)


def test_a_connection_that_breaks_off_is_refused(files: list[bytes], series: Series, got: Path) -> None:
    body = message(files)
    headers = {**MULTIPART, "Content-Length": str(len(body) + 1000), "Connection": "close"}
    with pytest.raises(ArchiveError, match="ends in the middle"):
        _fetch(body[:-200], series, got, headers)


def test_fewer_instances_than_listed_are_refused(files: list[bytes], series: Series, got: Path) -> None:
    with pytest.raises(ArchiveError, match="fewer instances than it lists; got 2; expected 3"):
        _fetch(message(files[:2]), series, got)


def test_an_instance_of_another_series_is_refused(files: list[bytes], got: Path) -> None:
    other = Series(study_uid=STUDY, uid="1.2.3.4.5", modality="MR", description="", instances=None)
    with pytest.raises(ArchiveError, match="an instance of another series"):
        _fetch(message(files), other, got)


def test_an_answer_of_another_type_is_refused(files: list[bytes], series: Series, got: Path) -> None:
    with pytest.raises(ArchiveError, match="not a multipart message; got text/html"):
        _fetch(b"<html>log in</html>", series, got, {"Content-Type": "text/html; charset=utf-8"})
    with pytest.raises(ArchiveError, match="a part is of another type; got text/html"):
        _fetch(message(files, kind="text/html"), series, got)
    with pytest.raises(ArchiveError, match="something that is not DICOM"):
        _fetch(message([b"<html>log in</html>"]), series, got)
    with pytest.raises(ArchiveError, match="names no boundary"):
        _fetch(message(files), series, got, {"Content-Type": "multipart/related"})


def test_bounds_hold_while_it_arrives(files: list[bytes], series: Series, got: Path) -> None:
    with pytest.raises(ArchiveError, match="larger than allowed"):
        _fetch(message(files), series, got, max_bytes=len(files[0]) + 10)
    with pytest.raises(ArchiveError, match="too many parts"):
        _fetch(message(files), series, got, max_instances=2)


@given(
    bodies=st.lists(st.binary(max_size=60).filter(lambda body: b"--b" not in body), max_size=4),
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=40),
)
def test_how_a_message_is_cut_into_chunks_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[bytes], cuts: list[int]
) -> None:
    whole = (
        b"".join(b"\r\n--b\r\nContent-Type: application/dicom\r\n\r\n" + body for body in bodies)
        + b"\r\n--b--"
    )
    chunks, place = [], 0
    while place < len(whole):
        size = cuts[len(chunks) % len(cuts)]
        chunks.append(whole[place : place + size])
        place += size
    folder = tmp_path_factory.mktemp("parts")
    parts = write_parts(chunks, b"b", folder, source="x", max_parts=10, max_bytes=10_000)
    assert [path.read_bytes() for path in parts] == bodies


def test_a_boundary_is_read_as_servers_write_it() -> None:
    assert boundary_of("Multipart/Related; type=application/dicom; Boundary=abc", source="x") == b"abc"
    assert boundary_of('multipart/related;boundary=" a b "', source="x") == b"a b"


def test_a_server_that_is_down_is_said() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ArchiveError, match=f"127.0.0.1:{port}/dicom-web: the archive cannot be reached"):
        Archive(f"http://127.0.0.1:{port}/dicom-web").find_studies()


def test_a_server_that_hangs_is_said() -> None:
    release = threading.Event()

    def hang(*_: object) -> dicom_archive.Answer:
        release.wait(20)
        return 200, JSON, b"[]"

    with dicom_archive.liar(hang) as url:
        with pytest.raises(ArchiveError, match="does not answer"):
            Archive(url, timeout=0.3).find_studies()
        release.set()


def test_a_page_in_the_place_of_an_answer_is_said() -> None:
    for body in (b"<html>", b"[1, 2]", b'[{"0020000D": {"vr": "UI", "Value": 3}}]', b'{"a": "b"}'):
        with (
            dicom_archive.liar(lambda *_, body=body: (200, JSON, body)) as url,
            pytest.raises(ArchiveError, match="not DICOM JSON|not what DICOMweb allows"),
        ):
            Archive(url).find_studies()


def test_a_redirect_is_not_followed() -> None:
    asked: list[str] = []

    def elsewhere(method: str, path: str, *_: object) -> dicom_archive.Answer:
        asked.append(path)
        return 302, {"Location": "/other"}, b""

    with dicom_archive.liar(elsewhere) as url, pytest.raises(ArchiveError, match="only the address given"):
        Archive(url).find_studies()
    assert len(asked) == 1


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with dicom_archive.liar(lambda *_: (204, {}, b"")) as url:
        assert Archive(url).find_studies() == []


def test_what_was_asked_for_stays_out_of_an_error() -> None:
    with (
        dicom_archive.liar(lambda *_: (500, {}, b"")) as url,
        pytest.raises(ArchiveError, match="HTTP status 500") as caught,
    ):
        Archive(url).find_studies(patient_id="4711-secret")
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["archive", "ftp://x/y", "http://", "http://a:b@x/dicom-web", "http://x/y?token=1", "http://[::1]:80/"],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        Archive(url)


def test_uids_that_are_none_never_reach_an_address() -> None:
    archive = Archive("http://127.0.0.1:9/dicom-web")
    with pytest.raises(InputError, match="not a UID of a study"):
        archive.find_series("../../instances")


@pytest.fixture
def lying_store(files: list[bytes]) -> Iterator[Callable[..., str]]:
    """A function from what is read back to the address of an archive that says yes to everything."""
    with contextlib.ExitStack() as stack:

        def start(back: bytes | None, status: int = 200, reason: int | None = None) -> str:
            def answer(method: str, path: str, *_: object) -> dicom_archive.Answer:
                if method == "POST":
                    failed = {"00081197": {"vr": "US", "Value": [reason]}}
                    body = {"00081198": {"vr": "SQ", "Value": [failed]}} if reason is not None else {}
                    stored.append(path)
                    return status, JSON, json.dumps(body).encode()
                if back is None or not stored:
                    return 204, {}, b""
                if "?" in path:
                    uid = str(pydicom.dcmread(pydicom.filebase.DicomBytesIO(back)).SOPInstanceUID)
                    return 200, JSON, json.dumps([{"00080018": {"vr": "UI", "Value": [uid]}}]).encode()
                return 200, MULTIPART, message([back])

            stored: list[str] = []
            return stack.enter_context(dicom_archive.liar(answer))

        yield start


def _dataset(content: bytes) -> Any:
    return pydicom.dcmread(pydicom.filebase.DicomBytesIO(content))


def test_a_yes_with_nothing_stored_is_found_out(files: list[bytes], lying_store) -> None:
    with pytest.raises(ArchiveError, match="said yes and stored nothing"):
        exchange._send(Archive(lying_store(None)), _dataset(files[0]))


def test_other_pixels_under_the_same_uid_are_found_out(files: list[bytes], lying_store) -> None:
    other = files[0][:-1] + bytes([files[0][-1] ^ 1])
    with pytest.raises(ArchiveError, match="something other than what was sent"):
        exchange._send(Archive(lying_store(other)), _dataset(files[0]))
    assert not exchange._send(Archive(lying_store(files[0])), _dataset(files[0])).was_there


@pytest.mark.parametrize("status", [200, 202, 409])
def test_a_failed_instance_in_the_answer_is_an_error(files: list[bytes], lying_store, status: int) -> None:
    with pytest.raises(ArchiveError, match="did not store an instance.*failure reason 0xA700"):
        Archive(lying_store(None, status, 0xA700)).store(_dataset(files[0]))


def _series(uid: str, modality: str, description: str = "", instances: int | None = 30) -> Series:
    return Series(study_uid=STUDY, uid=uid, modality=modality, description=description, instances=instances)


def test_series_fill_roles_by_what_they_say() -> None:
    t1, flair = _series("1.1", "MR", "SAG T1 MPRAGE"), _series("1.2", "MR", "FLAIR")
    scout, ct = _series("1.3", "CT", "one", 1), _series("1.4", "CT", "many", 200)
    assert choose_series([flair, t1, ct, scout]) == {"t1": t1, "ct": scout}
    assert choose_series([flair, t1, ct, scout], ["1.2"]) == {"t1": flair}
    with pytest.raises(InputError, match=r"several series may be the T1 image; got 1\.1 and 1\.5"):
        choose_series([t1, _series("1.5", "MR", "t1 post contrast")])
    with pytest.raises(InputError, match="no such series"):
        choose_series([t1], ["9.9"])
    with pytest.raises(InputError, match="no step reads a series of this modality; got PT"):
        choose_series([_series("1.6", "PT")], ["1.6"])
    with pytest.raises(InputError, match="no series says that it is a T1 image"):
        choose_series([flair, ct])
