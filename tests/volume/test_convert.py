from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from sagittal.core.errors import FormatError, GeometryError, InputError, MissingDependencyError
from sagittal.volume import (
    Geometry,
    Volume,
    from_monai,
    from_nibabel,
    from_torchio,
    to_monai,
    to_nibabel,
    to_torchio,
)

DTYPES = ["u1", "i1", "i2", "i4", "i8", "f4", "f8"]


def test_nibabel_round_trip(geometry: Geometry) -> None:
    pytest.importorskip("nibabel")
    for dtype in [*DTYPES, "u2", "u4", "u8"]:
        volume = Volume(np.arange(120).reshape(geometry.shape).astype(dtype), geometry, unit="HU")
        assert from_nibabel(to_nibabel(volume), unit="HU").content_hash == volume.content_hash
    assert from_nibabel(to_nibabel(Volume(np.ones(geometry.shape, bool), geometry))).array.dtype == np.uint8


def test_nibabel_images_in_other_units_and_without_a_place() -> None:
    nib: Any = pytest.importorskip("nibabel")
    image = nib.Nifti1Image(np.zeros((2, 2, 2, 1), np.uint8), np.eye(4) * [[0.001], [0.001], [0.001], [1]])
    image.header.set_xyzt_units("meter")
    assert from_nibabel(image).geometry == Geometry.from_spacing((2, 2, 2))
    with pytest.raises(GeometryError, match="no affine"):
        from_nibabel(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), None))
    with pytest.raises(FormatError, match=r"\(2, 2, 2, 5\)"):
        from_nibabel(nib.Nifti1Image(np.zeros((2, 2, 2, 5), np.uint8), np.eye(4)))
    with pytest.raises(FormatError, match=r"8 of 8, first nan at \(0, 0, 0\)"):
        from_nibabel(nib.Nifti1Image(np.full((2, 2, 2), np.nan), np.eye(4)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_torchio_round_trip(geometry: Geometry, dtype: str) -> None:
    torchio: Any = pytest.importorskip("torchio")
    volume = Volume(np.arange(120).reshape(geometry.shape).astype(dtype), geometry, unit="HU")
    image = to_torchio(volume)
    assert isinstance(image, torchio.ScalarImage)
    assert image.spatial_shape == volume.shape
    assert from_torchio(image, unit="HU").content_hash == volume.content_hash


@pytest.mark.parametrize("dtype", DTYPES)
def test_monai_round_trip(geometry: Geometry, dtype: str) -> None:
    monai: Any = pytest.importorskip("monai.data")
    volume = Volume(np.arange(120).reshape(geometry.shape).astype(dtype), geometry, unit="HU")
    tensor = to_monai(volume)
    assert isinstance(tensor, monai.MetaTensor)
    assert from_monai(tensor, unit="HU").content_hash == volume.content_hash


def test_a_monai_tensor_in_lps_is_turned(geometry: Geometry) -> None:
    pytest.importorskip("monai")
    tensor = to_monai(Volume(np.zeros(geometry.shape), geometry))
    tensor.meta["space"] = "LPS"
    affine = from_monai(tensor).geometry.affine
    assert np.array_equal(affine[:2], -geometry.affine[:2])
    assert np.array_equal(affine[2], geometry.affine[2])
    tensor.meta["space"] = "scanner"
    with pytest.raises(GeometryError, match="scanner"):
        from_monai(tensor)


def test_monai_still_agrees_after_its_own_transform(volume: Volume) -> None:
    transforms: Any = pytest.importorskip("monai.transforms")
    flipped = from_monai(transforms.Flip(spatial_axis=0)(to_monai(volume)))
    assert np.array_equal(flipped.array, volume.array[::-1])
    assert np.allclose(
        flipped.geometry.index_to_world((0, 0, 0)), volume.geometry.index_to_world((5, 0, 0)), atol=1e-5
    )


def test_wide_unsigned_integers(geometry: Geometry) -> None:
    pytest.importorskip("monai")
    volume = Volume(np.full(geometry.shape, 65535, np.uint16), geometry)
    assert from_monai(to_monai(volume)).array.dtype == np.int32
    assert from_monai(to_monai(volume)).array.max() == 65535
    with pytest.raises(InputError, match=str(2**63)):
        to_monai(Volume(np.full(geometry.shape, 2**63, np.uint64), geometry))


def test_several_channels_are_refused(geometry: Geometry) -> None:
    torchio: Any = pytest.importorskip("torchio")
    torch: Any = pytest.importorskip("torch")
    with pytest.raises(FormatError, match=r"\(2, 3, 3, 3\)"):
        from_torchio(torchio.ScalarImage(tensor=torch.zeros(2, 3, 3, 3)))


@pytest.mark.parametrize(
    ("library", "convert", "extra"),
    [("nibabel", to_nibabel, "imaging"), ("torchio", to_torchio, "all"), ("monai.data", to_monai, "all")],
)
def test_a_missing_library_is_named(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, library: str, convert: Any, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependencyError, match=rf"{library.split('.')[0]}.*sagittal\[{extra}\]"):
        convert(volume)
