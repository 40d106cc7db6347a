"""What annotations of a store took, and the work that was to be seen before them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from labelled_store import LABELS, add_case, subject
from sagittal.annotation import LoggedMinutes
from sagittal.case.store import CaseStore
from sagittal.segmentation import NetworkConfig
from sagittal.volume import write_nifti
from sagittal.workflow.annotation import import_annotation
from sagittal.workflow.annotation_minutes import logged_minutes
from sagittal.workflow.artifacts import Kind
from sagittal.workflow.labelled import labelled_cases
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.runner import Runner
from sagittal.workflow.step import Context, Result, Step

pytest.importorskip("scipy")
pytest.importorskip("nibabel")

CONFIG = NetworkConfig(spacing_mm=(7.0, 7.0, 7.0))


@dataclass(frozen=True, kw_only=True)
class ProposeAlmost(Step):
    """Propose the true labels, none of them quite sure."""

    name: ClassVar[str] = "test-propose-almost"
    version: ClassVar[str] = "1"
    doubt: ClassVar[str] = "starts it"

    @property
    def reads(self) -> Mapping[str, Kind]:
        return {"t1": Kind.VOLUME}

    @property
    def writes(self) -> Mapping[str, Kind]:
        return {"proposal": Kind.VOLUME}

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        labels = subject(0)[1].array
        shares = np.stack([np.where(labels == n, 0.95, 0.0) for n in (1, 2, 3)], -1).astype(np.float32)
        found = inputs["t1"].with_array(labels, probabilities=shares, classes=LABELS)
        return Result(outputs={"proposal": found})


@pytest.fixture
def case(tmp_path: Path) -> Iterator[tuple[CaseStore, str, Path]]:
    with CaseStore(tmp_path / "store") as store:
        yield store, add_case(store, tmp_path, subject(0)[0], "one"), tmp_path


def draw(case: tuple[CaseStore, str, Path], slices: Any, minutes: float, labels: Any = None) -> None:
    """Import the labels of some slices; nobody has looked at the others."""
    store, case_id, folder = case
    whole = subject(0)[1]
    array = np.full(whole.shape, 255, np.uint8)
    array[:, :, slices] = (whole.array if labels is None else labels)[:, :, slices]
    write_nifti(whole.with_array(array), folder / "labels.nii.gz", sidecar=False)
    import_annotation(
        store, case_id, folder / "labels.nii.gz", labels=LABELS, minutes=minutes, who="Ada", unknown=255
    )


def logs(case: tuple[CaseStore, str, Path]) -> list[LoggedMinutes]:
    found, _ = logged_minutes(case[0], labelled_cases(case[0], LABELS), CONFIG)
    return found


def test_labels_that_come_in_parts_are_as_many_logs_of_the_new_parts(
    case: tuple[CaseStore, str, Path],
) -> None:
    draw(case, [8], 5)
    draw(case, [8, 9, 10], 7)
    first, second = logs(case)
    assert (first.minutes, first.effort.slices) == (5, 1)
    assert (second.minutes, second.effort.slices) == (7, 2)


def test_the_same_labels_again_correct_the_minutes_and_changed_ones_teach_nothing(
    case: tuple[CaseStore, str, Path],
) -> None:
    draw(case, slice(None), 17)
    draw(case, slice(None), 71)
    assert [log.minutes for log in logs(case)] == [71]
    changed = np.where(subject(0)[1].array == 1, 2, subject(0)[1].array)
    draw(case, slice(None), 3, changed)
    assert [log.minutes for log in logs(case)] == [71]


def test_work_is_that_on_the_proposal_which_was_there_before(case: tuple[CaseStore, str, Path]) -> None:
    draw(case, slice(None), 40)
    (alone,) = logs(case)
    assert alone.effort.tissues["wm"].voxels == 1  # drawn from nothing
    assert alone.effort.tissues["wm"].edge == 1
    Runner(store=case[0], shelf=ModelShelf(offline=True)).run(case[1], ProposeAlmost())
    assert [log.effort for log in logs(case)] == [alone.effort]  # it came after the labels


def test_a_proposal_makes_less_work(case: tuple[CaseStore, str, Path]) -> None:
    Runner(store=case[0], shelf=ModelShelf(offline=True)).run(case[1], ProposeAlmost())
    draw(case, slice(None), 4)
    (log,) = logs(case)
    truth = subject(0)[1].array
    size = float((truth == 3).sum())
    assert log.effort.tissues["wm"].voxels == pytest.approx(0.05 * size / (0.95 * size), rel=1e-4)
    assert log.effort.tissues["wm"].edge_mm == 0


def test_labels_without_minutes_are_counted(case: tuple[CaseStore, str, Path]) -> None:
    draw(case, slice(None), 0)
    assert logged_minutes(case[0], labelled_cases(case[0], LABELS), CONFIG) == ([], 1)
