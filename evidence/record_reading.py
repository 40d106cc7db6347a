"""How often does the language model find a planted fact in a long record, and does the low-bit cache matter?

Simulated records with five planted facts each; the same questions, the same model (SmolLM2-135M with 4-bit
weights from its GGUF), once with a 16-bit cache and once with a low-bit one, paired by record. An answer is
*held* when a line of the record holds it; held answers are right when that line is the planted one. What is
not held is refused and never reported.
Writes evidence/results/record_reading.json. About 25 minutes on 2 cores.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sagittal.language import CachePlan, read
from sagittal.records import ground, simulate_record
from sagittal.workflow.models import DEFAULT_MODEL, ModelShelf
from sagittal.workflow.steps.record import INSTRUCTION, RESERVE

FIRST_SEED = 100  # the demonstration and the tests use lower ones
RESULT = Path(__file__).parent / "results" / "record_reading.json"


def caches() -> dict[str, dict[str, Any]]:
    from transformers import DynamicCache

    return {
        "16 bits": {"cache": lambda config: DynamicCache(config=config)},
        "4 bits": {"plan": CachePlan.uniform(4, 4)},
    }


def ask(model: Any, seed: int, name: str, questions: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """One simulated record through one cache: a row for each question."""
    record = simulate_record(seed=seed)
    reading = read(model, record.text, instruction=INSTRUCTION, reserve=RESERVE, **caches()[name])
    rows = []
    for fact in record.facts:
        if questions is not None and fact.question not in questions:
            continue
        answer = reading.ask(fact.question, max_new_tokens=40)
        quote = ground(fact.question, answer.text, record.text)
        held = "wrong" if quote is None or quote.line != fact.line else "right"
        rows.append(
            {
                "seed": seed,
                "cache": name,
                "question": fact.question,
                "answer": answer.text,
                "probability": answer.mean_probability,
                "outcome": "refused" if quote is None else held,
                "tokens": len(reading.prefix),
                "bytes": answer.cache_bytes,
                "bytes_16bit": answer.cache_bytes_16bit,
            }
        )
    return rows


def main(seeds: int = 20) -> None:
    model = ModelShelf().get(DEFAULT_MODEL)
    rows: list[dict[str, Any]] = []
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        for name in caches():
            mine = ask(model, seed, name)
            rows += mine
            print(seed, name, [row["outcome"] for row in mine], flush=True)
        RESULT.parent.mkdir(exist_ok=True)  # after each record: a long run may be cut short
        result = {"seeds": seed - FIRST_SEED + 1, "model": DEFAULT_MODEL, "rows": rows}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
