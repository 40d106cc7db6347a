"""One seed for a run; every step draws from a stream of its own that follows from it."""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["derive_seed", "generator"]


def derive_seed(seed: int, *names: str) -> int:
    """Return a seed in [0, 2**63) for the stream called ``names`` under ``seed``.

    Streams of different names are independent, and adding one leaves the others as they were.
    """
    digest = hashlib.sha256("\x1f".join([str(int(seed)), *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *names: str) -> np.random.Generator:
    """Return numpy's generator for the stream called ``names`` under ``seed``."""
    return np.random.default_rng(derive_seed(seed, *names))
