"""Labels that a person drew go into a case, or are refused whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from labelled_store import GRID, add_case, subject
from sagittal.case.store import CaseStore
from sagittal.volume import Geometry, Volume, reorient, write_nifti
from sagittal.workbench.cli import app
from sagittal.workflow import artifacts
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.replay import replay
from sagittal.workflow.runner import Runner
from sagittal.workflow.steps import DraftReport

pytest.importorskip("scipy")
pytest.importorskip("nibabel")


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, str]:
    image, labels = subject(0)
    with CaseStore(tmp_path / "store") as store:
        case_id = add_case(store, tmp_path, image, "one")
    write_nifti(labels, tmp_path / "labels.nii.gz")
    return tmp_path, case_id


def annotate(
    folder: Path, case_id: str, *options: object, file: str = "labels.nii.gz"
) -> tuple[int, dict[str, Any], str]:
    given = ["annotate", "import", folder / file, "--case", case_id, "--store", folder / "store", "--json"]
    done = CliRunner().invoke(app, [str(one) for one in (*given, *options)])
    return done.exit_code, json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_labels_become_part_of_the_case_with_who_and_minutes(case: tuple[Path, str]) -> None:
    folder, case_id = case
    code, result, error = annotate(folder, case_id, "--minutes", 17, "--who", "Ada")
    assert code == 0, error
    _, labels = subject(0)
    with CaseStore(folder / "store") as store:
        found = store.finding(case_id, result["finding"])
        artifact = store.case(case_id).latest("annotation")
        assert artifact is not None
        kept = artifacts.load(store.objects, artifact)
        np.testing.assert_array_equal(kept.array, labels.array)
        assert found.author == "Ada"
        assert found.content.details["minutes"] == 17
        assert found.content.details["ml"]["wm"] == pytest.approx(0.343 * int((labels.array == 3).sum()))
        Runner(store=store, shelf=ModelShelf(offline=True)).run(case_id, DraftReport(model=""))
        assert not [run for run in replay(store, case_id, shelf=ModelShelf(offline=True)) if run.differences]


def test_a_second_annotation_supersedes_the_first_and_both_stay(case: tuple[Path, str]) -> None:
    folder, case_id = case
    _, first, _ = annotate(folder, case_id, "--minutes", 17, "--who", "Ada")
    _, second, _ = annotate(folder, case_id, "--minutes", 5, "--who", "Bo")
    assert second["replaced"] == first["finding"]
    with CaseStore(folder / "store", read_only=True) as store:
        whole = store.case(case_id)
        assert [f.content.details["who"] for f in whole.standing("annotation.")] == ["Bo"]
        assert [run.author for run in whole.runs if run.step == "take-annotation"] == ["Ada", "Bo"]


def test_labels_on_axes_that_point_elsewhere_are_turned(case: tuple[Path, str]) -> None:
    folder, case_id = case
    _, labels = subject(0)
    write_nifti(reorient(labels, "PSL"), folder / "turned.nii.gz")
    code, _, error = annotate(folder, case_id, "--minutes", 1, file="turned.nii.gz")
    assert code == 0, error
    with CaseStore(folder / "store", read_only=True) as store:
        artifact = store.case(case_id).latest("annotation")
        assert artifact is not None
        np.testing.assert_array_equal(artifacts.load(store.objects, artifact).array, labels.array)


def test_slices_that_nobody_looked_at_are_not_background(case: tuple[Path, str]) -> None:
    folder, case_id = case
    _, labels = subject(0)
    array = labels.array.copy()
    array[:, :, ::2] = 255
    write_nifti(labels.with_array(array), folder / "some.nii.gz")
    code, result, _ = annotate(folder, case_id, "--minutes", 1, file="some.nii.gz")
    assert (code, "outside the list" in result["error"]) == (2, True)
    code, result, error = annotate(folder, case_id, "--minutes", 1, "--unknown", 255, file="some.nii.gz")
    assert code == 0, error
    assert result["not_labelled"] == pytest.approx(0.5, abs=0.05)


def _other_grid() -> Volume:
    affine = GRID.affine.copy()
    affine[0, 3] += 3.5
    return Volume(subject(0)[1].array, Geometry(GRID.shape, affine))


def _beside() -> Volume:
    return subject(0)[1].with_array((subject(0)[0].array == 0).astype(np.uint8))


@pytest.mark.parametrize(
    ("volume", "said"),
    [
        (_other_grid, "do not lie in the same place"),
        (
            lambda: Volume(
                np.ones((3, 4, 5), np.uint8), GRID.cropped([slice(0, 3), slice(0, 4), slice(0, 5)])
            ),
            "another grid",
        ),
        (lambda: subject(0)[1].with_array(subject(0)[1].array * 2), "outside the list; got 4, 6 in"),
        (lambda: subject(0)[1].with_array(subject(0)[1].array * 0), "nothing is labelled"),
        (_beside, "beside the brain"),
    ],
)
def test_labels_that_do_not_fit_are_refused_by_their_file_and_nothing_is_written(
    case: tuple[Path, str], volume: Any, said: str
) -> None:
    folder, case_id = case
    write_nifti(volume(), folder / "odd.nii.gz")
    with CaseStore(folder / "store", read_only=True) as store:
        before = store.case(case_id)
    code, result, error = annotate(folder, case_id, "--minutes", 1, file="odd.nii.gz")
    assert code == 2
    assert said in result["error"]
    assert "odd.nii.gz" in error
    with CaseStore(folder / "store", read_only=True) as store:
        assert store.case(case_id) == before


def test_what_cannot_be_is_refused(case: tuple[Path, str]) -> None:
    folder, case_id = case
    for options, said in (
        (("--minutes", -1), "no length of time"),
        (("--minutes", 1, "--labels", "csf,,wm"), "none twice"),
        (("--minutes", 1, "--image", "flair"), "no such image to label"),
        (("--minutes", 1, "--who", " "), "needs a name"),
    ):
        code, result, _ = annotate(folder, case_id, *options)
        assert (code, said in result["error"]) == (2, True), result
    code, result, _ = annotate(folder, case_id, "--minutes", 1, file="none.nii.gz")
    assert (code, "no such file" in result["error"]) == (2, True)
