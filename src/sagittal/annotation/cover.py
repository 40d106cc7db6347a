"""Few that stand for many: greedy choices from a table of similarities or distances, and how good they are.

A choice S of candidates covers a pool to ``F(S) = sum_i w_i max_{j in S} sim_ij``. F is monotone and
submodular: more never covers less, and each candidate adds less the more are chosen before it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import InputError

__all__ = ["Cover", "cosine_similarity", "cover", "cover_within", "k_centre"]

_Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Cover:
    """A greedy choice.

    Attributes:
        chosen: Candidates, in the order of choice.
        gains: What each added to what those before it covered.
        value: Their sum.
        guarantee: No choice of the same size or cost covers more than ``value / guarantee``, 0 to 1. The
            larger of what the algorithm always reaches and of what the candidates left over show for this
            choice.
    """

    chosen: tuple[int, ...]
    gains: tuple[float, ...]
    value: float
    guarantee: float


def cosine_similarity(one: NDArray[np.floating], other: NDArray[np.floating]) -> _Array:
    """Return the cosine between descriptors, negative ones as 0.

    Args:
        one: Shape (n, features).
        other: Shape (m, features).

    Returns:
        Shape (n, m), 0 to 1; a descriptor of zeros is similar to none.

    Raises:
        InputError: The features differ in number, or one is not finite.
    """
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise InputError(
            "descriptors do not fit each other",
            value=f"{one.shape} and {other.shape}",
            expected="(n, features) and (m, features)",
        )
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise InputError("a descriptor is not finite", expected="numbers")
    a, b = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
        for rows in (one.astype(np.float64), other.astype(np.float64))
    )
    cosines: _Array = np.clip(a @ b.T, 0, 1)
    return cosines


def cover(
    similarity: _Array, count: int, *, weights: _Array | None = None, covered: _Array | None = None
) -> Cover:
    """Choose ``count`` candidates that together stand best for a pool, greedily.

    The greedy choice reaches 1 - 1/e of the best one (Nemhauser, Wolsey and Fisher, Math. Program. 14:265,
    1978). Gains are computed again only where an old one could still win (Minoux, 1978), which changes
    nothing of the choice. Among equals the first wins.

    Args:
        similarity: Of each of the pool to each candidate, shape (n, m), 0 or more.
        count: How many, up to m.
        weights: What each of the pool counts, shape (n,), 0 or more; all 1 by default.
        covered: How well each of the pool is stood for already, shape (n,); not at all by default.

    Raises:
        InputError: A count outside 0 to m, shapes that do not fit, a negative similarity or weight.
    """
    table, w, start = _checked(similarity, weights, covered)
    if not 0 <= count <= table.shape[1]:
        raise InputError(
            "so many cannot be chosen", source="count", value=count, expected=f"0 to {table.shape[1]}"
        )
    chosen, gains, left = _greedy(table, w, start, np.ones(table.shape[1]), float(count), by_cost=False)
    value = math.fsum(gains)
    most = math.fsum(sorted(left, reverse=True)[:count])
    return Cover(
        chosen=tuple(chosen),
        gains=tuple(gains),
        value=value,
        guarantee=max(1 - 1 / math.e, _share(value, value + most)),
    )


def cover_within(
    similarity: _Array,
    costs: _Array,
    budget: float,
    *,
    weights: _Array | None = None,
    covered: _Array | None = None,
) -> Cover:
    """Choose candidates that together stand best for a pool, within a budget, greedily by gain per cost.

    Of the choice by gain per cost and the one by gain alone, the better is returned: it reaches
    (1 - 1/e) / 2 of the best one (Khuller, Moss and Naor, Inf. Process. Lett. 70:39, 1999; Leskovec et al.,
    KDD 2007, theorem 3). By gain per cost alone nothing is certain.

    Args:
        similarity: Of each of the pool to each candidate, shape (n, m), 0 or more.
        costs: Of each candidate, shape (m,), above 0.
        budget: What the chosen may cost together, 0 or more.
        weights: What each of the pool counts, shape (n,), 0 or more; all 1 by default.
        covered: How well each of the pool is stood for already, shape (n,); not at all by default.

    Raises:
        InputError: Shapes that do not fit, a cost that is not above 0, a negative budget, similarity or
            weight.
    """
    table, w, start = _checked(similarity, weights, covered)
    if costs.shape != table.shape[1:] or not (np.isfinite(costs) & (costs > 0)).all():
        raise InputError(
            "the costs do not fit",
            source="costs",
            value=costs.shape,
            expected="one above 0 for each candidate",
        )
    if not (budget >= 0 and math.isfinite(budget)):
        raise InputError("no such budget", source="budget", value=budget, expected="0 or more")
    fits = costs <= budget
    best: Cover | None = None
    for by_cost in (True, False):
        chosen, gains, left = _greedy(table, w, start, costs, budget, by_cost=by_cost)
        value = math.fsum(gains)
        most = _fractional(np.where(fits, left, 0), costs, budget)
        found = Cover(
            chosen=tuple(chosen),
            gains=tuple(gains),
            value=value,
            guarantee=max((1 - 1 / math.e) / 2, _share(value, value + most)),
        )
        if best is None or found.value > best.value:
            best = found
    assert best is not None
    return best


def k_centre(distance: _Array, count: int, *, nearest: _Array | None = None) -> tuple[list[int], list[float]]:
    """Choose candidates so that none is far from a chosen one: each time the one furthest from all chosen.

    The largest distance left is at most twice the least possible (Gonzalez, Theor. Comput. Sci. 38:293, 1985;
    as the core-set of Sener and Savarese, ICLR 2018). Among equals the first wins. With nothing chosen or
    known before, the first is the one of the least mean distance to all.

    Args:
        distance: Between candidates, shape (m, m).
        count: How many, up to m.
        nearest: Distance of each candidate to what is known already, shape (m,).

    Returns:
        The candidates in the order of choice, and how far each was from those before it (infinity for the
        first, where nothing was known).

    Raises:
        InputError: A count outside 0 to m, or shapes that do not fit.
    """
    if distance.ndim != 2 or distance.shape[0] != distance.shape[1]:
        raise InputError("the distances form no square", value=distance.shape, expected="(m, m)")
    size = len(distance)
    if not 0 <= count <= size:
        raise InputError("so many cannot be chosen", source="count", value=count, expected=f"0 to {size}")
    if nearest is not None and nearest.shape != (size,):
        raise InputError(
            "the distances do not fit", source="nearest", value=nearest.shape, expected=f"({size},)"
        )
    far = np.full(size, math.inf) if nearest is None else nearest.astype(np.float64)
    open_ = np.ones(size, bool)
    chosen: list[int] = []
    radii: list[float] = []
    for _ in range(count):
        alone = not np.isfinite(far[open_]).any() and not chosen
        score = -distance.mean(axis=1) if alone else far
        pick = int(np.argmax(np.where(open_, score, -math.inf)))
        chosen.append(pick)
        radii.append(float(far[pick]))
        open_[pick] = False
        far = np.minimum(far, distance[pick])
    return chosen, radii


def _greedy(
    table: _Array, weights: _Array, start: _Array, costs: _Array, budget: float, *, by_cost: bool
) -> tuple[list[int], list[float], _Array]:
    """Return the choice, the gains, and what each candidate left over would still add (0 for the chosen)."""
    best, left = start.copy(), budget

    def gain(candidate: int) -> float:
        return float(weights @ np.maximum(table[:, candidate] - best, 0))

    rank: Callable[[int, float], float] = lambda c, g: g / costs[c] if by_cost else g  # noqa: E731
    heap = [(-rank(c, g), c, g, 0) for c in range(table.shape[1]) for g in [gain(c)]]
    heapq.heapify(heap)
    chosen: list[int] = []
    gains: list[float] = []
    while heap:
        _, candidate, value, told = heapq.heappop(heap)
        if costs[candidate] > left * (1 + 1e-12):
            continue
        if told < len(chosen):
            value = gain(candidate)
            heapq.heappush(heap, (-rank(candidate, value), candidate, value, len(chosen)))
            continue
        chosen.append(candidate)
        gains.append(value)
        best = np.maximum(best, table[:, candidate])
        left -= float(costs[candidate])
    rest = np.array([gain(c) for c in range(table.shape[1])])
    rest[chosen] = 0
    return chosen, gains, rest


def _fractional(gains: _Array, costs: _Array, budget: float) -> float:
    """Return the most that gains could add up to within a budget, were they divisible and independent."""
    total, left = 0.0, budget
    for candidate in np.argsort(-gains / costs, kind="stable"):
        share = min(1.0, left / float(costs[candidate]))
        total += share * float(gains[candidate])
        left -= share * float(costs[candidate])
        if left <= 0:
            break
    return total


def _share(value: float, most: float) -> float:
    return value / most if most > 0 else 1.0


def _checked(
    similarity: _Array, weights: _Array | None, covered: _Array | None
) -> tuple[_Array, _Array, _Array]:
    if similarity.ndim != 2 or not (np.isfinite(similarity).all() and (similarity >= 0).all()):
        raise InputError(
            "the similarities do not fit", value=similarity.shape, expected="(pool, candidates), 0 or more"
        )
    pool = (len(similarity),)
    found = []
    for name, given, default in (("weights", weights, 1.0), ("covered", covered, 0.0)):
        values = np.full(pool, default) if given is None else given.astype(np.float64)
        if values.shape != pool or not (np.isfinite(values).all() and (values >= 0).all()):
            raise InputError(
                "one number for each of the pool is needed",
                source=name,
                value=values.shape,
                expected=f"{pool}, 0 or more",
            )
        found.append(values)
    return similarity.astype(np.float64), found[0], found[1]
