"""Against a real Orthanc on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from highdicom import seg, sr

import dicom_archive
from sagittal.case.record import Verdict
from sagittal.core.errors import ArchiveError, InputError
from sagittal.volume import Volume, read_dicom, read_nifti, write_dicom_series
from sagittal.workflow import artifacts
from sagittal.workflow.dicomweb import Archive
from sagittal.workflow.exchange import fetch_case, measure, send_case
from sagittal.workflow.pipeline import Sources, run_case
from sagittal.workflow.runner import Runner

SAGITTAL = str(Path(sys.executable).parent / "sagittal")
NAME = "山田^太郎"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with dicom_archive.orthanc(tmp_path_factory.mktemp("orthanc")) as address:
        yield address


@pytest.fixture
def archive(url: str) -> Archive:
    return Archive(url)


@pytest.fixture
def stored(archive: Archive, sources: Sources, tmp_path: Path) -> Callable[..., list[Any]]:
    """A function that puts the phantom into the archive as a study of its own, and returns its instances."""

    def store(study: str, description: str = "T1 mprage", name: str = NAME) -> list[Any]:
        volume = read_nifti(sources.t1[0])
        paths = write_dicom_series(
            volume,
            tmp_path / study,
            modality="MR",
            description=description,
            study_uid=study,
            patient_id="4711",
        )
        datasets = [pydicom.dcmread(path) for path in paths]
        for dataset in datasets:
            dataset.PatientName = name
            dataset.StudyDate = "20240131"
            dataset.StudyDescription = "Kopf, Übersicht"
            archive.store(dataset)
        return datasets

    return store


def _t1(runner: Runner, case_id: str, role: str = "t1") -> Volume:
    artifact = runner.store.case(case_id).latest(role)
    assert artifact is not None
    volume: Volume = artifacts.load(runner.store.objects, artifact)
    return volume


def test_studies_are_listed_without_saying_whose_they_are(archive: Archive, stored) -> None:
    stored("1.2.3.1")
    (study,) = archive.find_studies(uid="1.2.3.1")
    assert (study.date, study.modalities, study.description) == ("20240131", ("MR",), "Kopf, Übersicht")
    assert (study.series, study.instances) == (1, 32)
    assert "山田" not in repr(study)
    (known,) = archive.find_studies(uid="1.2.3.1", identity=True)
    assert known.identity == {"name": NAME, "patient_id": "4711", "birth_date": ""}


def test_studies_are_filtered(archive: Archive, stored) -> None:
    stored("1.2.3.2")
    assert "1.2.3.2" in {study.uid for study in archive.find_studies(date="20240101-20240201", modality="MR")}
    assert archive.find_studies(date="19990101") == []
    assert archive.find_studies(patient_id="nobody") == []


def test_a_series_is_fetched_as_it_is_stored(archive: Archive, stored, tmp_path: Path) -> None:
    instances = {str(one.SOPInstanceUID): one for one in stored("1.2.3.3")}
    (series,) = archive.find_series("1.2.3.3")
    (tmp_path / "got").mkdir()
    files = archive.fetch(series, tmp_path / "got")
    assert len(files) == len(instances) == series.instances
    for path in files:
        dataset = pydicom.dcmread(path)
        assert dataset.PixelData == instances[str(dataset.SOPInstanceUID)].PixelData


def test_a_compressed_image_keeps_its_transfer_syntax(archive: Archive, sources, tmp_path: Path) -> None:
    original = pydicom.dcmread(sources.ct[0])
    archive.store(original)
    (series,) = archive.find_series(str(original.StudyInstanceUID))
    (path,) = archive.fetch(series, tmp_path)
    fetched = pydicom.dcmread(path)
    assert fetched.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID
    assert fetched.PixelData == original.PixelData


def test_a_study_becomes_a_case_with_its_geometry(
    runner: Runner, archive: Archive, stored, sources: Sources
) -> None:
    stored("1.2.3.4")
    fetched = fetch_case(runner, archive, "1.2.3.4", label="from the archive")
    assert set(fetched.roles) == {"t1"}
    assert fetched.instances == {"t1": 32}
    original, volume = read_nifti(sources.t1[0]), _t1(runner, fetched.case)
    index = original.geometry.world_to_index(volume.geometry.index_to_world(_grid(volume.shape)))
    nearest = index.round().astype(int)
    assert np.abs(index - nearest).max() < 1e-3
    np.testing.assert_array_equal(original.array[tuple(nearest.T)], volume.array.ravel())
    assert [run.step for run in runner.store.case(fetched.case).runs] == ["receive", "read-image"]


def _grid(shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1).reshape(
        -1, len(shape)
    )


def _sent_back(archive: Archive, sent: list[Any], kind: str) -> Any:
    one = next(one for one in sent if one.kind == kind)
    query = pydicom.Dataset()
    query.StudyInstanceUID, query.SeriesInstanceUID, query.SOPInstanceUID = (
        one.study,
        one.series,
        one.instance,
    )
    return archive.instance(query)


def _by_affine(volume: Any, case_volume: Volume) -> tuple[np.ndarray, ...]:
    """Index in the case's grid of every voxel of a highdicom volume, found by position alone."""
    spatial = volume.array.shape[:3]
    lps = _grid(spatial) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    index = case_volume.geometry.world_to_index(lps * [-1, -1, 1])
    nearest = index.round().astype(int)
    assert np.abs(index - nearest).max() < 1e-3
    return tuple(nearest.T)


@pytest.fixture
def case_and_sent(runner: Runner, archive: Archive, stored, request) -> tuple[str, list[Any], list[Any]]:
    study = f"1.2.3.5.{abs(hash(request.node.name)) % 10**9}"
    instances = stored(study)
    case_id = fetch_case(runner, archive, study).case
    measure(runner, case_id, ["t1"])
    runner.store.judge(case_id, 2, Verdict.ACCEPTED, who="Łukasz Żółć")
    return case_id, send_case(runner, archive, case_id), instances


def test_segmentations_come_back_where_the_tissue_lies(
    runner: Runner, archive: Archive, case_and_sent
) -> None:
    case_id, sent, _ = case_and_sent
    tissue = _t1(runner, case_id, "tissue")
    for kind in ("SEG LABELMAP", "SEG BINARY"):
        back = seg.Segmentation.from_dataset(_sent_back(archive, sent, kind))
        volume = back.get_volume(combine_segments=True)
        there = _by_affine(volume, tissue)
        np.testing.assert_array_equal(tissue.array[there], volume.array.ravel())
        assert np.count_nonzero(volume.array) == np.count_nonzero(tissue.array)
    back = seg.Segmentation.from_dataset(_sent_back(archive, sent, "SEG FRACTIONAL"))
    volume = back.get_volume(rescale_fractional=True)
    there = _by_affine(volume, tissue)
    assert tissue.probabilities is not None
    difference = tissue.probabilities[there] - volume.array.reshape(-1, 3)
    assert np.abs(difference).max() <= 0.5 / 255 + 1e-6
    assert np.count_nonzero(volume.array) > 0


def test_what_is_sent_joins_the_received_study(archive: Archive, case_and_sent) -> None:
    _, sent, instances = case_and_sent
    first = instances[0]
    assert [one.kind for one in sent] == ["SEG LABELMAP", "SEG FRACTIONAL", "SEG BINARY", "SR"]
    for one in sent:
        back = _sent_back(archive, sent, one.kind)
        assert back.StudyInstanceUID == first.StudyInstanceUID
        assert (str(back.PatientName), back.PatientID) == (NAME, "4711")
    segmentation = _sent_back(archive, sent, "SEG FRACTIONAL")
    assert segmentation.FrameOfReferenceUID == first.FrameOfReferenceUID
    (referenced,) = segmentation.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == first.SeriesInstanceUID
    cited = {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence}
    assert cited <= {one.SOPInstanceUID for one in instances}
    assert cited


def test_the_report_comes_back_with_values_and_intervals(
    runner: Runner, archive: Archive, case_and_sent
) -> None:
    case_id, sent, _ = case_and_sent
    report = sr.EnhancedSR.from_dataset(_sent_back(archive, sent, "SR"))
    groups = report.content
    wanted = {f.content.subject: f.content for f in runner.store.case(case_id).standing("tissue.volume")}
    found = {}
    measured = sr.MeasurementReport.from_sequence(groups)
    for group in measured.get_volumetric_roi_measurement_groups():
        (measurement,) = group.get_measurements()
        found[group.finding_type.meaning.lower().replace("gray", "grey")] = (
            measurement.value,
            measurement.unit.value,
        )
    assert set(found) == set(wanted)
    for subject, (value, unit) in found.items():
        assert unit == "mL"
        assert value == pytest.approx(wanted[subject].measurement.value, rel=1e-6)


def test_fetching_and_sending_are_in_the_audit(runner: Runner, case_and_sent, url: str) -> None:
    case_id, _, _ = case_and_sent
    lines = {line.action: line.detail for line in runner.store.audit_lines(case_id)}
    assert lines["fetch-study"] == {"archive": url, "instances": {"t1": 32}}
    assert lines["send-case"] == {"archive": url, "objects": 4}


def test_what_is_there_already_is_not_sent_again(runner: Runner, archive: Archive, case_and_sent) -> None:
    case_id, sent, _ = case_and_sent
    again = send_case(runner, archive, case_id)
    assert not any(one.was_there for one in sent)
    assert all(one.was_there for one in again)
    assert [one.instance for one in again] == [one.instance for one in sent]


def test_a_case_of_no_archive_brings_its_image_along(
    runner: Runner, archive: Archive, sources: Sources
) -> None:
    case_id = run_case(runner, Sources(t1=sources.t1), label="own", model="")
    sent = send_case(runner, archive, case_id)
    assert [one.kind for one in sent] == ["MR"] * 32 + ["SEG LABELMAP", "SEG FRACTIONAL", "SEG BINARY", "SR"]
    assert len({one.study for one in sent}) == 1


def test_a_study_that_is_not_there_is_said(runner: Runner, archive: Archive) -> None:
    with pytest.raises(ArchiveError, match=r"no such study; got 1\.2\.3\.99"):
        fetch_case(runner, archive, "1.2.3.99")
    assert runner.store.case_ids() == []


def test_an_image_that_a_step_refuses_is_in_the_case_that_the_error_names(
    runner: Runner, archive: Archive, stored
) -> None:
    (first, *_) = stored("1.2.3.9")
    for number in range(3):
        first.StudyInstanceUID, first.SeriesInstanceUID = "1.2.3.10", "1.2.3.10.1"
        first.SOPInstanceUID = first.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.10.1.{number}"
        first.ImagePositionPatient[2] = 2 * number
        first.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        first.PixelData = np.full(first.pixel_array.shape, 100, "<i2").tobytes()
        archive.store(first)
    fetched = fetch_case(runner, archive, "1.2.3.10")
    with pytest.raises(InputError, match=f"brain-masked .the files are in case {fetched.case}"):
        measure(runner, fetched.case, ["t1"])


def test_a_study_without_a_t1_image_lists_what_it_has(runner: Runner, archive: Archive, stored) -> None:
    (first, *_) = stored("1.2.3.6", description="FLAIR")
    with pytest.raises(InputError, match=f"{first.SeriesInstanceUID} .MR, 32 instances, 'FLAIR'"):
        fetch_case(runner, archive, "1.2.3.6")
    fetched = fetch_case(runner, archive, "1.2.3.6", series=[str(first.SeriesInstanceUID)])
    assert fetched.roles["t1"].description == "FLAIR"


def test_a_wrong_path_is_said(url: str) -> None:
    with pytest.raises(ArchiveError, match="the archive refuses; got HTTP status 404"):
        Archive(url + "/nowhere").find_studies()


def test_an_archive_with_a_password_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with dicom_archive.orthanc(tmp_path / "orthanc", users={"leser": "geheim-ß"}) as url:
        with pytest.raises(ArchiveError, match="401"):
            Archive.from_environment(url).find_studies()
        monkeypatch.setenv("SAGITTAL_DICOMWEB_USER", "leser")
        monkeypatch.setenv("SAGITTAL_DICOMWEB_PASSWORD", "geheim-ß")
        assert Archive.from_environment(url).find_studies() == []


def _run(*arguments: object) -> Any:
    done = subprocess.run(
        [SAGITTAL, *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert "山田" not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_commands_list_fetch_and_send(url: str, stored) -> None:
    stored("1.2.3.7")
    rows = _run("dicomweb", "list", url, "--study", "1.2.3.7", "--series")
    assert rows[0]["uid"] == "1.2.3.7"
    assert "identity" not in rows[0]
    (series,) = rows[0]["in_series"]
    fetched = _run("case", "fetch", url, "1.2.3.7", "--run", "--label", "ward 3")
    assert fetched["roles"] == {"t1": {"series": series["uid"], "instances": 32}}
    sent = _run("case", "send", fetched["case"], url)
    assert [one["kind"] for one in sent["stored"]] == ["SEG LABELMAP", "SEG FRACTIONAL", "SEG BINARY", "SR"]


def test_the_fetched_files_read_as_the_series_they_are(archive: Archive, stored, tmp_path: Path) -> None:
    stored("1.2.3.8", name="Müller^Jörg")
    (series,) = archive.find_series("1.2.3.8")
    files = archive.fetch(series, tmp_path)
    assert read_dicom(files).shape[2] == 32
    assert str(pydicom.dcmread(files[0]).PatientName) == "Müller^Jörg"
