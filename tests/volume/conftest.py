from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sagittal.volume import Geometry, Volume

OBLIQUE = [
    [0.6, -0.48, 1.28, -101.25],
    [0.8, 0.36, -0.96, 33.125],
    [0.0, 0.8, 1.2, 1 / 3],
    [0.0, 0.0, 0.0, 1.0],
]


@pytest.fixture
def geometry() -> Geometry:
    """Oblique, anisotropic, right-handed, with perpendicular axes."""
    return Geometry((6, 5, 4), np.array(OBLIQUE))


@pytest.fixture
def volume(geometry: Geometry) -> Volume:
    random = np.random.default_rng(7)
    probabilities = random.dirichlet([1.0, 1.0, 1.0], size=geometry.shape).astype(np.float32)
    return Volume(
        random.integers(-1000, 2000, geometry.shape).astype(np.int16),
        geometry,
        unit="HU",
        variance=random.random(geometry.shape),
        probabilities=probabilities,
        classes=("background", "liver", "tumour"),
        facts={"modality": "CT", "kvp": 120},
    )


def pydicom_file(name: str) -> Path:
    """A real file that pydicom carries in its package (never downloaded)."""
    data = pytest.importorskip("pydicom.data")
    path = data.get_testdata_file(name, download=False)
    assert path is not None, name
    return Path(path)


@pytest.fixture
def dicom_file() -> Callable[[str], Path]:
    return pydicom_file


@pytest.fixture
def nibabel_file() -> Callable[[str], Path]:
    nibabel: Any = pytest.importorskip("nibabel")

    def find(name: str) -> Path:
        return Path(nibabel.__file__).parent / "tests" / "data" / name

    return find
