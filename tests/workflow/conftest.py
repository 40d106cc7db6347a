"""A small synthetic case: a brain-like T1 phantom, a real CT slice, a short record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sagittal.case.store import CaseStore
from sagittal.volume import write_nifti
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.pipeline import Sources
from sagittal.workflow.runner import Runner
from t1_phantom import t1_phantom


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    from pydicom.data import get_testdata_file

    write_nifti(t1_phantom(), tmp_path / "t1.nii.gz")
    record = tmp_path / "record.txt"
    record.write_text("2024-01-02 Allergy: the patient is allergic to penicillin.\n2024-02-03 Slept well.\n")
    ct = get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False)
    assert ct is not None
    return Sources(t1=[tmp_path / "t1.nii.gz"], ct=[Path(ct)], record=[record], t1_note="A phantom.")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CaseStore]:
    with CaseStore(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def runner(store: CaseStore) -> Runner:
    return Runner(store=store, shelf=ModelShelf(offline=True), seed=7)
