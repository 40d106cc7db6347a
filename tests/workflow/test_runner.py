from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sagittal.case.record import FindingDraft, Verdict
from sagittal.case.store import CaseStore
from sagittal.core.errors import InputError
from sagittal.workflow.artifacts import Kind
from sagittal.workflow.pipeline import Sources, run_case
from sagittal.workflow.replay import step_from_record
from sagittal.workflow.runner import Runner
from sagittal.workflow.step import Context, Result, Step
from sagittal.workflow.steps import DraftReport, SegmentTissue


@dataclass(frozen=True, kw_only=True)
class CountLetters(Step):
    name: ClassVar[str] = "test-count-letters"
    version: ClassVar[str] = "1"
    doubt: ClassVar[str] = "none"
    uses: ClassVar[tuple[str, ...]] = ("image.",)

    letter: str = "a"
    writes_wrong_role: bool = False

    @property
    def reads(self) -> Mapping[str, Kind]:
        return {"record": Kind.TEXT}

    @property
    def writes(self) -> Mapping[str, Kind]:
        return {"count": Kind.JSON}

    def run(self, inputs: Mapping[str, Any], context: Context) -> Result:
        count = inputs["record"].count(self.letter)
        statement = f"{count} letters {self.letter}, seed {context.seed}, {len(context.findings)} findings."
        return Result(
            outputs={"other" if self.writes_wrong_role else "count": {"count": count}},
            findings=[FindingDraft(code="record.letters", subject="letters", statement=statement)],
        )


def test_the_runner_writes_the_provenance(runner: Runner, sources: Sources) -> None:
    case_id = run_case(runner, sources, label="test", model="")
    run = runner.run(case_id, CountLetters(letter="e"))
    case = runner.store.case(case_id)
    assert (run.step, run.version, run.parameters) == (
        "test-count-letters",
        "1",
        {"letter": "e", "writes_wrong_role": False},
    )
    assert run.inputs == (case.latest("record"),)
    assert run.outputs == (case.latest("count"),)
    assert run.used == tuple(f.number for f in case.standing("image."))
    assert len(run.used) == 2
    assert run.findings == (case.findings[-1].content.content_hash,)
    assert run.environment["packages"]["sagittal"]
    assert f"seed {run.seed}," in case.findings[-1].content.statement


def test_each_step_has_a_seed_of_its_own_that_follows_from_the_runners(
    runner: Runner, sources: Sources
) -> None:
    case_id = run_case(runner, sources, label="test", model="")
    first = runner.run(case_id, CountLetters())
    again = runner.run(case_id, CountLetters())
    other = replace(runner, seed=8).run(case_id, CountLetters())
    assert first.seed == again.seed != other.seed
    assert len({run.seed for run in runner.store.case(case_id).runs if run.step.endswith("tissue")}) == 1


def test_a_missing_input_is_named(runner: Runner) -> None:
    case_id = runner.store.create_case("empty")
    with pytest.raises(InputError, match="segment-tissue.*no such input.*t1"):
        runner.run(case_id, SegmentTissue())
    assert runner.store.case(case_id).runs == ()


def test_a_step_that_writes_another_role_than_it_declares_leaves_no_run(
    runner: Runner, sources: Sources
) -> None:
    case_id = run_case(runner, sources, label="test", model="")
    before = runner.store.case(case_id)
    with pytest.raises(InputError, match="other roles.*other.*count"):
        runner.run(case_id, CountLetters(writes_wrong_role=True))
    assert runner.store.case(case_id) == before


def test_a_missing_file_is_named_and_no_file_at_all_is_refused(runner: Runner, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.nii.*no such file"):
        run_case(runner, Sources(t1=[tmp_path / "nowhere.nii"]), label="x", model="")
    with pytest.raises(InputError, match="at least one file"):
        run_case(runner, Sources(), label="x", model="")


def test_a_reader_s_refusal_names_the_user_s_file_not_the_copy(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "broken.nii.gz"
    path.write_bytes(b"")
    with pytest.raises(InputError) as caught:
        run_case(runner, Sources(t1=[path]), label="x", model="")
    assert str(caught.value).startswith("broken.nii.gz: ")


def test_a_report_leaves_out_what_was_rejected_and_keeps_what_was_corrected(
    runner: Runner, sources: Sources
) -> None:
    store: CaseStore = runner.store
    case_id = run_case(runner, sources, label="test", model="")
    volumes = store.case(case_id).standing("tissue.volume")
    store.judge(case_id, volumes[0].number, Verdict.REJECTED, who="reader")
    corrected = replace(volumes[1].content, statement="Grey matter: corrected by hand.", measurement=None)
    store.supersede(case_id, volumes[1].number, corrected, who="reader")
    runner.run(case_id, DraftReport(model=""))
    from sagittal.workflow import artifacts

    report = store.case(case_id).latest("report")
    assert report is not None
    text = str(artifacts.load(store.objects, report))
    assert volumes[0].content.statement not in text
    assert volumes[1].content.statement not in text
    assert "corrected by hand" in text


def test_a_wide_interval_is_said_to_be_wide(runner: Runner, sources: Sources) -> None:
    from sagittal.core.provenance import Measurement

    store = runner.store
    case_id = run_case(runner, sources, label="test", model="")
    old = store.case(case_id).standing("tissue.volume")[0]
    wide = Measurement(value=100, low=40, high=160, level=0.9, unit="ml")
    store.supersede(case_id, old.number, replace(old.content, measurement=wide), who="reader")
    runner.run(case_id, DraftReport(model=""))
    from sagittal.workflow import artifacts

    artifact = store.case(case_id).latest("report")
    assert artifact is not None
    report = artifacts.load(store.objects, artifact)
    sentences = [s for section in report["sections"] for s in section["sentences"]]
    cautions = {s["text"]: s["caution"] for s in sentences}
    assert "interval is wide" in cautions[old.content.statement]


def test_steps_are_rebuilt_from_their_record_or_refused() -> None:
    step = step_from_record("draft-report", DraftReport.version, {**DraftReport(beams=(2, 3)).parameters})
    assert step == DraftReport(beams=(2, 3))
    with pytest.raises(InputError, match="no step has this name.*unheard-of"):
        step_from_record("unheard-of", "1", {})
    with pytest.raises(InputError, match="changed since the run.*version 1.*0"):
        step_from_record("draft-report", "0", {})
    with pytest.raises(InputError, match="does not take these parameters"):
        step_from_record("draft-report", "1", {"colour": "red"})


def test_a_step_without_a_word_on_doubt_cannot_be_written() -> None:
    with pytest.raises(TypeError, match="Silent declares no doubt"):

        class Silent(Step):
            name: ClassVar[str] = "silent"
            version: ClassVar[str] = "1"
