from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sagittal.annotation import Budget, CaseEffort, Effort, LoggedMinutes, Method, Unit, fit_minutes
from sagittal.core.errors import InputError
from sagittal.volume import Geometry
from sagittal.workflow.annotation_queue import (
    Pending,
    Queue,
    Scan,
    annotation_queue,
    proposal_of,
)

pytest.importorskip("scipy.ndimage")

SHAPE, SPACING = (24, 20, 8), (1.0, 1.0, 3.0)
CLASSES = ("gm", "wm")


def scan(seed: int, doubt: float, done: Any = None) -> Scan:
    """A simulated head: a ball of WM in a shell of GM. The third channel is how far networks doubt it."""
    rng = np.random.default_rng(seed)
    i, j, k = np.indices(SHAPE)
    depth = rng.uniform(7, 9) - np.hypot(np.hypot(i - 12, j - 10), 2 * (k - 3.5)) + rng.normal(scale=0.1)
    channels = np.stack([np.where(depth > 4, 0.9, 0.6) * (depth > 0), depth, np.full(SHAPE, doubt)])
    return Scan(
        channels=channels.astype(np.float32),
        mask=depth > 0,
        geometry=Geometry.from_spacing(SHAPE, SPACING),
        done=done,
    )


def case(seed: int, doubt: float, done: Any = None) -> Pending:
    return Pending(case=f"case-{seed}", subject=f"person {seed}", load=partial(scan, seed, doubt, done))


def predict(given: Scan, networks: int = 3) -> Any:
    """Networks that put the border of WM in places as far apart as the case's doubt."""
    said = []
    for shift in np.linspace(-1, 1, networks) if networks > 1 else [0.0]:
        doubt = given.channels[2]
        wm = 1 / (1 + np.exp(-(given.channels[1] - 4 + 2 * shift * doubt) / (0.1 + doubt)))
        said.append(np.stack([1 - wm, wm], axis=-1) * given.mask[..., None])
    return np.stack(said)


ONE = partial(predict, networks=1)
DOUBTS = (0.1, 0.9, 0.3, 0.6)
CASES = [case(seed, doubt) for seed, doubt in enumerate(DOUBTS)]


def queue(**told: Any) -> Queue:
    given = {"budget": Budget(number=2), "minutes": fit_minutes([])} | told
    return annotation_queue(given.pop("cases", CASES), given.pop("predict", predict), CLASSES, **given)


def test_the_most_uncertain_case_comes_first_with_its_minutes_and_why() -> None:
    found = queue(method=Method.UNCERTAINTY)
    assert [item.case for item in found.items] == ["case-1", "case-3"]
    first = found.items[0]
    assert first.minutes.low < first.minutes.value < first.minutes.high
    assert first.reason.startswith("mean disagreement")
    assert set(first.effort.tissues) == {"gm", "wm"}
    assert found.total is not None
    assert found.total.value == pytest.approx(sum(item.minutes.value for item in found.items))
    assert (found.networks, found.candidates) == (3, 4)
    assert any("nobody measured" in note for note in found.notes)
    assert not any("single network" in note for note in found.notes)


def test_doubtful_cases_take_longer() -> None:
    found = queue(budget=Budget(number=4), method=Method.UNCERTAINTY)
    minutes = [item.minutes.value for item in found.items]
    assert minutes == sorted(minutes, reverse=True)


def test_a_single_network_is_said_to_be_one() -> None:
    found = queue(predict=ONE, method=Method.UNCERTAINTY)
    assert found.networks == 1
    assert any("single network" in note for note in found.notes)
    assert found.items[0].reason.startswith("mean entropy")
    assert found.items[0].case == "case-1"


@pytest.mark.parametrize("method", list(Method))
def test_a_budget_of_minutes_is_kept(method: Method) -> None:
    whole = queue(budget=Budget(number=4), method=method)
    assert whole.total is not None
    half = queue(budget=Budget(minutes=whole.total.value / 2), method=method)
    assert half.total is not None
    assert 0 < half.total.value <= whole.total.value / 2
    assert len(half.items) < 4


def test_logged_minutes_move_the_prediction() -> None:
    one = Effort(voxels=0.1, edge=0.1, components=4, edge_mm=60, slices=5)
    work = CaseEffort(tissues={"gm": one}, slices=5)
    logs = [LoggedMinutes(subject=f"s{n}", effort=work, minutes=60.0) for n in range(12)]
    before, after = queue(), queue(minutes=fit_minutes(logs))
    assert before.total is not None
    assert after.total is not None
    assert after.total.value > 3 * before.total.value
    assert "12 logged annotations" in after.minutes_basis


def test_a_budget_that_nothing_fits_into_says_so() -> None:
    found = queue(budget=Budget(minutes=0.5))
    assert (found.items, found.total) == ((), None)
    assert any("nothing fits into 0.5 minutes" in note for note in found.notes)


def test_slices_that_are_annotated_are_not_asked_for_again() -> None:
    done = np.zeros(SHAPE, bool)
    done[..., 3] = True
    found = queue(cases=[case(1, 0.5, done)], unit=Unit.SLICE, budget=Budget(number=20))
    asked = [item.start[2] for item in found.items]
    assert asked
    assert 3 not in asked
    assert len(set(asked)) == len(asked) == found.candidates
    assert all(item.stop[2] == item.start[2] + 1 for item in found.items)


def test_a_budget_so_large_that_doubt_no_longer_counts_says_so() -> None:
    for number, said in ((1, False), (2, True)):
        notes = queue(budget=Budget(number=number), method=Method.UNCERTAINTY_COVER).notes
        assert any("holds all candidates" in note for note in notes) == said
    for method in (Method.COVER, Method.WEIGHTED_COVER):
        assert not any("holds all" in note for note in queue(method=method).notes)


def test_what_is_labelled_is_known() -> None:
    twin = Pending(case="twin", subject="twin", load=CASES[1].load)
    alone, beside = (
        queue(method=Method.CORE_SET, budget=Budget(number=4), labelled=known) for known in ((), [twin])
    )
    assert beside.items[-1].case == "case-1"
    assert alone.items != beside.items


def test_a_case_that_cannot_be_read_is_left_out_and_said_to_be() -> None:
    def broken() -> Scan:
        raise InputError("the image is empty", source="t1")

    bad = Pending(case="bad", subject="bad", load=broken)
    found = queue(cases=[*CASES, bad])
    assert found.candidates == 4
    assert "case bad is left out: t1: the image is empty" in found.notes
    with pytest.raises(InputError, match="case bad is left out: t1: the image is empty"):
        queue(cases=[bad])


def crowd(*, started: bool = False) -> list[Pending]:
    """Nine heads alike, and one whose image is a ghost of itself."""

    def spoilt() -> Scan:
        good = scan(9, 0.9)
        ghost = np.where(
            good.mask, np.roll(good.channels[0], SHAPE[0] // 4, 0) + (np.indices(SHAPE)[1] < 8), 0
        )
        return replace(good, channels=np.stack([ghost.astype(np.float32), *good.channels[1:]]))

    odd = Pending(case="case-9", subject="person 9", label="ghost", started=started, load=spoilt)
    return [*(case(seed, 0.1 + 0.01 * seed) for seed in range(9)), odd]


@pytest.mark.parametrize("unit", [Unit.VOLUME, Unit.SLICE])
def test_what_looks_unlike_the_others_is_set_aside_and_said(unit: Unit) -> None:
    told = {"cases": crowd(), "unit": unit, "method": Method.UNCERTAINTY}
    found = queue(**told)
    (aside,) = found.aside
    assert (aside.case, aside.label) == ("case-9", "ghost")
    assert aside.similarity < aside.usual
    assert str(aside) in found.notes
    assert "case-9" not in {item.case for item in found.items}
    everything = queue(**told, with_unlike=True)
    assert everything.aside == ()
    assert everything.items[0].case == "case-9"
    assert everything.candidates > found.candidates


def test_what_a_person_has_begun_is_not_set_aside() -> None:
    assert queue(cases=crowd(started=True)).aside == ()


def test_labelled_cases_say_what_is_usual() -> None:
    *usual, odd = crowd()
    assert queue(cases=[usual[0], odd]).aside == ()
    assert [one.case for one in queue(cases=[usual[0], odd], labelled=usual[1:]).aside] == ["case-9"]
    with pytest.raises(InputError, match=r"case-9 looks unlike the others .* leave to choose among all"):
        queue(cases=[odd], labelled=usual)


def test_the_page_shows_what_is_set_aside(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    pytest.importorskip("jinja2")
    from sagittal.workflow.export.queue_page import aside_pictures, queue_pictures, write_queue_page

    maps: dict[str, Any] = {}
    found = queue(cases=crowd(), keep=maps.__setitem__)
    pictures = queue_pictures(found, crowd(), maps.__getitem__)
    aside = aside_pictures(found, crowd(), maps.__getitem__)
    path = tmp_path / "queue.html"
    write_queue_page(found, pictures, path, store="store", model="model", aside=aside)
    text = path.read_text()
    assert "<b>ghost</b>, case case-9" in text
    assert aside[0].image in text
    assert "--with-unlike" in text
    write_queue_page(queue(), pictures, path, store="store", model="model")
    assert "Set aside" not in path.read_text()


def test_a_case_with_nothing_to_annotate_is_left_out() -> None:
    def empty() -> Scan:
        return replace(scan(0, 0.5), mask=np.zeros(SHAPE, bool))

    found = queue(cases=[*CASES, Pending(case="empty", subject="empty", load=empty)])
    assert found.candidates == 4
    assert "case empty is left out: nothing in it is to be annotated" in found.notes


def test_nothing_left_is_said() -> None:
    with pytest.raises(InputError, match="nothing is left to annotate"):
        queue(cases=[])
    with pytest.raises(InputError, match="nothing is left to annotate"):
        queue(cases=[case(0, 0.5, np.ones(SHAPE, bool))])


def test_uncertainty_and_proposal_by_hand() -> None:
    said = np.array([[[0.6, 0.4]], [[0.3, 0.0]]])  # two networks, one voxel, two labels
    labels, mean = proposal_of(said, np.array([True]))
    np.testing.assert_allclose(mean, [[0.45, 0.2]])
    np.testing.assert_array_equal(labels, [1])  # background has 0.35
    assert proposal_of(said[1:], np.array([True]))[0] == [0]
    assert proposal_of(said, np.array([False]))[0] == [0]
    for networks, expected in ((said, (0.15 + 0.2) / 2), (np.array([[[0.5, 0.0]]]), np.log(2) / np.log(3))):
        maps: dict[str, Any] = {}
        answer = networks[:, :, None, None, :]
        one = Scan(
            channels=np.ones((1, *SHAPE), np.float32),
            mask=np.ones(SHAPE, bool),
            geometry=Geometry.from_spacing(SHAPE, SPACING),
        )
        spread_out = np.broadcast_to(answer, (len(answer), *SHAPE, 2))
        pending = [Pending(case="one", subject="one", load=partial(replace, one))]
        queue(cases=pending, predict=lambda scan, told=spread_out: told, keep=maps.__setitem__)
        np.testing.assert_allclose(maps["one"], expected, rtol=1e-6)


def test_a_queue_is_json() -> None:
    found = json.loads(json.dumps(queue().to_json()))
    assert found["method"] == "weighted-cover"
    assert found["items"][0]["minutes"]["unit"] == "min"
    assert found["items"][0]["effort"]["tissues"]["gm"]["voxels"] > 0


def test_a_page_tells_the_sum_from_the_budget(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    pytest.importorskip("jinja2")
    from sagittal.workflow.export.queue_page import queue_pictures, write_queue_page

    told: list[str] = []
    maps: dict[str, Any] = {}
    for budget in (Budget(minutes=40), Budget(number=2), Budget(minutes=0.5)):
        found = queue(budget=budget, keep=maps.__setitem__)
        pictures = queue_pictures(found, CASES, maps.__getitem__)
        path = write_queue_page(found, pictures, tmp_path / "queue.html", store="store", model="model")
        told.append(" ".join(re.sub(r"<[^>]+>", " ", path.read_text()).split()))
        if found.total is not None:
            ends = [f"{v:.1f}" if v < 9.95 else f"{v:.0f}" for v in (found.total.low, found.total.high)]
            assert f"interval {ends[0]} to {ends[1]} minutes" in told[-1]
    assert re.search(r" [\d.]+ of 40 minutes for \d of 4 cases", told[0])
    assert re.search(r" [\d.]+ minutes for 2 of 4 cases", told[1])
    assert "Nothing of 4 candidates fits into the budget" in told[2]


def test_a_picture_is_of_the_slice_that_was_chosen_however_the_grid_lies() -> None:
    pytest.importorskip("PIL.Image")
    from sagittal.workflow.export.queue_page import queue_pictures

    shown = []
    for sign, place in ((1, "z = 15 mm"), (-1, "z = -15 mm")):
        geometry = Geometry(SHAPE, np.diag([1.0, 1.0, 3.0 * sign, 1.0]))
        turned = replace(scan(1, 0.5), geometry=geometry)
        pending = [Pending(case="one", subject="one", load=partial(replace, turned))]
        maps: dict[str, Any] = {}
        done = queue(cases=pending, unit=Unit.SLICE, budget=Budget(number=20), keep=maps.__setitem__)
        item = next(item for item in done.items if item.start[2] == 5)
        (picture,) = queue_pictures(replace(done, items=(item,)), pending, maps.__getitem__)
        assert picture.place == item.place(2) == f"axial, {place}"
        shown.append(picture.unsure)
    assert shown[0] == shown[1]


def test_the_page_shows_each_item_and_fetches_nothing(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("jinja2")
    from sagittal.workflow.export.queue_page import queue_pictures, write_queue_page

    maps: dict[str, Any] = {}
    found = queue(unit=Unit.SLICE, budget=Budget(number=3), keep=maps.__setitem__)
    pictures = queue_pictures(found, CASES, maps.__getitem__)
    files = {found.items[0].case: tmp_path / "one-labels.nii.gz"}
    path = write_queue_page(
        found, pictures, tmp_path / "queue.html", store="<store>", model="model", proposals=files
    )
    text = path.read_text()
    assert f"annotate import {tmp_path / 'one-labels.nii.gz'} --case {found.items[0].case}" in text
    assert "no minutes are logged: they are a prior that nobody measured" in text
    assert "&lt;store&gt;" in text
    assert "<store>" not in text
    assert len(re.findall(r"<section", text)) == 3
    for item in found.items:
        assert f"Case {item.case}" in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    for picture, item in zip(pictures, found.items, strict=True):
        height = Geometry.from_spacing(SHAPE, SPACING).index_to_world([0, 0, item.start[2]])[2]
        assert picture.place == f"axial, z = {height:.0f} mm"
        grey, over = (
            np.asarray(image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"), int)
            for uri in (picture.image, picture.unsure)
        )
        assert grey.shape == over.shape == (20, 24, 3)
        assert (np.ptp(grey, axis=-1) == 0).all()
        assert np.ptp(over, axis=-1).max() > 50
