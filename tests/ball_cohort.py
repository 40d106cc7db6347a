"""The simulated cohort of evidence/cohort.py on a ball of tissues, in place of the template."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sagittal.volume import Geometry

__all__ = ["EVIDENCE", "ball", "ball_cohort"]

EVIDENCE = Path(__file__).parents[1] / "evidence"


def ball() -> tuple[Any, Any, Any, Geometry]:
    """White matter in a shell of grey matter in one of fluid: T1 image, shares, masks, grid."""
    from scipy import ndimage

    shape, affine = (40, 48, 40), np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [-78.0, -94.0, -78.0]
    grid = Geometry(shape, affine)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    far = np.linalg.norm(grid.index_to_world(index) / [60.0, 75.0, 60.0], axis=-1)
    masks = np.stack([(far < 1) & (far >= 0.9), (far < 0.9) & (far >= 0.6), far < 0.6]).astype(np.float32)
    shares = ndimage.gaussian_filter(masks, (0, 1, 1, 1))  # borders as soft as those of an average
    return np.tensordot(np.float32([0.25, 0.62, 0.9]), shares, 1), shares, masks, grid


@contextmanager
def ball_cohort() -> Iterator[ModuleType]:
    """The simulator on the ball; scripts beside it can be imported meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EVIDENCE))
        module = importlib.import_module("cohort")
        t1, shares, _, grid = ball()
        module._maps.cache_clear()
        patch.setattr(module, "_whole", lambda: (t1, shares, grid))
        yield module
        module._maps.cache_clear()
