"""What a simulated image has to suffer before it looks unlike the others, as the guide tells it."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ball_cohort import ball_cohort
from sagittal.annotation import likeness, thumbnail

ndimage = pytest.importorskip("scipy.ndimage")

SPACING = 8.0


@pytest.fixture(scope="module")
def cohort() -> Iterator[ModuleType]:
    with ball_cohort() as module:
        yield module


@pytest.fixture(scope="module")
def heads(cohort: ModuleType) -> list[Any]:
    return list(cohort.subjects(11, seed=41, spacing_mm=SPACING))


def look(image: Any, mask: Any) -> Any:
    return thumbnail(np.where(mask, image, 0), mask)


def found(heads: list[Any], image: Any, mask: Any) -> bool:
    """Return whether one image among ten heads is unlike them."""
    usual = [look(one.image.array, one.labels.array > 0) for one in heads[:10]]
    return bool(likeness(np.stack([*usual, look(image, mask)])).unlike[-1])


def test_spoilt_heads_look_unlike_the_others_and_blurred_ones_do_not(
    cohort: ModuleType, heads: list[Any]
) -> None:
    image, mask = heads[10].image.array.astype(np.float64), heads[10].labels.array > 0
    shape, height = image.shape, np.indices(image.shape)[2]
    flair = cohort.subjects(11, seed=41, spacing_mm=SPACING, kind="FLAIR")[10].image.array
    spoilt = {
        "a ghost": 0.6 * image + 0.5 * np.roll(image, shape[1] // 4, 1),
        "a cut field of view": image * (height > 0.35 * shape[2]),
        "another contrast": flair,
        "a strong shading": image * (0.2 + 1.6 * np.indices(shape)[0] / shape[0]),
    }
    assert [name for name, one in spoilt.items() if not found(heads, one, mask)] == []
    usual = {
        "itself": image,
        "blur": ndimage.gaussian_filter(image, 0.8),
    }
    assert [name for name, one in usual.items() if found(heads, one, mask)] == []
