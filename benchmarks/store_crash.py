"""Kill writers of a case store in the middle of their work, and look at what they left.

    python benchmarks/store_crash.py --kills 1000 --json F [--engine postgresql]

Writers put arrays, add runs with findings, judge, supersede, import archives and collect garbage, and say
what they are about to do and what the store has confirmed. At a random moment each is sent SIGKILL. Then the
store is opened and read whole. On PostgreSQL the server itself is stopped without warning now and then.

SIGKILL ends a process; it does not take the power from a disk. What a disk lost that said it had written,
this cannot show.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import sqlalchemy.dialects.sqlite  # noqa: F401  (imported before the fork, as everything is)

from sagittal.case.archive import export_archive, import_archive
from sagittal.case.garbage import collect
from sagittal.case.record import Artifact, FindingDraft, Run, Verdict
from sagittal.case.store import CaseStore
from sagittal.core.errors import ConflictError, SagittalError, StorageError
from store_places import Place, Server, UnavailableError, in_folder

WRITERS = 4
ROUNDS_A_STORE = 10
MOST_LINES = 16  # that a writer says before it is killed: two for each change
MOMENT = 0.02  # seconds from a writer's last line to its end, at most
OPENING = 0.1  # the same for one that is to die while it opens a new store
PATIENCE = 20.0  # seconds after which a writer is killed wherever it is


@dataclass
class Count:
    """What was found; every number up to ``failed_writers`` should be zero, but ``kills``."""

    kills: int = 0
    failed_opens: int = 0
    half_findings: int = 0
    missing_arrays: int = 0
    lost_commits: int = 0
    wrong_summaries: int = 0
    failed_writers: int = 0
    server_stops: int = 0
    confirmed: Counter[str] = field(default_factory=Counter)
    killed_while: Counter[str] = field(default_factory=Counter)
    contents_without_a_run: int = 0
    examples: list[str] = field(default_factory=list)

    def note(self, what: str, example: str) -> None:
        setattr(self, what, getattr(self, what) + 1)
        if len(self.examples) < 20:
            self.examples.append(f"{what}: {example}")


# What a writer does


def run_of(step: str, contents: list[str]) -> Run:
    return Run(
        number=0,
        step=step,
        version="1",
        parameters={"step": step},
        inputs=(),
        outputs=(Artifact(role="volume", kind="file", content=contents[0], parts=tuple(contents[1:])),),
        findings=(),
        used=(),
        seed=0,
        doubt="none",
        models={},
        environment={},
        started="2026-01-01T00:00:00.000+00:00",
        seconds=0.0,
    )


def findings_of(step: str, chance: random.Random) -> list[FindingDraft]:
    return [
        FindingDraft(code="crash.test", subject=f"{i}", statement=f"{step} {i}", confidence=chance.random())
        for i in range(chance.randint(1, 6))
    ]


class Writer:
    """One process's work on a store, told to ``say`` line by line."""

    def __init__(
        self, store: CaseStore, cases: list[str], template: bytes, seed: int, say: Callable[..., None]
    ) -> None:
        self.store, self.cases, self.template, self.say = store, list(cases), template, say
        self.chance = random.Random(seed)
        self.folder = Path(tempfile.gettempdir())

    def work(self) -> None:
        actions = [self.run] * 8 + [self.judge] * 3 + [self.supersede] * 3
        actions += [self.bring] * 2 + [self.open, self.collect]
        if not self.cases:
            self.open()
        while True:
            # Refused by another's change, or by the collector, is an answer, and no loss.
            with contextlib.suppress(ConflictError, StorageError):
                self.chance.choice(actions)()

    def open(self) -> None:
        self.say(begin="case")
        case_id = self.store.create_case("crash")
        self.cases.append(case_id)
        self.say(done="case", case=case_id)

    def run(self) -> None:
        step = f"step {self.chance.getrandbits(60):015x}"
        self.say(begin="contents")
        sizes = [self.chance.randint(1, 40_000) for _ in range(self.chance.randint(1, 3))]
        arrays = [np.full(size, self.chance.random()) for size in sizes]
        contents = [self.store.objects.put_array(array) for array in arrays]
        contents.append(self.store.objects.put_bytes(step.encode() * 100))
        case_id = self.chance.choice(self.cases)
        drafts = findings_of(step, self.chance)
        self.say(begin="run")
        run = self.store.add_run(case_id, run_of(step, contents), drafts)
        self.say(done="run", case=case_id, number=run.number, step=step, findings=len(drafts))

    def judge(self) -> None:
        case_id, number = self._finding()
        verdict = self.chance.choice([Verdict.ACCEPTED, Verdict.REJECTED])
        self.say(begin="verdict")
        self.store.judge(case_id, number, verdict, who="Dr A")
        self.say(done="verdict", case=case_id, finding=number, verdict=verdict.value)

    def supersede(self) -> None:
        case_id, number = self._finding()
        (draft,) = findings_of("by hand", self.chance)[:1]
        self.say(begin="supersede")
        new = self.store.supersede(case_id, number, draft, who="Dr B")
        self.say(done="supersede", case=case_id, finding=number, successor=new.number)

    def bring(self) -> None:
        case_id = f"{self.chance.getrandbits(48):012x}"
        path = self.store.objects.folder.parent / f"{case_id}.zip"
        with zipfile.ZipFile(io.BytesIO(self.template)) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name == "case.json":
                    record = json.loads(content)
                    record["case"]["id"] = case_id
                    content = json.dumps(record).encode()
                new.writestr(name, content)
        self.say(begin="import")
        import_archive(self.store, path)
        self.say(done="import", case=case_id)
        path.unlink()

    def collect(self) -> None:
        self.say(begin="collect")
        collect(self.store, grace_seconds=0)
        self.say(done="collect")

    def _finding(self) -> tuple[str, int]:
        case_id = self.chance.choice(self.cases)
        total = self.store.findings(case_id, limit=0).total
        if not total:
            raise ConflictError("no finding yet")
        return case_id, self.chance.randint(1, total)


Work = Callable[[Place, list[str], bytes, int, Callable[..., None]], None]


def honest(place: Place, cases: list[str], template: bytes, seed: int, say: Callable[..., None]) -> None:
    """Open the store and write until killed."""
    with CaseStore(place.location, objects=place.objects) as store:
        say(begin="nothing")
        Writer(store, cases, template, seed, say).work()


# Killing


@dataclass
class Child:
    """A forked writer and the pipe that it speaks into."""

    pid: int
    pipe: int
    said: bytes = b""
    failed: bool = False  # it ended by itself, which no writer should

    def hear(self) -> bool:
        """Take in what it has said; whether it still can speak."""
        part = os.read(self.pipe, 65536)
        self.said += part
        return bool(part)

    def kill(self) -> list[dict[str, Any]]:
        """End it; return every whole line it said."""
        os.kill(self.pid, signal.SIGKILL)
        while self.hear():
            pass
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        self.failed = os.WIFEXITED(status)
        return [json.loads(line) for line in self.said.split(b"\n")[:-1]]


def fork(work: Work, place: Place, cases: list[str], template: bytes, seed: int) -> Child:
    """Start a writer that has everything imported already."""
    mine, its = os.pipe()
    pid = os.fork()
    if pid:
        os.close(its)
        os.set_blocking(mine, True)
        return Child(pid, mine)
    status = 1
    try:
        os.close(mine)

        def say(**line: Any) -> None:
            os.write(its, json.dumps(line).encode() + b"\n")

        work(place, cases, template, seed, say)
        status = 0
    except BaseException as error:  # the parent sees what the child said last, and this
        sys.stderr.write(f"writer: {type(error).__name__}: {error}\n")
    finally:
        os._exit(status)


def drain(children: list[Child], chance: random.Random, *, openers: bool) -> list[list[dict[str, Any]]]:
    """Kill every writer at a moment of its own: a little after it has said so many lines.

    Counting lines and not seconds lets writers get as far on a busy machine as on an idle one.
    ``openers`` make a new store: half of them are killed before they have said anything.
    """
    silent = [openers and chance.random() < 0.5 for _ in children]
    wanted = [0 if still else chance.randint(1, MOST_LINES) for still in silent]
    later = [chance.uniform(0, OPENING if still else MOMENT) for still in silent]
    lines: dict[int, list[dict[str, Any]]] = {}
    end = time.monotonic() + PATIENCE
    while len(lines) < len(children):
        waiting = [i for i in range(len(children)) if i not in lines]
        ready = [i for i in waiting if children[i].said.count(b"\n") >= wanted[i]]
        for i in ready if time.monotonic() < end else waiting:
            time.sleep(later[i])
            lines[i] = children[i].kill()
        if not ready:
            heard, _, _ = select.select([children[i].pipe for i in waiting], [], [], 0.05)
            for child in children:
                if child.pipe in heard and not child.hear():
                    wanted[children.index(child)] = 0  # it is dead already
    return [lines[i] for i in range(len(children))]


# Looking


def inspect(place: Place, expected: list[dict[str, Any]], count: Count) -> None:
    """Open the store, read all of it, and count what is not as it should be."""
    try:
        store = CaseStore(place.location, objects=place.objects)
    except SagittalError as error:
        count.note("failed_opens", str(error))
        return
    with store:
        if place.engine == "sqlite":
            with store.database.engine.connect() as connection:
                verdict = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
            if verdict != "ok" or broken:
                count.note("failed_opens", f"{verdict}, {broken[:3]}")
        cases = {case_id: store.case(case_id) for case_id in store.case_ids()}
        summaries = {row.id: row for row in store.worklist(limit=len(cases)).rows}
        wanted: set[str] = set()
        for case_id, case in cases.items():
            numbers = [run.number for run in case.runs], [f.number for f in case.findings]
            if any(found != list(range(1, len(found) + 1)) for found in numbers):
                count.note("half_findings", f"{case_id}: numbers with gaps")
            for run in case.runs:
                held = [f.content.content_hash for f in case.findings if f.run == run.number]
                if tuple(held[: len(run.findings)]) != run.findings:
                    count.note("half_findings", f"{case_id}, run {run.number}: {len(held)} findings")
                wanted |= {d for a in run.outputs for d in (a.content, *a.parts)}
            events = sorted(event.number for finding in case.findings for event in finding.events)
            if events != list(range(1, len(events) + 1)):
                count.note("half_findings", f"{case_id}: events with gaps")
            row = summaries.get(case_id)
            drafts = sum(not finding.events for finding in case.findings)
            if row is None or (row.findings, row.undecided) != (len(case.standing()), drafts):
                count.note("wrong_summaries", case_id)
        for digest in wanted:
            try:
                store.objects.check(digest)
            except StorageError as error:
                count.note("missing_arrays", str(error))
        for line in expected:
            if not _kept(line, cases):
                count.note("lost_commits", json.dumps(line))
        count.contents_without_a_run += len(collect(store, dry_run=True, grace_seconds=0).contents)


def _kept(line: dict[str, Any], cases: dict[str, Any]) -> bool:
    case = cases.get(line["case"])
    if case is None:
        return False
    if line["done"] == "run":
        return len(case.runs) >= line["number"] and case.runs[line["number"] - 1].step == line["step"]
    if line["done"] == "verdict":
        events = case.findings[line["finding"] - 1].events if len(case.findings) >= line["finding"] else ()
        return any(event.verdict.value == line["verdict"] for event in events)
    if line["done"] == "supersede":
        events = case.findings[line["finding"] - 1].events if len(case.findings) >= line["finding"] else ()
        return any(event.successor == line["successor"] for event in events)
    return True


# Rounds


def template_archive(folder: Path) -> bytes:
    """A case to be imported under many ids."""
    with in_folder(folder / "template").open() as store:
        case_id = store.create_case("template")
        chance = random.Random(0)
        contents = [store.objects.put_array(np.full(5_000, i)) for i in range(3)]
        store.add_run(case_id, run_of("template", contents), findings_of("template", chance))
        store.judge(case_id, 1, Verdict.ACCEPTED, who="Dr A")
        return export_archive(store, case_id, folder / "template.zip").read_bytes()


def crash(
    kills: int, *, engine: str, seed: int, folder: Path, work: Work = honest, server: Server | None = None
) -> Count:
    """Kill so many writers; return what they left.

    Args:
        kills: How many.
        engine: ``"sqlite"`` or ``"postgresql"``, for which ``server`` is needed.
        seed: Of the moments and of what the writers do.
        folder: Where stores are made.
        work: What a writer does.
        server: The PostgreSQL server.
    """
    count, chance = Count(), random.Random(seed)
    template = template_archive(folder)
    number = 0
    while count.kills < kills:
        place = _place(engine, folder / f"store-{number}", server)
        expected: list[dict[str, Any]] = []
        cases: list[str] = []
        for turn in range(ROUNDS_A_STORE):
            if count.kills >= kills:
                break
            writers = min(WRITERS, kills - count.kills)
            children = [fork(work, place, cases, template, chance.getrandbits(32)) for _ in range(writers)]
            for lines in drain(children, chance, openers=not turn):
                last = lines[-1] if lines else {"begin": "opening"}
                count.killed_while[last.get("begin", "nothing")] += 1
                confirmed = [line for line in lines if "done" in line]
                count.confirmed.update(line["done"] for line in confirmed)
                expected += [line for line in confirmed if "case" in line]
            for child in children:
                if child.failed:
                    count.note("failed_writers", "a writer ended by itself")
            count.kills += writers
            if server is not None and turn == ROUNDS_A_STORE - 2:
                server.stop("immediate")
                server.start()
                count.server_stops += 1
            inspect(place, expected, count)
            if not cases:
                with CaseStore(place.location, objects=place.objects) as store:
                    cases = [store.create_case("shared") for _ in range(3)]
        _remove(place, folder / f"store-{number}", server)
        number += 1
    return count


def _place(engine: str, folder: Path, server: Server | None) -> Place:
    if engine == "sqlite":
        return in_folder(folder)
    assert server is not None
    return Place(server.create(), folder / "objects", engine)


def _remove(place: Place, folder: Path, server: Server | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if server is not None:
        server.drop(place.location)


@contextlib.contextmanager
def servers(engine: str) -> Iterator[Server | None]:
    """A server for PostgreSQL, none for SQLite."""
    server = Server() if engine == "postgresql" else None
    try:
        yield server
    finally:
        if server is not None:
            server.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--engine", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.monotonic()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="sagittal-crash-") as folder,
            servers(options.engine) as server,
        ):
            count = crash(
                options.kills, engine=options.engine, seed=options.seed, folder=Path(folder), server=server
            )
    except UnavailableError as error:
        sys.exit(f"store_crash: {error}")
    result = {
        "kills": count.kills,
        "failed_opens": count.failed_opens,
        "half_findings": count.half_findings,
        "missing_arrays": count.missing_arrays,
        "lost_commits": count.lost_commits,
        "wrong_summaries": count.wrong_summaries,
        "failed_writers": count.failed_writers,
        "examples": count.examples,
        "engine": options.engine,
        "writers_at_once": WRITERS,
        "killed_in_the_middle": count.kills - count.killed_while["nothing"],
        "killed_while": dict(sorted(count.killed_while.items())),
        "confirmed": dict(sorted(count.confirmed.items())),
        "contents_without_a_run": count.contents_without_a_run,
        "server_stops": count.server_stops,
        "seed": options.seed,
        "seconds": round(time.monotonic() - start, 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
