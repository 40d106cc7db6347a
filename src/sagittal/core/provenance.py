"""Where a result came from and how sure it is: the value types that every floor passes on."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError

__all__ = [
    "Environment",
    "Measurement",
    "canonical_json",
    "hash_array",
    "hash_json",
]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A number with its unit and the interval it is believed to lie in.

    Attributes:
        value: Best estimate.
        low: Lower end of the interval.
        high: Upper end of the interval.
        level: Nominal coverage of the interval, in (0, 1).
        unit: Unit in the field's own spelling ("ml", "cm2", "HU", "1").

    Raises:
        InputError: A number is not finite, or not ``low <= value <= high``.
    """

    value: float
    low: float
    high: float
    level: float
    unit: str

    def __post_init__(self) -> None:
        numbers = (self.value, self.low, self.high)
        if not all(math.isfinite(number) for number in numbers):
            raise InputError("a measurement must be finite", value=numbers)
        if not self.low <= self.value <= self.high:
            raise InputError(
                "the value lies outside its interval", value=numbers, expected="low <= value <= high"
            )
        if not 0 < self.level < 1:
            raise InputError(
                "the interval's level is not a share", value=self.level, expected="0 < level < 1"
            )

    @property
    def amount(self) -> str:
        """The value with its unit, with no more digits than a reader can use: ``"453 ml"``."""
        return f"{self._number(self.value)} {self.unit}"

    @property
    def interval(self) -> str:
        """The interval with its level: ``"90 % interval 293 to 766 ml"``."""
        ends = f"{self._number(self.low)} to {self._number(self.high)}"
        return f"{100 * self.level:.0f} % interval {ends} {self.unit}"

    def _number(self, number: float) -> str:
        return f"{number:.{_DECIMALS.get(self.unit, 2)}f}"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What a result may depend on besides its inputs: versions, processor, threads."""

    python: str
    platform: str
    threads: int
    packages: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def current(cls, packages: tuple[str, ...] = ()) -> Environment:
        """Describe this process; ``packages`` are distribution names, absent ones left out."""
        versions = {}
        for name in ("sagittal", "numpy", *packages):
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        return cls(
            python=platform.python_version(),
            platform=f"{platform.system()} {platform.machine()}",
            threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            packages=versions,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the environment as JSON values."""
        return {**asdict(self), "packages": dict(self.packages)}


_DECIMALS = {"ml": 0, "cm2": 1, "HU": 1}


def canonical_json(value: Any) -> str:
    """Return ``value`` as JSON with sorted keys and no spaces: equal values give equal text.

    Raises:
        InputError: The value holds NaN, infinity, half a surrogate pair, or something JSON cannot say.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"not a JSON value: {error}") from error
    return text


def hash_json(value: Any) -> str:
    """Return the sha256 of :func:`canonical_json`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def hash_array(array: NDArray[Any]) -> str:
    """Return the sha256 of an array's dtype, shape and values (C order, little endian).

    The memory layout does not matter: a transposed copy and a view of equal values hash alike.
    """
    if array.dtype.hasobject:
        raise InputError("an array of Python objects has no content hash", value=array.dtype)
    contiguous = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{contiguous.dtype.str}{array.shape}".encode())
    digest.update(contiguous.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
