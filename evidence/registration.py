"""How far from the truth does registration lead, and what does it cost, beside others' programs?

    python evidence/registration.py --colin FOLDER --heads pyradiomics-3.0.1.tar.gz --slices antspyx-0.6.3.tar.gz
        --person pycortex-1.4.0.tar.gz [--only NAME] [--json F]

``known-fields``: real images (Colin27 of Debian's mricron-data; two heads of pyradiomics' source distribution),
each with a copy of itself that a known random map has warped and that is degraded otherwise
(registration_data.py). Settings were chosen on the MNI152 template with maps of other seeds: each method among
as many, by the median error. ``colin27-mni``: a person to an average, both real, without a truth; what counts
is the overlap of tissues, which is a proxy: they come from the brightness of the same images. Settings are chosen
anew, by another person to the same average and the overlap of other tissues (registration_person.py), and among
more of them, as real anatomy is folded. ``speed``: the same pair, ours at 1 mm with one thread and with two, with
the same settings, smoothed by as many mm, and as it comes. ``cohort``: simulated heads, each to the next, with
known maps and tissues; ``slices``: six real people's, every two, with a proxy (both registration_more.py). These
two choose their settings anew, among the first ones, by other heads of the cohort.

Every registration is a process of its own with one thread, and starts from the same affine map, found by
SimpleITK (registration_methods.py); its time is not counted. Rows that are there are not made again but for
those of --methods with --again. Writes evidence/results/registration.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from registration_data import STRENGTHS, Pair, colin_mni, known_pair, originals, template
from registration_more import cohort_pair, slice_pair, slice_pairs, slices
from registration_person import person_mni
from scipy.stats import spearmanr

from sagittal.core.files import atomic_path
from sagittal.registration.filters import gaussian
from sagittal.volume import DisplacementField, Volume, read_volume, write_nifti

RESULT = Path(__file__).parent / "results" / "registration.json"
METHOD = Path(__file__).parent / "registration_methods.py"
SETS = ("known-fields", "colin27-mni", "cohort", "slices", "speed")
SPACING_MM = 2.0
TUNING = (("medium", 1001), ("large", 1002))
JUDGING = {"Colin27": (1,), "pyradiomics brain1": (3,), "pyradiomics brain2": (4,)}
"""Seeds of the known maps, for each strength."""

COHORT_TUNING, COHORT_JUDGING = (900, 901), (1, 2, 3)
"""Seeds of cohorts of two heads."""
CHOSEN_BY = {"colin27-mni": "colin27-mni", "speed": "colin27-mni", "cohort": "cohort", "slices": "slices"}
"""Sets whose settings are not chosen by known maps, and the set for which they are."""

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "identity": [{}],
    "affine": [{}],
    "diffeomorphic, as it comes": [{}],
    "diffeomorphic": [{"update_smoothing": sigma} for sigma in (3.5, 5.0, 7.0, 9.0)],
    "SimpleITK demons": [{"iterations": [60, 40, 20], "sigma": sigma} for sigma in (1.0, 1.5, 2.0, 3.0)],
    "SimpleITK B-spline": [
        {"iterations": 20, "share": 0.05, "mesh_mm": mesh, "metric": metric}
        for metric in ("mutual-information", "correlation")
        for mesh in (40, 25)
    ],
    "picsl_greedy": [
        {"iterations": "100x50x20", "sigmas": sigmas}
        for sigmas in ("2.5vox 0.707vox", "3.5vox 0.707vox", "5vox 1vox", "8vox 1vox")
    ],
    "ANTsPy SyN": [
        {"syn_metric": metric, "syn_sampling": sampling, "reg_iterations": counts, "flow_sigma": sigma}
        for metric, sampling, counts, sigma in (
            ("mattes", 32, [40, 20, 0], 3),  # as it comes
            ("CC", 2, [60, 40, 0], 3),
            ("CC", 2, [60, 40, 0], 6),
            ("CC", 2, [60, 40, 10], 4.5),
        )
    ],
}
FINER: dict[str, list[dict[str, Any]]] = {
    "diffeomorphic": [
        {"update_smoothing": sigma, "field_smoothing": field, "iterations": [60, last, last]}
        for sigma, field, last in ((2.5, 0.3, 40), (3.5, 0.3, 60), (2.5, 0.6, 60), (1.8, 0.6, 60))
    ],
    "SimpleITK B-spline": [
        {"iterations": count, "share": share, "mesh_mm": mesh, "metric": "mutual-information"}
        for count, share, mesh in ((60, 0.05, 25), (20, 0.2, 25), (20, 0.05, 15), (40, 0.05, 15))
    ],
    "picsl_greedy": [
        {"iterations": iterations, "sigmas": sigmas}
        for iterations, sigmas in (
            ("100x50x20", "1.732vox 0.707vox"),  # as it comes
            ("100x100x60", "1.732vox 0.707vox"),
            ("100x100x60", "2.5vox 0.707vox"),
            ("100x100x60", "1.5vox 0.5vox"),
        )
    ],
    "ANTsPy SyN": [
        {"syn_metric": "CC", "syn_sampling": radius, "reg_iterations": counts, "flow_sigma": 3}
        for radius, counts in (
            (2, [60, 40, 10]),
            (2, [60, 40, 40]),
            (2, [100, 70, 50]),
            (4, [100, 70, 50, 20]),  # as antsRegistrationSyN.sh has it
        )
    ],
}
"""Settings for folded anatomy, tried besides the others where real people choose."""

SMOOTHING = ("update_smoothing", "field_smoothing")
"""Settings of ours in voxels of the last level; chosen at 2 mm."""

ONE_GRID = ("SimpleITK demons",)
"""Methods that take two images of one size alone."""

PACKAGES = {
    "SimpleITK demons": "SimpleITK",
    "SimpleITK B-spline": "SimpleITK",
    "picsl_greedy": "picsl_greedy",
    "ANTsPy SyN": "antspyx",
}
Row = dict[str, Any]
KEYS = {
    "tuning": ("method",),
    "tuning_others": ("set", "method"),
    "rows": ("set", "image", "strength", "seed", "method", "threads"),
}


class Results:
    """Rows by what they are of, kept in one JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.facts: Row = kept.get("facts", {})
        self.parts = {part: {self.key(part, row): row for row in kept.get(part, [])} for part in KEYS}

    @staticmethod
    def key(part: str, row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in KEYS[part])

    def add(self, part: str, row: Row) -> None:
        self.parts[part][self.key(part, row)] = row
        print(json.dumps(row), flush=True)
        self.write()

    def drop(self, methods: Sequence[str]) -> None:
        for part, rows in self.parts.items():
            self.parts[part] = {key: row for key, row in rows.items() if row["method"] not in methods}

    def write(self) -> None:
        text = ['{\n"facts": ' + json.dumps(self.facts)]
        for part, rows in self.parts.items():
            ordered = sorted(rows.values(), key=lambda row, part=part: tuple(map(str, self.key(part, row))))
            text.append(f'"{part}": [\n' + ",\n".join(json.dumps(row) for row in ordered) + "\n]")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path) as temporary:
            temporary.write_text(",\n".join(text) + "\n}\n", encoding="utf-8")


class Workplace:
    """A folder with one pair of images, and the affine map from which all start."""

    def __init__(self, pair: Pair, folder: str) -> None:
        self.pair, self.folder = pair, Path(folder)
        write_nifti(pair.moving, self.folder / "moving.nii.gz")
        write_nifti(pair.fixed, self.folder / "fixed.nii.gz")
        self._call("start", {}, 1)

    def run(self, method: str, options: Row, threads: int = 1) -> Row:
        """Register, and return what it cost and how good it is."""
        for name in ("field.npy", "inverse.npy", "error.npy", "cost.json"):
            (self.folder / name).unlink(missing_ok=True)
        self._call(method, options, threads)
        fixed, moving = (read_volume(self.folder / f"{n}.nii.gz").geometry for n in ("fixed", "moving"))
        field = DisplacementField(np.load(self.folder / "field.npy"), fixed)
        back = self.folder / "inverse.npy"
        inverse = DisplacementField(np.load(back), moving) if back.is_file() else None
        cost = json.loads((self.folder / "cost.json").read_text())
        row = measured(self.pair, field, inverse) | {name: short(value) for name, value in cost.items()}
        doubt = self.folder / "error.npy"
        if doubt.is_file() and self.pair.truth is not None:
            row["confidence"] = confidence(self.pair, field, np.load(doubt))
        return row

    def _call(self, method: str, options: Row, threads: int) -> None:
        named = ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
        done = subprocess.run(
            [sys.executable, METHOD, method, json.dumps(options), self.folder],
            env=os.environ | dict.fromkeys(named, str(threads)),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{method} {options}: {done.stdout[-500:]} {done.stderr[-1500:]}")


def measured(pair: Pair, field: DisplacementField, inverse: DisplacementField | None) -> Row:
    """Return errors in mm, overlaps, folds and how far the inverse leads from where it should."""
    row: Row = {"tre_mm": None, "tre_95_mm": None, "tre_before_mm": None, "dice_mean": None}
    if pair.truth is not None:
        apart = np.linalg.norm(field.vectors - pair.truth.vectors, axis=0)[pair.mask]
        row["tre_mm"], row["tre_95_mm"] = short(np.median(apart)), short(np.percentile(apart, 95))
        row["tre_before_mm"] = short(np.median(pair.truth.magnitude[pair.mask]))
    if pair.labels is not None:
        row["dice_mean"] = short(dice(pair.labels[0], field.warp(pair.labels[1], "label"), pair.mask))
    row["folds"] = int((field.determinant[pair.mask] <= 0).sum())
    row["inverse_consistency_mm"] = (
        None if inverse is None else short(inverse.compose(field).magnitude[pair.mask].mean())
    )
    return row


def confidence(pair: Pair, field: DisplacementField, expected: NDArray[np.float32]) -> Row:
    """Return how the expected error is to the true one, where brightness changes least (half of it) and most."""
    assert pair.truth is not None
    true = np.linalg.norm(field.vectors - pair.truth.vectors, axis=0)[pair.mask]
    axes = [axis for axis, count in enumerate(pair.fixed.shape) if count > 1]
    smooth = gaussian(pair.fixed.array.astype(np.float32), [float(n > 1) for n in pair.fixed.shape])
    steps = [pair.fixed.geometry.spacing[axis] for axis in axes]
    change = np.sqrt(sum(each**2 for each in np.gradient(smooth, *steps, axis=axes)))[pair.mask]
    flat, told = change <= np.median(change), expected[pair.mask].astype(np.float64)
    return {
        name: {
            "below": short((true[where] < told[where]).mean()),
            "below_twice": short((true[where] < 2 * told[where]).mean()),
            "rank": short(spearmanr(told[where], true[where]).statistic),
            "ratio": short(np.sqrt((told[where] ** 2).mean() / (true[where] ** 2).mean())),
        }
        for name, where in (("flat", flat), ("textured", ~flat))
    }


def dice(wanted: Volume, found: Volume, mask: NDArray[np.bool_]) -> float:
    """Return the mean overlap of all labels that there are, where the mask says."""
    a, b = np.where(mask, wanted.array, 0), np.where(mask, found.array, 0)
    each = [2 * np.mean((a == n) & (b == n)) / np.mean((a == n) * 1.0 + (b == n)) for n in np.unique(a) if n]
    return float(np.mean(each))


def short(value: Any) -> float:
    return float(f"{float(value):.4g}")


def at_work(pair: Pair, tasks: Callable[[Workplace], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tasks(Workplace(pair, folder))


def tune(results: Results, methods: Iterable[str]) -> None:
    def pairs() -> Iterator[Pair]:
        for strength, seed in TUNING:
            yield known_pair(*template(), strength=strength, seed=seed, spacing_mm=SPACING_MM)

    choose(results, methods, "tuning", {}, pairs)


def choose(
    results: Results,
    methods: Iterable[str],
    part: str,
    facts: Row,
    pairs: Callable[[], Iterable[Pair]],
    settings: dict[str, list[dict[str, Any]]] = SETTINGS,
    by: str = "tre_mm",
) -> None:
    """Let each method choose among its settings by pairs that do not judge: by median error or by Dice."""
    wanted = [
        name for name in methods if results.key(part, facts | {"method": name}) not in results.parts[part]
    ]
    found: dict[str, list[list[Row]]] = {name: [[] for _ in settings[name]] for name in wanted}

    def tasks(place: Workplace) -> None:
        for name in wanted:
            for number, options in enumerate(settings[name]):
                found[name][number].append(place.run(name, options))
                print("tuning", name, options, found[name][number][-1], flush=True)

    for pair in pairs() if wanted else ():
        at_work(pair, tasks)
    for name in wanted:
        values, costs = ([[row[key] for row in rows] for rows in found[name]] for key in (by, "cpu_seconds"))
        middles = [median(each) for each in values]
        best = middles.index(max(middles) if by == "dice_mean" else min(middles))
        row: Row = facts | {"method": name, "options": settings[name], by: values, "best": best}
        results.add(part, row | {"cpu_seconds": costs})


def judge(
    results: Results,
    methods: Sequence[str],
    facts: Row,
    make: Callable[[], Pair],
    spacing_mm: float = SPACING_MM,
) -> None:
    """Measure methods on a pair, by the settings they chose; on other voxels they smooth by as many mm."""
    wanted = [n for n in methods if results.key("rows", facts | {"method": n}) not in results.parts["rows"]]

    def tasks(place: Workplace) -> None:
        for name in wanted:
            by = CHOSEN_BY.get(facts["set"])
            tuned = results.parts["tuning_others"][(by, name)] if by else results.parts["tuning"][(name,)]
            options = tuned["options"][tuned["best"]]
            widths = {key: options[key] * SPACING_MM / spacing_mm for key in SMOOTHING if key in options}
            options = options | widths
            row = facts | {"method": name, "options": options}
            results.add("rows", row | place.run(name, options, facts["threads"]))

    if wanted:
        at_work(make(), tasks)


def judge_others(results: Results, methods: Sequence[str], part: str, sdist: Path | None) -> None:
    """Measure one of the sets that choose settings of their own."""
    if part == "slices" and sdist is None:
        return
    choose(
        results,
        methods,
        "tuning_others",
        {"set": part},
        lambda: (
            cohort_pair(seed, flat=part == "slices") for seed in COHORT_TUNING[: 1 + (part == "slices")]
        ),
    )
    facts: Row = {"set": part, "strength": "", "threads": 1}
    if part == "cohort":
        for seed in COHORT_JUDGING:
            image = {"image": "two simulated heads", "seed": seed}
            judge(results, methods, facts | image, lambda seed=seed: cohort_pair(seed))
    elif sdist is not None:
        images = slices(sdist)
        for moving, fixed in slice_pairs():
            judge(
                results,
                methods,
                facts | {"image": f"{moving} to {fixed}", "seed": 0},
                lambda moving=moving, fixed=fixed: slice_pair(images, moving, fixed),
            )


def judge_colin(
    results: Results, methods: Sequence[str], wanted: Sequence[str], colin: Path, person: Path
) -> None:
    """Measure Colin27 to MNI152, by settings that another person chose."""
    able = [name for name in methods if name not in ONE_GRID]
    settings = {name: SETTINGS[name] + FINER.get(name, []) for name in able}

    def pairs() -> list[Pair]:
        return [person_mni(person, SPACING_MM)]

    choose(results, able, "tuning_others", {"set": "colin27-mni"}, pairs, settings, "dice_mean")
    facts: Row = {"image": "Colin27 to MNI152", "strength": "", "seed": 0}
    if "colin27-mni" in wanted:
        here = facts | {"set": "colin27-mni", "threads": 1}
        judge(results, able, here, lambda: colin_mni(colin, SPACING_MM))
    for threads in (1, 2) if "speed" in wanted else ():
        here = facts | {"set": "speed", "image": "Colin27 to MNI152, 1 mm", "threads": threads}
        ours = [name for name in able if name.startswith("diffeomorphic")]
        judge(results, ours, here, lambda: colin_mni(colin, 1.0), 1.0)


def installed(methods: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Return the methods that can be run here, and the versions of what they come from."""
    found, versions = [], {}
    for name in methods:
        package = PACKAGES.get(name)
        try:
            versions |= {package: version(package)} if package else {}
            found.append(name)
        except PackageNotFoundError:
            print(f"{package} is not installed: no {name}", file=sys.stderr)
    return found, versions


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--colin", type=Path, help="folder of ch2bet.nii.gz and aal.nii.gz")
    parser.add_argument("--heads", type=Path, help="source distribution of pyradiomics 3.0.1")
    parser.add_argument("--slices", type=Path, help="source distribution of antspyx 0.6.3")
    parser.add_argument("--person", type=Path, help="source distribution of pycortex 1.4.0")
    parser.add_argument("--only", choices=SETS)
    parser.add_argument("--methods", type=lambda text: text.split(";"), default=list(SETTINGS))
    parser.add_argument("--again", action="store_true", help="drop what is there of --methods first")
    parser.add_argument("--json", type=Path, default=RESULT)
    given = parser.parse_args(arguments)
    results = Results(given.json)
    methods, versions = installed(given.methods)
    if given.again:
        results.drop(methods)
    results.facts |= {"system": platform.platform(), "python": platform.python_version()}
    results.facts |= {"spacing_mm": SPACING_MM, "tuning_pairs": [list(pair) for pair in TUNING]}
    results.facts["versions"] = results.facts.get("versions", {}) | versions
    wanted = SETS if given.only is None else (given.only,)
    if "known-fields" in wanted:
        tune(results, methods)
    images = originals(given.colin, given.heads)
    if "known-fields" in wanted:
        for image, seeds in JUDGING.items():
            for seed in seeds if image in images else ():
                for strength in STRENGTHS:
                    facts = {"set": "known-fields", "image": image, "strength": strength, "seed": seed}
                    judge(
                        results,
                        methods,
                        facts | {"threads": 1},
                        lambda image=image, strength=strength, seed=seed: known_pair(
                            *images[image], strength=strength, seed=seed, spacing_mm=SPACING_MM
                        ),
                    )
    for part in ("cohort", "slices"):
        if part in wanted:
            judge_others(results, methods, part, given.slices)
    if {"colin27-mni", "speed"} & set(wanted) and given.colin and given.person:
        judge_colin(results, methods, wanted, given.colin, given.person)


if __name__ == "__main__":
    main()
