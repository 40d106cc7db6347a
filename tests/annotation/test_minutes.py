from __future__ import annotations

import math

import numpy as np
import pytest

from sagittal.annotation.effort import CaseEffort, Effort
from sagittal.annotation.minutes import PRIOR, LoggedMinutes, fit_minutes, total_minutes
from sagittal.core.errors import InputError

pytest.importorskip("scipy.optimize")

TRUE = (2.0, 0.6, 0.05, 0.004)


def work(slices: float, components: float, edge_mm: float) -> CaseEffort:
    one = Effort(voxels=0.1, edge=0.1, components=components, edge_mm=edge_mm, slices=slices)
    return CaseEffort(tissues={"gm": one}, slices=slices)


def logged(count: int, seed: int, noise: float = 0.25) -> list[LoggedMinutes]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        slices = rng.uniform(5, 60)
        told = (slices, slices * rng.uniform(0.5, 4), slices * rng.uniform(5, 80))
        minutes = float(np.dot(TRUE, (1, *told)) * math.exp(noise * rng.normal() - noise**2 / 2))
        found.append(LoggedMinutes(subject=f"s{number}", effort=work(*told), minutes=minutes))
    return found


def test_without_logs_it_is_the_prior_and_says_so() -> None:
    model = fit_minutes([])
    assert model.coefficients == PRIOR
    told = model.predict(work(10, 20, 1000))
    assert told.value == pytest.approx(1 + 2.5 + 2 + 3)
    assert told.unit == "min"
    assert told.high / told.low > 9  # a factor of three either way
    assert "nobody measured" in model.basis


def test_few_logs_keep_the_interval_wide_and_say_so() -> None:
    model = fit_minutes(logged(2, 0))
    assert "2 logged annotations and a prior that nobody measured: fewer than 10 logs" in model.basis
    told, many = (m.predict(work(20, 30, 800)) for m in (model, fit_minutes(logged(60, 0))))
    assert told.high / told.low > 1.5 * (many.high / many.low)
    assert "1 logged annotation and" in fit_minutes(logged(1, 0)).basis
    assert fit_minutes(logged(60, 0)).basis == "60 logged annotations"


def test_exact_logs_are_found_again() -> None:
    model = fit_minutes(logged(400, 1, noise=0.0))
    assert model.coefficients == pytest.approx(TRUE, rel=0.4)  # the small ones keep something of the prior
    assert model.coefficients[1::2] == pytest.approx(TRUE[1::2], rel=0.1)
    told = model.predict(work(30, 60, 1200))
    assert told.value == pytest.approx(np.dot(TRUE, (1, 30, 60, 1200)), rel=0.01)


def test_no_coefficient_is_negative_even_where_logs_want_it() -> None:
    odd = [
        LoggedMinutes(subject=str(n), effort=work(5 + n, 50 - 2 * n, 100), minutes=2.0 + 3 * n)
        for n in range(20)
    ]
    model = fit_minutes(odd)
    assert min(model.coefficients) >= 0
    assert model.predict(work(0, 0, 0)).value > 0


@pytest.mark.parametrize("count", [0, 3, 10, 40])
def test_intervals_hold_what_they_promise(count: int) -> None:
    inside, total = 0, 0
    for seed in range(60):
        model = fit_minutes(logged(count, seed))
        for fresh in logged(10, 1000 + seed):
            told = model.predict(fresh.effort)
            inside += told.low <= fresh.minutes <= told.high
            total += 1
    assert inside / total > 0.88


def test_logs_of_one_subject_are_left_out_together() -> None:
    # Ten logs of one person predict each other well; that says nothing of the next person.
    same = [LoggedMinutes(subject="a", effort=work(10 + n, 10, 300), minutes=60.0 + n) for n in range(10)]
    apart = [
        LoggedMinutes(subject=f"s{n}", effort=log.effort, minutes=log.minutes) for n, log in enumerate(same)
    ]
    assert fit_minutes(same).spread > 2 * fit_minutes(apart).spread


def test_the_order_of_logs_changes_nothing() -> None:
    logs = logged(12, 5)
    one, other = fit_minutes(logs), fit_minutes(logs[::-1])
    assert one.coefficients == pytest.approx(other.coefficients)
    assert one.spread == pytest.approx(other.spread)


def test_totals_err_together() -> None:
    model = fit_minutes(logged(5, 0))
    parts = [model.predict(work(s, 10, 200)) for s in (5, 10)]
    total = total_minutes(parts)
    assert total.value == pytest.approx(parts[0].value + parts[1].value)
    assert total.high == pytest.approx(parts[0].high + parts[1].high)
    with pytest.raises(InputError, match="one level"):
        total_minutes([parts[0], model.predict(work(5, 5, 5), level=0.5)])
    with pytest.raises(InputError, match="added up"):
        total_minutes([])


def test_what_is_no_log_is_refused() -> None:
    for minutes in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="more than 0 minutes"):
            LoggedMinutes(subject="a", effort=work(1, 1, 1), minutes=minutes)
    with pytest.raises(InputError, match="no subject"):
        LoggedMinutes(subject="", effort=work(1, 1, 1), minutes=1)
    with pytest.raises(InputError, match="level"):
        fit_minutes([]).predict(work(1, 1, 1), level=1.0)
