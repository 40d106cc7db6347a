"""Volumes to and from nibabel, TorchIO and MONAI: voxels and affine as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.core.errors import FormatError, GeometryError, InputError
from sagittal.core.optional import optional_import
from sagittal.volume._support import NonFinite, replace_nonfinite
from sagittal.volume.geometry import Geometry
from sagittal.volume.volume import Volume

__all__ = ["from_monai", "from_nibabel", "from_torchio", "to_monai", "to_nibabel", "to_torchio"]

_MM_PER_UNIT = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
_WIDER = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}


def to_nibabel(volume: Volume) -> Any:
    """Return a nibabel NIfTI-1 image in memory, with the float64 affine.

    Bool becomes uint8 and float16 becomes float32, which NIfTI lacks. Only voxels and affine are carried.

    Raises:
        MissingDependencyError: nibabel is not installed.
    """
    nibabel = optional_import("nibabel")
    replaced: dict[str, np.dtype[Any]] = {"bool": np.dtype(np.uint8), "float16": np.dtype(np.float32)}
    dtype = replaced.get(volume.array.dtype.name, volume.array.dtype)
    image = nibabel.Nifti1Image(volume.array.astype(dtype, copy=False), volume.geometry.affine, dtype=dtype)
    image.header.set_xyzt_units("mm")
    return image


def from_nibabel(image: Any, *, unit: str = "1", nonfinite: NonFinite = "refuse") -> Volume:
    """Return a nibabel spatial image as a volume; a trailing axis of length 1 is dropped.

    Raises:
        FormatError: Another number of axes, or voxels that are not finite or not real.
        GeometryError: No affine, or a singular one.
    """
    if image.affine is None:
        raise GeometryError("the nibabel image has no affine", expected="an image placed in space")
    affine = np.array(image.affine, dtype=np.float64)
    if hasattr(image.header, "get_xyzt_units"):
        affine[:3] *= _MM_PER_UNIT[image.header.get_xyzt_units()[0]]
    return _volume(np.asanyarray(image.dataobj), affine, unit, nonfinite, "the nibabel image")


def to_torchio(volume: Volume) -> Any:
    """Return a TorchIO ``ScalarImage``: tensor of shape (1, i, j, k) and the affine.

    Unsigned integers of more than 8 bits become the next wider signed type, since torch computes
    little with them.

    Raises:
        InputError: uint64 values beyond int64.
        MissingDependencyError: TorchIO or torch is not installed.
    """
    torchio = optional_import("torchio", "all")
    return torchio.ScalarImage(tensor=_tensor(volume.array), affine=volume.geometry.affine.copy())


def from_torchio(image: Any, *, unit: str = "1", nonfinite: NonFinite = "refuse") -> Volume:
    """Return a TorchIO image of one channel as a volume.

    Raises:
        FormatError: Several channels, or voxels that are not finite.
        GeometryError: A singular affine.
    """
    return _volume(_one_channel(image.data), image.affine, unit, nonfinite, "the TorchIO image")


def to_monai(volume: Volume) -> Any:
    """Return a MONAI ``MetaTensor`` of shape (1, i, j, k), channel first, in RAS+ space.

    Unsigned integers of more than 8 bits become the next wider signed type.

    Raises:
        InputError: uint64 values beyond int64.
        MissingDependencyError: MONAI or torch is not installed.
    """
    data = optional_import("monai.data", "all")
    torch = optional_import("torch", "all")
    affine = torch.from_numpy(volume.geometry.affine.copy())
    return data.MetaTensor(_tensor(volume.array), affine=affine, meta={"space": "RAS"})


def from_monai(tensor: Any, *, unit: str = "1", nonfinite: NonFinite = "refuse") -> Volume:
    """Return a MONAI ``MetaTensor`` of shape (1, i, j, k) as a volume.

    A tensor whose metadata say that its space is LPS, as one of MONAI's readers leaves it, is brought
    to RAS+.

    Raises:
        FormatError: Several channels, or voxels that are not finite.
        GeometryError: A singular affine, or an unknown space.
    """
    affine = np.array(tensor.affine.detach().cpu().numpy(), dtype=np.float64)
    space = str(getattr(tensor.meta.get("space", "RAS"), "value", tensor.meta.get("space", "RAS")))
    if space == "LPS":
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    elif space not in ("RAS", ""):
        raise GeometryError("the MetaTensor lies in an unknown space", value=space, expected="RAS or LPS")
    plain = tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
    return _volume(_one_channel(plain), affine, unit, nonfinite, "the MetaTensor")


def _tensor(array: NDArray[Any]) -> Any:
    torch = optional_import("torch", "all")
    if array.dtype.name == "uint64" and int(array.max()) > np.iinfo(np.int64).max:
        raise InputError("torch has no integers that large", value=int(array.max()), expected="at most int64")
    wider = _WIDER.get(array.dtype.name, array.dtype)
    return torch.from_numpy(np.array(array[None], dtype=wider, order="C"))


def _one_channel(tensor: Any) -> NDArray[Any]:
    if tensor.ndim != 4 or tensor.shape[0] != 1:
        raise FormatError(
            "not a volume of one channel", value=f"shape {tuple(tensor.shape)}", expected="(1, i, j, k)"
        )
    return np.asarray(tensor.detach().cpu().numpy()[0])


def _volume(array: NDArray[Any], affine: Any, unit: str, nonfinite: NonFinite, source: str) -> Volume:
    shape = array.shape
    if len(shape) < 3 or any(count != 1 for count in shape[3:]):
        raise FormatError("the image is not 3-D", source=source, value=f"shape {shape}", expected="3 axes")
    values, replaced = replace_nonfinite(array.reshape(shape[:3]), nonfinite, source)
    geometry = Geometry((shape[0], shape[1], shape[2]), affine)
    return Volume(values, geometry, unit=unit, facts={"nonfinite_replaced": replaced} if replaced else {})
