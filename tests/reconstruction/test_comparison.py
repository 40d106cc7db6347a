from __future__ import annotations

import numpy as np
import pytest

from sagittal.core.errors import GeometryError, InputError
from sagittal.reconstruction.comparison import held
from sagittal.volume import Geometry, Volume

pytest.importorskip("scipy")

GRID = Geometry.from_spacing((60, 60, 1), (1, 1, 1))


def truth() -> Volume:
    hu = np.zeros(GRID.shape, np.float32)
    hu[30:] = 1000
    return Volume(hu, GRID, unit="HU")


def noisy(sd: float, said: float) -> Volume:
    noise = sd * np.random.default_rng(0).standard_normal(GRID.shape)
    return Volume(truth().array + noise, GRID, unit="HU", variance=np.full(GRID.shape, said**2))


@pytest.mark.parametrize(("said", "share"), [(10.0, 0.95), (5.0, 0.673), (20.0, 1.0)])
def test_a_right_standard_deviation_holds_19_of_20_voxels(said: float, share: float) -> None:
    assert held(noisy(10, said), truth())["flat"] == pytest.approx(share, abs=0.015)


def test_an_edge_that_is_off_counts_at_the_edge_alone() -> None:
    image = noisy(10, 10)
    moved = image.array.copy()
    moved[30] = 0
    found = held(image.replace(array=moved), truth())
    assert found["flat"] == pytest.approx(0.95, abs=0.015)
    assert found["edge"] == pytest.approx(0.75 * 0.95, abs=0.05)


def test_what_is_not_there_has_no_share() -> None:
    even = truth().replace(array=np.zeros(GRID.shape, np.float32))
    found = held(even.replace(variance=np.ones(GRID.shape)), even)
    assert found == {"flat": 1.0, "edge": None}


def test_an_image_without_a_variance_or_elsewhere_is_refused() -> None:
    with pytest.raises(InputError, match="the image has no variance"):
        held(truth(), truth())
    with pytest.raises(InputError, match="compared in HU"):
        held(noisy(1, 1).replace(unit="1"), truth())
    elsewhere = Geometry.from_spacing(GRID.shape, (1, 1, 1), (5, 0, 0))
    with pytest.raises(GeometryError):
        held(noisy(1, 1).replace(geometry=elsewhere), truth())
