"""Time the case store under load, in SQLite and in PostgreSQL.

    python benchmarks/store_load.py --json F

Eight processes that write to one case and to their own; the first page of a worklist of 10,000 cases; a case
of 50,000 findings. Times are taken in this process, without a web server. PostgreSQL is left out, and said to
be, where it is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from sqlalchemy import insert

from sagittal.case.record import Artifact, FindingDraft, Run, Verdict
from sagittal.case.rows import finding_values, now
from sagittal.case.schema import CaseRow, EventRow, FindingRow
from sagittal.case.store import CaseStore
from sagittal.case.worklist import ORDERS
from store_places import Place, Server, UnavailableError, in_folder

BAR_MS = 100


def run_of(step: str, contents: list[str]) -> Run:
    return Run(
        number=0,
        step=step,
        version="1",
        parameters={},
        inputs=(),
        outputs=tuple(Artifact(role="text", kind="text", content=content) for content in contents),
        findings=(),
        used=(),
        seed=0,
        doubt="none",
        models={},
        environment={},
        started="2026-01-01T00:00:00.000+00:00",
        seconds=0.0,
    )


def findings_of(count: int, first: int = 0) -> list[FindingDraft]:
    return [
        FindingDraft(
            code="load.test", subject=f"{i}", statement=f"Statement {i}.", confidence=(i * 7919 % 1000) / 1000
        )
        for i in range(first, first + count)
    ]


def opened(place: Place) -> CaseStore:
    return CaseStore(place.location, objects=place.objects)


# Eight writers


def write(place: Place, shared: str, name: int, runs: int, ready: Any) -> None:
    with opened(place) as store:
        ready.wait()
        own = store.create_case(f"writer {name}")
        for index in range(runs):
            content = store.objects.put_bytes(f"{name} {index}".encode() * 1000)
            run = run_of(f"{name} {index}", [content])
            store.add_run(shared, run, findings_of(3))
            store.add_run(own, run, findings_of(3))
            store.judge(own, 3 * index + 1, Verdict.ACCEPTED, who=f"writer {name}")


def writers(place: Place, count: int, runs: int) -> dict[str, Any]:
    with opened(place) as store:
        shared = store.create_case("shared")
    context = get_context("spawn")
    ready = context.Barrier(count + 1)  # the start of Python is not timed
    processes = [
        context.Process(target=write, args=(place, shared, name, runs, ready)) for name in range(count)
    ]
    for process in processes:
        process.start()
    ready.wait()
    start = time.perf_counter()
    for process in processes:
        process.join()
    seconds = time.perf_counter() - start
    with opened(place) as store:
        case = store.case(shared)
        owns = [store.case(case_id) for case_id in store.case_ids() if case_id != shared]
        lost = count * runs - len({run.step for run in case.runs})
        lost += sum(runs - len(own.runs) for own in owns)
        lost += sum(3 * runs - len(own.findings) for own in owns)
        lost += sum(runs - own.events for own in owns)
        gaps = [run.number for run in case.runs] != list(range(1, count * runs + 1))
        missing = sum(store.objects.find(run.outputs[0].content) is None for run in case.runs)
    return {
        "writers": count,
        "transactions": 3 * count * runs + count,
        "seconds": round(seconds, 2),
        "failed_writers": sum(process.exitcode != 0 for process in processes),
        "lost": lost,
        "numbers_with_gaps": gaps,
        "missing_contents": missing,
    }


# Worklist


def timed(call: Callable[[], Any], times: int) -> dict[str, float]:
    call()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(1000 * (time.perf_counter() - start))
    return {
        "median_ms": round(statistics.median(found), 2),
        "worst_ms": round(max(found), 2),
        "times": times,
        "over_bar": sum(one >= BAR_MS for one in found),
    }


def fill(store: CaseStore, cases: int) -> None:
    """Add cases in one transaction, a tenth of them empty and a quarter reviewed."""
    when, rows = now(), {CaseRow: [], FindingRow: [], EventRow: []}
    for number in range(cases):
        case_id = f"{number:012x}"
        label = f"case {number:05d}, {['head', 'chest', 'knee'][number % 3]}"
        rows[CaseRow].append({"id": case_id, "label": label, "created": when})
        drafts = findings_of(2, number) if number % 10 else []
        for place, draft in enumerate(drafts, start=1):
            rows[FindingRow].append(finding_values(case_id, place, None, "load", draft))
            if number % 4 == 1:
                said = {"verdict": "accepted", "who": "reader", "when": when, "note": "", "successor": None}
                rows[EventRow].append({"case_id": case_id, "number": place, "finding": place, **said})
    with store.database.writing(alone=True) as session:
        for table, values in rows.items():
            session.execute(insert(table), values)
    store.rebuild_worklist()


def worklist(place: Place, cases: int, times: int) -> dict[str, Any]:
    with opened(place) as store:
        fill(store, cases)
        pages = {order: timed(lambda o=order: store.worklist(order=o), times) for order in ORDERS}
        pages["doubt, state open"] = timed(lambda: store.worklist(state="open"), times)
        pages["doubt, search for a word"] = timed(lambda: store.worklist(search="chest"), times)
        pages["doubt, search for a number"] = timed(lambda: store.worklist(search="07001"), times)
        pages["doubt, last page"] = timed(lambda: store.worklist(offset=cases - 50), times)
        total = store.worklist().total
    return {"cases": total, "rows": 50, "pages": pages, "bar_ms": BAR_MS}


# A case of many findings


def many(place: Place, findings: int, times: int) -> dict[str, Any]:
    with opened(place) as store:
        case_id = store.create_case("many")
        start = time.perf_counter()
        store.add_run(case_id, run_of("many", []), findings_of(findings))
        added = time.perf_counter() - start
        numbers = iter(range(1, findings))
        judged = timed(lambda: store.judge(case_id, next(numbers), Verdict.ACCEPTED, who="reader"), times)
        page = timed(lambda: store.findings(case_id, offset=findings // 2, limit=100), times)
        standing = timed(lambda: store.findings(case_id, offset=0, limit=100, standing=True), times)
        whole = timed(lambda: store.case(case_id), 3)
    return {
        "findings": findings,
        "add_run_seconds": round(added, 2),
        "judge": judged,
        "page of 100": page,
        "page of 100 that stand": standing,
        "whole case": whole,
    }


def measure(place: Callable[[str], Place], options: argparse.Namespace) -> dict[str, Any]:
    result = {}
    for name, run in (
        ("writers", lambda p: writers(p, 8, options.runs)),
        ("worklist", lambda p: worklist(p, options.cases, options.times)),
        ("many_findings", lambda p: many(p, options.findings, options.times)),
    ):
        result[name] = run(place(name))
        print(name, json.dumps(result[name]), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--findings", type=int, default=50_000)
    parser.add_argument("--runs", type=int, default=40, help="runs of each writer, in each of two cases")
    parser.add_argument("--times", type=int, default=100)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    with tempfile.TemporaryDirectory(prefix="sagittal-load-") as name:
        folder = Path(name)
        result["sqlite"] = measure(lambda part: in_folder(folder / part), options)
        try:
            server = Server()
        except UnavailableError as error:
            result["postgresql"] = str(error)
        else:
            try:
                result["postgresql"] = measure(
                    lambda part: Place(server.create(), folder / f"postgresql-{part}", "postgresql"), options
                )
            finally:
                server.remove()
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
