"""Make docs/reliability.md from reliability.md.in and the JSON of benchmarks/store_crash.py and store_load.py.

A part that has not been measured is said to be missing. ``MORE`` has further parts, each shown once its JSON
is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_page
import served_page
from pages import MISSING, filled, table

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "benchmarks" / "results"
ENGINES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}

MORE: dict[Path, Callable[[Any], str]] = {
    served_page.LOAD: served_page.load,
    served_page.OPEN: served_page.opening,
    fuzz_page.RESULT: fuzz_page.section,
    served_page.API: served_page.api,
}
"""Further parts of the page: the JSON of each, and what makes a section with a heading from it."""


def page(folder: Path = RESULTS, more: dict[Path, Callable[[Any], str]] | None = None) -> str:
    runs = {
        engine: read(folder / name)
        for engine, name in (("sqlite", "store_crash.json"), ("postgresql", "store_crash_postgresql.json"))
    }
    measured = {engine: run for engine, run in runs.items() if run is not None}
    load = read(folder / "store_load.json")
    further = [(make, read(path)) for path, make in (MORE if more is None else more).items()]
    made = {
        "writers": str(max((run["writers_at_once"] for run in measured.values()), default="several")),
        "crash": crash(measured),
        "where": where(measured),
        "load-writers": of_load(load, writers),
        "load-worklist": of_load(load, worklist),
        "load-many": of_load(load, many),
        "more": "\n\n".join(make(result).strip() for make, result in further if result is not None),
    }
    return filled(HERE / "reliability.md.in", made)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def crash(runs: dict[str, Any]) -> str:
    if not runs:
        return MISSING
    lines = {
        "writers killed": "kills",
        "of them in the middle of something": "killed_in_the_middle",
        "stores that did not open": "failed_opens",
        "findings that were not whole": "half_findings",
        "contents missing or damaged": "missing_arrays",
        "confirmed changes that were lost": "lost_commits",
        "worklists that said other than the record": "wrong_summaries",
        "writers that ended by themselves": "failed_writers",
        "changes confirmed": None,
        "contents left without a run, counted after each round": "contents_without_a_run",
        "server stopped without warning": "server_stops",
        "seconds": "seconds",
    }
    rows = [
        [title, *(sum(run["confirmed"].values()) if key is None else run[key] for run in runs.values())]
        for title, key in lines.items()
    ]
    return table(["", *(ENGINES[engine] for engine in runs)], rows)


DOING = {
    "opening": "opening or making the store",
    "contents": "writing contents",
    "run": "adding a run with its findings",
    "verdict": "accepting or rejecting",
    "supersede": "superseding",
    "import": "importing an archive",
    "collect": "collecting garbage",
    "case": "opening a case",
    "nothing": "between two changes",
}


def where(runs: dict[str, Any]) -> str:
    if not runs:
        return ""
    rows = [
        [title, *(run["killed_while"].get(key, 0) for run in runs.values())] for key, title in DOING.items()
    ]
    return table(["killed while", *(ENGINES[engine] for engine in runs)], rows)


def of_load(load: Any, make: Callable[[dict[str, Any]], str]) -> str:
    if load is None:
        return MISSING
    engines = {engine: load[engine] for engine in ENGINES if isinstance(load.get(engine), dict)}
    where = f"{load['processors']} processors, {load['system']}, Python {load['python']}"
    return f"{make(engines)}\n\nTaken on {where}, beside other work."


def writers(engines: dict[str, Any]) -> str:
    rows = [
        [
            ENGINES[engine],
            found["writers"]["writers"],
            found["writers"]["transactions"],
            found["writers"]["seconds"],
            found["writers"]["lost"],
            "yes" if found["writers"]["numbers_with_gaps"] else "no",
            found["writers"]["missing_contents"],
            found["writers"]["failed_writers"],
        ]
        for engine, found in engines.items()
    ]
    return table(
        [
            "",
            "writers",
            "changes",
            "seconds",
            "lost",
            "numbers with gaps",
            "contents missing",
            "writers that failed",
        ],
        rows,
    )


def worklist(engines: dict[str, Any]) -> str:
    first = next(iter(engines.values()))["worklist"]
    rows = [
        [name, *(cell(found["worklist"]["pages"][name]) for found in engines.values())]
        for name in first["pages"]
    ]
    times = [time for found in engines.values() for time in found["worklist"]["pages"].values()]
    over, asked = sum(time["over_bar"] for time in times), sum(time["times"] for time in times)
    verdict = "every one of them kept it" if not over else f"{over} of {asked} took longer"
    slowest = max(time["median_ms"] for time in times)
    return (
        f"{first['cases']} cases, {first['rows']} on a page; milliseconds in the process that asks, without a web "
        f"server: median, and the worst of {times[0]['times']}. Asked for: a page in less than {first['bar_ms']}. "
        f"The slowest median is {slowest:.0f}; of single pages, **{verdict}**.\n\n"
        + table(["page by", *(ENGINES[engine] for engine in engines)], rows)
    )


def many(engines: dict[str, Any]) -> str:
    first = next(iter(engines.values()))["many_findings"]
    names = [name for name in first if isinstance(first[name], dict)]
    rows = [[name, *(cell(found["many_findings"][name]) for found in engines.values())] for name in names]
    added = [f"{found['many_findings']['add_run_seconds']:.1f} s" for found in engines.values()]
    return f"{first['findings']} findings in one case; milliseconds, median and worst.\n\n" + table(
        ["", *(ENGINES[engine] for engine in engines)],
        [["adding the run with all of them", *added], *rows],
    )


def cell(time: dict[str, float]) -> str:
    return f"{time['median_ms']:.1f} (worst {time['worst_ms']:.0f})"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
