from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import FormatError, InputError
from sagittal.reconstruction.geometry import (
    ConeBeam,
    FanBeam,
    ParallelBeam,
    geometry_from_json,
    geometry_to_json,
    some_rays,
    some_views,
)

PARALLEL: dict[str, Any] = {"angles": (0.0, 1.0, 2.0), "bins": 10, "bin_width": 1.5}
FAN: dict[str, Any] = {**PARALLEL, "source_distance": 100.0, "detector_distance": 200.0}
CONE: dict[str, Any] = {**FAN, "rows": 4, "row_height": 2.0}


@pytest.mark.parametrize(
    "geometry",
    [
        ParallelBeam(**PARALLEL, offset=0.25, centre=(1, 2, 3)),
        FanBeam(**FAN, curved=True),
        ConeBeam(**CONE, pitch=12.0),
    ],
)
def test_json_gives_back_an_equal_geometry(geometry: Any) -> None:
    assert geometry_from_json(json.loads(json.dumps(geometry_to_json(geometry)))) == geometry


def test_views_are_taken_some_at_a_time_and_one_at_least() -> None:
    assert list(some_views((5, 2, 10), 40)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(some_views((2, 2, 10), 19)) == [slice(0, 1), slice(1, 2)]
    assert list(some_views((3, 2, 10))) == [slice(0, 3)]
    assert list(some_rays((3, 2, 10), 40)) == [(slice(0, 2), slice(0, 2)), (slice(2, 3), slice(0, 2))]
    assert list(some_rays((1, 5, 10), 20)) == [(slice(0, 1), slice(n, min(n + 2, 5))) for n in (0, 2, 4)]
    assert len(list(some_rays((2, 2, 10), 3))) == 4


def test_edges_are_offset_by_bins() -> None:
    geometry = ParallelBeam(angles=(0.0,), bins=2, bin_width=2.0, offset=0.5)
    assert geometry.edges.tolist() == [-1.0, 1.0, 3.0]


def test_a_helix_rises_by_its_pitch_in_a_turn() -> None:
    angles = tuple(np.linspace(0, 8 * np.pi, 101))
    heights = ConeBeam(**{**CONE, "angles": angles}, pitch=12.0, centre=(0, 0, 5.0)).heights
    assert heights[[0, 50, 100]].tolist() == pytest.approx([-19.0, 5.0, 29.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"angles": tuple(range(0, 180, 3))}, "angles: the view angles look like degrees; got 0 to 177"),
        ({"angles": ()}, "there are no views"),
        ({"angles": (0.0, float("nan"))}, "must be finite"),
        ({"angles": (1.0, 1.0, 1.0)}, "the gantry does not turn"),
        ({"angles": ("a",)}, "angles are no numbers"),
        ({"bins": 0}, "bins must be a positive whole number; got 0"),
        ({"bins": 2.5}, "bins must be a positive whole number"),
        ({"bin_width": -1.0}, "bin_width must be positive"),
        ({"bin_width": float("inf")}, "bin_width must be a finite number"),
        ({"centre": (0.0, 0.0)}, "three coordinates"),
        ({"source_distance": 0.0}, "source_distance must be positive"),
        ({"detector_distance": 10.0}, "detector stands before the object"),
        ({"bins": 1000}, "the fan is too wide; got 75.1 degrees"),
    ],
)
def test_a_fan_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FanBeam(**{**FAN, **change})


def test_a_helix_may_turn_often_but_not_in_degrees() -> None:
    many = tuple(np.linspace(0, 40 * np.pi, 2000))
    assert len(ConeBeam(**{**CONE, "angles": many}, pitch=1.0).angles) == 2000
    with pytest.raises(InputError, match="look like degrees"):
        ConeBeam(**{**CONE, "angles": tuple(np.rad2deg(many))}, pitch=1.0)


def test_a_helix_that_turns_back_is_refused() -> None:
    with pytest.raises(InputError, match="view 2: 0.5 after 1"):
        ConeBeam(**{**CONE, "angles": (0.0, 1.0, 0.5, 2.0)}, pitch=1.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({**PARALLEL, "kind": "spiral"}, "got spiral"),
        ({**PARALLEL, "kind": "parallel"}, r"got \['centre', 'offset', 'rows'\]"),
        ({"kind": "parallel", **PARALLEL, "offset": 0, "rows": 1, "centre": 3}, "centre are no list"),
    ],
)
def test_json_of_no_geometry_is_refused(value: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        geometry_from_json(value)
