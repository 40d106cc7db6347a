"""What the benchmarks share: interleaved timing, the speed of memory, and the machine in words."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def interleaved(
    contestants: Mapping[str, Callable[[int], Any]], rounds: int, *, pause: float = 0.0
) -> dict[str, list[float]]:
    """Time each contestant once a round, in seconds, so that a busy neighbour meets all of them alike.

    Args:
        contestants: Called with the number of the round; three rounds are not counted.
        rounds: How many.
        pause: Seconds to wait before each call, for threads of the one before to go to sleep.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 3):
        for name, call in contestants.items():
            if pause:
                time.sleep(pause)
            start = time.perf_counter()
            call(number)
            times[name].append(time.perf_counter() - start)
    return {name: each[3:] for name, each in times.items()}


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median of each contestant."""
    return {name: statistics.median(each) for name, each in times.items()}


def fastest(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the least time of each contestant: what a machine shared with others still tells."""
    return {name: min(each) for name, each in times.items()}


class Memory:
    """A buffer far larger than any cache of the processor, read a window at a time."""

    def __init__(self, size: int = 1 << 29, window: int = 1 << 25, device: str = "cpu") -> None:
        self.window = window
        self._buffer = torch.ones(size // 8, dtype=torch.int64, device=device)

    def read(self, number: int) -> Tensor:
        """Sum the window of this number."""
        words = self.window // 8
        start = number * words % len(self._buffer)
        return self._buffer[start : start + words].sum()


def machine() -> dict[str, Any]:
    """Return the processor and the versions in use."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "processors": os.cpu_count(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
