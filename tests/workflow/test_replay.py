from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from sagittal.case.record import Verdict
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.pipeline import Sources, run_case
from sagittal.workflow.replay import replay
from sagittal.workflow.runner import Runner
from sagittal.workflow.steps import SegmentTissue


def test_replay_gives_identical_hashes_in_two_processes(runner: Runner, sources: Sources) -> None:
    case_id = run_case(runner, sources, label="test", model="")
    before = runner.store.case(case_id)
    runner.store.close()
    command = [str(Path(sys.executable).parent / "sagittal"), "case", "replay", case_id, "--json"]
    command += ["--store", str(runner.store.folder)]
    answers = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        answers.append(json.loads(done.stdout.splitlines()[-1]))
    assert answers[0] == answers[1]
    assert answers[0]["identical"] is True
    compared = {run["step"]: run["hashes"] for run in answers[0]["runs"]}
    again = {run["run"]: run["hashes"] for run in answers[0]["runs"]}
    for run in before.runs:
        assert {output.content for output in run.outputs} <= set(again[run.number])
    assert len(compared["segment-tissue"]) == 1 + 4
    assert runner.store.case(case_id) == before


def test_replay_sees_findings_as_they_stood_then(runner: Runner, sources: Sources) -> None:
    case_id = run_case(runner, sources, label="test", model="")
    for finding in runner.store.case(case_id).standing("tissue."):
        runner.store.judge(case_id, finding.number, Verdict.REJECTED, who="reader")
    runs = replay(runner.store, case_id, shelf=ModelShelf(offline=True))
    assert all(not run.differences for run in runs)


def test_replay_sees_findings_as_they_stood_when_the_clock_went_backwards(
    runner: Runner, sources: Sources, monkeypatch
) -> None:
    """Verdicts that came after the report, dated long before it, were not seen by it."""
    case_id = run_case(runner, sources, label="test", model="")
    monkeypatch.setattr("sagittal.case.changes.now", lambda: "1990-01-01T00:00:00.000+00:00")
    for finding in runner.store.case(case_id).standing("tissue."):
        runner.store.judge(case_id, finding.number, Verdict.REJECTED, who="reader")
    runs = replay(runner.store, case_id, shelf=ModelShelf(offline=True))
    assert all(not run.differences for run in runs)


def test_replay_names_what_differs(runner: Runner, sources: Sources, monkeypatch) -> None:
    case_id = run_case(runner, sources, label="test", model="")
    honest = SegmentTissue.run

    def drifted(self, inputs, context):
        result = honest(self, inputs, context)
        tissue = result.outputs["tissue"]
        changed = np.array(tissue.array)
        changed[0, 0, 0] = 3
        result.outputs["tissue"] = tissue.replace(array=changed)
        return result

    monkeypatch.setattr(SegmentTissue, "run", drifted)
    runs = {run.step: run for run in replay(runner.store, case_id, shelf=ModelShelf(offline=True))}
    assert [d.what for d in runs["segment-tissue"].differences] == ["output tissue"]
    assert runs["measure-ct-slice"].differences == ()


def test_a_content_changed_on_disk_is_a_difference_not_a_crash(runner: Runner, sources: Sources) -> None:
    case_id = run_case(runner, sources, label="test", model="")
    record = runner.store.case(case_id).latest("record")
    assert record is not None
    path = runner.store.objects.folder / record.content[:2] / f"{record.content[2:]}.bin"
    path.write_bytes(b"somebody changed this")
    runs = {run.step: run for run in replay(runner.store, case_id, shelf=ModelShelf(offline=True))}
    (difference,) = runs["take-record"].differences
    assert "has changed" in difference.replayed
    assert path.name in difference.replayed
    assert runs["segment-tissue"].differences == ()


def test_the_command_ends_with_status_1_when_something_differs(runner: Runner, sources: Sources) -> None:
    case_id = run_case(runner, sources, label="test", model="")
    files = runner.store.case(case_id).latest("ct.files")
    assert files is not None
    path = runner.store.objects.folder / files.content[:2] / f"{files.content[2:]}.bin"
    path.unlink()
    runner.store.close()
    command = [str(Path(sys.executable).parent / "sagittal"), "case", "replay", case_id]
    command += ["--store", str(runner.store.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "does not hold this content" in done.stdout
