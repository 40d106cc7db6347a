"""Writers that are killed lose nothing that was confirmed; and the harness sees a store that does."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import insert

from sagittal.case import reading, uses
from sagittal.case.objects import ObjectStore
from sagittal.case.record import FindingDraft, Run
from sagittal.case.rows import run_values
from sagittal.case.schema import RunRow
from sagittal.case.store import CaseStore
from store_places import Place

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    spec = importlib.util.spec_from_file_location("store_crash", ROOT / "benchmarks" / "store_crash.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["store_crash"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_killed_writers_leave_whole_findings_and_every_content(
    harness: ModuleType, engine: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue("own_postgresql") if engine == "postgresql" else None
    count = harness.crash(16, engine=engine, seed=5, folder=tmp_path, server=server)
    assert count.kills == 16
    assert (count.failed_opens, count.half_findings, count.missing_arrays, count.lost_commits) == (0, 0, 0, 0)
    assert (count.wrong_summaries, count.failed_writers) == (0, 0), count.examples
    assert sum(count.killed_while.values()) == 16
    assert count.killed_while["nothing"] < 16


# Stores that are broken on purpose. Between the two halves of what should be one they say a few lines, so
# that the harness, which counts lines, kills some of their writers there.


class Broken(CaseStore):
    """A store that can be killed in a gap where an honest one has none."""

    say: Callable[..., None]

    def gap(self) -> None:
        for _ in range(4):
            self.say(begin="gap")
            time.sleep(0.05)


class FindingsLater(Broken):
    """Adds the run in one transaction and its findings in the next."""

    def add_run(self, case_id: str, run: Run, findings: Any, **_: Any) -> Run:
        from dataclasses import replace

        with self.database.writing(case_id) as session:
            number = reading.last(session, RunRow, case_id) + 1
            hashes = tuple(finding.content_hash for finding in findings)
            added = replace(run, number=number, findings=hashes)
            session.execute(insert(RunRow), [run_values(case_id, added)])
            uses.record(session, self.objects, case_id, added)
        self.gap()
        with self.database.writing(case_id) as session:
            self.changes_add(session, case_id, added, findings)
        return added

    def changes_add(self, session: Any, case_id: str, run: Run, findings: list[FindingDraft]) -> None:
        from sagittal.case import changes

        changes.add_findings(session, case_id, run.number, "late", findings)
        changes.changed(session, "add-run", "late", case_id, {})


class ContentsLater(Broken):
    """Adds the run first and then the contents that it refers to."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.waiting: list[Callable[[], object]] = []
        honest = self.objects
        store = self

        class Late(ObjectStore):
            def put_bytes(self, content: bytes) -> str:
                import hashlib

                store.waiting.append(lambda: honest.put_bytes(content))
                return hashlib.sha256(content).hexdigest()

            def size(self, digest: str) -> int:
                return 0

        self.objects = Late(honest.folder)

    def add_run(self, *given: Any, **named: Any) -> Run:
        added = super().add_run(*given, **named)
        self.gap()
        for put in self.waiting:
            put()
        self.waiting.clear()
        return added


class Forgetful(Broken):
    """Confirms runs that it never wrote."""

    def add_run(self, case_id: str, run: Run, findings: Any, **_: Any) -> Run:
        from dataclasses import replace

        return replace(run, number=len(self.case(case_id).runs) + 1)


@pytest.mark.parametrize(
    ("broken", "counted"),
    [
        (FindingsLater, "half_findings"),
        (ContentsLater, "missing_arrays"),
        (Forgetful, "lost_commits"),
    ],
)
def test_the_harness_sees_a_store_that_breaks_its_word(
    harness: ModuleType, tmp_path: Path, broken: type[Broken], counted: str
) -> None:
    def work(place: Place, cases: list[str], template: bytes, seed: int, say: Callable[..., None]) -> None:
        with broken(place.location, objects=place.objects) as store:
            store.say = say
            writer = harness.Writer(store, cases, template, seed, say)
            writer.open()
            while True:
                writer.run()

    count = harness.crash(20, engine="sqlite", seed=1, folder=tmp_path, work=work)
    assert getattr(count, counted) > 0, count
    assert json.loads(json.dumps(count.examples))


def test_the_harness_sees_a_store_that_does_not_open(harness: ModuleType, place: Place) -> None:
    if place.engine == "postgresql":
        place.execute("UPDATE alembic_version SET version_num = '9999'")
    else:
        place.open().close()
        (Path(place.location) / "cases.sqlite").write_bytes(b"this is no database" * 100)
    count = harness.Count()
    harness.inspect(place, [], count)
    assert count.failed_opens == 1
