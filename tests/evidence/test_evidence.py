"""The documentation shows the committed results, and a slice of them comes out again."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts import each other as they do when run."""
    monkeypatch.syspath_prepend(str(ROOT / "evidence"))


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"evidence_{name}", ROOT / "evidence" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "evidence" / "results" / f"{name}.json").read_text())


def test_the_page_is_made_from_the_results() -> None:
    assert (ROOT / "docs" / "evidence.md").read_text() == script("tables").page()


def test_the_page_on_the_cache_is_made_from_the_results() -> None:
    assert (ROOT / "docs" / "language.md").read_text() == script("language_page").page()


def test_the_page_on_reliability_is_made_from_the_results() -> None:
    assert (ROOT / "docs" / "reliability.md").read_text() == script("reliability_page").page()


def test_what_was_not_measured_of_reliability_is_said(tmp_path: Path) -> None:
    module = script("reliability_page")
    assert module.page(tmp_path).count(module.MISSING) == 4
    (tmp_path / "more.json").write_text('{"seconds": 7}')
    more = {
        tmp_path / "more.json": lambda found: f"## More\n\n{found['seconds']} s",
        tmp_path / "none.json": lambda found: "## Never",
    }
    text = module.page(tmp_path, more)
    assert text.endswith("## More\n\n7 s\n")


def test_a_run_that_was_cut_short_still_makes_a_page(tmp_path: Path) -> None:
    language, missing = script("language_page"), script("language_results").MISSING
    assert language.page(tmp_path).count(missing) > 20
    (tmp_path / "kv_cache_SmolLM2-135M.json").write_text(json.dumps(cut_short()))
    text = language.page(tmp_path)
    assert "**held**: 0.100 (0.080 to 0.120); plan 2.7, 2.69 bits against 2.90" in text  # of 0.17
    assert "**not held**: 0.100 (0.080 to 0.120)" in text  # of half of that
    assert "**held**: 0.050 (0.040 to 0.060); plan 2.7, 2.68 bits against 2.90" in text  # of its kind
    assert "plan 3.7 is no worse than `kivi4` | not measured |" in text
    assert "**not held**: 1 of 2 rivals; `turbo2`, 2.10 bits: no plan at so few" in text
    assert "**not decided**" in text


def cut_short() -> dict[str, Any]:
    """Return results of one part, as the script writes them."""

    def row(spec: str, bits: float, kl: float, ratio: list[float] | None) -> dict[str, Any]:
        return {
            "spec": spec,
            "perplexity": 10.0,
            "kl_mean": kl,
            "kl_p95": 3 * kl,
            "same_top": 0.9,
            "effective_bits": bits,
            "tokens": 256,
            "interval": [0.01, 0.02],
            "kl_interval": [0.8 * kl, 1.2 * kl],
            "ratios": {} if ratio is None else {"kivi2": ratio},
        }

    rows = [
        row("kivi2", 2.9, 0.5, None),
        row("turbo2", 2.1, 0.4, [0.8, 0.7, 0.9]),
        row("plan 2.7", 2.69, 0.05, [0.1, 0.08, 0.12]),
        row("plan 2.7, of its kind", 2.68, 0.025, [0.05, 0.04, 0.06]),
    ]
    return {"main": {"text": "wikipedia", "prefill": 4032, "decode": 128, "windows": 2, "rows": rows}}


def test_a_simulated_brain_gives_the_recorded_amounts() -> None:
    from sagittal.core import assets
    from sagittal.core.errors import AssetError
    from sagittal.volume import read_nifti

    evidence = script("tissue_volumes")
    try:
        paths = {k: assets.fetch(assets.asset(f"mni152-{k}")) for k in ("t1", "gm", "wm")}
    except AssetError as error:
        pytest.skip(f"the template cannot be had: {error}")
    t1 = read_nifti(paths["t1"])
    maps = {k: read_nifti(paths[k]).array.astype(np.float64) / 255 for k in ("gm", "wm")}
    maps["csf"] = np.where(t1.array > 0, np.clip(1 - maps["gm"] - maps["wm"], 0, 1), 0)
    (again,) = evidence.simulated(t1, maps, seeds=1)["rows"]
    recorded = results("tissue_volumes")["simulated"]["rows"][0]
    for tissue, amount in recorded["amounts"].items():
        assert again["truth"][tissue] == pytest.approx(recorded["truth"][tissue], rel=1e-6)
        assert again["amounts"][tissue] == pytest.approx(amount, rel=1e-3)


@pytest.mark.model
def test_a_simulated_record_gives_a_recorded_answer(language_model_path: Path) -> None:
    from sagittal.language import load_language_model

    rows = [row for row in results("record_reading")["rows"] if row["cache"] == "4 bits"]
    surest = max(rows, key=lambda row: row["probability"])
    model = load_language_model(language_model_path, packed=True)  # as the product loads it
    (again,) = script("record_reading").ask(model, surest["seed"], "4 bits", [surest["question"]])
    assert {k: again[k] for k in ("tokens", "outcome")} == {k: surest[k] for k in ("tokens", "outcome")}
    # Processors round bfloat16 products differently: an answer may be a token longer, and is then kept too.
    assert again["bytes"] / again["bytes_16bit"] == pytest.approx(
        surest["bytes"] / surest["bytes_16bit"], rel=1e-3
    )
    assert again["probability"] == pytest.approx(surest["probability"], abs=0.05)


@pytest.fixture(scope="module")
def tiny(make_tokenizer: Callable[..., Any]) -> tuple[Any, Any]:
    """A small random model that writes bytes, and what was measured on it; its sinks are made up."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    from sagittal.language import LanguageModel, SinkProfile, calibrate

    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer = make_tokenizer("<|end|>", eos_token="<|end|>", chat_template=template)
    torch.manual_seed(7)
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=96,
        vocab_size=257,
        max_position_embeddings=2048,
        initializer_range=0.35,
        pad_token_id=0,
        eos_token_id=0,
    )
    model = LanguageModel(LlamaForCausalLM(config).eval(), tokenizer, "tiny", 2048, "0" * 64)
    profile = SinkProfile(
        emergence=0,
        last=1,
        channels=(0,),
        signs=(1,),
        hidden_threshold=1.0,
        hidden_gap=2.0,
        hidden_overlap=0.5,
        layer=1,
        direction=tuple(4.0 * (i == 3) for i in range(32)),
        bias=0.0,
        threshold=6.0,
        gap=2.0,
        sinks=1,
        massive=1,
        tokens=100,
        heads=2,
        width=16,
    )
    measured = calibrate(model.model, tokenizer, windows=4, length=256, own=2)
    return model, replace(measured, sinks=profile, reads=1)


def test_a_slice_of_the_cache_measurement_runs(tiny: tuple[Any, Any]) -> None:
    from sagittal.language.calibration import calibration_text
    from sagittal.language.evaluation import evaluate, windows_of

    evidence, (model, calibration) = script("kv_cache"), tiny
    specs = [
        *(spec for spec in evidence.RIVALS if not spec.startswith("hf-")),  # need another extra
        *("plan 2.7", "plan 3.7", "plan 2.7, of its kind"),
        *evidence.PARTS,
        *evidence.KEY_BIAS,
        *evidence.ROTATIONS,
        *evidence.KEPT,
    ]
    made = evidence.factories(model, calibration, calibration, specs, 1040)
    assert list(made) == specs
    cut = windows_of(model.tokenizer, calibration_text(), prefill=1024, decode=16, count=1)
    rows = {row["spec"]: row for row in evidence.rows(evaluate(model, cut, made))}
    assert rows["plan 2.7"]["effective_bits"] <= 2.7
    assert rows["the whole method"]["kl_mean"] == rows["plan 2.7"]["kl_mean"]
    assert rows["plan 2.7, of its kind"]["kl_mean"] == rows["plan 2.7"]["kl_mean"]  # the same calibration
    assert set(rows["kivi2"]["ratios"]) == {"kivi3", "kivi4"}
    assert rows["kivi2"]["ratios"]["kivi4"][0] > 1
    shared = {
        "spec",
        "perplexity",
        "kl_mean",
        "effective_bits",
        "interval",
        "kl_interval",
        "ratios",
        "tokens",
    }
    assert shared <= set(rows["kivi2"])
    json.dumps(list(rows.values()), allow_nan=False)


def test_a_slice_of_the_bound_and_of_the_sinks_runs(tiny: tuple[Any, Any]) -> None:
    from sagittal.language import NoSinks
    from sagittal.language.calibration import calibration_text

    evidence, (model, calibration) = script("kv_cache"), tiny
    curve = evidence.bound(calibration)
    assert all(row["bound"] < row["whole_bits"] for row in curve)
    assert all(b["bound"] < a["bound"] for a, b in pairwise(curve))
    found = evidence.sink_recall(model, calibration, calibration_text(), 1)
    assert found["predicted"] > 0
    assert {"windows", "sinks", "recall", "precision", "recall_first_5", "share_of_prefill_time"} <= set(
        found
    )

    none = replace(calibration, sinks=NoSinks("a reason"))
    assert evidence.sink_recall(model, none, calibration_text(), 1) == {"none": "a reason"}


def test_a_slice_of_the_needles_runs(tiny: tuple[Any, Any]) -> None:
    evidence, (model, calibration) = script("kv_cache"), tiny
    rows = evidence.needles(model, calibration, 700, 1)
    assert [row["depth"] for row in rows] == [0.1, 0.3, 0.5, 0.7, 0.9]
    assert {"16bit", "plan 2.7", "kivi2", "seed", "asked", "tokens"} <= set(rows[0])


def test_growth_is_the_slope_of_the_steps(tmp_path: Path) -> None:
    speed = script("language_speed")
    assert speed.growth(tmp_path) == "Not measured.\n"
    rows = [
        {
            "context": tokens,
            "threads": 1,
            "step_ms": {"dynamic": 40 + tokens / 100, "sagittal": 50 + tokens / 500},
            "step_ratio_to_dynamic": 0.5,
            "floor_ms": {"dynamic": 1.0, "sagittal": 1.0},
            "cache_bytes": {"dynamic": 2**20, "sagittal": 2**18},
        }
        for tokens in (1000, 2000, 8000)
    ]
    (tmp_path / "sweep.json").write_text(json.dumps({"sweep": rows, "machine": {"processor": "a chip"}}))
    text = speed.growth(tmp_path)
    assert "rises by 10.00 ms for 1,000 tokens with `DynamicCache` and by 2.00" in text
    assert "0.20 of it" in text
    assert "| 8,000 | 120.0 | 66.0 | 0.50 | 1.0 | 1.0 | 1.0 | 0.2 |" in text
    (tmp_path / "sweep_other.json").write_text(
        json.dumps({"sweep": rows, "machine": {"processor": "another"}})
    )
    assert [line for line in speed.growth(tmp_path).splitlines() if line.endswith("milliseconds.")] == [
        "1 thread, a chip, milliseconds.",
        "1 thread, another, milliseconds.",
    ]
