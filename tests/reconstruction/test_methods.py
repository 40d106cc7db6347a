from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import GeometryError, InputError
from sagittal.reconstruction import METHODS, Scan, Solver, quality, reconstruct, truncated_share
from sagittal.reconstruction.geometry import ParallelBeam
from sagittal.reconstruction.line_integrals import line_integrals
from sagittal.reconstruction.simulate import add_noise, fitted_geometry
from sagittal.volume import Geometry, Volume
from sagittal.volume.phantoms import Body, Phantom

GRID = Geometry.from_spacing((32, 32, 1), (4, 4, 4), (-62, -62, 0))
PHANTOM = Phantom(
    name="ellipses",
    bodies=(
        Body(half_sizes=(50, 40, math.inf), density=1.0),
        Body(centre=(10, 5, 0), half_sizes=(12, 12, math.inf), density=0.4),
    ),
)
SCANNER = fitted_geometry(GRID, "fan", 40)
SCAN = add_noise(line_integrals(PHANTOM, SCANNER), SCANNER, photons=1e5)
TRUTH = PHANTOM.rasterise(GRID)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_phantom(method: str) -> None:
    options: dict[str, Any] = {"solver": Solver(iterations=60)} if method.endswith("tv") else {}
    found = reconstruct(SCAN, GRID, method, **options)
    assert found.volume.array[8:12, 13:19].mean() == pytest.approx(0, abs=30)
    assert found.volume.facts["method"] == method
    measured = quality(found.volume, TRUTH)
    assert measured["ssim"] is not None
    assert measured["ssim"] > 0.6


def test_fbp_of_a_cone_is_fdk() -> None:
    scanner = fitted_geometry(GRID, "cone", 12)
    found = reconstruct(Scan(np.zeros(scanner.shape), scanner), GRID, "fbp")
    assert found.volume.facts["method"] == "fdk"


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("magic", {}, "there is no such method; got magic"),
        ("sirt", {"delta": 3.0}, "sirt: the method has no such option; got delta"),
        ("fbp", {"cutoff": 0.5, "delta": 3.0}, "got delta; expected window, cutoff, truncation$"),
        ("tv", {"report_": print, "name": "mine"}, "got report_, name; expected roughness, subdivision"),
    ],
)
def test_what_a_method_cannot_do_is_refused(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        reconstruct(SCAN, GRID, method, **options)


def test_a_truncated_scan_is_told() -> None:
    narrow = ParallelBeam(angles=tuple(np.linspace(0, math.pi, 20, endpoint=False)), bins=22, bin_width=4.0)
    assert truncated_share(SCAN) == 0
    assert truncated_share(Scan(line_integrals(PHANTOM, narrow), narrow)) > 0.3


def test_an_image_like_the_truth_has_no_error() -> None:
    assert quality(TRUTH, TRUTH) == {"rmse": 0.0, "ssim": 1.0, "edge_rmse": 0.0, "flat_noise": 0.0}


def test_errors_are_counted_where_they_are() -> None:
    shifted = quality(TRUTH.replace(array=TRUTH.array + 10), TRUTH)
    assert shifted["rmse"] == pytest.approx(10)
    assert shifted["flat_noise"] == pytest.approx(0, abs=1e-6)
    noise = np.random.default_rng(0).normal(0, 50, (8, *GRID.shape))
    rows = [quality(TRUTH.replace(array=TRUTH.array + draw), TRUTH) for draw in noise]
    noisy = rows[0]
    assert np.median([row["flat_noise"] or 0.0 for row in rows]) == pytest.approx(50, rel=0.1)
    assert noisy["ssim"] is not None
    assert noisy["ssim"] < 0.9
    even = Volume(np.zeros(GRID.shape), GRID, unit="HU")
    assert quality(even, even)["edge_rmse"] is None


def test_images_of_another_unit_or_place_are_not_compared() -> None:
    with pytest.raises(InputError, match="images are compared in HU"):
        quality(TRUTH.replace(unit="1/mm"), TRUTH)
    other = Volume(TRUTH.array, Geometry.from_spacing(GRID.shape, (4, 4, 4)), unit="HU")
    with pytest.raises(GeometryError, match="same place"):
        quality(other, TRUTH)
