from __future__ import annotations

import subprocess
import sys

import pytest

import sagittal.language
from sagittal.core.errors import InputError
from sagittal.language import CachePlan


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key_bits", 0),
        ("key_bits", 12),
        ("value_bits", 9),
        ("sinks", -1),
        ("residual", -1),
        ("page", 0),
        ("value_group", 0),
    ],
)
def test_number_out_of_range_is_refused_by_name(field: str, value: int) -> None:
    with pytest.raises(InputError, match=rf"{field}.*{value}"):
        CachePlan(**{field: value})


def test_package_and_plan_import_no_torch() -> None:
    code = (
        "import sys; from sagittal.language import CachePlan; CachePlan(key_bits=2);"
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
