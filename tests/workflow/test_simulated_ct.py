from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sagittal.case.record import Finding
from sagittal.case.store import CaseStore
from sagittal.reporting import SECTIONS
from sagittal.volume import Volume
from sagittal.workflow import artifacts
from sagittal.workflow.export import export_case
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.pipeline import DEMO_STAGES, USUAL_STAGES, Sources, complete_case, plan, run_case
from sagittal.workflow.replay import replay
from sagittal.workflow.runner import Runner
from sagittal.workflow.step import Context, Step
from sagittal.workflow.steps import DraftReport, MeasureCTSlice, ReconstructCT, SimulateCTScan
from simulated_pictures import require_four_pictures, require_nothing_simulated, section_of

pytest.importorskip("scipy")


def head_slice() -> Path:
    from pydicom.data import get_testdata_file

    path = get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False)
    assert path is not None
    return Path(path)


def small(step: Step) -> Step:
    """The same step on fewer pixels and views."""
    return replace(step, views=20, largest=64) if isinstance(step, SimulateCTScan) else step


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with CaseStore(tmp_path_factory.mktemp("simulated") / "store") as store:
        yield Runner(store=store, shelf=ModelShelf(offline=True), seed=7)


@pytest.fixture(scope="module")
def case_id(runner: Runner) -> str:
    """A case like the demonstration's, of its CT slice alone."""
    sources = Sources(ct=[head_slice()])
    steps = [small(step) for step in plan(sources, DEMO_STAGES, model="")]
    case_id = runner.store.create_case("simulated")
    complete_case(runner, case_id, {"ct.files": sources.ct}, steps)
    return case_id


@pytest.fixture(scope="module")
def findings(runner: Runner, case_id: str) -> tuple[Finding, ...]:
    return runner.store.case(case_id).standing("simulated-ct.")


def volume(runner: Runner, case_id: str, role: str) -> Volume:
    artifact = runner.store.case(case_id).latest(role)
    assert artifact is not None
    found = artifacts.load(runner.store.objects, artifact)
    assert isinstance(found, Volume)
    return found


def test_the_demonstration_scans_reconstructs_and_measures(runner: Runner, case_id: str) -> None:
    steps = [run.step for run in runner.store.case(case_id).runs]
    assert steps == [
        "receive",
        "read-image",
        "measure-ct-slice",
        "simulate-ct-scan",
        "reconstruct-ct",
        "reconstruct-ct",
        "measure-ct-slice",
        "draft-report",
    ]


def test_nothing_is_simulated_where_nobody_asked(runner: Runner) -> None:
    case_id = run_case(runner, Sources(ct=[head_slice()]), label="a user's", model="")
    assert {run.step for run in runner.store.case(case_id).runs} == {
        "receive",
        "read-image",
        "measure-ct-slice",
        "draft-report",
    }
    assert set(DEMO_STAGES) - set(USUAL_STAGES) == {"tissue-network", "simulated-ct", "simulated-atlas"}


def test_the_server_simulates_nothing(runner: Runner) -> None:
    from sagittal.workbench.server.worker import complete

    case_id = runner.store.create_case("of the server")
    runner.receive(case_id, "ct.files", [head_slice()])
    complete(str(runner.store.folder), runner.store.objects.folder, case_id, ["ct"], "utf-8")
    assert [run.step for run in runner.store.case(case_id).runs] == [
        "receive",
        "read-image",
        "measure-ct-slice",
        "draft-report",
    ]


def test_the_stage_is_there_for_who_names_it_alone() -> None:
    named = plan(Sources(ct=[head_slice()]), ["simulated-ct"], model="")
    assert [step.name for step in named][:2] == ["read-image", "simulate-ct-scan"]
    both = plan(Sources(ct=[head_slice()]), ["ct", "simulated-ct"], model="")
    assert [step.name for step in both].count("read-image") == 1


def test_every_finding_of_the_simulation_says_so(findings: tuple[Finding, ...]) -> None:
    assert {finding.content.code for finding in findings} == {
        f"simulated-ct.{what}" for what in ("scan", "reconstruction", "area", "mean", "deviation")
    }
    for finding in findings:
        content = finding.content
        assert "simulat" in content.subject, content
        assert "simulat" in (content.statement + content.caution).lower(), content


def test_the_simulation_has_a_section_of_its_own_and_no_place_in_the_impression(
    runner: Runner, case_id: str, findings: tuple[Finding, ...]
) -> None:
    artifact = runner.store.case(case_id).latest("report")
    assert artifact is not None
    draft = artifacts.load(runner.store.objects, artifact)
    sections = {section["title"]: section["sentences"] for section in draft["sections"]}
    held = [number for one in sections[SECTIONS["simulated-ct"]] for number in one["findings"]]
    assert held == [finding.number for finding in findings]
    assert not set(held) & set(draft["impression"]["findings"])
    assert "simulat" not in draft["impression"]["text"].lower()


def test_the_images_lie_on_one_grid_and_the_reconstructions_know_their_doubt(
    runner: Runner, case_id: str
) -> None:
    scanned = volume(runner, case_id, "ct-scanned")
    assert scanned.shape == (64, 64, 1)
    for role in ("ct-fbp", "ct-low-dose"):
        image = volume(runner, case_id, role)
        assert image.geometry == scanned.geometry
        assert image.unit == "HU"
        assert image.facts["simulated"] is True
        assert image.variance is not None
        assert np.median(np.sqrt(image.variance)) > 0.1


def test_findings_say_how_far_the_images_are_from_what_was_scanned(
    runner: Runner, case_id: str, findings: tuple[Finding, ...]
) -> None:
    scanned = volume(runner, case_id, "ct-scanned").array
    made = [f.content for f in findings if f.content.code == "simulated-ct.reconstruction"]
    assert [content.details["role"] for content in made] == ["ct-fbp", "ct-low-dose"]
    for content in made:
        apart = volume(runner, case_id, content.details["role"]).array.astype(np.float64) - scanned
        assert content.details["rmse"] == pytest.approx(np.sqrt(np.mean(apart**2)), abs=1e-3)
        assert f"{content.details['rmse']:.0f} HU off" in content.statement
        assert "1.96 standard deviations hold what was scanned" in content.caution
        assert "photon noise" in content.caution.lower()
    assert made[1].details["rmse"] < made[0].details["rmse"]


def test_what_is_measured_carries_the_variance(runner: Runner, case_id: str) -> None:
    image, scanned = volume(runner, case_id, "ct-low-dose"), volume(runner, case_id, "ct-scanned")
    assert image.variance is not None
    step = MeasureCTSlice(role="ct-low-dose", truth="ct-scanned")

    def widths(doubtful: Volume) -> dict[str, float]:
        result = step.run({"ct-low-dose": doubtful, "ct-scanned": scanned}, Context(seed=0))
        amounts = {one.subject: one.measurement for one in result.findings if one.measurement is not None}
        return {subject: amount.high - amount.low for subject, amount in amounts.items()}

    once, more = widths(image), widths(image.replace(variance=9 * image.variance))
    assert len(once) == 4
    assert all(more[subject] > once[subject] for subject in once)
    mean = "mean of soft tissue on the simulated scan"
    assert more[mean] == pytest.approx(3 * once[mean], rel=0.02)


def test_findings_say_whether_their_interval_holds_what_was_scanned(findings: tuple[Finding, ...]) -> None:
    for finding in findings:
        amount = finding.content.measurement
        if amount is None:
            continue
        said = re.search(r"scanned has ([-\d.]+) (cm2|HU), (inside|outside) the", finding.content.statement)
        assert said is not None, finding.content.statement
        tenth = 0.06  # what is said is rounded
        inside = amount.low - tenth <= float(said[1]) <= amount.high + tenth
        assert inside or said[3] == "outside"
        assert said[2] == amount.unit


def test_a_mean_in_hu_is_not_judged_by_its_size(findings: tuple[Finding, ...]) -> None:
    """Water is 0 HU: half the interval over the value would be anything."""
    mean = next(f.content for f in findings if f.content.code == "simulated-ct.mean")
    assert mean.measurement is not None
    assert mean.doubt is None
    assert replace(mean, measurement=replace(mean.measurement, unit="ml")).doubt is not None


def test_replay_gives_the_same_bits(runner: Runner, case_id: str) -> None:
    runs = replay(runner.store, case_id, shelf=ModelShelf(offline=True))
    assert [run.differences for run in runs] == [()] * 8
    assert sum(len(run.hashes) for run in runs) > 20


def test_the_report_shows_four_pictures_of_one_size(runner: Runner, case_id: str, tmp_path: Path) -> None:
    exported = export_case(runner.store, case_id, tmp_path / "out")
    section = section_of(exported, "low-dose")
    titles = [
        "Original",
        "FBP, simulated scan",
        "edge-preserving TV, simulated scan",
        "Its standard deviation",
    ]
    require_four_pictures(section, titles)
    assert "no patient was scanned like this" in section
    assert re.search(r"hold the original in \d+ % of the pixels where it is flat", section)
    assert re.search(r"black 0, white \d+ HU", section)


def test_nothing_simulated_leaves_as_an_observation_or_in_dicom(
    runner: Runner, case_id: str, tmp_path: Path
) -> None:
    exported = export_case(runner.store, case_id, tmp_path / "out")
    require_nothing_simulated(exported, runner.store, case_id)


def test_a_report_of_a_case_without_simulation_has_no_such_pictures(runner: Runner, tmp_path: Path) -> None:
    case_id = run_case(runner, Sources(ct=[head_slice()]), label="a user's", model="")
    assert (
        'aria-labelledby="low-dose"'
        not in export_case(runner.store, case_id, tmp_path / "out").report.read_text()
    )


def test_a_report_drafted_again_keeps_both_reconstructions(runner: Runner, case_id: str) -> None:
    """Neither run of the same step supersedes the other: they write other images."""
    runner.run(case_id, DraftReport(model=""))
    made = runner.store.case(case_id).standing("simulated-ct.reconstruction")
    assert [finding.content.details["method"] for finding in made] == ["fbp", "edge-preserving-tv"]


def test_a_reconstruction_has_the_role_that_it_was_given() -> None:
    step = ReconstructCT(method="fbp", scan="other", role="ct-other")
    assert (list(step.reads), list(step.writes)) == (["other.files"], ["ct-other"])
    assert list(ReconstructCT(method="fbp").reads) == ["scan.files"]
