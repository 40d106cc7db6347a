from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sagittal.language
from sagittal.core.errors import FormatError, InputError
from sagittal.language import CachePlan
from sagittal.language.plan import Coding, Sinks, load_plan, save_plan

SPREAD = np.linspace(0.1, 2, 16, dtype=np.float32).reshape(2, 8)


def _full() -> CachePlan:
    """A plan with something in every field."""
    draw = np.random.default_rng(1)
    keys = Coding(
        bits=np.array([[0, 1, 2, 3, 4, 5, 6, 8]] * 2, dtype=np.uint8),
        scale="static",
        levels={b: tuple(sorted(draw.standard_normal(1 << b).tolist())) for b in (1, 2, 3, 4, 5, 6, 8)},
        gain=True,
        outliers=0.01,
        before_rope=True,
        mean=draw.standard_normal((2, 8)).astype(np.float32),
        weight=np.ones((2, 8), np.float16),
        rotation="basis",
        basis=draw.integers(-127, 127, (2, 8, 8), dtype=np.int8),
        basis_scale=np.full((2, 8), 0.01, np.float16),
        spread=SPREAD,
    )
    values = Coding(
        bits=2, scale="token", group=8, clip=0.8, rotation="hadamard", heads=2, order=np.arange(16)[::-1]
    )
    return CachePlan(
        keys=(keys, Coding(bits=16)),
        values=(values, Coding(bits=3)),
        sinks=Sinks(count=5),
        residual=32,
        page=24,
        made_for={"hidden_size": 64, "model_type": "llama"},
        reasons={"kl": [0.1, 0.2], "why": "été"},
    )


def _alike(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        return (
            isinstance(first, np.ndarray)
            and isinstance(second, np.ndarray)
            and first.dtype == second.dtype
            and np.array_equal(first, second)
        )
    if dataclasses.is_dataclass(first):
        names = [item.name for item in dataclasses.fields(first)]
        return type(first) is type(second) and all(
            _alike(getattr(first, name), getattr(second, name)) for name in names
        )
    if isinstance(first, tuple):
        return len(first) == len(second) and all(map(_alike, first, second))
    return bool(first == second)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bits", 0),
        ("bits", 12),
        ("bits", 9),
        ("bits", -1),
        ("bits", 2.5),
        ("bits", np.array([[16, 4]])),
        ("scale", "row"),
        ("group", 0),
        ("clip", 0.0),
        ("clip", 1.5),
        ("clip", math.nan),
        ("levels", "lloyd"),
        ("outliers", 0.5),
        ("outliers", -0.1),
        ("rotation", "random"),
        ("rotation", "basis"),
        ("heads", 0),
    ],
)
def test_coding_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=field.removesuffix("s")):
        Coding(**{field: value})


def test_static_coding_needs_its_spread_and_levels() -> None:
    with pytest.raises(InputError, match="no spread"):
        Coding(scale="static", levels="gaussian")
    with pytest.raises(InputError, match="no levels"):
        Coding(scale="static", spread=SPREAD)
    with pytest.raises(InputError, match="basis"):
        Coding(basis=np.ones((1, 8, 8), np.int8), basis_scale=np.ones((1, 8), np.float16))


@pytest.mark.parametrize(
    ("field", "value"),
    [("residual", -1), ("page", 0), ("page", 12), ("page", 4), ("keys", ()), ("values", ())],
)
def test_plan_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=field):
        CachePlan(**{field: value})


def test_sinks_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"sinks.*-1"):
        Sinks(count=-1)
    with pytest.raises(InputError, match="profile"):
        Sinks(rule="predict")
    with pytest.raises(InputError, match="profile"):
        Sinks(profile={})
    with pytest.raises(InputError, match="rule"):
        Sinks(rule="last")  # type: ignore[arg-type]


def test_codings_are_one_for_all_layers_or_one_for_each() -> None:
    two = (Coding(bits=2), Coding(bits=3))
    plan = CachePlan(keys=two, values=(Coding(bits=5),))
    assert [tuple(c.bits for c in plan.codings(layer)) for layer in (0, 1)] == [(2, 5), (3, 5)]
    with pytest.raises(InputError, match="2 and 3"):
        CachePlan(keys=two, values=(*two, two[0]))


def test_uniform_plan_has_the_default_layout() -> None:
    plan = CachePlan.uniform(2, 3, group=32, residual=16)
    (keys,), (values,) = plan.keys, plan.values
    assert (keys.bits, keys.scale, values.bits, values.scale, values.group) == (2, "channel", 3, "token", 32)
    assert (plan.residual, plan.page, plan.sinks.count) == (16, 64, 4)
    assert _alike(CachePlan.uniform(), CachePlan())


@pytest.mark.parametrize("bits", [16, np.full((2, 8), 16)])
def test_sixteen_bits_are_exact_however_they_are_written(bits: Any) -> None:
    assert Coding(bits=bits).exact
    assert not Coding(bits=np.full((2, 8), 8)).exact


@pytest.mark.parametrize("plan", [CachePlan(), _full(), CachePlan.uniform(16, 1)])
def test_file_round_trip(tmp_path: Path, plan: CachePlan) -> None:
    path = tmp_path / "plan.json"
    save_plan(plan, path)
    again = load_plan(path)
    assert _alike(again, plan)
    save_plan(again, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def _damage(tmp_path: Path, change: Any) -> Path:
    path = tmp_path / "plan.json"
    save_plan(_full(), path)
    held = json.loads(path.read_text(encoding="utf-8"))
    change(held)
    path.write_text(json.dumps(held), encoding="utf-8")
    return path


def _cut_array(held: Any) -> None:
    held["keys"][0]["mean"]["base64"] = held["keys"][0]["mean"]["base64"][:-4]


def _nan_array(held: Any) -> None:
    mean = held["keys"][0]["mean"]
    size = len(mean["base64"])
    mean["base64"] = ("AADAfwAAwH8AAMB/" * size)[: size - 4] + mean["base64"][-4:]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda held: held.update(format="sagittal cache plan 9"), r"no plan.*plan 9.*plan 1"),
        (lambda held: held.pop("format"), "no plan"),
        (lambda held: held.pop("residual"), "damaged.*residual"),
        (lambda held: held.pop("sinks"), "damaged.*sinks"),
        (lambda held: held["sinks"].update(rule="predict"), "plan.json: sinks"),
        (lambda held: held["sinks"].update(colour=3), "damaged.*colour"),
        (lambda held: held.update(page=60), "plan.json: page.*60"),
        (lambda held: held.update(page="64"), "plan.json.*"),
        (lambda held: held.update(keys=[]), "plan.json: .*codings"),
        (lambda held: held.update(keys=3), "damaged"),
        (lambda held: held.update(residual=None), "plan.json"),
        (lambda held: held.update(residual=3.5), "plan.json: residual"),
        (lambda held: held.update(made_for=["x"]), "plan.json"),
        (lambda held: held["keys"][0].update(bits="4"), "plan.json: bits"),
        (lambda held: held["keys"][0].update(clip=2), "plan.json: clip"),
        (lambda held: held["keys"][0].update(colour=2), "damaged.*colour"),
        (lambda held: held["keys"][0].pop("spread"), "no spread"),
        (lambda held: held["keys"][0]["levels"].update({"4": [0.1, "x"]}), "plan.json"),
        (lambda held: held["keys"][0]["mean"].pop("dtype"), "damaged.*dtype"),
        (lambda held: held["keys"][0]["mean"].update(dtype="object"), "damaged"),
        (lambda held: held["keys"][0]["mean"].update(dtype="nonsense"), "damaged"),
        (lambda held: held["keys"][0]["mean"].update(shape=[3, 8]), "damaged.*reshape"),
        (lambda held: held["keys"][0]["mean"].update(base64="A"), "damaged"),
        (lambda held: held["keys"][0]["mean"].update(base64="no base!"), "damaged"),
        (_cut_array, "damaged"),
        (_nan_array, "damaged.*finite"),
    ],
)
def test_damaged_file_is_refused_by_name(tmp_path: Path, change: Any, problem: str) -> None:
    path = _damage(tmp_path, change)
    with pytest.raises(InputError, match=problem) as found:
        load_plan(path)
    assert "plan.json" in str(found.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 20_000])
def test_file_that_is_no_plan(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(text)
    with pytest.raises(FormatError, match=r"other\.json"):
        load_plan(path)


def test_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist"):
        load_plan(tmp_path / "none.json")
    with pytest.raises(FormatError):
        load_plan(tmp_path)


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    save_plan(_full(), path)
    whole = path.read_bytes()
    for end in range(0, len(whole) - 2, 97):
        path.write_bytes(whole[:end])
        with pytest.raises(FormatError, match="JSON"):
            load_plan(path)


def _places(held: Any) -> list[tuple[Any, Any]]:
    """Return every container of a JSON document with every key or index in it."""
    items = held.items() if isinstance(held, dict) else enumerate(held) if isinstance(held, list) else ()
    here = [(held, key) for key, _ in items]
    inner = held.values() if isinstance(held, dict) else held if isinstance(held, list) else ()
    return here + [place for value in inner for place in _places(value)]


ODD = st.sampled_from([None, True, -1, 0, 3, 10**9, 2.5, math.nan, "", "x", [], [1], {}, {"a": 1}, "AAAA"])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10**6), value=ODD)
def test_any_odd_value_is_refused_or_harmless(tmp_path: Path, at: int, value: Any) -> None:
    """Never anything but a named error, and what is loaded can be saved."""

    def change(held: Any) -> None:
        places = _places(held)
        container, key = places[at % len(places)]
        container[key] = value

    path = _damage(tmp_path, change)
    try:
        plan = load_plan(path)
    except InputError:
        return
    for coding in (*plan.keys, *plan.values):
        assert ((np.asarray(coding.bits) >= 0) & (np.asarray(coding.bits) <= 16)).all()
    if value is value and not isinstance(value, float):
        save_plan(plan, path)


def test_package_and_plan_import_no_torch() -> None:
    code = (
        "import sys; from sagittal.language import CachePlan; CachePlan.uniform(2);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_library_is_named_with_the_extra_that_brings_it() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from sagittal.core.errors import MissingDependencyError\n"
        "import sagittal.language\n"
        "try: sagittal.language.LowBitCache\n"
        "except MissingDependencyError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "transformers" in found.stdout
    assert "sagittal[language]" in found.stdout


def test_every_public_name_is_there() -> None:
    for name in sagittal.language.__all__:
        assert getattr(sagittal.language, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = sagittal.language.nothing_such
