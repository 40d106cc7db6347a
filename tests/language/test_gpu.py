"""The kernel for GPUs: when it is chosen, and what gpu_cases.py finds, interpreted and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

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


def test_nothing_needs_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from sagittal.language import attention, extension\n"
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


def test_a_gpu_makes_it_the_choice_there(with_gpu: pytest.MonkeyPatch) -> None:
    native = extension.natives()
    assert extension.kernels() == ("reference", "triton", *native)
    assert extension.chosen(device="cuda") == "triton"
    assert extension.chosen() == ("reference", *native)[-1]
    assert extension.computes("triton", "cuda")
    assert not extension.computes("triton", "cpu")
    assert not any(extension.computes(kernel, "cuda") for kernel in native)
    with_gpu.setenv("SAGITTAL_KERNEL", "triton")
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
