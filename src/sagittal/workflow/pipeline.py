"""A case from its files to its report: which steps, in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sagittal.core import assets
from sagittal.core.errors import InputError
from sagittal.core.files import write_text
from sagittal.core.progress import Report, silent
from sagittal.records import simulate_record
from sagittal.workflow.artifacts import SourceFiles
from sagittal.workflow.models import DEFAULT_MODEL
from sagittal.workflow.runner import Runner
from sagittal.workflow.step import Step
from sagittal.workflow.steps import (
    DraftReport,
    MeasureCTSlice,
    ReadImage,
    ReadRecord,
    ReconstructCT,
    RegisterToAtlas,
    SegmentByNetwork,
    SegmentTissue,
    SimulateCTScan,
    SimulateDeformation,
    TakeRecord,
)

__all__ = [
    "DEMO_STAGES",
    "STAGES",
    "USUAL_STAGES",
    "Choices",
    "Sources",
    "Stage",
    "complete_case",
    "demo_sources",
    "plan",
    "run_case",
    "stages",
]


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Files of one case; whatever is there is used.

    Attributes:
        t1: Brain-masked T1 image: one file, or the DICOM files of a series.
        ct: One CT slice.
        record: The patient record, a text file.
        t1_note: What a reader must know of the T1 image.
        ct_note: What a reader must know of the CT slice.
        encoding: Encoding of the record.
    """

    t1: Sequence[Path] = ()
    ct: Sequence[Path] = ()
    record: Sequence[Path] = ()
    t1_note: str = ""
    ct_note: str = ""
    encoding: str = "utf-8"

    def files(self, name: str) -> Sequence[Path]:
        """Return the files of the stage that takes ``name``."""
        return {"t1": self.t1, "ct": self.ct, "record": self.record}[name]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a person chose for all cases.

    Attributes:
        model: Language model: an asset's name, a folder, or empty for none.
        atlas: What a head is registered to, and how.
    """

    model: str = DEFAULT_MODEL
    atlas: RegisterToAtlas = field(default_factory=RegisterToAtlas)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a person asks for by one word: the files it takes, and the steps that follow.

    Attributes:
        takes: Name of its files in :class:`Sources`; empty when it works on findings alone.
        steps: Makes its steps, in order, from the sources and what was chosen.
        usual: Whether it runs on a case's files where nobody named stages.
    """

    takes: str
    steps: Callable[[Sources, Choices], Sequence[Step]]
    usual: bool = True


def _read_t1(sources: Sources) -> ReadImage:
    return ReadImage(role="t1", title="T1 image", note=sources.t1_note)


def _read_ct(sources: Sources) -> ReadImage:
    return ReadImage(role="ct", title="CT slice", note=sources.ct_note, unit="HU")


def _tissue_network() -> SegmentByNetwork:
    """Return the step of the network that comes with the package, beside the method that needs none."""
    network = assets.asset("brain-tissue-t1")
    return SegmentByNetwork(model=network.name, sha256=network.sha256, channels=("t1",), beside="tissue")


STAGES: Mapping[str, Stage] = {
    "tissue": Stage(
        takes="t1",
        steps=lambda sources, _: [_read_t1(sources), SegmentTissue()],
    ),
    "tissue-network": Stage(
        takes="t1",
        steps=lambda sources, _: [_read_t1(sources), SegmentTissue(), _tissue_network()],
        usual=False,
    ),
    "atlas": Stage(
        takes="t1",
        steps=lambda sources, chosen: [_read_t1(sources), chosen.atlas],
        usual=False,
    ),
    "ct": Stage(
        takes="ct",
        steps=lambda sources, _: [_read_ct(sources), MeasureCTSlice()],
    ),
    "simulated-ct": Stage(
        takes="ct",
        steps=lambda sources, _: [
            _read_ct(sources),
            SimulateCTScan(),
            ReconstructCT(method="fbp", variance=True, scan="simulated-scan", role="ct-fbp"),
            ReconstructCT(
                method="edge-preserving-tv", variance=True, scan="simulated-scan", role="ct-low-dose"
            ),
            MeasureCTSlice(role="ct-low-dose", truth="ct-scanned"),
        ],
        usual=False,
    ),
    "simulated-atlas": Stage(
        takes="t1",
        steps=lambda sources, chosen: [
            _read_t1(sources),
            SimulateDeformation(),
            replace(chosen.atlas, role="t1-deformed", prefix="simulated-atlas", truth="t1-deformed-map"),
        ],
        usual=False,
    ),
    "record": Stage(
        takes="record",
        steps=lambda sources, chosen: [
            TakeRecord(encoding=sources.encoding),
            *([ReadRecord(model=chosen.model)] if chosen.model else []),
        ],
    ),
    "report": Stage(takes="", steps=lambda _, chosen: [DraftReport(model=chosen.model)]),
}
"""The stages by the name a person types, in the order in which they run."""

USUAL_STAGES = tuple(name for name, stage in STAGES.items() if stage.usual)
"""The stages that run where nobody named any. None of them simulates anything."""

DEMO_STAGES = tuple(name for name in STAGES if name != "atlas")
"""The stages of the demonstration's case, whose T1 image is the atlas itself: it is deformed first."""


def stages(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names in the order in which stages run.

    Raises:
        InputError: A name is unknown, or no stage is named that takes files.
    """
    for name in names:
        if name not in STAGES:
            raise InputError(
                "no step has this name", value=repr(name), expected=f"some of {', '.join(STAGES)}"
            )
    chosen = tuple(name for name in STAGES if name in names)
    if not any(STAGES[name].takes for name in chosen):
        takers = ", ".join(name for name, stage in STAGES.items() if stage.takes)
        raise InputError(
            "no step takes a file", value=", ".join(chosen) or "none", expected=f"one of {takers}"
        )
    return chosen


def plan(
    sources: Sources,
    names: Sequence[str] = USUAL_STAGES,
    *,
    model: str = DEFAULT_MODEL,
    atlas: RegisterToAtlas | None = None,
) -> list[Step]:
    """Return the steps of the named stages that have their files, each once.

    Raises:
        InputError: No file at all for these stages.
    """
    chosen = stages(names)
    given = [name for name in chosen if not STAGES[name].takes or sources.files(STAGES[name].takes)]
    if not any(STAGES[name].takes for name in given):
        raise InputError("a case needs at least one file", expected="a T1 image, a CT slice or a record")
    choices = Choices(model=model, atlas=atlas or RegisterToAtlas())
    steps: list[Step] = []
    for name in given:
        steps += [step for step in STAGES[name].steps(sources, choices) if step not in steps]
    return steps


def run_case(
    runner: Runner,
    sources: Sources,
    *,
    label: str,
    model: str = DEFAULT_MODEL,
    case_id: str | None = None,
    names: Sequence[str] = USUAL_STAGES,
    atlas: RegisterToAtlas | None = None,
) -> str:
    """Take files into a case, run every step that has its inputs, and return the case's id.

    Args:
        runner: Where the case is kept and models come from.
        sources: The files.
        label: What to call the case; should identify nobody.
        model: Language model: an asset's name, a folder, or empty for none (no record is read then, and
            rules word the impression).
        case_id: A case that was begun, to complete; what is in it already is not done again. Without one,
            a case is opened.
        names: Stages to run.
        atlas: The step that registers to an atlas, where it is not the one of the default atlas.

    Raises:
        InputError: No file at all, or a file that a step refuses. What was done before stays in the case.
    """
    steps = plan(sources, names, model=model, atlas=atlas)
    takes = dict.fromkeys(STAGES[name].takes for name in stages(names) if STAGES[name].takes)
    files = {f"{take}.files": sources.files(take) for take in takes if sources.files(take)}
    case_id = case_id or runner.store.create_case(label)
    complete_case(runner, case_id, files, steps)
    return case_id


def complete_case(
    runner: Runner,
    case_id: str,
    files: Mapping[str, Sequence[Path] | SourceFiles],
    steps: Sequence[Step],
) -> None:
    """Receive files into a case and run steps on it, leaving out what the case holds already.

    Killed anywhere and called again, it completes the case: nothing is in it twice.

    Raises:
        InputError: A file that a step refuses. What was done before stays in the case.
    """
    for role, given in files.items():
        runner.receive(case_id, role, given, once=True)
    for step in steps:
        runner.run(case_id, step, once=True)


def demo_sources(folder: Path, *, offline: bool | None = None, report: Report = silent) -> Sources:
    """Return the files of the demonstration case; the simulated record is written to ``folder``.

    Raises:
        AssetError: An image is not on this machine and cannot be fetched.
    """
    report("fetching the images of the demonstration, once")
    record = folder / "simulated-record.txt"
    write_text(record, simulate_record(seed=20).text)
    return Sources(
        t1=[assets.fetch(assets.asset("mni152-t1"), offline=offline)],
        ct=[assets.fetch(assets.asset("head-ct-slice"), offline=offline)],
        record=[record],
        t1_note="This is the MNI152 template, the average of 152 brains, masked: it shows no person. "
        "The averaging blurs folds, so volumes are not those of any single brain.",
        ct_note="One slice, not a series, of another person than anything else here: areas, no volumes.",
    )
