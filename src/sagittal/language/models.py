"""Language models from a local folder: no network, no pickle, no code of the model's own."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from sagittal.core.errors import MissingDependencyError, ModelError
from sagittal.core.files import sha256_file, storage_errors
from sagittal.language.weights import check_model_folder, verify_sha256

__all__ = ["LanguageModel", "convert_gguf", "load_language_model"]

_ORIGIN = "conversion.json"


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model ready to run, with what a provenance needs to name it.

    Args:
        model: The transformers model, in evaluation mode and without gradients.
        tokenizer: Its tokenizer, with the chat template.
        name: Name of the folder it came from.
        context_length: Tokens the model was made for, text and answer together.
        weights_sha256: sha256 of the weight file. Of several, the sha256 of their joined digests, in order
            of names.
    """

    model: Any
    tokenizer: Any
    name: str
    context_length: int
    weights_sha256: str


def load_language_model(
    path: Path, *, sha256: Mapping[str, str] | None = None, packed: bool = False
) -> LanguageModel:
    """Load a model and its tokenizer from a local folder of safetensors.

    The folder is looked at before anything in it is opened: a pickle anywhere in it is refused. No hub is
    asked, no progress is drawn, and code that a configuration points at is never run.

    Args:
        path: Folder with ``config.json``, ``model.safetensors`` (or an index of several) and a tokenizer.
        sha256: Pinned digests of files in the folder, file name to 64 hexadecimal digits.
        packed: Let the model attend to a low-bit cache as it lies packed
            (:func:`~sagittal.language.attention.use_low_bit_attention`), which is quicker for each new token.
            A model whose attention cannot be chosen unpacks the cache.

    Returns:
        The model in the dtype it is stored in, on the CPU.

    Raises:
        ModelError: The folder is missing, holds a pickle, or a file in it is damaged; the file is named.
        ChecksumError: A file has not its pinned digest.
        MissingDependencyError: torch or transformers is not installed.
    """
    path = Path(path)
    weights = check_model_folder(path)
    verify_sha256(path, sha256 or {})
    transformers = _transformers()
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _quiet(transformers):
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                str(path), use_safetensors=True, dtype="auto", output_loading_info=True, **local
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(path), **local)
    except Exception as error:  # transformers raises anything from KeyError to its own kinds
        raise ModelError(f"the model cannot be loaded: {_first_line(error)}", source=path) from error
    if report["missing_keys"]:  # transformers fills what is missing with random numbers
        raise ModelError(
            "the weights lack parameters of the model", source=path, value=sorted(report["missing_keys"])[0]
        )
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if not isinstance(context, int):
        raise ModelError("config.json names no max_position_embeddings", source=path)
    if packed:
        from sagittal.language.attention import use_low_bit_attention

        with suppress(ModelError):
            use_low_bit_attention(model)
    digests = [sha256_file(file) for file in weights]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return LanguageModel(model.eval().requires_grad_(False), tokenizer, path.resolve().name, context, digest)


def convert_gguf(gguf: Path, out: Path) -> Path:
    """Turn a GGUF file into a folder that :func:`load_language_model` reads.

    Its weights are unpacked to bfloat16. The folder appears whole or not at all; when it is there already,
    made from the same file, nothing is done. Two processes may ask for the same folder at once.

    Args:
        gguf: The GGUF file.
        out: The folder to make.

    Returns:
        ``out``.

    Raises:
        ModelError: The file is missing or no GGUF, cannot be read by transformers, or ``out`` exists and was
            made from something else.
        StorageError: The disk is full, read-only or forbidden.
        MissingDependencyError: torch, transformers or gguf is not installed.
    """
    gguf, out = Path(gguf), Path(out)
    if not gguf.is_file():
        raise ModelError("the GGUF file does not exist", source=gguf)
    with gguf.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise ModelError(
            "the file is no GGUF", source=gguf, value=f"first bytes {magic!r}", expected="b'GGUF'"
        )
    origin = {"source": gguf.name, "sha256": sha256_file(gguf)}
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(out.parent / f".{out.name}.lock"):
            if out.exists():
                _check_origin(out, origin)
                return out
            partial = out.parent / f".{out.name}.{uuid.uuid4().hex}.tmp"
            try:
                partial.mkdir()
                _convert(gguf, partial)
                (partial / _ORIGIN).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
                for file in partial.iterdir():  # transformers leaves the weights readable by their owner only
                    file.chmod((partial / _ORIGIN).stat().st_mode)
                partial.rename(out)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return out


def _convert(gguf: Path, folder: Path) -> None:
    transformers = _transformers()
    import torch

    source: dict[str, Any] = {
        "gguf_file": gguf.name,
        "local_files_only": True,
        "trust_remote_code": False,
    }
    try:
        # transformers draws the bar of the unpacking whatever its own setting says
        with _quiet(transformers), redirect_stderr(io.StringIO()):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                str(gguf.parent),
                quantization_config=transformers.GgufConfig(dequantize=True),
                dtype=torch.bfloat16,
                **source,
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), **source)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except OSError as error:
        if error.errno is not None:  # the disk's refusal, for storage_errors
            raise
        raise ModelError(f"the GGUF file cannot be converted: {_first_line(error)}", source=gguf) from error
    except Exception as error:
        raise ModelError(f"the GGUF file cannot be converted: {_first_line(error)}", source=gguf) from error


def _check_origin(out: Path, origin: Mapping[str, str]) -> None:
    try:
        found = json.loads((out / _ORIGIN).read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        found = None
    if found != origin["sha256"]:
        raise ModelError(
            "the folder exists and was made from something else",
            source=out,
            value=found or f"no {_ORIGIN}",
            expected=origin["sha256"],
        )


def _transformers() -> Any:
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            f"a language model needs the package {error.name}", expected="pip install sagittal[language]"
        ) from error
    return transformers


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Silence transformers' progress bars and everything it logs below an error, then put both back."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
