"""What four bits cost on a real model, SmolLM2-135M-Instruct, and a text of some 1500 tokens.

The text is English prose of the Python manual, as `pydoc` carries it. Figures in the comments were measured
with Python 3.11, torch 2.13 and transformers 5.23 on a CPU.
"""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from sagittal.language import CachePlan, LanguageModel, LowBitCache, load_language_model, read, split_text

pytestmark = pytest.mark.model

QUESTIONS = [
    "What is an object's identity?",
    "What is a container?",
    "Which objects are immutable?",
    "What happens to unreachable objects?",
    "What does the type of an object determine?",
    "When may an object be garbage-collected?",
]


@pytest.fixture(scope="module")
def model(language_model_path: Path) -> LanguageModel:
    return load_language_model(language_model_path)


@pytest.fixture(scope="module")
def text(model: LanguageModel) -> str:
    return split_text(model, topics["objects"] + topics["types"], 1500)[0]


def _plain(config: Any) -> DynamicCache:
    return DynamicCache(config=config)


def _next_token_log_probabilities(model: LanguageModel, ids: Tensor, cache: Any, prefix: int) -> Tensor:
    """Exact prefill of ``prefix`` tokens, then the rest in steps of 8, each against the cache."""
    with torch.no_grad():
        model.model(ids[:, :prefix], past_key_values=cache, logits_to_keep=1)
        steps = [
            model.model(part, past_key_values=cache).logits[0] for part in ids[:, prefix:].split(8, dim=1)
        ]
    return torch.cat(steps).float().log_softmax(-1)


def test_next_token_distributions_stay_close(model: LanguageModel, text: str) -> None:
    ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
    config = model.model.config
    exact = _next_token_log_probabilities(model, ids, DynamicCache(config=config), 1100)
    divergence, agreement, held = {}, {}, {}
    for bits in (4, 2):
        cache = LowBitCache(config, CachePlan.uniform(bits, bits))
        found = _next_token_log_probabilities(model, ids, cache, 1100)
        divergence[bits] = float((exact.exp() * (exact - found)).sum(-1).mean())
        agreement[bits] = float((exact.argmax(-1) == found.argmax(-1)).float().mean())
        held[bits] = cache.effective_bits
    # Measured over some 400 tokens: KL 0.0029 nats and the same most probable token 97.4 % of the time at 4
    # bits (5.58 with everything exact counted), KL 0.128 and 79.6 % at 2 bits (3.77).
    assert 0 < divergence[4] < 0.01
    assert agreement[4] > 0.93
    assert held[4] < 5.7
    assert 5 * divergence[4] < divergence[2] < 0.5
    assert held[2] < 3.9


@pytest.mark.parametrize(
    ("num_beams", "questions", "least"),
    [
        # Free-running answers part at the first near tie and need not meet again, so what is counted is the
        # start they share. Greedy: 10, 11, 2, 11, 24 and 1 of 24 tokens, 59 in all. Four beams: 14, 6 and 24.
        (1, QUESTIONS, 30),
        (4, QUESTIONS[:3], 20),
    ],
)
def test_answers_start_alike(
    model: LanguageModel, text: str, num_beams: int, questions: list[str], least: int
) -> None:
    low, plain = read(model, text), read(model, text, cache=_plain)
    shared, doubt = 0, 0.0
    for question in questions:
        few, full = (
            reading.ask(question, max_new_tokens=24, num_beams=num_beams) for reading in (low, plain)
        )
        pairs = enumerate(zip(few.tokens, full.tokens, strict=False))
        ends = min(len(few.tokens), len(full.tokens))
        shared += next((i for i, (a, b) in pairs if a != b), ends)
        doubt += abs(few.mean_probability - full.mean_probability) / len(questions)
        assert few.cache_bytes < 0.34 * full.cache_bytes  # 0.314 to 0.316 measured
    assert shared >= least
    assert doubt < 0.1  # 0.04 greedy and 0.02 with four beams measured


def test_exact_plan_is_bit_equal(model: LanguageModel, text: str) -> None:
    exact = read(model, text, CachePlan.uniform(16, 16))
    plain = read(model, text, cache=_plain)
    first, second = (reading.ask(QUESTIONS[0], max_new_tokens=24) for reading in (exact, plain))
    assert first == second
