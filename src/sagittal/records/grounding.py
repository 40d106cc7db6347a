"""A model may point at a line of the record; only the record is quoted.

An answer counts when everything it adds to the question stands in one line of the record. That line,
not the model's words, becomes the finding; an answer without such a line is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Quote", "content_words", "ground"]

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+(?:[.,/]\d+)*")
_STOP = frozenset(
    """a about after all also an and any are as at be because been before being but by can could did do does
    due for from had has have he her him his how i if in into is it its may might more most my no not of on
    or our patient patient's record said says she should so some such than that the their them then there
    these they this those to was were what when where which while who whom whose why will with would yes
    you your""".split()
)


@dataclass(frozen=True, kw_only=True)
class Quote:
    """A line of the record that holds an answer.

    Attributes:
        line: Line number, from 1.
        start: Offset of the line's first character in the text.
        text: The line, stripped.
    """

    line: int
    start: int
    text: str


def content_words(text: str) -> set[str]:
    """Return the words and numbers that carry meaning, lower case, plural s cut off."""
    words = (word.removesuffix("'s") for word in _WORD.findall(text.lower().replace("’", "'")))
    return {_stem(word) for word in words if word not in _STOP}


def ground(question: str, answer: str, text: str) -> Quote | None:
    """Return the line of ``text`` that holds ``answer``, or None when no line does.

    A line holds it when the line has every content word that the answer adds to the question, and at
    least one content word of the question. Of several, the one that shares most with question and
    answer wins, the later one on a tie: a record's last word counts. An answer that adds nothing to
    the question, such as "yes", is held by no line.
    """
    asked = content_words(question)
    added = content_words(answer) - asked
    if not added:
        return None
    best: tuple[int, Quote] | None = None
    start = 0
    for number, line in enumerate(text.split("\n"), start=1):
        words = content_words(line)
        if added <= words and words & asked:
            shared = len(words & asked)
            if best is None or shared >= best[0]:
                offset = start + len(line) - len(line.lstrip())
                best = shared, Quote(line=number, start=offset, text=line.strip())
        start += len(line) + 1
    return None if best is None else best[1]


def _stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
