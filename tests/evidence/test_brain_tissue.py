"""The evidence on brain tissue runs whole when it is small, counts what it says, and its page says what it
found."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ball_cohort import EVIDENCE, ball, ball_cohort
from sagittal.volume import Volume, write_nifti

for package in ("scipy", "sklearn", "dipy", "torch"):
    pytest.importorskip(package)

TISSUES = "csf", "gm", "wm"


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of every arm on few simulated balls, in place of the template; the folder that it leaves."""
    with ball_cohort():
        t1, _, masks, grid = ball()
        folder = tmp_path_factory.mktemp("tissue")
        head = folder / "head"
        head.mkdir()
        noisy = t1 + 0.02 * np.random.default_rng(0).standard_normal(t1.shape) * (t1 > 0.1)
        write_nifti(Volume((200 * noisy * (t1 > 0.1)).astype(np.float32), grid), head / "ch2bet.nii.gz")
        write_nifti(Volume((masks[1] > 0).astype(np.uint8), grid), head / "aal.nii.gz")
        run(folder)
        yield folder


def run(folder: Path) -> None:
    script("brain_tissue").main(
        ["--smoke", "--seeds", "0,1", "--work", str(folder), "--json", str(folder / "a.json"),
         "--colin", str(folder / "head")]
    )  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = json.loads((folder / "a.json").read_text(encoding="utf-8"))["rows"]
    return kept


def test_every_arm_runs_and_the_summary_has_what_is_asked_for(small: Path) -> None:
    kept = json.loads((small / "a.json").read_text(encoding="utf-8"))
    arms = list(script("brain_tissue").every_arm())
    assert [(row["arm"], row["seed"]) for row in kept["rows"]] == [
        (arm, seed) for arm in arms for seed in (0, 1)
    ]
    wanted = {
        "dice_5_subjects", "dice_all_subjects", "suggestive_share_for_full_dice", "effort_rank_correlation",
        "work_saved_by_tissue", "volume_interval_coverage", "ece", "router_gain", "geometric_gain",
        "retrieval_gain",
    }  # fmt: skip
    assert wanted <= set(kept["summary"])
    made = script("brain_tissue_page")
    assert made.page(small / "a.json").count(made.MISSING) == 1  # how long to train was not looked at


def test_a_row_that_is_there_is_not_measured_again(small: Path) -> None:
    before = (small / "a.json").read_bytes()
    places = {place: place.stat().st_mtime_ns for place in (small / "rows").iterdir()}
    run(small)
    assert {place: place.stat().st_mtime_ns for place in (small / "rows").iterdir()} == places
    assert (small / "a.json").read_bytes() == before


def test_rows_of_other_settings_are_not_mixed(small: Path, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    for number, seed in enumerate((0, 1)):
        row = json.loads((small / "rows" / f"untrained.{seed}.json").read_text(encoding="utf-8"))
        row["settings"]["steps"] = number
        (tmp_path / "rows" / f"untrained.{seed}.json").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(SystemExit, match="different settings"):
        script("brain_tissue").gathered(tmp_path)


def test_those_that_train_calibrate_and_judge_are_different_heads(small: Path) -> None:
    data = script("brain_tissue_data")
    every = [one for side, count in (("pool", 8), ("hold", 4), ("judge", 3))
             for one in data.heads(side, small / "slices", count)]  # fmt: skip
    assert len({one.subject for one in every}) == len({one.labels.array.tobytes() for one in every}) == 15


def test_a_seed_says_who_is_labelled(small: Path) -> None:
    data = script("brain_tissue_data")
    first, again, other = (
        [one.subject for one in data.order(seed, small / "slices", 8)] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert sorted(first) == sorted(other)


def test_controls_have_as_many_channels_as_what_they_control(small: Path) -> None:
    data, told = script("brain_tissue_data"), script("brain_tissue_summary")
    one = data.heads("pool", small / "slices", 8)[0]
    arms = script("brain_tissue_arms").ARMS

    def channels(arm: str) -> int:
        if "how" in arms[arm].keywords:
            return len(data.INTENSITIES) + len(data.LABELS)
        return len(data.channels(one, arms[arm].keywords["kinds"]).names)

    pairs = told.GEOMETRIC | told.RETRIEVAL
    controlled = [
        pair for name, pair in pairs.items() if name.endswith(("over noise", "over atlas", "over lot"))
    ]
    assert len(controlled) == 11
    assert all(channels(arm) == channels(control) for arm, control in controlled)


def test_nobody_is_given_their_own_labels_but_where_it_is_the_point(small: Path) -> None:
    found = {row["arm"]: row for row in rows(small) if "retrieved_dice_training" in row}

    def copied(arm: str, side: str) -> bool:
        return all(value == 1 for values in found[arm][f"retrieved_dice_{side}"].values() for value in values)

    for arm in ("retrieved", "retrieved aligned", "retrieved aligned by three", "retrieved by lot"):
        dices = found[arm]["retrieved_dice_training"]["gm"] + found[arm]["retrieved_dice_judge"]["gm"]
        assert max(dices) < 1
    assert copied("self found", "training")
    assert not copied("self found", "judge")
    assert copied("own labels", "judge")


def test_the_pool_to_choose_from_is_redundant(small: Path) -> None:
    pool = script("brain_tissue_data").redundant(0, small / "slices", 8)
    kinds = [one.kind for one in pool]
    assert [kinds.count(kind) for kind in ("own", "near duplicate", "outlier")] == [4, 3, 1]
    assert len({one.subject for one in pool}) == 8
    owners = {one.subject for one in pool if one.kind == "own"}
    assert {one.subject.split(" again")[0] for one in pool if one.kind == "near duplicate"} <= owners


def test_a_campaign_counts_its_work(small: Path) -> None:
    campaigns = [row for row in rows(small) if row["arm"].startswith("campaign")]
    assert len(campaigns) == 18
    for campaign in campaigns:
        last = campaign["rounds"][-1]
        assert sum(last["kinds"].values()) == last["labelled"]
        assert last["labelled"] == 5 or campaign["arm"].endswith("by minutes")
        if campaign["arm"] in ("campaign random", "campaign uncertainty+cover, nothing aside"):
            assert not any(one["aside"] for one in campaign["effort"])
        for criteria in last["work_saved"].values():
            for saved in criteria.values():
                assert 1 - saved["total"] == pytest.approx(
                    (1 - saved["by_selection"]) * (1 - saved["by_correction"])
                )


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EVIDENCE))
    return script("brain_tissue_summary")


def arm(name: str, seed: int, values: Any, **more: Any) -> dict[str, Any]:
    return {"arm": name, "seed": seed, "dice": {tissue: list(values) for tissue in TISSUES}, **more}


def test_a_gain_is_taken_subject_by_subject_on_the_seeds_that_both_have(told: ModuleType) -> None:
    base = np.array([0.7, 0.8, 0.9])
    kept = [arm("a", seed, base + 0.01) for seed in range(3)] + [arm("b", seed, base) for seed in range(2)]
    found = told.gain(told.by_arm(kept), "a", "b")
    assert found["mean"] == pytest.approx(0.01)
    assert (found["low"], found["high"]) == pytest.approx((0.01, 0.01))
    assert (found["seeds"], found["subjects"]) == (2, 3)
    assert told.gain(told.by_arm(kept), "a", "c") is None


def test_subjects_that_judge_all_seeds_are_not_counted_once_a_seed(told: ModuleType) -> None:
    subjects = np.random.default_rng(0).normal(0, 1, 30)
    low, high = told.interval(np.tile(subjects, (5, 1)))
    assert high - low == pytest.approx(2 * 1.96 * subjects.std() / np.sqrt(30), rel=0.1)


def test_seeds_count_in_an_interval(told: ModuleType) -> None:
    low, high = told.interval(np.repeat([[-1.0], [1.0]], 500, axis=1))
    assert (low, high) == pytest.approx((-1, 1))


def test_the_share_is_of_the_first_round_from_which_on_it_is_enough(told: ModuleType) -> None:
    counts = np.array([4.0, 8.0, 12.0])
    assert told.enough(np.array([0.7, 0.8, 0.81]), 0.8, counts, 40) == 0.2
    assert told.enough(np.array([0.9, 0.8, 0.8]), 0.8, counts, 40) == 0.1
    assert told.enough(np.array([0.7, 0.8, 0.79]), 0.8, counts, 40) == 1.0
    assert told.enough(np.array([0.7, 0.75, 0.79]), 0.8, counts, 40) == 1.0


def campaign(way: str, curve: list[float]) -> dict[str, Any]:
    effort = {"labelled": 4, "kinds": ["own"] * 16, "real": list(range(16)), "predicted": list(range(16))}
    rounds = [
        {"labelled": 8 + 4 * n, "dice": arm("", 0, [value] * 2)["dice"]} for n, value in enumerate(curve)
    ]
    return {"arm": way, "seed": 0, "rounds": rounds, "effort": [effort] * len(curve)}


def test_suggestion_is_held_against_the_lot_and_against_all(told: ModuleType) -> None:
    of = told.by_arm(
        [
            arm("start", 0, [0.6] * 2),
            arm("whole pool", 0, [0.9] * 2, pool=20),
            campaign(told.LOT, [0.7, 0.8]),
            campaign(told.LOT_ASIDE, [0.75, 0.8]),
            campaign(told.SUGGESTIVE, [0.8, 0.896]),
        ]
    )
    found = told.shares(of)
    assert found["pool"] == 20
    assert found[told.LOT]["share"] is None
    assert found[told.LOT]["low"] == 1
    assert found[told.SUGGESTIVE]["share"] == 0.6
    assert found[told.SUGGESTIVE]["dice"] == pytest.approx([0.6, 0.8, 0.896])
    gains = told.suggestive_gains(of)[told.SUGGESTIVE]
    assert [each["mean"] for each in gains["rounds"]] == pytest.approx([0.1, 0.096])
    assert gains["average"]["mean"] == pytest.approx(0.098)
    assert gains["over_lot_aside"]["mean"] == pytest.approx((0.05 + 0.096) / 2)
    assert "over_lot_aside" not in told.suggestive_gains(of)[told.LOT_ASIDE]


def test_outliers_can_be_left_out_of_a_rank(told: ModuleType) -> None:
    record = {
        "kinds": ["own"] * 3 + ["outlier"],
        "predicted": [1.0, 2.0, 3.0, 9.0],
        "real": [3.0, 2.0, 1.0, 9.0],
    }
    assert told.ranked(record, "predicted", outliers=False) == pytest.approx(-1)
    assert told.ranked(record, "predicted") == pytest.approx(0.2)
    assert np.isnan(told.ranked(record | {"real": [1.0] * 4}, "predicted"))


def test_coverage_counts_intervals_that_hold_the_truth(told: ModuleType) -> None:
    column = {
        "truth": [10.0, 10.0],
        "estimate": [10.0, 11.0],
        "by_held_out": [[9.0, 11.0], [10.5, 12.0]],
        "by_probability": [[0.0, 30.0]] * 2,
        "held_out": {"truth": [10.0, 10.5, 9.9], "estimate": [10.0, 10.4, 10.0]},
    }
    volumes = dict.fromkeys(TISSUES, column)
    found = told.coverage(told.by_arm([{"arm": "5 subjects", "seed": 0, "volumes": volumes}]))["5 subjects"]
    assert found["by_held_out"]["mean"] == 0.5
    assert found["by_held_out"]["width"]["gm"] == pytest.approx(0.175)
    assert found["by_probability"]["mean"] == 1


def test_intervals_drawn_anew_hold_what_they_promise(told: ModuleType) -> None:
    random = np.random.default_rng(0)
    truth = np.exp(random.normal(3, 0.2, 300))
    estimate = truth * np.exp(random.normal(0.05, 0.1, 300))
    column = {
        "truth": truth[20:].tolist(),
        "estimate": estimate[20:].tolist(),
        "held_out": {"truth": truth[:20].tolist(), "estimate": estimate[:20].tolist()},
    }
    assert told.split_coverage([dict.fromkeys(TISSUES, column)])["mean"] == pytest.approx(0.95, abs=0.02)


def test_an_oracle_takes_the_better_network_of_each_case(told: ModuleType) -> None:
    quiet, noisy = [0.9, 0.5], [0.7, 0.6]
    row = {
        "singles": {"quiet": arm("", 0, quiet), "noisy": arm("", 0, noisy)},
        "average": arm("", 0, [0.8, 0.6]),
        "routers": {told.ROUTER: arm("", 0, [0.9, 0.5], chosen={"quiet": 2, "noisy": 0})},
    }
    found = told.router({0: row})
    assert found["best_single"] == pytest.approx(0.7)
    assert found["oracle"] == pytest.approx(0.75)
    assert found["by_lot"] == pytest.approx(0.675)
    assert found[told.ROUTER]["over_best_single"]["mean"] == pytest.approx(0)
    assert found[told.ROUTER]["less_than_oracle"]["mean"] == pytest.approx(0.05)
    assert found[told.ROUTER]["over_average"]["mean"] == pytest.approx(0)


def test_the_page_is_what_the_measurements_say(told: ModuleType) -> None:
    made = script("brain_tissue_page")
    assert made.PAGE.read_text(encoding="utf-8") == made.page()


def test_without_measurements_the_page_says_so(told: ModuleType, tmp_path: Path) -> None:
    made = script("brain_tissue_page")
    assert made.page(tmp_path / "none.json").count(made.MISSING) == 16


def test_an_interval_over_zero_is_no_difference(told: ModuleType) -> None:
    made = script("brain_tissue_page")
    ends = [(0.1, 0.2), (-0.1, 0.2), (-0.2, -0.1)]
    assert [made.reading({"low": low, "high": high}) for low, high in ends] == [
        "better", "no difference seen", "worse",
    ]  # fmt: skip
