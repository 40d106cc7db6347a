"""A copy made while others write is whole, opens as a store, and says what the original has lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sagittal.case.backup import backup
from sagittal.case.record import FindingDraft, Run, Verdict
from sagittal.case.store import CaseStore
from sagittal.core.errors import InputError, StorageError
from store_places import Place

MakeRun = Callable[..., Run]
MakeDraft = Callable[..., FindingDraft]
WRITER = str(Path(__file__).with_name("writer.py"))


def test_a_copy_holds_the_record_the_audit_and_the_contents(
    place: Place, make_run: MakeRun, draft: MakeDraft, tmp_path: Path
) -> None:
    with place.open() as store:
        case_id = store.create_case("demo, ü")
        run = store.add_run(case_id, make_run(), [draft("a", confidence=0.25), draft("b")])
        store.judge(case_id, 1, Verdict.ACCEPTED, who="Dr A")
        done = backup(store, tmp_path / "copy")
        assert (done.contents, done.bad) == (2, ())
        with CaseStore(tmp_path / "copy") as copy:
            assert copy.id == store.id
            assert copy.case(case_id) == store.case(case_id)
            assert copy.audit_lines() == store.audit_lines()
            assert copy.worklist() == store.worklist()
            assert copy.objects.get_bytes(run.outputs[0].content) == b"volume"
            assert copy.add_run(case_id, run, [draft("c")]).number == 2
            copy.judge(case_id, 3, Verdict.REJECTED, who="Dr B")
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700


def test_a_copy_made_while_a_writer_writes_is_whole(place: Place, tmp_path: Path) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        command = [sys.executable, WRITER, place.location, case_id, "w", "100000", str(place.objects)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            before = [int(writer.stdout.readline()) for _ in range(3)]
            copies = [tmp_path / f"copy-{i}" for i in range(3)]
            try:
                for folder in copies:
                    backup(store, folder)
                    writer.stdout.readline()
            finally:
                writer.kill()
    runs = []
    for folder in copies:
        with CaseStore(folder, read_only=True) as copy:
            case = copy.case(case_id)
            for run in case.runs:
                copy.objects.get_array(run.outputs[0].content)
                held = [finding for finding in case.findings if finding.run == run.number]
                assert tuple(finding.content.content_hash for finding in held) == run.findings
            runs.append(len(case.runs))
    assert before[-1] <= runs[0] < runs[1] < runs[2]


def test_what_the_original_has_lost_is_named_and_the_rest_is_saved(
    place: Place, make_run: MakeRun, draft: MakeDraft, tmp_path: Path
) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        run = store.add_run(case_id, make_run(), [draft()])
        path = store.objects.find(run.outputs[0].content)
        assert path is not None
        path.write_bytes(b"changed")
        done = backup(store, tmp_path / "copy")
    assert done.contents == 1
    assert len(done.bad) == 1
    assert "has changed" in done.bad[0]
    with CaseStore(tmp_path / "copy", read_only=True) as copy:
        assert len(copy.case(case_id).findings) == 1


def test_a_folder_that_holds_something_is_not_written_over(place: Place, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "mine").write_bytes(b"mine")
    with place.open() as store, pytest.raises(InputError, match="copy: the folder is not empty"):
        backup(store, tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["mine"]


def test_a_full_disk_leaves_no_copy(
    small_disk: Path, place: Place, make_run: MakeRun, draft: MakeDraft
) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft(statement="x" * 3_000_000)])
        with pytest.raises(StorageError, match="full"):
            backup(store, small_disk / "copy")
    assert list(small_disk.iterdir()) == []
