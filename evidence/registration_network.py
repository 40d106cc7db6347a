"""Does a trained network register as well as the optimiser, and does a second stage gain by volume change and curl?

All data are simulated (evidence/cohort.py: the MNI152 template, warped, folded anew and re-imaged); nobody's head
is among them. Subjects of training, of choosing and of judging are apart. Parts, each resumable:

    slices   one slice of each head at 3 mm, brought to the template: five seeds of training
    pairs    the same slices brought to each other, by networks that were trained on pairs
    volumes  whole heads at 4 mm, brought to the template
    choice   what settings do, on the subjects for choosing: those above were taken by it
    long     one training of the first stage five times as long

    python evidence/registration_network.py --json evidence/results/registration_network.json [--only PART]

Writes the JSON after each network. About an hour of one core.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from cohort import Subject, subjects, template

from sagittal.core.files import write_text
from sagittal.registration import (
    Registration,
    RegistrationNetwork,
    network_bytes,
    network_from_bytes,
    register,
    register_by_network,
    train_network,
)
from sagittal.volume import DisplacementField, Volume
from sagittal.volume.metrics import dice

RESULT = Path(__file__).parent / "results" / "registration_network.json"
PARTS = ("slices", "pairs", "long", "volumes", "choice")
TISSUES = ("csf", "gm", "wm")
STILL = np.eye(4)
"""The cohort has no pose: nobody is given, or looks for, an affine map."""
SEEDS = 5
COHORTS = {"train": 1, "choose": 2, "judge": 3}
NUMBERS = {
    "slices": {"train": 400, "choose": 20, "judge": 20},
    "volumes": {"train": 20, "choose": 0, "judge": 6},
}
FEW, FEW_SEEDS = 50, 1
"""Training subjects of the arm that shows what more of them are worth."""
SPACING = {"slices": 3.0, "volumes": 4.0}
SETTINGS = {
    "slices": {"width": 16, "steps": 2000, "rate": 4e-3, "regularity": 0.15},
    "volumes": {"width": 8, "steps": 400, "rate": 4e-3, "regularity": 0.15},
}
CHOICES = [
    {"width": 16, "rate": 4e-3, "regularity": 0.15},
    {"width": 16, "rate": 4e-3, "regularity": 0.01},
    {"width": 8, "rate": 4e-3, "regularity": 0.15},
    {"width": 16, "rate": 1e-3, "regularity": 0.15},
]
CHOICE_STEPS = 2000
REFINE = (10, 5)

Row = dict[str, object]


@functools.cache
def heads(kind: str, side: str) -> list[Subject]:
    """Return the subjects of one side of the split: slices or volumes."""
    return subjects(
        NUMBERS[kind][side], seed=COHORTS[side], spacing_mm=SPACING[kind], flat=kind == "slices", pose=False
    )


def judged(field: DisplacementField, labels: Volume, wanted: Volume) -> Row:
    found = field.warp(labels, "label").array
    overlap = [dice(found == label, wanted.array == label) for label in range(1, len(TISSUES) + 1)]
    return {
        "dice": dict(zip(TISSUES, overlap, strict=True)),
        "dice_mean": float(np.mean(overlap)),
        "folds": field.folds,
        "sd_log_jacobian": float(field.log_jacobian().array.std(dtype=np.float64)),
    }


def scored(
    pairs: Sequence[tuple[Subject, Volume, Volume]], find: Callable[[Volume, Volume], Registration]
) -> list[Row]:
    """Return what a method finds for each pair: moving subject, fixed image, its labels."""
    rows = []
    for moving, fixed, labels in pairs:
        started = time.process_time()
        found = find(moving.image, fixed)
        seconds = time.process_time() - started
        told = judged(found.field, moving.labels, labels)
        rows.append({**told, "cpu_seconds": seconds, "inverse_consistency_mm": found.inverse_consistency_mm})
    return rows


def optimised(moving: Volume, fixed: Volume) -> Registration:
    return register(moving, fixed, affine=STILL)


def by(network: RegistrationNetwork, *refine: int) -> Callable[[Volume, Volume], Registration]:
    return lambda moving, fixed: register_by_network(moving, fixed, network, affine=STILL, refine=refine)


def to_template(kind: str, side: str) -> list[tuple[Subject, Volume, Volume]]:
    image, labels = template(SPACING[kind], flat=kind == "slices")
    return [(subject, image, labels) for subject in heads(kind, side)]


def to_each_other(kind: str, side: str) -> list[tuple[Subject, Volume, Volume]]:
    """Return each subject with the next one as fixed."""
    those = heads(kind, side)
    return [(one, next_.image, next_.labels) for one, next_ in zip(those, those[1:] + those[:1], strict=True)]


class Record:
    """The rows measured so far, on disk after each arm; and the networks, beside them."""

    def __init__(self, path: Path, networks: Path) -> None:
        self.path = path
        self.kept = (
            json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"facts": {}, "rows": []}
        )
        self.networks = networks

    def has(self, part: str, arm: str, seed: int | None) -> bool:
        return any((r["part"], r["arm"], r["seed"]) == (part, arm, seed) for r in self.kept["rows"])

    def add(self, part: str, arm: str, seed: int | None, make: Callable[[], list[Row]]) -> None:
        if self.has(part, arm, seed):
            return
        rows = make()
        for number, row in enumerate(rows):
            self.kept["rows"].append({"part": part, "arm": arm, "seed": seed, "subject": number, **row})
        self.kept["facts"] |= {
            "seeds": SEEDS,
            "subjects": NUMBERS,
            "spacing_mm": SPACING,
            "settings": SETTINGS,
            "choice_steps": CHOICE_STEPS,
            "few": FEW,
            "refine": list(REFINE),
            "grids": {
                kind: list(template(SPACING[kind], flat=kind == "slices")[0].shape) for kind in SPACING
            },
        }
        write_text(self.path, json.dumps(self.kept, indent=1) + "\n")
        means = [
            float(np.mean([row[name] for row in rows]))
            for name in ("dice_mean", "sd_log_jacobian", "cpu_seconds")
        ]
        print(part, arm, seed, "dice {:.4f} sd {:.3f} cpu {:.3f}".format(*means), flush=True)

    def network(self, name: str, make: Callable[[], RegistrationNetwork]) -> RegistrationNetwork:
        """Return a network, trained once."""
        file = self.networks / f"{name}.safetensors"
        if file.is_file():
            return network_from_bytes(file.read_bytes(), file)
        started = time.process_time()
        made = make()
        print(name, f"trained in {time.process_time() - started:.0f} s of CPU", flush=True)
        self.networks.mkdir(parents=True, exist_ok=True)
        file.write_bytes(network_bytes(made))
        return made


def trained(
    kind: str, seed: int, *, count: int | None = None, pairs: bool = False, **more: object
) -> RegistrationNetwork:
    images = [subject.image for subject in heads(kind, "train")[:count]]
    fixed = None if pairs else template(SPACING[kind], flat=kind == "slices")[0]
    settings = SETTINGS[kind] | more
    return train_network(images, fixed, affines=[STILL] * len(images), seed=seed, **settings).network


def floors(record: Record, part: str, pairs: Sequence[tuple[Subject, Volume, Volume]]) -> None:
    """Measure what needs no network."""

    def still() -> list[Row]:
        return [
            judged(DisplacementField.identity(fixed.geometry), m.labels, labels) | {"cpu_seconds": 0.0}
            for m, fixed, labels in pairs
        ]

    record.add(part, "identity", None, still)
    record.add(part, "optimiser", None, lambda: scored(pairs, optimised))


def choice(record: Record) -> None:
    pairs = to_template("slices", "choose")
    floors(record, "choice", pairs)
    for more in CHOICES:
        name = ", ".join(f"{key} {value:g}" for key, value in more.items())
        if not record.has("choice", name, 0):
            network = record.network(
                "choice " + name, lambda more=more: trained("slices", 0, **{**more, "steps": CHOICE_STEPS})
            )
            record.add("choice", name, 0, lambda network=network: scored(pairs, by(network)))


def slices(record: Record) -> None:
    pairs = to_template("slices", "judge")
    floors(record, "slices", pairs)

    def true() -> list[Row]:
        return [judged(m.field, m.labels, labels) | {"cpu_seconds": 0.0} for m, _, labels in pairs]

    record.add("slices", "true warp", None, true)
    arms = (
        "first",
        "second, volume change and curl",
        "second, zeros",
        "first, twice as long",
        "first, few subjects",
    )
    for seed in range(SEEDS):
        if record.has("slices", "first, refined", seed):
            continue
        first = record.network(f"first {seed}", lambda seed=seed: trained("slices", seed))
        made: dict[str, Callable[[], RegistrationNetwork]] = {
            arms[0]: lambda first=first: first,
            arms[1]: lambda first=first, seed=seed: trained(
                "slices", seed, first=first, extra="jacobian-curl"
            ),
            arms[2]: lambda first=first, seed=seed: trained("slices", seed, first=first, extra="zeros"),
            arms[3]: lambda seed=seed: trained("slices", seed, steps=2 * SETTINGS["slices"]["steps"]),
            arms[4]: lambda seed=seed: trained("slices", seed, count=FEW),
        }
        if seed >= FEW_SEEDS:
            del made[arms[4]]
        for arm, make in made.items():
            if record.has("slices", arm, seed):
                continue
            network = first if arm == "first" else record.network(f"{arm} {seed}", make)
            record.add("slices", arm, seed, lambda network=network: scored(pairs, by(network)))
        record.add("slices", "first, refined", seed, lambda first=first: scored(pairs, by(first, *REFINE)))
    record.add(
        "slices",
        "optimiser, refinement alone",
        None,
        lambda: scored(pairs, lambda m, f: register(m, f, affine=STILL, iterations=REFINE)),
    )
    record.add(
        "slices",
        "first, the pass alone",
        0,
        lambda: passes(pairs, record.network("first 0", lambda: trained("slices", 0))),
    )


def passes(pairs: Sequence[tuple[Subject, Volume, Volume]], network: RegistrationNetwork) -> list[Row]:
    """Return the CPU time of nothing but the way through the network; the rest is that of any registration."""
    from sagittal.registration.network import entered
    from sagittal.registration.network_layers import Frame

    rows = []
    for (moving, fixed, _), told in zip(pairs, scored(pairs, by(network)), strict=True):
        frame = Frame.around(network.grid, fixed.geometry)
        both = torch.from_numpy(
            np.stack([entered(image, frame, "image") for image in (fixed, moving.image)])[None]
        )
        started = time.process_time()
        network.velocity(frame, both)
        rows.append({**told, "cpu_seconds": time.process_time() - started})
    return rows


def pairs_(record: Record) -> None:
    pairs = to_each_other("slices", "judge")
    floors(record, "pairs", pairs)
    for seed in range(1):
        if not record.has("pairs", "first", seed):
            network = record.network(f"pairs {seed}", lambda seed=seed: trained("slices", seed, pairs=True))
            record.add("pairs", "first", seed, lambda network=network: scored(pairs, by(network)))
    atlas = record.network("first 0", lambda: trained("slices", 0))
    record.add("pairs", "first, trained on the template", 0, lambda: scored(pairs, by(atlas)))


def volumes(record: Record) -> None:
    pairs = to_template("volumes", "judge")
    floors(record, "volumes", pairs)
    network = record.network("volumes 0", lambda: trained("volumes", 0))
    record.add("volumes", "first", 0, lambda: scored(pairs, by(network)))
    record.add("volumes", "first, refined", 0, lambda: scored(pairs, by(network, *REFINE)))
    record.add("volumes", "first, the pass alone", 0, lambda: passes(pairs, network))


def long(record: Record) -> None:
    steps = 5 * SETTINGS["slices"]["steps"]
    network = record.network("long 0", lambda: trained("slices", 0, steps=steps))
    record.add(
        "slices", "first, five times as long", 0, lambda: scored(to_template("slices", "judge"), by(network))
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--networks", type=Path, default=Path("build/registration_network"), help="kept here")
    parser.add_argument("--only", choices=PARTS, action="append")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    record = Record(chosen.json, chosen.networks)
    made = {"choice": choice, "slices": slices, "pairs": pairs_, "volumes": volumes, "long": long}
    for part in chosen.only or PARTS:
        made[part](record)


if __name__ == "__main__":
    main()
