"""How well do the methods reconstruct few views at low dose, beside others' packages, each tuned elsewhere?

    python evidence/low_dose_ct.py --cranium Cranium.inv3 --chest pyradiomics-3.0.1.tar.gz

Phantoms and real slices (low_dose_data.py) are scanned in simulation, parallel views, Poisson noise; no scan was
measured. For each number of views and dose, and for phantoms and real slices apart, every method chooses among as
many settings (low_dose_methods.py) by the median root mean square error on images that do not judge. Then all
reconstruct the same scans of other images, noise by noise. Modules are measured for edges, bars and faint discs.

Writes evidence/results/low_dose_ct.json, where rows once made are not made again; two runs with other ``--only``
may write one file. The real slices come from pydicom's test files, Debian's ``invesalius-examples``
(Cranium.inv3) and the source distribution of pyradiomics 3.0.1 (``pip download --no-deps --no-build-isolation
--no-binary :all: pyradiomics==3.0.1`` in an environment with numpy and versioneer); without them they are left
out, and the notes say so. Rivals run where astra-toolbox, scikit-image and svmbir are installed. About an hour of
one processor.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import low_dose_rivals
import numpy as np
from filelock import FileLock
from low_dose_data import PHANTOM, REAL, Subject, phantoms, real_slices, split
from low_dose_measures import MODULES, width
from low_dose_methods import METHODS, available, run

from sagittal.core.files import atomic_path
from sagittal.reconstruction.comparison import quality
from sagittal.reconstruction.projectors import Projector
from sagittal.reconstruction.scan import Scan, attenuation
from sagittal.reconstruction.simulate import add_noise, fitted_geometry
from sagittal.volume import Volume

RESULT = Path(__file__).parent / "results" / "low_dose_ct.json"
CENTRE = (60, 1e5)
CELLS = (CENTRE, (60, 2e4), (60, 1e6), (30, 1e5), (120, 1e5))
"""Views and photons."""

SIZE = 128
FIRST_TUNING_SEED = 1000
OTHER_SEEDS = 5
RESOLUTION_SEEDS = 3
RESOLUTION_CONTRAST = 100.0

Row = dict[str, Any]
KEYS = {
    "tuning": ("data", "size", "views", "photons", "method"),
    "rows": ("data", "image", "size", "views", "photons", "method"),
    "modules": ("image", "size", "views", "photons", "method"),
    "resolution": ("views", "photons", "method"),
}


class Results:
    """Rows by what they are of, kept in one JSON file that several runs may add to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[str, dict[tuple[Any, ...], Row]] = {part: {} for part in KEYS}
        self.facts: dict[str, Any] = {}
        self.read()

    def read(self) -> None:
        if not self.path.is_file():
            return
        kept = json.loads(self.path.read_text(encoding="utf-8"))
        self.facts = kept["facts"] | self.facts
        for part, keys in KEYS.items():
            for row in kept[part]:
                self.parts[part].setdefault(tuple(row[key] for key in keys), row)

    def has(self, part: str, *key: Any) -> Row | None:
        return self.parts[part].get(key)

    def drop(self, methods: Sequence[str]) -> None:
        for rows in self.parts.values():
            for key in [key for key in rows if key[-1] in methods]:
                del rows[key]
        self.write()

    def add(self, part: str, row: Row) -> None:
        self.parts[part][tuple(row[key] for key in KEYS[part])] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            self.read()  # what another run has added
            self.write()

    def write(self) -> None:
        text = ['{\n"facts": ' + json.dumps(self.facts)]
        for part_, rows in self.parts.items():
            ordered = sorted(rows.values(), key=lambda row, part_=part_: order(row, part_))
            lines = ",\n".join(json.dumps(row) for row in ordered)
            text.append(f'"{part_}": [\n{lines}\n]')
        with atomic_path(self.path) as temporary:
            temporary.write_text(",\n".join(text) + "\n}\n", encoding="utf-8")


def order(row: Row, part: str) -> tuple[Any, ...]:
    return tuple(list(METHODS).index(row[key]) if key == "method" else row[key] for key in KEYS[part])


class Scans:
    """Scans of one subject at one number of views; its exact line integrals are computed once."""

    def __init__(self, subject: Subject, size: int, views: int) -> None:
        self.grid = subject.grid(size)
        self.truth = subject.truth(self.grid)
        self.geometry = fitted_geometry(self.grid, "parallel", views)
        self.exact = subject.exact(self.geometry)

    def scan(self, photons: float, seed: int) -> Scan:
        return add_noise(self.exact, self.geometry, photons=photons, seed=seed)


def short(value: float) -> float:
    return float(f"{value:.5g}")


def tune(
    results: Results, data: str, subjects: Sequence[Subject], cell: tuple[int, float], setup: Setup
) -> None:
    views, photons = cell
    wanted = [
        name for name in setup.methods if not results.has("tuning", data, setup.size, views, photons, name)
    ]
    if not wanted or not subjects:
        return
    scans = [Scans(subject, setup.size, views) for subject in subjects]
    noisy = [each.scan(photons, FIRST_TUNING_SEED + index) for index, each in enumerate(scans)]
    for name in wanted:
        errors = []
        for options in METHODS[name]:
            images = [
                run(name, scan, each.grid, setup.threads, options)[0]
                for each, scan in zip(scans, noisy, strict=True)
            ]
            errors.append([error(image, each.truth) for image, each in zip(images, scans, strict=True)])
        best = min(range(len(errors)), key=lambda index: median(errors[index]))
        row = {"data": data, "size": setup.size, "views": views, "photons": photons, "method": name}
        row |= {"rmse": errors, "best": best, "options": METHODS[name][best]}
        results.add("tuning", row)
        print("tuned", data, views, photons, name, METHODS[name][best], median(errors[best]), flush=True)


def error(image: Volume, truth: Volume) -> float:
    return short(float(np.sqrt(np.mean((image.array.astype(np.float64) - truth.array) ** 2))))


def judge(
    results: Results, subject: Subject, cell: tuple[int, float], seeds: int, setup: Setup, part: str = "rows"
) -> None:
    """Reconstruct the scans of one subject by every method that was tuned, seed by seed."""
    views, photons = cell
    key = (*((subject.kind,) if part == "rows" else ()), subject.name, setup.size, views, photons)
    wanted = []
    for name in setup.methods:
        kept = results.has(part, *key, name)
        tuned = results.has("tuning", subject.kind, setup.size, views, photons, name)
        if tuned and (kept is None or kept["seeds"] < seeds):
            wanted.append((name, tuned["options"]))
    if not wanted:
        return
    scans = Scans(subject, setup.size, views)
    noisy = [scans.scan(photons, seed) for seed in range(seeds)]
    for name, options in wanted:
        images, seconds, found = [], [], []
        for scan in noisy:
            image, spent = run(name, scan, scans.grid, setup.threads, options)
            images.append(image)
            seconds.append(spent)
            found.append(quality(image, scans.truth))
        row = {"data": subject.kind, "image": subject.name, "size": setup.size, "views": views}
        row |= {"photons": photons, "method": name, "options": options, "seeds": seeds}
        for measure in found[0]:
            values = [each[measure] for each in found]
            row[measure] = None if values[0] is None else [short(value) for value in values]
        row["seconds"] = short(median(seconds))
        if part == "modules":
            row["measured"] = MODULES[subject.name](images, scans.truth)
        results.add(part, row)
        print("judged", subject.name, views, photons, name, row["rmse"][0], row["seconds"], flush=True)


def resolve(results: Results, subject: Subject, setup: Setup) -> None:
    """Measure sharpness and noise of every setting on the edge module, for noise at one sharpness."""
    views, photons = CENTRE
    wanted = [name for name in setup.methods if not results.has("resolution", views, photons, name)]
    if not wanted:
        return
    scans = Scans(subject, setup.size, views)
    noisy = [scans.scan(photons, FIRST_TUNING_SEED + seed) for seed in range(RESOLUTION_SEEDS)]
    for name in wanted:
        widths, noises = [], []
        for options in METHODS[name]:
            images = [run(name, scan, scans.grid, setup.threads, options)[0] for scan in noisy]
            widths.append(width(images, RESOLUTION_CONTRAST))
            noises.append(short(mean(quality(image, scans.truth)["flat_noise"] or 0.0 for image in images)))
        row = {"views": views, "photons": photons, "method": name, "contrast": RESOLUTION_CONTRAST}
        results.add("resolution", row | {"width_mm": widths, "flat_noise": noises})
        print("resolved", name, widths, noises, flush=True)


def same_geometry() -> float:
    """Return how far ASTRA's projection of an asymmetric phantom is from ours, relative to it."""
    subject = phantoms()["judge"][0]
    scans = Scans(subject, SIZE, CENTRE[0])
    image = attenuation(scans.truth)
    ours = Projector(scans.geometry, scans.grid).forward(image)[:, 0] / scans.grid.spacing[0]
    angles = np.asarray(scans.geometry.angles)
    theirs = low_dose_rivals.astra_forward(image[..., 0], angles, scans.geometry.bins)
    return short(float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours)))


class Setup(argparse.Namespace):
    """What was asked for on the command line."""

    size: int
    threads: int
    seeds: int
    methods: list[str]
    cells: list[tuple[int, float]]


def parse(arguments: Sequence[str] | None) -> Setup:
    def listed(make: Callable[[str], Any]) -> Callable[[str], list[Any]]:
        return lambda text: [make(each) for each in text.split(";")]

    def cell(text: str) -> tuple[int, float]:
        views, photons = text.split(":")
        return int(views), float(photons)

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cranium", type=Path, help="Cranium.inv3 of Debian's invesalius-examples")
    parser.add_argument("--chest", type=Path, help="source distribution of pyradiomics 3.0.1")
    parser.add_argument("--only", choices=("phantoms", "real", "modules"), help="one part alone")
    parser.add_argument("--methods", type=listed(str), help="names with ';' between them")
    parser.add_argument("--cells", type=listed(cell), default=list(CELLS), help="views:photons;...")
    parser.add_argument("--again", action="store_true", help="drop what is there of --methods first")
    parser.add_argument("--seeds", type=int, default=20, help="at 60 views and 1e5 photons; 5 elsewhere")
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=RESULT)
    return parser.parse_args(arguments, Setup())


def main(arguments: Sequence[str] | None = None) -> None:
    setup = parse(arguments)
    without = low_dose_rivals.missing()
    setup.methods = [name for name in available(without) if setup.methods is None or name in setup.methods]
    results = Results(setup.json)
    if setup.again:
        results.drop(setup.methods)
    made = phantoms()
    real, notes = real_slices(setup.cranium, setup.chest)
    results.facts |= {"system": platform.platform(), "python": platform.python_version()}
    results.facts |= {"split": {PHANTOM: split(made)}, "without": without}
    if "astra" not in without:
        results.facts["astra_differs"] = same_geometry()
        if results.facts["astra_differs"] > 1e-3:
            raise SystemExit("ASTRA does not see the geometry that ours sees")
    if setup.only in (None, "real"):
        results.facts["notes"] = notes
        results.facts["real_split"] = split(real)
    for cell in setup.cells:
        seeds = setup.seeds if cell == CENTRE else min(setup.seeds, OTHER_SEEDS)
        for name, kind, subjects in (("phantoms", PHANTOM, made), ("real", REAL, real)):
            if setup.only in (None, name):
                tune(results, kind, subjects["tune"], cell, setup)
                for subject in subjects["judge"]:
                    judge(results, subject, cell, seeds, setup)
    if setup.only in (None, "modules") and CENTRE in setup.cells:
        tune(results, PHANTOM, made["tune"], CENTRE, setup)
        for subject in made["modules"]:
            judge(results, subject, CENTRE, setup.seeds // 2, setup, "modules")
        resolve(results, made["modules"][0], setup)


if __name__ == "__main__":
    main()
