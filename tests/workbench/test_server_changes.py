"""What a reader changes through the server: verdicts, statements, drafts, corrected masks."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from sagittal.case.store import CaseStore
from sagittal.volume import Geometry, Volume, reorient
from sagittal.workbench.server import ServerSettings
from sagittal.workflow import artifacts
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.replay import replay


@pytest.fixture
def tissue(store_folder: Path, case_id: str) -> tuple[str, Volume]:
    """The segmentation as it is first, with its content's hash."""
    with CaseStore(store_folder, read_only=True) as store:
        artifact = store.case(case_id).latest("tissue")
        assert artifact is not None
        return artifact.content, artifacts.load(store.objects, artifact)


@pytest.fixture
def painted(tissue: tuple[str, Volume]) -> Volume:
    """Its labels with a block of white matter painted as grey matter."""
    labels = np.array(tissue[1].array)
    block = labels[16:20, 18:22, 14:18]
    block[block == 3] = 2
    return Volume(labels, tissue[1].geometry)


def correct(client: TestClient, case_id: str, content: bytes, edited: str | None, **more: Any) -> Any:
    headers = {"If-Match": f'"{edited}"'} if edited else {}
    path = f"/api/cases/{case_id}/volumes/{more.pop('role', 'tissue')}/correction"
    return client.post(path, content=content, headers=headers, params=more)


def findings(client: TestClient, case_id: str, **asked: Any) -> list[dict[str, Any]]:
    return client.get(f"/api/cases/{case_id}/findings", params=asked).json()["rows"]


def test_a_verdict_is_signed_with_the_sessions_name_whatever_is_sent(
    browser: TestClient, case_id: str
) -> None:
    said = browser.post(
        f"/api/cases/{case_id}/findings/1/verdict",
        json={"verdict": "accepted", "who": "Somebody else", "note": "agrees"},
    )
    assert said.json() == {
        "case": case_id,
        "finding": 1,
        "state": "accepted",
        "who": "Reader A",
        "successor": None,
    }
    assert browser.get("/api/audit").json()["rows"][0]["action"] == "judge"


def test_a_verdict_without_a_name_is_refused(open_browser: Callable[[str], TestClient], case_id: str) -> None:
    nameless = open_browser("")
    path = f"/api/cases/{case_id}/findings/1/verdict"
    assert nameless.post(path, json={"verdict": "accepted"}).status_code == 422
    assert nameless.post(path, json={"verdict": "accepted", "who": " "}).status_code == 422
    assert nameless.post(path, json={"verdict": "accepted", "who": "Reader B"}).json()["who"] == "Reader B"


@pytest.mark.parametrize("name", ["", "   ", "a\nb", "\x00", "x" * 201, "\u202e"])
def test_what_can_be_no_name_is_refused(browser: TestClient, name: str) -> None:
    assert browser.post("/api/session", json={"name": name}).status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"verdict": "superseded"},
        {"verdict": "accepted", "note": "x" * 10_001},
        {"verdict": "accepted", "note": "\x00"},
        [],
        None,
    ],
)
def test_a_verdict_that_is_none_is_refused(browser: TestClient, case_id: str, body: Any) -> None:
    assert browser.post(f"/api/cases/{case_id}/findings/1/verdict", json=body).status_code == 422
    assert browser.get(f"/api/cases/{case_id}/findings/1").json()["state"] == "draft"


def test_a_body_that_is_no_json_is_refused(browser: TestClient, case_id: str) -> None:
    path = f"/api/cases/{case_id}/findings/1/verdict"
    kind = {"Content-Type": "application/json"}
    for body in (b"{", b"\xff\xfe", b"[" * 100_000):
        assert browser.post(path, content=body, headers=kind).status_code in {400, 422}


@pytest.mark.parametrize("number", [0, -1, 12, 2**31, 10**30])
def test_a_finding_that_is_not_there_is_refused(browser: TestClient, case_id: str, number: int) -> None:
    path = f"/api/cases/{case_id}/findings/{number}/verdict"
    assert browser.post(path, json={"verdict": "accepted"}).status_code in {404, 422}


def test_a_finding_that_no_longer_stands_is_a_conflict(browser: TestClient, case_id: str) -> None:
    path = f"/api/cases/{case_id}/findings/1"
    assert browser.post(f"{path}/verdict", json={"verdict": "rejected"}).status_code == 200
    for again in (
        browser.post(f"{path}/verdict", json={"verdict": "accepted"}),
        browser.post(f"{path}/statement", json={"statement": "Else."}),
    ):
        assert again.status_code == 409
        assert "rejected by Reader A" in again.json()["value"]


def test_a_statement_takes_the_place_of_a_finding(browser: TestClient, case_id: str) -> None:
    said = browser.post(
        f"/api/cases/{case_id}/findings/1/statement", json={"statement": "所見なし。", "note": "seen"}
    )
    assert said.status_code == 201
    new = browser.get(f"/api/cases/{case_id}/findings/{said.json()['successor']}").json()
    assert (new["statement"], new["author"], new["state"]) == ("所見なし。", "Reader A", "draft")
    old = browser.get(f"/api/cases/{case_id}/findings/1").json()
    assert (old["state"], old["events"][-1]["successor"]) == ("superseded", new["number"])


def test_a_report_is_drafted_again_from_what_stands(browser: TestClient, case_id: str) -> None:
    statement = browser.get(f"/api/cases/{case_id}/findings/1").json()["statement"]
    before = browser.get(f"/api/cases/{case_id}/report")
    assert statement in before.text
    browser.post(f"/api/cases/{case_id}/findings/1/verdict", json={"verdict": "rejected"})
    drafted = browser.post(f"/api/cases/{case_id}/report")
    assert drafted.status_code == 201
    assert drafted.json()["run"] > before.json()["run"]
    assert statement not in drafted.text
    assert browser.get(f"/api/cases/{case_id}/report").json() == drafted.json()


def test_a_case_without_findings_has_no_report(browser: TestClient, store_folder: Path) -> None:
    with CaseStore(store_folder) as store:
        empty = store.create_case("empty")
    assert browser.get(f"/api/cases/{empty}/report").status_code == 404
    assert browser.post(f"/api/cases/{empty}/report").status_code == 422


def test_a_model_that_nobody_knows_is_refused(browser: TestClient, case_id: str) -> None:
    path = f"/api/cases/{case_id}/report"
    assert browser.post(path, json={"model": "another-model"}).status_code == 422
    assert browser.post(path, json={"model": "../../models"}).status_code == 422


def test_a_corrected_mask_is_kept_and_measured_again(
    browser: TestClient,
    case_id: str,
    tissue: tuple[str, Volume],
    painted: Volume,
    as_nifti: Callable[[Volume], bytes],
    nifti: Callable[[bytes], Volume],
) -> None:
    content, before = tissue
    changed = int((painted.array != before.array).sum())
    old = {row["subject"]: row for row in findings(browser, case_id) if row["code"] == "tissue.volume"}
    kept = correct(browser, case_id, as_nifti(painted), content, note="a lesion")
    assert kept.status_code == 201
    assert kept.json()["changed"] == changed > 0
    served = browser.get(f"/api/cases/{case_id}/volumes/tissue/image.nii.gz").content
    np.testing.assert_array_equal(nifti(served).array, painted.array)
    rows = findings(browser, case_id, standing=True)
    new = {row["subject"]: row for row in rows if row["code"] == "tissue.volume"}
    size = before.geometry.voxel_volume_ml
    grown = new["grey matter"]["measurement"]["value"] - old["grey matter"]["measurement"]["value"]
    assert grown == pytest.approx(changed * size, rel=0.02)
    assert new["grey matter"]["author"] == "Reader A"
    assert f"corrected by hand in {changed} voxels" in new["grey matter"]["caution"]
    assert {row["number"] for row in new.values()} <= set(kept.json()["findings"])
    event = browser.get(f"/api/cases/{case_id}/findings/{old['grey matter']['number']}").json()["events"][-1]
    assert (event["verdict"], event["who"]) == ("superseded", "Reader A")
    assert event["successor"] == new["grey matter"]["number"]


def test_where_the_label_stayed_the_doubt_stays(
    browser: TestClient,
    store_folder: Path,
    case_id: str,
    tissue: tuple[str, Volume],
    painted: Volume,
    as_nifti: Callable[[Volume], bytes],
) -> None:
    content, before = tissue
    correct(browser, case_id, as_nifti(painted), content)
    with CaseStore(store_folder, read_only=True) as store:
        case = store.case(case_id)
        artifact = case.latest("tissue")
        assert artifact is not None
        after = artifacts.load(store.objects, artifact)
    differs = painted.array != before.array
    assert before.probabilities is not None
    np.testing.assert_array_equal(after.probabilities[~differs], before.probabilities[~differs])
    assert (after.probabilities[differs] == [0, 1, 0]).all()
    assert "is not known" in case.runs[-1].doubt
    assert case.runs[-1].author == "Reader A"


def test_a_correction_is_replayed(
    browser: TestClient,
    store_folder: Path,
    case_id: str,
    tissue: tuple[str, Volume],
    painted: Volume,
    as_nifti: Callable[[Volume], bytes],
) -> None:
    correct(browser, case_id, as_nifti(painted), tissue[0])
    with CaseStore(store_folder) as store:
        runs = replay(store, case_id, shelf=ModelShelf(offline=True))
    assert runs[-1].step == "correct-mask"
    assert [run.differences for run in runs] == [()] * len(runs)


def test_the_second_of_two_corrections_of_one_mask_is_told(
    open_browser: Callable[[str], TestClient],
    case_id: str,
    tissue: tuple[str, Volume],
    painted: Volume,
    as_nifti: Callable[[Volume], bytes],
) -> None:
    one, other = open_browser("Reader A"), open_browser("Reader B")
    first = correct(one, case_id, as_nifti(painted), tissue[0])
    assert first.status_code == 201
    before = findings(one, case_id)
    second = correct(other, case_id, as_nifti(painted), tissue[0])
    assert second.status_code == 409
    assert "Reader A" in second.json()["value"]
    assert findings(one, case_id) == before
    emptied = Volume(np.zeros_like(painted.array), painted.geometry)
    again = correct(other, case_id, as_nifti(emptied), first.json()["content"])
    assert again.status_code == 201
    assert all(
        row["author"] == "Reader B"
        for row in findings(one, case_id, standing=True)
        if "tissue" in row["code"]
    )


def test_a_verdict_on_the_mask_does_not_stand_in_the_way(
    browser: TestClient,
    case_id: str,
    tissue: tuple[str, Volume],
    painted: Volume,
    as_nifti: Callable[[Volume], bytes],
) -> None:
    rows = [row for row in findings(browser, case_id) if row["code"] == "tissue.volume"]
    for row, verdict in zip(rows[:2], ("accepted", "rejected"), strict=True):
        browser.post(f"/api/cases/{case_id}/findings/{row['number']}/verdict", json={"verdict": verdict})
    assert correct(browser, case_id, as_nifti(painted), tissue[0]).status_code == 201
    states = [findings(browser, case_id)[row["number"] - 1]["state"] for row in rows]
    assert states == ["superseded", "rejected", "superseded"]


def test_a_mask_with_its_axes_turned_is_put_back_by_its_affine(
    browser: TestClient,
    case_id: str,
    tissue: tuple[str, Volume],
    painted: Volume,
    as_nifti: Callable[[Volume], bytes],
    nifti: Callable[[bytes], Volume],
) -> None:
    kept = correct(browser, case_id, as_nifti(reorient(painted, "PIR")), tissue[0])
    assert kept.status_code == 201
    served = browser.get(f"/api/cases/{case_id}/volumes/tissue/image.nii.gz").content
    np.testing.assert_array_equal(nifti(served).array, painted.array)


def test_a_mask_of_another_place_is_refused(
    browser: TestClient,
    case_id: str,
    tissue: tuple[str, Volume],
    painted: Volume,
    as_nifti: Callable[[Volume], bytes],
) -> None:
    affine = np.array(painted.geometry.affine)
    affine[0, 3] += 1
    moved = Volume(painted.array, Geometry(painted.shape, affine))
    smaller = Volume(painted.array[:-1], Geometry((35, 40, 32), painted.geometry.affine))
    for wrong in (moved, smaller):
        refused = correct(browser, case_id, as_nifti(wrong), tissue[0])
        assert refused.status_code == 422
        assert "expected" in refused.json()


@pytest.mark.parametrize("label", [4, 255, -1, 1.5])
def test_a_label_that_is_no_class_is_refused(
    browser: TestClient,
    case_id: str,
    tissue: tuple[str, Volume],
    painted: Volume,
    as_nifti: Callable[[Volume], bytes],
    label: float,
) -> None:
    labels = painted.array.astype(np.float32)
    labels[18, 20, 16] = label
    refused = correct(browser, case_id, as_nifti(Volume(labels, painted.geometry)), tissue[0])
    assert refused.status_code == 422
    assert "0 none, csf, gm, wm" in refused.json()["expected"]


def test_a_mask_without_a_change_is_refused(
    browser: TestClient, case_id: str, tissue: tuple[str, Volume], as_nifti: Callable[[Volume], bytes]
) -> None:
    same = Volume(tissue[1].array, tissue[1].geometry)
    assert correct(browser, case_id, as_nifti(same), tissue[0]).status_code == 422


def test_which_mask_was_edited_has_to_be_said(
    browser: TestClient, case_id: str, painted: Volume, as_nifti: Callable[[Volume], bytes]
) -> None:
    content = as_nifti(painted)
    assert correct(browser, case_id, content, None).status_code == 428
    for wrong in ("", "*", "abc", '"a", "b"'):
        path = f"/api/cases/{case_id}/volumes/tissue/correction"
        assert browser.post(path, content=content, headers={"If-Match": wrong}).status_code == 412
    assert correct(browser, case_id, content, "0" * 64).status_code == 409


@pytest.mark.parametrize("role", ["t1", "ct-classes"])
def test_what_cannot_be_measured_again_is_not_corrected(
    browser: TestClient, case_id: str, painted: Volume, as_nifti: Callable[[Volume], bytes], role: str
) -> None:
    (volume,) = [v for v in browser.get(f"/api/cases/{case_id}").json()["volumes"] if v["role"] == role]
    refused = correct(browser, case_id, as_nifti(painted), volume["content"], role=role)
    assert refused.status_code == 422


@pytest.mark.parametrize(
    "body",
    [b"", b"not an image", gzip.compress(b"\0" * 1000), gzip.compress(b"\0" * 1000)[:-9]],
    ids=["empty", "text", "zeros", "cut"],
)
def test_a_mask_that_is_no_image_is_refused(
    browser: TestClient, case_id: str, tissue: tuple[str, Volume], body: bytes
) -> None:
    refused = correct(browser, case_id, body, tissue[0])
    assert refused.status_code == 422
    assert "/tmp" not in refused.text


def test_a_mask_that_promises_too_much_is_refused_before_it_is_unpacked(
    serve: Callable[..., TestClient],
    settings: ServerSettings,
    case_id: str,
    tissue: tuple[str, Volume],
    painted: Volume,
    as_nifti: Callable[[Volume], bytes],
) -> None:
    client = serve(replace(settings, largest_volume=10_000))
    client.headers["Authorization"] = f"Bearer {settings.token}"
    refused = correct(client, case_id, as_nifti(painted), tissue[0], who="Reader A")
    assert refused.status_code == 422
    assert refused.json()["detail"] == "the header promises more data than allowed"


def test_a_correction_is_a_box_of_the_provenance(
    browser: TestClient,
    case_id: str,
    tissue: tuple[str, Volume],
    painted: Volume,
    as_nifti: Callable[[Volume], bytes],
) -> None:
    run = correct(browser, case_id, as_nifti(painted), tissue[0]).json()["run"]
    found = browser.get(f"/api/cases/{case_id}/provenance").json()
    steps = {one["number"]: one["step"] for one in found["runs"]}
    assert steps[run] == "correct-mask"
    sources = {steps[edge["source"]] for edge in found["edges"] if edge["target"] == run}
    assert sources == {"segment-tissue"}
    assert browser.get(f"/cases/{case_id}").status_code == 200
