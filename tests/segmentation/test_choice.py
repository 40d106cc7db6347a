"""A judge learns who is skilled at what, from held-out cases only, and shows why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import InputError
from sagittal.segmentation.choice import (
    ALL,
    HeldOut,
    fit_router,
    routed_probabilities,
    routing_scores,
)
from sagittal.segmentation.choice_features import case_features

OTHERS = {"a": frozenset({"x"}), "b": frozenset({"y"})}


def case(number: int, noise: float, gap: float, other: float = 0.0, **more: Any) -> HeldOut:
    """Network a is better by ``gap`` in grey matter, and by minus that in white matter."""
    dice = {
        "a": {"gm": 0.8 + gap / 2, "wm": 0.8 - other / 2},
        "b": {"gm": 0.8 - gap / 2, "wm": 0.8 + other / 2},
    }
    told: dict[str, Any] = {"subject": f"s{number}", "features": {"noise": noise, "bias": 1.0}, "dice": dice}
    return HeldOut(**(told | {"trained_on": OTHERS} | more))


def linear(count: int = 12) -> list[HeldOut]:
    noises = np.linspace(0, 1, count)
    return [case(n, float(noise), 0.1 * (0.5 - noise)) for n, noise in enumerate(noises)]


def test_a_case_that_trained_a_network_cannot_judge_it() -> None:
    with pytest.raises(InputError, match="trained a network"):
        case(0, 0.1, 0.1, trained_on={"a": frozenset({"s0"}), "b": frozenset()})
    with pytest.raises(InputError, match="does not tell"):
        case(0, float("nan"), 0.1)
    with pytest.raises(InputError, match="does not tell"):
        case(0, 0.1, 0.1, trained_on={"a": frozenset()})


@pytest.mark.parametrize("learner", ["ridge", "logistic"])
def test_the_skilled_network_is_chosen_and_the_reason_is_its_feature(learner: Any) -> None:
    router = fit_router(linear(), learner=learner, strength=0.01)
    for noise, wanted in ((0.05, "a"), (0.95, "b")):
        decision = router.decide({"noise": noise, "bias": 1.0})[ALL]
        assert decision.network == wanted
        assert decision.advantage > 0
        assert decision.reasons[0][0] == "noise"
        assert decision.reasons[0][1] > 0
        parts = sum(part for _, part in decision.reasons) + decision.constant
        assert parts == pytest.approx(decision.advantage)


def test_ridge_has_the_value_of_the_hand() -> None:
    # Scaled, the cases lie at -1 and 1, and the mean Dice of a is 0.1 lower and 0.1 higher than b's. Half of
    # it is a's merit: covariance 0.05, variance 1, and a strength of 1 halves the slope.
    router = fit_router([case(0, 0.0, -0.2), case(1, 2.0, 0.2)], strength=1.0)
    np.testing.assert_allclose(router.centre, [1.0, 1.0])
    np.testing.assert_allclose(router.scale, [1.0, 1.0])
    np.testing.assert_allclose(router.weights[0], [[0.025, 0.0], [-0.025, 0.0]], atol=1e-12)
    np.testing.assert_allclose(router.constants[0], 0, atol=1e-12)
    assert router.decide({"noise": 2.0, "bias": 9.0})[ALL].advantage == pytest.approx(0.05)


def test_each_class_can_have_its_network() -> None:
    cases = [
        case(n, noise, 0.1 * (0.5 - noise), 0.1 * (0.5 - noise))
        for n, noise in enumerate(np.linspace(0, 1, 9))
    ]
    whole = fit_router(cases, strength=0.01)
    each = fit_router(cases, granularity="class", strength=0.01)
    assert np.abs(whole.weights).max() < 1e-9  # what one class gains the other loses
    decided = each.decide({"noise": 0.0, "bias": 1.0})
    assert (decided["gm"].network, decided["wm"].network) == ("a", "b")


def test_a_subject_of_many_slices_counts_once() -> None:
    cases = [case(0, 0.0, 0.2), case(1, 1.0, -0.2)]
    many = [*cases, *(case(1, 1.0, -0.2) for _ in range(8))]
    one, other = fit_router(cases), fit_router(many, granularity="slice")
    np.testing.assert_allclose(one.weights, other.weights, atol=1e-12)
    np.testing.assert_allclose(one.constants, other.constants, atol=1e-12)


def test_what_cannot_be_learned_from_is_refused() -> None:
    with pytest.raises(InputError, match="too few subjects"):
        fit_router([case(0, 0.0, 0.1)])
    with pytest.raises(InputError, match="differ"):
        fit_router([case(0, 0.0, 0.1), case(1, 0.0, 0.1, features={"noise": 1.0})])
    with pytest.raises(InputError, match="way to learn"):
        fit_router(linear(), strength=0)
    with pytest.raises(InputError, match="bias"):
        fit_router(linear()).decide({"noise": 0.1})
    three = {n: {"gm": 0.8} for n in "abc"}
    cases = [case(n, n, 0, dice=three, trained_on=dict.fromkeys("abc", frozenset())) for n in range(3)]
    assert fit_router(cases).networks == ("a", "b", "c")
    with pytest.raises(InputError, match="between two"):
        fit_router(cases, learner="logistic")


def test_planes_of_two_networks_are_put_together() -> None:
    router = fit_router([case(n, x, 0.5 - x, 0.5 - x) for n, x in enumerate((0.0, 1.0))], granularity="class")
    decisions = router.decide({"noise": 0.0, "bias": 1.0})
    told = {"a": np.array([[0.6, 0.4], [0.0, 0.0]]), "b": np.array([[0.2, 0.8], [0.0, 0.0]])}
    found = routed_probabilities(decisions, told, ["gm", "wm"])
    np.testing.assert_allclose(found, [[0.6 / 1.4, 0.8 / 1.4], [0, 0]])
    only = routed_probabilities(fit_router(linear()).decide({"noise": 0.0, "bias": 1.0}), told, ["gm", "wm"])
    np.testing.assert_array_equal(only, told["a"])
    with pytest.raises(InputError, match="wm"):
        routed_probabilities({"gm": decisions["gm"]}, told, ["gm", "wm"])


def test_the_oracle_bounds_every_choice() -> None:
    random = np.random.default_rng(0)
    scores = random.uniform(0.5, 1, (30, 3, 2))
    for _ in range(20):
        found = routing_scores(scores, random.integers(0, 2, (30, 3)))
        assert found.router <= found.oracle
        assert found.random <= found.best_single <= found.oracle
    hand = routing_scores(np.array([[0.9, 0.5], [0.4, 0.8]]), np.array([0, 0]))
    assert (hand.singles, hand.random) == (pytest.approx((0.65, 0.65)), pytest.approx(0.65))
    assert hand.router == pytest.approx(0.65)
    assert hand.oracle == pytest.approx(0.85)
    with pytest.raises(InputError, match="no such network"):
        routing_scores(np.ones((2, 2)), np.array([0, 2]))


def test_features_are_label_free_and_have_hand_values() -> None:
    mask = np.zeros((8, 6, 1), bool)
    mask[1:7, 1:5] = True  # 24 voxels
    left = np.zeros(mask.shape, bool)
    left[1:4] = mask[1:4]
    sure = np.where(mask[..., None], np.stack([left, mask & ~left], axis=-1), 0).astype(float)
    unsure = np.where(mask[..., None], 0.5, 0.0) * np.ones(2)
    image = np.where(left, 1.0, 3.0) * mask
    found = case_features(image, mask, {"a": sure, "b": unsure}, ["gm", "wm"], (1.0, 1.0, 1.0))
    assert found["entropy a"] == 0
    assert found["entropy b"] == pytest.approx(1)
    assert found["edge a"] == pytest.approx(8 / 24)
    assert found["edge b"] == 0  # all of one class
    assert found["agreement a b gm"] == pytest.approx(2 * 12 / (12 + 24))
    assert found["ratio a b gm"] == pytest.approx(0)
    assert found["histogram 3"] == found["histogram 6"] == pytest.approx(0.5)
    again = case_features(5 * image, mask, {"a": sure, "b": unsure}, ["gm", "wm"], (1.0, 1.0, 1.0))
    assert again == pytest.approx(found)
    with pytest.raises(InputError, match="nothing to judge"):
        case_features(image, mask, {"a": sure}, ["gm", "wm"], (1.0, 1.0, 1.0))
