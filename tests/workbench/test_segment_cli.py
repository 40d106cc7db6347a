"""Networks are trained, used and judged on the cases of a store, or it is said why not."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from labelled_store import GRID, LABELS, add_case, annotate, labelled_store, subject
from sagittal.case.store import CaseStore
from sagittal.segmentation import model_from_bytes
from sagittal.volume import Geometry, Volume, write_nifti
from sagittal.workbench.cli import app
from sagittal.workflow import artifacts
from sagittal.workflow.correction import correct_mask
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.replay import replay
from sagittal.workflow.runner import Runner
from sagittal.workflow.steps import SegmentTissue

pytest.importorskip("torch")
pytest.importorskip("nibabel")
SMALL = ("--width", 4, "--depth", 1, "--steps", 40, "--batch", 2)


def call(*given: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(one) for one in given])
    return done.exit_code, done.stdout, done.stderr


def result(*given: object) -> dict[str, Any]:
    code, out, error = call(*given, "--json")
    assert code == 0, error
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def refused(*given: object) -> str:
    code, _, error = call(*given)
    assert code == 2, error
    return " ".join(error.split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a store of five labelled cases, and a model trained on four of them."""
    folder = tmp_path_factory.mktemp("trained")
    labelled_store(folder, 5)[0].close()
    said = result("segment", "train", "--out", folder / "model", "--cases", folder / "store", *SMALL)
    return folder, said


def store_with(folder: Path, count: int) -> Path:
    labelled_store(folder, count)[0].close()
    return folder / "store"


def another(folder: Path, seed: int, image: Volume | None = None) -> str:
    with CaseStore(folder / "store") as store:
        return add_case(store, folder / "files", image or subject(seed)[0], f"s{seed}")


# What is trained


def test_a_training_writes_a_model_and_how_good_it_is(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, said = trained
    model = model_from_bytes((folder / "model" / "model.safetensors").read_bytes())
    assert (model.config.channels, model.config.labels, model.steps) == (("t1",), LABELS, 40)
    assert said["subjects"] == [name for name, _ in model.subjects]
    held = [one["subject"] for one in said["held_out"]["subjects"]]
    assert len(said["subjects"]) == 4
    assert len(held) == 1
    assert not set(held) & set(said["subjects"])
    assert said["held_out"]["dice_mean"] > 0.8
    assert "6 held-out subjects are needed" in said["held_out"]["for_an_interval"]
    kept = json.loads((folder / "model" / "training.json").read_text(encoding="utf-8"))
    assert len(kept["losses"]) == 40
    assert kept["losses"][-1] < kept["losses"][0]
    assert sorted(path.name for path in (folder / "model").iterdir()) == [
        "model.safetensors",
        "training.json",
    ]


def test_a_model_segments_a_case_it_has_not_seen(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    case_id = another(folder, 20)
    said = result("segment", "predict", folder / "model", "--case", case_id, "--cases", folder / "store")
    with CaseStore(folder / "store") as store:
        case = store.case(case_id)
        found = artifacts.load(store.objects, case.latest("segmentation"))
        _, labels = subject(20)
        assert np.mean(found.array == labels.array) > 0.95
        assert not [one for one in replay(store, case_id, shelf=ModelShelf(offline=True)) if one.differences]
    volumes = [one for one in said["findings"] if one["code"] == "segmentation.volume"]
    assert [one["details"]["class"] for one in volumes] == list(LABELS)
    for number, one in enumerate(volumes, 1):
        truth = GRID.voxel_volume_ml * np.count_nonzero(labels.array == number)
        assert one["measurement"]["value"] == pytest.approx(truth, rel=0.25)


def test_it_says_where_it_disagrees_with_the_method_that_needs_no_training(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = trained
    case_id = another(folder, 21)
    with CaseStore(folder / "store") as store:
        Runner(store=store, shelf=ModelShelf(offline=True)).run(case_id, SegmentTissue())
    said = result("segment", "predict", folder / "model", "--case", case_id, "--cases", folder / "store")
    (one,) = (one for one in said["findings"] if one["code"] == "segmentation.disagreement")
    with CaseStore(folder / "store") as store:
        case = store.case(case_id)
        mine, other = (artifacts.load(store.objects, case.latest(r)) for r in ("segmentation", "tissue"))
    apart = (mine.array != other.array)[(mine.array > 0) | (other.array > 0)].mean()
    assert one["details"]["share"] == pytest.approx(apart, abs=1e-6)


def test_a_model_is_judged_on_cases_it_has_not_seen(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, said = trained
    added = []
    for seed in (30, 31):
        added.append(another(folder, seed))
        with CaseStore(folder / "store") as store:
            annotate(store, folder / "files", added[-1], subject(seed)[1])
    out = folder / "out.json"
    page = folder / "out.html"
    judge = ("segment", "evaluate", folder / "model", "--cases", folder / "store")
    code, text, error = call(*judge, "--json", out, "--page", page)
    assert code == 0, error
    found = json.loads(out.read_text(encoding="utf-8"))
    assert {one["case"] for one in found["cases"]} == set(added)
    trained_or_held = [*said["subjects"], *(one["subject"] for one in said["held_out"]["subjects"])]
    assert sorted(found["left_out"]) == sorted(trained_or_held)
    means = [np.mean([s["dice"] for s in one["labels"].values()]) for one in found["cases"]]
    assert means == sorted(means), "the worst first"
    assert found["volume_intervals"] == 6
    right = [[s["covered"] for s in one["labels"].values()] for one in found["cases"]]
    assert (found["volume_intervals_held"], found["volume_interval_coverage"]) == (
        np.sum(right),
        pytest.approx(np.mean(right)),
    )
    low, high = found["volume_interval_coverage_interval"]
    assert 0 <= low <= found["volume_interval_coverage"] <= high <= 1
    assert high - low > 0.8, "two people say little"
    told = f"{100 * low:.0f} to {100 * high:.0f} %"
    assert f"volumes: {np.sum(right)} of 6 intervals of 95 % hold the labels'" in text
    assert f"95 % interval of that share {told}" in text
    assert 0 <= found["ece"]["equal_width"] < 0.2
    assert all(case_id in text for case_id in added)
    shown = page.read_text(encoding="utf-8")
    assert "http" not in shown.replace("http-equiv", "")
    assert f"with a 95 % interval of {told} from 2 cases" in shown
    assert [shown.index(f">{one['case']} <small>") for one in found["cases"]] == sorted(
        shown.index(f">{case_id} <small>") for case_id in added
    )
    assert shown.count("<circle") == len(found["reliability"]["count"])
    assert sum(found["reliability"]["count"]) == sum(
        int(np.count_nonzero(subject(seed)[1].array)) for seed in (30, 31)
    )
    (points,) = re.findall(r'<polyline class="line" points="([^"]+)"', shown)
    assert len(points.split()) == 40
    (folder / "model" / "training.json").rename(folder / "kept.json")
    assert call(*judge, "--page", page)[0] == 0
    assert "No training.json lies beside the model" in page.read_text(encoding="utf-8")
    (folder / "model" / "training.json").write_text("{", encoding="utf-8")
    assert "training.json: the history of the training is damaged" in refused(*judge, "--page", page)
    (folder / "kept.json").rename(folder / "model" / "training.json")


def test_labels_that_are_a_proposal_as_it_was_are_told(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    model = trained[0] / "model"
    shutil.copytree(trained[0] / "store", tmp_path / "store")
    store_folder, page = tmp_path / "store", tmp_path / "page.html"
    ids = [another(tmp_path, seed) for seed in (40, 41)]
    for case_id in ids:
        result("segment", "predict", model, "--case", case_id, "--cases", store_folder)
    with CaseStore(store_folder) as store:
        said = artifacts.load(store.objects, store.case(ids[0]).latest("segmentation"))
        annotate(store, tmp_path / "files", ids[0], said.with_array(said.array.astype(np.uint8)))
        annotate(store, tmp_path / "files", ids[1], subject(41)[1])
    out = tmp_path / "out.json"
    judge = ("segment", "evaluate", model, "--cases", store_folder)
    code, text, error = call(*judge, "--json", out, "--page", page)
    assert code == 0, error
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["as_proposed"] == [ids[0]]
    (same,) = (one for one in found["cases"] if one["case"] == ids[0])
    assert min(score["dice"] for score in same["labels"].values()) > 0.95
    others = [one for one in found["cases"] if one["case"] != ids[0]]
    means = [np.mean([s["dice"] for s in one["labels"].values()]) for one in others]
    assert found["dice_mean_of_others"] == pytest.approx(np.mean(means))
    assert found["as_proposed_by_itself"] == [ids[0]]
    assert set(found["calibrated_on"]) == {one["case"] for one in others}
    with CaseStore(store_folder) as store:
        kept = [
            artifacts.load(store.objects, store.case(n).latest("annotation")) for n in found["calibrated_on"]
        ]
    assert sum(found["reliability"]["count"]) == sum(np.count_nonzero(labels.array) for labels in kept)
    held = [score["covered"] for one in others for score in one["labels"].values()]
    assert (found["volume_intervals"], found["volume_intervals_held"]) == (len(held), sum(held))
    assert "volumes leave its own out" in text
    said_so = f"nobody changed a voxel of what networks proposed ({ids[0]}), in 1 of this network's own"
    assert said_so in text
    assert said_so in page.read_text(encoding="utf-8")


def test_a_later_proposal_does_not_hide_that_labels_are_an_earlier_one(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    shutil.copytree(trained[0] / "store", folder)
    case_id = another(tmp_path, 42)
    train = ("segment", "train", "--out", tmp_path / "other", "--cases", folder, *SMALL, "--seed", 1)
    result(*train)
    for model in (trained[0] / "model", tmp_path / "other"):
        result("segment", "predict", model, "--case", case_id, "--cases", folder)
    with CaseStore(folder) as store:
        runs = [run for run in store.case(case_id).runs if run.step == "segment-by-network"]
        first, second = (artifacts.load(store.objects, run.outputs[0]) for run in runs)
        drawn = first.with_array(first.array.astype(np.uint8))
        assert np.count_nonzero(first.array != second.array) > 0
        write_nifti(drawn, tmp_path / "labels.nii.gz")
    given = ("annotate", "import", tmp_path / "labels.nii.gz", "--case", case_id, "--minutes", 1)
    assert result(*given, "--cases", folder)["changed"] == 0
    for model, own in ((trained[0] / "model", [case_id]), (tmp_path / "other", [])):
        out = tmp_path / "out.json"
        assert call("segment", "evaluate", model, "--cases", folder, "--json", out)[0] == 0
        found = json.loads(out.read_text(encoding="utf-8"))
        assert (found["as_proposed"], found["as_proposed_by_itself"]) == ([case_id], own)
        every = {one["case"] for one in found["cases"]}
        assert set(found["calibrated_on"]) == (every - set(own) or every)


def test_a_mask_that_a_person_corrected_in_the_case_is_no_proposal(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    shutil.copytree(trained[0] / "store", folder)
    case_id = another(tmp_path, 43)
    result("segment", "predict", trained[0] / "model", "--case", case_id, "--cases", folder)
    with CaseStore(folder) as store:
        kept = store.case(case_id).latest("segmentation")
        assert kept is not None
        said = artifacts.load(store.objects, kept)
        mended = said.array.astype(np.uint8)
        mended[tuple(np.argwhere(mended == 1)[:5].T)] = 2
        drawn = Volume(mended, said.geometry)
        correct_mask(store, case_id, "segmentation", drawn, edited=kept.content, who="Ada")
    write_nifti(drawn, tmp_path / "labels.nii.gz")
    given = ("annotate", "import", tmp_path / "labels.nii.gz", "--case", case_id, "--minutes", 1)
    assert result(*given, "--cases", folder)["changed"] == 5


def test_killed_and_called_again_a_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    store = store_with(tmp_path, 4)
    options = ["--cases", store, "--width", 4, "--depth", 1, "--steps", 150, "--batch", 2]

    def command(out: str) -> Sequence[str]:
        given = ["segment", "train", "--out", tmp_path / out, *options, "--json"]
        start = "import sys; from sagittal.workbench.cli import main; sys.argv[0] = 'sagittal'; main()"
        return [sys.executable, "-c", start, *(str(one) for one in given)]

    running = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = tmp_path / "killed" / "training.safetensors"
    deadline = time.monotonic() + 120
    while not state.is_file() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert state.is_file()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    other = [*command("killed")[:3], *command("killed")[3:]]
    other[other.index("--steps") + 1] = "160"
    refusal = subprocess.run(other, capture_output=True, text=True, check=False)
    assert "the training that was begun there differs in steps" in " ".join(refusal.stderr.split())
    again = subprocess.run(command("killed"), capture_output=True, text=True, check=True)
    assert json.loads(again.stdout.splitlines()[-1])["resumed_at"] >= 50
    subprocess.run(command("whole"), capture_output=True, text=True, check=True)
    killed, whole = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "whole"))
    assert killed == whole
    assert not state.exists()


def test_from_enough_held_out_subjects_volumes_have_an_interval_that_was_earned(tmp_path: Path) -> None:
    store = store_with(tmp_path, 8)
    train = ("segment", "train", "--out", tmp_path / "m", "--cases", store, *SMALL, "--held-out", 5)
    held = result(*train)["held_out"]["volumes"]
    assert (held["subjects"], held["of"]) == (5, 15)
    assert 0 <= held["held"] <= 15
    case_id = another(tmp_path, 40)
    said = result("segment", "predict", tmp_path / "m", "--case", case_id, "--cases", store)
    scaling = model_from_bytes((tmp_path / "m" / "model.safetensors").read_bytes()).volumes
    assert scaling is not None
    with CaseStore(store) as opened:
        found = artifacts.load(opened.objects, opened.case(case_id).latest("segmentation"))
        annotate(opened, tmp_path / "files", case_id, subject(40)[1])
    sums = found.probabilities.sum(axis=(0, 1, 2), dtype=np.float64) * GRID.voxel_volume_ml
    volumes = [one for one in said["findings"] if one["code"] == "segmentation.volume"]
    for one, (low, high) in zip(volumes, scaling.intervals(sums, level=0.95), strict=True):
        assert (one["measurement"]["low"], one["measurement"]["high"]) == pytest.approx((low, high))
        assert "what 5 labelled subjects differed by" in one["caution"]
    out = tmp_path / "out.json"
    assert call("segment", "evaluate", tmp_path / "m", "--cases", store, "--json", out)[0] == 0
    assert json.loads(out.read_text(encoding="utf-8"))["volume_intervals_from"] == "5 held-out subjects"


def test_from_too_few_the_interval_is_that_of_the_probabilities(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, said = trained
    assert said["held_out"]["volumes"]["why_not"] == "3 held-out subjects are needed; there are 1"
    case_id = another(folder, 24)
    found = result("segment", "predict", folder / "model", "--case", case_id, "--cases", folder / "store")
    for one in found["findings"][:3]:
        assert "from the probabilities alone" in one["caution"]


def test_volume_change_and_rotation_against_the_atlas_are_channels(tmp_path: Path) -> None:
    store = store_with(tmp_path, 4)
    for name, seed in (("atlas", 90), ("other", 91)):
        write_nifti(subject(seed)[0], tmp_path / f"{name}.nii.gz")
    train = ("segment", "train", "--out", tmp_path / "m", "--cases", store, "--channels", "t1,jacobian,curl")
    said = result(*train, "--atlas", tmp_path / "atlas.nii.gz", *SMALL)
    assert said["config"]["channels"] == ["t1", "jacobian", "curl_x", "curl_y", "curl_z"]
    assert said["held_out"]["dice_mean"] > 0.6
    case_id = another(tmp_path, 41)
    predict = ("segment", "predict", tmp_path / "m", "--case", case_id, "--cases", store, "--atlas")
    refusal = refused(*predict, tmp_path / "other.nii.gz")
    assert "the model was trained with another atlas" in refusal
    found = result(*predict, tmp_path / "atlas.nii.gz")
    assert [one["code"] for one in found["findings"]].count("segmentation.volume") == 3
    with CaseStore(store) as opened:
        kept = artifacts.load(opened.objects, opened.case(case_id).latest("segmentation"))
        assert np.mean(kept.array == subject(41)[1].array) > 0.8


# What is refused


def test_too_few_labelled_subjects(tmp_path: Path) -> None:
    said = refused("segment", "train", "--out", tmp_path / "m", "--cases", store_with(tmp_path, 2), *SMALL)
    assert "too few labelled subjects; got 2 with labels csf, gm, wm" in said
    assert "expected 3 or more to train; for an interval of how good the model is, 6 held out" in said
    assert "and for one of volumes 3" in said
    assert not (tmp_path / "m").exists()


def test_a_labelled_subject_under_two_ids(tmp_path: Path) -> None:
    store = store_with(tmp_path, 3)
    twin = another(tmp_path, 0)
    with CaseStore(store) as opened:
        annotate(opened, tmp_path / "files", twin, subject(0)[1])
    said = refused("segment", "train", "--out", tmp_path / "m", "--cases", store, *SMALL)
    assert "one labelled subject is in the store under two ids" in said
    assert twin in said
    assert "the same image" in said


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    store_with(tmp_path, 1)
    case_id = another(tmp_path, 9)
    labels = subject(9)[1]
    other = Geometry.from_spacing(labels.shape, (7.0, 7.0, 7.0), origin=(3.0, 0.0, 0.0))
    write_nifti(Volume(labels.array, other), tmp_path / "grid.nii.gz")
    write_nifti(labels.with_array(np.where(labels.array == 3, 7, labels.array)), tmp_path / "value.nii.gz")
    common = ("--case", case_id, "--minutes", 5, "--who", "Ada", "--store", tmp_path / "store")
    assert "grid.nii.gz" in refused("annotate", "import", tmp_path / "grid.nii.gz", *common)
    said = refused("annotate", "import", tmp_path / "value.nii.gz", *common)
    assert "value.nii.gz" in said
    assert "7" in said
    with CaseStore(tmp_path / "store") as store:
        assert store.case(case_id).latest("annotation") is None


def test_a_channel_that_a_case_lacks(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    store = store_with(tmp_path, 3)
    said = refused(
        *("segment", "train", "--out", tmp_path / "m", "--cases", store, "--channels", "t1,flair", *SMALL)
    )
    assert "a channel of the case is missing; got flair; expected an image for each of t1, flair" in said
    folder, _ = trained
    with CaseStore(folder / "store") as opened:
        bare = opened.create_case("no image")
    said = refused("segment", "predict", folder / "model", "--case", bare, "--cases", folder / "store")
    assert f"case {bare}: a channel of the case is missing; got t1" in said


def test_a_folder_that_holds_something_else(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = trained
    train = ("segment", "train", "--cases", folder / "store", *SMALL)
    assert "the folder holds a model already" in refused(*train, "--out", folder / "model")
    broken = tmp_path / "model.safetensors"
    broken.write_bytes((folder / "model" / "model.safetensors").read_bytes()[:-100])
    case_id = another(folder, 22)
    predict = ("--case", case_id, "--cases", folder / "store")
    assert "model.safetensors" in refused("segment", "predict", broken, *predict)
    broken.write_bytes(b"not a model")
    said = refused("segment", "predict", tmp_path, *predict)
    assert "expected a segmentation model that sagittal segment train has written" in said
    assert "there is no model" in refused("segment", "predict", tmp_path / "nowhere", *predict)


def test_a_mirrored_image_is_warned_of(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    image, _ = subject(23)
    affine = image.geometry.affine.copy()
    affine[0] *= -1
    mirrored = Volume(image.array, Geometry(image.shape, affine), unit=image.unit)
    case_id = another(folder, 23, mirrored)
    said = result("segment", "predict", folder / "model", "--case", case_id, "--cases", folder / "store")
    cautions = " ".join(one["caution"] for one in said["findings"])
    assert "axes are mirrored against those of every image of training (LAS here, RAS there)" in cautions


def test_a_model_whose_cases_were_all_seen_cannot_be_judged(tmp_path: Path) -> None:
    store = store_with(tmp_path, 3)
    result("segment", "train", "--out", tmp_path / "m", "--cases", store, *SMALL[:-4], "--steps", 2)
    said = refused("segment", "evaluate", tmp_path / "m", "--cases", store)
    assert "no labelled case is left to judge on; got 3 with labels csf, gm, wm, all seen in training" in said


def test_a_model_leaves_as_onnx(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    folder, _ = trained
    said = result("segment", "export-onnx", folder / "model", "--out", tmp_path / "net.onnx")
    assert said["config"]["channels"] == ["t1"]
    found = onnx.load(tmp_path / "net.onnx")
    assert [one.name for one in found.graph.input] == ["channels"]
    assert "there is no model" in refused("segment", "export-onnx", tmp_path, "--out", tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()
