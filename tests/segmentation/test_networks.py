from __future__ import annotations

import numpy as np
import pytest

from sagittal.core.errors import ModelError
from sagittal.segmentation.networks import NetworkConfig, build_network, initial_weights

torch = pytest.importorskip("torch")

SPACE = {"width": 2, "depth": 2, "patch": (16, 16, 16)}
PLANE = {"width": 2, "depth": 2, "patch": (16, 24)}


def config(architecture: str, dimensions: object, **changes: object) -> NetworkConfig:
    if architecture == "residual-unet":
        pytest.importorskip("monai")
    sides = SPACE if dimensions == 3 else PLANE
    return NetworkConfig(architecture=architecture, dimensions=dimensions, **{**sides, **changes})


@pytest.mark.parametrize("architecture", ["voxresnet", "residual-unet"])
@pytest.mark.parametrize("dimensions", [2, "2.5", 3])
def test_logits_lie_on_the_grid_of_what_enters(architecture: str, dimensions: object) -> None:
    plan = config(architecture, dimensions, channels=("t1", "jacobian"), background=True)
    network = build_network(plan)
    assert plan.inputs == (6 if dimensions == "2.5" else 2)
    seen = torch.zeros(2, plan.inputs, *plan.patch)
    assert network(seen).shape == (2, 4, *plan.patch)


def test_the_published_network_has_25_layers_with_weights_and_four_heads() -> None:
    network = build_network(NetworkConfig(width=32, depth=3, patch=(16, 16, 16)))
    kinds = [type(module).__name__ for module in network.modules()]
    # 2 + 3 strided + 12 residual convolutions, 3 transposed ones, and 1 x 1 x 1 at full resolution
    assert kinds.count("Conv3d") == 2 + 3 + 12 + 1
    assert kinds.count("ConvTranspose3d") == 3
    network.train()
    with torch.no_grad():
        total, *heads = network(torch.randn(1, 1, 16, 16, 16))
    assert len(heads) == 4
    torch.testing.assert_close(total, sum(heads))


@pytest.mark.parametrize("architecture", ["voxresnet", "residual-unet"])
def test_a_voxel_far_from_a_windows_edge_is_seen_the_same_in_any_window(architecture: str) -> None:
    network = build_network(config(architecture, 2))
    image = torch.randn(1, 1, 160, 160)
    whole, part = network(image), network(image[:, :, 16:144, 16:144])
    torch.testing.assert_close(whole[..., 78:82, 78:82], part[..., 62:66, 62:66], rtol=1e-4, atol=1e-5)


def test_a_batch_of_one_can_be_trained_on() -> None:
    network = build_network(config("voxresnet", 3)).train()
    total = network(torch.randn(1, 1, 16, 16, 16))[0]
    total.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_weights_follow_from_the_seed_and_not_from_torch() -> None:
    shapes = {"a.weight": (4, 3, 3, 3), "n.weight": (4,), "n.bias": (4,), "n.running_var": (4,)}
    one, other = initial_weights(shapes, 1), initial_weights(dict(reversed(shapes.items())), 1)
    assert all(np.array_equal(one[name], other[name]) for name in shapes)
    assert not np.array_equal(one["a.weight"], initial_weights(shapes, 2)["a.weight"])
    assert one["n.weight"].tolist() == [1] * 4
    assert one["n.bias"].tolist() == [0] * 4
    torch.manual_seed(1)
    first = build_network(config("voxresnet", 2)).state_dict()
    torch.manual_seed(2)
    second = build_network(config("voxresnet", 2)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_of_another_network_are_refused() -> None:
    weights = build_network(config("voxresnet", 2)).state_dict()
    given = {name: t.numpy() for name, t in weights.items() if t.is_floating_point()}
    build_network(config("voxresnet", 2), given)
    with pytest.raises(ModelError, match="another network"):
        build_network(config("voxresnet", 2, width=3), given)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architecture": "vnet"}, "voxresnet"),
        ({"channels": ("t1", "t1")}, "channels"),
        ({"labels": ("csf",)}, "labels"),
        ({"patch": (16, 17, 16)}, "multiples of 4"),
        ({"patch": (16, 16)}, "3 multiples"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "spacing_mm"),
        ({"normalisation": ("image", "cohort")}, "normalisation"),
        ({"width": 0}, "width"),
    ],
)
def test_a_network_that_cannot_be_is_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        NetworkConfig(**{**SPACE, **change})


def test_a_configuration_survives_json() -> None:
    plan = NetworkConfig(dimensions="2.5", channels=("t1", "curl_x"), patch=(16, 16), axis=1)
    assert NetworkConfig.from_json(plan.to_json()) == plan
    assert plan.normalisation == ("image", "cohort")
    assert plan.window == (16, 1, 16)
    with pytest.raises(ModelError, match="no configuration"):
        NetworkConfig.from_json({**plan.to_json(), "colour": "red"})
