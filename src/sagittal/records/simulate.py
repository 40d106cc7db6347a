"""A long patient record that is simulated from end to end, with the facts that were planted in it.

It is a test bed for reading, not a model of hospitals: entries of a few kinds, drawn from templates
written here, in the order of time. No person is behind it.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import numpy as np

from sagittal.core.errors import InputError
from sagittal.core.randomness import generator

__all__ = ["Fact", "SimulatedRecord", "simulate_record"]

_FACTS = (
    (
        "Why was the MRI of the brain requested?",
        "Radiology request: MRI of the brain requested because of {0}.",
        (
            "slowly progressive forgetfulness over 18 months",
            "new headaches every morning for six weeks",
            "two episodes of transient double vision",
            "unsteady gait and repeated falls since spring",
        ),
    ),
    (
        "Which drug is the patient allergic to?",
        "Allergy: the patient is allergic to {0}.",
        ("penicillin", "ibuprofen", "iodinated contrast", "codeine"),
    ),
    (
        "What was the score of the memory test?",
        "Memory clinic: score of the memory test was {0} of 30 points.",
        ("21", "24", "26", "28"),
    ),
    (
        "Which implant does the patient have?",
        "Implant: the patient has {0}; MRI conditional.",
        ("a coronary stent", "a hip prosthesis", "an insulin pump", "a titanium plate"),
    ),
    (
        "Which drug was started for blood pressure?",
        "Cardiology: {0} was started for blood pressure.",
        ("ramipril 5 mg", "amlodipine 10 mg", "bisoprolol 2.5 mg", "candesartan 8 mg"),
    ),
)
_ROUTINE = (
    "Nursing: slept {0} hours, ate {1} percent of dinner, no complaints.",
    "Vital signs: pressure {2} over {3} mmHg, pulse {4} per minute, temperature 36.{5} degrees.",
    "Physiotherapy: walked {6} metres with a stick, balance steady.",
    "Laboratory: sodium {7} mmol/l, potassium 4.{5} mmol/l, creatinine {3} umol/l.",
    "Dietary advice repeated; fluid intake yesterday {8} ml.",
    "Telephone call with the family about the visit on {9}.",
    "Social work: home help comes {5} times a week, next visit on {9}.",
    "Dentist: check-up without treatment, next appointment in {5} months.",
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A planted fact: the question that asks for it, the words that answer it, and its line."""

    question: str
    answer: str
    line: int


@dataclass(frozen=True, kw_only=True)
class SimulatedRecord:
    """A simulated record and what is true in it."""

    text: str
    facts: tuple[Fact, ...]


def simulate_record(*, seed: int, entries: int = 225) -> SimulatedRecord:
    """Simulate a record of ``entries`` dated lines (about 30 tokens of SmolLM2's tokenizer each).

    The facts stand at random places, in random order, among routine entries.

    Raises:
        InputError: Fewer entries than facts.
    """
    if entries < len(_FACTS):
        raise InputError("too few entries for the facts", value=entries, expected=f"{len(_FACTS)} or more")
    rng = generator(seed, "record")
    places = rng.permutation(entries)[: len(_FACTS)]
    chosen = {int(place): _FACTS[index] for index, place in enumerate(places)}
    day = datetime.date(2023, 1, 2)
    lines = ["SIMULATED RECORD. No person is behind it."]
    facts = []
    for entry in range(entries):
        day += datetime.timedelta(days=int(rng.integers(1, 8)))
        if entry in chosen:
            question, template, values = chosen[entry]
            value = str(rng.choice(values))
            sentence = template.format(value)
            facts.append(Fact(question=question, answer=value, line=len(lines) + 1))
        else:
            sentence = _routine(rng)
        lines.append(f"{day.isoformat()} {sentence}")
    order = {question: index for index, (question, _, _) in enumerate(_FACTS)}
    facts.sort(key=lambda fact: order[fact.question])
    return SimulatedRecord(text="\n".join(lines) + "\n", facts=tuple(facts))


def _routine(rng: np.random.Generator) -> str:
    template = str(rng.choice(_ROUTINE))
    return template.format(
        rng.integers(4, 10),
        rng.integers(5, 11) * 10,
        rng.integers(110, 161),
        rng.integers(60, 96),
        rng.integers(55, 96),
        rng.integers(1, 10),
        rng.integers(20, 301),
        rng.integers(133, 147),
        rng.integers(18, 45) * 50,
        rng.choice(_DAYS),
    )
