"""Findings as a structured report, and objects that join the study that was received."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from highdicom import seg, sr
from pydicom.sr.codedict import codes

from sagittal.case.record import FindingDraft, Verdict
from sagittal.core.errors import InputError
from sagittal.volume import read_nifti, write_dicom_series
from sagittal.workflow.export import export_case
from sagittal.workflow.export.dicom import write_dicom
from sagittal.workflow.export.dicom_sr import COVERAGE, REVIEW
from sagittal.workflow.pipeline import Sources, run_case
from sagittal.workflow.runner import Runner

NAME = "Żółć^Łukasz"


def _received(sources: Sources, folder: Path, **changes: Any) -> list[Path]:
    paths = write_dicom_series(read_nifti(sources.t1[0]), folder, modality="MR", study_uid="1.2.3.4")
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.PatientName, dataset.PatientID, dataset.StudyDate = NAME, "4711", "20240131"
        for name, value in changes.items():
            setattr(dataset, name, value)
            if value is None:
                del dataset[name]
        dataset.save_as(path)
    return paths


@pytest.fixture
def case_id(runner: Runner, sources: Sources, tmp_path: Path) -> str:
    received = Sources(t1=_received(sources, tmp_path / "received"), ct=sources.ct)
    return run_case(runner, received, label="x", model="")


def _write(runner: Runner, case_id: str, role: str, folder: Path, **options: Any) -> Any:
    return write_dicom(runner.store, runner.store.case(case_id), role, folder, **options)


def _groups(path: Path) -> list[Any]:
    report = sr.EnhancedSR.from_dataset(pydicom.dcmread(path))
    container = next(
        item for item in report.content[0].ContentSequence if item.name == codes.DCM.ImagingMeasurements
    )
    return list(container.ContentSequence)


def _items(node: Any, name: Any) -> list[Any]:
    return [item for item in node.ContentSequence if item.name == name]


def test_each_finding_is_a_group_with_its_number_and_interval(
    runner: Runner, case_id: str, tmp_path: Path
) -> None:
    written = _write(runner, case_id, "t1", tmp_path / "out")
    groups = _groups(written.report)
    findings = [
        f for f in runner.store.case(case_id).standing() if f.content.code.startswith(("image", "tissue"))
    ]
    findings = [f for f in findings if f.content.subject != "CT slice"]
    assert len(groups) == len(findings) == 5
    for group, finding in zip(groups, findings, strict=True):
        assert finding.content.statement in [item.value for item in _items(group, codes.DCM.Comment)]
        (review,) = _items(group, REVIEW)
        assert review.value == "not reviewed"
        numbers = [item for item in group.ContentSequence if item.ValueType == "NUM"]
        amount = finding.content.measurement
        assert len(numbers) == (amount is not None)
        if amount is None:
            continue
        (number,) = numbers
        assert (number.name, number.unit.value) == (codes.SCT.Volume, "mL")
        assert number.value == pytest.approx(amount.value)
        upper, lower, coverage = number.ContentSequence
        assert (upper.name.value, lower.name.value) == ("371886008", "371885007")
        assert upper.unit.value == lower.unit.value == "mL"
        assert number.value + upper.value == pytest.approx(amount.high)
        assert number.value - lower.value == pytest.approx(amount.low)
        assert (coverage.name, coverage.value, coverage.unit.value) == (COVERAGE, 100 * amount.level, "%")


def test_methods_are_named_with_their_parameters(runner: Runner, case_id: str, tmp_path: Path) -> None:
    group = _groups(_write(runner, case_id, "t1", tmp_path / "out").report)[1]
    text = {item.name.meaning: item.value for item in group.ContentSequence if item.ValueType == "TEXT"}
    assert (text["Algorithm Name"], text["Algorithm Version"]) == ("segment-tissue", "1")
    parameters = [item.value for item in group.ContentSequence if item.name.meaning == "Algorithm Parameters"]
    assert "beta=0.1" in parameters


def test_a_measurement_refers_to_the_probabilities_it_was_summed_from(
    runner: Runner, case_id: str, tmp_path: Path
) -> None:
    written = _write(runner, case_id, "t1", tmp_path / "out")
    fractional = pydicom.dcmread(written.segmentations["FRACTIONAL"])
    numbers = {}
    for group in _groups(written.report)[1:4]:
        (segment,) = _items(group, sr.CodedConcept("121191", "DCM", "Referenced Segment"))
        assert segment.referenced_sop_instance_uid == fractional.SOPInstanceUID
        finding = next(item for item in group.ContentSequence if item.name == codes.DCM.Finding)
        numbers[finding.value.value] = segment.referenced_segment_numbers
    segments = {
        s.SegmentedPropertyTypeCodeSequence[0].CodeValue: s.SegmentNumber for s in fractional.SegmentSequence
    }
    assert numbers == {code: [number] for code, number in segments.items()}


def test_the_evidence_is_the_received_study(runner: Runner, case_id: str, tmp_path: Path) -> None:
    received = [pydicom.dcmread(path) for path in (tmp_path / "received").iterdir()]
    written = _write(runner, case_id, "t1", tmp_path / "out")
    assert written.series == ()
    report = pydicom.dcmread(written.report)
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == report.StudyInstanceUID == "1.2.3.4"
    cited = {s.SeriesInstanceUID: len(s.ReferencedSOPSequence) for s in study.ReferencedSeriesSequence}
    assert cited.pop(received[0].SeriesInstanceUID) == len(received)
    assert sorted(cited.values()) == [1, 1, 1]
    for path in written.files:
        dataset = pydicom.dcmread(path)
        assert (str(dataset.PatientName), dataset.PatientID, dataset.StudyDate) == (NAME, "4711", "20240131")


def test_it_is_unverified_until_every_finding_is_accepted(
    runner: Runner, case_id: str, tmp_path: Path
) -> None:
    findings = runner.store.case(case_id).standing()
    of_t1 = [f.number for f in findings if f.content.code.startswith("tissue")] + [findings[0].number]
    for number in of_t1[:-1]:
        runner.store.judge(case_id, number, Verdict.ACCEPTED, who="山田 太郎")
    before = pydicom.dcmread(_write(runner, case_id, "t1", tmp_path / "before").report)
    assert (before.VerificationFlag, before.CompletionFlag) == ("UNVERIFIED", "PARTIAL")
    assert "VerifyingObserverSequence" not in before
    runner.store.judge(case_id, of_t1[-1], Verdict.ACCEPTED, who="Müller=Jörg^\\")
    written = _write(runner, case_id, "t1", tmp_path / "after")
    after = pydicom.dcmread(written.report)
    assert (after.VerificationFlag, after.CompletionFlag) == ("VERIFIED", "COMPLETE")
    verifiers = [str(item.VerifyingObserverName) for item in after.VerifyingObserverSequence]
    assert sorted(verifiers) == ["Müller Jörg^", "山田 太郎^"]
    assert before.SOPInstanceUID != after.SOPInstanceUID
    (person,) = _items(_groups(written.report)[1], codes.DCM.PersonObserverName)
    assert str(person.value) == "山田 太郎^"


def test_rejected_findings_are_left_out_and_a_persons_own_are_in(
    runner: Runner, case_id: str, tmp_path: Path
) -> None:
    case = runner.store.case(case_id)
    grey, white = (
        next(f for f in case.standing() if f.content.subject == s) for s in ("grey matter", "white matter")
    )
    runner.store.judge(case_id, grey.number, Verdict.REJECTED, who="Reader")
    own = FindingDraft(
        code="tissue.volume", subject="white matter", statement="White matter: ей богу, enough."
    )
    runner.store.supersede(case_id, white.number, own, who="Reader")
    groups = _groups(_write(runner, case_id, "t1", tmp_path / "out").report)
    said = [item.value for group in groups for item in _items(group, codes.DCM.Comment)]
    assert grey.content.statement not in said
    assert white.content.statement not in said
    assert own.statement in said
    group = next(g for g in groups if own.statement in [i.value for i in _items(g, codes.DCM.Comment)])
    assert _items(group, codes.DCM.AlgorithmName) == []


@pytest.mark.parametrize("role", ["t1", "ct"])
def test_dcmtk_reads_the_report_without_a_complaint(
    runner: Runner, case_id: str, tmp_path: Path, role: str
) -> None:
    if shutil.which("dsrdump") is None:
        pytest.skip("dcmtk's dsrdump is not installed")
    written = _write(runner, case_id, role, tmp_path / "out")
    done = subprocess.run(["dsrdump", str(written.report)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    complaints = [line for line in done.stderr.splitlines() if line.strip() and "Character Set" not in line]
    assert complaints == []
    assert "Enhanced SR Document" in done.stdout


def test_binary_and_labelmap_say_the_same(runner: Runner, case_id: str, tmp_path: Path) -> None:
    written = _write(runner, case_id, "t1", tmp_path / "out")
    volumes = [
        seg.segread(written.segmentations[kind]).get_volume(combine_segments=True)
        for kind in ("BINARY", "LABELMAP")
    ]
    np.testing.assert_array_equal(volumes[0].array, volumes[1].array)
    np.testing.assert_allclose(volumes[0].affine, volumes[1].affine)
    assert set(np.unique(volumes[0].array)) == {0, 1, 2, 3}


def test_the_same_case_gives_the_same_files(runner: Runner, case_id: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        _write(runner, case_id, "t1", tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_no_warning_quotes_the_patient(runner: Runner, case_id: str, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _write(runner, case_id, "ct", tmp_path / "out")
    assert [str(one.message) for one in caught] == []


def test_an_image_of_no_dicom_gets_a_series_without_a_name(
    runner: Runner, sources: Sources, tmp_path: Path
) -> None:
    case_id = run_case(runner, Sources(t1=sources.t1), label="x", model="")
    written = _write(runner, case_id, "t1", tmp_path / "out")
    assert len(written.series) == 32
    assert pydicom.dcmread(written.report).PatientID == "anonymous"


def test_attributes_that_may_be_empty_may_be_missing(
    runner: Runner, sources: Sources, tmp_path: Path
) -> None:
    gaps = dict.fromkeys(
        ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "ReferringPhysicianName")
    )
    received = _received(sources, tmp_path / "received", **gaps)
    case_id = run_case(runner, Sources(t1=received), label="x", model="")
    assert _write(runner, case_id, "t1", tmp_path / "out").report.is_file()


def test_an_export_makes_a_series_where_the_received_one_cannot_be_referred_to(
    runner: Runner, sources: Sources, tmp_path: Path
) -> None:
    received = _received(sources, tmp_path / "received", FrameOfReferenceUID=None)
    case_id = run_case(runner, Sources(t1=received), label="x", model="")
    with pytest.raises(InputError, match="FrameOfReferenceUID"):
        _write(runner, case_id, "t1", tmp_path / "out")
    said: list[str] = []
    exported = export_case(runner.store, case_id, tmp_path / "export", report=said.append)
    assert pydicom.dcmread(exported.files["dicom-sr"]).PatientID == "anonymous"
    assert any("cannot be referred to" in line for line in said)


def test_the_export_joins_the_received_study(runner: Runner, case_id: str, tmp_path: Path) -> None:
    exported = export_case(runner.store, case_id, tmp_path / "export")
    assert "dicom" not in exported.files
    assert pydicom.dcmread(exported.files["dicom-seg BINARY"]).StudyInstanceUID == "1.2.3.4"
