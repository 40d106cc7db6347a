"""The bars that the caches of language models were to reach, and whether they are held."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from language_results import KIND, MISSING, MODELS, Results, by_spec, span
from pages import table

BARS = {"SmolLM2-135M": 0.17, "Qwen2.5-Coder-0.5B": 0.10}


def claims(results: Results) -> str:
    """Return the bars, and for each model whether it is held."""
    small, other = (
        f"{BARS[name]:g} (SmolLM2)" if i == 0 else f"{BARS[name]:g} (Qwen)" for i, name in enumerate(MODELS)
    )
    halves = " and ".join(f"{BARS[name] / 2:g}" for name in MODELS)
    bars: list[tuple[str, Callable[[str], Callable[..., str]]]] = [
        (
            f"at most 2.7 bits, and no more than `kivi2`: at most {small} and {other} of its KL",
            lambda name: _against("kivi2", BARS[name], 2.7),
        ),
        (f"the goal, half of that: {halves}", lambda name: _against("kivi2", BARS[name] / 2, 2.7)),
        (
            "at most 2.7 bits: perplexity within 1.5 % of the 16-bit cache's (asked of Qwen)",
            lambda _: _perplexity(0.015),
        ),
        ("no more bits than `kivi3`: at most 0.3 of its KL", lambda _: _against("kivi3", 0.3)),
        ("no more bits than `kivi4`: at most 0.5 of its KL", lambda _: _against("kivi4", 0.5)),
        ("no more bits than `hf-quanto4`: at most 0.2 of its KL", lambda _: _against("hf-quanto4", 0.2)),
        ("plan 1.8 is no worse than `kivi2`", lambda _: _against("kivi2", 1.0, plan="plan 1.8")),
        ("plan 3.7 is no worse than `kivi4`", lambda _: _against("kivi4", 1.0, plan="plan 3.7")),
        ("a lower mean KL than every rival, at no more bits than it has", lambda _: _every_rival),
        ("recall of attention's sinks at least 0.95", lambda _: _recall),
        ("predicting sinks takes less than 1 % of the prefill", lambda _: _overhead),
    ]
    views = [(name, *view) for name, result in results.items() for view in _views(name, result)]
    rows = [[claim, *(judge(name)(result) for name, _, result in views)] for claim, judge in bars]
    return table(["claim", *(title for _, title, _ in views)], rows)


def _views(name: str, result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return results with the plans fitted on the manual only, and with those of its kind in their place."""
    found = []
    for kind, title in ((False, name), (True, f"{name}, plans of its kind")):
        rows = []
        for row in result.get("main", {}).get("rows", []):
            if not row["spec"].startswith("plan "):
                rows.append(row)
            elif row["spec"].endswith(KIND) == kind:
                rows.append({**row, "spec": row["spec"].removesuffix(KIND)})
        found.append((title, {**result, "main": {**result.get("main", {}), "rows": rows}}))
    return found


def _judge(ratio: Sequence[float], bar: float) -> str:
    if ratio[0] > bar:
        return "not held"
    return "held" if ratio[2] <= bar else "held, but the interval reaches beyond"


def _plan(rows: dict[str, dict[str, Any]], most: float) -> dict[str, Any] | None:
    """Return the plan of the most bits that has at most so many."""
    plans = [row for spec, row in rows.items() if spec.startswith("plan ") and row["effective_bits"] <= most]
    return max(plans, key=lambda row: float(row["effective_bits"]), default=None)


def _against(other: str, bar: float, most: float = math.inf, plan: str | None = None) -> Callable[..., str]:
    """Claim a ratio to a rival of at most ``bar``, at no more than ``most`` bits nor than the rival's."""

    def judge(result: dict[str, Any]) -> str:
        rows = by_spec(result, "main")
        if other not in rows:
            return MISSING
        limit = min(most, rows[other]["effective_bits"])
        row = rows.get(plan) if plan else _plan(rows, limit)
        if row is None:
            return MISSING if plan else f"not held: no plan at {limit:.2f} bits or fewer"
        told = f"{row['spec']}, {row['effective_bits']:.2f} bits against {rows[other]['effective_bits']:.2f}"
        verdict = _judge(row["ratios"][other], bar)
        if row["effective_bits"] > limit:
            verdict = "not held, for it has more bits"
        return f"**{verdict}**: {span(*row['ratios'][other], '.3f')}; {told}"

    return judge


def _perplexity(bar: float) -> Callable[..., str]:
    """Claim a perplexity of at most ``1 + bar`` times the 16-bit cache's, for the plan of at most 2.7 bits."""

    def judge(result: dict[str, Any]) -> str:
        row = _plan(by_spec(result, "main"), 2.7)
        if row is None:
            return MISSING
        low, high = (100 * math.expm1(end) for end in row["interval"])
        if "perplexity_16bit" in row:
            change = 100 * (row["perplexity"] / row["perplexity_16bit"] - 1)
            verdict, told = (
                _judge((change, low, high), 100 * bar),
                f"{change:+.2f} % ({low:+.2f} to {high:+.2f})",
            )
        else:
            verdict = "held" if high <= 100 * bar else "not held" if low > 100 * bar else "not decided"
            told = f"{low:+.2f} to {high:+.2f} % (95 % interval)"
        return f"**{verdict}**: {told}; {row['spec']}, perplexity {row['perplexity']:.2f}"

    return judge


def _every_rival(result: dict[str, Any]) -> str:
    rows = by_spec(result, "main")
    rivals = [row for spec, row in rows.items() if not spec.startswith("plan ")]
    if not rivals or len(rivals) == len(rows):
        return MISSING
    lost = []
    for rival in rivals:
        mine = _plan(rows, rival["effective_bits"])
        if mine is None:
            lost.append(f"`{rival['spec']}`, {rival['effective_bits']:.2f} bits: no plan at so few")
        elif mine["kl_mean"] >= rival["kl_mean"]:
            lost.append(
                f"`{rival['spec']}`, {rival['effective_bits']:.2f} bits, KL {rival['kl_mean']:.3g}: "
                f"{mine['spec']} has {mine['kl_mean']:.3g}"
            )
    told = f"{len(rivals) - len(lost)} of {len(rivals)} rivals"
    return f"**held**: {told}" if not lost else f"**not held**: {told}; {'; '.join(lost)}"


def _recall(result: dict[str, Any]) -> str:
    found = {text: row for text, row in result.get("sinks", {}).items() if "recall" in row}
    if not found:
        return MISSING if "sinks" not in result else "not held: sinks cannot be predicted"
    verdict = "held" if min(row["recall"] for row in found.values()) >= 0.95 else "not held"
    return f"**{verdict}**: " + ", ".join(
        f"{row['recall']:.3f} of {row['sinks']} on {text.capitalize()}" for text, row in found.items()
    )


def _overhead(result: dict[str, Any]) -> str:
    found = [row["share_of_prefill_time"] for row in result.get("sinks", {}).values() if "recall" in row]
    if not found:
        return MISSING
    return f"**{'held' if max(found) < 0.01 else 'not held'}**: at most {100 * max(found):.3f} %"
