"""Disks that are full or cannot be written, runs, and findings."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sagittal.case.record import Artifact, FindingDraft, Run
from sagittal.core.provenance import Measurement


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def seal(request: pytest.FixtureRequest) -> Iterator[object]:
    """A function that makes a folder one that cannot be written, for root too."""
    undo: list[list[str]] = []

    def close(folder: Path) -> None:
        if os.name != "posix":
            pytest.skip("needs POSIX permissions")
        if os.geteuid() != 0:
            folder.chmod(0o500)
            undo.append(["chmod", "700", str(folder)])
            return
        for options in (["--bind"], ["-o", "remount,bind,ro"]):
            command = ["mount", *options, str(folder), str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"no folder can be sealed here: {done.stderr.strip()}")
            if not undo:
                undo.append(["umount", "-l", str(folder)])

    yield close
    for command in undo:
        subprocess.run(command, check=True)


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """A run of step "measure" that wrote role "volume", unless told otherwise."""

    def make(**changes: Any) -> Run:
        run = Run(
            number=0,
            step="measure",
            version="1",
            parameters={"beta": 0.1, "names": ["a", "b"]},
            inputs=(Artifact(role="t1", kind="volume", content="00" * 32),),
            outputs=(Artifact(role="volume", kind="volume", content="11" * 32),),
            findings=(),
            used=(),
            seed=2**63 - 1,
            doubt="starts it",
            models={"m": "22" * 32},
            environment={"python": "3"},
            started="2026-01-02T03:04:05+00:00",
            seconds=1.5,
        )
        return replace(run, **changes)

    return make


@pytest.fixture
def draft() -> Callable[..., FindingDraft]:
    """A finding that says how much there is of something."""

    def make(subject: str = "grey matter", value: float = 5.0, **changes: Any) -> FindingDraft:
        finding = FindingDraft(
            code="tissue.volume",
            subject=subject,
            statement=f"{subject}: {value:g} ml",
            measurement=Measurement(value=value, low=value - 1, high=value + 1, level=0.9, unit="ml"),
        )
        return replace(finding, **changes)

    return make
