from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import GeometryError, InputError
from sagittal.volume import Geometry, Volume, require_same_space

GRID = Geometry.from_spacing((2, 3, 4))
ZEROS = np.zeros((2, 3, 4))


def test_arrays_are_read_only_and_not_the_callers() -> None:
    array = np.zeros((2, 3, 4))
    volume = Volume(array, GRID)
    array[0, 0, 0] = 5
    assert volume.array[0, 0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        volume.array[0, 0, 0] = 1


def test_a_read_only_view_of_a_writable_array_is_copied_and_a_read_only_array_is_kept() -> None:
    owner = np.zeros((2, 3, 4))
    view = owner.view()
    view.setflags(write=False)
    volume = Volume(view, GRID)
    owner[:] = 9
    assert volume.array.max() == 0
    owner.setflags(write=False)
    assert Volume(owner, GRID).array is owner


def test_big_endian_voxels_become_native_with_the_same_hash() -> None:
    native = Volume(np.arange(24, dtype="<i2").reshape(2, 3, 4), GRID)
    swapped = Volume(np.arange(24, dtype=">i2").reshape(2, 3, 4), GRID)
    assert swapped.array.dtype.isnative
    assert swapped.content_hash == native.content_hash


def test_content_hash_covers_all_but_facts(volume: Volume) -> None:
    changed: list[Volume] = [
        volume.replace(array=volume.array + 1),
        volume.replace(unit="1"),
        volume.replace(variance=None),
        volume.replace(classes=("x", "y", "z")),
        volume.replace(probabilities=None, classes=()),
        volume.replace(geometry=Geometry(volume.shape, volume.geometry.affine * [[2], [2], [2], [1]])),
    ]
    hashes = {other.content_hash for other in changed} | {volume.content_hash}
    assert len(hashes) == len(changed) + 1
    assert volume.replace(facts={}).content_hash == volume.content_hash


def test_pickle_keeps_everything(volume: Volume) -> None:
    copy = pickle.loads(pickle.dumps(volume))
    assert copy.content_hash == volume.content_hash
    assert copy.facts == volume.facts
    assert not copy.array.flags.writeable


def test_with_array_drops_doubt_that_no_longer_applies(volume: Volume) -> None:
    other = volume.with_array(np.ones(volume.shape))
    assert other.variance is None
    assert other.probabilities is None
    assert other.classes == ()
    assert (other.unit, other.facts, other.geometry) == (volume.unit, volume.facts, volume.geometry)


def test_facts_are_a_read_only_copy() -> None:
    facts: dict[str, Any] = {"kvp": [120]}
    volume = Volume(ZEROS, GRID, facts=facts)
    facts["kvp"].append(80)
    assert volume.facts["kvp"] == [120]
    with pytest.raises(TypeError):
        volume.facts["kvp"] = 1  # type: ignore[index]


def _nan() -> np.ndarray[Any, Any]:
    array = ZEROS.copy()
    array[1, 2, 3] = np.nan
    array[1, 0, 2] = np.inf
    return array


@pytest.mark.parametrize(
    ("change", "kind", "named"),
    [
        ({"array": np.zeros((2, 3))}, GeometryError, r"\(2, 3\)"),
        ({"array": _nan()}, InputError, r"2 of 24, first inf at \(1, 0, 2\)"),
        ({"array": ZEROS.astype(complex)}, InputError, "complex128"),
        ({"array": ZEROS.astype(np.longdouble)}, InputError, "float128|longdouble|float64"),
        ({"unit": ""}, InputError, "unit"),
        ({"variance": ZEROS - 1}, InputError, "negative"),
        ({"variance": np.zeros((2, 3, 5))}, GeometryError, r"\(2, 3, 5\)"),
        ({"probabilities": np.full((2, 3, 4, 1), 1.5), "classes": ("a",)}, InputError, "1.5"),
        ({"probabilities": np.full((2, 3, 4, 1), -0.1), "classes": ("a",)}, InputError, "-0.1"),
        ({"probabilities": np.full((2, 3, 4, 2), 0.6), "classes": ("a", "b")}, InputError, "1.2"),
        ({"probabilities": np.full((2, 3, 4, 2), 0.5), "classes": ("a",)}, GeometryError, r"\(2, 3, 4, 2\)"),
        ({"probabilities": np.zeros((2, 3, 4, 1), int), "classes": ("a",)}, InputError, "int64"),
        ({"probabilities": np.zeros((2, 3, 4, 2)), "classes": ("a", "a")}, InputError, "twice"),
        ({"classes": ("a",)}, InputError, "without probabilities"),
        ({"classes": "liver"}, InputError, "liver"),
        ({"facts": {"x": float("nan")}}, InputError, "JSON"),
        ({"facts": [1]}, InputError, "list"),
    ],
)
def test_refusals(change: dict[str, Any], kind: type[Exception], named: str) -> None:
    with pytest.raises(kind, match=named):
        Volume(**{"array": ZEROS, "geometry": GRID, **change})


def test_a_sum_below_one_and_float16_rounding_are_accepted() -> None:
    third = np.full((2, 3, 4, 3), 1 / 3, dtype=np.float16)
    Volume(ZEROS, GRID, probabilities=third, classes=("a", "b", "c"))
    Volume(ZEROS, GRID, probabilities=third * 0, classes=("a", "b", "c"))


def test_require_same_space() -> None:
    volume = Volume(ZEROS, GRID)
    require_same_space(volume, Geometry.from_spacing((2, 3, 4), origin=(0, 0, 5e-4)))
    with pytest.raises(GeometryError, match="2 mm apart"):
        require_same_space(volume, Geometry.from_spacing((2, 3, 4), origin=(0, 0, 2)))
    with pytest.raises(GeometryError, match=r"\(2, 3, 4\) and \(4, 3, 2\)"):
        require_same_space(volume, Geometry.from_spacing((4, 3, 2)))


def test_importing_the_package_brings_no_imaging_library() -> None:
    code = (
        "import sys, sagittal.volume\n"
        "heavy = {'nibabel', 'pydicom', 'SimpleITK', 'scipy', 'torch', 'torchio', 'monai', 'highdicom'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
