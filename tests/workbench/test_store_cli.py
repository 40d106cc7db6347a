"""Commands on the store as a whole, in a folder and in PostgreSQL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sagittal.case.record import Artifact, FindingDraft, Run
from sagittal.case.store import CaseStore
from store_places import Place, in_folder


def sagittal(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "sagittal"), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout.splitlines()[-1])


def made_by_hand(outputs: tuple[Artifact, ...] = ()) -> Run:
    return Run(
        number=0,
        step="by-hand",
        version="1",
        parameters={},
        inputs=(),
        outputs=outputs,
        findings=(),
        used=(),
        seed=0,
        doubt="none",
        models={},
        environment={},
        started="",
        seconds=0.0,
    )


@pytest.fixture
def filled(place: Place) -> tuple[Place, str]:
    with place.open() as store:
        case_id = store.create_case("a case")
        store.create_case("empty")
        run = made_by_hand()
        finding = FindingDraft(code="image.a", subject="a", statement="There is an a.", confidence=0.75)
        store.add_run(case_id, run, [finding])
    return place, case_id


def test_a_store_is_listed_collected_carried_and_copied(filled: tuple[Place, str], tmp_path: Path) -> None:
    place, case_id = filled
    where = {"SAGITTAL_STORE": place.location}
    if place.engine == "postgresql":
        where["SAGITTAL_OBJECTS"] = str(place.objects)
    listed = answer(sagittal("case", "list", "--json", "--state", "open", "--order", "label", **where))
    assert listed["total"] == 1
    assert listed["rows"][0]["id"] == case_id
    assert listed["rows"][0]["doubt"] == 0.25
    shown = sagittal("case", "list", "--search", "CASE", "--limit", "1", **where)
    assert "25 %" in shown.stdout
    assert "There is an a." in shown.stdout
    assert "1 of 2 cases" in sagittal("case", "list", "--limit", "1", **where).stdout

    dry = answer(sagittal("case", "gc", "--dry-run", "--grace", "0", "--json", **where))
    assert (len(dry["contents"]), dry["dry_run"]) == (3, True)
    gone = answer(sagittal("case", "gc", "--grace", "0", "--json", **where))
    assert gone["contents"] == dry["contents"]
    assert "removed 0 contents" in sagittal("case", "gc", "--grace", "0", **where).stdout

    archive = tmp_path / "case.zip"
    assert answer(sagittal("case", "export", case_id, "--out", archive, "--json", **where))["case"] == case_id
    other = tmp_path / "other"
    first = answer(sagittal("case", "import", archive, "--store", other, "--who", "Dr A", "--json"))
    assert first == {"case": case_id, "new": True}
    assert "already there and identical" in sagittal("case", "import", archive, "--store", other).stdout

    copied = answer(sagittal("case", "backup", tmp_path / "copy", "--json", **where))
    assert copied["bad"] == []
    with CaseStore(tmp_path / "copy") as copy, CaseStore(other) as imported:
        assert copy.case(case_id) == imported.case(case_id)


def test_what_a_command_refuses_is_said_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "no.zip").write_bytes(b"not an archive")
    for command, said in (
        (("import", tmp_path / "no.zip", "--store", tmp_path / "s"), "no.zip: not a zip archive"),
        (("export", "nope", "--out", tmp_path / "x.zip", "--store", tmp_path / "s"), "no case has this id"),
        (("list", "--order", "size", "--store", tmp_path / "s"), "there is no such order"),
        (("gc", "--grace", "-1", "--store", tmp_path / "s"), "the grace period is negative"),
        (("list", "--store", "mysql://me:hunter2@h/x"), "no store lies there"),
        (("list", "--store", "postgresql://me:hunter2@127.0.0.1:1/x"), "postgresql://me:***@127.0.0.1:1/x"),
    ):
        done = sagittal("case", *command)
        assert done.returncode == 2, done
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert "hunter2" not in done.stderr


def test_a_backup_of_a_store_that_lost_a_content_ends_with_status_1(tmp_path: Path) -> None:
    place = in_folder(tmp_path / "store")
    with place.open() as store:
        case_id = store.create_case("demo")
        output = Artifact(role="a", kind="text", content=store.objects.put_bytes(b"lost"))
        run = made_by_hand((output,))
        store.add_run(case_id, run, [])
        path = store.objects.find(output.content)
        assert path is not None
        path.unlink()
    done = sagittal("case", "backup", tmp_path / "copy", "--store", place.location)
    assert done.returncode == 1
    assert "lost:" in done.stdout
    assert "does not hold this content" in done.stdout
