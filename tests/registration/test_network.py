from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from known_fields import bump, centred, on_grid
from sagittal.core.errors import FormatError, GeometryError, InputError, ModelError
from sagittal.registration import (
    RegistrationNetwork,
    network_bytes,
    network_from_bytes,
    register_by_network,
    train_network,
)
from sagittal.registration.filters import gaussian
from sagittal.registration.network_layers import Frame, initial_weights, layer_shapes, velocity_of
from sagittal.volume import DisplacementField, Geometry, Volume
from sagittal.volume.field_calculus import log_jacobian

torch: Any = pytest.importorskip("torch")
pytest.importorskip("scipy")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.usefixtures("one_thread")

FLAT = centred((32, 30, 1), (2, 2, 5), np.diag([-1.0, 1, 1]))
SOLID = centred((16, 18, 16), (3, 3, 3.5), np.eye(3))
HERE = np.eye(4)
SETTINGS: dict[str, Any] = {"width": 4, "rate": 4e-3, "measure": "mean-square", "regularity": 1e-3}


def ball(geometry: Geometry) -> Volume:
    """A disc or a ball in three shades, in the middle."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), -1)
    away = np.linalg.norm(geometry.index_to_world(index), axis=-1)
    shade = 60.0 * (away < 20) + 40.0 * (away < 10)
    return Volume(gaussian(shade, [1.0 if n > 1 else 0.0 for n in geometry.shape]), geometry)


def family(geometry: Geometry, seeds: range) -> list[Volume]:
    """Warps of one image."""
    fixed, half = ball(geometry), np.array(geometry.extent) / 2
    images = []
    for seed in seeds:
        smooth = bump(16, half, seed, 2)
        velocity = on_grid(lambda p, smooth=smooth: smooth(p) * [n > 1 for n in geometry.shape], geometry)
        images.append(DisplacementField(-velocity.vectors, geometry).exponentiate().warp(fixed))
    return images


def untrained(geometry: Geometry, seed: int = 0, moves: float = 0.0, **more: Any) -> RegistrationNetwork:
    """A network of 2 channels as it is before training, but for what its last layer adds everywhere."""
    dimensions = sum(n > 1 for n in geometry.shape)
    inputs = 2 if "first" not in more else (4 if dimensions == 2 else 6)
    weights = initial_weights(layer_shapes(2, inputs, dimensions), seed)
    weights["velocity.bias"][0] += moves
    return RegistrationNetwork(
        weights=weights,
        grid=geometry,
        width=2,
        measure="mean-square",
        regularity=0.1,
        steps=0,
        seed=0,
        **more,
    )


@pytest.fixture(scope="module")
def trained() -> Any:
    """A network for discs: made in a few seconds."""
    images = family(FLAT, range(12))
    return train_network(images, ball(FLAT), affines=[HERE] * 12, steps=240, **SETTINGS)


def unlike(field: DisplacementField, moving: Volume) -> float:
    return float(((field.warp(moving).array - ball(field.geometry).array) ** 2).mean())


@pytest.mark.parametrize("geometry", [FLAT, SOLID])
def test_before_training_nothing_moves(geometry: Geometry) -> None:
    (moving,) = family(geometry, range(1))
    found = register_by_network(moving, ball(geometry), untrained(geometry), affine=HERE)
    assert not found.field.vectors.any()
    assert not found.inverse.vectors.any()
    assert found.energies[0][0] == found.energies[0][1]


def test_what_it_learned_holds_for_images_that_it_has_not_seen(trained: Any) -> None:
    images = family(FLAT, range(20, 26))
    before, after = [], []
    for moving in images:
        found = register_by_network(moving, ball(FLAT), trained.network, affine=HERE)
        before.append(unlike(DisplacementField.identity(FLAT), moving))
        after.append(unlike(found.field, moving))
        assert found.field.folds == 0
        assert found.inverse_consistency_mm < 0.1
        assert found.problems == ()
    assert np.mean(after) < 0.6 * np.mean(before)
    assert np.mean(trained.losses[-24:]) < 0.5 * np.mean(trained.losses[:24])


def test_it_moves_to_where_its_velocity_points() -> None:
    (moving,) = family(FLAT, range(1))
    found = register_by_network(moving, ball(FLAT), untrained(FLAT, moves=1.5), affine=HERE)
    assert np.allclose(found.field.vectors[0], -3, atol=1e-5)  # the first axis points left, 2 mm a voxel
    assert np.allclose(found.field.vectors[1:], 0)
    assert np.allclose(found.inverse.vectors[0], 3, atol=1e-5)


def test_the_affine_map_comes_before_it(trained: Any) -> None:
    (moving,) = family(FLAT, range(30, 31))
    shift = np.eye(4)
    shift[:3, 3] = [40, -20, 0]
    away = Volume(moving.array, Geometry(FLAT.shape, shift @ FLAT.affine))
    here = register_by_network(moving, ball(FLAT), trained.network, affine=HERE)
    there = register_by_network(away, ball(FLAT), trained.network, affine=shift)
    assert np.allclose(
        there.field.vectors, here.field.vectors + np.reshape([40, -20, 0], (3, 1, 1, 1)), atol=1e-3
    )
    assert unlike(there.field, away) == pytest.approx(unlike(here.field, moving), rel=1e-2)


def test_an_image_on_another_grid_is_met_on_one_like_the_training_s(trained: Any) -> None:
    (moving,) = family(FLAT, range(30, 31))
    turned = Geometry.from_spacing((44, 40, 1), (1.5, 1.5, 5), (-33, -30, 0))
    fixed = ball(turned)
    still, found = (
        register_by_network(moving, fixed, net, affine=HERE).field
        for net in (untrained(FLAT), trained.network)
    )
    assert found.shape == (44, 40, 1)
    assert unlike(found, moving) < 0.6 * unlike(still, moving)


@pytest.mark.parametrize(
    ("geometry", "said"),
    [
        (SOLID, "another number of dimensions"),
        (Geometry.from_spacing((8, 8, 1), (9, 9, 5)), "far coarser"),
        (Geometry.from_spacing((30, 1, 30), (2, 5, 2), (-30, 0, -30)), "not parallel"),
    ],
)
def test_an_image_that_it_was_not_trained_for_is_refused(geometry: Geometry, said: str) -> None:
    image = Volume(np.random.default_rng(0).random(geometry.shape), geometry)
    with pytest.raises(GeometryError, match=said):
        register_by_network(image, image, untrained(FLAT), affine=HERE)


def test_a_constant_image_is_refused() -> None:
    flat = Volume(np.ones(FLAT.shape), FLAT)
    with pytest.raises(InputError, match="moving image: the image is constant"):
        register_by_network(flat, ball(FLAT), untrained(FLAT), affine=HERE)
    with pytest.raises(InputError, match="image 1: the image is constant"):
        train_network([ball(FLAT), flat], ball(FLAT), affines=[HERE] * 2, width=2, steps=1)


def test_a_map_that_makes_images_less_alike_is_not_passed_in_silence() -> None:
    away = register_by_network(ball(FLAT), ball(FLAT), untrained(FLAT, moves=3.0), affine=HERE)
    assert "the images did not become more alike" in away.problems


def test_refinement_goes_on_from_what_the_network_found(trained: Any) -> None:
    (moving,) = family(FLAT, range(30, 31))
    quick, best = (
        register_by_network(moving, ball(FLAT), trained.network, affine=HERE, refine=levels)
        for levels in ((), (20,))
    )
    assert len(best.energies) == 2
    assert best.energies[0] == quick.energies[0]
    assert unlike(best.field, moving) < 0.5 * unlike(quick.field, moving)


@pytest.mark.parametrize("geometry", [FLAT, SOLID])
def test_a_velocity_and_its_negative_undo_each_other(geometry: Geometry) -> None:
    frame = Frame.around(geometry, geometry)
    flat = [2.0 if n > 1 else 0.0 for n in geometry.shape]
    smooth = gaussian(np.random.default_rng(0).normal(size=(1, len(frame.axes), *frame.half.shape)), flat)
    steps = frame.flattened(torch.from_numpy(smooth).float())
    there, back = (frame.moved(frame.vectors(sign * 4 * steps)) for sign in (1, -1))
    left = DisplacementField(there[0].numpy(), frame.whole).compose(
        DisplacementField(back[0].numpy(), frame.whole)
    )
    inner = tuple(slice(4, -4) if n > 1 else slice(None) for n in frame.whole.shape)
    assert left.magnitude[inner].max() < 0.1 * float(there.norm(dim=1).max())


def test_the_slope_of_the_loss_is_its_derivative() -> None:
    """The similarity's written derivative reaches the weights as that of the loss itself."""
    from sagittal.registration.similarity import similarity
    from sagittal.registration.training import descend

    (moving,) = family(FLAT, range(1))
    frame = Frame.around(FLAT, FLAT)
    whole = [np.pad(v.array / 100, ((0, 0), (0, 2), (0, 0))) for v in (ball(FLAT), moving)]
    pair = torch.from_numpy(np.stack(whole)[None].astype(np.float32))
    start = initial_weights(layer_shapes(2, 2, 2), 0)
    start["velocity.bias"] += [0.7, -0.4]
    start["velocity.weight"] += 0.01

    def loss(bias: float) -> tuple[float, float]:
        weights = {name: torch.tensor(array, requires_grad=True) for name, array in start.items()}
        with torch.no_grad():
            weights["velocity.bias"][0] += bias
        velocity = frame.vectors(velocity_of(weights, frame.flattened(pair)))
        value = descend(frame, velocity, pair, similarity("mean-square"), 0.05)
        return value, float(weights["velocity.bias"].grad[0])

    step = 1e-2
    slope = (loss(step)[0] - loss(-step)[0]) / (2 * step)
    assert loss(0)[1] == pytest.approx(slope, rel=0.02)


@pytest.mark.parametrize("geometry", [FLAT, SOLID])
def test_a_second_stage_sees_what_the_first_did_to_volumes_and_directions(geometry: Geometry) -> None:
    first = untrained(geometry)
    first = dataclasses.replace(
        first,
        weights={n: a + (0.02 if n == "velocity.weight" else 0) for n, a in first.weights.items()},
    )
    second, control = (
        untrained(geometry, first=first, extra=extra, scale=(0.5, 0.25))
        for extra in ("jacobian-curl", "zeros")
    )
    frame = Frame.around(geometry, geometry)
    pair = torch.rand((1, 2, *frame.whole.shape), generator=torch.Generator().manual_seed(0))
    seen, nothing = second.channels(frame, pair), control.channels(frame, pair)
    assert seen.shape == nothing.shape
    assert torch.equal(seen[:, :2], pair)
    assert not nothing[:, 2:].any()
    moved = frame.moved(first.velocity(frame, pair))[0].numpy()
    field = DisplacementField(moved, frame.whole)
    growth = log_jacobian(moved, frame.whole.affine).clip(-1.5, 1.5)
    assert np.allclose(seen[0, 2], growth / 0.5, atol=1e-4)
    turning = field.curl()[2:] if geometry is FLAT else field.curl()
    assert np.abs(turning).max() > 0.01
    assert np.allclose(seen[0, 3:], turning / 0.25, atol=1e-4)


@pytest.mark.parametrize("extra", ["jacobian-curl", "zeros"])
def test_a_second_stage_is_trained_on_the_first(trained: Any, extra: str) -> None:
    images = family(FLAT, range(12))
    second = train_network(
        images, ball(FLAT), affines=[HERE] * 12, first=trained.network, extra=extra, steps=120, **SETTINGS
    )
    assert second.network.first is trained.network
    assert np.mean(second.losses[-24:]) < 0.85 * np.mean(second.losses[:24])
    assert all(sd != 1 for sd in second.network.scale)


def test_pairs_of_images_are_learned_without_an_atlas() -> None:
    losses = train_network(family(FLAT, range(6)), affines=[HERE] * 6, steps=240, **SETTINGS).losses
    assert np.mean(losses[-24:]) < 0.7 * np.mean(losses[:24])


def test_training_in_space_lowers_the_loss() -> None:
    images = family(SOLID, range(2))
    losses = train_network(images, ball(SOLID), affines=[HERE] * 2, steps=40, **SETTINGS).losses
    assert np.mean(losses[-6:]) < 0.85 * np.mean(losses[:6])


def test_the_same_training_gives_the_same_bits_on_any_threads() -> None:
    images = family(FLAT, range(3))
    made = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        made.append(train_network(images, ball(FLAT), affines=[HERE] * 3, width=4, steps=5).network)
        assert torch.get_num_threads() == threads
    fields = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        fields.append(register_by_network(images[0], ball(FLAT), made[0], affine=HERE).field.content_hash)
    torch.set_num_threads(1)
    assert network_bytes(made[0]) == network_bytes(made[1])
    assert fields[0] == fields[1]
    other = train_network(images, ball(FLAT), affines=[HERE] * 3, width=4, steps=5, seed=1).network
    assert network_bytes(other) != network_bytes(made[0])


def test_a_network_in_space_gives_the_same_bits_on_any_threads() -> None:
    frame = Frame.around(Geometry.from_spacing((64, 64, 48)), Geometry.from_spacing((64, 64, 48)))
    weights = initial_weights(layer_shapes(16, 2, 3), 0)
    weights["velocity.weight"] += 0.01
    network = dataclasses.replace(untrained(frame.whole), weights=weights, width=16)
    pair = torch.rand((1, 2, *frame.whole.shape), generator=torch.Generator().manual_seed(0))
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(network.velocity(frame, pair))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "must be positive"),
        ({"rate": 0.0}, "must be positive"),
        ({"affines": [HERE]}, "not an affine map for each image"),
        ({"measure": "colour"}, "no such similarity"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], said: str) -> None:
    images = family(FLAT, range(2))
    with pytest.raises(InputError, match=said):
        train_network(images, ball(FLAT), **({"affines": [HERE] * 2, "width": 2, "steps": 1} | wrong))


def test_a_training_that_learned_nothing_is_no_network() -> None:
    with pytest.raises(InputError, match="did not lower the loss"):
        train_network(
            family(FLAT, range(2)), ball(FLAT), affines=[HERE] * 2, steps=100, **SETTINGS | {"rate": 0.1}
        )


def test_one_image_is_too_few_without_an_atlas() -> None:
    with pytest.raises(InputError, match="too few images"):
        train_network([ball(FLAT)])


def test_a_file_gives_back_the_network_it_was_made_of() -> None:
    first = untrained(FLAT, seed=3, moves=0.5)
    second = untrained(FLAT, seed=4, moves=-1, first=first, extra="jacobian-curl", scale=(0.1, 0.2))
    content = network_bytes(second)
    back = network_from_bytes(content)
    assert network_bytes(back) == content
    assert back.first is not None
    assert back.grid == FLAT
    assert (back.extra, back.scale) == ("jacobian-curl", (0.1, 0.2))
    (moving,) = family(FLAT, range(1))
    fields = [register_by_network(moving, ball(FLAT), net, affine=HERE).field for net in (second, back)]
    assert fields[0].content_hash == fields[1].content_hash


def test_a_file_that_is_damaged_or_foreign_is_refused() -> None:
    import safetensors.numpy

    whole = network_bytes(untrained(FLAT))
    foreign = safetensors.numpy.save({"w": np.zeros(3, np.float32)})
    for content in (b"", b"PK\x03\x04 not this", whole[:60], foreign, b"\x80\x04" + whole):
        with pytest.raises(FormatError, match="model file: this is no registration network"):
            network_from_bytes(content, "model file")
    with pytest.raises(FormatError, match="damaged"):
        network_from_bytes(whole[:-8])
    changed = bytearray(whole)
    changed[-100] ^= 1
    with pytest.raises(FormatError, match="the weights are damaged"):
        network_from_bytes(bytes(changed))


def test_a_file_of_a_later_format_is_refused() -> None:
    whole = network_bytes(untrained(FLAT))
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    key = next(iter(header["__metadata__"]))
    header["__metadata__"][key] = header["__metadata__"][key].replace('"format": 1', '"format": 9')
    text = json.dumps(header).encode()
    with pytest.raises(FormatError, match="another format; got 9"):
        network_from_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"width": 4}, "not those of this network"),
        ({"measure": "colour"}, "no such similarity"),
        ({"extra": "zeros"}, "needs a first"),
        ({"scale": (0.0, 1.0)}, "not positive"),
    ],
)
def test_weights_that_make_no_network_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        dataclasses.replace(untrained(FLAT), **wrong)
