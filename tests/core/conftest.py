"""Disks that are full or cannot be written, and a cache folder of its own for each test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SAGITTAL_CACHE", str(folder))
    monkeypatch.delenv("SAGITTAL_OFFLINE", raising=False)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
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
