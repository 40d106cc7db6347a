from __future__ import annotations

from pathlib import Path

import pytest

from sagittal.core.errors import InputError
from sagittal.core.memory import available_memory, require_memory

GIB = 1 << 30


def system(root: Path, **files: str) -> Path:
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    return system(tmp_path, proc__meminfo=f"MemTotal: 9 kB\nMemAvailable:    {8 * GIB // 1024} kB\n")


def test_the_kernel_says_what_is_available(machine: Path) -> None:
    assert available_memory(machine) == 8 * GIB


def test_a_control_group_allows_less_and_gives_back_its_files(machine: Path) -> None:
    (machine / "proc/self").mkdir()
    (machine / "proc/self/cgroup").write_text("0::/batch/job\n")
    for name, limit in (("batch", str(4 * GIB)), ("batch/job", "max")):
        group = machine / "sys/fs/cgroup" / name
        group.mkdir(parents=True)
        (group / "memory.max").write_text(limit + "\n")
        (group / "memory.current").write_text(f"{3 * GIB}\n")
        (group / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")
    assert available_memory(machine) == 2 * GIB


def test_an_older_control_group_is_understood(machine: Path) -> None:
    (machine / "proc/self").mkdir()
    (machine / "proc/self/cgroup").write_text("5:cpu:/\n4:memory:/elsewhere\n0::/\n")
    group = machine / "sys/fs/cgroup/memory"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{5 * GIB}\n")
    (group / "memory.usage_in_bytes").write_text(f"{2 * GIB}\n")
    assert available_memory(machine) == 3 * GIB


def test_what_needs_more_than_there_is_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagittal.core.memory.available_memory", lambda: 2 * GIB)
    require_memory(2 * GIB, "the scan")
    with pytest.raises(
        InputError,
        match="the scan does not fit into memory; got about 3.5 GiB; expected at most the 2 GiB .*; wait",
    ):
        require_memory(7 * GIB // 2, "the scan", instead="wait")


def test_where_nothing_is_known_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagittal.core.memory.available_memory", lambda: None)
    require_memory(1 << 60, "the scan")
