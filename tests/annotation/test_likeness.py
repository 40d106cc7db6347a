from __future__ import annotations

import numpy as np
import pytest

from sagittal.annotation import likeness
from sagittal.core.errors import InputError


def heads(count: int, seed: int = 0) -> np.ndarray:
    """Directions near one of many features: their cosines are about 0.8."""
    rng = np.random.default_rng(seed)
    return np.eye(1, 60) * 4 + rng.normal(scale=0.25, size=(count, 60))


def test_what_points_elsewhere_is_unlike_and_nothing_else() -> None:
    odd = np.eye(2, 60, k=5) + heads(2, seed=1) / 8
    told = likeness(np.concatenate([heads(14), odd]))
    assert np.flatnonzero(told.unlike).tolist() == [14, 15]
    assert told.fence is not None
    assert told.typical[14:].max() < told.fence < told.typical[:14].min()


def test_what_is_known_tells_what_is_usual() -> None:
    odd = np.eye(1, 60, k=5) * 4
    assert not likeness(np.concatenate([heads(2), odd])).unlike.any()  # of three nothing is usual
    told = likeness(np.concatenate([heads(2), odd]), heads(20, seed=2))
    assert told.unlike.tolist() == [False, False, True]
    assert told.typical.shape == (3,)


def test_a_median_similarity_by_hand() -> None:
    east, north = [1.0, 0.0], [0.0, 1.0]
    both = [np.sqrt(0.5), np.sqrt(0.5)]
    told = likeness(np.array([east, east, both, north, east]))
    half = (1 + np.sqrt(0.5)) / 2  # of 1, 1, 0.71, 0: the middle two
    np.testing.assert_allclose(told.typical, [half, half, np.sqrt(0.5), 0.0, half])
    assert told.fence is None


def test_never_a_quarter() -> None:
    rng = np.random.default_rng(3)
    for count in (8, 9, 20, 41):
        assert likeness(rng.standard_cauchy((count, 5))).unlike.sum() < count / 4


def test_one_alone_is_like_itself() -> None:
    assert likeness(np.ones((1, 3))).typical.tolist() == [1.0]


def test_numbers_are_needed() -> None:
    with pytest.raises(InputError, match="not finite"):
        likeness(np.full((9, 2), np.nan))
    with pytest.raises(InputError, match="do not fit"):
        likeness(np.ones(3))
