"""Small heads with three tissues, of which a training of seconds learns something."""

from __future__ import annotations

import numpy as np

from sagittal.segmentation import LabelledImage, NetworkConfig

PLANE = NetworkConfig(dimensions=2, width=4, depth=2, patch=(32, 24))
SPACE = NetworkConfig(dimensions=3, width=2, depth=1, patch=(16, 16, 8))


def head(seed: int, shape: tuple[int, int, int] = (32, 24, 4), noise: float = 0.1) -> LabelledImage:
    """A shell of CSF (1), a ribbon of GM (2) and WM (3) within, as bright as on T1."""
    random = np.random.default_rng(seed)
    size = np.array(shape)
    centre = (size - 1) / 2 + random.uniform(-1, 1, 3) * (size > 8)
    reach = size * random.uniform(0.42, 0.48)
    away = np.sqrt(sum(((x - c) / r) ** 2 for x, c, r in zip(np.indices(shape), centre, reach, strict=True)))
    labels = np.where(away < 0.55, 3, np.where(away < 0.85, 2, np.where(away < 1, 1, 0)))
    image = np.array([0, 0.25, 0.62, 0.9])[labels] + noise * random.standard_normal(shape)
    mask = labels > 0
    return LabelledImage(
        channels=(image * mask)[None].astype(np.float32), labels=labels, mask=mask, subject=f"head {seed}"
    )


def dice(labels: np.ndarray, truth: np.ndarray) -> list[float]:
    """Of each of the three tissues."""
    found = []
    for value in (1, 2, 3):
        a, b = labels == value, truth == value
        found.append(2 * float((a & b).sum()) / float(a.sum() + b.sum()))
    return found
