from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sagittal.core.errors import InputError, MissingDependencyError
from sagittal.language import LanguageModel
from sagittal.language.evaluation import Window, evaluate, sixteen_bit
from sagittal.language.rivals import RIVALS, rival

pytestmark = pytest.mark.usefixtures("one_thread")
PREFILL, DECODE = 96, 136  # whole groups of 64 numbers at every length; the residual fills once
LIBRARIES = {"hf-quanto2": "optimum.quanto", "hf-quanto4": "optimum.quanto", "hf-hqq2": "hqq.core.quantize"}


@pytest.fixture(scope="module")
def model(wrap: Callable[[Any], LanguageModel], make_model: Callable[..., Any]) -> LanguageModel:
    return wrap(make_model("llama").bfloat16())


@pytest.fixture(scope="module")
def window() -> Window:
    ids = torch.randint(3, 300, (1, PREFILL + DECODE + 1), generator=torch.Generator().manual_seed(5))
    return Window(ids[:, :PREFILL], ids[:, PREFILL:], DECODE)


def test_every_name_is_tested_here() -> None:
    assert set(RIVALS) == set(LIBRARIES)


def test_refuses_a_name_it_does_not_know() -> None:
    with pytest.raises(InputError, match="hf-quanto3.*hf-quanto2, hf-quanto4, hf-hqq2"):
        rival("hf-quanto3")


@pytest.mark.parametrize("name", RIVALS)
def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, LIBRARIES[name], None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'sagittal\[rivals\]'"):
        rival(name)


@pytest.mark.parametrize("name", RIVALS)
def test_refuses_a_model_with_sliding_windows(make_model: Callable[..., Any], name: str) -> None:
    pytest.importorskip(LIBRARIES[name])
    with pytest.raises(InputError, match=f"{name}: .*sliding_attention"):
        rival(name)(make_model("gemma3").config)


@pytest.mark.parametrize("name", RIVALS)
def test_is_measured_in_runs_as_in_single_steps(
    make_model: Callable[..., Any], wrap: Callable[[Any], LanguageModel], window: Window, name: str
) -> None:
    pytest.importorskip(LIBRARIES[name])
    model = wrap(make_model("llama", num_hidden_layers=1))
    passes = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    (run,) = evaluate(model, [window], {name: rival(name)})
    hook.remove()
    assert passes == [PREFILL, 128, DECODE - 128, 128, DECODE - 128]
    (single,) = evaluate(model, [window], {name: rival(name)}, single_steps=True)
    assert run.kl[0, :128] == pytest.approx(single.kl[0, :128], abs=1e-4)
    # quantising anew turns a difference in the last digit into one of a whole step, here and there
    assert run.kl[0, 128:].mean() == pytest.approx(single.kl[0, 128:].mean(), rel=0.05)
    assert run.kl_mean > 1e-3


@pytest.mark.parametrize("name", RIVALS)
def test_bytes_are_codes_scales_offsets_and_exact_tokens(
    model: LanguageModel, window: Window, name: str
) -> None:
    pytest.importorskip(LIBRARIES[name])
    bits = int(name[-1])
    lengths = {128: 0, DECODE: DECODE - 128, 64: 64}  # tokens fed, and how many of them are exact in the end
    for fed, recent in lengths.items():
        part = Window(window.prompt, window.targets[:, : fed + 1], fed)
        (result,) = evaluate(model, [part], {name: rival(name)})
        numbers = 3 * 2 * 2 * 16  # layers, K and V, heads, width
        quantised = numbers * (PREFILL + fed - recent)
        expected = quantised * bits // 8 + 2 * 2 * quantised // 64 + 2 * numbers * recent
        assert result.held_bytes == expected
        assert result.effective_bits == pytest.approx(16 * expected / (2 * numbers * (PREFILL + fed)))


def test_more_bits_lose_less(model: LanguageModel, window: Window) -> None:
    pytest.importorskip(LIBRARIES["hf-quanto2"])
    two, four = evaluate(model, [window], {name: rival(name) for name in ("hf-quanto2", "hf-quanto4")})
    assert four.kl_mean < 0.5 * two.kl_mean


@pytest.mark.parametrize("name", RIVALS)
def test_prints_nothing_and_compiles_nothing(
    model: LanguageModel, window: Window, name: str, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(LIBRARIES[name])
    monkeypatch.setattr("torch.utils.cpp_extension._jit_compile", _refuse)
    evaluate(model, [window], {name: rival(name)})
    assert capfd.readouterr() == ("", "")


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a compiler was asked for")


@pytest.mark.parametrize("bits", [2, 4])
def test_codes_are_unpacked_as_quanto_packed_them(bits: int) -> None:
    quanto = pytest.importorskip(LIBRARIES["hf-quanto2"])
    rival("hf-quanto2")
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 2**bits, (8, 5), dtype=np.uint8))
    packed = quanto.tensor.packed.PackedTensor.pack(codes, bits)
    assert packed._data.numel() == codes.numel() * bits // 8
    assert torch.equal(packed.unpack(), codes)


def test_the_16_bit_cache_is_what_they_are_measured_against(model: LanguageModel, window: Window) -> None:
    pytest.importorskip(LIBRARIES["hf-hqq2"])
    exact, hqq = evaluate(model, [window], {"16bit": sixteen_bit, "hf-hqq2": rival("hf-hqq2")})
    assert exact.effective_bits == 16
    assert np.array_equal(exact.nll, hqq.nll_exact)
