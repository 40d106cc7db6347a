from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from sagittal.core import errors
from sagittal.core.assets import asset
from sagittal.core.errors import AssetError, InputError, SagittalError

KINDS = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", KINDS)
def test_the_message_says_where_what_and_what_was_expected(kind: type[SagittalError]) -> None:
    error = kind("it is wrong", source="a.nii", value=0, expected="1")
    assert str(error) == "a.nii: it is wrong; got 0; expected 1"
    assert str(kind("it is wrong")) == "it is wrong"


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.InputError, ValueError),
        (errors.GeometryError, errors.InputError),
        (errors.StorageError, OSError),
        (errors.MissingDependencyError, ImportError),
        (errors.ChecksumError, errors.AssetError),
    ],
)
def test_an_error_is_also_of_the_kind_that_others_catch(
    kind: type[SagittalError], builtin: type[Exception]
) -> None:
    assert issubclass(kind, builtin)
    assert issubclass(kind, SagittalError)


def test_an_error_crosses_processes_whole() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        future = pool.submit(asset, "nonsense")
        with pytest.raises(AssetError, match="no asset has this name; got nonsense; exp") as caught:
            future.result()
    assert caught.value.value == "nonsense"
    assert caught.value.expected is not None


@pytest.mark.parametrize("kind", KINDS)
def test_pickling_keeps_every_part(kind: type[SagittalError]) -> None:
    import pickle

    error = kind("p", source="s", value=(1, 2.5), expected="e")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.problem, again.source, again.value, again.expected) == ("p", "s", (1, 2.5), "e")
    assert str(again) == str(error)


def test_an_error_can_be_caught_as_what_the_user_gave() -> None:
    with pytest.raises(ValueError, match="^x: bad$"):
        raise InputError("bad", source="x")
