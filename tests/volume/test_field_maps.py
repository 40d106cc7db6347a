from __future__ import annotations

import numpy as np
import pytest

from known_fields import bump, centred, on_grid, swirl, turn
from sagittal.core.errors import InputError
from sagittal.volume.field_calculus import jacobian_determinant
from sagittal.volume.field_maps import compose, exponentiate, most_common, places, sample

OBLIQUE = centred((15, 13, 9), (1.2, 1.0, 2.0), turn(0.5, 0.3) @ np.diag([-1.0, 1, 1]))


def test_torch_samples_as_numpy_does() -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(3)
    values, index = random.random((2, 3, 5, 6, 7)), random.uniform(-1, 8, (2, 3, 4, 3, 2))
    found = sample(torch.from_numpy(values), torch.from_numpy(index))
    assert np.allclose(found.numpy(), sample(values, index), atol=1e-12)
    one = sample(torch.from_numpy(values[0]), torch.from_numpy(index[0]))
    assert np.allclose(one.numpy(), sample(values, index)[0], atol=1e-12)


def test_torch_samples_one_slice() -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(3)
    values, index = random.random((5, 6, 1)), random.uniform(0, 4, (3, 5, 6, 1))
    found = sample(torch.from_numpy(values), torch.from_numpy(index))
    assert np.allclose(found.numpy(), sample(values, index), atol=1e-12)


def test_torch_composes_and_exponentiates_as_numpy_does() -> None:
    torch = pytest.importorskip("torch")
    u, v = on_grid(swirl, OBLIQUE).vectors, on_grid(bump(3, (12, 10, 12), 1), OBLIQUE).vectors
    a, b = torch.from_numpy(u.copy()), torch.from_numpy(v.copy())
    affine = OBLIQUE.affine
    assert np.allclose(compose(a, b, affine).numpy(), compose(u, v, affine), atol=1e-9)
    assert np.allclose(exponentiate(b, affine).numpy(), exponentiate(v, affine), atol=1e-9)


def test_the_gradient_through_an_exponential_is_right() -> None:
    torch = pytest.importorskip("torch")
    grid = centred((4, 4, 3), (1.2, 1.0, 2.0), turn(0.5, 0.3))
    velocity = torch.from_numpy(on_grid(bump(0.7, (3, 3, 4), 2), grid).vectors.copy()).requires_grad_()
    image = torch.rand(4, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def warped(v: object) -> object:
        moved = exponentiate(v, grid.affine, 2)
        return sample(image, places(moved, grid.affine)) + jacobian_determinant(moved, grid.affine)

    assert torch.autograd.gradcheck(warped, (velocity,), eps=1e-7, atol=1e-5)


def test_an_exponential_is_undone_by_that_of_the_negative() -> None:
    axes, smooth, left = turn(0.5, 0.3), bump(8, (20, 20, 20), 4), []
    for fine in (1, 2):
        grid = centred((40 * fine + 1, 40 * fine + 1, 20 * fine + 1), np.array([1, 1, 2]) / fine, axes)
        velocity = on_grid(lambda p: smooth(p @ axes) @ axes.T, grid).vectors
        there, back = exponentiate(velocity, grid.affine), exponentiate(-velocity, grid.affine)
        assert np.linalg.norm(there, axis=0).max() > 3
        left.append(float(np.linalg.norm(compose(back, there, grid.affine), axis=0).max()))
    assert left[1] < 0.03
    assert left[1] < left[0] / 2.5  # what is left is the interpolation's


def test_a_velocity_that_is_the_same_everywhere_is_a_shift() -> None:
    velocity = np.tile(np.array([1.0, -2.0, 0.5]).reshape(3, 1, 1, 1), (1, *OBLIQUE.shape))
    assert np.allclose(exponentiate(velocity, OBLIQUE.affine), velocity)


def test_the_exponential_of_a_turn_is_a_turn() -> None:
    grid = centred((31, 31, 1), (1, 1, 1), np.eye(3))
    angle = 0.3
    velocity = on_grid(lambda p: np.stack([-angle * p[..., 1], angle * p[..., 0], 0 * p[..., 0]], -1), grid)
    turned = on_grid(lambda p: p @ turn(angle, 0).T - p, grid)
    inner = np.s_[:, 8:-8, 8:-8]
    found = exponentiate(velocity.vectors, grid.affine)
    assert np.abs(found - turned.vectors)[inner].max() < 0.01


def test_a_label_goes_to_the_largest_share() -> None:
    labels = np.array([7, 7, 300, 2]).reshape(2, 2, 1)
    index = np.array([[0.4, 0.6, 0.6], [0.5, 0.2, 0.9], [0, 0, 0]]).reshape(3, 3, 1, 1)
    assert most_common(labels, index).ravel().tolist() == [7, 300, 2]


def test_indices_of_another_batch_are_refused() -> None:
    with pytest.raises(InputError, match="do not belong"):
        sample(np.zeros((2, 3, 4, 4, 4)), np.zeros((3, 3, 4, 4, 4)))
    with pytest.raises(InputError, match="squarings"):
        exponentiate(np.zeros((3, 4, 4, 4)), np.eye(4), -1)
