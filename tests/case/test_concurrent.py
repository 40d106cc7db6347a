"""Who comes second is told; several writers at once lose nothing; a server may go away and come back."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from sagittal.case.record import Artifact, FindingDraft, FindingState, Run, Verdict
from sagittal.case.store import CaseStore
from sagittal.core.errors import ConflictError, InputError, StorageError
from store_places import Place, Server

MakeRun = Callable[..., Run]
MakeDraft = Callable[..., FindingDraft]


def corrected(run: Run, store: CaseStore, content: bytes) -> Run:
    output = Artifact(role="volume", kind="volume", content=store.objects.put_bytes(content))
    return replace(run, step="correct", outputs=(output,))


def test_the_second_of_two_corrections_is_told_and_nothing_is_written(
    place: Place, make_run: MakeRun, draft: MakeDraft
) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft()])
        base = store.case(case_id).latest("volume")
        first = corrected(make_run(), store, b"first")
        added = store.add_run(
            case_id, first, [draft("by hand")], author="Dr A", replaces={0: 1}, unless_changed=base
        )
        before = store.case(case_id)
        with pytest.raises(ConflictError, match="volume was changed meanwhile; got a change by Dr A, 2026"):
            store.add_run(
                case_id,
                corrected(make_run(), store, b"second"),
                [draft()],
                author="Dr B",
                unless_changed=base,
            )
        assert store.case(case_id) == before
        assert added.author == "Dr A"
        assert before.runs[1] == added
        old, new = before.findings
        assert (old.state, old.events[0].successor, old.events[0].who) == (FindingState.SUPERSEDED, 2, "Dr A")
        assert (new.author, new.run, new.state) == ("Dr A", 2, FindingState.DRAFT)
        latest = before.latest("volume")
        again = corrected(make_run(), store, b"third")
        assert store.add_run(case_id, again, [], author="Dr B", unless_changed=latest).number == 3


def test_what_is_replaced_must_stand_and_be_named_once(
    place: Place, make_run: MakeRun, draft: MakeDraft
) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft("a"), draft("b")])
        store.judge(case_id, 1, Verdict.REJECTED, who="Dr A")
        before = store.case(case_id)
        other = make_run(step="other")
        for replaces, said in (
            ({0: 1}, "finding 1: the finding no longer stands; got rejected by Dr A"),
            ({1: 2}, "places below 1"),
            ({0: 3}, "no finding has this number; got 3"),
        ):
            with pytest.raises(InputError, match=said):
                store.add_run(case_id, other, [draft()], author="Dr A", replaces=replaces)
        with pytest.raises(InputError, match="each with a number of its own"):
            store.add_run(case_id, other, [draft(), draft()], author="Dr A", replaces={0: 2, 1: 2})
        with pytest.raises(InputError, match="an author needs a name"):
            store.add_run(case_id, other, [draft()], author=" ")
        assert store.case(case_id) == before


def test_of_many_who_judge_one_finding_at_once_the_last_word_is_one_word(
    place: Place, make_run: MakeRun, draft: MakeDraft
) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        store.add_run(case_id, make_run(), [draft()])

        def reject(name: str) -> bool:
            try:
                store.judge(case_id, 1, Verdict.REJECTED, who=name)
            except ConflictError:
                return False
            return True

        with ThreadPoolExecutor(8) as readers:
            won = list(readers.map(reject, "abcdefgh"))
        assert sum(won) == 1
        assert len(store.finding(case_id, 1).events) == 1


def test_eight_writers_of_the_same_and_of_other_cases_lose_nothing(
    place: Place, make_run: MakeRun, draft: MakeDraft
) -> None:
    with place.open() as store:
        shared = store.create_case("shared")
        own = {name: store.create_case(name) for name in "abcdefgh"}

    def write(name: str) -> list[int]:
        numbers = []
        with place.open() as mine:
            for index in range(12):
                # The same contents in every writer, in another order: nobody may wait in a circle.
                order = [mine.objects.put_bytes(f"{index} {part}".encode()) for part in range(4)]
                parts = tuple(order if name < "e" else reversed(order))
                output = Artifact(role="volume", kind="volume", content=order[0], parts=parts)
                run = make_run(step=f"{name} {index}", outputs=(output,))
                numbers.append(mine.add_run(shared, run, [draft(f"{name} {index}")]).number)
                mine.add_run(own[name], run, [draft()])
                mine.judge(own[name], index + 1, Verdict.ACCEPTED, who=name)
        return numbers

    with ThreadPoolExecutor(8) as writers:
        numbers = [number for found in writers.map(write, own) for number in found]
    assert sorted(numbers) == list(range(1, 8 * 12 + 1))
    with place.open() as store:
        case = store.case(shared)
        assert [finding.number for finding in case.findings] == list(range(1, 8 * 12 + 1))
        assert {finding.content.subject for finding in case.findings} == {
            f"{n} {i}" for n in own for i in range(12)
        }
        for case_id in own.values():
            judged = store.case(case_id)
            assert [f.events[0].number for f in judged.findings] == list(range(1, 13))


def test_a_reader_sees_whole_runs_while_a_writer_writes(
    place: Place, make_run: MakeRun, draft: MakeDraft
) -> None:
    with place.open() as store:
        case_id = store.create_case("demo")
        done = threading.Event()

        def write() -> None:
            try:
                for _ in range(30):
                    store.add_run(case_id, make_run(), [draft("a"), draft("b")])
            finally:
                done.set()

        writer = threading.Thread(target=write)
        writer.start()
        while not done.is_set():
            case = store.case(case_id)
            assert len(case.findings) == 2 * len(case.runs)
            assert [f.events != () for f in case.findings] == [True] * (len(case.findings) - 2) + [
                False
            ] * min(2, len(case.findings))
        writer.join()
        assert len(store.case(case_id).runs) == 30


def test_a_server_that_goes_away_and_comes_back_is_survived(
    own_postgresql: Server, tmp_path: Path, make_run: MakeRun, draft: MakeDraft
) -> None:
    server = own_postgresql
    with Place(server.create(), tmp_path / "objects", "postgresql").open() as store:
        case_id = store.create_case("demo")
        server.stop()
        for use in (lambda: store.case(case_id), lambda: store.create_case("other"), store.worklist):
            with pytest.raises(StorageError, match=r"postgresql://sagittal@.*the case store refuses: "):
                use()
        server.start()
        assert store.add_run(case_id, make_run(), [draft()]).number == 1
        assert [row.label for row in store.worklist().rows] == ["demo"]


def test_a_writer_whose_server_dies_in_the_middle_says_so_and_leaves_nothing(
    own_postgresql: Server,
    tmp_path: Path,
    make_run: MakeRun,
    draft: MakeDraft,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sagittal.case import changes

    server = own_postgresql
    with Place(server.create(), tmp_path / "objects", "postgresql").open() as store:
        case_id = store.create_case("demo")
        honest = changes.add_findings

        def die(*given: object) -> int:
            server.stop()
            return honest(*given)

        monkeypatch.setattr(changes, "add_findings", die)
        with pytest.raises(StorageError, match="the case store refuses"):
            store.add_run(case_id, make_run(), [draft()])
        monkeypatch.setattr(changes, "add_findings", honest)
        server.start()
        assert store.case(case_id).runs == ()
        assert store.add_run(case_id, make_run(), [draft()]).number == 1


def test_a_server_that_is_not_there_is_named_without_the_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StorageError, match="expected a PostgreSQL server that answers there") as caught:
        CaseStore("postgresql://reader:hunter2@127.0.0.1:1/cases", objects=tmp_path)
    assert "hunter2" not in str(caught.value)
    assert "reader" in str(caught.value)


def test_another_writer_of_the_same_case_is_waited_for_or_named(
    place: Place, make_run: MakeRun, draft: MakeDraft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagittal.case.engines.PATIENCE", 1)
    with place.open() as store, place.open() as other:
        case_id = store.create_case("demo")
        with (
            other.database.writing(case_id),
            pytest.raises(StorageError, match="expected the other writer to finish"),
        ):
            store.add_run(case_id, make_run(), [draft()])
        assert store.add_run(case_id, make_run(), [draft()]).number == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs PostgreSQL")
def test_writers_of_different_cases_do_not_wait_for_each_other_in_postgresql(
    postgresql: Server, tmp_path: Path, make_run: MakeRun, draft: MakeDraft
) -> None:
    place = Place(postgresql.create(), tmp_path / "objects", "postgresql")
    with place.open() as store, place.open() as other:
        first, second = store.create_case("first"), store.create_case("second")
        with other.database.writing(first):
            assert store.add_run(second, make_run(), [draft()]).number == 1
