from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sagittal.core.errors import GeometryError
from sagittal.volume import Geometry

angles = st.floats(-math.pi, math.pi)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Random rotation, spacing, permutation, flips, origin."""
    a, b, c = draw(angles), draw(angles), draw(angles)
    about_x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    about_y = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    about_z = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    axes = about_x @ about_y @ about_z
    axes = axes[:, draw(st.permutations([0, 1, 2]))] * draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    spacing = draw(st.tuples(*[st.floats(0.1, 10)] * 3))
    origin = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    shape = draw(st.tuples(*[st.integers(1, 20)] * 3))
    return Geometry.from_spacing(shape, spacing, origin, axes)


@given(geometries())
def test_world_and_index_are_inverse(geometry: Geometry) -> None:
    index = np.array([[0, 0, 0], [1.5, -2, 7], [19, 3, 0.25]])
    assert np.allclose(geometry.world_to_index(geometry.index_to_world(index)), index, atol=1e-8)


@given(geometries())
def test_affine_is_direction_times_spacing(geometry: Geometry) -> None:
    rebuilt = geometry.direction * np.array(geometry.spacing)
    assert np.allclose(rebuilt, geometry.affine[:3, :3], atol=1e-12)
    assert np.allclose(geometry.direction.T @ geometry.direction, np.eye(3), atol=1e-12)
    assert geometry.voxel_volume_ml == pytest.approx(math.prod(geometry.spacing) / 1000)


@given(geometries())
def test_json_and_pickle_give_back_an_equal_geometry(geometry: Geometry) -> None:
    for copy in (Geometry.from_json(geometry.to_json()), pickle.loads(pickle.dumps(geometry))):
        assert copy == geometry
        assert hash(copy) == hash(geometry)
    assert geometry != Geometry(geometry.shape, geometry.affine + _moved(1e-9))


def _moved(distance: float) -> NDArray[Any]:
    change = np.zeros((4, 4))
    change[0, 0] = distance
    return change


@given(geometries())
def test_axis_codes_are_nibabels(geometry: Geometry) -> None:
    nibabel = pytest.importorskip("nibabel")
    weight = np.sort(np.abs(geometry.direction), axis=0)
    if np.min(weight[2] - weight[1]) < 1e-3:  # near a tie either answer is right
        return
    assert geometry.axis_codes == nibabel.aff2axcodes(geometry.affine)


def test_axis_codes_of_a_flipped_and_permuted_grid() -> None:
    affine = np.array([[0, 0, -2.0, 0], [-3.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])
    geometry = Geometry((2, 3, 4), affine)
    assert geometry.axis_codes == ("P", "S", "L")
    assert geometry.spacing == (3.0, 1.0, 2.0)
    assert geometry.extent == (6.0, 3.0, 8.0)


@given(geometries(), st.data())
def test_a_crop_stays_where_it_was(geometry: Geometry, data: st.DataObject) -> None:
    starts = [data.draw(st.integers(0, count - 1)) for count in geometry.shape]
    part = geometry.cropped([slice(start, None) for start in starts])
    assert part.shape == tuple(count - start for count, start in zip(geometry.shape, starts, strict=True))
    assert np.allclose(part.index_to_world((0, 0, 0)), geometry.index_to_world(starts))
    assert np.array_equal(part.affine[:3, :3], geometry.affine[:3, :3])


def test_alignment_is_judged_by_distance_at_the_far_corner() -> None:
    one = Geometry.from_spacing((101, 1, 1))
    other = Geometry.from_spacing((101, 1, 1), (1.0001, 1, 1))
    assert one.is_aligned(other, 0.011)  # 100 voxels on, 0.01 mm apart
    assert not one.is_aligned(other, 0.009)
    assert not one.is_aligned(Geometry.from_spacing((100, 1, 1)), 1e9)


def test_voxel_volume_of_a_sheared_grid() -> None:
    affine = np.diag([1.0, 2.0, 4.0, 1.0])
    affine[1, 2] = 3.0
    assert Geometry((2, 2, 2), affine).voxel_volume_ml == pytest.approx(0.008)


def test_negative_zero_does_not_change_equality() -> None:
    affine = np.eye(4)
    affine[0, 1] = -0.0
    assert hash(Geometry((1, 1, 1), affine)) == hash(Geometry((1, 1, 1), np.eye(4)))


@pytest.mark.parametrize(
    ("affine", "named"),
    [
        (np.diag([1.0, 0.0, 1.0, 1.0]), "singular"),
        (np.diag([1e150, 1e150, 1e150, 1.0]), "too far"),
        (np.array([[1, 2, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "singular"),
        (np.diag([1.0, np.nan, 1.0, 1.0]), "nan"),
        (np.diag([1.0, 1.0, 1.0, 2.0]), r"\[0.0, 0.0, 0.0, 2.0\]"),
        (np.eye(3), r"\(3, 3\)"),
        ("abc", "abc"),
    ],
)
def test_refused_affines(affine: Any, named: str) -> None:
    with pytest.raises(GeometryError, match=named):
        Geometry((2, 2, 2), affine)


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 0), (2, -1, 2), (2, 2.5, 2), "abc", None, (2, 2, 2, 1)])
def test_refused_shapes(shape: Any) -> None:
    with pytest.raises(GeometryError, match="shape") as caught:
        Geometry(shape, np.eye(4))
    assert caught.value.value == shape


def test_a_tiny_but_regular_grid_is_not_singular() -> None:
    assert Geometry.from_spacing((2, 2, 2), (1e-3, 1e-3, 1e-3)).voxel_volume_ml == pytest.approx(1e-12)


@pytest.mark.parametrize(
    "slices",
    [(slice(0, 1),), (slice(0, 2, 2), slice(None), slice(None)), (slice(3, 2), slice(None), slice(None))],
)
def test_refused_crops(slices: Any) -> None:
    with pytest.raises(GeometryError, match="crop"):
        Geometry.from_spacing((4, 4, 4)).cropped(slices)


def test_other_refusals() -> None:
    geometry = Geometry.from_spacing((4, 4, 4))
    with pytest.raises(GeometryError, match=r"\(2,\)"):
        geometry.index_to_world([1, 2])
    with pytest.raises(GeometryError, match="affine"):
        Geometry.from_json({"shape": [1, 1, 1]})
    with pytest.raises(GeometryError, match="spacing"):
        Geometry.from_spacing((1, 1, 1), (1, -1, 1))
    with pytest.raises(ValueError, match="read-only"):
        geometry.affine[0, 0] = 2
