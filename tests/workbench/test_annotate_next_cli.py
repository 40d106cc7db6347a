"""What to annotate next, from the command line: a small store, networks that learned a little."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from atlas_phantom import upright
from labelled_store import LABELS, add_case, annotate, labelled_store, subject
from sagittal.case.store import CaseStore
from sagittal.volume import read_nifti, reorient, write_nifti
from sagittal.workbench.cli import app
from sagittal.workflow import artifacts
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.replay import replay

pytest.importorskip("torch")
pytest.importorskip("scipy")
pytest.importorskip("nibabel")

SPACING = (7.0, 7.0, 7.0)


def write_model(path: Path, images: list[Any], seed: int, **told: Any) -> None:
    from sagittal.segmentation import NetworkConfig, train
    from sagittal.segmentation.network_file import model_bytes

    config = NetworkConfig(
        **{"dimensions": 2, "width": 2, "depth": 1, "patch": (24, 24), "spacing_mm": SPACING} | told
    )
    done = train(images, config, seed=seed, steps=12, batch=4, rate=2e-2)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model_bytes(done.model))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labelled people, three without labels, and three networks."""
    from sagittal.workflow.labelled import labelled_cases

    folder = tmp_path_factory.mktemp("queue")
    store, _ = labelled_store(folder, 2)
    with store:
        for seed in (2, 3, 4):
            add_case(store, folder / "files", subject(seed)[0], f"s{seed}")
        images = [one.image(store, ("t1",), SPACING)[0] for one in labelled_cases(store, LABELS)]
    for seed in range(3):
        write_model(folder / f"model-{seed}" / "model.safetensors", images, seed)
    write_model(folder / "other-labels" / "model.safetensors", images, 0, labels=("a", "b", "c"))
    two = [replace(one, channels=np.concatenate([one.channels] * 2)) for one in images]
    write_model(folder / "flair" / "model.safetensors", two, 0, channels=("t1", "flair"))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A store of the test's own beside the networks."""
    shutil.copytree(made / "store", tmp_path / "store")
    return tmp_path


def ask(made: Path, folder: Path, *options: object, models: tuple[str, ...] = ("model-0", "model-1")) -> Any:
    given: list[object] = ["annotate", "next", "--cases", folder / "store", "--json"]
    for name in models:
        given += ["--model", made / name]
    done = CliRunner().invoke(app, [str(one) for one in (*given, *options)])
    return done.exit_code, json.loads(done.stdout.splitlines()[-1]), done.stderr


def ids(folder: Path) -> list[str]:
    with CaseStore(folder / "store", read_only=True) as store:
        return list(store.case_ids())


def test_cases_without_labels_are_queued_within_the_minutes(made: Path, folder: Path) -> None:
    code, whole, error = ask(made, folder, "--budget-minutes", 600)
    assert code == 0, error
    assert sorted(item["case"] for item in whole["items"]) == sorted(ids(folder)[2:])
    assert {item["label"] for item in whole["items"]} == {"s2", "s3", "s4"}
    assert (whole["networks"], whole["candidates"]) == (2, 3)
    assert whole["minutes_basis"].startswith("2 logged annotations and a prior")
    for item in whole["items"]:
        assert item["minutes"]["low"] < item["minutes"]["value"] < item["minutes"]["high"]
        assert "mean disagreement" in item["reason"]
    spent = whole["total"]["value"]
    code, part, error = ask(made, folder, "--budget-minutes", 0.7 * spent)
    assert code == 0, error
    assert 0 < part["total"]["value"] <= 0.7 * spent
    assert 0 < len(part["items"]) < 3


@pytest.mark.parametrize("method", ["uncertainty", "entropy", "cover", "core-set", "random"])
def test_a_number_of_units_by_each_method(made: Path, folder: Path, method: str) -> None:
    code, found, error = ask(made, folder, "--budget-number", 2, "--method", method, models=("model-0",))
    assert code == 0, error
    assert (len(found["items"]), found["method"]) == (2, method)
    assert any("single network" in note for note in found["notes"])


def test_a_person_reads_a_table_and_the_sum(made: Path, folder: Path) -> None:
    given = [
        "annotate",
        "next",
        "--cases",
        folder / "store",
        "--model",
        made / "model-0",
        "--budget-number",
        1,
    ]
    done = CliRunner().invoke(app, [*map(str, given), "--unit", "slice", "--plane", "coronal"])
    assert done.exit_code == 0, done.stderr
    assert re.search(r"coronal, y = -?\d+ mm", done.stdout)
    assert re.search(r"1 of \d+ candidates, chosen by weighted-cover .*minutes, 90 % interval", done.stdout)
    assert "note: what the minutes rest on: 2 logged annotations" in done.stdout


@pytest.mark.parametrize("unit", ["volume", "slice", "patch"])
def test_proposals_are_corrected_and_imported_and_not_asked_for_again(
    made: Path, folder: Path, unit: str
) -> None:
    number = {"volume": 1, "slice": 4, "patch": 1}[unit]
    options = ("--budget-number", number, "--unit", unit, "--proposals", folder / "files")
    code, found, error = ask(made, folder, *options, "--page", folder / "queue.html")
    assert code == 0, error
    page = (folder / "queue.html").read_text()
    assert page.count("<section") == number
    assert found["page"] == str(folder / "queue.html")
    case_id, path = next(iter(found["proposals"].items()))
    image, labels = (
        read_nifti(folder / "files" / f"{case_id}-{what}.nii.gz") for what in ("image", "labels")
    )
    assert labels.geometry.is_aligned(image.geometry)
    assert set(np.unique(labels.array)) <= {0, 1, 2, 3, 255}
    assert (labels.array == 255).any() == (unit == "slice")  # here a patch is as large as the image
    assert not list((folder / "files").glob("*.json"))
    taken = ["annotate", "import", path, "--case", case_id, "--minutes", 6, "--cases", folder / "store"]
    taken += ["--who", "Ada", "--unknown", 255]
    shutil.copytree(folder / "store", folder / "untouched")
    done = CliRunner().invoke(
        app, [str(folder / "untouched" if one == folder / "store" else one) for one in taken]
    )
    assert "note: no voxel differs from what was proposed for this case" in done.stdout
    drawn = labels.array.copy()
    drawn[(drawn == 1) & (image.array > 0)] = 2
    write_nifti(labels.with_array(drawn), path, sidecar=False)
    done = CliRunner().invoke(app, [str(one) for one in (*taken, "--json")])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["changed"] == np.count_nonzero(drawn != labels.array) > 0
    with CaseStore(folder / "store", read_only=True) as store:
        artifact = store.case(case_id).latest("annotation")
        assert artifact is not None
        kept = artifacts.load(store.objects, artifact).array
        np.testing.assert_array_equal(kept, np.where(drawn == 255, -1, drawn.astype(int)))
        assert not [run for run in replay(store, case_id, shelf=ModelShelf(offline=True)) if run.differences]
    asked = {(item["case"], *item["start"]) for item in found["items"] if item["case"] == case_id}
    code, after, error = ask(made, folder, "--budget-minutes", 10_000, "--unit", unit)
    assert code == 0, error
    assert asked.isdisjoint((item["case"], *item["start"]) for item in after["items"])
    assert "3 logged annotations" in after["minutes_basis"]


def test_networks_that_see_volume_change_and_rotation_are_asked_too(tmp_path: Path) -> None:
    store, _ = labelled_store(tmp_path, 4)
    with store:
        for seed in (4, 5):
            add_case(store, tmp_path / "files", subject(seed)[0], f"s{seed}")
    for name, seed in (("atlas", 90), ("other", 91)):
        write_nifti(subject(seed)[0], tmp_path / f"{name}.nii.gz")
    given = ["segment", "train", "--out", tmp_path / "model", "--cases", tmp_path / "store"]
    given += ["--channels", "t1,jacobian,curl", "--atlas", tmp_path / "atlas.nii.gz"]
    given += ["--width", 2, "--depth", 1, "--steps", 20]
    done = CliRunner().invoke(app, [str(one) for one in given])
    assert done.exit_code == 0, done.stderr
    asked = ("--budget-number", 1, "--proposals", tmp_path / "out", "--page", tmp_path / "queue.html")
    code, found, _ = ask(tmp_path, tmp_path, *asked, "--atlas", tmp_path / "other.nii.gz", models=("model",))
    assert code == 2
    assert "the model was trained with another atlas" in found["error"]
    assert not (tmp_path / "out").exists()
    code, found, error = ask(
        tmp_path, tmp_path, *asked, "--atlas", tmp_path / "atlas.nii.gz", models=("model",)
    )
    assert code == 0, error
    assert found["candidates"] == 2
    (path,) = found["proposals"].values()
    assert set(np.unique(read_nifti(path).array)) <= {0, 1, 2, 3}


def test_what_a_person_began_with_is_never_overwritten(made: Path, folder: Path) -> None:
    options = ("--budget-number", 3, "--proposals", folder / "files")
    assert ask(made, folder, *options)[0] == 0
    before = {path: path.read_bytes() for path in (folder / "files").iterdir()}
    code, found, _ = ask(made, folder, *options)
    assert (code, "labels are there already" in found["error"]) == (2, True)
    assert {path: path.read_bytes() for path in (folder / "files").iterdir()} == before


@pytest.mark.parametrize(
    ("options", "models", "said"),
    [
        ((), ("model-0",), "no such budget; got none"),
        (("--budget-minutes", 0), ("model-0",), "no such budget; got 0 minutes"),
        (("--budget-number", -2), ("model-0",), "no such budget; got -2 units"),
        (("--budget-number", 2, "--budget-minutes", 5), ("model-0",), "not both"),
        (("--budget-number", 1, "--unit", "head"), ("model-0",), "--unit: no such choice; got head"),
        (("--budget-number", 1, "--method", "best"), ("model-0",), "--method: no such choice; got best"),
        (("--budget-number", 1, "--plane", "up"), ("model-0",), "--plane: no such choice; got up"),
        (("--budget-number", 1), (), "no model is given"),
        (("--budget-number", 1), ("files",), "there is no model"),
        (("--budget-number", 1), ("files/s0.nii.gz",), "this is no segmentation model"),
        (("--budget-number", 1), ("model-0", "model-0"), "a network is given twice"),
        (("--budget-number", 1), ("model-0", "other-labels"), "the networks are no ensemble"),
        (
            ("--budget-number", 1),
            ("flair",),
            "trained for other channels than the cases have; got t1; expected t1, flair",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(
    made: Path, folder: Path, options: tuple[object, ...], models: tuple[str, ...], said: str
) -> None:
    code, found, error = ask(made, folder, *options, models=models)
    assert code == 2, error
    assert said in found["error"]


def test_a_store_that_is_not_there_is_not_made(made: Path, tmp_path: Path) -> None:
    code, found, _ = ask(made, tmp_path, "--budget-number", 1)
    assert (code, list(tmp_path.iterdir())) == (2, []), found


def test_nothing_labelled_is_said_and_nothing_left_is_refused(made: Path, folder: Path) -> None:
    with CaseStore(folder / "bare" / "store") as store:
        add_case(store, folder / "files", subject(5)[0], "alone")
    code, found, error = ask(made, folder / "bare", "--budget-number", 1)
    assert code == 0, error
    assert any("no case of the store is labelled with csf, gm, wm" in note for note in found["notes"])
    assert "no minutes are logged" in found["minutes_basis"]
    with CaseStore(folder / "store") as store:
        for seed, case_id in zip((2, 3, 4), ids(folder)[2:], strict=True):
            annotate(store, folder / "files", case_id, subject(seed)[1])
    code, found, _ = ask(made, folder, "--budget-number", 1)
    assert code == 2
    assert "nothing is left to annotate; got 5 of 5 cases are labelled" in found["error"]


def test_slices_are_proposed_where_they_lie_on_a_finer_grid_with_other_axes(made: Path, folder: Path) -> None:
    image, _ = subject(6, upright(5.0))
    with CaseStore(folder / "fine" / "store") as store:
        case_id = add_case(store, folder / "files", reorient(image, "PSL"), "fine")
    options = ("--budget-number", 1, "--unit", "slice", "--proposals", folder / "out")
    code, found, error = ask(made, folder / "fine", *options)
    assert code == 0, error
    labels = read_nifti(found["proposals"][case_id])
    assert labels.geometry.axis_codes == ("P", "S", "L")
    (item,) = found["items"]
    asked = np.argwhere(labels.array != 255)
    heights = labels.geometry.index_to_world(asked)[:, 2]
    assert np.abs(heights - item["middle_mm"][2]).max() <= 3.5  # half of a slice of 7 mm
    assert len(asked) == labels.array.size / labels.shape[1] * len(set(asked[:, 1]))
    taken = ["annotate", "import", found["proposals"][case_id], "--case", case_id, "--minutes", 1]
    told = ["--unknown", 255, "--store", folder / "fine" / "store"]
    done = CliRunner().invoke(app, [str(one) for one in (*taken, *told)])
    assert done.exit_code == 0, done.stderr
    code, after, error = ask(made, folder / "fine", "--budget-number", 99, "--unit", "slice")
    assert code == 0, error
    assert item["start"] not in [other["start"] for other in after["items"]]
    assert len(after["items"]) == found["candidates"] - 1
