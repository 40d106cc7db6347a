from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from sagittal.case.record import Finding, Verdict
from sagittal.core.errors import InputError
from sagittal.core.provenance import canonical_json
from sagittal.reporting import SECTIONS, Draft, check_wording, deterministic_impression, draft_sections

Make = Callable[..., Finding]


def test_every_finding_has_its_sentence_and_every_sentence_its_finding(
    tissue: list[Finding], ct: list[Finding], quote: Finding
) -> None:
    findings = [*ct, *tissue, quote]
    sections = draft_sections(findings)
    assert [section.title for section in sections] == [SECTIONS["record"], SECTIONS["tissue"], SECTIONS["ct"]]
    sentences = [sentence for section in sections for sentence in section.sentences]
    assert [sentence.findings for sentence in sentences] == [(n,) for n in (8, 1, 2, 3, 4, 5, 6, 7)]
    by_number = {finding.number: finding for finding in findings}
    for sentence in sentences:
        (number,) = sentence.findings
        assert sentence.text == by_number[number].content.statement


def test_a_caution_goes_with_its_sentence(make: Make) -> None:
    (section,) = draft_sections([make(1, "image.source", "image", "An image.", caution="Lossy.")])
    assert section.sentences[0].caution == "Lossy."


@pytest.mark.parametrize("verdict", [Verdict.REJECTED, Verdict.SUPERSEDED])
def test_a_finding_that_no_longer_stands_is_refused(make: Make, verdict: Verdict) -> None:
    gone = make(3, "tissue.volume", "a", "A.", verdict=verdict)
    with pytest.raises(InputError, match="finding 3: the finding no longer stands"):
        draft_sections([gone])


@pytest.mark.parametrize("code", ["genome.variant", "tissues", ""])
def test_a_finding_without_a_section_is_refused(make: Make, code: str) -> None:
    with pytest.raises(InputError, match=f"finding 3: no section .*; got {code}; expected .*record, image"):
        draft_sections([make(3, code, "a", "A.")])


def test_the_impression_of_rules_says_what_was_measured(
    tissue: list[Finding], ct: list[Finding], quote: Finding
) -> None:
    impression = deterministic_impression([*tissue, *ct, quote])
    assert impression.text == (
        "Brain tissue: cerebrospinal fluid 187 ml (90 % interval 170 to 211 ml), "
        "grey matter 662 ml (90 % interval 640 to 680 ml), "
        "white matter 502 ml (90 % interval 480 to 533 ml). "
        "12 % of brain voxels have no tissue with a probability of 0.8 or more. "
        "CT slice: air 12.3 cm2 (90 % interval 11.9 to 12.9 cm2), "
        "soft tissue 212.4 cm2 (90 % interval 210.1 to 214.2 cm2), "
        "bone 30.2 cm2 (90 % interval 29.9 to 31.0 cm2). "
        "1 statement quoted from the record above. No diagnosis is drawn from these findings."
    )
    assert impression.findings == (1, 2, 3, 4, 5, 6, 7, 8)
    assert impression.author == "rules"


@pytest.mark.parametrize("which", [slice(0, 4), slice(0, 3), slice(3, 4), slice(4, 7), slice(0, 7)])
def test_the_impression_of_rules_says_nothing_that_the_findings_do_not(
    tissue: list[Finding], ct: list[Finding], which: slice
) -> None:
    findings = [*tissue, *ct][which]
    assert check_wording(deterministic_impression(findings).text, findings) == ()


def test_what_a_person_wrote_without_a_number_keeps_its_words(make: Make, tissue: list[Finding]) -> None:
    by_hand = make(9, "tissue.volume", "grey matter", "Grey matter cannot be measured: motion.")
    text = deterministic_impression([tissue[0], by_hand]).text
    assert "fluid 187 ml (90 % interval 170 to 211 ml). Grey matter cannot be measured: motion. No" in text


def test_an_impression_of_nothing_says_so(make: Make) -> None:
    impression = deterministic_impression([make(1, "image.source", "image", "An image.")])
    assert impression.text == "Nothing was measured. No diagnosis is drawn from these findings."
    assert impression.findings == ()


def test_a_draft_is_json(tissue: list[Finding]) -> None:
    draft = Draft(sections=draft_sections(tissue), impression=deterministic_impression(tissue))
    again = json.loads(canonical_json(draft.to_json()))
    assert again["impression"]["findings"] == [1, 2, 3, 4]
    assert again["sections"][0]["sentences"][1]["text"] == tissue[1].content.statement
