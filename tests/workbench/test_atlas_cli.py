from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import sagittal.registration as registration
from known_fields import bump, centred
from sagittal.volume import Volume, read_nifti, write_nifti
from sagittal.workbench.cli import app

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("one_thread")

GRID = centred((30, 32, 1), (2.5, 2.5, 2.5), np.eye(3))
NAMES = ("a.nii.gz", "b.nii.gz", "c.nii.gz")


def atlas(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["atlas", "build", *(str(argument) for argument in arguments)])


def person(seed: int) -> tuple[Volume, Volume]:
    """A slice of a bent body, and labels of it."""
    index = np.stack(np.meshgrid(*map(np.arange, GRID.shape), indexing="ij"), axis=-1)
    points = GRID.index_to_world(index)
    x, y, _ = np.moveaxis(points + bump(9, (45, 45, 45), seed)(points) * [1, 1, 0], -1, 0)
    body = 1 / (1 + np.exp(np.hypot(x / 26, y / 30) * 20 - 20))
    core = 1 / (1 + np.exp(np.hypot(x - 8, y - 4) - 9))
    labels = Volume((np.hypot(x - 8, y - 4) < 9).astype(np.uint8), GRID)
    return Volume((100 * body - 60 * core).astype(np.float32), GRID), labels


@pytest.fixture
def subjects(tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        image, labels = person(seed)
        for folder, volume in (("subjects", image), ("labels", labels)):
            (tmp_path / folder).mkdir(exist_ok=True)
            write_nifti(volume, tmp_path / folder / name)
    return tmp_path / "subjects"


@pytest.fixture
def registrations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fast registrations that are counted; after as many as the second number says, they are cut off."""
    counted, plain = [0, -1], registration.register

    def register(moving: Volume, fixed: Volume, **options: Any) -> Any:
        if counted[0] == counted[1]:
            raise KeyboardInterrupt
        counted[0] += 1
        return plain(moving, fixed, iterations=(15, 8), **options)

    monkeypatch.setattr(registration, "register", register)
    return counted


def test_an_atlas_with_labels_is_made(subjects: Path, registrations: list[int], tmp_path: Path) -> None:
    out, told_in = tmp_path / "out" / "atlas.nii.gz", tmp_path / "told.json"
    labels = tmp_path / "labels"
    result = atlas(subjects, "--out", out, "--labels-dir", labels, "--json", told_in, "--start", "b")
    assert result.exit_code == 0, result.output
    told = json.loads(told_in.read_text())
    assert told["subjects"] == list(NAMES)
    assert told["start"] == "b.nii.gz"
    assert told["registrations"] == {"made": 8, "kept_from_before": 0}
    assert told["centred"]["displacement_mm"] < told["rounds"][0]["displacement_mm"]
    assert abs(told["centred"]["log_jacobian"]) < 0.03
    assert read_nifti(out).variance is not None
    found = read_nifti(out.with_name("atlas_labels.nii.gz"))
    assert found.classes == ("1",)
    sizes = [np.count_nonzero(read_nifti(labels / name).array) for name in NAMES]
    assert 0.8 * min(sizes) < np.count_nonzero(found.array) < 1.2 * max(sizes)
    assert not out.with_name("atlas.work").exists()
    assert "b.nii.gz is" in result.stdout


def test_an_interrupted_run_goes_on(subjects: Path, registrations: list[int], tmp_path: Path) -> None:
    out = tmp_path / "atlas.nii.gz"
    registrations[1] = 3
    stopped = atlas(subjects, "--out", out, "--iterations", 2)
    assert stopped.exit_code == 130
    assert "the same command goes on" in stopped.stderr
    assert not out.exists()
    registrations[:] = 0, -1
    again = atlas(subjects, "--out", out, "--iterations", 2, "--json", "-")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout.splitlines()[-1])["registrations"] == {"made": 2, "kept_from_before": 3}
    whole = atlas(subjects, "--out", tmp_path / "whole.nii.gz", "--iterations", 2)
    assert whole.exit_code == 0
    assert read_nifti(out).content_hash == read_nifti(tmp_path / "whole.nii.gz").content_hash


def test_a_changed_subject_is_registered_again(
    subjects: Path, registrations: list[int], tmp_path: Path
) -> None:
    arguments = (subjects, "--out", tmp_path / "atlas.nii.gz", "--iterations", 1, "--work", tmp_path / "work")
    assert atlas(*arguments).exit_code == 0
    assert registrations[0] == 2
    write_nifti(person(7)[0], subjects / "c.nii.gz")
    told = json.loads(atlas(*arguments, "--json", "-").stdout.splitlines()[-1])
    assert told["registrations"] == {"made": 1, "kept_from_before": 1}
    assert told["work"] == str(tmp_path / "work")
    assert len(list((tmp_path / "work").iterdir())) == 3


def test_a_damaged_part_is_made_again(subjects: Path, registrations: list[int], tmp_path: Path) -> None:
    arguments = (subjects, "--out", tmp_path / "atlas.nii.gz", "--iterations", 1, "--work", tmp_path / "work")
    assert atlas(*arguments).exit_code == 0
    before = read_nifti(tmp_path / "atlas.nii.gz").content_hash
    part = sorted((tmp_path / "work").iterdir())[0]
    part.write_bytes(part.read_bytes()[:200])
    assert atlas(*arguments).exit_code == 0
    assert registrations[0] == 3
    assert read_nifti(tmp_path / "atlas.nii.gz").content_hash == before


def test_other_files_in_the_work_folder_stay(
    subjects: Path, registrations: list[int], tmp_path: Path
) -> None:
    note = tmp_path / "atlas.work" / "note.npz"
    note.parent.mkdir()
    note.write_text("mine")
    assert atlas(subjects, "--out", tmp_path / "atlas.nii.gz", "--iterations", 1).exit_code == 0
    assert [path.name for path in note.parent.iterdir()] == ["note.npz"]


def test_a_subject_that_fails_is_told(
    subjects: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = registration.register

    def register(moving: Volume, fixed: Volume, **options: Any) -> Any:
        found = plain(moving, fixed, iterations=(15, 8), **options)
        monkeypatch.setattr(type(found), "problems", ("it folds",) if moving.array[0, 0, 0] > 0.5 else ())
        return found

    monkeypatch.setattr(registration, "register", register)
    odd = read_nifti(subjects / "c.nii.gz")
    corner = odd.array.copy()
    corner[:3, :3] = 200
    write_nifti(odd.with_array(corner), subjects / "c.nii.gz")
    result = atlas(subjects, "--out", tmp_path / "atlas.nii.gz", "--iterations", 1)
    assert result.exit_code == 0, result.output
    assert "template 1, without c.nii.gz: it folds" in result.stderr


def bad_file(subjects: Path) -> str:
    (subjects / "notes.txt").write_text("no image")
    return "notes.txt"


def one_subject(subjects: Path) -> str:
    for name in NAMES[1:]:
        (subjects / name).unlink()
        (subjects / name.replace(".nii.gz", ".json")).unlink()
    return "several subjects"


def constant(subjects: Path) -> str:
    write_nifti(person(0)[0].with_array(np.ones(GRID.shape)), subjects / "b.nii.gz")
    return "b.nii.gz: the image is constant"


def not_a_number(subjects: Path) -> str:
    nibabel = pytest.importorskip("nibabel")
    values = person(0)[0].array.copy()
    values[4, 4] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, GRID.affine), subjects / "d.nii.gz")
    return "d.nii.gz"


def a_volume(subjects: Path) -> str:
    deep = centred((30, 32, 8), (2.5, 2.5, 2.5), np.eye(3))
    write_nifti(Volume(np.repeat(person(0)[0].array, 8, axis=2), deep), subjects / "c.nii.gz")
    return "c.nii.gz: slices and volumes"


def nothing(subjects: Path) -> str:
    shutil.rmtree(subjects)
    return "no such folder"


@pytest.mark.parametrize("spoil", [bad_file, one_subject, constant, not_a_number, a_volume, nothing])
def test_what_has_no_atlas_is_refused_by_name(
    spoil: Any, subjects: Path, registrations: list[int], tmp_path: Path
) -> None:
    message = spoil(subjects)
    out = tmp_path / "out" / "atlas.nii.gz"
    result = atlas(subjects, "--out", out)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not out.exists()
    assert not out.with_name("atlas.work").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--start", "z"), "no such subject"),
        (("--labels-dir", "{subjects}/none"), "no such folder"),
        (("--labels-dir", "{empty}"), "has no labels"),
        (("--out", "{subjects}/atlas.nii.gz"), "among the subjects"),
        (("--out", "{empty}/atlas.png"), "not a NIfTI"),
        (("--out", "{subjects}/a.nii.gz/atlas.nii.gz"), "a file is where a folder is needed"),
        (("--iterations", "0"), "iterations"),
    ],
)
def test_options_that_cannot_be_followed_are_refused_before_any_registration(
    arguments: tuple[str, ...], message: str, subjects: Path, registrations: list[int], tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    given = [argument.format(subjects=subjects, empty=empty) for argument in arguments]
    result = atlas(subjects, "--out", tmp_path / "atlas.nii.gz", *given)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert registrations[0] == 0
