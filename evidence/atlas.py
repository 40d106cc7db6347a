"""Is an atlas by average Jacobian determinant and curl in the middle, whatever image it starts from, and sharp?

All data are simulated (evidence/cohort.py): heads made from the MNI152 template by known warps, turned, scaled
and shifted, with folding of their own; slices and volumes. The averages alone are measured on smooth random
fields and on the cohort's true fields. Nothing was tuned on these seeds. Writes evidence/results/atlas.json
after each part; parts that are in it are not measured again. About 10 minutes on one core.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cohort
import numpy as np
from scipy import ndimage

from sagittal.core.randomness import generator
from sagittal.registration import Registration, average_transformation, build_atlas, register
from sagittal.registration.atlas import Atlas, gradient_energy, jacobian_average
from sagittal.volume import DisplacementField, Geometry, Volume

RESULT = Path(__file__).parent / "results" / "atlas.json"
SEEDS = 20
COHORTS = {
    "slices, cohort 1": {"n": 8, "seed": 701, "spacing_mm": 3.0, "flat": True},
    "heads": {"n": 8, "seed": 703, "spacing_mm": 5.0, "flat": False},
    "slices, cohort 2": {"n": 8, "seed": 702, "spacing_mm": 3.0, "flat": True},
}
STARTS = (0, 1, 2)
ITERATIONS = 3


def euclidean(fields: Sequence[DisplacementField]) -> DisplacementField:
    return DisplacementField(np.mean([field.vectors for field in fields], axis=0), fields[0].geometry)


def smooth_warps(seed: int, grid: Geometry, count: int) -> list[DisplacementField]:
    """Random fields that are 0 on the boundary; least determinant about 0.5."""
    random, found = generator(seed, "averages"), []
    sigma = [length / 8 if length > 1 else 0 for length in grid.shape]
    window = np.ones(grid.shape)
    for axis, length in enumerate(grid.shape):
        if length > 1:
            ramp = np.minimum(1, np.minimum(np.arange(length), np.arange(length)[::-1]) / (length / 6))
            window *= ramp.reshape([-1 if other == axis else 1 for other in range(3)])
    window = window**2 * (3 - 2 * window)
    while len(found) < count:
        vectors = np.stack([ndimage.gaussian_filter(random.normal(size=grid.shape), sigma) for _ in range(3)])
        vectors *= window
        vectors[2] *= grid.shape[2] > 1
        far = random.uniform(0.04, 0.08) * grid.shape[0]
        field = DisplacementField(vectors * far / np.abs(vectors).max(), grid)
        if field.determinant.min() > 0.3:
            found.append(field)
    return found


def averaged(
    fields: list[DisplacementField], method: Callable[[Sequence[DisplacementField]], DisplacementField]
) -> dict[str, float]:
    wanted = np.mean([field.determinant for field in fields], axis=0)
    turning = np.mean([field.curl() for field in fields], axis=0)
    error, found = {}, method(fields)
    for name, field in (("jacobian", found), ("euclidean", euclidean(fields))):
        error[f"{name}_error"] = float(np.abs(field.determinant - wanted).mean())
        error[f"{name}_curl_error"] = float(np.linalg.norm(field.curl() - turning, axis=0).mean())
        error[f"{name}_least"] = float(field.determinant.min())
    return error


def random_fields(shape: tuple[int, int, int]) -> list[dict[str, float]]:
    grid = Geometry.from_spacing(shape, (1, 1, 1), (0, 0, 0))
    return [
        {"seed": seed, **averaged(smooth_warps(seed, grid, 6), lambda f: average_transformation(f).field)}
        for seed in range(SEEDS)
    ]


def head_fields() -> list[dict[str, float]]:
    found = []
    for seed in (711, 712):
        fields = [one.field for one in cohort.subjects(8, seed=seed, spacing_mm=4.0)]
        found.append({"seed": seed, **averaged(fields, jacobian_average)})
    return found


AVERAGES: dict[str, Callable[[], list[dict[str, float]]]] = {
    "random, 64 x 64": lambda: random_fields((64, 64, 1)),
    "random, 24 x 24 x 24": lambda: random_fields((24, 24, 24)),
    "true fields of 8 heads, 4 mm": head_fields,
}


class Kept:
    """Registers, and remembers."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], Registration] = {}
        self.seconds = 0.0

    def __call__(self, moving: Volume, fixed: Volume) -> Registration:
        key = moving.content_hash, fixed.content_hash
        if key not in self.found:
            started = time.process_time()
            self.found[key] = register(moving, fixed)
            self.seconds += time.process_time() - started
        return self.found[key]


def apart(a: Atlas, b: Atlas) -> dict[str, float]:
    """How far two atlases of the same subjects are from each other, over the body."""
    seen = a.image.array > 0.1 * a.image.array.max()
    away = [
        np.linalg.norm(one.vectors - two.resample(one.geometry).vectors, axis=0)[seen].mean()
        for one, two in zip(a.fields, b.fields, strict=True)
        if one is not None and two is not None
    ]
    other = DisplacementField.identity(a.image.geometry).warp(b.image, outside=0.0).array
    return {
        "mm": float(np.mean(away)),
        "intensity": float(np.abs(other - a.image.array)[seen].mean()),
        "correlation": float(np.corrcoef(other[seen], a.image.array[seen])[0, 1]),
    }


def described(atlas: Atlas) -> dict[str, Any]:
    assert atlas.image.variance is not None
    assert atlas.plain.variance is not None
    seen = atlas.image.array > 0.1 * atlas.image.array.max()
    affine = atlas.plain.array > 0.1 * atlas.plain.array.max()
    return {
        "rounds": [asdict(one) for one in atlas.rounds],
        "centred": asdict(atlas.centred),
        "sharpness": gradient_energy(atlas.image),
        "sharpness_affine": gradient_energy(atlas.plain),
        "sd": float(np.sqrt(atlas.image.variance[seen].mean())),
        "sd_affine": float(np.sqrt(atlas.plain.variance[affine].mean())),
    }


def single(images: list[Volume], number: int, registered: Kept) -> dict[str, Any]:
    """What a subject as the template is worth: one round of the atlas, and only its first figures."""
    made = build_atlas(images, start=number, iterations=1, registered=registered, average=euclidean)
    return asdict(made.rounds[0])


def build(n: int, seed: int, spacing_mm: float, flat: bool) -> dict[str, Any]:
    people = cohort.subjects(n, seed=seed, spacing_mm=spacing_mm, flat=flat, pose=True)
    images = [person.image for person in people]
    registered = Kept()
    started = time.process_time()
    starts = STARTS if flat else STARTS[:2]
    made = [
        build_atlas(images, start=start, iterations=ITERATIONS, registered=registered) for start in starts
    ]
    plain = build_atlas(images, iterations=ITERATIONS, registered=registered, average=euclidean)
    pair = [build_atlas(images[:2], start=start, registered=registered) for start in (0, 1)]
    alone = [single(images, number, registered) for number in range(n)]
    return {
        "subjects": n,
        "seed": seed,
        "spacing_mm": spacing_mm,
        "flat": flat,
        "starts": [described(one) for one in made],
        "euclidean": described(plain),
        "single": alone,
        "apart": [apart(made[0], other) for other in made[1:]],
        "pair_apart": apart(*pair),
        "single_apart": float(np.mean([row["displacement_mm"] for row in alone])),
        "registrations": len(registered.found),
        "registration_cpu_seconds": registered.seconds,
        "cpu_seconds": time.process_time() - started,
    }


def main() -> None:
    result = (
        json.loads(RESULT.read_text())
        if RESULT.is_file()
        else {"data": "simulated", "averages": {}, "cohorts": {}}
    )

    def save() -> None:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")

    for name, options in COHORTS.items():
        if name not in result["cohorts"]:
            result["cohorts"][name] = build(**options)  # type: ignore[arg-type]
            save()
            print(name, round(result["cohorts"][name]["cpu_seconds"]), flush=True)
    for name, measure in AVERAGES.items():
        if name not in result["averages"]:
            result["averages"][name] = measure()
            save()
            print(name, flush=True)


if __name__ == "__main__":
    main()
