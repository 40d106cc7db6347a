"""What a language model worded is checked against the findings, word by word, before anybody reads it.

The vocabulary is closed: a number, a side, or any word that carries meaning has to stand in a finding.
A list of forbidden terms would have to foresee every invention; a list of allowed ones does not.
[inference: the design is ours]
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sagittal.case.record import Finding
from sagittal.reporting.draft import NO_DIAGNOSIS

__all__ = ["NEUTRAL", "Objection", "check_wording"]

NEUTRAL = frozenset(
    """a about also an and are as at based be been between brain but by can case ct draft each
    estimate estimated finding findings following for found from given gives has have head image images
    in interval into is it its may measured measurement measurements mri of on or patient patient's
    record report reported reports respectively result results said says section shown
    shows slice so summary t1 than that the their these they this those tissue tissues to unit value values
    volume volumes was were which with""".split()
)
"""Words that claim nothing by themselves. ``no``, ``not``, ``all`` and ``within`` are not among them."""

_LATERALITY = frozenset(
    "left right bilateral bilaterally unilateral unilaterally ipsilateral contralateral".split()
)
_NUMBER_WORDS = frozenset(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred
    thousand million half third quarter quarters double doubled triple twice dozen majority minority most
    few several many none""".split()
)
# Words that turn what they stand beside: they count only inside a sentence quoted whole from a finding.
_TURNING = frozenset(
    """no not without none never nor neither cannot non free absent all every any both more less most least
    over under above below up down only nearly almost except unless""".split()
)
_UNITS = frozenset(
    """% ‰ ° ml l dl cm cm2 cm3 mm mm2 mm3 m hu suv kv ma mg g kg ug ng mmhg mmol umol percent degrees
    points times second seconds minute minutes hour hours day days week weeks month months year years
    voxels bits tokens mb gb""".split()
)
_TOKEN = re.compile(
    r"(?:(?<!\w)[-−–+]?[.,]?)?\d+(?:[.,:/−–-]\d+|\s\d{3}(?!\d))*"  # −5, .5, 2023-01-02, 1 454: one each
    r"|[^\W\d_]\w*(?:['-]\w+)*"
    r"|[^\w\s.,;:!?()\[\]\"'‘“”„–—-]|_"  # any other sign says something: ±, <, ↓, −, a zero-width space
)
_SENTENCE = re.compile(r"[.!?][”\"')\]]*(?=\s|$)|[;\n]")


@dataclass(frozen=True, kw_only=True)
class Objection:
    """One thing in a text that no finding holds."""

    kind: Literal["number", "laterality", "word", "binding", "empty"]
    found: str
    why: str


class _Reading(NamedTuple):
    """A number as it stands: with its unit, alone or as the low or high end of a range."""

    number: str
    unit: str
    role: Literal["alone", "low", "high"] = "alone"
    other_end: str = ""


@dataclass(frozen=True)
class _Known:
    subject: frozenset[str]
    words: frozenset[str]
    numbers: frozenset[str]
    readings: frozenset[_Reading]
    sentences: tuple[tuple[str, ...], ...]
    measured: bool


_Quotable = tuple[int | None, tuple[str, ...]]  # whose sentence it is, and its tokens


def check_wording(text: str, findings: Sequence[Finding]) -> tuple[Objection, ...]:
    """Return everything in ``text`` that ``findings`` do not hold; an empty tuple lets it pass.

    Refused are: a number that no finding states (as digits or as a word), that stands nearest to the
    subject of a finding that does not state it, that was measured and has no subject, that has another
    unit, or that is an end of an interval and stands for the value; a side or a number word beside
    another word than in a finding; any other word that neither stands in a finding nor is in
    :data:`NEUTRAL`; a sign such as ``%`` or ``<`` that no finding has; an empty text. A negation or a
    comparison ("no", "more") passes only inside a sentence that is a finding's own, word for word; such a
    sentence always passes.

    It does not read: the findings' own words pass in an order that says something else ("the brain is
    bone"), and a number's subject is the nearest one, not the one that the grammar means. So what a model
    worded stays a draft beside the sections, which are the findings' own sentences.

    Args:
        text: What a model wrote.
        findings: The findings it was given.
    """
    known = [_know(finding) for finding in findings]
    quotable: list[_Quotable] = [(None, sentence) for sentence in _sentences(NO_DIAGNOSIS)]
    quotable += [(index, sentence) for index, k in enumerate(known) for sentence in k.sentences]
    every = _Known(
        frozenset(),
        frozenset().union(*(k.words for k in known)),
        frozenset().union(*(k.numbers for k in known)),
        frozenset().union(*(k.readings for k in known)),
        tuple(sentence for _, sentence in quotable),
        measured=False,
    )
    pairs = {pair for sentence in every.sentences for pair in _pairs(sentence)}
    units = _UNITS | {unit for k in known for _, unit, *_ in k.readings if unit}
    objections: list[Objection] = []
    if not text.strip():
        objections.append(Objection(kind="empty", found="", why="the model wrote nothing"))
    spoken_of = [index for index, k in enumerate(known) if not k.measured]  # a measured one must be named
    for tokens in _sentences(text):
        quoted, sources = _quoted(tokens, quotable)
        mentions: dict[int, list[int]] = {}
        for index, k in enumerate(known):
            for end in _mentions(k.subject, tokens):
                mentions.setdefault(end, []).append(index)
        readings = _read(tokens, units)
        for place, token in enumerate(tokens):
            if place in quoted:
                continue
            if _is_number(token):
                owners = _owners(place, tokens, mentions, known) or spoken_of
                if why := _wrong(readings[place], [known[index] for index in owners], every):
                    kind: Literal["number", "binding"] = (
                        "binding" if _plain(token) in every.numbers else "number"
                    )
                    objections.append(Objection(kind=kind, found=token, why=why))
            elif token in _LATERALITY or token in _NUMBER_WORDS:
                if _pairs(tokens)[place + 1] not in pairs:
                    side = token in _LATERALITY
                    objections.append(
                        Objection(
                            kind="laterality" if side else "number",
                            found=token,
                            why="no finding states a side of this" if side else "no finding states it",
                        )
                    )
            elif token in _TURNING:
                objections.append(
                    Objection(kind="word", found=token, why="it does not stand in a finding's own sentence")
                )
            elif not token[0].isalpha() and _pairs(tokens)[place] in pairs:
                continue  # a sign that a finding has after the same
            elif not token[0].isalpha() or (token not in every.words and token not in NEUTRAL):
                objections.append(Objection(kind="word", found=token, why="no finding has this word"))
        if mentions:
            spoken_of = mentions[max(mentions)]
        elif sources:
            spoken_of = sources
    return tuple(dict.fromkeys(objections))


def _sentences(text: str) -> list[tuple[str, ...]]:
    plain = unicodedata.normalize("NFC", text).replace("’", "'")
    found = (_TOKEN.findall(sentence) for sentence in _SENTENCE.split(plain))
    return [tuple(token.lower() for token in tokens) for tokens in found if tokens]


def _know(finding: Finding) -> _Known:
    content = finding.content
    sentences = tuple(_sentences(content.statement))
    subject = frozenset(itertools.chain.from_iterable(_sentences(content.subject)))
    tokens = subject.union(*sentences)
    amount = content.measurement
    units = _UNITS if amount is None else _UNITS | {amount.unit.lower()}
    readings = {reading for sentence in sentences for reading in _read(sentence, units).values()}
    return _Known(
        subject,
        frozenset(token for token in tokens if not _is_number(token)),
        frozenset(reading.number for reading in readings),
        frozenset(readings),
        sentences,
        amount is not None,
    )


def _is_number(token: str) -> bool:
    return token.lstrip("-−–+.,")[:1].isdecimal()


def _read(tokens: Sequence[str], units: frozenset[str]) -> dict[int, _Reading]:
    """Return what each number says, by its place: "430 to 470 ml", "between 430 and 470 ml", "453 ml"."""

    def unit_after(place: int) -> str:
        return tokens[place + 1] if place + 1 < len(tokens) and tokens[place + 1] in units else ""

    readings = {}
    for place, token in enumerate(tokens):
        if not _is_number(token) or place in readings:
            continue
        link = place + (2 if unit_after(place) else 1)
        linked = "".join(tokens[link : link + 1])
        between = place > 0 and tokens[place - 1] == "between"
        high = link + 1
        if (linked == "to" or (linked == "and" and between)) and _is_number("".join(tokens[high : high + 1])):
            unit = unit_after(high) or unit_after(place)
            readings[place] = _Reading(_plain(token), unit, "low", _plain(tokens[high]))
            readings[high] = _Reading(_plain(tokens[high]), unit, "high", _plain(token))
        else:
            readings[place] = _Reading(_plain(token), unit_after(place))
    return readings


def _wrong(reading: _Reading, owners: Sequence[_Known], every: _Known) -> str:
    """Return why no owner states this, or an empty string. A range may leave out its unit."""
    if reading.number not in every.numbers:
        return "no finding states it"
    stated = [other for owner in owners for other in owner.readings if other.number == reading.number]
    if not stated:
        of = f"of {' '.join(sorted(owners[0].subject))}" if owners else "without its subject"
        return f"no finding states it {of}"
    for other in stated:
        same_place = (other.role, other.other_end) == (reading.role, reading.other_end)
        if same_place and (other.unit == reading.unit or (reading.role != "alone" and not reading.unit)):
            return ""
    return "its finding states it with another unit, or at another place of the interval"


def _pairs(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """Each token with the one after it; a number is any number, and the ends are empty."""
    return list(itertools.pairwise(["", *("0" if _is_number(token) else token for token in tokens), ""]))


def _quoted(tokens: Sequence[str], quotable: Sequence[_Quotable]) -> tuple[set[int], list[int]]:
    """Places inside a finding's own sentence, word for word, and whose sentences those are."""
    places: set[int] = set()
    sources: list[int] = []
    for index, sentence in quotable:
        width = len(sentence)
        for start in range(len(tokens) - width + 1):
            if tuple(tokens[start : start + width]) == sentence:
                places.update(range(start, start + width))
                sources += [] if index is None else [index]
    return places, sources


def _owners(
    place: int, tokens: Sequence[str], mentions: dict[int, list[int]], known: Sequence[_Known]
) -> list[int]:
    """Return the findings that the number at ``place`` is said of; none where no subject is mentioned.

    "453 ml of fluid" binds a number to the subject after it; else it belongs to the subject mentioned
    last before it, else to the first one after it.
    """
    if not mentions:
        return []
    before = [end for end in mentions if end < place]
    after = [end for end in mentions if end > place]
    nearest = max(before) if before else min(after)
    if "of" in tokens[place + 1 : place + 4]:
        following = place + 1 + list(tokens[place + 1 :]).index("of")
        starts = {end - len(known[index].subject) + 1: end for end in after for index in mentions[end]}
        nearest = next((starts[at] for at in (following + 1, following + 2) if at in starts), nearest)
    return mentions[nearest]


def _mentions(subject: frozenset[str], tokens: Sequence[str]) -> list[int]:
    """Places where all words of a subject stand side by side; the place of the last of them."""
    width = len(subject)
    return [
        end - 1
        for end in range(width, len(tokens) + 1)
        if width and frozenset(tokens[end - width : end]) == subject
    ]


def _plain(number: str) -> str:
    """Return a number's digits in one spelling: no thousands commas, no trailing zeros of a fraction.

    Three decimals are left as they are: "453.000" is 453 to one reader and 453 thousand to another.
    """
    number = re.sub(r"[−–]", "-", re.sub(r"\s", "", number))
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?", number):
        number = number.replace(",", "")
    number = number.replace(",", ".")
    if re.fullmatch(r"-?\d+\.(?!\d{3}$)\d+", number):
        number = number.rstrip("0").rstrip(".")
    return number
