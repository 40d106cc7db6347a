from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from known_fields import centred, on_grid, swirl, swirl_curl, swirl_determinant, turn
from sagittal.core.errors import InputError
from sagittal.volume import DisplacementField, Geometry
from sagittal.volume.field_calculus import curl, jacobian_determinant, log_jacobian

IDENTITY = np.eye(3)
FLIPPED = np.diag([-1.0, -1.0, 1.0])  # as ITK and most scanners count
LEFT_HANDED = np.diag([-1.0, 1.0, 1.0])
SWAPPED = np.eye(3)[[2, 0, 1]]
OBLIQUE = turn(0.6, -0.4)
SHEARED = OBLIQUE @ np.array([[1, 0, 0.2], [0, 1, 0], [0, 0, np.sqrt(0.96)]])
GRIDS = {
    "plain": centred((21, 21, 21), (1, 1, 1), IDENTITY),
    "flipped": centred((21, 21, 21), (1, 1, 1), FLIPPED),
    "left-handed": centred((21, 25, 21), (1, 0.8, 1), LEFT_HANDED),
    "swapped axes": centred((21, 21, 21), (1, 1, 1), SWAPPED),
    "oblique and anisotropic": centred((31, 25, 13), (0.7, 0.9, 2), OBLIQUE),
    "oblique and left-handed": centred((31, 25, 13), (0.7, 0.9, 2), OBLIQUE @ LEFT_HANDED),
    "tilted gantry": centred((25, 25, 15), (0.9, 0.9, 1.5), SHEARED),
    "ten times coarser": centred((41, 41, 5), (0.3, 0.3, 3), IDENTITY),
}


def points(geometry: Geometry) -> Any:
    return geometry.index_to_world(np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), -1))


@pytest.mark.parametrize("name", GRIDS)
def test_one_map_has_one_jacobian_and_one_curl_on_every_grid(name: str) -> None:
    grid = GRIDS[name]
    field = on_grid(swirl, grid)
    inner = (slice(1, -1),) * 3
    assert np.abs(field.determinant - swirl_determinant(points(grid)))[inner].max() < 1e-3
    assert np.abs(np.moveaxis(field.curl(), 0, -1) - swirl_curl(points(grid)))[inner].max() < 1e-3
    assert np.abs(swirl_determinant(points(grid)) - 1).max() > 0.1  # what is compared is not flat


@pytest.mark.parametrize("name", GRIDS)
def test_an_affine_map_has_its_determinant_in_every_voxel(name: str) -> None:
    matrix = np.eye(4)
    matrix[:3] = [[1.1, 0.2, 0, 3], [-0.1, 0.9, 0.05, 0], [0, 0.3, 1.2, -1]]
    field = DisplacementField.from_affine(matrix, GRIDS[name])
    assert np.allclose(field.determinant, np.linalg.det(matrix), atol=1e-9)
    assert np.allclose(field.curl(), np.array([0.25, 0.0, -0.3]).reshape(3, 1, 1, 1), atol=1e-9)


@pytest.mark.parametrize("direction", [IDENTITY, FLIPPED, LEFT_HANDED])
def test_a_small_turn_about_the_long_axis_has_twice_its_angle_as_curl(direction: Any) -> None:
    matrix = np.eye(4)
    matrix[:3, :3] = turn(0.05, 0)
    field = DisplacementField.from_affine(matrix, centred((5, 6, 7), (1, 2, 3), direction))
    assert np.allclose(field.curl()[2], 2 * np.sin(0.05))
    assert np.allclose(field.curl()[:2], 0)


@pytest.mark.parametrize("direction", [IDENTITY, FLIPPED, OBLIQUE, OBLIQUE @ LEFT_HANDED])
def test_a_slice_is_a_plane_problem(direction: Any) -> None:
    grid = centred((9, 8, 1), (1, 2, 5), direction)
    plane = np.array([[1.2, 0.3, 0], [-0.1, 0.8, 0], [0, 0, 0.5]])  # what it does across is not seen
    matrix = np.eye(4)
    matrix[:3, :3] = direction @ plane @ np.linalg.inv(direction)
    field = DisplacementField.from_affine(matrix, grid)
    across = np.linalg.det(direction) * direction[:, 2]
    assert np.allclose(field.determinant, 1.2 * 0.8 + 0.1 * 0.3)
    assert np.allclose(field.curl(), (-0.4 * across).reshape(3, 1, 1, 1))


def test_a_fold_is_counted_where_it_is() -> None:
    grid = centred((9, 5, 5), (1, 1, 1), FLIPPED)
    field = DisplacementField.from_affine(np.eye(4), grid)
    vectors = field.vectors.copy()
    vectors[0, 4] = -3.0  # a step along the first axis leads 1 mm to the left
    found = DisplacementField(vectors, grid)
    assert found.folds == 25
    assert (found.determinant[5] == -0.5).all()
    assert (found.determinant[3] == 2.5).all()
    assert np.isclose(found.log_jacobian().array[5, 0, 0], np.log(1e-3))


def test_torch_gives_the_same_and_a_gradient() -> None:
    torch = pytest.importorskip("torch")
    grid = GRIDS["oblique and left-handed"]
    vectors = on_grid(swirl, grid).vectors
    tensor = torch.from_numpy(vectors.copy()).requires_grad_()
    batch = torch.stack([tensor, 2 * tensor])
    found = jacobian_determinant(batch, grid.affine)
    assert np.allclose(found[0].detach().numpy(), jacobian_determinant(vectors, grid.affine), atol=1e-12)
    assert np.allclose(found[1].detach().numpy(), jacobian_determinant(2 * vectors, grid.affine), atol=1e-12)
    turned = curl(tensor, grid.affine)
    assert np.allclose(turned.detach().numpy(), curl(vectors, grid.affine), atol=1e-12)
    (turned**2).sum().backward()
    assert float(tensor.grad.abs().max()) > 0


def test_the_gradient_of_the_log_jacobian_is_right() -> None:
    torch = pytest.importorskip("torch")
    grid = centred((4, 3, 3), (0.7, 0.9, 2), OBLIQUE)
    tensor = torch.from_numpy(on_grid(swirl, grid).vectors.copy()).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: log_jacobian(u, grid.affine), (tensor,))
    assert torch.autograd.gradcheck(lambda u: curl(u, grid.affine), (tensor,))


def test_what_is_no_field_is_refused() -> None:
    with pytest.raises(InputError, match="not a field of vectors"):
        curl(np.zeros((4, 4, 4, 3)), np.eye(4))
    with pytest.raises(InputError, match="floor"):
        log_jacobian(np.zeros((3, 4, 4, 4)), np.eye(4), floor=0)
