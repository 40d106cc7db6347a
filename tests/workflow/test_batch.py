from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from batch_steps import Count, Die, Inline, tasks_of
from sagittal.case.jobs import Job, JobState, JobTable, Watch, new_worker
from sagittal.case.record import Case
from sagittal.case.store import CaseStore
from sagittal.core.errors import StorageError
from sagittal.workflow import artifacts
from sagittal.workflow.batch import BatchResult, Interrupted, batch_tasks, job_results, run_batch
from sagittal.workflow.engines import Engine, LocalEngine, RayEngine
from sagittal.workflow.folder import list_cases
from sagittal.workflow.pipeline import Sources, run_case
from sagittal.workflow.runner import Runner
from sagittal.workflow.worker import Setting, Task, Worker
from store_places import Server

COUNT = {"a": b"1", "b": b"22", "c": b"333"}


@pytest.fixture
def setting(store: CaseStore) -> Setting:
    return Setting(store=store.location, store_id=store.id, offline=True, beat=0.2, imports=("batch_steps",))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return tmp_path / "files"


def states(result: BatchResult) -> dict[str, str]:
    return {case.source: case.state for case in result.cases}


def counts(store: CaseStore) -> list[int]:
    """What the step Count found, over all cases."""
    found = []
    for case_id in store.case_ids():
        artifact = store.case(case_id).latest("count")
        if artifact is not None:
            found.append(artifacts.load(store.objects, artifact)["bytes"])
    return sorted(found)


def contents(case: Case) -> list[tuple[object, ...]]:
    """What a case holds, apart from times and names."""
    return [
        (run.step, [(made.role, made.content) for made in run.outputs], run.findings, run.used)
        for run in case.runs
    ]


def test_each_file_is_a_case_and_a_second_time_nothing_is_done(
    store: CaseStore, setting: Setting, files: Path
) -> None:
    tasks = tasks_of(files, COUNT, Count())
    first = run_batch(store, tasks, engine=Inline(setting))
    assert (first.done, first.failed) == (3, 0)
    assert counts(store) == [1, 2, 3]
    again = Inline(setting)
    second = run_batch(store, tasks, engine=again)
    assert again.done == []
    assert second.cases == first.cases
    assert len(store.case_ids()) == 3


def test_one_failed_case_does_not_stop_the_rest_and_says_why_without_contents(
    store: CaseStore, setting: Setting, files: Path
) -> None:
    tasks = tasks_of(files, {"a": b"bad MUELLER", "b": b"odd MUELLER", "c": b"333"}, Count())
    result = run_batch(store, tasks, engine=Inline(setting))
    assert states(result) == {"a": "failed", "b": "failed", "c": "done"}
    assert (result.done, result.failed) == (1, 2)
    errors = [case.error for case in result.cases]
    assert errors[0] == "x.nii: the file is damaged; expected a whole file"
    assert "RuntimeError" in errors[1]
    assert "MUELLER" not in "".join(errors)


def test_failed_cases_are_tried_again_only_on_request_and_in_the_same_case(
    store: CaseStore, setting: Setting, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = tasks_of(files, {"a": b"bad"}, Count())
    (failed,) = run_batch(store, tasks, engine=Inline(setting)).cases
    monkeypatch.setattr(Count, "run", lambda *_: pytest.fail("it was tried again"))
    assert run_batch(store, tasks, engine=Inline(setting)).failed == 1
    monkeypatch.undo()
    good = Inline(setting)
    with monkeypatch.context() as patched:
        patched.setattr(Count, "run", _counted)
        result = run_batch(store, tasks, engine=good, retry_failed=True)
    assert [case.state for case in result.cases] == ["done"]
    assert result.cases[0].case == failed.case
    assert store.case_ids() == [failed.case]


def _counted(step: Count, inputs: object, context: object) -> object:
    from sagittal.workflow.step import Result

    return Result(outputs={"count": {"bytes": 0}})


def test_the_same_image_under_two_names_is_one_case_that_both_name(
    store: CaseStore, setting: Setting, files: Path
) -> None:
    tasks = tasks_of(files, {"a": b"same", "b": b"same", "c": b"other"}, Count())
    result = run_batch(store, tasks, engine=Inline(setting))
    assert states(result) == {"a": "done", "b": "done", "c": "done"}
    assert result.done == 2
    cases = {case.source: case.case for case in result.cases}
    assert cases["a"] == cases["b"] != cases["c"]
    assert JobTable(store).job(tasks[0].job.key).sources == ("a", "b")
    assert len(store.case_ids()) == 2


def test_contents_that_changed_since_the_listing_are_what_counts(
    store: CaseStore, setting: Setting, files: Path
) -> None:
    tasks = tasks_of(files, {"a": b"1"}, Count())
    (files / "a").write_bytes(b"4444")
    result = run_batch(store, tasks, engine=Inline(setting))
    assert states(result) == {"a": "done"}
    assert counts(store) == [4]
    now = tasks_of(files, {"a": b"4444"}, Count())
    assert run_batch(store, now, engine=Inline(setting)).cases[0].case == result.cases[0].case


def test_contents_that_became_those_of_another_file_are_its_case(
    store: CaseStore, setting: Setting, files: Path
) -> None:
    tasks = tasks_of(files, COUNT, Count())
    (files / "a").write_bytes(b"333")
    result = run_batch(store, tasks, engine=Inline(setting))
    cases = {case.source: case.case for case in result.cases}
    assert cases["a"] == cases["c"]
    assert counts(store) == [2, 3]


def test_what_a_case_has_received_counts_though_its_file_is_gone(
    store: CaseStore, setting: Setting, files: Path
) -> None:
    tasks = tasks_of(files, {"a": b"22"}, Count())
    table = JobTable(store)
    table.add([tasks[0].job])
    table.claim(tasks[0].job.key, "w")
    case_id = table.open_case(tasks[0].job.key, "w", "test")
    assert case_id is not None
    from sagittal.workflow.models import ModelShelf

    Runner(store=store, shelf=ModelShelf()).receive(case_id, "t1.files", [files / "a"])
    table.release(tasks[0].job.key, "w")
    (files / "a").unlink()
    result = run_batch(store, tasks, engine=Inline(setting))
    assert (result.cases[0].state, result.cases[0].case) == ("done", case_id)
    assert counts(store) == [2]


def test_a_file_that_went_away_is_a_failed_case(store: CaseStore, setting: Setting, files: Path) -> None:
    tasks = tasks_of(files, COUNT, Count())
    (files / "b").unlink()
    result = run_batch(store, tasks, engine=Inline(setting))
    assert states(result) == {"a": "done", "b": "failed", "c": "done"}
    assert "b: there is no such file" in result.cases[1].error
    assert len(store.case_ids()) == 2, "a file that was not received opens no case"


def test_a_job_of_a_newer_step_is_refused_with_both_versions(
    store: CaseStore, setting: Setting, files: Path
) -> None:
    (task,) = tasks_of(files, {"a": b"1"}, Count())
    newer = replace(task.job, steps=({**task.job.steps[0], "version": "2"},))
    result = run_batch(store, [replace(task, job=newer)], engine=Inline(setting))
    assert result.cases[0].state == "failed"
    assert "test-batch-count: the step has changed" in result.cases[0].error
    assert store.case_ids() == []


def test_an_interrupted_batch_puts_back_what_it_had_and_goes_on(
    store: CaseStore, setting: Setting, files: Path
) -> None:
    tasks = tasks_of(files, COUNT, Count())
    engine = Inline(setting, workers=2, interrupt_after=1)
    with pytest.raises(Interrupted) as stopped:
        run_batch(store, tasks, engine=engine)
    assert stopped.value.left == 2
    assert engine.stopped
    jobs = JobTable(store).jobs([task.job.key for task in tasks])
    assert sorted(job.state for job in jobs.values()) == ["done", "waiting", "waiting"]
    assert {job.attempts for job in jobs.values() if job.state == "waiting"} == {0}
    rest = Inline(setting)
    assert run_batch(store, tasks, engine=rest).done == 3
    assert len(rest.done) == 2
    assert counts(store) == [1, 2, 3]


def test_a_store_that_is_full_stops_the_batch_which_goes_on_when_there_is_room(
    small_disk: Path, files: Path
) -> None:
    with CaseStore(small_disk / "store") as store:
        setting = Setting(store=store.location, store_id=store.id)
        tasks = tasks_of(files, {str(n): bytes([n]) * 200_000 for n in range(6)}, Count())
        (small_disk / "ballast").write_bytes(bytes(900_000))
        with pytest.raises(StorageError, match="full"):
            run_batch(store, tasks, engine=Inline(setting))
        known = JobTable(store).jobs([task.job.key for task in tasks])
        assert "failed" not in {job.state.value for job in known.values()}
        (small_disk / "ballast").unlink()
        again = [replace(task, job=replace(task.job)) for task in tasks[:3]]
        result = run_batch(store, again, engine=Inline(setting))
        assert result.done == 3
        assert len(store.case_ids()) == len({case.case for case in result.cases})


def test_a_store_that_is_sealed_in_the_middle_stops_the_batch(
    store: CaseStore, setting: Setting, files: Path, seal: Callable[[Path], None]
) -> None:
    class Sealing(Inline):
        def wait(self, timeout: float) -> list:
            if len(self.done) == 1:
                seal(store.objects.folder)
            return super().wait(timeout)

    tasks = tasks_of(files, COUNT, Count())
    with pytest.raises(StorageError, match=r"read-only|no permission"):
        run_batch(store, tasks, engine=Sealing(setting))
    jobs = JobTable(store).jobs([task.job.key for task in tasks]).values()
    assert sorted(job.state for job in jobs) == ["done", "waiting", "waiting"]


def test_a_worker_that_sees_another_store_stops_the_batch(
    store: CaseStore, setting: Setting, files: Path, tmp_path: Path
) -> None:
    with CaseStore(tmp_path / "other") as other:
        elsewhere = replace(setting, store=other.location)
        with pytest.raises(StorageError, match="another store"):
            run_batch(store, tasks_of(files, COUNT, Count()), engine=Inline(elsewhere))
    nowhere = replace(setting, store=str(tmp_path / "nowhere"))
    with pytest.raises(StorageError, match="does not see the store"):
        run_batch(store, tasks_of(files, COUNT, Count()), engine=Inline(nowhere))
    assert not (tmp_path / "nowhere").exists()


def test_a_job_whose_worker_is_dead_is_taken_up_in_its_case(
    store: CaseStore, setting: Setting, files: Path
) -> None:
    tasks = tasks_of(files, {"a": b"1"}, Count())
    system, pid, born, token = new_worker().split("/")
    if not system:
        pytest.skip("this system does not tell which processes live")
    table = JobTable(store)
    table.add([tasks[0].job])
    dead = f"{system}/{pid}/{int(born) - 1}/{token}"
    table.claim(tasks[0].job.key, dead)
    case_id = table.open_case(tasks[0].job.key, dead, "test")
    result = run_batch(store, tasks, engine=Inline(setting))
    assert (result.cases[0].state, result.cases[0].case) == ("done", case_id)
    assert table.job(tasks[0].job.key).attempts == 2


def test_a_job_that_another_batch_does_is_waited_for(store: CaseStore, setting: Setting, files: Path) -> None:
    tasks = tasks_of(files, {"a": b"1", "b": b"2"}, Count())
    table = JobTable(store)
    table.add([tasks[0].job])
    other = new_worker()
    table.claim(tasks[0].job.key, other)

    def finish() -> None:
        time.sleep(1.5)
        table.finish(tasks[0].job.key, other, 7.0)

    thread = threading.Thread(target=finish)
    thread.start()
    engine = Inline(setting)
    result = run_batch(store, tasks, engine=engine, watch=Watch(patience=3600))
    thread.join()
    assert engine.done == ["b"]
    assert result.cases[0].seconds == 7.0


def test_a_silent_worker_elsewhere_is_lost_after_the_watch_s_patience(
    store: CaseStore, setting: Setting, files: Path
) -> None:
    tasks = tasks_of(files, {"a": b"1"}, Count())
    table = JobTable(store)
    table.add([tasks[0].job])
    table.claim(tasks[0].job.key, "elsewhere/1/1/a")
    result = run_batch(store, tasks, engine=Inline(setting), watch=Watch(patience=1.0))
    assert states(result) == {"a": "done"}


def test_a_worker_at_its_job_beats(store: CaseStore, setting: Setting, files: Path) -> None:
    (task,) = tasks_of(files, {"a": b"slow"}, Die())
    table = JobTable(store)
    table.add([task.job])
    threading.Thread(target=Worker(replace(setting, beat=0.05)).do, args=(task,), daemon=True).start()
    _until(lambda: table.job(task.job.key).beat >= 3)
    assert table.job(task.job.key).state is JobState.RUNNING


def test_a_model_is_loaded_once_a_worker(
    store: CaseStore, setting: Setting, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    class Model:
        weights_sha256 = "00"

    def load(folder: Path, *, packed: bool) -> Model:
        assert packed
        loaded.append(folder)
        return Model()

    monkeypatch.setattr("sagittal.language.load_language_model", load, raising=False)
    plain = Count.run

    def with_model(step: Count, inputs: object, context: object) -> object:
        context.model("folder")  # type: ignore[attr-defined]
        return plain(step, inputs, context)  # type: ignore[arg-type]

    monkeypatch.setattr(Count, "run", with_model)
    result = run_batch(store, tasks_of(files, COUNT, Count()), engine=Inline(setting))
    assert result.done == 3
    assert loaded == [Path("folder")]


def test_the_state_of_a_folder_is_told_without_doing_anything(
    store: CaseStore, setting: Setting, files: Path
) -> None:
    tasks = tasks_of(files, COUNT, Count())
    assert set(states(job_results(store, tasks)).values()) == {"new"}
    run_batch(store, tasks[:1], engine=Inline(setting))
    assert states(job_results(store, tasks)) == {"a": "done", "b": "new", "c": "new"}


def test_progress_counts_and_estimates(store: CaseStore, setting: Setting, files: Path) -> None:
    said: list[str] = []
    run_batch(store, tasks_of(files, COUNT, Count()), engine=Inline(setting), report=said.append)
    assert said[0] == "0 done, 0 failed, 0 running, 3 waiting"
    assert said[-1] == "3 done, 0 failed, 0 running, 0 waiting"
    assert "a case, " in said[2]
    assert said[2].endswith(" left")


def test_a_server_that_goes_away_stops_the_batch_which_goes_on_when_it_is_back(
    postgresql: Server, files: Path
) -> None:
    class Leaving(Inline):
        def wait(self, timeout: float) -> list:
            if len(self.done) == 1:
                postgresql.stop()
            return super().wait(timeout)

    tasks = tasks_of(files, COUNT, Count())
    with CaseStore(postgresql.create()) as store:
        setting = Setting(store=store.location, store_id=store.id)
        try:
            with pytest.raises(StorageError):
                run_batch(store, tasks, engine=Leaving(setting))
        finally:
            postgresql.start()
        result = run_batch(store, tasks, engine=Inline(setting))
        assert result.done == 3
        assert counts(store) == [1, 2, 3]
        assert len(store.case_ids()) == 3


def test_processes_do_the_jobs_of_a_store_in_postgresql(postgresql: Server, files: Path) -> None:
    with CaseStore(postgresql.create()) as store:
        setting = Setting(store=store.location, store_id=store.id, imports=("batch_steps",))
        engine = LocalEngine(setting=setting, workers=2)
        result = run_batch(store, tasks_of(files, COUNT, Count()), engine=engine)
        assert result.done == 3
        assert counts(store) == [1, 2, 3]


# A real case of several steps


def tissue_tasks(folder: Path) -> list[Task]:
    return batch_tasks(folder, list_cases(folder, ["tissue", "report"]), ["tissue", "report"], model="")


@pytest.fixture
def images(sources: Sources, tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.nii.gz").write_bytes(sources.t1[0].read_bytes())
    return folder


@pytest.mark.parametrize("after", range(1, 5))
def test_a_case_killed_after_any_run_is_completed_with_the_contents_of_an_undisturbed_one(
    store: CaseStore, setting: Setting, images: Path, tmp_path: Path, after: int
) -> None:
    with CaseStore(tmp_path / "undisturbed") as other:
        run_batch(
            other, tissue_tasks(images), engine=Inline(replace(setting, store=other.location, store_id=""))
        )
        (undisturbed,) = [other.case(case_id) for case_id in other.case_ids()]

    class Killed(BaseException):
        pass

    tasks = tissue_tasks(images)
    table = JobTable(store)
    table.add(task.job for task in tasks)
    added = store.add_run
    worker = Worker(setting)
    worker._store = store

    def add_run(*arguments: object, **options: object) -> object:
        run = added(*arguments, **options)  # type: ignore[arg-type]
        if run.number == after:
            raise Killed
        return run

    store.add_run = add_run  # type: ignore[assignment, method-assign]
    with pytest.raises(Killed):
        worker.do(tasks[0])
    store.add_run = added  # type: ignore[method-assign]
    job = table.job(tasks[0].job.key)
    assert table.lose(job, "the worker was killed (signal 9)") is not None
    result = run_batch(store, tasks, engine=Inline(setting))
    assert result.done == 1
    (completed,) = [store.case(case_id) for case_id in store.case_ids()]
    assert len(completed.runs) == 4
    assert contents(completed) == contents(undisturbed)
    assert [finding.state for finding in completed.findings] == ["draft"] * len(undisturbed.findings)


def test_run_case_completes_a_case_that_was_begun(runner: Runner, sources: Sources) -> None:
    only_t1 = replace(sources, ct=(), record=())
    case_id = run_case(runner, only_t1, label="test", model="")
    before = runner.store.case(case_id)
    assert run_case(runner, only_t1, label="test", model="", case_id=case_id) == case_id
    assert runner.store.case(case_id) == before
    run_case(runner, replace(sources, record=()), label="test", model="", case_id=case_id)
    steps = [run.step for run in runner.store.case(case_id).runs]
    assert steps == [run.step for run in before.runs] + [
        "receive",
        "read-image",
        "measure-ct-slice",
        "draft-report",
    ]


# Processes that are killed


@pytest.fixture(params=["local", "ray"])
def engine(
    request: pytest.FixtureRequest, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    if request.param == "local":
        yield LocalEngine(setting=setting, workers=2)
        return
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    here = os.pathsep.join(str(Path(part).absolute()) for part in sys.path if part)
    monkeypatch.setenv("PYTHONPATH", here)  # Ray's workers know what this process was told when it started
    made = RayEngine(setting=setting, workers=2)
    yield made
    made.stop()


def test_a_killed_worker_s_case_is_begun_again_and_one_that_always_kills_fails(
    store: CaseStore, engine: Engine, files: Path
) -> None:
    marks = files.parent / "marks"
    marks.mkdir()
    given = {"a": b"1", "b": b"once", "c": b"always", "d": b"22"}
    tasks = tasks_of(files, given, Count(), Die(folder=str(marks)), Count(tell=True))
    result = run_batch(store, tasks, engine=engine, attempts=2)
    assert states(result) == {"a": "done", "b": "done", "c": "failed", "d": "done"}
    assert "the worker was killed" in result.cases[2].error
    assert "2 of 2 attempts" in result.cases[2].error
    if isinstance(engine, LocalEngine):
        assert f"(signal {signal.SIGKILL.value})" in result.cases[2].error
    table = JobTable(store)
    assert [table.job(task.job.key).attempts for task in tasks] == [1, 2, 2, 1]
    assert len(store.case_ids()) == 4
    begun_again = store.case(result.cases[1].case)
    assert [run.step for run in begun_again.runs] == [
        "receive",
        "test-batch-count",
        "test-batch-die",
        "test-batch-count",
    ]


def test_the_processors_are_divided_and_a_process_is_replaced_after_its_tasks(
    store: CaseStore, setting: Setting, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagittal.workflow.engines.processors", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    engine = LocalEngine(setting=setting, workers=2, tasks=1)
    run_batch(store, tasks_of(files, COUNT, Count(tell=True)), engine=engine)
    told = [
        artifacts.load(store.objects, artifact)
        for case_id in store.case_ids()
        if (artifact := store.case(case_id).latest("count")) is not None
    ]
    assert {one["threads"] for one in told} == {"3"}
    assert len({one["pid"] for one in told}) == 3


def test_a_stopped_engine_leaves_no_process(setting: Setting, store: CaseStore, files: Path) -> None:
    (task,) = tasks_of(files, {"a": b"slow"}, Die())
    table = JobTable(store)
    table.add([task.job])
    engine = LocalEngine(setting=setting, workers=1)
    engine.submit(task)
    _until(lambda: table.job(task.job.key).state is JobState.RUNNING)
    job: Job = table.job(task.job.key)
    engine.stop()
    if job.worker.startswith("/"):
        pytest.skip("this system does not tell which processes live")
    assert Watch().lost(job, 0.0)


def _until(ready: Callable[[], bool]) -> None:
    for _ in range(600):
        if ready():
            return
        time.sleep(0.1)
    pytest.fail("it did not come to that within a minute")
