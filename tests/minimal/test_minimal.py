"""With no extra installed, sagittal imports, keeps cases, and says what is missing and how to get it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from sagittal.case.record import FindingDraft, Run
from sagittal.case.store import CaseStore
from sagittal.core.errors import MissingDependencyError

needs_bare = pytest.mark.skipif(
    find_spec("nibabel") is not None or find_spec("torch") is not None,
    reason="only where no extra is installed (make minimal)",
)


def test_importing_sagittal_imports_nothing_else() -> None:
    code = (
        "import sys; from importlib.util import find_spec; find_spec('sagittal'); "  # a finder's own imports
        "before = set(sys.modules) - {'__future__'}; import sagittal; "
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["__future__", "sagittal"]


def test_a_case_can_be_kept(tmp_path: Path) -> None:
    run = Run(
        number=0,
        step="by-hand",
        version="1",
        parameters={},
        inputs=(),
        outputs=(),
        findings=(),
        used=(),
        seed=0,
        doubt="none",
        models={},
        environment={},
        started="",
        seconds=0.0,
    )
    with CaseStore(tmp_path / "store") as store:
        case_id = store.create_case("minimal")
        store.add_run(case_id, run, [FindingDraft(code="image.source", subject="a", statement="A.")])
    with CaseStore(tmp_path / "store", read_only=True) as store:
        assert [f.content.statement for f in store.case(case_id).findings] == ["A."]


def test_the_doctor_speaks(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "sagittal"), "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["sagittal"]["version"]
    assert set(found) >= {"extra language", "extra imaging", "assets", "processor", "places"}


@needs_bare
def test_a_reader_names_the_extra_it_lacks(tmp_path: Path) -> None:
    from sagittal.volume import read_nifti

    path = tmp_path / "a.nii"
    path.write_bytes(b"\0" * 400)
    with pytest.raises(MissingDependencyError, match=r"sagittal\[imaging\]"):
        read_nifti(path)


@needs_bare
def test_the_language_room_names_the_extra_it_lacks() -> None:
    import sagittal.language

    with pytest.raises(MissingDependencyError, match=r"sagittal\[language\]"):
        sagittal.language.LowBitCache  # noqa: B018


@needs_bare
def test_a_run_names_the_extra_it_lacks(tmp_path: Path) -> None:
    image = tmp_path / "slice.dcm"
    image.write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 400)
    command = [str(Path(sys.executable).parent / "sagittal"), "run", "--ct", str(image), "--model", "none"]
    command += ["--out", str(tmp_path / "out"), "--store", str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "sagittal[imaging]" in done.stderr
    assert "Traceback" not in done.stderr
