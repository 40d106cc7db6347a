"""Read a long text once, then ask about it many times.

The text stands in the user's message and the question after it, in the model's own chat format. Everything up
to the question is computed once and kept in a cache; each question goes on from a fork of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from sagittal.core.errors import InputError, ModelError
from sagittal.language.cache import LowBitCache, cache_bytes, cache_bytes_16bit
from sagittal.language.models import LanguageModel
from sagittal.language.plan import CachePlan

__all__ = ["Answer", "Reading", "read", "split_text"]

_PROBES = ("What", "7", "(x)")  # questions that begin with a letter, a digit and a sign


@dataclass(frozen=True)
class Answer:
    """What the model said, and what its memory took.

    Args:
        text: The answer, without special tokens and outer white space.
        mean_probability: Mean over the generated tokens of the probability the model gave to each, the
            end-of-turn token included. A measure of how decided the model was, not of truth.
        tokens: Generated token ids.
        finished: Whether the model ended the answer itself, and was not cut at ``max_new_tokens``.
        cache_bytes: Memory the cache held at the end, all beams included.
        cache_bytes_16bit: What the same tokens take at 16 bits a number.
        cache_tokens: Tokens in the cache at the end, of one beam.
    """

    text: str
    mean_probability: float
    tokens: tuple[int, ...]
    finished: bool
    cache_bytes: int
    cache_bytes_16bit: int
    cache_tokens: int


@dataclass(frozen=True, eq=False)
class Reading:
    """A text the model has read; made by :func:`read`.

    Args:
        model: The model.
        text: The text.
        instruction: The system message, or None for the model's own.
        prefix: Token ids in the cache: the chat up to where the question begins.
        cache: Keys and values of the prefix. It is forked for each question and never changed.
    """

    model: LanguageModel
    text: str
    instruction: str | None
    prefix: tuple[int, ...]
    cache: Any

    def ask(self, question: str, *, max_new_tokens: int = 128, num_beams: int = 1) -> Answer:
        """Answer one question; the same question has the same answer in any order.

        Args:
            question: The question; outer white space is dropped.
            max_new_tokens: Length the answer is cut at.
            num_beams: 1 for greedy search, more for beam search.

        Returns:
            The most probable answer found.

        Raises:
            InputError: The question is empty or holds a token reserved for the chat format; a number is below
                one; or text, question and answer together are longer than the model's context.
        """
        for name, value in (("max_new_tokens", max_new_tokens), ("num_beams", num_beams)):
            if value < 1:
                raise InputError(f"{name} is too small", value=value, expected="at least 1")
        ids = _chat_ids(self.model, self.text, _clean(self.model, question, "question"), self.instruction)
        if len(ids) + max_new_tokens > self.model.context_length:
            raise InputError(
                "text, question and answer are longer than the model's context",
                value=f"{len(ids)} + {max_new_tokens} tokens",
                expected=f"at most {self.model.context_length} tokens",
            )
        cache = self.cache.fork() if isinstance(self.cache, LowBitCache) else copy.deepcopy(self.cache)
        surplus = len(self.prefix) - _common(self.prefix, ids)
        if surplus:  # the question merges with what stands before it into other tokens than the probes did
            cache.crop(-surplus)
        if num_beams > 1:
            cache.batch_repeat_interleave(num_beams)
        return _generate(self.model, ids, cache, max_new_tokens, num_beams)


def read(
    model: LanguageModel,
    text: str,
    plan: CachePlan | None = None,
    *,
    instruction: str | None = None,
    reserve: int = 256,
    cache: Callable[[Any], Any] | None = None,
) -> Reading:
    """Let a model read a text, in one exact pass.

    Args:
        model: The model; its tokenizer must have a chat template.
        text: The text; see :func:`split_text` for one that is too long.
        plan: How the cache holds the text.
        instruction: System message; None leaves it to the chat template.
        reserve: Tokens of the context kept free for a question and its answer.
        cache: Makes another cache from the model's configuration, such as transformers' ``DynamicCache``;
            ``plan`` then has no effect.

    Returns:
        The text as read, to be asked about.

    Raises:
        InputError: The text is empty, longer than the context less the reserve, or holds a token that is
            reserved for the chat format, by which a text could speak in the user's or the model's name.
        ModelError: The tokenizer has no chat template.
    """
    if getattr(model.tokenizer, "chat_template", None) is None:
        raise ModelError("the tokenizer has no chat template", source=model.name)
    if not text.strip():
        raise InputError("there is no text to read", expected="a text that is not empty")
    _refuse_reserved(model, text, "text")
    if instruction is not None:
        _refuse_reserved(model, instruction, "instruction")
    probes = [_chat_ids(model, text, probe, instruction) for probe in _PROBES]
    prefix = probes[0][: min(_common(probes[0], probe) for probe in probes[1:])]
    limit = model.context_length - reserve
    if len(prefix) > limit:
        raise InputError(
            "the text is longer than the model's context",
            value=f"{len(prefix)} tokens",
            expected=f"at most {limit} tokens ({model.context_length} less a reserve of {reserve})",
        )
    filled = cache(model.model.config) if cache else LowBitCache(model.model.config, plan)
    with torch.no_grad():
        model.model(
            input_ids=_tensor(model, prefix), past_key_values=filled, use_cache=True, logits_to_keep=1
        )
    return Reading(model, text, instruction, tuple(prefix), filled)


def split_text(model: LanguageModel, text: str, max_tokens: int) -> list[str]:
    """Cut a text into parts of at most ``max_tokens`` tokens each.

    Cuts fall at line ends. A line that is too long by itself is cut between two tokens. The parts joined are
    the text, character by character. The chat format's own tokens come on top of ``max_tokens``.

    Args:
        model: The model whose tokens are counted.
        text: The text.
        max_tokens: Most tokens of a part.

    Returns:
        The parts, in order.

    Raises:
        InputError: The text is empty, or a single character takes more than ``max_tokens`` tokens.
    """
    if not text:
        raise InputError("there is no text to split", expected="a text that is not empty")
    pending = text.splitlines(keepends=True)[::-1]
    parts: list[str] = []
    while pending:
        lines: list[str] = []
        room = max_tokens
        while pending and (count := _count(model, pending[-1])) <= room:
            lines.append(pending.pop())
            room -= count
        while (
            len(lines) > 1 and _count(model, "".join(lines)) > max_tokens
        ):  # tokens differ across a line end
            pending.append(lines.pop())
        if not lines:
            head, tail = _cut_line(model, pending.pop(), max_tokens)
            lines.append(head)
            pending.append(tail)
        parts.append("".join(lines))
    return parts


def _cut_line(model: LanguageModel, line: str, max_tokens: int) -> tuple[str, str]:
    """Cut a line of more than ``max_tokens`` tokens after as many of them as stay that many alone."""
    spans = model.tokenizer(line, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for _, end in spans[max(max_tokens, 0) - 1 :: -1] if max_tokens > 0 else ():
        if 0 < end < len(line) and _count(model, line[:end]) <= max_tokens:
            return line[:end], line[end:]
    raise InputError(
        "the parts are too short to hold a character",
        value=f"max_tokens {max_tokens}",
        expected="more tokens",
    )


def _generate(
    model: LanguageModel, ids: list[int], cache: Any, max_new_tokens: int, num_beams: int
) -> Answer:
    tokenizer, end = model.tokenizer, model.model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(end if isinstance(end, list) else [end])} - {None}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=num_beams,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
        return_dict_in_generate=True,
        output_logits=True,
    )
    prompt = _tensor(model, ids)
    result = model.model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        past_key_values=cache,
        generation_config=config,
    )
    made = result.sequences[0, len(ids) :].tolist()
    stop = next((i for i, token in enumerate(made) if token in ends), None)
    if stop is not None:
        made = made[: stop + 1]
    beams = result.beam_indices[0].tolist() if num_beams > 1 else [0] * len(made)
    probabilities = [
        float(torch.softmax(result.logits[step][beams[step]].float(), dim=-1)[token])
        for step, token in enumerate(made)
    ]
    return Answer(
        text=tokenizer.decode(made, skip_special_tokens=True).strip(),
        mean_probability=sum(probabilities) / len(probabilities),
        tokens=tuple(made),
        finished=stop is not None,
        cache_bytes=cache_bytes(cache),
        cache_bytes_16bit=cache_bytes_16bit(cache),
        cache_tokens=cache.get_seq_length(),
    )


def _chat_ids(model: LanguageModel, text: str, question: str, instruction: str | None) -> list[int]:
    messages = [{"role": "user", "content": f"{text}\n\n{question}"}]
    if instruction is not None:
        messages.insert(0, {"role": "system", "content": instruction})
    chat = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return _ids(model, chat)


def _ids(model: LanguageModel, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _count(model: LanguageModel, text: str) -> int:
    return len(_ids(model, text))


def _tensor(model: LanguageModel, ids: list[int]) -> Tensor:
    return torch.tensor([ids], dtype=torch.long, device=model.model.device)


def _common(first: list[int] | tuple[int, ...], second: list[int]) -> int:
    """Return how many leading tokens are the same."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _clean(model: LanguageModel, question: str, name: str) -> str:
    question = question.strip()
    if not question:
        raise InputError(f"the {name} is empty", expected=f"a {name}")
    _refuse_reserved(model, question, name)
    return question


def _refuse_reserved(model: LanguageModel, text: str, name: str) -> None:
    tokenizer = model.tokenizer
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    for token in sorted(added.union(tokenizer.all_special_tokens)):
        if token in text:
            raise InputError(
                f"the {name} holds a token reserved for the chat format",
                value=repr(token),
                expected=f"a {name} without it",
            )
