from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sagittal.case.store import CaseStore
from sagittal.core.progress import Report, silent
from sagittal.records import simulate_record
from sagittal.workflow import artifacts
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.pipeline import Sources, run_case
from sagittal.workflow.runner import Runner

pytestmark = pytest.mark.model


@dataclass
class OneModel(ModelShelf):
    """A shelf with one model on it, whatever is asked for."""

    model: Any

    def get(self, name: str, *, report: Report = silent) -> Any:
        return self.model


@pytest.fixture(scope="module")
def language_model(language_model_path: Path) -> Any:
    from sagittal.language import load_language_model

    return load_language_model(language_model_path)


def test_a_record_longer_than_the_context_is_read_in_parts_and_says_so(
    store: CaseStore, tmp_path: Path, language_model: Any
) -> None:
    record = tmp_path / "record.txt"
    record.write_text(simulate_record(seed=3, entries=60).text)
    short = replace(language_model, context_length=1400)
    runner = Runner(store=store, shelf=OneModel(short))
    case_id = run_case(runner, Sources(record=[record]), label="test")
    case = store.case(case_id)
    (reading,) = case.standing("record.reading")
    assert reading.content.details["parts"] == 3
    assert "in 3 parts, because it is longer than the model's context" in reading.content.statement
    artifact = case.latest("reading")
    assert artifact is not None
    transcript = artifacts.load(store.objects, artifact)["transcript"]
    assert sorted({answer["part"] for answer in transcript}) == [1, 2, 3]
    lines = record.read_text().splitlines()
    quoted = [answer["quote"] for answer in transcript if answer["quote"]]
    assert quoted
    for quote in quoted:
        assert lines[quote["line"] - 1] == quote["text"]
        assert record.read_text()[quote["start"] :].startswith(quote["text"])


def test_an_answer_that_no_line_holds_is_refused_and_said(
    store: CaseStore, tmp_path: Path, language_model: Any
) -> None:
    record = tmp_path / "record.txt"
    record.write_text("2024-05-06 Nursing: slept well.\n2024-05-07 Dietary advice repeated.\n")
    runner = Runner(store=store, shelf=OneModel(language_model))
    case_id = run_case(runner, Sources(record=[record]), label="test")
    case = store.case(case_id)
    assert case.standing("record.quote") == ()
    (unanswered,) = case.standing("record.unanswered")
    assert "Which drug is the patient allergic to?" in unanswered.content.statement
    (run,) = (run for run in case.runs if run.step == "read-record")
    assert run.models == {"smollm2-135m-instruct": language_model.weights_sha256}
