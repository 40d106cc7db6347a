"""What is measured on the modules of evidence/low_dose_ct.py: edges, bars and faint discs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np
from low_dose_data import EDGE_AT, EDGE_RADIUS, EDGES, LINES, SPOTS, lines, spots
from numpy.typing import NDArray

from sagittal.core.errors import InputError
from sagittal.volume import Volume
from sagittal.volume.image_metrics import contrast_recovery, edge_spread_width

__all__ = ["MODULES", "averaged", "width"]


def averaged(images: Sequence[Volume]) -> Volume:
    """Return the mean image: what a method makes of the object, without most of the noise."""
    return images[0].with_array(np.mean([image.array for image in images], axis=0))


def width(images: Sequence[Volume], contrast: float) -> float | None:
    """Return the 10 to 90 % width of the mean image's edge of a contrast, mm; None where nothing rises."""
    way, turns = np.pi * EDGES[contrast], np.linspace(0, 2 * np.pi, 48, endpoint=False)
    out = np.stack([np.cos(turns), np.sin(turns), np.zeros_like(turns)], axis=-1)
    rim = np.array([np.cos(way), np.sin(way), 0.0]) * EDGE_AT + EDGE_RADIUS * out
    try:
        return round(edge_spread_width(averaged(images), rim, out, reach_mm=10.0), 3)
    except (InputError, IndexError):
        return None


def edges(images: Sequence[Volume], truth: Volume) -> dict[str, Any]:
    return {f"{contrast:g} HU": width(images, contrast) for contrast in EDGES}


def bars(images: Sequence[Volume], truth: Volume) -> dict[str, Any]:
    """Return how much higher bars are than their gaps, of what they are on the grid without noise."""
    image = averaged(images)
    found = {}
    for frequency in LINES:
        full = modulation(truth, frequency)
        found[f"{frequency:g} lp/mm"] = round(modulation(image, frequency) / full, 3)
    return found


def modulation(image: Volume, frequency: float) -> float:
    from scipy.ndimage import map_coordinates

    named = lines().named
    group = [named[f"{frequency:g} lp/mm {number}"] for number in range(1, 5)]
    middles = np.array([body.centre for body in group])
    radial = np.array([np.cos(group[0].turn), np.sin(group[0].turn), 0.0])
    along = np.linspace(-1.5, 1.5, 7)[:, None] * radial

    def value(middle: NDArray[np.float64]) -> float:
        index = image.geometry.world_to_index(middle + along)
        return float(map_coordinates(image.array.astype(np.float64), index.T, order=1, mode="nearest").mean())

    gaps = (middles[1:] + middles[:-1]) / 2
    return mean(map(value, middles)) - mean(map(value, gaps))


def discs(images: Sequence[Volume], truth: Volume) -> dict[str, Any]:
    """Return the share of each disc's contrast, of what the grid shows of it: mean and deviation over scans."""
    found = {}
    named = spots().named
    for contrast in SPOTS[0]:
        for diameter in SPOTS[1]:
            name = f"{contrast:g} HU {diameter:g} mm"
            place = {"centre": named[name].centre, "radius": diameter / 2, "contrast": contrast}
            full = contrast_recovery(truth, **place)
            shares = [contrast_recovery(image, **place) / full for image in images]
            found[name] = [round(mean(shares), 3), round(stdev(shares), 3) if len(shares) > 1 else None]
    return found


MODULES: dict[str, Callable[[Sequence[Volume], Volume], dict[str, Any]]] = {
    "edges": edges,
    "line pairs": bars,
    "low contrast": discs,
}
"""What is measured on each module, from its images over scans and what they should be."""
