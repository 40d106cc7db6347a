"""Brain tissue from few labels: how good, how sure of itself, by which channels, and what to annotate next.

All data are simulated (evidence/cohort.py: individuals on the MNI152 template's anatomy); nobody's head is
among them. Split by subject: those that train, those that calibrate and those that judge are apart. Slices of
3 mm, one of each head. Each arm is trained with five seeds; a seed also says which subjects are labelled.

    python evidence/brain_tissue.py [--json evidence/results/brain_tissue.json] [--only ARM ...] [--seeds
    0,1,2,3,4]

Each arm of each seed is a file under --work when it is done, and a run goes on where another was cut off;
several runs with other arms or seeds may share the folder. The JSON is made anew from all of them at the end
of each. About an hour of two cores; the same table in space needs a night or a GPU and has not been run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from brain_tissue_annotation import MORE
from brain_tissue_arms import ARMS, Row, Settings
from brain_tissue_summary import summary

from sagittal.core.files import write_text

RESULT = Path(__file__).parent / "results" / "brain_tissue.json"
WORK = Path("build/brain_tissue")
SEEDS = (0, 1, 2, 3, 4)


def every_arm() -> dict[str, Callable[[int, Settings], Row]]:
    """Return the arms by name, in the order in which they are run."""
    return {**ARMS, **MORE}


def measure(arms: Sequence[str], seeds: Sequence[int], settings: Settings, rows: Path) -> None:
    """Run each arm with each seed that is not yet on disk."""
    known = every_arm()
    for arm in arms:
        for seed in seeds:
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


def gathered(rows: Path) -> Row:
    """Return all rows on disk in the order of the arms, what they have in common, and the summary."""
    known = list(every_arm())
    kept = [json.loads(place.read_text(encoding="utf-8")) for place in sorted(rows.glob("*.json"))]
    kept.sort(key=lambda row: (known.index(row["arm"]), row["seed"]))
    settings = [row.pop("settings") for row in kept]
    if any(other != settings[0] for other in settings):
        raise SystemExit(f"rows of different settings in {rows}: measure them in folders of their own")
    return {"facts": settings[0] if settings else {}, "rows": kept, "summary": summary(kept)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--work", type=Path, default=WORK, help="slices and rows are kept here")
    parser.add_argument("--only", choices=list(every_arm()), action="append")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--smoke", action="store_true", help="a minute: few subjects and steps; says nothing")
    chosen = parser.parse_args()
    settings = Settings(chosen.work / "slices")
    if chosen.smoke:
        settings = Settings(chosen.work / "slices", steps=4, width=4, patch=32, pool=13, hold=3, judge=3)
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    measure(chosen.only or list(every_arm()), seeds, settings, chosen.work / "rows")
    write_text(chosen.json, json.dumps(gathered(chosen.work / "rows"), indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
