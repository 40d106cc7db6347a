from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from known_fields import bump, centred, on_grid, turn
from sagittal.core.errors import GeometryError, InputError
from sagittal.registration import atlas, average_transformation, build_atlas, mean_affine, register
from sagittal.registration.atlas import Atlas, gradient_energy, jacobian_average
from sagittal.volume import DisplacementField, Geometry, Volume

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("one_thread")

PLANE = centred((34, 36, 1), (2.5, 2.5, 2.5), np.eye(3))
SPACE = centred((20, 22, 20), (4, 4, 4), np.eye(3))
BIG = centred((28, 30, 28), (3, 3, 3), np.eye(3))


def shade(points: Any) -> Any:
    """A body of three shades, seen at points in mm; a slice of it where z is 0."""
    x, y, z = np.moveaxis(points, -1, 0)
    found = 100.0 / (1 + np.exp(np.hypot(np.hypot(x / 30, y / 34), z / 28) * 20 - 20))
    found += 60 / (1 + np.exp(np.hypot(np.hypot(x - 10, y - 4), z) - 10))
    found -= 70 / (1 + np.exp(np.hypot(np.hypot(x + 8, y + 10), z) - 9))
    return found


def core(points: Any) -> Any:
    x, y, z = np.moveaxis(points, -1, 0)
    return 2 * (np.hypot(np.hypot(x - 10, y - 4), z) < 10) + 5 * (np.hypot(np.hypot(x + 8, y + 10), z) < 9)


def person(
    seed: int, grid: Geometry, peak: float = 9.0, what: Any = shade, dtype: Any = np.float32, modes: int = 2
) -> Volume:
    """The body, bent by a displacement of its own, on any grid."""
    smooth = bump(peak, (48, 48, 48), seed, modes)
    points = grid.index_to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1))
    flat = [1, 1, 0 if grid.shape[2] == 1 else 1]
    return Volume(np.asarray(what(points + smooth(points) * flat), dtype=dtype), grid)


def quick(moving: Volume, fixed: Volume) -> Any:
    return register(moving, fixed, iterations=(20, 12))


def body(image: Volume) -> Any:
    return image.array > 0.2 * image.array.max()


def apart(a: Atlas, b: Atlas) -> float:
    """Mean distance between where two atlases say that a point lies in each subject."""
    seen = body(a.image)
    pairs = zip(a.fields, b.fields, strict=True)
    return float(
        np.mean(
            [
                np.linalg.norm(one.vectors - two.resample(one.geometry).vectors, axis=0)[seen].mean()
                for one, two in pairs
                if one is not None and two is not None
            ]
        )
    )


@pytest.mark.parametrize("n", [2, 4])
def test_the_atlas_does_not_depend_on_the_start(n: int) -> None:
    people = [person(seed, PLANE) for seed in range(n)]
    a, b = (build_atlas(people, start=start, registered=quick) for start in (0, n - 1))
    between = np.linalg.norm(b.fields[0].vectors, axis=0).mean()  # type: ignore[union-attr]
    assert apart(a, b) < min(0.5, between)
    brought = DisplacementField.identity(a.image.geometry).warp(b.image).array
    seen = body(a.image)
    assert np.abs(brought - a.image.array)[seen].mean() < 0.02


def test_the_atlas_is_nearer_to_all_than_its_start() -> None:
    people = [person(seed, SPACE) for seed in range(3)]
    made = build_atlas(people, registered=quick, iterations=2)
    assert made.centred.displacement_mm < 0.85 * made.rounds[0].displacement_mm
    assert made.rounds[1].moved_mm < 0.5 * made.rounds[0].moved_mm
    assert abs(made.centred.log_jacobian) < 0.02


def test_two_opposite_deformations_have_the_undeformed_in_their_middle() -> None:
    people = [person(6, PLANE, peak) for peak in (6.0, -6.0)]
    made = build_atlas(people, registered=quick)
    plain = Volume(
        np.asarray(shade(made.image.geometry.index_to_world(index_of(made.image.geometry))), np.float32),
        made.image.geometry,
    )
    wanted = plain.array / plain.array.max()
    error = np.abs(made.image.array - wanted).mean()
    start = np.abs(DisplacementField.identity(plain.geometry).warp(people[0]).array / 160 - wanted).mean()
    assert error < 0.4 * start


def index_of(grid: Geometry) -> Any:
    return np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)


def test_the_atlas_is_sharper_than_the_mean_after_affine_maps() -> None:
    people = [person(seed, PLANE, 16, modes=4) for seed in range(4)]
    made = build_atlas(people, registered=quick)
    assert gradient_energy(made.image) > gradient_energy(made.plain)
    assert made.image.variance is not None
    assert made.plain.variance is not None
    assert made.image.variance.mean() < 0.5 * made.plain.variance.mean()


def test_oblique_left_handed_and_coarser_grids_give_the_same_atlas() -> None:
    half = 0.4, 0.2
    grids = [
        BIG,
        centred((28, 30, 28), (3, 3, 3), turn(*half) @ np.diag([-1.0, 1, 1])),
        centred((26, 28, 20), (3.5, 3.5, 4.5), np.eye(3)[[1, 2, 0]]),
    ]
    coarse = Geometry.from_spacing((26, 28, 26), (3.5, 3.5, 3.5), (-44, -47, -44))
    same = [person(seed, BIG) for seed in range(3)]
    other = [person(seed, grid) for seed, grid in enumerate(grids)]
    a, b = (
        build_atlas(
            people,
            iterations=1,
            registered=lambda m, f: register(m, f, iterations=(20, 12), finest_mm=4.0, affine=np.eye(4)),
        )
        for people in (same, other)
    )
    assert a.image.geometry.is_aligned(b.image.geometry, 2.0)
    assert apart(a, b) < 0.5
    moved = max(np.linalg.norm(field.resample(coarse).vectors, axis=0).mean() for field in a.fields if field)
    assert moved > 1.0


def test_poses_are_averaged_too() -> None:
    grid = PLANE
    still = person(0, grid, 0.0)
    matrix = np.eye(4)
    matrix[:2, :2] = turn(0.3, 0)[:2, :2]
    matrix[:2, 3] = 8, -4
    turned = Volume(person(0, grid, 2.0).array, Geometry(grid.shape, matrix @ grid.affine))
    made = build_atlas([still, turned], registered=quick, iterations=1)
    first, second = made.fields
    assert first is not None
    assert second is not None
    middle = made.image.geometry.world_to_index(mean_affine([np.eye(4), matrix])[:3, 3])
    place = tuple(round(float(index)) for index in middle)
    lengths = [np.linalg.norm(field.vectors[(slice(None), *place)]) for field in (first, second)]
    assert lengths[0] == pytest.approx(lengths[1], abs=1.0)
    assert lengths[0] + lengths[1] == pytest.approx(np.hypot(8, 4), abs=2.0)


def test_labels_become_shares_of_the_subjects() -> None:
    people = [person(seed, PLANE) for seed in range(3)]
    labels = [person(seed, PLANE, what=core, dtype=np.uint8) for seed in range(3)]
    made = build_atlas(people, labels=labels, registered=quick, iterations=2)
    assert made.labels is not None
    assert made.labels.probabilities is not None
    assert made.labels.classes == ("2", "5")
    assert made.labels.array.dtype == np.uint8
    sizes = [np.count_nonzero(one.array == 5) for one in labels]
    assert min(sizes) * 0.9 <= np.count_nonzero(made.labels.array == 5) <= max(sizes) * 1.1
    share = made.labels.probabilities[..., 1]
    assert share.sum() == pytest.approx(np.mean(sizes), rel=0.1)
    assert (share > 0.99).sum() > 0.5 * min(sizes)


def test_a_failed_registration_is_left_out_and_told() -> None:
    people = [person(seed, PLANE) for seed in range(3)]

    def failing(moving: Volume, fixed: Volume) -> Any:
        found = quick(moving, fixed)
        wrong = np.allclose(moving.array, people[2].array / people[2].array.max(), atol=0.02)
        return SimpleNamespace(
            field=found.field, affine=found.affine, problems=("it folds",) if wrong else ()
        )

    made = build_atlas(people, names=["a", "b", "c"], registered=failing, iterations=1)
    without = build_atlas(people[:2], registered=quick, iterations=1)
    assert made.rounds[0].left_out == {"c": ("it folds",)}
    assert made.fields[2] is None
    assert np.array_equal(made.image.array, without.image.array)
    with pytest.raises(InputError, match="c: it folds"):
        build_atlas(people[1:], names=["b", "c"], registered=failing)


def test_one_call_for_each_image_and_template() -> None:
    people, said, pairs = [person(seed, PLANE) for seed in range(3)], [], []

    def told(moving: Volume, fixed: Volume) -> Any:
        pairs.append((moving.content_hash, fixed.content_hash))
        return quick(moving, fixed)

    build_atlas(people, iterations=2, start=1, registered=told, report=said.append)
    assert len(pairs) == len(set(pairs)) == 2 + 3
    assert said[-1] == "template 2 of 2: 3, 3 of 3"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda people: people[:1], InputError, "several subjects"),
        (lambda people: [*people, person(0, SPACE)], GeometryError, "slices and volumes"),
        (lambda people: [*people, Volume(np.ones(PLANE.shape), PLANE)], InputError, "constant"),
    ],
)
def test_what_has_no_atlas_is_refused(change: Any, error: Any, message: str) -> None:
    people = [person(seed, PLANE) for seed in range(2)]
    with pytest.raises(error, match=message):
        build_atlas(change(people), registered=quick)


def test_a_slice_in_another_direction_is_refused_by_name() -> None:
    people = [person(0, PLANE), person(1, centred((34, 36, 1), (2.5, 2.5, 2.5), np.eye(3)[[1, 2, 0]]))]
    with pytest.raises(GeometryError, match="b: the slices are not parallel"):
        build_atlas(people, names=["a", "b"], registered=quick)


def test_options_that_mean_nothing_are_refused() -> None:
    people = [person(seed, PLANE) for seed in range(2)]
    halves = [image.with_array(np.full(PLANE.shape, 0.5)) for image in people]
    for options in ({"start": 2}, {"iterations": 0}, {"labels": people[:1]}, {"labels": halves}):
        with pytest.raises(InputError):
            build_atlas(people, registered=quick, **options)  # type: ignore[arg-type]


def test_the_mean_of_affine_maps_has_the_mean_of_inverses_as_its_inverse() -> None:
    rng = np.random.default_rng(4)
    maps = []
    for _ in range(4):
        matrix = np.eye(4)
        matrix[:3] += rng.normal(0, 0.15, (3, 4)) * [1, 1, 1, 100]
        maps.append(matrix)
    mean = mean_affine(maps)
    assert np.allclose(mean_affine(maps[::-1]), mean, atol=1e-8)
    assert np.allclose(mean_affine([np.linalg.inv(one) for one in maps]), np.linalg.inv(mean), atol=1e-8)
    other = maps[0]
    assert np.allclose(mean_affine([one @ other for one in maps]), mean @ other, atol=1e-7)
    assert not np.allclose(np.mean(maps, axis=0), mean, atol=1e-3)


def test_maps_without_a_mean_are_refused() -> None:
    with pytest.raises(InputError, match="no mean"):
        mean_affine([np.eye(4), np.diag([-1.0, 1, 1, 1])])
    with pytest.raises(InputError, match="nothing to average"):
        mean_affine([])


def test_the_average_on_a_coarser_grid_is_that_on_the_fine_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = centred((120, 120, 1), (2, 2, 2), np.eye(3))
    fields = [
        on_grid(lambda p, one=one: one(p) * [1, 1, 0], fine)  # type: ignore[misc]
        for one in (bump(30, (130, 130, 130), seed) for seed in range(3))
    ]
    whole = jacobian_average(fields)
    assert np.array_equal(whole.vectors, average_transformation(fields).field.vectors)
    monkeypatch.setattr(atlas, "_MANY", 5000)
    quickly = jacobian_average(fields)
    mean = np.mean([field.vectors for field in fields], axis=0)
    away = np.linalg.norm(whole.vectors - mean, axis=0).mean()
    off = np.linalg.norm(whole.vectors - quickly.vectors, axis=0).mean()
    assert 0 < off < 0.2 * away
