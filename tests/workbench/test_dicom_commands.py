from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from sagittal.volume import Geometry, Volume, write_dicom_series

SAGITTAL = str(Path(sys.executable).parent / "sagittal")


def sagittal(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SAGITTAL, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    volume = Volume(
        np.arange(48, dtype=np.int16).reshape(4, 4, 3),
        Geometry.from_spacing((4, 4, 3), (1, 1, 1), (0, 0, 0)),
        unit="a.u.",
    )
    for path in write_dicom_series(volume, tmp_path / "originals", modality="MR", patient_id="4711"):
        dataset = pydicom.dcmread(path)
        dataset.PatientName, dataset.StudyDate = "山田^太郎", "20240131"
        dataset.save_as(path)
    return tmp_path / "originals"


def test_files_are_deidentified(originals: Path, tmp_path: Path) -> None:
    done = sagittal("case", "deidentify", originals, "--out", tmp_path / "out", "--keep-dates", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["files"], result["patients"], result["left_out"]) == (3, 1, {})
    assert "4711" not in done.stdout + done.stderr
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.dcm"))
    assert names == [f"study-001/series-001/0000{number}.dcm" for number in (1, 2, 3)]
    assert pydicom.dcmread(tmp_path / "out" / names[0]).StudyDate == "20240131"


def test_a_secret_of_the_environment_links_runs(originals: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        done = sagittal(
            "case", "deidentify", originals, "--out", tmp_path / name, SAGITTAL_DEIDENTIFY_SECRET="s" * 20
        )
        assert done.returncode == 0, done.stderr
    one, two = (pydicom.dcmread(next((tmp_path / name).rglob("00001.dcm"))) for name in ("one", "two"))
    assert one.SOPInstanceUID == two.SOPInstanceUID


def test_a_refusal_ends_with_status_2_and_writes_nothing(originals: Path, tmp_path: Path) -> None:
    path = sorted(originals.iterdir())[1]
    dataset = pydicom.dcmread(path)
    dataset.BurnedInAnnotation = "YES"
    dataset.save_as(path)
    done = sagittal("case", "deidentify", originals, "--out", tmp_path / "out", "--json")
    assert done.returncode == 2
    assert "--pixels-checked" in json.loads(done.stdout.splitlines()[-1])["error"]
    assert "山田" not in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()


def test_an_archive_that_is_down_is_said(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/dicom-web"
    for command in (("dicomweb", "list", url), ("case", "fetch", url, "1.2.3")):
        done = sagittal(*command, "--json")
        assert done.returncode == 2
        assert "cannot be reached" in json.loads(done.stdout.splitlines()[-1])["error"]
        assert "Traceback" not in done.stderr


def test_credentials_in_the_address_are_refused_unprinted() -> None:
    done = sagittal("dicomweb", "list", "http://reader:geheim@127.0.0.1:1/dicom-web")
    assert done.returncode == 2
    assert "SAGITTAL_DICOMWEB_PASSWORD" in done.stderr
    assert "geheim" not in done.stderr


def test_a_case_without_a_segmentation_has_nothing_to_send(tmp_path: Path) -> None:
    record = tmp_path / "record.txt"
    record.write_text("Slept well.\n")
    sagittal("run", "--record", record, "--model", "none", "--out", tmp_path / "out")
    (case,) = json.loads(sagittal("case", "list", "--json").stdout)["rows"]
    done = sagittal("case", "send", case["id"], "http://127.0.0.1:9/dicom-web")
    assert done.returncode == 2
    assert "nothing for an archive" in done.stderr
