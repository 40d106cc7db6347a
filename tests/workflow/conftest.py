"""A small synthetic case: a brain-like T1 phantom, a real CT slice, a short record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sagittal.case.store import CaseStore
from sagittal.volume import Geometry, Volume, write_nifti
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.pipeline import Sources
from sagittal.workflow.runner import Runner


def t1_phantom() -> Volume:
    """Three nested shells of 60, 120 and 200 with noise, in an oblique, anisotropic, left-handed grid."""
    shape = (36, 40, 32)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    clean = np.select([radius < 0.45, radius < 0.65, radius < 0.8], [200.0, 120.0, 60.0], 0.0)
    noise = np.random.default_rng(5).normal(0, 6, shape)
    array = np.where(clean > 0, np.clip(clean + noise, 1, 255), 0).round().astype(np.int16)
    affine = np.array(
        [[-1.2, 0.1, 0.0, 20.0], [0.1, 1.3, 0.2, -25.0], [0.0, -0.2, 2.0, -30.0], [0.0, 0.0, 0.0, 1.0]]
    )
    columns = np.linalg.qr(affine[:3, :3])[0] * np.array([1.2, 1.3, 2.0])
    affine[:3, :3] = columns
    return Volume(array, Geometry(array.shape, affine), unit="a.u.")


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
