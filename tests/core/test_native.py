from __future__ import annotations

import sys

import pytest

from sagittal.core.native import load_extension, thread_count


def test_a_missing_extension_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sagittal._native", None)
    assert load_extension() is None


@pytest.mark.parametrize(("asked", "expected"), [("3", 3), ("2,1", 2)])
def test_the_variable_sets_the_threads(monkeypatch: pytest.MonkeyPatch, asked: str, expected: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert thread_count() == expected


@pytest.mark.parametrize("asked", ["", "0", "many"])
def test_without_a_number_each_core_has_a_thread(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert thread_count() >= 1
