"""How long does a model take to generate with a low-bit cache, and how much memory, beside a plain cache?

    pip install '.[language]'                # and '.[rivals]' for a row of optimum-quanto
    python benchmarks/generate.py --model FOLDER --context 8192 --json generate.json
    python benchmarks/generate.py --model FOLDER --sweep 1024,2048,4096,8192,16384,32768 --json sweep.json

FOLDER holds config.json, safetensors and the tokenizer; the text is the manual of Python. Without ``--plan``
one is fitted at ``--bits`` bits, which takes minutes.

A step is what ``generate`` does for a token when it searches greedily: the model on one token, and the
largest logit. Steps with transformers' ``DynamicCache`` and sdpa, and with ``LowBitCache`` and attention to
packed states, take turns in one process.

- ``step_ratio_to_dynamic``: median by median; ``fastest_step_ratio_to_dynamic``: least by least, for a
  machine that others use too;
- ``longest_step_over_median``: of the low-bit cache; a busy neighbour shows in it, which is why
  ``longest_step_over_median_dynamic`` stands beside it. ``longest_phase_over_median`` is steadier: steps at
  the same distance from a page's end, the median of each such phase, the longest of these;
- ``prefill_ratio``: the same text from nothing, once with each, in turns;
- ``peak_bytes``: by the operating system, of a process that loads the model, reads the text and takes some
  steps, one process for each cache; ``model_bytes`` is where it stood when the model was loaded.

``--sweep`` fills the caches with made-up states instead of reading a text, and adds ``floor_ms``: weights and
cache, once through memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DYNAMIC, OURS = "dynamic", "sagittal"
KIBIBYTE = 1024


def peak_bytes() -> int:
    """Return the most memory that this process ever held."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else KIBIBYTE * held


def load(arguments: argparse.Namespace) -> Any:
    import torch

    from sagittal.language.models import load_language_model

    torch.set_num_threads(arguments.threads)
    return load_language_model(arguments.model)


def plan_for(arguments: argparse.Namespace, language: Any) -> Any:
    from sagittal.language.plan import CachePlan, load_plan
    from sagittal.language.planner import plan_cache

    if arguments.plan == "uniform":
        bits = round(arguments.bits)
        return CachePlan.uniform(bits, bits)
    if arguments.plan is not None:
        return load_plan(Path(arguments.plan))
    context = min(arguments.context, language.context_length)
    return plan_cache(language.model, language.tokenizer, arguments.bits, context, report=print)


def text_of(language: Any, tokens: int) -> Any:
    from sagittal.language.calibration import calibration_text

    ids = language.tokenizer(calibration_text(), return_tensors="pt", verbose=False)["input_ids"]
    return ids.repeat(1, -(-tokens // ids.shape[1]))[:, :tokens]


def cache_for(kind: str, model: Any, plan: Any) -> Any:
    """Return an empty cache, with the model's attention set to what it goes with."""
    from transformers import DynamicCache

    from sagittal.language.attention import use_low_bit_attention
    from sagittal.language.cache import LowBitCache
    from sagittal.language.rivals import rival

    choose(kind, model)
    if kind == DYNAMIC:
        return DynamicCache(config=model.config)
    if kind == OURS:
        use_low_bit_attention(model)
        return LowBitCache(model.config, plan)
    return rival(kind)(model.config)


def choose(kind: str, model: Any) -> None:
    from sagittal.language.attention import NAME

    model.set_attn_implementation(NAME if kind == OURS else "sdpa")


def step(model: Any, cache: Any, ids: Any) -> Any:
    """Return the next token."""
    return model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1:].argmax(-1)


def timed(model: Any, kind: str, cache: Any, ids: Any) -> tuple[Any, float]:
    choose(kind, model)
    start = time.perf_counter()
    found = step(model, cache, ids)
    return found, time.perf_counter() - start


def longest_phase(times: list[float], page: int) -> float:
    """Return the longest of the medians of steps at the same place within a page."""
    return max(statistics.median(times[at::page]) for at in range(min(page, len(times))))


def steps(model: Any, caches: dict[str, Any], last: Any, count: int) -> dict[str, list[float]]:
    """Take steps in turns, from the token each cache begins with; the first three are not counted."""
    times: dict[str, list[float]] = {kind: [] for kind in caches}
    for _ in range(count + 3):
        for kind, cache in caches.items():
            last[kind], seconds = timed(model, kind, cache, last[kind])
            times[kind].append(seconds)
    return {kind: each[3:] for kind, each in times.items()}


def held_bytes(cache: Any) -> int:
    from sagittal.language.cache import cache_bytes

    return cache_bytes(cache)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read a text and go on, with both caches."""
    import torch

    from sagittal.language.extension import chosen

    language = load(arguments)
    model, plan = language.model, plan_for(arguments, language)
    ids = text_of(language, arguments.context)
    with torch.inference_mode():
        for kind in (DYNAMIC, OURS):
            step(model, cache_for(kind, model, plan), ids[:, :64])
        caches = {kind: cache_for(kind, model, plan) for kind in (DYNAMIC, OURS)}
        last, prefill = {}, {}
        for kind, cache in caches.items():
            last[kind], prefill[kind] = timed(model, kind, cache, ids)
        times = steps(model, caches, last, arguments.steps)
    median = {kind: statistics.median(each) for kind, each in times.items()}
    ours = times[OURS]
    return {
        "model": language.name,
        "context": arguments.context,
        "threads": arguments.threads,
        "kernel": chosen(),
        "page": plan.page,
        "residual": plan.residual,
        "effective_bits": caches[OURS].effective_bits,
        "cache_bytes": {kind: held_bytes(cache) for kind, cache in caches.items()},
        "steps": len(ours),
        "step_ms": {kind: 1e3 * seconds for kind, seconds in median.items()},
        "step_ratio_to_dynamic": median[OURS] / median[DYNAMIC],
        "fastest_step_ratio_to_dynamic": min(ours) / min(times[DYNAMIC]),
        "longest_step_over_median": max(ours) / median[OURS],
        "longest_step_over_median_dynamic": max(times[DYNAMIC]) / median[DYNAMIC],
        "longest_phase_over_median": longest_phase(ours, plan.page) / median[OURS],
        "prefill_seconds": prefill,
        "prefill_ratio": prefill[OURS] / prefill[DYNAMIC],
    }


def peak(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read a text and go on, with one cache, and return how much memory it took."""
    import torch

    language = load(arguments)
    plan = plan_for(arguments, language) if arguments.child == OURS else None
    ids = text_of(language, arguments.context)
    with torch.inference_mode():
        loaded = peak_bytes()
        cache = cache_for(arguments.child, language.model, plan)
        last = step(language.model, cache, ids)
        for _ in range(8):
            last = step(language.model, cache, last)
    return {"peak_bytes": peak_bytes(), "model_bytes": loaded, "cache_bytes": held_bytes(cache)}


def peaks(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure each cache in a process of its own, which must start before this one is large."""
    found: dict[str, Any] = {}
    for kind in arguments.caches.split(","):
        command = [sys.executable, __file__, *sys.argv[1:], "--child", kind]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stdout.strip().splitlines()
        if done.returncode:
            found[kind] = {"failed": (done.stderr.strip().splitlines() or ["?"])[-1]}
        else:
            found[kind] = json.loads(lines[-1])
        print(kind, found[kind], flush=True)
    return {
        key: {kind: of.get(key) for kind, of in found.items()}
        for key in ("peak_bytes", "model_bytes", "cache_bytes")
    } | {"failed": {kind: of["failed"] for kind, of in found.items() if "failed" in of}}


def fill(cache: Any, model: Any, tokens: int) -> None:
    """Put made-up states into every layer, as a text of so many tokens would."""
    import torch

    config = model.config.get_text_config(decoder=True)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    draw = torch.Generator().manual_seed(1)
    shape = (1, config.num_key_value_heads, tokens, width)
    for layer in range(config.num_hidden_layers):
        keys, values = (torch.randn(shape, generator=draw).to(model.dtype) for _ in range(2))
        cache.update(keys, values, layer)


def sweep(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time steps at several lengths of text."""
    import torch
    from measure import Memory

    language = load(arguments)
    model, plan = language.model, plan_for(arguments, language)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    memory, found = Memory(), []
    for context in map(int, arguments.sweep.split(",")):
        with torch.inference_mode():
            caches = {kind: cache_for(kind, model, plan) for kind in (DYNAMIC, OURS)}
            for cache in caches.values():
                fill(cache, model, context)
            begin = torch.ones(1, 1, dtype=torch.int64)
            times = steps(model, caches, dict.fromkeys(caches, begin), arguments.steps)
            reads = []
            for number in range(20):
                start = time.perf_counter()
                memory.read(number)
                reads.append(time.perf_counter() - start)
        speed = memory.window / statistics.median(reads)
        held = {kind: held_bytes(cache) for kind, cache in caches.items()}
        row = {
            "context": context,
            "threads": arguments.threads,
            "step_ms": {kind: 1e3 * statistics.median(each) for kind, each in times.items()},
            "cache_bytes": held,
            "weight_bytes": weights,
            "gb_per_second_of_memory": speed / 1e9,
            "floor_ms": {kind: 1e3 * (weights + size) / speed for kind, size in held.items()},
        }
        row["step_ratio_to_dynamic"] = row["step_ms"][OURS] / row["step_ms"][DYNAMIC]
        print(row, flush=True)
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a folder")
    parser.add_argument("--context", type=int, default=8192, help="tokens to read")
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--bits", type=float, default=2.6)
    parser.add_argument("--plan", help='a file, or "uniform" for one layout throughout')
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--caches", default=f"{DYNAMIC},{OURS},hf-quanto4", help="whose peak to measure")
    parser.add_argument("--sweep", help="lengths, instead of a text")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(peak(arguments)))
        return
    found: dict[str, Any]
    if arguments.sweep:
        found = {"sweep": sweep(arguments)}
    else:
        memory = peaks(arguments) if arguments.caches else {}
        result = compare(arguments)
        found = {**result, **memory, "cache_bytes": result["cache_bytes"] | memory.get("cache_bytes", {})}
    from measure import machine

    found["machine"] = machine()
    print(json.dumps(found, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
