"""What the README tells a newcomer to type works."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.model
def test_the_python_example_runs(language_model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = CODE[0]
    assert '"a-folder-with-safetensors"' in code
    exec(code.replace('"a-folder-with-safetensors"', repr(str(language_model_path))), {})
    assert capsys.readouterr().out.startswith("The patient was")


def test_the_planned_cache_is_made_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    from sagittal import language

    asked = inspect.signature(language.plan_cache)

    def plan(*given: Any, **named: Any) -> language.CachePlan:
        asked.bind(*given, **named)
        return language.CachePlan()

    monkeypatch.setattr(language, "plan_cache", plan)
    model = SimpleNamespace(model=SimpleNamespace(config=transformers.LlamaConfig()), tokenizer=None)
    names = {"model": model, "LowBitCache": language.LowBitCache}
    exec(CODE[1], names)
    assert isinstance(names["cache"], language.LowBitCache)


GROUPS = ("annotate", "atlas", "case", "ct", "language", "segment")


def test_every_command_it_names_is_there() -> None:
    sagittal = str(Path(sys.executable).parent / "sagittal")
    commands = {
        tuple(line.split()[1:]) for line in re.findall(r"^\.venv/bin/sagittal .*$", README, re.MULTILINE)
    }
    assert len(commands) >= 5
    for words in commands:
        names = words[: 2 if words[0] in GROUPS else 1]
        done = subprocess.run([sagittal, *names, "--help"], capture_output=True, text=True, check=True)
        for option in (word for word in words if word.startswith("--")):
            assert option in done.stdout, f"{' '.join(names)} has no {option}"


def test_every_target_and_page_it_names_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for link in re.findall(r"\]\(([^)]+)\)", README):
        name, _, section = link.partition("#")
        assert (ROOT / name).is_file(), link
        if section:
            headings = re.findall(r"^#+ (.+)$", (ROOT / name).read_text(), re.MULTILINE)
            assert section in {re.sub(r"\W+", "-", heading.lower()) for heading in headings}, link
