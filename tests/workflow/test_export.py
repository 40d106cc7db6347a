from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pydicom
import pytest

from sagittal.core.errors import InputError, StorageError
from sagittal.volume import read_dicom, read_nifti
from sagittal.workflow import artifacts
from sagittal.workflow.export import bundle, export_case
from sagittal.workflow.pipeline import Sources, run_case
from sagittal.workflow.runner import Runner


@pytest.fixture
def case_id(runner: Runner, sources: Sources) -> str:
    return run_case(runner, sources, label="<script>alert(1)</script> & co", model="")


@pytest.fixture
def exported(runner: Runner, case_id: str, tmp_path: Path) -> bundle.Exported:
    return export_case(runner.store, case_id, tmp_path / "out")


def _tissue(runner: Runner, case_id: str):
    artifact = runner.store.case(case_id).latest("tissue")
    assert artifact is not None
    return artifacts.load(runner.store.objects, artifact)


def test_nifti_comes_back_with_its_probabilities(runner: Runner, case_id: str, exported) -> None:
    assert read_nifti(exported.files["nifti"]).content_hash == _tissue(runner, case_id).content_hash


def _in_space(seg, wanted_type: str):
    """The segmentation's frames and the affine from (column, row, slice) to RAS, in the file's own order."""
    assert seg.SegmentationType == wanted_type
    plane = seg.SharedFunctionalGroupsSequence[0]
    orientation = np.array(plane.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float)
    spacing = np.array(plane.PixelMeasuresSequence[0].PixelSpacing, dtype=float)
    frames = []
    for index, group in enumerate(seg.PerFrameFunctionalGroupsSequence):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        segment = 0
        if wanted_type != "LABELMAP":
            segment = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        frames.append((segment, position, seg.pixel_array[index]))
    return orientation, spacing, frames


@pytest.mark.parametrize("kind", ["LABELMAP", "BINARY", "FRACTIONAL"])
def test_dicom_segmentations_lie_where_the_tissue_lies(runner: Runner, case_id: str, exported, kind) -> None:
    tissue = _tissue(runner, case_id)
    seg = pydicom.dcmread(exported.files[f"dicom-seg {kind}"])
    orientation, spacing, frames = _in_space(seg, kind)
    seen = 0
    for segment, position, pixels in frames:
        rows, columns = np.nonzero(pixels)
        lps = (
            position
            + np.outer(columns * spacing[1], orientation[:3])
            + np.outer(rows * spacing[0], orientation[3:])
        )
        index = tissue.geometry.world_to_index(lps * [-1, -1, 1])
        nearest = index.round().astype(int)
        assert np.abs(index - nearest).max(initial=0) < 1e-3
        there = tuple(nearest.T)
        if kind == "LABELMAP":
            np.testing.assert_array_equal(tissue.array[there], pixels[rows, columns])
        elif kind == "BINARY":
            assert set(tissue.array[there]) == {segment}
        else:
            expected = tissue.probabilities[(*there, np.full(len(rows), segment - 1))]
            assert np.abs(expected - pixels[rows, columns] / 255).max(initial=0) <= 0.5 / 255 + 1e-6
        seen += len(rows)
    if kind != "FRACTIONAL":
        assert seen == np.count_nonzero(tissue.array)
    else:
        assert seen == np.count_nonzero((tissue.probabilities * 255).round())


def test_segments_are_coded_and_refer_to_the_series(exported) -> None:
    seg = pydicom.dcmread(exported.files["dicom-seg FRACTIONAL"])
    coded = {s.SegmentLabel: s.SegmentedPropertyTypeCodeSequence[0].CodeValue for s in seg.SegmentSequence}
    assert coded == {
        "Cerebrospinal fluid": "65216001",
        "Grey matter": "389081007",
        "White matter": "389080008",
    }
    assert seg.SegmentationFractionalType == "PROBABILITY"
    image = read_dicom(exported.files["dicom"])
    slices = [pydicom.dcmread(path) for path in sorted(exported.files["dicom"].iterdir())]
    assert seg.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
    assert {s.SeriesInstanceUID for s in slices} == {seg.ReferencedSeriesSequence[0].SeriesInstanceUID}
    assert image.shape[2] == len(slices)
    assert seg.PatientID == "anonymous"
    assert str(seg.get("PatientName") or "") == ""


def test_fhir_is_valid_preliminary_and_bound_to_the_findings(runner: Runner, case_id: str, exported) -> None:
    from fhir.resources.R4B.bundle import Bundle

    text = exported.files["fhir"].read_text()
    checked = Bundle.model_validate_json(text)
    resources = [entry["resource"] for entry in json.loads(text)["entry"]]
    report, observations = resources[0], resources[1:]
    assert checked.type == "collection"
    assert report["resourceType"] == "DiagnosticReport"
    assert report["status"] == "preliminary"
    standing = runner.store.case(case_id).standing()
    assert len(observations) == len(report["result"]) == len(standing)
    urls = {entry["fullUrl"] for entry in json.loads(text)["entry"]}
    assert {result["reference"] for result in report["result"]} < urls
    grey = next(f for f in standing if f.content.subject == "grey matter")
    observation = observations[standing.index(grey)]
    assert grey.content.measurement is not None
    assert observation["valueQuantity"]["value"] == pytest.approx(grey.content.measurement.value, abs=1e-4)
    ends = [component["valueQuantity"]["value"] for component in observation["component"]]
    assert ends == pytest.approx([grey.content.measurement.low, grey.content.measurement.high], abs=1e-4)


def test_the_page_loads_nothing_and_escapes_what_it_shows(exported) -> None:
    page = exported.report.read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    outside = re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:|#)([^\"']*)", page) + re.findall(
        r"url\((?!data:)", page
    )
    assert outside == []
    assert "default-src 'none'" in page


def test_the_page_says_every_finding_and_whose_it_is(runner: Runner, case_id: str, exported) -> None:
    page = exported.report.read_text()
    for finding in runner.store.case(case_id).standing():
        assert f"finding {finding.number} · {finding.author}" in page
    assert "Not a medical device" in page
    assert "A phantom." in page


def test_an_export_is_replaced_but_another_folder_is_not(
    runner: Runner, case_id: str, tmp_path: Path
) -> None:
    first = export_case(runner.store, case_id, tmp_path / "out")
    (first.folder / "left-over.txt").write_text("of the first export")
    export_case(runner.store, case_id, tmp_path / "out")
    assert not (first.folder / "left-over.txt").exists()
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError, match="thesis.*holds something else"):
        export_case(runner.store, case_id, other)
    assert (other / "chapter.txt").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_failed_export_leaves_the_earlier_one(
    runner: Runner, case_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = export_case(runner.store, case_id, tmp_path / "out")
    page = first.report.read_text()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sagittal.workflow.export.page.write_page", full)
    with pytest.raises(StorageError, match="disk is full"):
        export_case(runner.store, case_id, tmp_path / "out")
    assert first.report.read_text() == page
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_case_without_a_report_cannot_be_exported(runner: Runner, tmp_path: Path) -> None:
    case_id = runner.store.create_case("empty")
    with pytest.raises(InputError, match="no report yet"):
        export_case(runner.store, case_id, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_case_of_a_ct_slice_alone_has_a_page(runner: Runner, sources: Sources, tmp_path: Path) -> None:
    case_id = run_case(runner, Sources(ct=sources.ct), label="ct only", model="")
    exported = export_case(runner.store, case_id, tmp_path / "ct-out")
    segmentations = {f"ct dicom-seg {kind}" for kind in ("LABELMAP", "BINARY", "FRACTIONAL")}
    assert set(exported.files) == {"record", "fhir", "page", "ct dicom-sr", *segmentations}
    assert "Head CT, one slice" in exported.report.read_text()
