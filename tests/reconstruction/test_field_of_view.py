from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sagittal.reconstruction.field_of_view import truncated_share, unseen
from sagittal.reconstruction.geometry import ConeBeam, ParallelBeam
from sagittal.reconstruction.line_integrals import line_integrals
from sagittal.reconstruction.scan import Scan
from sagittal.reconstruction.simulate import fitted_geometry
from sagittal.volume import Geometry
from sagittal.volume.standard_phantoms import smooth_regions

GRID = Geometry.from_spacing((64, 64, 1), (2, 2, 2), (-63, -63, 0))
FAR = np.hypot(*np.meshgrid(*[np.arange(64) * 2 - 63] * 2, indexing="ij"))


@pytest.mark.parametrize("kind", ["parallel", "fan", "cone"])
@pytest.mark.parametrize("curved", [False, True])
def test_a_detector_as_wide_as_the_grid_sees_all_of_it(kind: str, curved: bool) -> None:
    assert unseen(fitted_geometry(GRID, kind, 40, curved=curved), GRID) is None


@pytest.mark.parametrize("kind", ["parallel", "fan"])
def test_a_narrow_detector_sees_a_disc(kind: str) -> None:
    geometry = replace(fitted_geometry(GRID, kind, 120), bins=41)
    hidden = unseen(geometry, GRID)
    assert hidden is not None
    assert not hidden[FAR < 39.5].any()
    assert hidden[FAR > 43].all()


def test_a_shifted_detector_sees_over_a_whole_turn_what_its_longer_side_reaches() -> None:
    whole = fitted_geometry(GRID, "fan", 240)
    half = replace(whole, bins=whole.bins - 28, offset=14.0)
    assert unseen(half, GRID) is None
    hidden = unseen(replace(half, angles=whole.angles[:140]), GRID)
    assert hidden is not None
    assert not hidden[FAR < 35].any()


def test_a_cone_does_not_see_the_ends_of_its_axis_from_every_side() -> None:
    grid = Geometry.from_spacing((32, 32, 32), (2, 2, 2), (-31, -31, -31))
    cone = fitted_geometry(grid, "cone", 60)
    assert isinstance(cone, ConeBeam)
    assert unseen(cone, grid) is None
    hidden = unseen(replace(cone, rows=cone.rows // 2), grid)
    assert hidden is not None
    assert not hidden[:, :, 12:20].any()
    assert hidden[:, :, [0, -1]].all()


def test_a_helix_sees_what_it_passes_by() -> None:
    grid = Geometry.from_spacing((16, 16, 60), (4, 4, 2), (-30, -30, -59))
    cone = fitted_geometry(Geometry.from_spacing((16, 16, 8), (4, 4, 2), (-30, -30, -7)), "cone", 10)
    assert isinstance(cone, ConeBeam)
    angles = tuple(np.arange(240) * 4 * math.pi / 40)
    hidden = unseen(replace(cone, angles=angles, pitch=4.0), grid)
    assert hidden is not None
    assert not hidden[:, :, 28:32].any()
    assert hidden[:, :, [0, -1]].all()


def test_only_the_longer_side_of_a_shifted_detector_can_cut_the_object_off() -> None:
    grid = Geometry.from_spacing((64, 64, 1), (4, 4, 4), (-126, -126, 0))
    whole = fitted_geometry(grid, "fan", 60)
    for shift in (16.0, -16.0):
        half = replace(whole, bins=whole.bins - 56, offset=shift)
        assert truncated_share(Scan(line_integrals(smooth_regions(), half), half)) == 0
    narrow = replace(whole, bins=whole.bins - 56)
    assert truncated_share(Scan(line_integrals(smooth_regions(), narrow), narrow)) > 0.5


def test_missing_rays_say_nothing_of_truncation() -> None:
    narrow = ParallelBeam(angles=tuple(np.linspace(0, math.pi, 20, endpoint=False)), bins=22, bin_width=4.0)
    rays = np.ones(narrow.shape)
    missing = np.zeros(narrow.shape, bool)
    missing[..., [0, -1]] = True
    assert truncated_share(Scan(rays, narrow)) == 1
    assert truncated_share(Scan(rays, narrow, missing=missing)) == 0
