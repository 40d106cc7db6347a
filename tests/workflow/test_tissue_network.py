"""The network that comes with the package, beside the method that needs none: from an image to the report."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from sagittal.core import assets
from sagittal.reporting import SECTIONS
from sagittal.segmentation import model_from_bytes
from sagittal.workflow import artifacts
from sagittal.workflow.export import export_case
from sagittal.workflow.pipeline import DEMO_STAGES, USUAL_STAGES, Sources, run_case
from sagittal.workflow.runner import Runner

pytest.importorskip("torch")
CARD = Path(assets.__file__).parents[1] / "segmentation" / "weights" / "brain-tissue-t1.md"


@pytest.fixture
def case_id(runner: Runner, sources: Sources) -> str:
    only = replace(sources, ct=[], record=[])
    return run_case(runner, only, label="phantom", model="", names=["tissue-network", "report"])


def test_the_network_is_pinned_and_knows_what_it_learned_from() -> None:
    path = assets.fetch(assets.asset("brain-tissue-t1"), offline=True)
    model = model_from_bytes(path.read_bytes(), path)
    assert (model.config.channels, model.config.labels) == (("t1",), ("csf", "gm", "wm"))
    assert len(model.subjects) == 24
    assert len({digest for _, digest in model.subjects}) == 24, "no head twice"
    assert "24 simulated heads" in CARD.read_text(encoding="utf-8")


def test_both_methods_stand_in_the_case_and_what_they_disagree_on(runner: Runner, case_id: str) -> None:
    case = runner.store.case(case_id)
    assert [run.step for run in case.runs] == [
        *("receive", "read-image", "segment-tissue", "segment-by-network", "draft-report")
    ]
    (compared,) = case.standing("segmentation.disagreement")
    tissue, learned = (
        artifacts.load(runner.store.objects, case.latest(role)) for role in ("tissue", "segmentation")
    )
    either = (tissue.array > 0) | (learned.array > 0)
    apart = (tissue.array != learned.array)[either].mean()
    assert compared.content.details["share"] == pytest.approx(apart, abs=1e-6)
    for finding in case.standing("segmentation.volume"):
        assert "trained on 24 simulated subjects" in finding.content.caution
        assert "what 20 labelled subjects differed by" in finding.content.caution
        assert finding.content.measurement is not None
        assert finding.content.measurement.level == 0.95
    (network,) = (run for run in case.runs if run.step == "segment-by-network")
    assert network.models == {"brain-tissue-t1": assets.asset("brain-tissue-t1").sha256}


def test_the_report_shows_them_side_by_side(runner: Runner, case_id: str, tmp_path: Path) -> None:
    page = export_case(runner.store, case_id, tmp_path / "out").report.read_text(encoding="utf-8")
    section = re.search(r'<section[^>]*aria-labelledby="twice">.*?</section>', page, re.DOTALL)
    assert section is not None
    assert section[0].count("<figure>") == 4
    rows = re.findall(r'<th scope="row">([^<]+)</th><td>([^<]+)</td><td>([^<]+)</td>', section[0])
    assert [name for name, _, _ in rows] == ["Cerebrospinal fluid", "Grey matter", "White matter"]
    for _, field, network in rows:
        assert field != network
        assert "interval" in field
        assert "interval" in network
    assert SECTIONS["segmentation"] in page


def test_only_the_demonstration_takes_it_unasked() -> None:
    assert "tissue-network" in DEMO_STAGES
    assert "tissue-network" not in USUAL_STAGES
