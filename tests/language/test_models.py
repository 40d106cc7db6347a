from __future__ import annotations

import json
import pickle
import shutil
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from sagittal.core.errors import ChecksumError, MissingDependencyError, ModelError
from sagittal.core.files import sha256_file
from sagittal.language import CachePlan, LowBitCache, convert_gguf, load_language_model
from sagittal.language.pages import PagedStates


class Bomb:
    """A pickle that says so when it is opened."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was opened",))


def test_loads_without_network_or_noise(
    model_folder: Path, llama: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    weights = sha256_file(model_folder / "model.safetensors")
    found = load_language_model(model_folder, sha256={"model.safetensors": weights})
    assert (found.name, found.context_length, found.weights_sha256) == ("tiny-llama", 2048, weights)
    ids = torch.arange(3, 30)[None]
    assert torch.equal(found.model(ids).logits, llama(ids).logits)
    assert found.tokenizer.decode(found.tokenizer("MRI, left").input_ids) == "MRI, left"
    assert not found.model.training
    assert not any(parameter.requires_grad for parameter in found.model.parameters())
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (verbosity, bars)


def test_packed_reads_a_low_bit_cache_without_unpacking_it(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = []
    dense = PagedStates.dense

    def watched(self: PagedStates, *args: Any) -> torch.Tensor:
        unpacked.append(len(self))
        return dense(self, *args)

    monkeypatch.setattr(PagedStates, "dense", watched)
    found = []
    for packed in (True, False):
        model = load_language_model(model_folder, packed=packed).model
        cache = LowBitCache(model.config, CachePlan.uniform(8, 8))
        model(torch.arange(3, 300)[None], past_key_values=cache)
        unpacked.clear()
        found.append(model(torch.tensor([[7]]), past_key_values=cache).logits)
        assert bool(unpacked) is not packed
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-2)


def test_packed_leaves_a_model_whose_attention_cannot_be_chosen(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreTrainedModel, "set_attn_implementation", lambda *_: None)
    model = load_language_model(model_folder, packed=True).model
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "extra.PT", "a.pth", "weights.pkl"])
def test_a_pickle_in_the_folder_is_refused_unread(model_folder: Path, name: str) -> None:
    (model_folder / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match=name):
        load_language_model(model_folder)


@pytest.mark.parametrize("name", ["model.bin", "model.pt"])
def test_a_pickle_as_the_path_is_refused_unread(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match=rf"{name}: a pickle is not opened"):
        load_language_model(tmp_path / name)


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_under_the_name_of_safetensors_is_refused(model_folder: Path, protocol: int) -> None:
    (model_folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(), protocol=protocol) * 9)
    with pytest.raises(ModelError, match=r"model\.safetensors: a pickle under another name"):
        load_language_model(model_folder)


def test_a_zip_under_the_name_of_safetensors_is_refused(model_folder: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, model_folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors: a pickle under another name"):
        load_language_model(model_folder)


@pytest.mark.parametrize("keep", [0, 5, 100, -1, -1000])
def test_weights_cut_short(model_folder: Path, keep: int) -> None:
    file = model_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model\.safetensors: .*cut short"):
        load_language_model(model_folder)


def test_header_that_is_no_json(model_folder: Path) -> None:
    (model_folder / "model.safetensors").write_bytes(struct.pack("<Q", 8) + b"{broken}" + b"\0" * 8)
    with pytest.raises(ModelError, match=r"model\.safetensors: the header"):
        load_language_model(model_folder)


def test_a_header_of_640_bytes_is_no_pickle(tmp_path: Path) -> None:
    """Its length begins with the two bytes a pickle of protocol 2 begins with."""
    from sagittal.language.weights import check_safetensors

    file = tmp_path / "model.safetensors"
    header = json.dumps({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode().ljust(640)
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    assert file.read_bytes()[:2] == b"\x80\x02"
    check_safetensors(file)


def test_missing_parameters_are_not_filled_with_random_numbers(model_folder: Path) -> None:
    config = json.loads((model_folder / "config.json").read_text())
    config["num_hidden_layers"] = 4
    (model_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"lack parameters.*layers\.3"):
        load_language_model(model_folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_is_named(model_folder: Path, name: str) -> None:
    (model_folder / name).unlink()
    with pytest.raises(ModelError, match=name):
        load_language_model(model_folder)


def test_a_name_of_a_hub_is_no_folder() -> None:
    with pytest.raises(ModelError, match="nobody/no-such-model: the model folder does not exist"):
        load_language_model(Path("nobody/no-such-model"))


def test_index_that_leaves_the_folder(model_folder: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "../other.safetensors"}}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="leaves its folder"):
        load_language_model(model_folder)


def test_several_weight_files(tmp_path: Path, llama: Any, tokenizer: Any) -> None:
    llama.save_pretrained(tmp_path / "m", max_shard_size="100KB")
    tokenizer.save_pretrained(tmp_path / "m")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    found = load_language_model(tmp_path / "m")
    ids = torch.arange(3, 30)[None]
    assert torch.equal(found.model(ids).logits, llama(ids).logits)
    assert len(found.weights_sha256) == 64


def test_code_of_the_model_is_not_run(model_folder: Path) -> None:
    (model_folder / "own.py").write_text("raise SystemExit('code of the model was run')\n")
    config = json.loads((model_folder / "config.json").read_text())
    config["model_type"] = "unheard_of"
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (model_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_language_model(model_folder)


@pytest.mark.parametrize("name", ["model.safetensors", "no-such-file.json"])
def test_pinned_digest(model_folder: Path, name: str) -> None:
    with pytest.raises(ChecksumError, match=name):
        load_language_model(model_folder, sha256={name: "0" * 64})


def test_missing_library(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"sagittal\[language\]"):
        load_language_model(model_folder)


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    """A Llama of one layer as GGUF, weights in 32 bits, with a byte-level vocabulary."""
    writer_module = pytest.importorskip("gguf")
    from tokenizers import pre_tokenizers

    path = tmp_path / "in" / "tiny.gguf"
    path.parent.mkdir()
    writer = writer_module.GGUFWriter(path, "llama")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|end|>", *letters, "ĊĊ"]
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["Ċ Ċ"])
    for kind in ("bos", "eos", "pad", "unk"):
        getattr(writer, f"add_{kind}_token_id")(0)
    draw = torch.Generator().manual_seed(0)
    shapes = {"token_embd": (len(tokens), 32), "output": (len(tokens), 32), "output_norm": (32,)}
    block = {
        "attn_norm": (32,),
        "ffn_norm": (32,),
        "attn_q": (32, 32),
        "attn_k": (16, 32),
        "attn_v": (16, 32),
        "attn_output": (32, 32),
        "ffn_gate": (32, 32),
        "ffn_up": (32, 32),
        "ffn_down": (32, 32),
    }
    for name, shape in {**shapes, **{f"blk.0.{k}": s for k, s in block.items()}}.items():
        writer.add_tensor(f"{name}.weight", torch.randn(shape, generator=draw).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_becomes_a_folder_that_loads(
    gguf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "models" / "tiny"
    capfd.readouterr()
    assert convert_gguf(gguf, out) == out
    assert capfd.readouterr() == ("", "")
    found = load_language_model(out)
    assert found.context_length == 128
    assert found.model.dtype == torch.bfloat16
    draw = torch.Generator().manual_seed(0)
    wanted = torch.randn((258, 32), generator=draw).bfloat16()
    assert torch.equal(found.model.get_input_embeddings().weight, wanted)
    modes = {file.stat().st_mode for file in out.iterdir()}
    assert len(modes) == 1  # a colleague who may read the configuration may read the weights
    assert [file.name for file in out.parent.iterdir() if file.name.endswith(".tmp")] == []

    stamp = (out / "model.safetensors").stat().st_mtime_ns
    convert_gguf(gguf, out)
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp


def test_folder_made_from_something_else_is_left_alone(gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "notes.txt").write_text("keep me")
    with pytest.raises(ModelError, match="made from something else"):
        convert_gguf(gguf, out)
    assert [file.name for file in out.iterdir()] == ["notes.txt"]


def test_damaged_gguf_leaves_nothing_behind(gguf: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(gguf.read_bytes()[:3000])
    with pytest.raises(ModelError, match=r"short\.gguf"):
        convert_gguf(short, tmp_path / "models" / "short")
    assert [file.name for file in (tmp_path / "models").iterdir()] == [".short.lock"]


def test_what_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match=r"a\.gguf: the file is no GGUF"):
        convert_gguf(tmp_path / "a.gguf", tmp_path / "out")
    with pytest.raises(ModelError, match="does not exist"):
        convert_gguf(tmp_path / "b.gguf", tmp_path / "out")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
