"""Commands on language models with a low-bit cache."""

from __future__ import annotations

import errno
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sagittal.core.errors import InputError
from sagittal.core.files import storage_errors, write_text
from sagittal.core.progress import Report, status
from sagittal.workbench.output import JsonOption, emit, speaks, table

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

    from sagittal.language.calibration import Calibration
    from sagittal.language.evaluation import Result
    from sagittal.language.models import LanguageModel
    from sagittal.language.specs import Spec

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

YARDSTICK = "kivi2"
"""The cache whose divergence the others' are divided by, where it is among them."""

ModelOption = Annotated[Path, typer.Option(help="Folder of the model: config.json, safetensors, tokenizer.")]
CacheOption = Annotated[
    str, typer.Option("--cache", help="16bit, k2v2:sinks=predict, kivi2, hf-quanto2, ... or a plan.json.")
]
CachesOption = Annotated[
    list[str],
    typer.Option(
        "--cache", help="16bit, k2v2:sinks=predict, kivi2, hf-quanto2, ... or a plan.json; more than once."
    ),
]
FigureOption = Annotated[Path | None, typer.Option(help="Also draw it, a PNG file.")]
JsonFileOption = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="FILE", help="Write the result to a JSON file; '-' prints it as one line."
    ),
]


@app.command()
@speaks
def plan(
    model: ModelOption,
    budget: Annotated[float, typer.Option(help="Bits for each number of the cache, everything counted.")],
    context: Annotated[int, typer.Option(help="Tokens at which the budget is counted.")],
    out: Annotated[Path, typer.Option(help="The plan, a JSON file.")],
    text: Annotated[
        Path | None,
        typer.Option(help="Text of the kind that will be read, to measure on; English prose without one."),
    ] = None,
    figure: FigureOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model and plan its cache under a budget of bits."""
    if not 0 < budget <= 16:
        raise InputError("the budget is out of range", value=budget, expected="more than 0, at most 16 bits")
    _drawable(out, figure)
    read = None if text is None else _read(text)
    with status(quiet=as_json) as report:
        found = _model(model, report)
        _fits(found, context, "the context")
        from sagittal.language.plan import save_plan
        from sagittal.language.planner import plan_cache

        made = plan_cache(found.model, found.tokenizer, budget, context, text=read, report=report)
        if figure is not None:
            from sagittal.workbench.language_figure import draw_plan

            draw_plan(made, figure)
        save_plan(made, out)
    reasons = made.reasons
    result: dict[str, Any] = {
        "plan": str(out.absolute()),
        "figure": str(figure.absolute()) if figure else None,
        "budget": budget,
        "context": context,
        "bits": reasons.get("bits_in_all"),
        "parts": reasons.get("bits"),
        "sinks": reasons.get("sinks"),
        "residual": made.residual,
        "page": made.page,
    }

    def show() -> None:
        rows = [[name, f"{bits:.4f}"] for name, bits in (result["parts"] or {}).items()]
        table(["bits for each number", ""], [*rows, ["in all", f"{result['bits']}"]])
        for name in ("sinks", "window", "coding", "reading"):
            if name in reasons:
                typer.echo(f"{name}: {reasons[name]}")
        typer.echo(f"plan: {result['plan']}")
        if figure:
            typer.echo(f"figure: {result['figure']}")

    emit(result, as_json=as_json, text=show)


@app.command()
def evaluate(
    model: ModelOption,
    text: Annotated[Path, typer.Option(help="Text to measure on, UTF-8.")],
    cache: CachesOption,
    prefill: Annotated[
        int, typer.Option(help="Tokens that are read exactly at the start of a window.")
    ] = 4032,
    decode: Annotated[int, typer.Option(help="Tokens fed after them and scored.")] = 128,
    windows: Annotated[int, typer.Option(help="Windows, spread evenly over the text.")] = 6,
    single_steps: Annotated[
        bool, typer.Option("--single-steps", help="Feed all tokens one by one, the 16-bit cache's too; slow.")
    ] = False,
    float32: Annotated[
        bool, typer.Option("--float32", help="Compute in float32, for losses below 0.002 nats.")
    ] = False,
    json_file: JsonFileOption = None,
) -> None:
    """Measure what caches cost: true decode after an exact prefill, against the 16-bit cache.

    The JSON has "model", "weights_sha256", "text", "text_sha256", "prefill", "decode", and "results": for
    each cache "spec", "perplexity", "kl_mean", "kl_p95", "same_top", "bits_per_character", "effective_bits",
    "bytes", "windows", "tokens", "interval", "kl_interval", "seconds", "sinks" (which tokens were exact, in
    words, or null), and where kivi2 is among them "ratio_to_kivi2" with "ratio_interval".
    """
    speaks(_evaluate)(
        model,
        text,
        cache,
        prefill,
        decode,
        windows,
        single_steps,
        float32,
        json_file,
        as_json=json_file == "-",
    )


@app.command()
@speaks
def profile(
    model: ModelOption,
    text: Annotated[Path, typer.Option(help="Text to measure on, UTF-8; about 25 kB at the least.")],
    out: Annotated[Path, typer.Option(help="The profile, a JSON file.")],
    figure: FigureOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure sinks, means, outliers and sensitivities of a model's keys and values, layer by layer.

    What the JSON holds is said at sagittal.language.profiling.ModelProfile.to_json.
    """
    _drawable(out, figure)
    read = _read(text)
    with status(quiet=as_json) as report:
        found = _model(model, report)
        from sagittal.language.profiling import profile_model
        from sagittal.language.sinks import NoSinks

        made = profile_model(found, read, report=report)
    if figure is not None:
        from sagittal.workbench.language_figure import draw_profile

        draw_profile(made, figure)
    write_text(out, json.dumps(made.to_json(), indent=1, allow_nan=False) + "\n")
    sinks = made.calibration.sinks
    told = (
        f"not to be predicted: {sinks.reason}"
        if isinstance(sinks, NoSinks)
        else f"{sinks.sinks} in {sinks.tokens} tokens; massive activations from layer {sinks.emergence} to "
        f"{sinks.last}, told from the values of layer {sinks.layer}"
    )
    result = {
        "profile": str(out.absolute()),
        "figure": str(figure.absolute()) if figure else None,
        "sinks": told,
    }

    def show() -> None:
        typer.echo(f"sinks: {told}")
        rows = []
        for each in made.layers:
            if each.keys is None or each.values is None:
                continue
            mean = sorted(each.keys.mean_share.reshape(-1).tolist())
            rows.append(
                [
                    each.layer,
                    f"{each.largest:.4g}",
                    f"{mean[len(mean) // 2]:.3g}",
                    f"{mean[-1]:.3g}",
                    f"{each.keys.sensitivity:.3g}",
                    f"{each.values.sensitivity:.3g}",
                ]
            )
        columns = ["layer", "largest |h|", "key mean²/var: median", "largest", "nats in keys", "in values"]
        table(columns, rows)
        typer.echo(f"profile: {result['profile']}")
        if figure:
            typer.echo(f"figure:  {result['figure']}")

    emit(result, as_json=as_json, text=show)


@app.command()
def generate(
    model: ModelOption,
    prompt: Annotated[Path, typer.Option(help="Text to go on from, UTF-8.")],
    cache: CacheOption,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to write.")] = 128,
    chat: Annotated[
        bool, typer.Option("--chat", help="Give the prompt as a user's turn, in the model's chat template.")
    ] = False,
    json_file: JsonFileOption = None,
) -> None:
    """Go on from a prompt, greedily, and say on standard error what the cache held.

    The JSON has "text", "spec", "prompt_tokens", "new_tokens", "bytes" and "effective_bits" of the cache at
    the end, and "sinks", which tokens were exact, in words, or null.
    """
    speaks(_generate)(model, prompt, cache, max_new_tokens, chat, json_file, as_json=json_file == "-")


def _evaluate(
    model: Path,
    text: Path,
    cache: list[str],
    prefill: int,
    decode: int,
    windows: int,
    single_steps: bool,
    float32: bool,
    json_file: str | None,
    *,
    as_json: bool,
) -> None:
    for name, value in (("--prefill", prefill), ("--decode", decode), ("--windows", windows)):
        if value < 1:
            raise InputError("the number is too small", source=name, value=value, expected="at least 1")
    twice = sorted({spec for spec in cache if cache.count(spec) > 1})
    if twice:
        raise InputError("the cache is given twice", source="--cache", value=twice[0])
    _writable(_files(json_file))
    read = _read(text)
    specs = _specs(cache)
    with status(quiet=as_json) as report:
        found = _model(model, report)
        _fits(found, prefill + decode, "a window of --prefill and --decode tokens")
        from sagittal.language import evaluation

        cut = evaluation.windows_of(
            found.tokenizer, read, prefill=prefill, decode=decode, count=windows, source=text.name
        )
        if float32:
            found.model.float()
        caches, sinks = _caches(specs, found, report)
        results = evaluation.evaluate(found, cut, caches, single_steps=single_steps, report=report)
    yardstick = next((result for result in results if result.spec == YARDSTICK), None)
    ratios = {result.spec: _ratio(result, yardstick) for result in results}
    rows = [
        {
            **result.row(),
            "sinks": sinks[result.spec],
            **(
                {f"ratio_to_{YARDSTICK}": ratio[0], "ratio_interval": list(ratio[1:])}
                if (ratio := ratios[result.spec])
                else {}
            ),
        }
        for result in results
    ]
    held = {
        "model": found.name,
        "weights_sha256": found.weights_sha256,
        "text": text.name,
        "text_sha256": _sha256(text),
        "prefill": prefill,
        "decode": decode,
        "results": rows,
    }

    def show() -> None:
        columns = ["cache", "bits", "perplexity", "KL mean", "p95", "bits/character"]
        table(
            [*columns, *([f"KL / {YARDSTICK}'s"] if yardstick else [])],
            [
                [
                    result.spec,
                    f"{result.effective_bits:.3f}",
                    f"{result.perplexity:.4g}",
                    f"{result.kl_mean:.4g}",
                    f"{result.kl_p95:.4g}",
                    f"{result.bits_per_character:.4g}",
                    *([_in_words(ratios[result.spec])] if yardstick else []),
                ]
                for result in results
            ],
        )
        for spec, why in sinks.items():
            if why and "cannot be predicted" in why:
                typer.echo(f"{spec}: keeps {why}", err=True)

    _give(held, json_file, show)


def _generate(
    model: Path,
    prompt: Path,
    cache: str,
    max_new_tokens: int,
    chat: bool,
    json_file: str | None,
    *,
    as_json: bool,
) -> None:
    if max_new_tokens < 1:
        raise InputError(
            "the number is too small", source="--max-new-tokens", value=max_new_tokens, expected="at least 1"
        )
    _writable(_files(json_file))
    read = _read(prompt)
    specs = _specs([cache])
    with status(quiet=as_json) as report:
        found = _model(model, report, packed=True)
        ids, mask = _encoded(found, read, chat, prompt)
        tokens = int(ids.shape[1])
        if tokens + max_new_tokens > found.context_length:
            raise InputError(
                "the prompt and what is to follow are beyond the model's context",
                source=prompt.name,
                value=f"{tokens} + {max_new_tokens} tokens",
                expected=f"at most {found.context_length} tokens",
            )
        caches, sinks = _caches(specs, found, report)
        report("writing")
        import torch

        held = caches[cache](found.model.config)
        tokenizer = found.tokenizer
        with torch.inference_mode():
            output = found.model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=held,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
            )
    written = tokenizer.decode(output[0, tokens:], skip_special_tokens=True)
    size, bits = _held(found, held)
    result = {
        "text": written,
        "spec": cache,
        "prompt_tokens": tokens,
        "new_tokens": int(output.shape[1]) - tokens,
        "bytes": size,
        "effective_bits": bits,
        "sinks": sinks[cache],
    }

    def show() -> None:
        typer.echo(written)
        kept = f"; exact: {sinks[cache]}" if sinks[cache] else ""
        typer.echo(
            f"cache {cache}: {held.get_seq_length()} tokens in {size} bytes, {bits:.2f} bits a number{kept}",
            err=True,
        )

    _give(result, json_file, show)


# ---------------------------------------------------------------------- inputs, checked before they cost time


def _model(path: Path, report: Report, *, packed: bool = False) -> LanguageModel:
    """Load a model's folder; a GGUF file is not converted behind anyone's back."""
    if path.suffix.lower() == ".gguf":
        raise InputError(
            "a GGUF file is not read as it is",
            source=path,
            expected="a folder of safetensors: sagittal.language.convert_gguf(gguf, folder) makes one",
        )
    from sagittal.language import load_language_model

    report("loading the model")
    return load_language_model(path, packed=packed)


def _read(path: Path) -> str:
    """Return a text that is there, UTF-8, and not empty."""
    if not path.is_file():
        problem = "the text is no file" if path.exists() else "the text does not exist"
        raise InputError(problem, source=path, expected="a text file")
    with storage_errors(path):
        content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            "the text is not UTF-8", source=path, value=f"byte {error.start}", expected="UTF-8"
        ) from error
    if not text.strip():
        raise InputError("the text is empty", source=path, expected="some text")
    return text


def _specs(names: Sequence[str]) -> list[Spec]:
    _require_libraries()
    from sagittal.language.specs import parse_spec

    return [parse_spec(name) for name in names]


def _require_libraries() -> None:
    from sagittal.core.optional import optional_import

    for name in ("torch", "transformers"):
        optional_import(name, "language")


def _caches(
    specs: Sequence[Spec], model: LanguageModel, report: Report
) -> tuple[dict[str, Callable[[Any], Cache]], dict[str, str | None]]:
    """Return what makes each cache, and which tokens it keeps exact; calibrate once, if any asks for it."""
    for spec in specs:
        spec.check(model)
    calibration: Calibration | None = None
    if any(spec.calibrated for spec in specs):
        from sagittal.language.calibration import calibrate

        calibration = calibrate(model.model, model.tokenizer, report=report)
    caches: dict[str, Callable[[Any], Cache]] = {}
    sinks: dict[str, str | None] = {}
    from sagittal.language import LowBitCache

    for spec in specs:
        if spec.kind in ("codes", "plan"):
            report(f"fitting {spec.text}")
            made = spec.plan(model, calibration)
            caches[spec.text], sinks[spec.text] = partial(LowBitCache, plan=made), made.reasons.get("sinks")
        else:
            caches[spec.text], sinks[spec.text] = spec.cache(model), None
    return caches, sinks


def _fits(model: LanguageModel, tokens: int, what: str) -> None:
    if not 1 <= tokens <= model.context_length:
        raise InputError(
            f"{what} is not one of this model's",
            source=model.name,
            value=f"{tokens} tokens",
            expected=f"1 to {model.context_length} tokens",
        )


def _encoded(model: LanguageModel, text: str, chat: bool, source: Path) -> tuple[Any, Any]:
    tokenizer = model.tokenizer
    if chat:
        if not getattr(tokenizer, "chat_template", None):
            raise InputError("the model has no chat template", source=model.name, expected="no --chat")
        encoded = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
    else:
        encoded = tokenizer(text, return_tensors="pt", verbose=False)
    if not encoded["input_ids"].shape[1]:
        raise InputError("the prompt holds no token", source=source.name, expected="some text")
    return encoded["input_ids"], encoded["attention_mask"]


def _files(json_file: str | None) -> list[Path]:
    return [Path(json_file)] if json_file and json_file != "-" else []


def _writable(paths: Sequence[Path]) -> None:
    """Refuse places that cannot be written, before anything is computed; leaves nothing behind."""
    if len({path.absolute() for path in paths}) < len(paths):
        raise InputError("two results would be written to one file", value=str(paths[0]))
    for path in paths:
        if path.is_dir():
            raise InputError("the file to write is a folder", source=path, expected="the name of a file")
        folder = path.absolute().parent
        while not folder.exists():
            folder = folder.parent
        with storage_errors(folder):
            if not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(folder))
            with tempfile.TemporaryFile(dir=folder):
                pass


def _drawable(out: Path, figure: Path | None) -> None:
    """Refuse places that cannot be written, and a figure that cannot be drawn."""
    _writable([out, *([figure] if figure else [])])
    if figure is not None:
        from sagittal.workbench.language_figure import require_matplotlib

        require_matplotlib()


# ---------------------------------------------------------------------- results


def _give(value: Mapping[str, Any], json_file: str | None, show: Callable[[], None]) -> None:
    """Print a result, as JSON or for a person, and write it where it was asked for."""
    if json_file == "-":
        emit(_plain(value), as_json=True, text=show)
        return
    if json_file:
        write_text(Path(json_file), json.dumps(_plain(value), indent=1, ensure_ascii=False) + "\n")
    show()
    if json_file:
        typer.echo(f"written to {json_file}", err=True)


def _plain(value: Any) -> Any:
    """Put null in the place of numbers that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _ratio(result: Result, yardstick: Result | None) -> tuple[float, float, float] | None:
    if yardstick is None or not yardstick.kl_mean:
        return None
    from sagittal.language.evaluation import paired_ratio

    return paired_ratio(result, yardstick)


def _in_words(ratio: tuple[float, float, float] | None) -> str:
    return "" if ratio is None else f"{ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f})"


def _sha256(path: Path) -> str:
    from sagittal.core.files import sha256_file

    return sha256_file(path)


def _held(model: LanguageModel, cache: Cache) -> tuple[int, float]:
    """Return the bytes of a cache and its bits for each number it stands for."""
    from sagittal.language.cache import LowBitCache, cache_bytes, cache_bytes_16bit, fingerprint

    size = cache_bytes(cache)
    if isinstance(cache, LowBitCache) or not any(hasattr(layer, "nbits") for layer in cache.layers):
        whole = cache_bytes_16bit(cache)
    else:  # a cache of another library knows the numbers of its recent tokens only
        found = fingerprint(model.model.config)
        row = found["layers"] * found["key_value_heads"] * found["head_width"]
        whole = 2 * 2 * row * cache.get_seq_length()
    return size, 16 * size / whole
