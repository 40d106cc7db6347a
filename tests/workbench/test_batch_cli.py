from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sagittal.case.store import CaseStore
from sagittal.volume import Geometry, Volume, write_nifti

SAGITTAL = str(Path(sys.executable).parent / "sagittal")
STEPS = ("--steps", "tissue,report", "--model", "none")


def command(folder: Path, store: Path, *more: object) -> list[str]:
    return [SAGITTAL, "batch", str(folder), *STEPS, "--store", str(store), *map(str, more)]


def batch(folder: Path, store: Path, *more: object) -> tuple[int, dict[str, Any]]:
    """Run the command with --json; return its exit status and what it printed."""
    done = subprocess.run(
        command(folder, store, *more, "--json"), capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def head(seed: int) -> Volume:
    shape = (20, 22, 18)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    clean = np.select([radius < 0.45, radius < 0.65, radius < 0.8], [200.0, 120.0, 60.0], 0.0)
    noise = np.random.default_rng(seed).normal(0, 6, shape)
    array = np.where(clean > 0, np.clip(clean + noise, 1, 255), 0).round().astype(np.int16)
    return Volume(array, Geometry.from_spacing(shape, (4, 4, 5), (0, 0, 0)), unit="a.u.")


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    for number in range(4):
        write_nifti(head(number), folder / f"h{number}.nii.gz")
    for sidecar in folder.glob("*.json"):
        sidecar.unlink()
    return folder


@pytest.fixture
def few(heads: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "few"
    folder.mkdir()
    for name in ("h0", "h1"):
        shutil.copy(heads / f"{name}.nii.gz", folder)
    return folder


def contents(store: Path, result: dict[str, Any]) -> dict[str, list[Any]]:
    """What each source's case holds, apart from times and ids."""
    with CaseStore(store, read_only=True) as opened:
        cases = {one["source"]: opened.case(one["case"]) for one in result["cases"]}
        assert len(opened.case_ids()) == len(cases), "no second case"
        assert {finding.state for case in cases.values() for finding in case.findings} == {"draft"}
    return {
        source: [
            (run.step, [(made.role, made.content) for made in run.outputs], run.findings, run.used)
            for run in case.runs
        ]
        for source, case in cases.items()
    }


@pytest.fixture(scope="module")
def undisturbed(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    status, result = batch(heads, store, "--workers", 1)
    assert status == 0
    return contents(store, result)


def started(folder: Path, store: Path, *more: object) -> subprocess.Popen[str]:
    """Start a batch of one worker, and return once its first case is done and the second is begun."""
    process = subprocess.Popen(
        command(folder, store, "--workers", 1, *more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # who starts the tests in the background may have had Ctrl-C ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for _ in range(1200):
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()
        if (store / "cases.sqlite").exists():
            listed = job_states(store)
            if listed.count("done") >= 1 and "running" in listed:
                return process
    pytest.fail("no case was done within a minute")


def job_states(store: Path, column: str = "state") -> list[Any]:
    connection = sqlite3.connect(f"file:{store / 'cases.sqlite'}?mode=ro", uri=True)
    try:
        return [row[0] for row in connection.execute(f"SELECT {column} FROM jobs")]
    except sqlite3.OperationalError:  # the tables are being made
        return []
    finally:
        connection.close()


def test_a_folder_is_done_once_and_its_failures_are_listed_with_reasons(few: Path, tmp_path: Path) -> None:
    (few / "damaged.nii.gz").write_bytes(b"no image")
    (few / "notes.md").touch()
    shutil.copy(few / "h0.nii.gz", few / "twin.nii.gz")
    status, result = batch(few, tmp_path / "s")
    assert status == 1
    assert set(result) == {"batch", "done", "failed", "seconds", "cases"}
    assert (result["done"], result["failed"]) == (2, 1)
    cases = {case["source"]: case for case in result["cases"]}
    assert {source: case["state"] for source, case in cases.items()} == {
        "damaged.nii.gz": "failed",
        "h0.nii.gz": "done",
        "h1.nii.gz": "done",
        "notes.md": "refused",
        "twin.nii.gz": "done",
    }
    assert "damaged.nii.gz: the format is not supported" in cases["damaged.nii.gz"]["error"]
    assert "no image" not in cases["damaged.nii.gz"]["error"], "what a file holds is not repeated"
    assert cases["h0.nii.gz"]["case"] == cases["twin.nii.gz"]["case"]
    assert cases["h0.nii.gz"]["seconds"] > 0

    again_status, again = batch(few, tmp_path / "s")
    assert (again_status, again["cases"]) == (1, result["cases"])
    told_status, told = batch(few, tmp_path / "s", "--status")
    assert (told_status, told["cases"]) == (1, result["cases"])

    shown = subprocess.run(command(few, tmp_path / "s"), capture_output=True, text=True, check=False)
    assert "2 done, 1 failed, 1 refused" in shown.stdout
    assert "the format is not supported" in shown.stdout
    assert "--retry-failed" in shown.stdout


def test_a_new_file_is_all_that_is_done_the_second_time(few: Path, heads: Path, tmp_path: Path) -> None:
    _, first = batch(few, tmp_path / "s", "--workers", 1)
    shutil.copy(heads / "h2.nii.gz", few)
    (few / "h0.nii.gz").rename(few / "renamed.nii.gz")
    status, second = batch(few, tmp_path / "s", "--workers", 1)
    assert (status, second["done"]) == (0, 3)
    before = {case["source"]: case["case"] for case in first["cases"]}
    after = {case["source"]: case["case"] for case in second["cases"]}
    assert after["renamed.nii.gz"] == before["h0.nii.gz"]
    assert after["h1.nii.gz"] == before["h1.nii.gz"]
    with CaseStore(tmp_path / "s", read_only=True) as store:
        assert len(store.case_ids()) == 3


def test_cases_are_called_by_their_batch_unless_the_names_are_said_to_identify_nobody(
    few: Path, tmp_path: Path
) -> None:
    _, hidden = batch(few, tmp_path / "s")
    _, named = batch(few, tmp_path / "t", "--label-by-name")
    with CaseStore(tmp_path / "s") as store:
        assert store.case(hidden["cases"][0]["case"]).label.startswith(f"batch {hidden['batch']} ")
    with CaseStore(tmp_path / "t") as store:
        assert store.case(named["cases"][0]["case"]).label == "h0.nii.gz"


def test_a_batch_that_was_killed_whole_goes_on_to_the_same_cases(
    heads: Path, tmp_path: Path, undisturbed: dict[str, list[Any]]
) -> None:
    store = tmp_path / "s"
    process = started(heads, store)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    status, result = batch(heads, store, "--workers", 1)
    assert status == 0
    assert contents(store, result) == undisturbed


def test_workers_end_with_the_batch_that_was_killed_and_lose_no_attempt(
    heads: Path, tmp_path: Path, undisturbed: dict[str, list[Any]]
) -> None:
    store = tmp_path / "s"
    process = started(heads, store)
    group = process.pid
    process.kill()
    process.communicate()
    for _ in range(600):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("a worker outlived its batch by a minute")
    assert max(job_states(store, "attempts")) == 1
    assert job_states(store, "attempts").count(1) == job_states(store).count("done")
    status, result = batch(heads, store, "--workers", 1)
    assert status == 0
    assert contents(store, result) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_batch_says_how_to_go_on_and_goes_on(
    heads: Path, tmp_path: Path, undisturbed: dict[str, list[Any]], number: signal.Signals
) -> None:
    store = tmp_path / "s"
    process = started(heads, store)
    os.killpg(process.pid, number) if number is signal.SIGINT else process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "cases are left. Run the same command again to go on." in said
    assert "Traceback" not in said
    assert "running" not in job_states(store)
    status, result = batch(heads, store, "--workers", 1)
    assert status == 0
    assert contents(store, result) == undisturbed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        (["."], "the folder is empty"),
        (
            [".", "--steps", "tisue"],
            "no step has this name; got 'tisue'; expected some of tissue, tissue-network, atlas, ct",
        ),
        ([".", "--steps", "report"], "no step takes a file"),
        ([".", "--ray-address", "auto"], "expected --engine ray"),
    ],
)
def test_what_cannot_be_done_is_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    if "--ray-address" in arguments:
        write_nifti(head(0), tmp_path / "empty" / "a.nii.gz")
        arguments = [*arguments, "--model", "none"]
    done = subprocess.run(
        [SAGITTAL, "batch", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path / "empty",
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_cannot_be_had_is_said_before_any_case_is_begun(few: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [SAGITTAL, "batch", few, "--steps", "tissue,report", "--offline", "--store", tmp_path / "s"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SAGITTAL_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 2
    assert "sagittal assets get smollm2-135m-instruct" in done.stderr
    if (tmp_path / "s").exists():
        with CaseStore(tmp_path / "s", read_only=True) as store:
            assert store.case_ids() == []


def test_a_store_that_cannot_be_written_is_said(few: Path, tmp_path: Path, seal: Any) -> None:
    batch(few, tmp_path / "s")
    seal(tmp_path / "s")
    done = subprocess.run(command(few, tmp_path / "s"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the same command goes on" in done.stderr
    status, told = batch(few, tmp_path / "s", "--status")
    assert (status, told["done"]) == (0, 2)


def test_ray_makes_the_same_cases(heads: Path, tmp_path: Path, undisturbed: dict[str, list[Any]]) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    store = tmp_path / "s"
    status, result = batch(heads, store, "--engine", "ray", "--workers", 2)
    assert status == 0
    assert contents(store, result) == undisturbed
