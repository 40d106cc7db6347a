"""Do the tissue volumes' intervals hold the truth, and what do start and stop of the Markov field change?

Two parts, never mixed. Real: the MNI152 T1 template (an average of 152 people) against the grey- and
white-matter maps that come with it, which are themselves estimates. Simulated: images made from those maps
with known amounts, over seeds, with noise, blur and intensity non-uniformity drawn for each seed.
Writes evidence/results/tissue_volumes.json. About 6 minutes on 2 cores.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from statistics import NormalDist, median

import numpy as np
from scipy import ndimage

from sagittal.core import assets
from sagittal.core.randomness import generator
from sagittal.segmentation import TISSUES, MarkovFieldSegmenter, quantity
from sagittal.volume import Volume, read_nifti
from sagittal.volume.metrics import dice

RESULT = Path(__file__).parent / "results" / "tissue_volumes.json"
LEVEL = 0.9
MEANS = {"csf": 55.0, "gm": 140.0, "wm": 205.0}


def independent_interval(p: np.ndarray, size: float) -> tuple[float, float]:
    """The interval if every voxel erred by itself: the rival that is usually printed."""
    spread = NormalDist().inv_cdf(0.5 + LEVEL / 2) * math.sqrt(float((p * (1 - p)).sum())) * size
    value = float(p.sum()) * size
    return value - spread, value + spread


def amounts(tissue: Volume) -> dict[str, dict[str, float]]:
    assert tissue.probabilities is not None
    found = {}
    for index, name in enumerate(TISSUES):
        p = tissue.probabilities[..., index].astype(np.float64)
        m = quantity(p, size=tissue.geometry.voxel_volume_ml, unit="ml", level=LEVEL)
        low, high = independent_interval(p, tissue.geometry.voxel_volume_ml)
        found[name] = {
            "value": m.value,
            "low": m.low,
            "high": m.high,
            "independent_low": low,
            "independent_high": high,
        }
    return found


def real(t1: Volume, maps: dict[str, np.ndarray]) -> dict[str, object]:
    variants = {
        "default": MarkovFieldSegmenter(),
        "stopped after 5 iterations": MarkovFieldSegmenter(iterations=5),
        "run for 60 iterations": MarkovFieldSegmenter(iterations=60, tolerance=0.0),
        "beta 0.5": MarkovFieldSegmenter(beta=0.5),
    }
    rows = []
    for name, method in variants.items():
        tissue = method.segment(t1, seed=0)
        overlap = {k: dice(tissue.array == TISSUES.index(k) + 1, maps[k] > 0.5) for k in ("gm", "wm")}
        rows.append({"variant": name, "amounts": amounts(tissue), "dice": overlap})
        print(name, {k: round(v["value"]) for k, v in amounts(tissue).items()}, overlap, flush=True)
    reference = {k: float(maps[k].sum()) * t1.geometry.voxel_volume_ml for k in ("gm", "wm")}
    return {"rows": rows, "reference_ml": reference}


def simulate(maps: dict[str, np.ndarray], mask: np.ndarray, like: Volume, seed: int) -> tuple[Volume, dict]:
    """A T1-like image at 2 mm from the maps: partial volume, blur, non-uniformity, Rician noise."""
    rng = generator(seed, "tissue-volumes")
    shift = ndimage.zoom(rng.normal(0, 1, (4, 4, 4)), np.array(mask.shape) / 4, order=3)
    shares = {k: np.clip(v, 0, 1) for k, v in maps.items()}
    # Folds of another brain: grey matter thickened or thinned by a smooth random field.
    gain = 1 + rng.uniform(0.05, 0.25) * shift / np.abs(shift).max()
    weighted = {"csf": shares["csf"], "gm": shares["gm"] * gain, "wm": shares["wm"]}
    total = sum(weighted.values()) + 1e-6
    shares = {k: np.where(mask, v / total, 0) for k, v in weighted.items()}
    image = sum(MEANS[k] * (1 + rng.normal(0, 0.03)) * v for k, v in shares.items())
    image = ndimage.gaussian_filter(image, rng.uniform(0.0, 0.5))
    field = ndimage.zoom(rng.normal(0, 1, (3, 3, 3)), np.array(mask.shape) / 3, order=3)
    image = image * (1 + rng.uniform(0.0, 0.06) * field / np.abs(field).max())
    sd = rng.uniform(3, 10)
    image = np.hypot(image + rng.normal(0, sd, mask.shape), rng.normal(0, sd, mask.shape))
    volume = like.with_array(np.where(mask, np.clip(image, 1, None), 0).astype(np.float32), unit="a.u.")
    truth = {k: float(v.sum()) * volume.geometry.voxel_volume_ml for k, v in shares.items()}
    return volume, truth


def simulated(t1: Volume, maps: dict[str, np.ndarray], seeds: int) -> dict[str, object]:
    every_second = tuple(slice(None, None, 2) for _ in range(3))
    coarse = {k: ndimage.uniform_filter(v, 2)[every_second] for k, v in maps.items()}
    mask = (t1.array > 0)[every_second]
    affine = t1.geometry.affine.copy()
    affine[:3, :3] *= 2
    like = Volume(mask.astype(np.uint8), type(t1.geometry)(mask.shape, affine))
    rows = []
    for seed in range(seeds):
        image, truth = simulate(coarse, mask, like, seed)
        found = amounts(MarkovFieldSegmenter().segment(image, seed=seed))
        rows.append({"seed": seed, "truth": truth, "amounts": found})
        print(seed, {k: (round(truth[k]), round(found[k]["value"])) for k in TISSUES}, flush=True)
    summary = {}
    for k in TISSUES:
        inside = [r["amounts"][k]["low"] <= r["truth"][k] <= r["amounts"][k]["high"] for r in rows]
        apart = [
            r["amounts"][k]["independent_low"] <= r["truth"][k] <= r["amounts"][k]["independent_high"]
            for r in rows
        ]
        error = [100 * (r["amounts"][k]["value"] / r["truth"][k] - 1) for r in rows]
        width = [(r["amounts"][k]["high"] - r["amounts"][k]["low"]) / r["truth"][k] for r in rows]
        summary[k] = {
            "covered": sum(inside),
            "covered_independent": sum(apart),
            "median_error_percent": median(error),
            "median_width_share": median(width),
        }
    return {"seeds": seeds, "summary": summary, "rows": rows}


def main(seeds: int = 20) -> None:
    paths = {k: assets.fetch(assets.asset(f"mni152-{k}")) for k in ("t1", "gm", "wm")}
    t1 = read_nifti(paths["t1"])
    maps = {k: read_nifti(paths[k]).array.astype(np.float64) / 255 for k in ("gm", "wm")}
    maps["csf"] = np.where(t1.array > 0, np.clip(1 - maps["gm"] - maps["wm"], 0, 1), 0)
    result = {"level": LEVEL, "real": real(t1, maps), "simulated": simulated(t1, maps, seeds)}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
