"""Brain tissue from few labels: how good, how sure of itself, by which channels, and what to annotate next.

All data of the cohort are simulated (evidence/cohort.py: individuals on the MNI152 template's anatomy);
nobody's head is among them. Split by subject: those that train, those that calibrate and those that judge are
apart. Slices of 3 mm, one of each head. Each arm is trained with several seeds; a seed also says which
subjects are labelled.

    python evidence/brain_tissue.py [--json evidence/results/brain_tissue.json] [--colin FOLDER] [--only ARM
    ...]
                                    [--seeds 0,1,2,3,4]

Each arm of each seed is a file under --work when it is done, and a run goes on where another was cut off;
several runs with other arms or seeds may share the folder. The JSON is made anew from all of them at the end
of each. About fifteen minutes of one core for a seed. What stands against a choice by lot has ten seeds
instead of five: --seeds 5,6,7,8,9 --only start --only "whole pool" --only "campaign random" --only "campaign
weighted-cover". The same table in space has not been run: evidence/tissue_network.py and tissue_effort.py have what
there is of it, networks of 5 and of all subjects and the work that is foreseen, which the summary keeps as ``in_space``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import tissue_space
from brain_tissue_annotation import MORE
from brain_tissue_arms import ARMS, Row, Settings, lengths
from brain_tissue_summary import summary

from sagittal.core.files import write_text

RESULT = Path(__file__).parent / "results" / "brain_tissue.json"
WORK = Path("build/brain_tissue")
LENGTHS = "lengths.json"
SEEDS = (0, 1, 2, 3, 4)


def every_arm() -> dict[str, Callable[[int, Settings], Row]]:
    """Return the arms by name, in the order in which they are run."""
    return {**ARMS, **MORE}


def measure(arms: Sequence[str], seeds: Sequence[int], settings: Settings, rows: Path) -> None:
    """Run each arm with each seed that is not yet on disk."""
    known = every_arm()
    for seed in seeds:
        for arm in arms:
            place = rows / f"{arm.replace(' ', '-')}.{seed}.json"
            if place.is_file():
                continue
            started = time.process_time()
            row = known[arm](seed, settings)
            seconds = time.process_time() - started
            kept = {
                "arm": arm,
                "seed": seed,
                "cpu_seconds": round(seconds, 1),
                "settings": settings.facts(),
                **row,
            }
            write_text(place, json.dumps(kept, allow_nan=False))
            print(f"{arm}, seed {seed}: {seconds:.0f} s of CPU", flush=True)


def gathered(work: Path) -> Row:
    """Return all rows on disk in the order of the arms, what they have in common, and the summary."""
    known = list(every_arm())
    kept = [json.loads(place.read_text(encoding="utf-8")) for place in sorted((work / "rows").glob("*.json"))]
    kept.sort(key=lambda row: (known.index(row["arm"]), row["seed"]))
    settings = [row.pop("settings") for row in kept]
    if any(other != settings[0] for other in settings):
        raise SystemExit(f"rows of different settings in {work}: measure them in folders of their own")
    tried = work / LENGTHS
    return {
        "facts": settings[0] if settings else {},
        "summary": summary(kept) | {"in_space": tissue_space.summary()},
        "lengths": json.loads(tried.read_text(encoding="utf-8")) if tried.is_file() else [],
        "rows": kept,
    }


def told(result: Row) -> str:
    """Return the result as JSON with one measured row a line."""
    parts = []
    for name, value in result.items():
        if isinstance(value, list):
            rows = ",\n".join(json.dumps(row, allow_nan=False) for row in value)
            parts.append(f'"{name}": [\n{rows}\n]')
        else:
            parts.append(f'"{name}": {json.dumps(value, indent=1, allow_nan=False)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--work", type=Path, default=WORK, help="slices and rows are kept here")
    parser.add_argument("--colin", type=Path, help="folder of mricron-data's ch2bet.nii.gz and aal.nii.gz")
    parser.add_argument("--only", choices=list(every_arm()), action="append")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="none: gather what is there")
    parser.add_argument("--lengths", action="store_true", help="measure how long to train, first")
    parser.add_argument("--smoke", action="store_true", help="a minute: few subjects and steps; says nothing")
    chosen = parser.parse_args(arguments)
    settings = Settings(chosen.work / "slices", chosen.colin)
    if chosen.smoke:
        settings = replace(
            settings, steps=4, width=4, patch=32, pool=8, hold=4, judge=3, budgets=(3, 5), members=2
        )
    if chosen.lengths:
        write_text(chosen.work / LENGTHS, json.dumps(lengths(settings)))
    seeds = [int(seed) for seed in chosen.seeds.split(",") if seed]
    arms = chosen.only or [arm for arm in every_arm() if arm != "colin27" or chosen.colin]
    measure(arms, seeds, settings, chosen.work / "rows")
    write_text(chosen.json, told(gathered(chosen.work)))


if __name__ == "__main__":
    main()
