"""How much memory there is, so that what cannot fit is refused before it is begun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sagittal.core.errors import InputError

__all__ = ["available_memory", "require_memory"]

_GIB = 1 << 30


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that can still be used without swapping; None where the system does not say.

    It is the least of what the kernel counts as available, what the control groups of this process leave
    (containers, batch systems), and what its limit of addresses leaves.

    Args:
        root: Where ``proc`` and ``sys`` are found.
    """
    found = [*_of_kernel(root), *_of_groups(root), *_of_addresses(root)]
    if not found and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        found = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return max(0, min(found)) if found else None


def require_memory(needed: int, what: str, *, instead: str = "") -> None:
    """Refuse what needs more memory than there is.

    Args:
        needed: Bytes.
        what: What needs them.
        instead: What to do, where there is something.

    Raises:
        InputError: There is less.
    """
    there = available_memory()
    if there is not None and needed > there:
        raise InputError(
            f"{what} does not fit into memory",
            value=f"about {needed / _GIB:.3g} GiB",
            expected=f"at most the {there / _GIB:.3g} GiB that are free"
            + (f"; {instead}" if instead else ""),
        )


def _of_kernel(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, name = line.split(":", 2)
        second = controllers == ""
        if not second and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("" if second else "memory")
        limit, used = (
            ("memory.max", "memory.current") if second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        group = base / name.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(base):
                break
            bound, now = _number(folder / limit), _number(folder / used)
            if bound is not None and now is not None:
                yield bound - now + _cached(folder)


def _cached(folder: Path) -> int:
    """Return what a group holds of files, which the kernel gives back when it is needed."""
    for line in _lines(folder / "memory.stat"):
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _of_addresses(root: Path) -> Iterator[int]:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    bound, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _lines(root / "proc/self/statm")
    if bound != resource.RLIM_INFINITY and pages:
        yield bound - int(pages[0].split()[0]) * resource.getpagesize()


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
