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
from pathlib import Path

from sagittal.language import CachePlan, read
from sagittal.records import ground, simulate_record
from sagittal.workflow.models import DEFAULT_MODEL, ModelShelf
from sagittal.workflow.steps.record import INSTRUCTION, RESERVE

RESULT = Path(__file__).parent / "results" / "record_reading.json"


def main(seeds: int = 20) -> None:
    from transformers import DynamicCache

    model = ModelShelf().get(DEFAULT_MODEL)
    caches = {
        "16 bits": {"cache": lambda config: DynamicCache(config=config)},
        "4 bits": {"plan": CachePlan(key_bits=4, value_bits=4)},
    }
    rows = []
    for seed in range(100, 100 + seeds):
        record = simulate_record(seed=seed)
        for name, options in caches.items():
            reading = read(model, record.text, instruction=INSTRUCTION, reserve=RESERVE, **options)
            for fact in record.facts:
                answer = reading.ask(fact.question, max_new_tokens=40)
                quote = ground(fact.question, answer.text, record.text)
                rows.append(
                    {
                        "seed": seed,
                        "cache": name,
                        "question": fact.question,
                        "answer": answer.text,
                        "probability": answer.mean_probability,
                        "outcome": "refused"
                        if quote is None
                        else "right"
                        if quote.line == fact.line
                        else "wrong",
                        "tokens": len(reading.prefix),
                        "bytes": answer.cache_bytes,
                        "bytes_16bit": answer.cache_bytes_16bit,
                    }
                )
            mine = [r["outcome"] for r in rows if r["seed"] == seed and r["cache"] == name]
            print(seed, name, {k: mine.count(k) for k in ("right", "wrong", "refused")}, flush=True)
        RESULT.parent.mkdir(exist_ok=True)  # after each record: a long run may be cut short
        result = {"seeds": seed - 99, "model": DEFAULT_MODEL, "rows": rows}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
