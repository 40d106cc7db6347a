"""How much of a model's answers does a low-bit key-value cache lose, at how many bits, and against whom?

Real models and real text, both given by path: nothing here names or fetches them, and so `make evidence`
leaves this script out.

    pip install '.[language,rivals]'
    python evidence/kv_cache.py --name SmolLM2-135M --model FOLDER --wikipedia FILE --shakespeare FILE
    python evidence/kv_cache.py --name Qwen2.5-Coder-0.5B --model FOLDER --wikipedia FILE --shakespeare FILE
    python evidence/tables.py --figures

FOLDER holds config.json, safetensors and the tokenizer. Wikipedia is a UTF-8 text of article leads with blank
lines between them, Shakespeare one of plays without headers. Without the rivals' libraries their rows are left
out.

True decode: exact prefill, then teacher-forced tokens against the quantised cache, in float32, paired; needles in
the model's own dtype. What is fitted is fitted on the manual of Python and on what the model writes itself; plans
"of its kind" are fitted on the last quarter of the articles instead of the manual. The first three quarters judge,
and fit nothing. Each part is written to evidence/results/kv_cache_NAME.json as soon as it is done. An hour and a
half a model on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from language_results import KIND

from sagittal.core.errors import SagittalError
from sagittal.language.cache import LowBitCache
from sagittal.language.calibration import Calibration, calibrate
from sagittal.language.evaluation import Result, evaluate, paired_ratio, windows_of
from sagittal.language.models import LanguageModel, load_language_model
from sagittal.language.planner import fit_plan, rate_bound
from sagittal.language.sinks import SinkProfile, attention_sinks, first_n, precision, recall
from sagittal.language.specs import parse_spec

RESULTS = Path(__file__).parent / "results"
BUDGETS = {f"plan {bits}": bits for bits in (1.8, 2.7, 3.7, 4.8)}
RIVALS = [
    "kivi2",
    "kivi3",
    "kivi4",
    "kvquant2",
    "kvquant2:sinks=predict",
    "rotatekv2",
    "turbo2",
    "turbo3",
    "quarot4",
    "hf-quanto2",
    "hf-quanto4",
    "hf-hqq2",
]
PARTS: dict[str, dict[str, Any]] = {
    "the whole method": {},
    "without predicted sinks (first 4 instead)": {"sinks": False},
    "without a basis for keys": {"mix_keys": False},
    "with a basis for values too": {"mix_values": True},
    "without gains": {"gain": False},
    "without sensitivities": {"sensitivity": False},
}
KEY_BIAS = [
    "k4v16",
    "k4v16:rope=before",
    "k4v16:bias=remove",
    "k4v16:bias=remove,axis=token",
    "k4v16:axis=token",
]
ROTATIONS = [
    "k2v2:axis=token,sinks=predict",
    "k2v2:rotation=hadamard,sinks=predict",
    "k2v2:rotation=grouped,sinks=predict",
    "k2v2:rotation=reorder,sinks=predict",
    "k2v2:rotation=reorder-first,sinks=predict",
    "k2v2:rotation=reorder,clip=0.8,sinks=predict",
]
NEEDLES = (4000, 8000, 16000)
KEPT = ["k2v2:sinks=none", "k2v2:sinks=first:5", "k2v2:sinks=predict"]


def factories(
    model: LanguageModel, calibration: Calibration, kind: Calibration | None, specs: list[str], context: int
) -> dict[str, Callable[[Any], Any]]:
    made: dict[str, Callable[[Any], Any]] = {}
    for spec in specs:
        if spec in BUDGETS:
            made[spec] = planned(fit_plan(calibration, BUDGETS[spec], context))
        elif kind is not None and spec.removesuffix(KIND) in BUDGETS:
            made[spec] = planned(fit_plan(kind, BUDGETS[spec.removesuffix(KIND)], context))
        elif spec in PARTS:
            made[spec] = planned(fit_plan(calibration, 2.7, context, **PARTS[spec]))
        else:
            try:
                made[spec] = parse_spec(spec).cache(model, calibration)
            except SagittalError as error:
                print("left out", spec, error, flush=True)
    return made


def planned(plan: Any) -> Callable[[Any], Any]:
    return lambda config: LowBitCache(config, plan)


def rows(results: list[Result]) -> list[dict[str, Any]]:
    known = {result.spec: result for result in results}
    found = []
    for result in results:
        row = result.row()
        row["perplexity_16bit"] = float(np.exp(result.nll_exact.mean()))
        row["ratios"] = {
            other: paired_ratio(result, known[other])
            for other in ("kivi2", "kivi3", "kivi4", "hf-quanto4")
            if other in known and other != result.spec
        }
        found.append(row)
    return found


def sink_recall(model: LanguageModel, calibration: Calibration, text: str, count: int) -> dict[str, Any]:
    """Recall of predicted sinks against attention-derived ones, windows of 1024 tokens."""
    from transformers import DynamicCache

    profile = calibration.sinks
    if not isinstance(profile, SinkProfile):
        return {"none": profile.reason}
    truth, found, starts, seconds, forward = [], [], [], 0.0, 0.0
    for window in windows_of(model.tokenizer, text, prefill=1023, decode=1, count=count):
        ids = torch.cat([window.prompt, window.targets[:, :1]], dim=1)
        truth.append(attention_sinks(model.model, ids))
        cache, start = DynamicCache(), time.perf_counter()
        with torch.no_grad():
            model.model(ids, past_key_values=cache, logits_to_keep=1)
        forward += time.perf_counter() - start
        start = time.perf_counter()
        found.append(profile.predict(cache.layers[profile.layer].values)[0])
        seconds += time.perf_counter() - start
        starts.append(first_n(1, ids.shape[1], 5)[0])
    every, predicted, first = torch.cat(truth), torch.cat(found), torch.cat(starts)
    return {
        "windows": count,
        "sinks": int(every.sum()),
        "predicted": int(predicted.sum()),
        "recall": recall(predicted, every),
        "precision": precision(predicted, every),
        "recall_first_5": recall(first, every),
        "share_of_prefill_time": seconds / forward,
    }


def bound(calibration: Calibration) -> list[dict[str, float]]:
    """The least nats any code can cost, and what whole bits and Lloyd-Max codebooks make of it, by bits."""
    found = []
    for bits in np.arange(0.5, 5.01, 0.25):
        least, whole = rate_bound(calibration, float(bits))
        found.append({"bits": float(bits), "bound": least, "whole_bits": whole})
    return found


def needles(model: LanguageModel, calibration: Calibration, tokens: int, seeds: int) -> list[dict[str, Any]]:
    """A code planted at five depths of a simulated record; the answer of each cache, against the 16-bit one's.

    The caches share one exact prefill of each prompt.
    """
    from transformers import DynamicCache

    from sagittal.core.randomness import generator
    from sagittal.records import simulate_record

    plan = fit_plan(calibration, 2.7, tokens)
    caches: dict[str, Callable[[Any], Any]] = {
        "16bit": lambda config: DynamicCache(config=config),
        "plan 2.7": planned(plan),
        "kivi2": parse_spec("kivi2").cache(model, None),
    }
    found = []
    for seed in range(500, 500 + seeds):
        lines: list[str] = []
        part = seed * 10
        while len(model.tokenizer("\n".join(lines))["input_ids"]) < tokens:
            lines += simulate_record(seed=part).text.splitlines()
            part += 1
        random = generator(seed, "needle")
        for depth in (0.1, 0.3, 0.5, 0.7, 0.9):
            code = str(random.integers(10000, 99999))
            ids = model.tokenizer("\n".join(lines))["input_ids"][: tokens - 80]
            held = model.tokenizer.decode(ids).splitlines()
            held.insert(int(depth * len(held)), f"The storage code of the tissue sample is {code}.")
            question = "What is the storage code of the tissue sample? Answer with the code only."
            chat = [{"role": "user", "content": "\n".join(held) + "\n\n" + question}]
            prompt = model.tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            length = prompt["input_ids"].shape[1]
            prefill = DynamicCache(config=model.model.config)
            with torch.no_grad():
                model.model(prompt["input_ids"][:, :-1], past_key_values=prefill, logits_to_keep=1)
            row: dict[str, Any] = {"seed": seed, "depth": depth, "asked": tokens, "tokens": length}
            for name, make in caches.items():
                cache = make(model.model.config)
                for number, layer in enumerate(prefill.layers):
                    cache.update(layer.keys, layer.values, number)
                output = model.model.generate(
                    **prompt, past_key_values=cache, max_new_tokens=24, do_sample=False
                )
                answer = model.tokenizer.decode(output[0, length:], skip_special_tokens=True)
                row[name] = {"answer": answer.strip(), "right": code in answer}
            found.append(row)
            print(row, flush=True)
    return found


def measure(
    model: LanguageModel,
    stored: LanguageModel,
    calibration: Calibration,
    kind: Calibration,
    texts: dict[str, str],
    windows: int,
) -> Iterator[tuple[str, Any]]:
    """Yield each part with its name, one maybe again when it has grown.

    ``model`` computes in float32, ``stored`` in its own dtype; ``kind`` is fitted on text of the kind that judges,
    ``calibration`` is not.
    """
    say = lambda line: print(line, flush=True)  # noqa: E731

    def run(specs: list[str], text: str, prefill: int, decode: int, count: int) -> dict[str, Any]:
        context = prefill + decode
        cut = windows_of(model.tokenizer, texts[text], prefill=prefill, decode=decode, count=count)
        made = factories(model, calibration, kind, specs, context)
        results = evaluate(model, cut, made, report=say)
        return {"text": text, "prefill": prefill, "decode": decode, "windows": count, "rows": rows(results)}

    every = [*RIVALS[:3], *BUDGETS, *(spec + KIND for spec in BUDGETS), *RIVALS[3:]]
    few = ["kivi2", "kivi4", "plan 2.7", "plan 3.7"]
    yield "sinks", {text: sink_recall(model, calibration, texts[text], 4) for text in texts}
    yield "bound", bound(calibration)
    yield "main", run(every, "wikipedia", 4032, 128, windows)
    yield "key bias", run(KEY_BIAS, "wikipedia", 896, 128, 4)
    yield "rotation", run(ROTATIONS, "wikipedia", 896, 128, 4)
    yield "kept", run(KEPT, "wikipedia", 896, 128, 4)
    yield "1k", run(few, "wikipedia", 896, 128, 6)
    yield "shakespeare", run(few, "shakespeare", 4032, 128, 3)
    yield "parts", run(["kivi2", *PARTS], "wikipedia", 4032, 128, 2)
    yield "8k", run(few, "wikipedia", min(8064, model.context_length - 128), 128, 2)
    found: list[dict[str, Any]] = []
    for tokens in NEEDLES:
        if tokens + 64 <= model.context_length:
            found += needles(stored, calibration, tokens, 1)
            yield "needles", found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", required=True)
    for path in ("model", "wikipedia", "shakespeare"):
        parser.add_argument(f"--{path}", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=6)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, stored = load_language_model(given.model), load_language_model(given.model)
    model.model.float()
    texts = {name: getattr(given, name).read_text(encoding="utf-8") for name in ("wikipedia", "shakespeare")}
    articles = texts["wikipedia"].split("\n\n")
    judged = len(articles) * 3 // 4
    texts["wikipedia"] = "\n\n".join(articles[:judged])
    result: dict[str, Any] = {"model": given.name, "weights_sha256": model.weights_sha256}
    found = {}
    for name, text, words in (
        ("calibration", None, "the manual of Python, as pydoc carries it"),
        ("calibration of its kind", "\n\n".join(articles[judged:]), "other articles of the encyclopedia"),
    ):
        start = time.perf_counter()
        found[name] = calibrate(stored.model, stored.tokenizer, text=text)
        result[name] = {
            "tokens": found[name].tokens,
            "own": found[name].own * found[name].length,
            "text": words,
            "text_sha256": found[name].text_sha256,
            "seconds": time.perf_counter() - start,
        }
    RESULTS.mkdir(exist_ok=True)
    for part, value in measure(model, stored, *found.values(), texts, given.windows):
        result[part] = value
        target = RESULTS / f"kv_cache_{given.name}.json"
        partial = target.with_suffix(".tmp")
        partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        partial.replace(target)


if __name__ == "__main__":
    main()
