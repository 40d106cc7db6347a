"""A case from its files to its report: which steps, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sagittal.core import assets
from sagittal.core.errors import InputError
from sagittal.core.files import write_text
from sagittal.core.progress import Report, silent
from sagittal.records import simulate_record
from sagittal.workflow.models import DEFAULT_MODEL
from sagittal.workflow.runner import Runner
from sagittal.workflow.step import Step
from sagittal.workflow.steps import (
    DraftReport,
    MeasureCTSlice,
    ReadImage,
    ReadRecord,
    SegmentTissue,
    TakeRecord,
)

__all__ = ["Sources", "demo_sources", "run_case"]


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


def run_case(runner: Runner, sources: Sources, *, label: str, model: str = DEFAULT_MODEL) -> str:
    """Open a case, take its files in, run every step that has its inputs, and return the case's id.

    Args:
        runner: Where the case is kept and models come from.
        sources: The files.
        label: What to call the case; should identify nobody.
        model: Language model: an asset's name, a folder, or empty for none (no record is read then, and
            rules word the impression).

    Raises:
        InputError: No file at all, or a file that a step refuses. What was done before stays in the case.
    """
    plan: list[tuple[str, Sequence[Path], list[Step]]] = [
        (
            "t1.files",
            sources.t1,
            [ReadImage(role="t1", title="T1 image", note=sources.t1_note), SegmentTissue()],
        ),
        (
            "ct.files",
            sources.ct,
            [ReadImage(role="ct", title="CT slice", note=sources.ct_note, unit="HU"), MeasureCTSlice()],
        ),
        (
            "record.files",
            sources.record,
            [TakeRecord(encoding=sources.encoding), *([ReadRecord(model=model)] if model else [])],
        ),
    ]
    given = [(role, paths, steps) for role, paths, steps in plan if paths]
    if not given:
        raise InputError("a case needs at least one file", expected="a T1 image, a CT slice or a record")
    case_id = runner.store.create_case(label)
    for role, paths, _ in given:
        runner.receive(case_id, role, paths)
    for _, _, steps in given:
        for step in steps:
            runner.run(case_id, step)
    runner.run(case_id, DraftReport(model=model))
    return case_id


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
