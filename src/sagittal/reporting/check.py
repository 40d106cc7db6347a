"""What a language model worded is checked against the findings, word by word, before anybody reads it.

The vocabulary is closed: a number, a side, or any word that carries meaning has to stand in a finding.
A list of forbidden terms would have to foresee every invention; a list of allowed ones does not.
[inference: the design is ours]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sagittal.case.record import Finding

__all__ = ["NEUTRAL", "Objection", "check_wording"]

NEUTRAL = frozenset(
    """a about all also an and are as at based be been between brain but by can case ct draft each
    estimate estimated finding findings following for found from given gives has have head image images
    in interval into is it its may measured measurement measurements mri of on or patient patient's range
    ranges ranging record report reported reports respectively result results said says section shown
    shows slice so summary t1 than that the their there these they this those to unit value values volume
    volumes was were which with within""".split()
)
"""Words that claim nothing by themselves. ``no``, ``not`` and ``without`` are not among them."""

_LATERALITY = frozenset(
    "left right bilateral bilaterally unilateral unilaterally ipsilateral contralateral".split()
)
_NUMBER_WORDS = frozenset(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred
    thousand million half third quarter quarters double doubled triple twice dozen majority minority most
    few several many none""".split()
)
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]\w*(?:['’-]\w+)*|[%°±<>≤≥~µ²³]|[-−–](?=\d)")
_SENTENCE = re.compile(r"[.!?](?=\s|$)|[;\n]")


@dataclass(frozen=True, kw_only=True)
class Objection:
    """One thing in a text that no finding holds."""

    kind: Literal["number", "laterality", "word", "binding", "empty"]
    found: str
    why: str


@dataclass(frozen=True)
class _Known:
    subject: frozenset[str]
    words: frozenset[str]
    numbers: frozenset[str]


def check_wording(text: str, findings: Sequence[Finding]) -> tuple[Objection, ...]:
    """Return everything in ``text`` that ``findings`` do not hold; an empty tuple lets it pass.

    Refused are: a number that no finding states (as digits or as a word), or that stands nearest to the
    subject of a finding that does not state it; a side that no finding states; any other word that
    neither stands in a finding nor is in :data:`NEUTRAL`, negations among them; a sign such as ``%`` or
    ``<`` that no finding has; an empty text.

    Args:
        text: What a model wrote.
        findings: The findings it was given.
    """
    known = [_know(finding) for finding in findings]
    every_word = frozenset().union(*(k.words for k in known)) if known else frozenset()
    every_number = frozenset().union(*(k.numbers for k in known)) if known else frozenset()
    objections: list[Objection] = []
    if not text.strip():
        objections.append(Objection(kind="empty", found="", why="the model wrote nothing"))
    for sentence in _SENTENCE.split(text):
        tokens = [token.lower() for token in _TOKEN.findall(sentence)]
        for place, token in enumerate(tokens):
            if token[0].isdigit():
                if _plain(token) not in every_number:
                    objections.append(Objection(kind="number", found=token, why="no finding states it"))
                elif wrong := _misbound(place, tokens, known):
                    objections.append(
                        Objection(kind="binding", found=token, why=f"no finding states it of {wrong}")
                    )
            elif token in every_word:
                continue
            elif token in _LATERALITY:
                objections.append(Objection(kind="laterality", found=token, why="no finding states a side"))
            elif token in _NUMBER_WORDS:
                objections.append(Objection(kind="number", found=token, why="no finding states it"))
            elif token not in NEUTRAL:
                objections.append(Objection(kind="word", found=token, why="no finding has this word"))
    return tuple(dict.fromkeys(objections))


def _know(finding: Finding) -> _Known:
    content = finding.content
    tokens = [token.lower() for token in _TOKEN.findall(f"{content.subject} . {content.statement}")]
    subject = frozenset(token.lower() for token in _TOKEN.findall(content.subject))
    words = frozenset(token for token in tokens if not token[0].isdigit())
    return _Known(subject, words, frozenset(_plain(token) for token in tokens if token[0].isdigit()))


def _misbound(place: int, tokens: Sequence[str], known: Sequence[_Known]) -> str:
    """Return the subject that the number at ``place`` is wrongly said of, or an empty string.

    "453 ml of fluid" binds a number to the subject after it; else it belongs to the subject mentioned
    last before it, else to the first one after it.
    """
    mentions = [(end, index) for index, k in enumerate(known) for end in _mentions(k.subject, tokens)]
    if not mentions:
        return ""
    before = [end for end, _ in mentions if end < place]
    after = [end for end, _ in mentions if end > place]
    nearest = max(before) if before else min(after)
    if "of" in tokens[place + 1 : place + 4]:
        following = place + 1 + tokens[place + 1 :].index("of")
        starts = {end - len(known[index].subject) + 1: end for end, index in mentions}
        nearest = next((starts[at] for at in (following + 1, following + 2) if at in starts), nearest)
    owners = [known[index] for end, index in mentions if end == nearest]
    if any(_plain(tokens[place]) in owner.numbers for owner in owners):
        return ""
    return " ".join(sorted(owners[0].subject))


def _mentions(subject: frozenset[str], tokens: Sequence[str]) -> list[int]:
    """Places where all words of a subject stand side by side; the place of the last of them."""
    width = len(subject)
    return [
        end - 1
        for end in range(width, len(tokens) + 1)
        if width and frozenset(tokens[end - width : end]) == subject
    ]


def _plain(number: str) -> str:
    """Return a number's digits in one spelling: no thousands commas, no trailing zeros of a fraction."""
    if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", number):
        number = number.replace(",", "")
    number = number.replace(",", ".")
    return number.rstrip("0").rstrip(".") if number.count(".") == 1 else number
