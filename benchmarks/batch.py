"""How much sooner is a batch done with two workers than with one, and what does each engine cost?

    pip install '.[imaging,ray]'
    python benchmarks/batch.py --json benchmarks/results/batch.json

The cases are synthetic heads: nested shells with noise, no person and no scanner, small so that what the
batch itself costs can be seen. Steps are tissue and report, without a language model. Each way takes the
same files into an empty store, in turns, ``--rounds`` times:

- ``loop``: one process, one case after the other, without job table or workers: the least there is to do;
- ``local 1``, ``local 2``, ``ray 1``, ``ray 2``: the command's engines with so many workers.

Seconds are of this machine on that day, start of workers and of Ray included; compare ratios only.
``ratio_to_loop`` is median by median. Every way must give the same contents, or the script stops.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker more, not a thread more, is what is measured

import numpy as np
from measure import machine

NAMES = ("tissue", "report")


def head(seed: int, side: int) -> Any:
    """Return a brain-like volume of three shells with noise."""
    from sagittal.volume import Geometry, Volume

    shape = (side, side + 8, side - 4)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    clean = np.select([radius < 0.45, radius < 0.65, radius < 0.8], [200.0, 120.0, 60.0], 0.0)
    noise = np.random.default_rng(seed).normal(0, 6, shape)
    array = np.where(clean > 0, np.clip(clean + noise, 1, 255), 0).round().astype(np.int16)
    spacing = tuple(180 / n for n in shape)
    return Volume(array, Geometry.from_spacing(shape, spacing, (0, 0, 0)), unit="a.u.")


def write_heads(folder: Path, cases: int, side: int) -> None:
    from sagittal.volume import write_nifti

    folder.mkdir()
    for number in range(cases):
        write_nifti(head(number, side), folder / f"head-{number:02d}.nii.gz")
    for sidecar in folder.glob("*.json"):
        sidecar.unlink()


def contents(store: Any) -> list[Any]:
    """What the cases hold, apart from times and ids."""
    cases = [store.case(case_id) for case_id in store.case_ids()]
    return sorted([[made.content for made in run.outputs] for run in case.runs] for case in cases)


def loop(folder: Path, location: Path) -> tuple[float, list[Any]]:
    from sagittal.case.store import CaseStore
    from sagittal.workflow.models import ModelShelf
    from sagittal.workflow.pipeline import Sources, run_case
    from sagittal.workflow.runner import Runner

    clock = time.perf_counter()
    with CaseStore(location) as store:
        runner = Runner(store=store, shelf=ModelShelf(offline=True))
        for path in sorted(folder.iterdir()):
            run_case(runner, Sources(t1=[path]), label=path.name, model="")
        return time.perf_counter() - clock, contents(store)


def batch(folder: Path, location: Path, engine: str, workers: int) -> tuple[float, list[Any]]:
    from sagittal.case.store import CaseStore
    from sagittal.workflow.batch import batch_tasks, run_batch
    from sagittal.workflow.engines import LocalEngine, RayEngine
    from sagittal.workflow.folder import list_cases
    from sagittal.workflow.worker import Setting

    clock = time.perf_counter()
    with CaseStore(location) as store:
        setting = Setting(store=str(location), store_id=store.id, offline=True)
        made: Any = RayEngine if engine == "ray" else LocalEngine
        tasks = batch_tasks(folder, list_cases(folder, NAMES), NAMES, model="")
        result = run_batch(store, tasks, engine=made(setting=setting, workers=workers))
        seconds = time.perf_counter() - clock
        assert result.failed == 0, result.cases
        return seconds, contents(store)


WAYS: dict[str, Callable[[Path, Path], tuple[float, list[Any]]]] = {
    "loop": loop,
    "local 1": lambda folder, store: batch(folder, store, "local", 1),
    "local 2": lambda folder, store: batch(folder, store, "local", 2),
    "ray 1": lambda folder, store: batch(folder, store, "ray", 1),
    "ray 2": lambda folder, store: batch(folder, store, "ray", 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Batches of synthetic heads by each engine.")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--side", type=int, default=64, help="voxels along an edge, about")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", default=",".join(WAYS), help="some of these, with commas between")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    ways = arguments.ways.split(",")
    times: dict[str, list[float]] = {way: [] for way in ways}
    found: list[Any] = []
    with tempfile.TemporaryDirectory(prefix="sagittal-batch-") as place:
        folder = Path(place) / "heads"
        write_heads(folder, arguments.cases, arguments.side)
        for number in range(arguments.rounds):
            for way in ways:
                seconds, made = WAYS[way](folder, Path(place) / f"{way} {number}")
                times[way].append(seconds)
                found.append(made)
                assert made == found[0], f"{way} gives other contents than {ways[0]}"
                print(f"{way}: {seconds:.1f} s", flush=True)
    medians = {way: statistics.median(each) for way, each in times.items()}
    rows = [
        {
            "way": way,
            "seconds": [round(one, 2) for one in times[way]],
            "ratio_to_loop": round(medians[way] / medians["loop"], 3) if "loop" in medians else None,
        }
        for way in ways
    ]
    result = {
        "data": "synthetic heads: nested shells with noise; no person, no scanner",
        "cases": arguments.cases,
        "side": arguments.side,
        "same_contents": True,
        "machine": machine(),
        "rows": rows,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
