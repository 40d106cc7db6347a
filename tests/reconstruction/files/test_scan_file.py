from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import FormatError, InputError
from sagittal.reconstruction.files.scan_file import StoredScan, read_scan, write_scan
from sagittal.reconstruction.geometry import FanBeam
from sagittal.reconstruction.scan import Scan
from sagittal.volume import Geometry, Volume

GRID = Geometry.from_spacing((4, 5, 1), (2, 2, 3), (1, 2, 3))
BEAM = FanBeam(angles=(0.0, 1.0), bins=3, bin_width=1.0, source_distance=50, detector_distance=90)
RAYS = np.random.default_rng(0).random(BEAM.shape).astype(np.float32)
TRUTH = Volume(np.arange(20, dtype=np.int16).reshape(GRID.shape), GRID, unit="HU")


@pytest.fixture
def scan_file(tmp_path: Path) -> Path:
    return write_scan(StoredScan(Scan(RAYS, BEAM, 1e4, 3.0, 1), GRID, TRUTH), tmp_path / "scan.npz")


def test_a_scan_comes_back_as_it_was(scan_file: Path) -> None:
    again = read_scan(scan_file)
    assert np.array_equal(again.scan.sinogram, RAYS)
    assert again.scan.geometry == BEAM
    assert (again.scan.photons, again.scan.electronic, again.scan.starved) == (1e4, 3.0, 1)
    assert again.truth is not None
    assert again.truth.content_hash == TRUTH.content_hash


def test_a_scan_needs_neither_grid_nor_truth_nor_dose(tmp_path: Path) -> None:
    path = write_scan(StoredScan(Scan(RAYS, BEAM)), tmp_path / "scan.npz")
    again = read_scan(path)
    assert again.grid is None
    assert again.truth is None
    assert again.scan.photons is None


@pytest.mark.parametrize(
    "photons", [None, 1e4, np.array([[[0.0, 50.0, 60.0]]]), np.array([[[7.0]], [[9.0]]])]
)
def test_photons_and_missing_rays_come_back_as_they_were(tmp_path: Path, photons: Any) -> None:
    missing = np.zeros(BEAM.shape, bool)
    missing[1, 0, 2] = True
    scan = Scan(RAYS, BEAM, photons, missing=missing)
    again = read_scan(write_scan(StoredScan(scan), tmp_path / "scan.npz")).scan
    assert again.missing is not None
    assert np.array_equal(again.missing, scan.missing)
    assert np.array_equal(again.sinogram, scan.sinogram)
    assert np.array_equal(np.asarray(again.photons), np.asarray(scan.photons))


def test_line_integrals_that_are_not_finite_are_marked_where_that_is_asked_for(scan_file: Path) -> None:
    broken = RAYS.copy()
    broken[0, 0, 1] = np.nan
    path = rewritten(scan_file, lambda m: m.update({"sinogram.npy": npy(broken)}))
    with pytest.raises(InputError, match=r"scan\.npz: line integrals are not finite; got 1 of 6, first nan"):
        read_scan(path)
    scan = read_scan(path, missing="mark").scan
    assert scan.missing is not None
    assert np.argwhere(scan.missing).tolist() == [[0, 0, 1]]


def test_a_scan_beyond_the_memory_is_refused_before_it_is_read(
    scan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagittal.core.memory.available_memory", lambda: 100)
    monkeypatch.setattr("sagittal.reconstruction.files.scan_file._array", None)
    with pytest.raises(InputError, match=r"scan\.npz: the scan does not fit into memory; got about"):
        read_scan(scan_file)


def rewritten(path: Path, change: Any) -> Path:
    """Write the file again with its members changed: a dictionary from name to bytes."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def with_header(**changes: Any) -> Any:
    def change(members: dict[str, bytes]) -> None:
        header = json.loads(np.load(io.BytesIO(members["header.npy"])).tobytes())
        header |= changes
        text = json.dumps({key: value for key, value in header.items() if value != "gone"})
        members["header.npy"] = npy(np.frombuffer(text.encode(), np.uint8))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("sinogram.npy"), r"scan.npz: the scan lacks a field; got sinogram"),
        (lambda m: m.pop("header.npy"), "lacks a field; got header"),
        (
            lambda m: m.update({"sinogram.npy": m["sinogram.npy"][:-4]}),
            "sinogram: a field is cut short; got 20",
        ),
        (lambda m: m.update({"sinogram.npy": b"\x93NUMPX"}), "sinogram: a field is no array"),
        (lambda m: m.update({"header.npy": npy(np.zeros(3, np.uint8))}), "header: the header is no JSON"),
        (lambda m: m.update({"header.npy": npy(np.frombuffer(b"[1]", np.uint8))}), "is of no scan; got list"),
        (with_header(format="mail"), "the header is of no scan; got mail"),
        (with_header(version=3), "another version; got 3; expected 1 or 2"),
        (
            lambda m: m.update({"sinogram.npy": npy(np.zeros((2, 1, 4)))}),
            r"sinogram: the line integrals have another shape .*; got \(2, 1, 4\); expected \(2, 1, 3\)",
        ),
        (lambda m: m.update({"photons.npy": npy(np.zeros((1, 1, 3)))}), "no ray was measured"),
        (lambda m: m.update({"photons.npy": npy(np.full((1, 1, 3), -1.0))}), "photons must be numbers of 0"),
        (lambda m: m.update({"missing.npy": npy(np.ones((9, 9), np.uint8))}), "missing rays do not suit"),
        (with_header(photons="gone"), r"lacks a field; got \['photons'\]"),
        (with_header(photons="many"), "photons must be a positive number"),
        (with_header(starved=-1), "starved rays are no count"),
        (with_header(geometry=[1]), "no mapping"),
        (with_header(geometry={"kind": "star"}), "of no known kind; got star"),
        (with_header(grid=None), "truth: the truth has no grid"),
        (with_header(grid={"shape": [4, 5, 1]}), "the geometry lacks a key"),
    ],
)
def test_a_file_that_is_no_scan_is_refused(scan_file: Path, change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_scan(rewritten(scan_file, change))
    assert str(scan_file) in str(caught.value)


def test_pickles_are_not_read(scan_file: Path) -> None:
    pickled = npy(np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match="sinogram: a field holds no numbers; got object"):
        read_scan(rewritten(scan_file, lambda m: m.update({"sinogram.npy": pickled})))


def test_a_truncated_or_other_file_is_refused(scan_file: Path, tmp_path: Path) -> None:
    scan_file.write_bytes(scan_file.read_bytes()[:-200])
    with pytest.raises(FormatError, match=r"scan\.npz: this is no whole \.npz file"):
        read_scan(scan_file)
    with pytest.raises(InputError, match="there is no such file"):
        read_scan(tmp_path / "none.npz")


def test_a_damaged_member_is_refused(scan_file: Path) -> None:
    content = bytearray(scan_file.read_bytes())
    at = content.index(b"sinogram.npy") + 60
    content[at : at + 20] = bytes(20)
    scan_file.write_bytes(content)
    with pytest.raises(FormatError, match="no whole"):
        read_scan(scan_file)


def test_a_scan_larger_than_allowed_is_refused(scan_file: Path) -> None:
    with pytest.raises(FormatError, match="the scan is too large; got .* unpacked; expected 100 at most"):
        read_scan(scan_file, max_bytes=100)
