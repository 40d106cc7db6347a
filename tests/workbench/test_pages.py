"""The pages as HTML: what they say, what their forms change, and what they refuse. No browser is needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from sagittal.case.record import FindingDraft
from sagittal.case.store import CaseStore
from sagittal.workbench.pages import frontend, routes
from sagittal.workbench.server import ServerSettings

Open = Callable[[str], TestClient]


@pytest.fixture
def reader(open_browser: Open) -> TestClient:
    """A browser that signed in and has no name yet; it sends forms, and no header of the API."""
    client = open_browser("")
    del client.headers["X-Sagittal-CSRF"]
    return client


def csrf(client: TestClient) -> str:
    found = re.search(r'<meta name="csrf" content="([0-9a-f]{64})">', client.get("/").text)
    assert found is not None
    return found.group(1)


def say(client: TestClient, path: str, **fields: str) -> Any:
    return client.post(path, data={"csrf": csrf(client), **fields})


def finding(store_folder: Path, case_id: str, number: int) -> Any:
    with CaseStore(store_folder, read_only=True) as store:
        return store.finding(case_id, number)


def row_of(text: str, number: int) -> str:
    """The HTML of one finding."""
    start = text.index(f'id="finding-{number}"')
    return text[start : text.index("</details></li>", start)]


def test_the_worklist_links_to_the_case_and_draws_its_doubt(reader: TestClient, case_id: str) -> None:
    text = reader.get("/").text
    assert f'href="/cases/{case_id}"' in text
    doubt = reader.get("/api/cases").json()["rows"][0]["doubt"]
    assert f">{doubt:.2f}<" in text
    assert f'width="{64 * doubt:.1f}"' in text


def test_a_search_without_a_match_offers_the_way_back(reader: TestClient) -> None:
    text = reader.get("/", params={"search": "nobody"}).text
    assert "No case matches." in text
    assert '<a href="/">Show every case</a>' in text


def test_an_empty_store_says_how_to_make_a_case(
    serve: Callable[..., TestClient], tmp_path: Path, settings: ServerSettings
) -> None:
    client = serve(replace(settings, store=str(tmp_path / "empty")))
    client.get("/", params={"token": settings.token})
    assert "There is no case yet." in client.get("/").text


def test_an_order_that_does_not_exist_is_refused_on_a_page(reader: TestClient) -> None:
    answer = reader.get("/", params={"order": "beauty"})
    assert answer.status_code == 422
    assert "beauty" in answer.text
    assert 'role="alert"' in answer.text


def test_the_worklist_comes_in_pages(reader: TestClient, store_folder: Path) -> None:
    with CaseStore(store_folder) as store:
        for index in range(60):
            store.create_case(f"case {index:02}")
    first = reader.get("/", params={"order": "label"}).text
    assert "1 to 50 of 61" in first
    following = re.search(r'href="([^"]*offset=50[^"]*)" rel="next"', first)
    assert following is not None
    second = reader.get(following.group(1).replace("&amp;", "&")).text
    assert "51 to 61 of 61" in second
    assert 'rel="next"' not in second


def test_labels_and_notes_are_shown_as_text(reader: TestClient, store_folder: Path, case_id: str) -> None:
    with CaseStore(store_folder) as store:
        other = store.create_case("<script>alert(1)</script> Ünï 患者")
    for path in ("/", f"/cases/{other}"):
        text = reader.get(path).text
        assert "<script>alert(1)" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt; Ünï 患者" in text
    say(reader, f"/cases/{case_id}/findings/2/verdict", verdict="accepted", name="A", note="<b>bold</b>")
    text = reader.get(f"/cases/{case_id}").text
    assert "&lt;b&gt;bold&lt;/b&gt;" in text
    assert "<b>bold</b>" not in text


def test_pages_hold_nothing_that_the_content_policy_forbids(reader: TestClient, case_id: str) -> None:
    for path in ("/", f"/cases/{case_id}", f"/cases/{case_id}/compare?a=2&b=3"):
        text = reader.get(path).text
        assert re.findall(r"\sstyle=|<style|\son[a-z]+=|javascript:", text) == []
        assert re.findall(r"<script(?![^>]*\ssrc=)", text) == []
        assert re.findall(r'(?:src|href)="(?!/|#|data:,)([^"]*)"', text) == []


def test_every_sentence_of_the_report_links_to_its_findings_and_back(
    reader: TestClient, case_id: str
) -> None:
    text = reader.get(f"/cases/{case_id}").text
    report = reader.get(f"/api/cases/{case_id}/report").json()
    sentences = [sentence for section in report["sections"] for sentence in section["sentences"]]
    for place, sentence in enumerate(sentences, start=1):
        for number in sentence["findings"]:
            start = text.index(f'id="sentence-{place}"')
            assert f'href="/cases/{case_id}#finding-{number}"' in text[start : text.index("</li>", start)]
            assert f'href="#sentence-{place}"' in row_of(text, number)


def test_a_finding_shows_value_interval_doubt_and_caution(
    reader: TestClient, store_folder: Path, case_id: str
) -> None:
    content = finding(store_folder, case_id, 2).content
    row = row_of(reader.get(f"/cases/{case_id}").text, 2)
    for said in (content.measurement.amount, content.measurement.interval, content.caution):
        assert said in row
    assert f">{content.doubt:.2f}<" in row


def test_a_verdict_is_kept_with_the_name_that_was_given(
    reader: TestClient, store_folder: Path, case_id: str
) -> None:
    answer = say(
        reader, f"/cases/{case_id}/findings/2/verdict", verdict="accepted", name="Dr. Ōta", note="seen"
    )
    assert answer.status_code == 303
    assert answer.headers["location"] == f"/cases/{case_id}#finding-2"
    (event,) = finding(store_folder, case_id, 2).events
    assert (event.verdict.value, event.who, event.note) == ("accepted", "Dr. Ōta", "seen")
    row = row_of(reader.get(f"/cases/{case_id}").text, 2)
    assert "accepted by Dr. Ōta: “seen”" in row


def test_the_session_keeps_the_name_and_nobody_signs_as_somebody_else(
    reader: TestClient, store_folder: Path, case_id: str
) -> None:
    say(reader, f"/cases/{case_id}/findings/2/verdict", verdict="accepted", name="Reader A")
    say(reader, f"/cases/{case_id}/findings/3/verdict", verdict="accepted", name="Reader B")
    assert finding(store_folder, case_id, 3).events[0].who == "Reader A"
    assert "Signed in as Reader A" in reader.get("/").text


def test_a_form_without_the_csrf_value_changes_nothing(
    reader: TestClient, store_folder: Path, case_id: str
) -> None:
    answer = reader.post(
        f"/cases/{case_id}/findings/2/verdict", data={"verdict": "accepted", "name": "Mallory"}
    )
    assert answer.status_code == 403
    assert finding(store_folder, case_id, 2).events == ()


def test_a_verdict_without_a_name_is_refused_on_the_case(
    reader: TestClient, store_folder: Path, case_id: str
) -> None:
    answer = say(reader, f"/cases/{case_id}/findings/2/verdict", verdict="accepted", name=" ")
    assert answer.status_code == 422
    assert "That was not done" in answer.text
    assert 'id="finding-2"' in answer.text
    assert finding(store_folder, case_id, 2).events == ()


def test_a_finding_that_no_longer_stands_cannot_be_judged(reader: TestClient, case_id: str) -> None:
    path = f"/cases/{case_id}/findings/2/verdict"
    assert say(reader, path, verdict="rejected", name="A").status_code == 303
    answer = say(reader, path, verdict="accepted", name="A")
    assert answer.status_code == 409
    assert "no longer stands" in answer.text


def test_a_corrected_statement_takes_the_place_and_is_linked_both_ways(
    reader: TestClient, store_folder: Path, case_id: str
) -> None:
    path = f"/cases/{case_id}/findings/2/statement"
    answer = say(reader, path, statement="Fluid spaces are normal.", name="Reader A")
    new = int(answer.headers["location"].rsplit("-", 1)[1])
    content = finding(store_folder, case_id, new).content
    assert (content.statement, content.measurement) == ("Fluid spaces are normal.", None)
    text = reader.get(f"/cases/{case_id}", params={"show": "all"}).text
    assert f"#finding-{new}" in row_of(text, 2)
    assert f"/cases/{case_id}/compare?a=2&amp;b={new}" in row_of(text, new)
    assert 'id="finding-2"' not in reader.get(f"/cases/{case_id}").text


def test_a_report_says_that_it_is_out_of_date_and_is_drafted_again(reader: TestClient, case_id: str) -> None:
    say(reader, f"/cases/{case_id}/findings/2/verdict", verdict="rejected", name="A")
    assert "Findings changed since this was drafted: 2 rejected." in reader.get(f"/cases/{case_id}").text
    assert say(reader, f"/cases/{case_id}/report").status_code == 303
    assert "Findings changed since" not in reader.get(f"/cases/{case_id}").text


def test_two_findings_are_compared_field_by_field(
    reader: TestClient, store_folder: Path, case_id: str
) -> None:
    text = reader.get(f"/cases/{case_id}/compare", params={"a": 2, "b": 3}).text
    table = text[text.index("What differs") :]
    for number in (2, 3):
        assert finding(store_folder, case_id, number).content.measurement.amount in table
    assert "Seed" not in table  # one run made both


@pytest.mark.parametrize("path", ["/cases/000000000000", "/cases/{case}/compare?a=1&b=999"])
def test_what_does_not_exist_is_said_on_a_page(reader: TestClient, case_id: str, path: str) -> None:
    answer = reader.get(path.format(case=case_id))
    assert answer.status_code == 404
    assert "Not found" in answer.text
    assert answer.headers["content-type"].startswith("text/html")


def test_identifying_fields_are_shown_on_request_alone_and_written_down(
    reader: TestClient, case_id: str
) -> None:
    (shown,) = reader.get(f"/api/cases/{case_id}/identity").json()["roles"].values()
    value = max((values[0] for values in shown.values()), key=len)
    assert value not in reader.get(f"/cases/{case_id}").text
    before = len(_looks(reader, case_id))
    assert value in say(reader, f"/cases/{case_id}/identity").text
    assert len(_looks(reader, case_id)) == before + 1
    assert reader.get(f"/cases/{case_id}/identity").status_code == 405


def _looks(client: TestClient, case_id: str) -> list[dict[str, Any]]:
    lines = client.get("/api/audit", params={"case": case_id, "limit": 1000}).json()["rows"]
    return [line for line in lines if line["action"] == "show-identity"]


def test_still_pictures_can_be_had_at_the_slice_that_is_asked_for(reader: TestClient, case_id: str) -> None:
    text = reader.get(f"/cases/{case_id}", params={"image": "t1", "axial": "9999", "over": ""}).text
    pictures = re.findall(r'<img src="([^"]+)"', text)
    last = reader.get(f"/api/cases/{case_id}").json()["volumes"][0]["slices"]["axial"] - 1
    assert pictures[0] == f"/api/cases/{case_id}/slices/t1/axial/{last}.png"
    for picture in pictures:
        assert reader.get(picture).headers["content-type"] == "image/png"


def test_still_pictures_have_the_classes_over_them_unless_told_otherwise(
    reader: TestClient, case_id: str
) -> None:
    pictures = re.findall(r'<img src="([^"]+)"', reader.get(f"/cases/{case_id}").text)
    assert len(pictures) == 3
    for picture in pictures:
        assert "over=tissue%2Fimage" in picture
        assert reader.get(picture).status_code == 200


def test_many_findings_come_in_pages(
    reader: TestClient, store_folder: Path, case_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "_MOST_WHOLE", 50)
    with CaseStore(store_folder) as store:
        run = store.case(case_id).runs[-1]
        drafts = [
            FindingDraft(code="image.count", subject=f"count {n}", statement=f"{n} voxels.")
            for n in range(150)
        ]
        store.add_run(case_id, replace(run, step="count", outputs=()), drafts)
    first = reader.get(f"/cases/{case_id}", params={"show": "all"})
    assert first.status_code == 200
    assert "1 to 100 of" in first.text
    assert len(re.findall(r'<details class="finding', first.text)) == 100
    assert "Findings changed since" not in first.text
    second = reader.get(f"/cases/{case_id}", params={"show": "all", "offset": 100}).text
    assert "101 to" in second


@pytest.mark.parametrize(
    ("back", "goes"),
    [
        ("/cases/abc?show=all", "/cases/abc?show=all"),
        ("//elsewhere.example", "/"),
        ("/\\elsewhere.example", "/"),
        ("https://elsewhere.example", "/"),
        ("/a\r\nSet-Cookie: b=c", "/"),
    ],
)
def test_the_choice_of_theme_is_kept_and_leads_nowhere_else(reader: TestClient, back: str, goes: str) -> None:
    answer = reader.get("/theme", params={"to": "light", "back": back})
    assert (answer.status_code, answer.headers["location"]) == (303, goes)
    assert 'data-theme="light"' in reader.get("/").text


def test_a_page_is_dark_without_a_choice(reader: TestClient) -> None:
    assert 'data-theme="dark"' in reader.get("/").text


def test_headings_come_in_order_and_every_field_has_a_label(reader: TestClient, case_id: str) -> None:
    text = reader.get(f"/cases/{case_id}").text
    levels = [int(level) for level in re.findall(r"<h([1-6])", text)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip([0, *levels], levels, strict=False))
    for field in re.finditer(r'<(?:input(?![^>]*type="hidden")|select|textarea)[ >]', text):
        before = text[: field.start()]
        assert before.rfind("<label") > before.rfind("</label>"), text[field.start() : field.start() + 90]


def test_without_a_built_front_end_pages_name_no_script(
    reader: TestClient, case_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(frontend, "STATIC", tmp_path)
    assert "<script" not in reader.get(f"/cases/{case_id}").text


def test_the_style_sheet_is_kept_until_it_changes(reader: TestClient) -> None:
    answer = reader.get(frontend.style_url())
    assert answer.headers["content-type"].startswith("text/css")
    assert "immutable" in answer.headers["cache-control"]


def _tokens() -> Iterator[tuple[str, dict[str, str]]]:
    """The colours of each theme."""
    style = frontend.STYLE.read_text()
    blocks = re.findall(r'(:root(?:\[data-theme="\w+"\])?) \{([^}]*)\}', style)
    dark: dict[str, str] = {}
    for selector, body in blocks:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", body))
        dark = dark or colours
        yield selector, dark | colours


def _luminance(colour: str) -> float:
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_and_edges_have_the_contrast_of_wcag_aa() -> None:
    themes = list(_tokens())
    assert [selector for selector, _ in themes] == [
        ":root",
        ':root[data-theme="light"]',
        ':root[data-theme="system"]',
    ]
    for selector, colours in themes:
        for text, ground in product(
            ("ink", "soft", "accent", "doubt", "good", "bad"), ("ground", "panel", "raised", "doubt-ground")
        ):
            ratio = _contrast(colours[text], colours[ground])
            assert ratio >= 4.5, f"{selector}: {text} on {ground} {ratio:.2f}"
        assert _contrast(colours["on-accent"], colours["accent"]) >= 4.5, selector
        for ground in ("ground", "panel", "raised", "doubt-ground"):
            assert _contrast(colours["edge"], colours[ground]) >= 3, f"{selector}: edge on {ground}"
