"""The demonstration's head: deformed in simulation, and registered back to the atlas it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlas_phantom import head, head_labels, oblique, upright
from sagittal.case.record import Finding
from sagittal.case.store import CaseStore
from sagittal.reporting import SECTIONS
from sagittal.volume import Volume, write_nifti
from sagittal.workflow import artifacts
from sagittal.workflow.export import export_case
from sagittal.workflow.map_files import file_fields
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.pipeline import DEMO_STAGES, Sources, complete_case, plan
from sagittal.workflow.replay import replay
from sagittal.workflow.runner import Runner
from sagittal.workflow.step import Context, Step
from sagittal.workflow.steps import SegmentTissue, SimulateDeformation
from sagittal.workflow.steps.registration import to_atlas
from simulated_pictures import require_four_pictures, require_nothing_simulated, section_of

pytest.importorskip("torch")
pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_nifti(head(upright()), folder / "atlas.nii.gz")
    write_nifti(head_labels(upright()), folder / "labels.nii.gz")
    write_nifti(head(oblique()), folder / "other.nii.gz")
    return folder


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with CaseStore(tmp_path_factory.mktemp("simulated") / "store") as store:
        yield Runner(store=store, shelf=ModelShelf(offline=True), seed=7)


def made(runner: Runner, files: Path, image: str) -> str:
    """A case like the demonstration's, of its head alone; tissue is another test's."""
    atlas = replace(to_atlas(str(files / "atlas.nii.gz"), str(files / "labels.nii.gz")), spacing_mm=4.0)

    def small(step: Step) -> Step:
        return replace(step, spacing_mm=4.0) if isinstance(step, SimulateDeformation) else step

    sources = Sources(t1=[files / image])
    steps = [small(step) for step in plan(sources, DEMO_STAGES, model="", atlas=atlas)]
    case_id = runner.store.create_case("simulated")
    kept = [step for step in steps if not isinstance(step, SegmentTissue)]
    complete_case(runner, case_id, {"t1.files": sources.t1}, kept)
    return case_id


@pytest.fixture(scope="module")
def case_id(runner: Runner, files: Path) -> str:
    return made(runner, files, "atlas.nii.gz")


@pytest.fixture(scope="module")
def findings(runner: Runner, case_id: str) -> tuple[Finding, ...]:
    return runner.store.case(case_id).standing("simulated-atlas.")


def value(runner: Runner, case_id: str, role: str) -> object:
    artifact = runner.store.case(case_id).latest(role)
    assert artifact is not None
    return artifacts.load(runner.store.objects, artifact)


def test_the_demonstration_deforms_its_head_before_it_is_registered(runner: Runner, case_id: str) -> None:
    steps = [run.step for run in runner.store.case(case_id).runs]
    assert steps == ["receive", "read-image", "simulate-deformation", "register-to-atlas", "draft-report"]


def test_every_finding_of_the_simulation_says_so(findings: tuple[Finding, ...]) -> None:
    assert {finding.content.code for finding in findings} == {
        f"simulated-atlas.{what}" for what in ("deformation", "registration", "volume-change", "label")
    }
    for finding in findings:
        content = finding.content
        assert "simulat" in content.subject, content
        assert "simulat" in content.statement.lower(), content
    assert "No person's head was ever like this" in findings[0].content.caution


def test_the_simulation_has_a_section_of_its_own_and_no_place_in_the_impression(
    runner: Runner, case_id: str, findings: tuple[Finding, ...]
) -> None:
    draft = value(runner, case_id, "report")
    assert isinstance(draft, dict)
    sections = {section["title"]: section["sentences"] for section in draft["sections"]}
    held = [number for one in sections[SECTIONS["simulated-atlas"]] for number in one["findings"]]
    assert held == [finding.number for finding in findings]
    assert not set(held) & set(draft["impression"]["findings"])


def test_what_is_said_of_the_error_is_what_the_known_map_says(runner: Runner, case_id: str) -> None:
    said = value(runner, case_id, "simulated-atlas-registration")
    error, change = (value(runner, case_id, f"simulated-atlas-{name}") for name in ("error", "volume-change"))
    truth = file_fields(value(runner, case_id, "t1-deformed-map.files"))["to-origin.nii"]  # type: ignore[arg-type]
    found = file_fields(value(runner, case_id, "simulated-atlas-map.files"))["to-atlas.nii"]  # type: ignore[arg-type]
    assert isinstance(said, dict)
    assert isinstance(error, Volume)
    assert isinstance(change, Volume)
    inside = head_labels(found.geometry).array > 0
    apart = np.linalg.norm(found.vectors - truth.vectors, axis=0)[inside]
    assert said["against_truth"]["median_mm"] == pytest.approx(float(np.median(apart)), rel=0.2)
    assert said["against_truth"]["median_mm"] < said["against_truth"]["before_mm"]
    assert error.unit == "mm"
    known = value(runner, case_id, "t1-deformed-volume-change")
    assert isinstance(known, Volume)
    assert change.variance is not None
    held = np.abs(change.array - known.array) <= 1.96 * np.sqrt(change.variance)
    assert said["against_truth"]["change_held"] == pytest.approx(float(held[inside].mean()), abs=0.1)


def test_the_deformation_is_smooth_and_is_the_one_that_is_told(runner: Runner, case_id: str) -> None:
    truth = file_fields(value(runner, case_id, "t1-deformed-map.files"))["to-origin.nii"]  # type: ignore[arg-type]
    known = value(runner, case_id, "t1-deformed-volume-change")
    assert isinstance(known, Volume)
    assert truth.folds == 0
    assert float(known.array.max()) > 0.4
    assert float(known.array.min()) < -0.4
    np.testing.assert_allclose(known.array, -truth.log_jacobian().array, atol=1e-5)


def test_doubt_blurs_the_labels(runner: Runner, case_id: str) -> None:
    labels, error = (value(runner, case_id, f"simulated-atlas-{name}") for name in ("labels", "error"))
    assert isinstance(labels, Volume)
    assert isinstance(error, Volume)
    assert labels.probabilities is not None
    step = next(s for s in runner.store.case(case_id).runs if s.step == "register-to-atlas")
    assert "blurs the labels" in step.doubt
    sure = labels.probabilities.max(axis=-1) > 0.99
    assert 0 < np.mean(sure[labels.array > 0]) < 0.9


def test_replay_gives_the_same_bits(runner: Runner, case_id: str) -> None:
    runs = replay(runner.store, case_id, shelf=ModelShelf(offline=True))
    assert [run.differences for run in runs] == [()] * 5


def test_the_report_shows_the_change_that_is_known_and_the_one_found(
    runner: Runner, case_id: str, tmp_path: Path
) -> None:
    exported = export_case(runner.store, case_id, tmp_path / "out")
    section = section_of(exported, "simulated-atlas")
    require_four_pictures(
        section,
        [
            "The head that was deformed",
            "Known volume change",
            "Volume change found",
            "Its standard deviation",
        ],
    )
    assert "no person’s head was ever like this" in section
    assert re.search(r"hold the known volume change in \d+ % of the head", section)


def test_nothing_simulated_leaves_as_an_observation_or_in_dicom_or_nifti(
    runner: Runner, case_id: str, tmp_path: Path
) -> None:
    exported = export_case(runner.store, case_id, tmp_path / "out")
    require_nothing_simulated(exported, runner.store, case_id)
    assert not list(exported.folder.rglob("*.nii.gz"))


def test_no_truth_is_claimed_where_the_atlas_is_another_head(runner: Runner, files: Path) -> None:
    case_id = made(runner, files, "other.nii.gz")
    said = value(runner, case_id, "simulated-atlas-registration")
    assert isinstance(said, dict)
    assert "against_truth" not in said
    statement = runner.store.case(case_id).standing("simulated-atlas.registration")[0].content.statement
    assert "known map" not in statement


def test_the_simulated_head_is_the_same_for_the_same_seed(files: Path) -> None:
    from sagittal.volume import read_volume

    image = read_volume(files / "atlas.nii.gz")
    step = SimulateDeformation(spacing_mm=8.0)
    one, two, three = (step.run({"t1": image}, Context(seed=seed)).outputs for seed in (1, 1, 2))
    assert one["t1-deformed"].content_hash == two["t1-deformed"].content_hash
    assert one["t1-deformed"].content_hash != three["t1-deformed"].content_hash
