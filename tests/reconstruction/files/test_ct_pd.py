from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydicom")

from reconstruction.files.ct_pd import SLOPE, Scanner, write_ct_pd
from sagittal.core.errors import FormatError, GeometryError, InputError, SagittalError
from sagittal.reconstruction.analytic import fdk
from sagittal.reconstruction.files.ct_pd import Projections, read_ct_pd
from sagittal.reconstruction.line_integrals import line_integrals
from sagittal.volume import Geometry
from sagittal.volume.phantoms import Body, Phantom

# Nothing in it looks the same in a mirror.
LOPSIDED = Phantom(
    name="lopsided",
    bodies=(
        Body(half_sizes=(32, 26, 40), density=1.0),
        Body(centre=(15, 8, 2), half_sizes=(8, 5, 9), turn=0.4, density=1.0),
        Body(shape="box", centre=(-14, 6, -5), half_sizes=(4, 6, 5), density=-0.8),
    ),
)
SMALL = Scanner(views=12, steps=12, rows=2, columns=12, central=(6.5, 1.5))


def read(folder: Path, scanner: Scanner, **options: Any) -> Projections:
    write_ct_pd(folder, LOPSIDED, scanner)
    (found,) = read_ct_pd(folder, **options)
    return found


def off(found: Projections, water: float = 0.02) -> float:
    """Largest distance to the exact line integrals through the geometry that was read."""
    exact = line_integrals(LOPSIDED, found.geometry, subrays=3, water=water)
    return float(np.abs(found.sinogram - exact).max())


@pytest.mark.parametrize("position", ["HFS", "FFS", "HFP", "FFP"])
def test_a_helix_reads_back_as_the_line_integrals_of_its_geometry(tmp_path: Path, position: str) -> None:
    assert off(read(tmp_path, Scanner(position=position))) < 2 * SLOPE


@pytest.mark.parametrize("position", ["HFS", "FFP"])
def test_a_flat_detector_reads_back(tmp_path: Path, position: str) -> None:
    assert off(read(tmp_path, Scanner(shape="FLAT", position=position))) < 2 * SLOPE


def test_an_axial_scan_reads_back(tmp_path: Path) -> None:
    found = read(tmp_path, Scanner(path="AXIAL", views=24, first_angle=-2.0))
    assert found.geometry.pitch == 0
    assert off(found) < 2 * SLOPE


def test_a_tube_that_turns_the_other_way_reads_back(tmp_path: Path) -> None:
    found = read(tmp_path, Scanner(sense=-1.0))
    assert found.geometry.pitch > 0
    assert off(found) < 2 * SLOPE


@pytest.mark.parametrize("position", ["HFS", "FFP"])
def test_a_circle_reconstructs_to_what_was_scanned_where_it_was(tmp_path: Path, position: str) -> None:
    scanner = Scanner(
        path="AXIAL", views=90, steps=90, columns=60, width=3.0, central=(30.75, 3.5), position=position
    )
    found = read(tmp_path, scanner)
    height = found.geometry.centre[2]
    grid = Geometry.from_spacing((40, 40, 1), (2, 2, 2), (-39, -39, height))
    truth = LOPSIDED.rasterise(grid, 3).array[..., 0]
    image = fdk(found.scan, grid, mu_water=0.02).array[..., 0]
    for value, blur in ((-1000, 60), (0, 60), (1000, 250)):
        inside = np.abs(truth - value) < 1
        assert inside.sum() > 5
        assert float(np.median(image[inside])) == pytest.approx(value, abs=blur)
    body = truth > -900
    body &= body[::-1]
    assert np.corrcoef(image[body], truth[body])[0, 1] > 0.9
    assert np.corrcoef(image[::-1][body], truth[body])[0, 1] < 0.5


def test_each_ray_of_a_scan_has_its_photons(tmp_path: Path) -> None:
    photons = read(tmp_path, SMALL).scan.photons
    np.testing.assert_array_equal(photons, 1001.0 + np.arange(12)[None, None])


def test_another_order_of_rows_and_columns_reads_the_same(tmp_path: Path) -> None:
    one, other = (read(tmp_path / str(t), Scanner(transposed=t)) for t in (False, True))
    np.testing.assert_array_equal(one.sinogram, other.sinogram)


def test_implicit_vr_reads_the_same(tmp_path: Path) -> None:
    one, other = (read(tmp_path / str(t), Scanner(implicit=t)) for t in (False, True))
    np.testing.assert_array_equal(one.sinogram, other.sinogram)
    assert one.geometry == other.geometry


def test_readings_without_logarithm_need_the_air(tmp_path: Path) -> None:
    found = read(tmp_path, Scanner(log="NO"), air=10.0)
    assert off(found) < 1e-3
    with pytest.raises(InputError, match="log-transformed"):
        read_ct_pd(tmp_path)


def test_the_pitch_is_the_feed_of_a_turn(tmp_path: Path) -> None:
    found = read(tmp_path, Scanner())
    # Lying head first, the angle falls as the format's rises, so a feed towards the head is a falling pitch.
    assert found.geometry.pitch == pytest.approx(-24.0, rel=1e-5)


def test_photons_follow_their_columns(tmp_path: Path) -> None:
    head, feet = (read(tmp_path / p, dataclasses.replace(SMALL, position=p)) for p in ("HFS", "FFS"))
    assert head.photons is not None
    assert feet.photons is not None
    np.testing.assert_array_equal(head.photons[0], 1001.0 + np.arange(12))
    np.testing.assert_array_equal(feet.photons[0], head.photons[0][::-1])


def test_without_photon_statistics_there_are_none(tmp_path: Path) -> None:
    assert read(tmp_path, dataclasses.replace(SMALL, photons=False)).photons is None


def test_facts_say_what_was_assumed_and_nobodys_name(tmp_path: Path) -> None:
    def no_position(dataset: Any, view: int) -> None:
        del dataset.PatientPosition

    found = read(tmp_path, dataclasses.replace(SMALL, change=no_position))
    assert found.facts["patient_position"] == "HFS, assumed"
    assert found.facts["corrected"] == ["BeamHardening"]
    assert "ecret" not in str(found.facts)


def test_water_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, dataclasses.replace(SMALL, water=0.0192)).water == 0.0192


FLYING = ((0.0, 0.012, 0.3), (0.4, -0.012, -0.3))


def test_each_position_of_a_flying_focal_spot_has_a_geometry_of_its_own(tmp_path: Path) -> None:
    write_ct_pd(tmp_path, LOPSIDED, Scanner(shifts=FLYING, views=48, steps=48, rows=4, central=(21.25, 2.5)))
    sets = read_ct_pd(tmp_path)
    assert [len(one.instances) for one in sets] == [24, 24]
    assert sets[0].instances[:3].tolist() == [1, 3, 5]
    for one in sets:
        assert off(one) < 0.004
        assert one.misplaced < 0.05


def test_a_focal_spot_taken_for_still_would_be_wrong(tmp_path: Path) -> None:
    write_ct_pd(tmp_path, LOPSIDED, Scanner(shifts=FLYING, views=48, steps=48, rows=4, central=(21.25, 2.5)))
    one = read_ct_pd(tmp_path)[0]
    still = dataclasses.replace(one.geometry, offset=one.geometry.offset - 0.2)
    exact = line_integrals(LOPSIDED, still, subrays=3, water=0.02)
    assert float(np.abs(one.sinogram - exact).max()) > 0.02


def test_a_focal_spot_far_beside_the_arc_is_refused(tmp_path: Path) -> None:
    # Far enough that the arc is no arc about the spot.
    scanner = Scanner(
        shifts=((0.0, 0.15, 0.0),), columns=120, central=(60.5, 3.5), rows=2, views=12, steps=12
    )
    write_ct_pd(tmp_path, LOPSIDED, scanner, sub=1)
    with pytest.raises(GeometryError, match="focal spot"):
        read_ct_pd(tmp_path)


def test_a_part_of_the_views_can_be_read(tmp_path: Path) -> None:
    found = read(tmp_path, Scanner(), instances=(5, 20))
    assert found.instances.tolist() == list(range(5, 21))
    assert off(found) < 2 * SLOPE


def put(group: int, element: int, value: Any, *, views: Any = None) -> Any:
    def change(dataset: Any, view: int) -> None:
        if views is None or view in views:
            dataset[group, element].value = value

    return change


REFUSED = [
    (put(0x7029, 0x100B, "SPHERICAL"), FormatError, "SPHERICAL"),
    (put(0x7037, 0x100A, "PARALLEL"), FormatError, "PARALLEL"),
    (put(0x7037, 0x1009, "SCOUT"), FormatError, "SCOUT"),
    (put(0x7041, 0x1001, "0.2"), InputError, "1/cm"),
    (put(0x7031, 0x1003, 40.0), GeometryError, "not in mm"),
    (put(0x7029, 0x1002, 0.004), GeometryError, "not in mm"),
    (put(0x7031, 0x1003, 405.0, views=(4,)), GeometryError, "distance"),
    (put(0x7029, 0x1002, 4.5, views=(4,)), InputError, "several scans"),
    (put(0x7033, 0x1063, 2, views=(4,)), InputError, "spectrum"),
    (put(0x0020, 0x0013, 4, views=(4,)), GeometryError, "twice"),
    (put(0x0020, 0x000E, "1.2.3", views=(4,)), InputError, "series"),
    (put(0x7031, 0x1002, 90.0, views=(4,)), GeometryError, "heights"),
    (put(0x7031, 0x1001, 0.3, views=(4,)), GeometryError, "evenly"),
    (put(0x7031, 0x1001, math.nan, views=(4,)), FormatError, "wrong numbers"),
    (put(0x7031, 0x1033, 6.5), FormatError, "wrong numbers"),
    (put(0x7033, 0x1013, 48), GeometryError, "views a turn"),
    (put(0x7FE0, 0x0010, b"\0\0", views=(4,)), FormatError, "truncated"),
    (put(0x0028, 0x0010, 3), FormatError, "another shape"),
    (put(0x0018, 0x5100, "HFDR"), FormatError, "HFDR"),
]


@pytest.mark.parametrize(("change", "error", "says"), REFUSED, ids=[says for _, _, says in REFUSED])
def test_what_cannot_be_a_scan_is_refused(
    tmp_path: Path, change: Any, error: type[SagittalError], says: str
) -> None:
    write_ct_pd(tmp_path, LOPSIDED, dataclasses.replace(SMALL, change=change), sub=1)
    with pytest.raises(error, match=says):
        read_ct_pd(tmp_path)


@pytest.mark.parametrize("tag", [(0x7029, 0x100B), (0x7031, 0x1001), (0x7039, 0x1009), (0x0020, 0x0013)])
def test_a_missing_attribute_is_named(tmp_path: Path, tag: tuple[int, int]) -> None:
    def without(dataset: Any, view: int) -> None:
        del dataset[tag]

    write_ct_pd(tmp_path, LOPSIDED, dataclasses.replace(SMALL, change=without), sub=1)
    with pytest.raises(FormatError, match="required attribute is missing"):
        read_ct_pd(tmp_path)


def test_missing_views_are_counted(tmp_path: Path) -> None:
    files = write_ct_pd(tmp_path, LOPSIDED, SMALL, sub=1)
    files[5].unlink()
    files[6].unlink()
    with pytest.raises(GeometryError, match="2, first after instance 5"):
        read_ct_pd(tmp_path)


def test_angles_in_degrees_are_refused(tmp_path: Path) -> None:
    def degrees(dataset: Any, view: int) -> None:
        dataset[0x7031, 0x1001].value = 30.0 * view

    write_ct_pd(tmp_path, LOPSIDED, dataclasses.replace(SMALL, change=degrees), sub=1)
    with pytest.raises(GeometryError, match="degrees"):
        read_ct_pd(tmp_path)


def test_a_scan_beyond_the_bound_is_refused_with_its_size(tmp_path: Path) -> None:
    write_ct_pd(tmp_path, LOPSIDED, SMALL, sub=1)
    with pytest.raises(InputError, match="too large"):
        read_ct_pd(tmp_path, max_bytes=1000)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    files = write_ct_pd(tmp_path, LOPSIDED, SMALL, sub=1)
    files[3].write_bytes(b"not a DICOM file at all")
    with pytest.raises(FormatError, match="damaged"):
        read_ct_pd(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no view"):
        read_ct_pd(tmp_path)
