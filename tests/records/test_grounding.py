from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagittal.records import content_words, ground

RECORD = """SIMULATED RECORD.
2023-01-05 Allergy: the patient is allergic to penicillin.
  2023-02-11 Laboratory: sodium 140 mmol/l, potassium 4.2 mmol/l.
2023-03-01 Memory clinic: score of the memory test was 24 of 30 points.
2024-03-02 Memory clinic: score of the memory test was 21 of 30 points.
2024-05-09 Allergy clinic: the patient is allergic to codeine.
"""
WORDS = [
    "score",
    "memory",
    "tests",
    "sodium",
    "140",
    "4.2",
    "allergic",
    "penicillin",
    "no",
    "the",
    "was",
    "müde",
]
PHRASES = st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join)
LINES = st.lists(
    st.tuples(st.sampled_from(["", " ", "\t"]), st.lists(st.sampled_from(WORDS), max_size=7)).map(
        lambda line: line[0] + " ".join(line[1]) + line[0]
    ),
    max_size=6,
)


def line_of(question: str, answer: str, text: str = RECORD) -> int | None:
    quote = ground(question, answer, text)
    return None if quote is None else quote.line


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ("penicillin", 2),
        ("The patient is allergic to Penicillin.", 2),
        ("The patient’s allergic to penicillin", 2),
        ("codeine", 6),
        ("penicillin and codeine", None),  # no one line holds both
        ("ibuprofen", None),
        ("penicillin, since childhood", None),  # one word more than the line holds
        ("penicillin 500", None),
        ("pen", None),
    ],
)
def test_an_answer_counts_when_one_line_holds_all_it_adds(answer: str, line: int | None) -> None:
    assert line_of("Which drug is the patient allergic to?", answer) == line


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ("21 of 30 points", 5),
        ("24", 4),
        ("24 of 30", 4),
        ("25", None),
        ("2", None),
        ("24.0", None),
        ("240", None),
    ],
)
def test_a_number_is_held_whole_or_not_at_all(answer: str, line: int | None) -> None:
    assert line_of("What was the score of the memory test?", answer) == line


@pytest.mark.parametrize(
    "answer", ["", "yes", "No.", "The score of the memory test", "What was the score?", "...", "it was"]
)
def test_an_answer_that_adds_nothing_is_held_by_no_line(answer: str) -> None:
    assert ground("What was the score of the memory test?", answer, RECORD) is None


def test_a_line_on_another_matter_is_not_quoted() -> None:
    assert ground("Which implant does he carry?", "penicillin", RECORD) is None


def test_the_later_of_equal_lines_is_quoted() -> None:
    assert line_of("What was the score of the memory test?", "30 points") == 5
    assert line_of("sodium?", "140", "sodium 140\nsodium 140\nsodium 139") == 2


def test_the_line_that_shares_more_with_the_question_wins_over_a_later_one() -> None:
    text = "score of the memory test was 24\nscore 24 in the quiz"
    assert line_of("What was the score of the memory test?", "24", text) == 1


def test_a_quote_is_the_line_as_it_stands() -> None:
    quote = ground("What was the sodium?", "140", RECORD)
    assert quote is not None
    assert quote.text == "2023-02-11 Laboratory: sodium 140 mmol/l, potassium 4.2 mmol/l."
    assert RECORD[quote.start : quote.start + len(quote.text)] == quote.text


def test_words_of_other_scripts_are_words() -> None:
    text = "Allergie: Äpfel\nАллергия: яблоки"
    assert line_of("Allergie?", "Äpfel", text) == 1
    assert line_of("Allergie?", "Apfel", text) is None
    assert line_of("Аллергия?", "яблоки", text) == 2
    assert line_of("Аллергия?", "груши", text) is None


def test_words_are_compared_without_case_plural_or_possessive() -> None:
    assert content_words("The patient's Headaches, 2.5 mg") == {"headache", "2.5", "mg"}
    assert content_words("stress gas") == {"stress", "gas"}


@given(PHRASES, PHRASES, LINES)
def test_whatever_is_quoted_is_a_line_that_holds_what_was_added(
    question: str, answer: str, lines: list[str]
) -> None:
    text = "\n".join(lines)
    added = content_words(answer) - content_words(question)
    asked = content_words(question)
    quote = ground(question, answer, text)
    holding = [line for line in lines if added <= content_words(line) and asked & content_words(line)]
    if quote is None:
        assert not added or not holding
        return
    assert quote.text == lines[quote.line - 1].strip()
    assert text[quote.start : quote.start + len(quote.text)] == quote.text
    assert text.count("\n", 0, quote.start) == quote.line - 1
    assert added
    assert added <= content_words(quote.text)
    best = max(len(asked & content_words(line)) for line in holding)
    assert len(asked & content_words(quote.text)) == best
    assert all(len(asked & content_words(line)) < best for line in lines[quote.line :] if line in holding)
