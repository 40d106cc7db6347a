"""Is the work foreseen that a whole head's annotation will take, before anybody opens it?

All data are simulated, as in tissue_network.py: its heads of 2 mm that train, and those that judge; nobody's head is
among them. Ensembles of bootstrap draws of five labelled heads, T1 alone, propose the tissues of twenty others.
``expected_effort`` foresees the correction from the proposal's probabilities; ``correction_effort`` finds it from the
true labels. Nobody logs minutes in a simulation: the product's prior, applied to the real correction, stands
for what it takes. What was set was tried on heads of other seeds.

Minutes are foreseen twice: as the prior tells them, and after the minutes of five of the twenty, drawn by lot,
were logged, for the other fifteen.

    python evidence/tissue_effort.py

Writes evidence/results/tissue_effort.json after each seed. About 8 minutes of one core for a seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from tissue_network import BATCH, CLASSES, FEW, NUMBERS, PATCH, RATE, SPACING, WIDTH, images

from sagittal.annotation import (
    BySubject,
    CaseEffort,
    LoggedMinutes,
    correction_effort,
    expected_effort,
    fit_minutes,
    mean_within,
    predictive_entropy,
)
from sagittal.core.files import write_text
from sagittal.core.randomness import derive_seed
from sagittal.segmentation import NetworkConfig, predict, train

RESULT = Path(__file__).parent / "results" / "tissue_effort.json"
SEEDS, MEMBERS, STEPS, LOGGED = 5, 3, 250, 5
WIDTHS = (SPACING,) * 3
PRIOR = fit_minutes([])

Row = dict[str, Any]


def work_of(effort: CaseEffort) -> Row:
    return {
        "minutes": PRIOR.predict(effort).value,
        "components": effort.components,
        "edge_mm": effort.edge_mm,
        "slices": effort.slices,
    }


def measured(seed: int) -> list[Row]:
    heads = images("train", ("t1",))
    drawn = np.random.default_rng(derive_seed(seed, "labelled")).choice(len(heads), FEW, replace=False)
    labelled = [heads[number] for number in sorted(drawn.tolist())]
    config = NetworkConfig(channels=("t1",), width=WIDTH, patch=PATCH, spacing_mm=WIDTHS)
    models = []
    draws = BySubject((one.subject, one) for one in labelled).draws(MEMBERS, seed=derive_seed(seed, "draws"))
    for number, draw in enumerate(draws):
        start = derive_seed(seed, "network", str(number))
        models.append(
            train(list(draw.training), config, seed=start, steps=STEPS, batch=BATCH, rate=RATE).model
        )
        print(f"seed {seed}: network {number}", flush=True)
    rows, foreseen = [], []
    for one in images("judge", ("t1",)):
        mean = np.mean([predict(model, one.channels, one.mask) for model in models], axis=0, dtype=np.float32)
        proposal = np.where(one.mask, mean.argmax(axis=-1) + 1, 0)
        expected = expected_effort(proposal, mean, tuple(CLASSES), WIDTHS)
        real = correction_effort(proposal, one.labels, CLASSES, WIDTHS)
        foreseen.append(expected)
        rows.append(
            {
                "seed": seed,
                "subject": one.subject,
                "expected": work_of(expected),
                "real": work_of(real),
                "entropy": mean_within(predictive_entropy(mean), one.mask),
                "brain_ml": float(np.count_nonzero(one.mask)) * SPACING**3 / 1000,
            }
        )
    logged = np.random.default_rng(derive_seed(seed, "logged")).choice(len(rows), LOGGED, replace=False)
    model = fit_minutes(
        [
            LoggedMinutes(
                subject=rows[number]["subject"],
                effort=foreseen[number],
                minutes=rows[number]["real"]["minutes"],
            )
            for number in logged.tolist()
        ]
    )
    for number, row in enumerate(rows):
        row["logged"] = number in logged
        told = model.predict(foreseen[number])
        row["after_logs"] = {"minutes": told.value, "low": told.low, "high": told.high, "level": told.level}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    given = parser.parse_args()
    kept: Row = json.loads(given.json.read_text()) if given.json.is_file() else {"facts": {}, "rows": []}
    for seed in range(given.seeds):
        if any(row["seed"] == seed for row in kept["rows"]):
            continue
        kept["rows"] += measured(seed)
        kept["facts"] = {
            "spacing_mm": SPACING,
            "labelled": FEW,
            "of": NUMBERS["train"],
            "judge": NUMBERS["judge"],
            "members": MEMBERS,
            "steps": STEPS,
            "logged": LOGGED,
        }
        write_text(given.json, json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
