"""Other people's reconstructions for evidence/low_dose_ct.py, each where it is installed: no dependency.

All take the parallel beam that ours takes: image ``[i, j]`` with x along i and y along j, rays of a view at angle
a summed over lines x cos a + y sin a = t. scikit-image's pixels lie half a pixel from ours; each of its views is
moved by what that makes, exactly, in frequency. ASTRA (GPL) and svmbir (BSD) run on the processor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.reconstruction.geometry import ParallelBeam
from sagittal.reconstruction.scan import Scan, hounsfield
from sagittal.volume import Geometry, Volume

__all__ = ["RIVALS", "missing", "rival"]


def rival(name: str, scan: Scan, grid: Geometry, threads: int, options: dict[str, Any]) -> Volume:
    """Reconstruct by one of :data:`RIVALS`, in HU, on our grid."""
    assert isinstance(scan.geometry, ParallelBeam)
    assert scan.geometry.offset == 0
    step = grid.spacing[0]
    assert np.isclose(scan.geometry.bin_width, step)
    assert grid.shape[0] == grid.shape[1]
    rays = np.ascontiguousarray(scan.sinogram[:, 0], np.float32)
    image = RIVALS[name](rays, np.asarray(scan.geometry.angles), grid.shape[0], threads, options)
    return hounsfield(np.ascontiguousarray(image, np.float32)[..., None] / np.float32(step), grid)


def missing() -> dict[str, str]:
    """Return why packages cannot be run here, by name."""
    why = {}
    for package in ("astra", "skimage", "svmbir"):
        try:
            __import__(package)
        except Exception as error:  # not installed, or without its libraries: whatever it raises
            why[package] = f"{type(error).__name__}: {error}".splitlines()[0]
    return why


@cache
def astra_projector(angles: tuple[float, ...], bins: int, size: int) -> tuple[Any, Any, int]:
    import astra

    volume = astra.create_vol_geom(size, size)
    scanner = astra.create_proj_geom("parallel", 1.0, bins, np.asarray(angles))
    return volume, scanner, astra.create_projector("linear", scanner, volume)


def astra_forward(image: NDArray[Any], angles: NDArray[Any], bins: int) -> NDArray[Any]:
    """Project an image by ASTRA, to compare its geometry with ours."""
    import astra

    _, _, projector = astra_projector(tuple(angles), bins, len(image))
    number, rays = astra.create_sino(np.ascontiguousarray(image.T[::-1], np.float32), projector)
    astra.data2d.delete(number)
    return np.asarray(rays)


def astra_image(
    rays: NDArray[Any], angles: NDArray[Any], size: int, threads: int, options: dict[str, Any], algorithm: str
) -> NDArray[Any]:
    import astra

    volume, scanner, projector = astra_projector(tuple(angles), rays.shape[1], size)
    settings = dict(options)
    iterations = settings.pop("iterations", 1)
    sinogram, image = astra.data2d.create("-sino", scanner, rays), astra.data2d.create("-vol", volume, 0.0)
    plan = astra.astra_dict(algorithm)
    plan |= {"ProjectorId": projector, "ProjectionDataId": sinogram, "ReconstructionDataId": image}
    plan["option"] = settings | ({"MinConstraint": 0.0} if algorithm == "SIRT" else {})
    number = astra.algorithm.create(plan)
    astra.algorithm.run(number, iterations)
    found = astra.data2d.get(image)
    astra.algorithm.delete(number)
    astra.data2d.delete([sinogram, image])
    return np.asarray(found[::-1].T)


def iradon(
    rays: NDArray[Any], angles: NDArray[Any], size: int, threads: int, options: dict[str, Any]
) -> NDArray[Any]:
    from skimage.restoration import denoise_tv_chambolle
    from skimage.transform import iradon

    settings = dict(options)
    weight = settings.pop("weight", None)
    shift = 0.5 * (np.cos(angles) - np.sin(angles)) * (1 - size % 2)
    frequency = np.fft.rfftfreq(rays.shape[1])
    moved = np.fft.irfft(
        np.fft.rfft(rays, axis=1) * np.exp(2j * np.pi * frequency * shift[:, None]), rays.shape[1], axis=1
    )
    image = iradon(moved.T, theta=np.rad2deg(angles), output_size=size, circle=False, **settings)
    if weight is not None:
        scale = float(np.abs(image).max())
        image = denoise_tv_chambolle(image / scale, weight=weight) * scale
    return np.asarray(image[::-1].T)


@cache
def kept_matrices() -> str:
    return tempfile.mkdtemp(prefix="low-dose-svmbir-")


def svmbir_image(
    rays: NDArray[Any], angles: NDArray[Any], size: int, threads: int, options: dict[str, Any]
) -> NDArray[Any]:
    import svmbir

    found = svmbir.recon(
        rays[:, None, :],
        angles,
        weight_type="transmission",
        num_rows=size,
        num_cols=size,
        num_threads=threads,
        svmbir_lib_path=kept_matrices(),
        verbose=0,
        **options,
    )
    return np.asarray(found[0][:, ::-1])


Rival = Callable[[NDArray[Any], NDArray[Any], int, int, dict[str, Any]], NDArray[Any]]

RIVALS: dict[str, Rival] = {
    "astra-fbp": lambda *scan: astra_image(*scan, "FBP"),
    "astra-sirt": lambda *scan: astra_image(*scan, "SIRT"),
    "astra-cgls": lambda *scan: astra_image(*scan, "CGLS"),
    "skimage-iradon": iradon,
    "skimage-iradon-tv": iradon,
    "svmbir": svmbir_image,
}
"""Each by its name; what stands before the first hyphen is the package."""
