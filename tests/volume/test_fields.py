from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from known_fields import bump, centred, on_grid, swirl, turn
from sagittal.core.errors import GeometryError, InputError
from sagittal.volume import DisplacementField, Geometry, Volume, resample, warp

OBLIQUE = turn(0.5, 0.3)
LEFT_HANDED = OBLIQUE @ np.diag([-1.0, 1, 1])
GRID = centred((25, 21, 13), (1.5, 2, 3), LEFT_HANDED)


def ramp(geometry: Geometry) -> Volume:
    """A linear function of the place, which linear interpolation gives back."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), axis=-1)
    return Volume(geometry.index_to_world(index) @ [1.0, -2.0, 0.5] + 7, geometry)


def test_vectors_are_kept_safe_and_known_by_their_content() -> None:
    vectors = np.zeros((3, 4, 5, 6), dtype=np.float32)
    grid = Geometry.from_spacing((4, 5, 6))
    field = DisplacementField(vectors, grid)
    before = field.content_hash
    vectors += 1
    assert float(field.vectors.max()) == 0
    with pytest.raises(ValueError, match="read-only"):
        field.vectors[0, 0, 0, 0] = 1
    assert DisplacementField(vectors, grid).content_hash != before
    assert pickle.loads(pickle.dumps(field)).content_hash == before


def test_what_is_no_field_is_refused() -> None:
    grid = Geometry.from_spacing((4, 5, 6))
    with pytest.raises(GeometryError, match=r"\(4, 5, 6, 3\).*\(3, 4, 5, 6\)"):
        DisplacementField(np.zeros((4, 5, 6, 3)), grid)
    broken = np.zeros((3, 4, 5, 6))
    broken[1, 2, 3, 4] = np.nan
    with pytest.raises(InputError, match=r"not finite.*\(1, 2, 3, 4\)"):
        DisplacementField(broken, grid)
    with pytest.raises(InputError, match="not an affine"):
        DisplacementField.from_affine(np.eye(3), grid)


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_the_image_is_looked_up_where_the_map_leads(interpolation: Any) -> None:
    image = ramp(centred((90, 60, 44), (1.2, 1.9, 2.4), OBLIQUE.T))
    field = on_grid(swirl, GRID)
    found = field.warp(image, interpolation)
    expected = ramp(GRID).array + np.tensordot([1.0, -2.0, 0.5], field.vectors, 1)
    assert found.geometry == GRID
    assert np.allclose(found.array, expected, atol=1e-9 if interpolation == "linear" else 1e-3)


def test_no_motion_is_resampling() -> None:
    random = np.random.default_rng(2)
    source = Geometry.from_spacing((12, 11, 10), (2, 2, 3), (-10, -12, -9))
    image = Volume(random.integers(-900, 900, source.shape).astype(np.int16), source, unit="HU")
    image = image.replace(variance=random.random(source.shape))
    for interpolation in ("nearest", "linear", "cubic"):
        found = warp(image, DisplacementField.identity(GRID), interpolation)
        plain = resample(image, GRID, interpolation)
        assert found.array.dtype == plain.array.dtype
        assert np.allclose(found.array, plain.array, atol=1e-2)
        assert found.array[0, 0, 0] == -1024
        assert found.variance is not None
        assert plain.variance is not None
        assert np.allclose(found.variance, plain.variance)


def test_labels_keep_their_values_and_get_smoother_edges() -> None:
    fine = centred((64, 64, 1), (1, 1, 1), np.eye(3))
    coarse = centred((16, 16, 1), (4, 4, 1), np.eye(3))
    field = DisplacementField.identity(fine)
    index = np.indices((16, 16, 1))
    disc = np.hypot(index[0] - 7.5, index[1] - 7.5) < 5.2
    labels = Volume(np.where(disc, 40000, 3).astype(np.uint16), coarse)
    inside = np.hypot(*(np.indices((64, 64)) - 31.5)) / 4 < 5.2
    wrong = {}
    for how in ("nearest", "label"):
        found = field.warp(labels, how)  # type: ignore[arg-type]
        assert found.array.dtype == np.uint16
        assert set(np.unique(found.array)) == {3, 40000}
        wrong[how] = np.count_nonzero((found.array[..., 0] == 40000) != inside)
    assert wrong["label"] < wrong["nearest"]


def test_labels_that_are_fractions_are_refused() -> None:
    image = Volume(np.full(GRID.shape, 1.5), GRID)
    with pytest.raises(InputError, match="whole numbers"):
        warp(image, DisplacementField.identity(GRID), "label")


def test_a_map_that_misses_the_image_is_refused() -> None:
    away = DisplacementField(np.full((3, *GRID.shape), 500.0), GRID)
    with pytest.raises(GeometryError, match="nowhere into the image"):
        away.warp(ramp(GRID))


def test_maps_on_different_grids_compose_in_space() -> None:
    matrix = np.eye(4)
    matrix[:3] = [[1.1, 0.2, 0, 3], [-0.1, 0.9, 0.05, 0], [0, 0.1, 1.2, -1]]
    outer = DisplacementField.from_affine(matrix, centred((40, 40, 40), (3, 3, 3), OBLIQUE.T))
    shift = np.eye(4)
    shift[:3, 3] = [4, -3, 2]
    found = outer.compose(DisplacementField.from_affine(shift, GRID))
    assert np.allclose(found.vectors, DisplacementField.from_affine(matrix @ shift, GRID).vectors)


def test_a_slice_and_a_volume_do_not_compose() -> None:
    flat = DisplacementField.identity(centred((9, 9, 1), (2, 2, 2), np.eye(3)))
    assert flat.is_planar
    with pytest.raises(GeometryError, match="out of the slice"):
        flat.compose(DisplacementField.identity(centred((9, 9, 9), (2, 2, 2), np.eye(3))))


@pytest.mark.parametrize("direction", [np.eye(3), LEFT_HANDED])
def test_an_inverse_leads_back(direction: Any) -> None:
    grid = centred((33, 33, 17), (1, 1, 2), direction)
    field = on_grid(lambda p: bump(5, (16, 16, 16), 5)(p @ direction), grid)
    assert 0 < field.determinant.min() < 0.7
    inverse = field.invert(tolerance_mm=1e-4)
    assert not inverse.failed.any()
    assert inverse.residual_mm.max() <= 1e-4
    assert field.compose(inverse.field).magnitude.max() <= 1e-4
    assert inverse.field.compose(field).magnitude.max() < 0.2  # linear between voxels, where the map is not


def test_an_oblique_slice_is_inverted_in_its_plane() -> None:
    grid = centred((41, 37, 1), (1, 1.2, 6), LEFT_HANDED)
    smooth = bump(6, (20, 21.6, 3), 2)
    field = on_grid(lambda p: (smooth(p @ LEFT_HANDED) * [1, 1, 0]) @ LEFT_HANDED.T, grid)
    inverse = field.invert(tolerance_mm=1e-4)
    assert field.magnitude.max() > 1.5
    assert not inverse.failed.any()
    assert field.compose(inverse.field).magnitude.max() <= 1e-4
    assert np.allclose(LEFT_HANDED[:, 2] @ inverse.field.vectors.reshape(3, -1), 0)


def test_a_map_that_enlarges_threefold_is_inverted() -> None:
    matrix = np.diag([3.0, 2.8, 1.0, 1.0])
    field = DisplacementField.from_affine(matrix, centred((17, 17, 9), (1, 1, 1), np.eye(3)))
    inverse = field.invert(tolerance_mm=1e-6)
    wanted = DisplacementField.from_affine(np.linalg.inv(matrix), field.geometry)
    assert not inverse.failed.any()
    assert np.allclose(inverse.field.vectors, wanted.vectors, atol=1e-5)


def test_where_there_is_no_inverse_is_said() -> None:
    grid = centred((33, 9, 9), (1, 1, 1), np.eye(3))
    pulled = lambda p: p * [1, 0, 0] * -4 * np.exp(-((p[..., :1] / 2) ** 2))  # noqa: E731
    field = on_grid(pulled, grid)
    assert field.folds > 0
    failed = field.invert().failed
    assert failed[14:19].all()
    assert not failed[:6].any()
    assert not failed[-6:].any()


def test_voxels_that_come_from_beyond_the_grid_are_named() -> None:
    vectors = np.zeros((3, 10, 4, 4))
    vectors[0] = 2.0
    inverse = DisplacementField(vectors, Geometry.from_spacing((10, 4, 4))).invert()
    assert inverse.beyond[:2].all()
    assert not inverse.beyond[2:].any()
    assert np.allclose(inverse.field.vectors, -vectors)


def test_the_summary_holds_what_is_known() -> None:
    vectors = np.zeros((3, 5, 5, 5))
    vectors[0] = 3.0
    vectors[1] = -4.0
    told = DisplacementField(vectors, Geometry.from_spacing((5, 5, 5))).summary()
    assert told["mean_mm"] == told["max_mm"] == 5.0
    assert told["folds"] == 0
    assert told["jacobian_mean"] == 1.0
    assert told["log_jacobian_mean"] == told["curl_max"] == 0.0


def test_nothing_of_this_needs_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None; import sagittal.volume as v, numpy as n; "
        "g = v.Geometry.from_spacing((5, 5, 5)); f = v.DisplacementField.identity(g); "
        "f.compose(f.exponentiate()).invert(); f.curl(); print(f.folds, f.warp(f.jacobian()).array.min())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1.0"]
