from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from sagittal.case.jobs import Job, JobState, JobTable, Watch, job_key, new_worker
from sagittal.case.record import FindingDraft, Run
from sagittal.case.store import CaseStore
from sagittal.core.errors import InputError, StorageError
from store_places import Place

STEPS = ({"name": "measure", "version": "1", "parameters": {"beta": 0.1}},)


@pytest.fixture
def store(place: Place) -> Iterator[CaseStore]:
    with place.open() as opened:
        yield opened


@pytest.fixture
def table(store: CaseStore) -> JobTable:
    return JobTable(store, attempts=2)


def job(name: str = "a.nii.gz", content: str = "00", **changes: object) -> Job:
    key = job_key({"t1.files": [content]}, STEPS)
    return replace(Job(key=key, batch="b", sources=(name,), steps=STEPS), **changes)


def claimed(table: JobTable, worker: str = "w", **changes: object) -> Job:
    table.add([job(**changes)])
    found = table.claim(job(**changes).key, worker)
    assert found is not None
    return found


def test_the_key_is_of_contents_and_steps_and_of_nothing_else() -> None:
    key = job_key({"t1.files": ["aa", "bb"]}, STEPS)
    assert key == job_key({"t1.files": ["bb", "aa"]}, STEPS)
    newer = [{**STEPS[0], "version": "2"}]
    other = [{**STEPS[0], "parameters": {"beta": 0.2}}]
    keys = {
        key,
        job_key({"t1.files": ["aa", "cc"]}, STEPS),
        job_key({"ct.files": ["aa", "bb"]}, STEPS),
        job_key({"t1.files": ["aa", "bb"]}, newer),
        job_key({"t1.files": ["aa", "bb"]}, other),
    }
    assert len(keys) == 5


def test_a_job_added_twice_is_one_job_that_names_both_sources(table: JobTable) -> None:
    table.add([job("a.nii"), job("b.nii")])
    table.add([job("b.nii"), job("c.nii")])
    assert table.job(job().key).sources == ("a.nii", "b.nii", "c.nii")


def test_adding_a_job_that_is_done_does_not_begin_it_again(table: JobTable) -> None:
    mine = claimed(table)
    assert table.finish(mine.key, "w", 1.5)
    table.add([job("renamed.nii")])
    again = table.job(mine.key)
    assert (again.state, again.seconds) == (JobState.DONE, 1.5)
    assert table.claim(mine.key, "v") is None


def test_of_many_that_ask_at_once_one_has_the_job(place: Place, table: JobTable) -> None:
    table.add([job(content=str(number)) for number in range(20)])
    keys = [job(content=str(number)).key for number in range(20)]

    def ask(worker: str) -> list[str]:
        with place.open() as own:
            mine = JobTable(own)
            return [key for key in keys if mine.claim(key, worker) is not None]

    with ThreadPoolExecutor(4) as pool:
        held = [key for keys in pool.map(ask, "abcd") for key in keys]
    assert sorted(held) == sorted(keys)
    assert {found.attempts for found in table.jobs(keys).values()} == {1}


def test_a_case_is_opened_once_for_a_job(table: JobTable) -> None:
    mine = claimed(table)
    first = table.open_case(mine.key, "w", "label")
    assert first is not None
    assert table.open_case(mine.key, "w", "label") == first
    assert table.store.case_ids() == [first]
    assert table.job(mine.key).case_id == first


def test_who_has_lost_a_job_cannot_change_it_any_more(table: JobTable) -> None:
    mine = claimed(table, "slow")
    assert table.lose(mine, "the worker was killed (signal 9)") is not None
    assert table.claim(mine.key, "quick") is not None
    before = table.job(mine.key)
    assert not table.beat(mine.key, "slow")
    assert table.open_case(mine.key, "slow", "label") is None
    assert not table.finish(mine.key, "slow", 1.0)
    assert not table.fail(mine.key, "slow", "why", 1.0)
    assert not table.release(mine.key, "slow")
    assert not table.replace(mine.key, "slow", job(content="11"))
    assert table.job(mine.key) == before
    assert table.store.case_ids() == []


def test_a_lost_job_waits_again_and_fails_after_its_attempts(table: JobTable) -> None:
    mine = claimed(table)
    once = table.lose(mine, "the worker was killed (signal 9)")
    assert once is not None
    assert once.state is JobState.WAITING
    again = table.claim(mine.key, "w")
    assert again is not None
    twice = table.lose(again, "the worker was killed (signal 9)")
    assert twice is not None
    assert twice.state is JobState.FAILED
    assert twice.error == "the worker was killed (signal 9), in 2 of 2 attempts"


def test_a_job_that_beat_since_it_was_looked_at_is_not_lost(table: JobTable) -> None:
    mine = claimed(table)
    assert table.beat(mine.key, "w")
    assert table.lose(mine, "the worker is silent") is None
    assert table.job(mine.key).state is JobState.RUNNING


def test_a_released_job_has_all_its_attempts(table: JobTable) -> None:
    mine = claimed(table)
    assert table.release(mine.key, "w")
    again = table.job(mine.key)
    assert (again.state, again.attempts) == (JobState.WAITING, 0)


def test_only_failed_jobs_are_tried_again(table: JobTable) -> None:
    failed = claimed(table, content="1")
    done = claimed(table, content="2")
    table.fail(failed.key, "w", "the file is empty", 0.1)
    table.finish(done.key, "w", 0.1)
    table.retry([failed.key, done.key])
    again = table.job(failed.key)
    assert (again.state, again.attempts, again.error) == (JobState.WAITING, 0, "")
    assert table.job(done.key).state is JobState.DONE


def test_other_contents_take_the_place_of_a_job_unless_it_has_a_case(table: JobTable) -> None:
    old = claimed(table, content="old")
    assert table.replace(old.key, "w", job(content="new"))
    assert set(table.jobs([old.key, job(content="new").key])) == {job(content="new").key}
    kept = claimed(table, content="kept")
    table.open_case(kept.key, "w", "label")
    assert not table.replace(kept.key, "w", job(content="newer"))
    assert table.job(kept.key).case_id is not None


def test_contents_that_another_job_has_add_a_name_to_it(table: JobTable) -> None:
    other = claimed(table, name="b.nii", content="b")
    table.finish(other.key, "w", 1.0)
    mine = claimed(table, name="a.nii", content="a")
    assert table.replace(mine.key, "w", job("a.nii", content="b"))
    assert table.jobs([mine.key]) == {}
    assert table.job(other.key).sources == ("b.nii", "a.nii")
    assert table.job(other.key).state is JobState.DONE


def test_a_job_that_is_not_there_is_named(table: JobTable) -> None:
    with pytest.raises(InputError, match="no job has this key.*abc"):
        table.job("abc")


def test_a_store_opened_for_reading_takes_no_job(place: Place, table: JobTable) -> None:
    table.add([job()])
    with place.open(read_only=True) as sealed:
        reader = JobTable(sealed)
        assert reader.job(job().key).state is JobState.WAITING
        with pytest.raises(StorageError, match="read-only"):
            reader.claim(job().key, "w")


def test_a_live_process_is_not_lost_and_a_dead_one_is() -> None:
    command = [
        sys.executable,
        "-c",
        "from sagittal.case.jobs import new_worker; print(new_worker(), flush=True); input()",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = process.stdout.readline().strip()
        if worker.startswith("/"):
            pytest.skip("this system does not tell which processes live")
        watch = Watch()
        running = job(state=JobState.RUNNING, worker=worker)
        assert not watch.lost(running, 0.0)
        process.kill()
        process.wait()
        assert watch.lost(running, 0.0)


def test_another_process_of_the_same_number_is_not_taken_for_the_worker() -> None:
    system, pid, born, token = new_worker().split("/")
    if not system:
        pytest.skip("this system does not tell which processes live")
    assert int(pid) == os.getpid()
    earlier = f"{system}/{pid}/{int(born) - 1}/{token}"
    assert Watch().lost(job(state=JobState.RUNNING, worker=earlier), 0.0)


def test_a_worker_elsewhere_is_lost_when_it_has_not_beaten_for_the_watch_s_patience() -> None:
    watch = Watch(patience=60.0)
    running = job(state=JobState.RUNNING, worker="elsewhere/1/1/a", beat=5)
    assert not watch.lost(running, 1000.0)
    assert not watch.lost(running, 1059.0)
    assert not watch.lost(replace(running, beat=6), 1059.5)
    assert not watch.lost(replace(running, beat=6), 1119.0)
    assert watch.lost(replace(running, beat=6), 1119.5)


def test_a_run_that_is_in_the_case_is_not_added_once_more(
    store: CaseStore, make_run: Callable[..., Run], draft: Callable[..., FindingDraft]
) -> None:
    case_id = store.create_case("demo")
    first = store.add_run(case_id, make_run(), [draft()], once=True)
    before = store.case(case_id)
    again = make_run(started="later", seconds=9.0, environment={"python": "4"})
    assert store.add_run(case_id, again, [draft()], once=True) == first
    assert store.case(case_id) == before


@pytest.mark.parametrize(
    "change",
    [
        {"version": "2"},
        {"parameters": {"beta": 0.2, "names": ["a", "b"]}},
        {"seed": 1},
        {"inputs": ()},
        {"used": (1,)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_run_that_asks_for_something_else_is_added(
    store: CaseStore, make_run: Callable[..., Run], draft: Callable[..., FindingDraft], change: dict
) -> None:
    case_id = store.create_case("demo")
    store.add_run(case_id, make_run(), [draft()])
    assert store.add_run(case_id, make_run(**change), [draft()], once=True).number == 2
