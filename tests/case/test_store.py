"""The store keeps whole runs, never edits, and says what is wrong with the place it lies in."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sagittal.case.record import Artifact, Case, FindingDraft, FindingState, Run, Verdict
from sagittal.case.store import CaseStore
from sagittal.core.errors import InputError, StorageError
from store_places import CONTENTS, Place, in_folder

MakeRun = Callable[..., Run]
MakeDraft = Callable[..., FindingDraft]
digest = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}.__getitem__
WRITER = str(Path(__file__).with_name("writer.py"))


POISON = {
    "sqlite": "CREATE TRIGGER poison BEFORE INSERT ON findings WHEN NEW.content LIKE '%poison%' "
    "BEGIN SELECT RAISE(ABORT, 'poisoned'); END",
    "postgresql": "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "IF CAST(NEW.content AS text) LIKE '%poison%' THEN RAISE EXCEPTION 'poisoned'; END IF; "
    "RETURN NEW; END $$; CREATE TRIGGER poison BEFORE INSERT ON findings "
    "FOR EACH ROW EXECUTE FUNCTION poison()",
}


def states(case: Case) -> list[str]:
    return [finding.state.value for finding in case.findings]


# Adding


def test_a_run_comes_back_as_it_was_given_with_its_number(
    place: Place, make_run: MakeRun, draft: MakeDraft
) -> None:
    with place.open() as store:
        case_id = store.create_case("demo, made up")
        added = store.add_run(case_id, make_run(), [draft("a"), draft("b")])
        store.add_run(case_id, make_run(step="other"), [draft("c")])
    with place.open() as store:
        case = store.case(case_id)
        assert store.case_ids() == [case_id]
    assert case.label == "demo, made up"
    assert added.number == 1
    assert case.runs[0] == added
    assert added == make_run(number=1, findings=(draft("a").content_hash, draft("b").content_hash))
    assert [finding.number for finding in case.findings] == [1, 2, 3]
    assert [finding.run for finding in case.findings] == [1, 1, 2]
    assert [finding.content for finding in case.findings] == [draft("a"), draft("b"), draft("c")]
    assert case.findings[0].author == "measure 1"


def test_each_case_numbers_for_itself(place: Place, make_run: MakeRun, draft: MakeDraft) -> None:
    with place.open() as store:
        cases = [store.create_case(label) for label in "ab"]
        for case_id in cases:
            assert store.add_run(case_id, make_run(), [draft()]).number == 1
            assert [finding.number for finding in store.case(case_id).findings] == [1]


def test_an_unknown_case_is_named(place: Place, make_run: MakeRun) -> None:
    with place.open() as store:
        for use in (lambda: store.case("nope"), lambda: store.add_run("nope", make_run(), [])):
            with pytest.raises(
                InputError, match="no case has this id; got nope; expected 'sagittal case list'"
            ):
                use()


def test_a_run_and_its_findings_enter_together_or_not_at_all(
    place: Place, make_run: MakeRun, draft: MakeDraft
) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft("before")])
        before = store.case(case_id)
        place.execute(POISON[place.engine])
        with pytest.raises(StorageError, match="the case store refuses: poisoned"):
            store.add_run(case_id, make_run(), [draft("good"), draft("poison")])
        assert store.case(case_id) == before
        assert store.add_run(case_id, make_run(step="next"), [draft("good")]).number == 2


@pytest.mark.parametrize("where", ["parameter", "details", "by hand"])
def test_what_json_cannot_say_never_enters(
    place: Place, make_run: MakeRun, draft: MakeDraft, where: str
) -> None:
    nan = float("nan")
    with place.open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft()])
        before = store.case(case_id)

        def add() -> None:
            if where == "parameter":
                store.add_run(case_id, make_run(parameters={"beta": nan}), [draft()])
            elif where == "details":
                store.add_run(case_id, make_run(), [draft(details={"share": nan})])
            else:
                store.supersede(case_id, 1, draft(details={"share": nan}), who="Dr A")

        with pytest.raises(InputError, match="not a JSON value: Out of range float"):
            add()
        assert store.case(case_id) == before


# Superseding and judging


def test_running_again_supersedes_drafts_by_code_and_subject(
    place: Place, make_run: MakeRun, draft: MakeDraft
) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft("a"), draft("b"), draft("gone")])
        store.add_run(case_id, make_run(version="2"), [draft("b", 7), draft("a", 6)])
        case = store.case(case_id)
    assert states(case) == ["superseded"] * 3 + ["draft"] * 2
    successors = [finding.events[0].successor for finding in case.findings[:3]]
    assert successors == [5, 4, None]
    event = case.findings[0].events[0]
    assert (event.who, event.note, event.verdict) == ("measure 2", "run again", Verdict.SUPERSEDED)


def test_running_something_else_supersedes_nothing(place: Place, make_run: MakeRun, draft: MakeDraft) -> None:
    other_role = (Artifact(role="other", kind="volume", content=digest("other")),)
    with place.open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft()])
        store.add_run(case_id, make_run(outputs=other_role), [draft()])
        store.add_run(case_id, make_run(step="other"), [draft()])
        assert states(store.case(case_id)) == ["draft"] * 3


def test_running_again_leaves_what_a_person_decided(
    place: Place, make_run: MakeRun, draft: MakeDraft
) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft(subject) for subject in ("yes", "no", "fix", "open")])
        store.judge(case_id, 1, Verdict.ACCEPTED, who="Dr A")
        store.judge(case_id, 2, Verdict.REJECTED, who="Dr A", note="motion")
        written = store.supersede(case_id, 3, draft("fix", 9.0), who="Dr A", note="measured by hand")
        before = store.case(case_id).findings
        store.add_run(case_id, make_run(), [draft(subject) for subject in ("yes", "no", "fix", "open")])
        case = store.case(case_id)
    assert states(case)[:5] == ["accepted", "rejected", "superseded", "superseded", "draft"]
    assert case.findings[:3] == before[:3]
    assert case.findings[4] == before[4] == written
    assert (written.number, written.author, written.content.measurement) == (
        5,
        "Dr A",
        draft("", 9.0).measurement,
    )
    assert case.findings[2].events[-1].successor == 5
    assert case.findings[3].events[-1].successor == 9


def test_a_judgement_is_kept_with_who_and_why(place: Place, make_run: MakeRun, draft: MakeDraft) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft()])
        store.judge(case_id, 1, Verdict.ACCEPTED, who="Dr A", note="seen")
        store.judge(case_id, 1, Verdict.REJECTED, who="Dr B", note="motion")
        (finding,) = store.case(case_id).findings
    assert finding.state is FindingState.REJECTED
    assert [(event.who, event.note) for event in finding.events] == [("Dr A", "seen"), ("Dr B", "motion")]


@pytest.mark.parametrize("verdict", [Verdict.ACCEPTED, Verdict.REJECTED])
def test_what_cannot_be_judged_is_refused(
    place: Place, make_run: MakeRun, draft: MakeDraft, verdict: Verdict
) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft("a"), draft("b")])
        store.judge(case_id, 1, Verdict.REJECTED, who="Dr A")
        before = store.case(case_id)
        for number in (0, 3, -1):
            with pytest.raises(
                InputError, match=f"no finding has this number; got {number}; expected 1 to 2"
            ):
                store.judge(case_id, number, verdict, who="Dr A")
        with pytest.raises(InputError, match="finding 1: the finding no longer stands; got rejected"):
            store.judge(case_id, 1, verdict, who="Dr A")
        with pytest.raises(InputError, match="finding 1: the finding no longer stands; got rejected"):
            store.supersede(case_id, 1, draft(), who="Dr A")
        for who in ("", "  "):
            with pytest.raises(InputError, match="finding 2: a verdict needs a name; expected who says so"):
                store.judge(case_id, 2, verdict, who=who)
        with pytest.raises(InputError, match=r"superseded by another one; expected CaseStore\.supersede"):
            store.judge(case_id, 2, Verdict.SUPERSEDED, who="Dr A")
        assert store.case(case_id) == before


# Places that refuse


def test_a_store_for_reading_reads_and_refuses_to_write(
    tmp_path: Path, make_run: MakeRun, draft: MakeDraft
) -> None:
    with pytest.raises(StorageError, match=r"there is no case store here; expected a cases\.sqlite"):
        CaseStore(tmp_path / "absent", read_only=True)
    assert not (tmp_path / "absent").exists()
    with in_folder(tmp_path).open() as store:
        case_id = store.create_case("demo")
    with CaseStore(tmp_path, read_only=True) as store:
        assert store.case(case_id).label == "demo"
        with pytest.raises(StorageError, match=r"cases\.sqlite: the store was opened read-only"):
            store.add_run(case_id, make_run(), [draft()])
        with pytest.raises(StorageError, match="read-only"):
            store.create_case("other")


def test_a_store_on_a_medium_that_cannot_be_written_is_read(
    tmp_path: Path, make_run: MakeRun, draft: MakeDraft, seal: Callable[[Path], None]
) -> None:
    folder = tmp_path / "medium"
    with in_folder(folder).open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft()])
        digest = store.objects.put_bytes(b"x")
    seal(folder)
    with pytest.raises(StorageError, match=r"is read-only|refuses: .*(readonly|unable to open)"):
        CaseStore(folder)
    with CaseStore(folder, read_only=True) as store:
        assert len(store.case(case_id).findings) == 1
        assert store.objects.get_bytes(digest) == b"x"


def test_a_copy_taken_while_a_run_was_written_shows_that_run(
    tmp_path: Path, make_run: MakeRun, draft: MakeDraft, seal: Callable[[Path], None]
) -> None:
    """The newest rows lie in the write-ahead log; a sealed copy must not show the record without them."""
    copy = tmp_path / "copy"
    with in_folder(tmp_path / "live").open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft()])
        shutil.copytree(store.folder, copy)
    assert (copy / "cases.sqlite-wal").stat().st_size > 0
    seal(copy)
    with CaseStore(copy, read_only=True) as store:
        assert len(store.case(case_id).findings) == 1


def test_a_full_disk_keeps_the_earlier_findings_whole(
    small_disk: Path, make_run: MakeRun, draft: MakeDraft
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(400_000))
    with in_folder(small_disk / "store").open() as store:
        case_id = store.create_case("demo")
        kept = 0

        def add_until_full() -> None:
            nonlocal kept
            for index in range(40):
                big = draft("big", statement=f"{index} " + "x" * 100_000)
                store.add_run(case_id, make_run(step=f"s{index}"), [big, draft("small")])
                kept += 1

        with pytest.raises(StorageError, match=r"cases\.sqlite: the case store refuses: .*(full|disk I/O)"):
            add_until_full()
        assert 0 < kept < 40
    ballast.unlink()
    with in_folder(small_disk / "store").open() as store:
        case = store.case(case_id)
        assert len(case.runs) == kept
        assert [finding.run for finding in case.findings] == [n for n in range(1, kept + 1) for _ in "ab"]
        assert [f.content.statement.split()[0] for f in case.findings[::2]] == [str(n) for n in range(kept)]
        assert store.add_run(case_id, make_run(step="after"), [draft()]).number == kept + 1


def fill(folder: Path, make_run: MakeRun, draft: MakeDraft) -> Path:
    with in_folder(folder).open() as store:
        case_id = store.create_case("demo")
        for index in range(10):
            store.add_run(case_id, make_run(step=f"s{index}"), [draft(statement="x" * 3000)])
    return folder / "cases.sqlite"


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("damage", ["header", "middle", "half"])
def test_a_damaged_database_is_named(
    tmp_path: Path, make_run: MakeRun, draft: MakeDraft, damage: str, read_only: bool
) -> None:
    path = fill(tmp_path, make_run, draft)
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[:16] = b"not a database.."
    elif damage == "middle":
        content[8192:40960] = bytes(range(256)) * 128
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)
    with pytest.raises(StorageError, match=rf"{re.escape(str(path))}: the database is damaged"):
        CaseStore(tmp_path, read_only=read_only)


def test_a_file_where_the_store_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file: a file is where a folder is needed"):
        CaseStore(tmp_path / "file")


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_store_is_its_owners_alone(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir(mode=0o755)
    for folder in (tmp_path / "new", old):
        with in_folder(folder).open() as store:
            assert store.folder.stat().st_mode & 0o777 == 0o700


# Several processes


def start(folder: Path, case_id: str, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, WRITER, str(folder), case_id, name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    with in_folder(tmp_path).open() as store:
        case_id = store.create_case("demo")
    writers = [start(tmp_path, case_id, name, 10) for name in "abcd"]
    said = [writer.communicate(timeout=120) for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4, said
    numbers = [int(number) for out, _ in said for number in out.split()]
    assert sorted(numbers) == list(range(1, 41))
    with in_folder(tmp_path).open() as store:
        case = store.case(case_id)
        for run in case.runs:
            store.objects.get_array(run.outputs[0].content)
    assert [finding.number for finding in case.findings] == list(range(1, 121))
    assert sorted(run.step for run in case.runs) == sorted(f"step-{n}-{i}" for n in "abcd" for i in range(10))
    for run in case.runs:
        held = [finding for finding in case.findings if finding.run == run.number]
        assert tuple(finding.content.content_hash for finding in held) == run.findings


OPENER = """
import sys
from pathlib import Path
from sagittal.case.store import CaseStore
sys.stdin.readline()
with CaseStore(Path(sys.argv[1])) as store:
    store.create_case(sys.argv[2])
"""


def test_processes_that_open_a_new_store_at_once_all_get_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPENER, str(tmp_path / "new")]
    openers = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in "abcd"
    ]
    said = [opener.communicate("go\n", timeout=120)[1] for opener in openers]
    assert [opener.returncode for opener in openers] == [0] * 4, said
    with CaseStore(tmp_path / "new") as store:
        assert {store.case(case_id).label for case_id in store.case_ids()} == set("abcd")


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_writer_leaves_whole_runs_only(tmp_path: Path) -> None:
    with in_folder(tmp_path).open() as store:
        case_id = store.create_case("demo")
    said = 0
    for attempt in range(4):
        writer = start(tmp_path, case_id, f"w{attempt}", 10_000)
        assert writer.stdout is not None
        for _ in range(1 + 2 * attempt):
            said = int(writer.stdout.readline())
        writer.kill()
        rest = writer.communicate()[0].split()
        said = max([said, *map(int, rest)])
        with in_folder(tmp_path).open() as store:
            case = store.case(case_id)
            for run in case.runs:
                store.objects.get_array(run.outputs[0].content)
        assert len(case.runs) >= said, "a run that was confirmed is gone"
        assert [run.number for run in case.runs] == list(range(1, len(case.runs) + 1))
        for run in case.runs:
            held = [finding for finding in case.findings if finding.run == run.number]
            assert tuple(finding.content.content_hash for finding in held) == run.findings
            assert len(held) == 3


def test_another_writers_lock_is_waited_for_or_named(
    tmp_path: Path, make_run: MakeRun, draft: MakeDraft
) -> None:
    with in_folder(tmp_path).open() as store:
        case_id = store.create_case("demo")
        with store.database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout=1")
            other = sqlite3.connect(tmp_path / "cases.sqlite", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="database is locked; expected the other writer to finish"):
            store.add_run(case_id, make_run(), [draft()])
        other.execute("ROLLBACK")
        other.close()
        assert store.add_run(case_id, replace(make_run(), seed=1), [draft()]).number == 1
