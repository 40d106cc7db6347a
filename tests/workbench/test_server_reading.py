"""What can be read of cases, and that reading is written down."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from sagittal.case.record import FindingDraft
from sagittal.case.store import CaseStore
from sagittal.segmentation import entropy_bits
from sagittal.volume import Volume
from sagittal.workbench.server import ServerSettings
from sagittal.workflow import artifacts


def audit(client: TestClient, **wanted: str) -> list[dict[str, Any]]:
    return client.get("/api/audit", params=wanted).json()["rows"]


@pytest.fixture
def tissue(store_folder: Path, case_id: str) -> Volume:
    with CaseStore(store_folder, read_only=True) as store:
        artifact = store.case(case_id).latest("tissue")
        assert artifact is not None
        return artifacts.load(store.objects, artifact)


def test_the_worklist_says_of_each_case_what_the_store_says(
    browser: TestClient, store_folder: Path, case_id: str
) -> None:
    listed = browser.get("/api/cases").json()
    with CaseStore(store_folder, read_only=True) as store:
        (row,) = store.worklist().rows
    assert listed["total"] == 1
    assert listed["rows"] == [
        {
            "id": case_id,
            "label": "a phantom",
            "created": row.created,
            "changed": row.changed,
            "state": "open",
            "findings": row.findings,
            "undecided": row.undecided,
            "doubt": row.doubt,
            "worst": row.worst,
        }
    ]


@pytest.mark.parametrize(
    ("asked", "found"),
    [({"search": "PHANTOM"}, 1), ({"search": "nobody"}, 0), ({"state": "reviewed"}, 0), ({"offset": "1"}, 0)],
)
def test_the_worklist_is_searched_and_cut(browser: TestClient, asked: dict[str, str], found: int) -> None:
    assert len(browser.get("/api/cases", params=asked).json()["rows"]) == found


@pytest.mark.parametrize(
    "asked", [{"state": "lost"}, {"order": "luck"}, {"offset": "-1"}, {"limit": "0"}, {"limit": "9999999"}]
)
def test_a_worklist_that_cannot_be_is_refused(browser: TestClient, asked: dict[str, str]) -> None:
    refused = browser.get("/api/cases", params=asked)
    assert refused.status_code == 422
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["source"] == f"query.{next(iter(asked))}"


def test_a_case_names_its_volumes_and_their_parts(browser: TestClient, case_id: str) -> None:
    case = browser.get(f"/api/cases/{case_id}").json()
    assert case["label"] == "a phantom"
    assert case["findings_total"] == 11
    assert [run["step"] for run in case["runs"]][:3] == ["receive", "receive", "receive"]
    volumes = {volume["role"]: volume for volume in case["volumes"]}
    assert set(volumes) == {"t1", "tissue", "ct", "ct-classes"}
    assert [part["kind"] for part in volumes["t1"]["parts"]] == ["image"]
    assert volumes["t1"]["unit"] == "1"
    assert volumes["t1"]["shape"] == [36, 40, 32]
    assert [part["name"] for part in volumes["tissue"]["parts"]] == [
        "image",
        "probability-csf",
        "probability-gm",
        "probability-wm",
        "doubt",
    ]
    assert {role: volume["correctable"] for role, volume in volumes.items()} == {
        "t1": False,
        "tissue": True,
        "ct": False,
        "ct-classes": False,
    }
    assert audit(browser, case=case_id)[0]["action"] == "open-case"


@pytest.mark.parametrize(
    "path", ["", "/findings", "/provenance", "/report", "/identity", "/archive", "/jobs"]
)
def test_a_case_that_is_not_there_is_404(browser: TestClient, path: str) -> None:
    missing = browser.get(f"/api/cases/000000000000{path}")
    assert missing.status_code == 404
    assert missing.json()["detail"] == "no case has this id"


@pytest.mark.parametrize("wrong", ["nonsense", "0123456789AB", "0123456789abc", "%27%20OR%201", "..."])
def test_an_id_that_can_be_none_is_refused_by_its_form(browser: TestClient, wrong: str) -> None:
    assert browser.get(f"/api/cases/{wrong}").status_code in {404, 422}


def test_findings_come_in_parts_with_what_was_said_of_them(browser: TestClient, case_id: str) -> None:
    browser.post(f"/api/cases/{case_id}/findings/2/verdict", json={"verdict": "rejected", "note": "no"})
    first = browser.get(f"/api/cases/{case_id}/findings", params={"limit": 2}).json()
    assert first["total"] == 11
    assert [row["number"] for row in first["rows"]] == [1, 2]
    (said,) = first["rows"][1]["events"]
    assert (said["verdict"], said["who"], said["note"]) == ("rejected", "Reader A", "no")
    standing = browser.get(f"/api/cases/{case_id}/findings", params={"standing": True}).json()
    assert standing["total"] == 10
    assert 2 not in [row["number"] for row in standing["rows"]]


def test_a_finding_says_how_sure_it_is(browser: TestClient, case_id: str) -> None:
    rows = browser.get(f"/api/cases/{case_id}/findings").json()["rows"]
    volume = next(row for row in rows if row["code"] == "tissue.volume")
    amount = volume["measurement"]
    assert amount["low"] <= amount["value"] <= amount["high"]
    assert volume["doubt"] == pytest.approx((amount["high"] - amount["low"]) / 2 / amount["value"])


def test_a_large_seed_is_not_rounded_on_its_way(
    browser: TestClient, store_folder: Path, case_id: str
) -> None:
    runs = browser.get(f"/api/cases/{case_id}/provenance").json()["runs"]
    with CaseStore(store_folder, read_only=True) as store:
        seeds = [run.seed for run in store.case(case_id).runs]
    assert max(seeds) > 2**53
    assert [run["seed"] for run in runs] == [str(seed) for seed in seeds]


def test_provenance_leads_from_the_report_to_the_files(browser: TestClient, case_id: str) -> None:
    found = browser.get(f"/api/cases/{case_id}/provenance").json()
    steps = {run["number"]: run["step"] for run in found["runs"]}
    edges = {(steps[edge["source"]], steps[edge["target"]], edge["label"]) for edge in found["edges"]}
    assert ("read-image", "segment-tissue", "t1") in edges
    assert ("segment-tissue", "draft-report", "4 findings") in edges


def test_each_sentence_of_the_report_names_its_findings(browser: TestClient, case_id: str) -> None:
    report = browser.get(f"/api/cases/{case_id}/report").json()
    rows = browser.get(f"/api/cases/{case_id}/findings").json()["rows"]
    texts = {row["number"]: row["statement"] for row in rows}
    sentences = [sentence for section in report["sections"] for sentence in section["sentences"]]
    assert sentences
    assert all(texts[sentence["findings"][0]] == sentence["text"] for sentence in sentences)
    assert report["impression"]["author"] == "rules"


def test_parts_of_a_segmentation_are_its_labels_probabilities_and_doubt(
    browser: TestClient, case_id: str, tissue: Volume, nifti: Callable[[bytes], Volume]
) -> None:
    assert tissue.probabilities is not None
    wanted = {
        "image": tissue.array,
        "probability-gm": tissue.probabilities[..., 1],
        "doubt": entropy_bits(tissue.probabilities),
    }
    for part, values in wanted.items():
        answer = browser.get(f"/api/cases/{case_id}/volumes/tissue/{part}.nii.gz")
        assert answer.headers["content-type"] == "application/gzip"
        received = nifti(answer.content)
        np.testing.assert_array_equal(received.array, values)
        assert received.geometry.is_aligned(tissue.geometry)


@pytest.mark.parametrize("part", ["probability-bone", "probability-", "nothing", "image.nii", "variance"])
def test_a_part_that_a_volume_has_not_is_404(browser: TestClient, case_id: str, part: str) -> None:
    assert browser.get(f"/api/cases/{case_id}/volumes/tissue/{part}.nii.gz").status_code == 404


def test_an_old_volume_is_had_by_its_content_from_its_own_case_only(
    browser: TestClient, case_id: str, store_folder: Path
) -> None:
    content = next(
        volume["content"]
        for volume in browser.get(f"/api/cases/{case_id}").json()["volumes"]
        if volume["role"] == "t1"
    )
    path = f"/api/cases/{case_id}/volumes/{{}}/image.nii.gz"
    assert browser.get(path.format("t1"), params={"content": content}).status_code == 200
    assert browser.get(path.format("tissue"), params={"content": content}).status_code == 404
    with CaseStore(store_folder) as store:
        other = store.create_case("another")
    answer = browser.get(f"/api/cases/{other}/volumes/t1/image.nii.gz", params={"content": content})
    assert answer.status_code == 404


def test_a_volume_is_sent_in_ranges(browser: TestClient, case_id: str) -> None:
    path = f"/api/cases/{case_id}/volumes/t1/image.nii.gz"
    whole = browser.get(path).content
    size = len(whole)
    for asked, part, said in (
        ("bytes=0-99", whole[:100], f"bytes 0-99/{size}"),
        (f"bytes={size - 10}-", whole[-10:], f"bytes {size - 10}-{size - 1}/{size}"),
        ("bytes=-7", whole[-7:], f"bytes {size - 7}-{size - 1}/{size}"),
        (f"bytes=5-{10 * size}", whole[5:], f"bytes 5-{size - 1}/{size}"),
    ):
        answer = browser.get(path, headers={"Range": asked})
        assert (answer.status_code, answer.content) == (206, part)
        assert answer.headers["content-range"] == said


def test_a_range_outside_the_volume_is_416(browser: TestClient, case_id: str) -> None:
    path = f"/api/cases/{case_id}/volumes/t1/image.nii.gz"
    size = len(browser.get(path).content)
    answer = browser.get(path, headers={"Range": f"bytes={size}-"})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{size}"


@pytest.mark.parametrize("asked", ["bytes", "lines=1-2", "bytes=a-b", "bytes=9-1", "bytes=", "bytes=--1"])
def test_a_range_that_is_none_is_passed_over(browser: TestClient, case_id: str, asked: str) -> None:
    path = f"/api/cases/{case_id}/volumes/t1/image.nii.gz"
    answer = browser.get(path, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, browser.get(path).content)


def test_several_ranges_are_answered_whole_or_in_parts(browser: TestClient, case_id: str) -> None:
    path = f"/api/cases/{case_id}/volumes/t1/image.nii.gz"
    answer = browser.get(path, headers={"Range": "bytes=0-1,10-19"})
    assert answer.status_code in {200, 206}
    assert browser.get(path).content[10:20] in answer.content


def test_a_volume_that_is_known_is_not_sent_again(browser: TestClient, case_id: str) -> None:
    path = f"/api/cases/{case_id}/volumes/t1/image.nii.gz"
    tag = browser.get(path).headers["etag"]
    for known in (tag, f'"x", {tag}', f"W/{tag}", "*"):
        same = browser.get(path, headers={"If-None-Match": known})
        assert (same.status_code, same.content) == (304, b"")
        assert same.headers["etag"] == tag
    assert browser.get(path, headers={"If-None-Match": '"another"'}).status_code == 200


def test_a_range_of_a_volume_that_changed_is_sent_whole(browser: TestClient, case_id: str) -> None:
    path = f"/api/cases/{case_id}/volumes/t1/image.nii.gz"
    tag = browser.get(path).headers["etag"]
    assert browser.get(path, headers={"Range": "bytes=0-9", "If-Range": tag}).status_code == 206
    assert browser.get(path, headers={"Range": "bytes=0-9", "If-Range": '"old"'}).status_code == 200


def test_only_a_volume_named_by_its_content_may_be_kept(browser: TestClient, case_id: str) -> None:
    (t1,) = [v for v in browser.get(f"/api/cases/{case_id}").json()["volumes"] if v["role"] == "t1"]
    path = f"/api/cases/{case_id}/volumes/t1/image.nii.gz"
    named = browser.get(path, params={"content": t1["content"]})
    assert named.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert browser.get(path).headers["cache-control"] == "private, no-cache"


def test_served_files_take_no_more_room_than_allowed(
    serve: Callable[..., TestClient], store_folder: Path, case_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagittal.workbench.server.volumes._RESTING_SECONDS", -1)
    client = serve(ServerSettings(store=str(store_folder), token="t" * 32, served_bytes=1))
    client.headers["Authorization"] = f"Bearer {'t' * 32}"
    for part in ("image", "doubt"):
        assert client.get(f"/api/cases/{case_id}/volumes/tissue/{part}.nii.gz").status_code == 200
    assert len(list((store_folder / "served").iterdir())) == 1


def test_a_slice_is_a_picture_of_it(browser: TestClient, case_id: str) -> None:
    image = pytest.importorskip("PIL.Image")
    import io

    base = f"/api/cases/{case_id}/slices/t1"
    plain = browser.get(f"{base}/axial/16.png")
    assert plain.headers["content-type"] == "image/png"
    grey = np.asarray(image.open(io.BytesIO(plain.content)))
    assert (grey[..., 0] == grey[..., 2]).all()
    over = browser.get(f"{base}/axial/16.png", params={"over": "tissue/image"})
    coloured = np.asarray(image.open(io.BytesIO(over.content))).astype(int)
    assert coloured.shape == grey.shape
    assert (coloured[..., 0] != coloured[..., 2]).mean() > 0.2
    doubt = browser.get(f"/api/cases/{case_id}/slices/tissue/coronal/20.png", params={"over": "doubt"})
    assert doubt.status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("t1/axial/32.png", 422),
        ("t1/axial/-1.png", 422),
        ("t1/oblique/1.png", 422),
        ("none/axial/1.png", 404),
        ("t1/axial/1.png?over=nothing", 404),
        ("t1/axial/1.png?over=none/image", 404),
        ("t1/axial/1.png?over=ct-classes/image", 422),
    ],
)
def test_a_slice_that_is_not_there_is_refused(
    browser: TestClient, case_id: str, path: str, status: int
) -> None:
    assert browser.get(f"/api/cases/{case_id}/slices/{path}").status_code == status


def test_identity_is_shown_when_asked_for_and_nowhere_else(browser: TestClient, case_id: str) -> None:
    shown = browser.get(f"/api/cases/{case_id}/identity").json()["roles"]["ct"]
    (name,) = shown["PatientName"]
    assert audit(browser)[0]["action"] == "show-identity"
    for path in ("", "/findings", "/provenance", "/report"):
        assert name not in browser.get(f"/api/cases/{case_id}{path}").text
    assert name not in json.dumps(audit(browser))
    assert name not in browser.get(f"/cases/{case_id}").text


def test_each_access_leaves_a_line_and_no_search_is_kept(browser: TestClient, case_id: str) -> None:
    browser.get("/api/cases", params={"search": "Jane Doe"})
    browser.get(f"/api/cases/{case_id}")
    browser.get(f"/api/cases/{case_id}/findings")
    browser.get(f"/api/cases/{case_id}/findings/1")
    browser.get(f"/api/cases/{case_id}/volumes/t1/image.nii.gz")
    browser.get(f"/api/cases/{case_id}/slices/t1/axial/1.png")
    browser.get(f"/api/cases/{case_id}/report")
    browser.get(f"/api/cases/{case_id}/provenance")
    browser.get(f"/api/cases/{case_id}/archive")
    lines = audit(browser)
    assert [line["action"] for line in lines[:9]] == [
        "download-archive",
        "read-provenance",
        "read-report",
        "read-slice",
        "read-volume",
        "read-finding",
        "read-findings",
        "open-case",
        "worklist",
    ]
    assert {line["who"] for line in lines[:9]} == {"Reader A"}
    assert lines[8]["detail"]["search_letters"] == 8
    assert "Jane" not in json.dumps(lines)


def test_the_audit_of_one_case_is_its_own(browser: TestClient, case_id: str, store_folder: Path) -> None:
    with CaseStore(store_folder) as store:
        other = store.create_case("another")
    browser.get(f"/api/cases/{case_id}")
    assert [line["action"] for line in audit(browser, case=other)] == ["create-case"]


def test_labels_and_names_in_any_script_come_back_as_they_were(
    open_browser: Callable[[str], TestClient], store_folder: Path
) -> None:
    label, name = "משה — 病例 ٣ 🧠 ÅÄÖ", "دكتورة ليلى"
    with CaseStore(store_folder) as store:
        case_id = store.create_case(label)
    browser = open_browser(name)
    (row,) = browser.get("/api/cases", params={"search": "病例"}).json()["rows"]
    assert row["label"] == label
    assert browser.get(f"/api/cases/{case_id}").json()["label"] == label
    assert audit(browser)[0]["who"] == name


def test_a_case_with_many_findings_is_read_in_parts(
    browser: TestClient, store_folder: Path, case_id: str
) -> None:
    with CaseStore(store_folder) as store:
        large = store.create_case("large")
        run = store.case(case_id).runs[-1]
        drafts = [
            FindingDraft(code="tissue.volume", subject=f"part {n}", statement=f"Part {n}.")
            for n in range(50_000)
        ]
        store.add_run(large, run, drafts)
    assert browser.get(f"/api/cases/{large}").json()["findings_total"] == 50_000
    last = browser.get(f"/api/cases/{large}/findings", params={"offset": 49_950}).json()
    assert last["total"] == 50_000
    assert [row["number"] for row in last["rows"]] == list(range(49_951, 50_001))


def test_the_schema_names_every_answer(browser: TestClient) -> None:
    schema = browser.get("/api/openapi.json").json()
    for path, methods in schema["paths"].items():
        for method, said in methods.items():
            assert {"401", "403", "421", "422", "503"} <= set(said["responses"]), (method, path)
            for status, answer in said["responses"].items():
                if int(status) >= 400 and status != "416":
                    assert set(answer["content"]) == {"application/problem+json"}, (method, path, status)
