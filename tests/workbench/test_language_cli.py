from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner, Result

from sagittal.core.errors import InputError
from sagittal.language.plan import CachePlan, load_plan
from sagittal.workbench.cli import app
from sagittal.workbench.language_figure import draw_plan
from sagittal.workbench.output import table

pytestmark = pytest.mark.usefixtures("one_thread")
FIELDS = {
    "spec",
    "perplexity",
    "kl_mean",
    "kl_p95",
    "bits_per_character",
    "effective_bits",
    "bytes",
    "windows",
    "tokens",
    "interval",
}
SMALL = ["--prefill", "200", "--decode", "24", "--windows", "2"]


def sagittal(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["language", *map(str, arguments)], prog_name="sagittal")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., Any]) -> Path:
    """Folder of a tiny random model that reads bytes."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    torch.manual_seed(7)
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        vocab_size=260,
        max_position_embeddings=640,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    roles = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    make_tokenizer("<|end|>", *roles.values(), **roles).save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    lines = [f"Line {i} of {i * i % 97}: nothing to see, doctor.\n" for i in range(160)]
    path.write_text("".join(lines))
    return path


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    from sagittal.language.plan import CachePlan, Sinks, save_plan

    path = tmp_path / "small.json"
    save_plan(CachePlan.uniform(4, 4, group=16, sinks=Sinks(count=2), residual=8, page=8), path)
    return path


# --- evaluate ---


def test_evaluate_writes_the_fields_that_were_promised(
    model: Path, text: Path, plan_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    caches = ["16bit", "kivi2", "k4v4:group=16,page=8,residual=8", str(plan_file)]
    options = [part for spec in caches for part in ("--cache", spec)]
    done = sagittal("evaluate", "--model", model, "--text", text, *options, *SMALL, "--json", out)
    assert done.exit_code == 0, done.output
    held = json.loads(out.read_text())
    assert (held["model"], held["text"]) == ("tiny-llama", "text.txt")
    assert (held["prefill"], held["decode"]) == (200, 24)
    assert [row["spec"] for row in held["results"]] == caches
    for row in held["results"]:
        assert set(row) >= FIELDS
        assert row["windows"] == 2
        assert row["tokens"] == 48
        assert len(row["interval"]) == 2
        assert row["bytes"] > 0
    exact, kivi, low, _ = held["results"]
    assert exact["kl_mean"] < 0.02
    assert exact["effective_bits"] == 16
    assert low["effective_bits"] < 10
    assert kivi["ratio_to_kivi2"] == 1
    assert low["sinks"] == "the first 4 tokens"
    for spec in caches[:2]:
        assert spec in done.stdout


def test_evaluate_prints_one_line_of_json_for_a_dash(model: Path, text: Path) -> None:
    done = sagittal(
        "evaluate", "--model", model, "--text", text, "--cache", "k8v8", *SMALL, "--json", "-", "--float32"
    )
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 1
    row = json.loads(done.stdout)["results"][0]
    assert set(row) >= FIELDS
    assert "ratio_to_kivi2" not in row


def test_evaluate_calibrates_and_says_when_sinks_cannot_be_predicted(model: Path, text: Path) -> None:
    done = sagittal(
        "evaluate", "--model", model, "--text", text, "--cache", "k4v4:sinks=predict:3,group=16", *SMALL
    )
    assert done.exit_code == 0, done.output
    assert "the first 3 tokens, because sinks cannot be predicted" in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--cache": "k2v2:sink=4"}, "k2v2:sink=4: there is no such option; got 'sink'"),
        ({"--cache": "kivi9"}, "there is no such cache"),
        ({"--cache": "no.json"}, "no.json: the plan does not exist"),
        ({"--cache": "k2v2:group=5"}, "k2v2:group=5: group does not divide 2 heads of width 8"),
        ({"--text": "missing.txt"}, "missing.txt: the text does not exist"),
        ({"--text": "."}, "the text is no file"),
        ({"--text": b""}, "the text is empty"),
        ({"--text": b" \n\n"}, "the text is empty"),
        ({"--text": b"M\xfcller"}, "the text is not UTF-8; got byte 1"),
        ({"--text": b"Too short."}, "bad.txt: the text is too short; got 10 tokens"),
        ({"--model": "missing"}, "missing: the model folder does not exist"),
        ({"--model": "m.gguf"}, "m.gguf: a GGUF file is not read as it is.*convert_gguf"),
        ({"--prefill": "0"}, "--prefill: the number is too small; got 0"),
        ({"--decode": "0"}, "--decode: the number is too small"),
        ({"--windows": "-1"}, "--windows: the number is too small"),
        ({"--prefill": "640"}, "tiny-llama: a window .*got 664 tokens; expected 1 to 640"),
        ({"--json": "."}, "the file to write is a folder"),
        ({"--json": "text.txt/out.json"}, "a file is where a folder is needed"),
    ],
)
def test_evaluate_refuses_before_it_computes_and_writes_nothing(
    model: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {
        "--model": model,
        "--text": text,
        "--cache": "k2v2",
        **dict(zip(SMALL[::2], SMALL[1::2], strict=True)),
        "--json": "out.json",
    }
    for name, value in change.items():
        if isinstance(value, bytes):
            (tmp_path / "bad.txt").write_bytes(value)
            value = tmp_path / "bad.txt"
        given[name] = value
    before = sorted(tmp_path.rglob("*"))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("computed with bad input")

    monkeypatch.setattr("sagittal.language.evaluation.evaluate", fail)
    monkeypatch.setattr("sagittal.language.calibration.calibrate", fail)
    done = sagittal("evaluate", *[part for pair in given.items() for part in pair])
    _refused(done, message)
    assert sorted(tmp_path.rglob("*")) == before


def test_evaluate_refuses_a_cache_given_twice(model: Path, text: Path) -> None:
    done = sagittal(
        "evaluate", "--model", model, "--text", text, "--cache", "k2v2", "--cache", "k2v2", *SMALL
    )
    _refused(done, "--cache: the cache is given twice; got k2v2")


def test_an_error_is_json_where_json_is_printed(model: Path, text: Path) -> None:
    done = sagittal("evaluate", "--model", model, "--text", text, "--cache", "k0v0", "--json", "-")
    assert done.exit_code == 2
    assert "bits cannot be stored" in json.loads(done.stdout)["error"]


def test_a_long_cache_is_printed_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    spec = (
        "k2v2:sinks=predict:5,rotation=reorder,group=64,residual=64,codebook=uniform,outliers=0,vaxis=channel"
    )
    table(["cache", "bits"], [[spec, "2.345"], ["16bit", "16.000"]])
    header, first, second = capsys.readouterr().out.rstrip().split("\n")
    assert first.split() == [spec, "2.345"]
    assert second.split() == ["16bit", "16.000"]
    assert max(map(len, (header, first, second))) < len(spec) + 20  # not padded beyond the table


# --- generate ---


@pytest.mark.parametrize("spec", ["16bit", "k4v4:group=16,page=8,residual=8", "turbo4:page=8"])
def test_generate_goes_on_from_a_prompt(model: Path, text: Path, tmp_path: Path, spec: str) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(text.read_text()[:200])
    arguments = ["generate", "--model", model, "--prompt", prompt, "--cache", spec, "--max-new-tokens", 30]
    spoken = sagittal(*arguments)
    assert spoken.exit_code == 0, spoken.output
    assert f"cache {spec}: " in spoken.stderr
    assert "bits a number" in spoken.stderr
    out = tmp_path / "out.json"
    assert sagittal(*arguments, "--json", out).exit_code == 0
    held = json.loads(out.read_text())
    assert set(held) == {"text", "spec", "prompt_tokens", "new_tokens", "bytes", "effective_bits", "sinks"}
    assert held["prompt_tokens"] == 200
    assert held["text"] in spoken.stdout
    assert held["effective_bits"] == 16 if spec == "16bit" else held["effective_bits"] < 9


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (b"", [], "the text is empty"),
        (b"\xff", [], "the text is not UTF-8"),
        (b"x" * 640, [], "beyond the model's context; got 640 \\+ 128 tokens; expected at most 640"),
        (b"x", ["--max-new-tokens", "0"], "--max-new-tokens: the number is too small"),
        (b"x", ["--chat"], "tiny-llama: the model has no chat template"),
        (b"x", ["--json", "."], "is a folder"),
    ],
)
def test_generate_refuses_bad_prompts(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    more: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    prompt = tmp_path / "prompt.txt"
    prompt.write_bytes(content)
    _refused(sagittal("generate", "--model", model, "--prompt", prompt, "--cache", "k2v2", *more), message)
    assert list(tmp_path.iterdir()) == [prompt]


# --- plan ---


def test_plan_writes_a_plan_that_can_be_evaluated(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "plan.json"
    own = tmp_path / "own.txt"
    own.write_text(text.read_text() * 2)
    command = ["plan", "--model", model, "--budget", 8, "--context", 512, "--out", out, "--text", own]
    done = sagittal(*command)
    assert done.exit_code == 0, done.output
    assert "plan.json" in done.stdout
    assert load_plan(out).made_for["layers"] == 3
    checked = sagittal("evaluate", "--model", model, "--text", text, "--cache", out, *SMALL)
    assert checked.exit_code == 0, checked.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--budget": 0}, "the budget is out of range; got 0"),
        ({"--budget": 17}, "the budget is out of range; got 17"),
        ({"--budget": "nan"}, "the budget is out of range; got nan"),
        ({"--context": 0}, "the context is not one of this model's; got 0 tokens; expected 1 to 640"),
        ({"--context": 641}, "the context is not one of this model's; got 641 tokens"),
        ({"--out": "."}, "the file to write is a folder"),
        ({"--text": "missing.txt"}, "the text does not exist"),
        ({"--model": "missing"}, "the model folder does not exist"),
    ],
)
def test_plan_refuses_before_it_computes_and_writes_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"--model": model, "--budget": 4, "--context": 512, "--out": "plan.json", **change}
    _refused(sagittal("plan", *[part for pair in given.items() for part in pair]), message)
    assert not list(tmp_path.iterdir())


def test_plan_is_drawn(model: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    own, out, figure = tmp_path / "own.txt", tmp_path / "plan.json", tmp_path / "new" / "plan.png"
    own.write_text(text.read_text() * 2)
    command = ["plan", "--model", model, "--budget", 8, "--context", 512, "--out", out, "--text", own]
    done = sagittal(*command, "--figure", figure, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["figure"] == str(figure)
    content = figure.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 1000
    assert height > 700
    without = sagittal(*command, "--json")
    assert json.loads(without.stdout)["figure"] is None


def test_plan_refuses_a_figure_it_cannot_draw(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["plan", "--model", model, "--budget", 4, "--context", 512, "--out", "plan.json", "--figure"]
    _refused(sagittal(*command, "plan.json"), "two results would be written to one file")
    _refused(sagittal(*command, "."), "is a folder")

    def missing(name: str, *rest: Any) -> None:
        raise ImportError(name=name)

    with monkeypatch.context() as patch:
        patch.setattr("sagittal.core.optional.importlib.import_module", missing)
        _refused(
            sagittal(*command, "plan.png"), r"matplotlib is not installed.*pip install 'sagittal\[figures\]'"
        )
    assert not list(tmp_path.iterdir())


def test_only_a_fitted_plan_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="no measurements to draw"):
        draw_plan(CachePlan(), tmp_path / "plan.png")
    assert not list(tmp_path.iterdir())


# --- profile ---


def test_profile_writes_numbers_and_a_picture(model: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out, figure = tmp_path / "profile.json", tmp_path / "profile.png"
    done = sagittal("profile", "--model", model, "--text", text, "--out", out, "--figure", figure)
    assert done.exit_code == 0, done.output
    held = json.loads(out.read_text())
    assert "none" in held["sinks"]
    assert [row["layer"] for row in held["layers"]] == [0, 1, 2]
    for row in held["layers"]:
        assert row["largest_activation"] > row["median_activation"] > 0
        for side in ("keys", "values"):
            shares = row[side]["mean_squared_over_variance"]
            assert (len(shares), len(shares[0])) == (2, 8)
            assert row[side]["sensitivity_nats"] > 0
            assert 0 <= row[side]["outlier_share"] < 0.05
    content = figure.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 1000
    assert height > 700


@pytest.mark.parametrize(
    ("out", "figure", "content", "message"),
    [
        ("a.json", "a.json", b"x", "two results would be written to one file"),
        (".", "a.png", b"x", "is a folder"),
        ("a.json", ".", b"x", "is a folder"),
        ("a.json", "a.png", b"", "the text is empty"),
        ("a.json", "a.png", b"short", "too short"),
    ],
)
def test_profile_refuses_bad_input_and_writes_nothing(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    out: str,
    figure: str,
    content: bytes,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_bytes(content)
    done = sagittal("profile", "--model", model, "--text", "t.txt", "--out", out, "--figure", figure)
    _refused(done, message)
    assert [path.name for path in tmp_path.iterdir()] == ["t.txt"]


def test_a_sealed_folder_is_told_before_anything_is_computed(
    model: Path, text: Path, tmp_path: Path, seal: Callable[[Path], None]
) -> None:
    folder = tmp_path / "sealed"
    folder.mkdir()
    seal(folder)
    done = sagittal(
        "plan", "--model", model, "--budget", 4, "--context", 512, "--out", folder / "deep" / "plan.json"
    )
    assert done.exit_code == 2
    assert f"{folder}: " in done.stderr


def _refused(done: Result, message: str) -> None:
    import re

    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("sagittal: ")
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
