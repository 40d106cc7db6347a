"""What the worker process of a server does: functions that it imports, with arguments that travel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sagittal.case.store import CaseStore
from sagittal.workflow.models import ModelShelf
from sagittal.workflow.pipeline import STAGES, USUAL_STAGES, Choices, Sources, complete_case
from sagittal.workflow.runner import Runner
from sagittal.workflow.steps import DraftReport

__all__ = ["complete", "draft_report", "measure_roles"]


def draft_report(location: str, objects: Path, case_id: str, model: str) -> None:
    """Draft a case's report with a language model for the impression."""
    with CaseStore(location, objects=objects) as store:
        _runner(store).run(case_id, DraftReport(model=model))


def complete(location: str, objects: Path, case_id: str, roles: Sequence[str], encoding: str) -> None:
    """Run the steps that follow from received files, and draft the report by rules."""
    with CaseStore(location, objects=objects) as store:
        sources = Sources(encoding=encoding)
        usual = [STAGES[name] for name in USUAL_STAGES]
        stages = [stage for stage in usual if not stage.takes or stage.takes in roles]
        steps = [step for stage in stages for step in stage.steps(sources, Choices(model=""))]
        complete_case(_runner(store), case_id, {}, steps)


def measure_roles(location: str, objects: Path, case_id: str, roles: Sequence[str]) -> None:
    """Measure the images that a case received, and draft its report by rules."""
    from sagittal.workflow.exchange import measure

    with CaseStore(location, objects=objects) as store:
        measure(_runner(store), case_id, roles)


def _runner(store: CaseStore) -> Runner:
    return Runner(store=store, shelf=ModelShelf())
