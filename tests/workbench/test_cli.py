from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
def ct_slice() -> Path:
    from pydicom.data import get_testdata_file

    path = get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False)
    assert path is not None
    return Path(path)


@pytest.fixture
def case(tmp_path: Path, ct_slice: Path) -> dict:
    done = sagittal("run", "--ct", ct_slice, "--model", "none", "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_run_prints_its_result_as_the_last_line(case: dict, tmp_path: Path) -> None:
    assert case["report"] == str(tmp_path / "out" / "report.html")
    assert case["findings"] == 6
    assert case["tissue_ml"] == {}
    assert case["cache"] is None


def test_a_case_is_listed_shown_judged_and_drafted_again(case: dict, tmp_path: Path) -> None:
    listed = json.loads(sagittal("case", "list", "--json").stdout)
    assert [row["id"] for row in listed["rows"]] == [case["case"]]
    shown = json.loads(sagittal("case", "show", case["case"], "--json").stdout)
    bone = next(f for f in shown["findings"] if f["content"]["subject"] == "bone")
    air = next(f for f in shown["findings"] if f["content"]["subject"] == "air")
    rejected = sagittal("case", "reject", case["case"], bone["number"], "--who", "Reader A", "--json")
    assert json.loads(rejected.stdout)["state"] == "rejected"
    own = "Air on the slice: only in the sinuses and mastoid cells."
    sagittal("case", "supersede", case["case"], air["number"], "--statement", own, "--who", "Reader A")
    again = sagittal("case", "report", case["case"], "--out", tmp_path / "again", "--json")
    page = Path(json.loads(again.stdout)["report"]).read_text()
    sentences = page[page.index("Findings</h2>") : page.index("Where it came from")]
    assert bone["content"]["statement"] not in sentences
    assert air["content"]["statement"] not in sentences
    assert own in sentences
    assert "Reader A" in sagittal("case", "show", case["case"]).stdout


def test_a_verdict_on_nothing_is_refused(case: dict) -> None:
    done = sagittal("case", "accept", case["case"], 99, "--who", "Reader A")
    assert done.returncode == 2
    assert "no finding has this number; got 99; expected 1 to 6" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("record.txt", "Müller, Fieber 39 °C".encode("latin-1"), "--encoding latin-1"),
        ("empty.txt", b"", "the record is empty"),
        ("blank.txt", b" \n\t\n", "the record is empty"),
    ],
)
def test_a_record_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    done = sagittal("run", "--record", tmp_path / name, "--model", "none", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith(f"sagittal: {name}: ")
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_series_with_a_slice_missing_is_refused_with_the_gap(tmp_path: Path) -> None:
    import numpy as np

    from sagittal.volume import Geometry, Volume, write_dicom_series

    array = np.zeros((8, 8, 5), dtype=np.int16)
    array[2:6, 2:6] = 100
    volume = Volume(array, Geometry.from_spacing(array.shape, (1, 1, 3), (0, 0, 0)), unit="a.u.")
    paths = write_dicom_series(volume, tmp_path / "series", modality="MR")
    paths[2].unlink()
    done = sagittal("run", "--t1", tmp_path / "series", "--model", "none", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "missing" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_image_with_its_skull_is_refused(tmp_path: Path) -> None:
    import numpy as np

    from sagittal.volume import Geometry, Volume, write_nifti

    array = np.random.default_rng(0).integers(1, 200, (20, 20, 20)).astype(np.int16)
    write_nifti(Volume(array, Geometry.from_spacing(array.shape, (1, 1, 1), (0, 0, 0))), tmp_path / "t1.nii")
    done = sagittal("run", "--t1", tmp_path / "t1.nii", "--model", "none", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "does not look brain-masked" in done.stderr


def test_an_error_is_json_too_where_json_is_asked_for(tmp_path: Path) -> None:
    done = sagittal("run", "--t1", tmp_path / "no.nii", "--model", "none", "--out", tmp_path / "o", "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout.splitlines()[-1])
    assert error["kind"] == "InputError"
    assert "no.nii" in error["error"]


def test_a_pickle_for_a_model_is_refused_unread(tmp_path: Path, ct_slice: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    bomb = b"cos\nsystem\n(S'touch " + str(tmp_path / "pwned").encode() + b"'\ntR."
    (model / "pytorch_model.bin").write_bytes(bomb)
    done = sagittal("run", "--ct", ct_slice, "--model", model, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "pytorch_model.bin" in done.stderr
    assert not (tmp_path / "pwned").exists()


def test_offline_says_what_is_missing_and_how_to_get_it(tmp_path: Path) -> None:
    done = sagittal(
        "assets", "get", "smollm2-135m-instruct", "--offline", SAGITTAL_CACHE=str(tmp_path / "cache")
    )
    assert done.returncode == 2
    assert "sagittal assets get smollm2-135m-instruct" in done.stderr
    assert str(tmp_path / "cache") in done.stderr


def test_a_changed_asset_is_refused_by_name(tmp_path: Path) -> None:
    place = sagittal("assets", "where", "head-ct-slice", "--json", SAGITTAL_CACHE=str(tmp_path))
    path = Path(json.loads(place.stdout)["head-ct-slice"])
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something else")
    for command in ("verify", "get"):
        done = sagittal("assets", command, "head-ct-slice", SAGITTAL_CACHE=str(tmp_path))
        assert done.returncode == 2
        assert str(path) in done.stderr
        assert "sha256" in done.stderr


def test_assets_are_listed_with_licence_and_checksum() -> None:
    rows = {row["name"]: row for row in json.loads(sagittal("assets", "list", "--json").stdout)}
    assert rows["smollm2-135m-instruct"]["sha256"].startswith("b179c952")
    assert all(row["licence"] and row["sources"] for row in rows.values())


def test_a_store_that_is_not_there_is_said(tmp_path: Path) -> None:
    done = sagittal("case", "list", "--store", tmp_path / "nowhere")
    assert done.returncode == 2
    assert "no case store here" in done.stderr
    assert not (tmp_path / "nowhere").exists()


def test_the_version_and_the_help_speak() -> None:
    assert sagittal("--version").stdout.strip() == "0.1.0"
    words = sagittal("--help").stdout
    for command in ("demo", "run", "doctor", "case", "assets"):
        assert command in words
