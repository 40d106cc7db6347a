from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sagittal.reconstruction.consistency import turns_the_other_way
from sagittal.reconstruction.geometry import ConeBeam, FanBeam
from sagittal.reconstruction.line_integrals import line_integrals
from sagittal.reconstruction.scan import Scan
from sagittal.reconstruction.simulate import add_noise, fitted_geometry
from sagittal.volume import Geometry
from sagittal.volume.phantoms import Body, Phantom
from sagittal.volume.standard_phantoms import smooth_regions

GRID = Geometry.from_spacing((64, 64, 1), (4, 4, 4), (-126, -126, 0))
CENTRED = Phantom(name="disc", bodies=(Body(half_sizes=(60, 60, math.inf), density=1.0),))


def backwards(scan: Scan) -> Scan:
    angles = tuple(-np.asarray(scan.geometry.angles))
    return scan.replace(geometry=replace(scan.geometry, angles=angles))


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("shift", [0.0, 6.0])
@pytest.mark.parametrize("photons", [1e3, 1e6])
def test_a_gantry_that_turns_against_its_angles_is_told(curved: bool, shift: float, photons: float) -> None:
    fan = fitted_geometry(GRID, "fan", 90, curved=curved)
    assert isinstance(fan, FanBeam)
    fan = replace(fan, offset=shift)
    scan = add_noise(line_integrals(smooth_regions(), fan), fan, photons=photons)
    assert not turns_the_other_way(scan)
    assert turns_the_other_way(backwards(scan))


def test_missing_views_do_not_hide_it() -> None:
    fan = fitted_geometry(GRID, "fan", 90)
    missing = np.zeros((90, 1, 1), bool)
    missing[::11] = True
    scan = Scan(line_integrals(smooth_regions(), fan), fan, missing=missing)
    assert not turns_the_other_way(scan)
    assert turns_the_other_way(backwards(scan))


def test_where_nothing_can_be_said_nothing_is() -> None:
    for kind in ("parallel", "fan"):
        geometry = fitted_geometry(GRID, kind, 90)
        scan = Scan(line_integrals(CENTRED if kind == "fan" else smooth_regions(), geometry), geometry)
        assert not turns_the_other_way(backwards(scan))
    cone = fitted_geometry(GRID, "cone", 20)
    assert isinstance(cone, ConeBeam)
    helix = replace(cone, pitch=4.0)
    assert not turns_the_other_way(Scan(np.zeros(helix.shape), helix))
