"""Where a store lies, what it is told apart by, and what text it keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sagittal.case.engines import shown
from sagittal.case.location import open_store, resolve
from sagittal.case.record import FindingDraft, Run, Verdict
from sagittal.case.store import CaseStore
from sagittal.core.errors import InputError, StorageError
from store_places import Place, Server, in_folder

MakeRun = Callable[..., Run]
MakeDraft = Callable[..., FindingDraft]


# Locations


def test_a_store_is_opened_where_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAGITTAL_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert resolve(None) == str(tmp_path / "data" / "sagittal")
    monkeypatch.setenv("SAGITTAL_STORE", str(tmp_path / "named"))
    assert resolve(None) == str(tmp_path / "named")
    assert resolve(str(tmp_path / "given")) == str(tmp_path / "given")
    assert resolve("postgresql://a@b/c") == "postgresql://a@b/c"
    with open_store(None) as store:
        store.create_case("demo")
    assert (tmp_path / "named" / "cases.sqlite").is_file()


def test_a_database_that_is_not_supported_is_named_without_its_password() -> None:
    with pytest.raises(InputError, match=r"mysql://: no store lies there; expected a folder") as caught:
        resolve("mysql://me:hunter2@host/cases")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["postgresql://me:hunter2@host:5432/cases", "postgres://me:hunter2@host/cases"]
)
def test_a_password_is_not_shown(url: str) -> None:
    assert "hunter2" not in shown(url)
    assert "host" in shown(url)


def test_a_url_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(InputError, match="URL cannot be read"):
        CaseStore("postgresql://host:port/cases", objects=tmp_path)


def test_contents_in_postgresql_lie_in_the_data_folder_under_the_stores_id(
    postgresql: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    url = postgresql.create()
    with open_store(url) as store:
        digest = store.objects.put_bytes(b"x")
        assert store.objects.folder == tmp_path / "data" / "sagittal" / f"objects-{store.id}"
    monkeypatch.setenv("SAGITTAL_OBJECTS", str(tmp_path / "elsewhere"))
    with open_store(url) as store:
        assert store.objects.folder == tmp_path / "elsewhere"
        assert store.objects.find(digest) is None


def test_the_contents_of_another_store_are_refused(postgresql: Server, tmp_path: Path) -> None:
    Place(postgresql.create(), tmp_path / "objects", "postgresql").open().close()
    with pytest.raises(StorageError, match="store-id: these contents belong to another store; got "):
        Place(postgresql.create(), tmp_path / "objects", "postgresql").open()
    with pytest.raises(StorageError, match="these contents belong to another store"):
        CaseStore(tmp_path / "folder", objects=tmp_path / "objects")


def test_postgresql_for_reading_refuses_to_write(place: Place, make_run: MakeRun, draft: MakeDraft) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft()])
    with place.open(read_only=True) as store:
        assert len(store.case(case_id).findings) == 1
        for write in (
            lambda: store.create_case("other"),
            lambda: store.judge(case_id, 1, Verdict.ACCEPTED, who="Dr A"),
            lambda: store.audit("look", who="Dr A"),
            store.rebuild_worklist,
        ):
            with pytest.raises(StorageError, match="the store was opened read-only"):
                write()


def test_contents_on_a_full_disk_are_refused_and_the_record_goes_on(
    small_disk: Path, postgresql: Server, make_run: MakeRun, draft: MakeDraft
) -> None:
    with Place(postgresql.create(), small_disk / "objects", "postgresql").open() as store:
        case_id = store.create_case("demo")
        with pytest.raises(StorageError, match=r"disk/objects/.*: the disk is full; expected free space"):
            store.objects.put_bytes(bytes(4 << 20))
        assert store.add_run(case_id, make_run(), [draft()]).number == 1


def test_a_sealed_folder_of_contents_is_named(
    postgresql: Server, tmp_path: Path, seal: Callable[[Path], None]
) -> None:
    with Place(postgresql.create(), tmp_path / "objects", "postgresql").open() as store:
        seal(tmp_path / "objects")
        with pytest.raises(StorageError, match=r"objects/.*(read-only|no permission)"):
            store.objects.put_bytes(b"new")


def test_a_folder_that_is_no_store_is_not_made_one_by_a_reader(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no case store here"):
        open_store(str(tmp_path / "none"), read_only=True)
    assert not (tmp_path / "none").exists()


# Text


@pytest.mark.parametrize(
    "text",
    [
        "Ærø, 漢字, हिन्दी",
        "عربي ‏RTL",
        "👩‍⚕️ 𝔊",
        "a\nb\t\x01\x7f",
        "'; DROP TABLE cases; --",
        "%s {0} :x",
        "\\u0000",
        "  ",
    ],
)
def test_names_in_any_script_come_back_as_they_were(
    place: Place, make_run: MakeRun, draft: MakeDraft, text: str
) -> None:
    with place.open() as store:
        case_id = store.create_case(text, who=text)
        finding = draft(f"x{text}", statement=f"x{text}", details={text: [text]})
        store.add_run(case_id, make_run(parameters={text: text}), [finding], author=f"x{text}")
        store.judge(case_id, 1, Verdict.ACCEPTED, who=f"Dr {text}", note=text)
        store.audit("look", who=text, case_id=case_id, detail={text: text})
        case = store.case(case_id)
        assert case.label == text
        assert case.runs[0].parameters == {text: text}
        assert case.findings[0].content == finding
        assert (case.findings[0].events[0].who, case.findings[0].events[0].note) == (f"Dr {text}", text)
        assert store.audit_lines(case_id)[0].detail == {text: text}
        assert store.worklist(search=text).rows[0].label == text


@pytest.mark.parametrize(("text", "said"), [("a\0b", "character NUL"), ("a\ud800b", "surrogate")])
def test_text_that_no_database_keeps_is_refused_before_it_gets_there(
    place: Place, make_run: MakeRun, draft: MakeDraft, text: str, said: str
) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft()])
        before = store.case(case_id), store.audit_lines()
        for write in (
            lambda: store.create_case(text),
            lambda: store.create_case("x", who=text),
            lambda: store.case(text),
            lambda: store.add_run(case_id, make_run(parameters={"x": [text]}), []),
            lambda: store.add_run(case_id, make_run(), [draft(details={text: 1})]),
            lambda: store.add_run(case_id, make_run(), [draft()], author=text),
            lambda: store.judge(case_id, 1, Verdict.ACCEPTED, who=text),
            lambda: store.judge(case_id, 1, Verdict.ACCEPTED, who="Dr A", note=text),
            lambda: store.supersede(case_id, 1, draft(statement=text), who="Dr A"),
            lambda: store.audit("look", who=text),
            lambda: store.audit("look", who="", case_id=text),
            lambda: store.audit("look", who="", detail={"x": text}),
            lambda: store.audit_lines(text),
            lambda: store.worklist(search=text),
        ):
            with pytest.raises(InputError, match=said) as caught:
                write()
            str(caught.value).encode()
        assert (store.case(case_id), store.audit_lines()) == before


# Audit


def test_changes_and_accesses_leave_a_line(place: Place, make_run: MakeRun, draft: MakeDraft) -> None:
    with place.open() as store:
        case_id = store.create_case("demo", who="Dr A")
        store.add_run(case_id, make_run(), [draft("a"), draft("b")])
        store.judge(case_id, 1, Verdict.ACCEPTED, who="Dr B")
        store.supersede(case_id, 2, draft("b", 3), who="Dr C")
        store.audit("view", who="Dr D", case_id=case_id, detail={"page": 1})
        store.audit("view", who="Dr D", case_id="none")
        lines = store.audit_lines(case_id)
        assert [(line.action, line.who) for line in lines] == [
            ("view", "Dr D"),
            ("supersede", "Dr C"),
            ("judge", "Dr B"),
            ("add-run", "measure 1"),
            ("create-case", "Dr A"),
        ]
        assert [line.number for line in store.audit_lines()] == [6, 5, 4, 3, 2, 1]
        assert store.audit_lines(case_id, offset=1, limit=1) == lines[1:2]
        with pytest.raises(InputError, match="too long for an audit line"):
            store.audit("x" * 41, who="")


def test_a_change_that_fails_leaves_no_line(place: Place, make_run: MakeRun, draft: MakeDraft) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft()])
        before = store.audit_lines()
        with pytest.raises(InputError):
            store.judge(case_id, 7, Verdict.ACCEPTED, who="Dr A")
        assert store.audit_lines() == before


def test_threads_may_share_a_store(tmp_path: Path, make_run: MakeRun, draft: MakeDraft) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with in_folder(tmp_path).open() as store, ThreadPoolExecutor(16) as threads:
        cases = list(threads.map(store.create_case, map(str, range(40))))
        numbers = threads.map(lambda c: store.add_run(c, make_run(), [draft()]).number, cases)
        assert list(numbers) == [1] * 40
