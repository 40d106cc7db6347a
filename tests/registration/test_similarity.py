from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import InputError
from sagittal.registration.filters import box, gaussian
from sagittal.registration.similarity import SIMILARITIES, correlation, similarity

torch: Any = pytest.importorskip("torch")


def pair(seed: int = 0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    a = gaussian(random.random((9, 8, 7)), (1, 1, 1))
    b = gaussian(random.random((9, 8, 7)), (1, 1, 1)) * 0.5 + 0.5 * a
    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    return tuple(torch.from_numpy(0.1 + 0.8 * (x - low) / (high - low)) for x in (a, b))  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["mean-square", "local-correlation", "correlation"])
def test_the_derivatives_are_right(name: str) -> None:
    measure, (a, b) = {**SIMILARITIES, "correlation": correlation}[name], pair()
    _, d_a, d_b = measure(a, b)
    for place in [(0, 0, 0), (4, 3, 2), (8, 7, 0), (5, 0, 6)]:
        step = torch.zeros_like(a)
        step[place] = 1e-5
        along_a = (measure(a + step, b)[0] - measure(a - step, b)[0]) / 2e-5
        along_b = (measure(a, b + step)[0] - measure(a, b - step)[0]) / 2e-5
        assert np.isclose(float(d_a[place]), along_a, rtol=1e-4, atol=1e-9)
        assert np.isclose(float(d_b[place]), along_b, rtol=1e-4, atol=1e-9)


def test_a_step_against_its_derivative_gives_more_mutual_information() -> None:
    measure, (a, b) = similarity("mutual-information"), pair()
    start, d_a, d_b = measure(a, b)
    far = 0.02 / float(d_a.abs().max())
    assert measure(a - far * d_a, b)[0] < start - 0.01
    assert measure(a, b - far * d_b)[0] < start - 0.01


@pytest.mark.parametrize("name", ["local-correlation", "mutual-information"])
def test_another_contrast_is_as_good(name: str) -> None:
    measure, (a, b) = similarity(name), pair()
    assert measure(a, 1 - a)[0] < measure(a, b)[0] - 0.05
    assert np.isclose(measure(a, 1 - a)[0], measure(a, a)[0], atol=0.02)


@pytest.mark.parametrize("name", [*SIMILARITIES, "correlation"])
def test_threads_do_not_change_a_bit(name: str) -> None:
    measure = {**SIMILARITIES, "correlation": correlation}[name]
    values = torch.from_numpy(np.random.default_rng(1).random((2, 61, 63, 47)).astype(np.float32))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            value, d_a, d_b = measure(values[0], values[1])
            found.append((value, d_a.numpy().tobytes(), d_b.numpy().tobytes()))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_a_gaussian_keeps_what_is_flat_and_its_sum() -> None:
    flat = np.full((9, 1, 4), 2.5)
    assert np.allclose(gaussian(flat, (3, 3, 0.7)), flat)
    point = np.zeros((31, 31, 31))
    point[15, 15, 15] = 1
    smooth = gaussian(point, (2, 1, 0))
    assert np.isclose(smooth.sum(), 1)
    place = np.arange(31) - 15
    assert np.isclose((smooth.sum(axis=(1, 2)) * place**2).sum(), 4, rtol=0.05)
    assert gaussian(np.ones((9, 9, 9)), (1, 1, 1), outside_zero=True)[0, 4, 4] < 0.75


def test_a_box_counts_what_is_within_the_grid() -> None:
    assert box(np.ones((5, 1, 3)), 1)[:, 0, 0].tolist() == [4, 6, 6, 6, 4]


def test_an_unknown_similarity_is_refused() -> None:
    with pytest.raises(InputError, match="mutual-information"):
        similarity("likeness")
