"""The kernel for GPUs: when it is chosen, and what gpu_cases.py finds, interpreted and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from packed_layers import layer
from sagittal.core.errors import InputError
from sagittal.language import extension

CASES = Path(__file__).with_name("gpu_cases.py")
TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")


def _python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    rest = {
        name: text for name, text in os.environ.items() if name not in ("TRITON_INTERPRET", "SAGITTAL_KERNEL")
    }
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env={**rest, **environment},
        cwd=CASES.parents[2],
    )


@TRITON
@pytest.mark.parametrize(
    "interpreted", [pytest.param("1", id="interpreter"), pytest.param("0", id="cuda", marks=GPU)]
)
def test_cases(interpreted: str) -> None:
    done = _python("-m", "pytest", str(CASES), "-p", "no:cacheprovider", TRITON_INTERPRET=interpreted)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " skipped" not in done.stdout


@TRITON
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled to interpret it")
@pytest.mark.parametrize(
    ("layouts", "generation"), [(("channel", "token"), 80), (("basis", "static"), 90)], ids=["sm_80", "sm_90"]
)
def test_compiles_for_a_gpu_that_is_not_here(
    layouts: tuple[str, str], generation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the interpreter does not look at: types, shapes of products, memory of a program."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sagittal.language import gpu, triton_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    launches: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
            return lambda *given, **constants: launches.append((given, constants))

    kernel = triton_kernel.attend_chunk
    monkeypatch.setattr(triton_kernel, "attend_chunk", Recorder())
    keys, values = layer(layouts, width=128, bits=2, dtype=torch.bfloat16)
    pads, visible = torch.zeros(1, dtype=torch.int64), torch.ones(1, len(keys), dtype=torch.bool)
    gpu.attend_pages(
        torch.randn(1, 8, 1, 128), keys, values, scaling=0.1, pads=pads, visible=visible, softcap=9.0
    )
    given, constants = launches[0]
    warps = constants.pop("num_warps")
    kinds = [_KINDS[thing.dtype if isinstance(thing, torch.Tensor) else type(thing)] for thing in given]
    signature = dict(zip(kernel.arg_names, kinds, strict=False)) | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    done = triton.compile(source, target=GPUTarget("cuda", generation, 32), options={"num_warps": warps})
    assert f".target sm_{generation}" in done.asm["ptx"]
    assert "mma" in done.asm["ptx"]  # products are done by the tensor cores
    assert done.metadata.shared <= 96 * 1024


_KINDS: dict[Any, str] = {
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    float: "fp32",
    int: "i32",
}


def test_nothing_needs_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from sagittal.language import attend, gpu\n"
        "from sagittal.language.attend import kernels\n"
        "assert 'triton' not in kernels(), kernels()\n"
        "assert 'sagittal.language.triton_kernel' not in sys.modules\n"
    )
    done = _python("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("SAGITTAL_KERNEL", raising=False)
    monkeypatch.setattr(extension, "_has_triton", lambda: True)
    monkeypatch.setattr(extension, "_has_gpu", lambda: True)
    return monkeypatch


def test_a_gpu_lets_it_be_asked_for(with_gpu: pytest.MonkeyPatch) -> None:
    native = extension.natives()
    assert extension.kernels() == ("reference", "triton", *native)
    assert extension.chosen(device="cuda") == "reference"  # until it has been run on one
    assert extension.chosen() == ("reference", *native)[-1]
    assert extension.computes("triton", "cuda")
    assert not extension.computes("triton", "cpu")
    assert not any(extension.computes(kernel, "cuda") for kernel in native)
    with_gpu.setenv("SAGITTAL_KERNEL", "triton")
    assert extension.chosen(device="cuda") == "triton"
    assert extension.chosen() == "triton"  # and what lies on the CPU is left to the reference


def test_without_triton_a_gpu_has_the_reference(with_gpu: pytest.MonkeyPatch) -> None:
    with_gpu.setattr(extension, "_has_triton", lambda: False)
    assert "triton" not in extension.kernels()
    assert extension.chosen(device="cuda") == "reference"
    with pytest.raises(InputError, match="does not run here; got triton"):
        extension.chosen("triton", "cuda")


def test_the_interpreter_is_only_asked_for(with_gpu: pytest.MonkeyPatch) -> None:
    """On a machine without a GPU, where it is as slow as can be."""
    with_gpu.setattr(extension, "_has_gpu", lambda: False)
    assert "triton" not in extension.kernels()
    with_gpu.setenv("TRITON_INTERPRET", "1")
    assert extension.kernels()[:2] == ("reference", "triton")
    assert extension.chosen("triton") == "triton"
    with_gpu.setattr(extension, "native", None)
    assert extension.chosen() == "reference"
