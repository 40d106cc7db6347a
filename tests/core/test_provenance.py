from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagittal.core.errors import InputError
from sagittal.core.provenance import Environment, Measurement, canonical_json, hash_array, hash_json

GOOD = Measurement(value=5, low=4, high=7, level=0.9, unit="ml")
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abé\n", max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": math.nan}, "a measurement must be finite; got .*nan"),
        ({"high": math.inf}, "a measurement must be finite; got .*inf"),
        (
            {"low": 5.5},
            r"the value lies outside its interval; got \(5, 5.5, 7\); expected low <= value <= high",
        ),
        ({"high": 4.5}, "the value lies outside its interval"),
        ({"level": 0}, "the interval's level is not a share; got 0; expected 0 < level < 1"),
        ({"level": 90}, "the interval's level is not a share; got 90"),
        ({"level": math.nan}, "the interval's level is not a share; got nan"),
    ],
)
def test_a_measurement_that_cannot_be_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(GOOD, **changes)


def test_a_measurement_prints_with_its_unit_and_level() -> None:
    assert GOOD.amount == "5 ml"
    assert GOOD.interval == "90 % interval 4 to 7 ml"


@given(JSON)
def test_canonical_json_says_the_value_and_always_alike(value: Any) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


def test_the_order_of_keys_does_not_matter_and_the_text_is_pinned() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "µ"}) == '{"a":"µ","b":[1,2.5]}'
    assert hash_json({"x": 1, "y": 2}) == hash_json({"y": 2, "x": 1})
    assert hash_json({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@pytest.mark.parametrize(
    "value", [math.nan, {"a": [math.inf]}, {1, 2}, b"x", np.float32(1), {(1, 2): 3}, "half \ud800"]
)
def test_what_json_cannot_say_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="not a JSON value"):
        canonical_json(value)


def test_the_hash_of_an_array_is_pinned() -> None:
    assert (
        hash_array(np.arange(6, dtype=np.int16).reshape(2, 3))
        == "41ccd40cef9ef8e6f4e5b7843b67a8fe14f0280c95c1437f67ed2ade46cdb19e"
    )


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8", "c8", "?"])
@pytest.mark.parametrize("shape", [(), (0, 3), (4,), (3, 4, 5)])
def test_the_hash_does_not_depend_on_how_an_array_lies_in_memory(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).integers(0, 2, shape).astype(dtype)
    wide = np.zeros((*shape, 2), dtype)
    wide[..., 0] = array
    same = [
        np.asfortranarray(array).reshape(shape),
        array.astype(array.dtype.newbyteorder(">")),
        array.T.copy().T,
        wide[..., 0],
    ]
    assert {hash_array(other) for other in same} == {hash_array(array)}


def test_the_hash_depends_on_dtype_shape_and_every_value() -> None:
    array = np.zeros((2, 3), np.int32)
    changed = array.copy()
    changed[1, 2] = 1
    others = [array.astype(np.uint32), array.astype(np.int64), array.reshape(3, 2), array.reshape(6), changed]
    assert len({hash_array(other) for other in [array, *others]}) == 6


def test_objects_have_no_hash() -> None:
    with pytest.raises(InputError, match="no content hash; got object"):
        hash_array(np.array([None]))


def test_the_environment_names_what_is_installed_and_leaves_out_what_is_not() -> None:
    environment = Environment.current(("pytest", "no-such-distribution"))
    assert environment.packages["numpy"] == np.__version__
    assert "pytest" in environment.packages
    assert "no-such-distribution" not in environment.packages
    assert environment.threads >= 1
    assert json.loads(canonical_json(environment.to_json())) == environment.to_json()
