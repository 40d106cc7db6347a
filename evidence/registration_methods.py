"""One registration in a process of its own, for evidence/registration.py.

    python evidence/registration_methods.py METHOD OPTIONS FOLDER

FOLDER holds moving.nii.gz, fixed.nii.gz and affine.json, (4, 4) from the fixed to the moving image's space in RAS+
mm, from which every method starts. What is found is written there: field.npy, (3, i, j, k), where each voxel of
the fixed image lies in the moving one's space, as a displacement in RAS+ mm; inverse.npy where the method has one;
error.npy, how far each voxel may be from its true place, mm, where the method says so (not timed);
cost.json, the processor and wall seconds of the registration alone, without reading and writing.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
Found = tuple[NDArray[Any], NDArray[Any] | None]
"""A field, and its inverse on the moving image's grid where there is one."""


class Clock:
    """Processor and wall seconds between start and stop, of this process and of those it has waited for."""

    def __init__(self) -> None:
        self.cost: dict[str, float] = {}

    def __enter__(self) -> Clock:
        self._began = time.perf_counter(), self._spent()
        return self

    def __exit__(self, *_: object) -> None:
        self.cost = {
            "wall_seconds": time.perf_counter() - self._began[0],
            "cpu_seconds": self._spent() - self._began[1],
        }

    @staticmethod
    def _spent() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used)


def ours(folder: Path, matrix: NDArray[Any], options: dict[str, Any], clock: Clock) -> Found:
    from sagittal.registration import register
    from sagittal.registration.confidence import displacement_error
    from sagittal.volume import read_volume

    pair = read_volume(folder / "moving.nii.gz"), read_volume(folder / "fixed.nii.gz")
    register(*pair, affine=matrix, iterations=(0,))  # what is loaded the first time
    with clock:
        found = register(*pair, affine=matrix, **options)
    np.save(folder / "error.npy", displacement_error(*pair, found))
    return found.field.vectors, found.inverse.vectors


def with_affine(folder: Path, matrix: NDArray[Any], options: dict[str, Any], clock: Clock) -> Found:
    from sagittal.volume import DisplacementField, read_volume

    fixed = read_volume(folder / "fixed.nii.gz").geometry
    with clock:
        return DisplacementField.from_affine(matrix, fixed).vectors, None


def identity(folder: Path, matrix: NDArray[Any], options: dict[str, Any], clock: Clock) -> Found:
    return with_affine(folder, np.eye(4), options, clock)


def demons(folder: Path, matrix: NDArray[Any], options: dict[str, Any], clock: Clock) -> Found:
    """SimpleITK's diffeomorphic demons, three levels, after matching of histograms."""
    sitk = import_module("SimpleITK")

    fixed, moving = (_read(folder, name) for name in ("fixed", "moving"))
    with clock:
        moving = sitk.HistogramMatching(moving, fixed, 256, 15, True)
        field = sitk.TransformToDisplacementField(
            _itk_affine(matrix, fixed.GetDimension()), sitk.sitkVectorFloat64, fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(),
            fixed.GetDirection(),
        )  # fmt: skip
        for factor, count in zip((4, 2, 1), options["iterations"], strict=True):
            small = [_shrunk(image, factor) for image in (fixed, moving)]
            method = sitk.DiffeomorphicDemonsRegistrationFilter()
            method.SetNumberOfIterations(count)
            method.SetSmoothDisplacementField(True)
            method.SetStandardDeviations(options["sigma"])
            field = sitk.Resample(
                field, small[0], sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkVectorFloat64
            )
            field = method.Execute(small[0], small[1], field)
        field = sitk.Resample(field, fixed, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkVectorFloat64)
    return _ras(field), None


def bspline(folder: Path, matrix: NDArray[Any], options: dict[str, Any], clock: Clock) -> Found:
    """SimpleITK's free-form deformation of cubic B-splines, three levels of images."""
    sitk = import_module("SimpleITK")

    fixed, moving = (_read(folder, name) for name in ("fixed", "moving"))
    with clock:
        extent = np.array(fixed.GetSize()) * fixed.GetSpacing()
        mesh = [max(2, round(side / options["mesh_mm"])) for side in extent]
        method = sitk.ImageRegistrationMethod()
        if options["metric"] == "mutual-information":
            method.SetMetricAsMattesMutualInformation(32)
        else:
            method.SetMetricAsCorrelation()
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(options["share"], 1)
        method.SetOptimizerAsLBFGSB(numberOfIterations=options["iterations"], maximumNumberOfCorrections=5)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetMovingInitialTransform(_itk_affine(matrix, fixed.GetDimension()))
        spline = sitk.BSplineTransformInitializer(fixed, mesh)
        method.SetInitialTransform(spline, inPlace=True)
        method.SetShrinkFactorsPerLevel([4, 2, 1])
        method.SetSmoothingSigmasPerLevel([2, 1, 0])
        found = method.Execute(fixed, moving)
        whole = sitk.CompositeTransform([_itk_affine(matrix, fixed.GetDimension()), found])
        field = sitk.TransformToDisplacementField(
            whole, sitk.sitkVectorFloat64, fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(),
            fixed.GetDirection(),
        )  # fmt: skip
    return _ras(field), None


def greedy(folder: Path, matrix: NDArray[Any], options: dict[str, Any], clock: Clock) -> Found:
    """picsl_greedy: greedy diffeomorphic registration by local correlation."""
    module, dimension = import_module("picsl_greedy"), _dimension(folder)
    kept = [*range(dimension), 3]
    np.savetxt(folder / "affine.mat", matrix[np.ix_(kept, kept)])  # RAS, from fixed to moving
    command = (
        f"-d {dimension} -threads 1 -m NCC {'x'.join('2' * dimension)} -n {options['iterations']} -s {options['sigmas']} "
        f"-i {folder}/fixed.nii.gz {folder}/moving.nii.gz -it {folder}/affine.mat -o {folder}/warp.nii.gz "
        f"-oinv {folder}/back.nii.gz"
    )
    with clock:
        getattr(module, f"Greedy{dimension}D")().execute(command)
    return _read_warps(folder, folder / "warp.nii.gz", folder / "back.nii.gz", matrix)


def syn(folder: Path, matrix: NDArray[Any], options: dict[str, Any], clock: Clock) -> Found:
    """ANTsPy's SyN."""
    import ants

    sitk = import_module("SimpleITK")

    pair = (str(folder / f"{name}.nii.gz") for name in ("fixed", "moving"))
    fixed, moving = (ants.image_read(path, dimension=_dimension(folder)) for path in pair)
    sitk.WriteTransform(_itk_affine(matrix, _dimension(folder)), str(folder / "affine.tfm"))
    with clock:
        found = ants.registration(
            fixed, moving, type_of_transform="SyNOnly", initial_transform=str(folder / "affine.tfm"),
            outprefix=str(folder / "syn_"), random_seed=1, **options,
        )  # fmt: skip
    there = next(path for path in found["fwdtransforms"] if "Warp" in path)
    back = next(path for path in found["invtransforms"] if "InverseWarp" in path)
    return _read_warps(folder, Path(there), Path(back), matrix)


def _read_warps(folder: Path, there: Path, back: Path, matrix: NDArray[Any]) -> Found:
    """Return fixed -> moving, x -> A (x + w(x)), and back, y -> inverse of A y, moved by the inverse warp."""
    sitk = import_module("SimpleITK")

    from sagittal.volume import DisplacementField, read_volume

    grids = [read_volume(folder / f"{name}.nii.gz").geometry for name in ("fixed", "moving")]
    warps = [DisplacementField(_ras(sitk.ReadImage(str(path))), grids[0]) for path in (there, back)]
    points = grids[0].index_to_world(
        np.stack(np.meshgrid(*map(np.arange, grids[0].shape), indexing="ij"), -1)
    )
    moved = np.moveaxis(points, -1, 0) + warps[0].vectors
    turned = np.einsum("ab,b...->a...", matrix[:3, :3], moved) + matrix[:3, 3].reshape(3, 1, 1, 1)
    undone = DisplacementField.from_affine(np.linalg.inv(matrix), grids[1])
    return turned - np.moveaxis(points, -1, 0), warps[1].compose(undone).vectors


def _ras(field: Any) -> NDArray[np.float64]:
    """Return ITK's displacements (x, y, z; LPS) as (3, i, j, k) in RAS+."""
    sitk = import_module("SimpleITK")

    array = sitk.GetArrayFromImage(field).astype(np.float64)
    if array.ndim == 3:  # a slice: rows, columns and two components
        array = np.pad(array, [(0, 0), (0, 0), (0, 1)])[None]
    vectors = np.moveaxis(array, -1, 0).transpose(0, 3, 2, 1)
    return vectors * np.array([-1.0, -1.0, 1.0]).reshape(3, 1, 1, 1)


def _dimension(folder: Path) -> int:
    """Return 2 for slices, and 3."""
    from sagittal.volume import read_volume

    return 2 if read_volume(folder / "fixed.nii.gz").shape[2] == 1 else 3


def _read(folder: Path, name: str) -> Any:
    """Read an image by SimpleITK, a single slice as an image of two dimensions."""
    sitk = import_module("SimpleITK")

    image = sitk.ReadImage(str(folder / f"{name}.nii.gz"), sitk.sitkFloat32)
    return image[:, :, 0] if image.GetDimension() == 3 and image.GetSize()[2] == 1 else image


def _itk_affine(matrix: NDArray[Any], dimension: int) -> Any:
    sitk = import_module("SimpleITK")

    turned = LPS @ matrix @ LPS
    affine = sitk.AffineTransform(dimension)
    affine.SetMatrix(turned[:dimension, :dimension].ravel().tolist())
    affine.SetTranslation(turned[:dimension, 3].tolist())
    return affine


def _shrunk(image: Any, factor: int) -> Any:
    sitk = import_module("SimpleITK")

    if factor == 1:
        return image
    factors = [max(1, min(factor, count // 8)) for count in image.GetSize()]
    smooth = sitk.SmoothingRecursiveGaussian(
        image, [0.5 * f * s for f, s in zip(factors, image.GetSpacing(), strict=True)]
    )
    return sitk.Shrink(smooth, factors)


def start(folder: Path, matrix: NDArray[Any], options: dict[str, Any], clock: Clock) -> Found:
    """SimpleITK's affine registration by mutual information, from which all start; writes affine.json."""
    sitk = import_module("SimpleITK")

    fixed, moving = (_read(folder, name) for name in ("fixed", "moving"))
    first = sitk.CenteredTransformInitializer(
        fixed,
        moving,
        sitk.AffineTransform(fixed.GetDimension()),
        sitk.CenteredTransformInitializerFilter.MOMENTS,
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, 1)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 200)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(first, inPlace=False)
    method.SetShrinkFactorsPerLevel([4, 2])
    method.SetSmoothingSigmasPerLevel([2, 1])
    with clock:
        found = sitk.CompositeTransform(method.Execute(fixed, moving)).GetBackTransform()
    affine = sitk.AffineTransform(found)
    size = fixed.GetDimension()
    turned, linear = np.eye(4), np.array(affine.GetMatrix()).reshape(size, size)
    middle = np.array(affine.GetCenter())
    turned[:size, :size] = linear
    turned[:size, 3] = np.array(affine.GetTranslation()) + middle - linear @ middle
    (folder / "affine.json").write_text(json.dumps((LPS @ turned @ LPS).tolist()))
    return np.zeros((3, 1, 1, 1)), None


METHODS: dict[str, Callable[[Path, NDArray[Any], dict[str, Any], Clock], Found]] = {
    "identity": identity,
    "affine": with_affine,
    "diffeomorphic": ours,
    "diffeomorphic, as it comes": ours,
    "SimpleITK demons": demons,
    "SimpleITK B-spline": bspline,
    "picsl_greedy": greedy,
    "ANTsPy SyN": syn,
    "start": start,
}


def main(name: str, options: str, where: str) -> None:
    folder = Path(where)
    held = folder / "affine.json"
    matrix = np.array(json.loads(held.read_text())) if held.is_file() else np.eye(4)
    if "OMP_NUM_THREADS" in os.environ:
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    clock = Clock()
    field, inverse = METHODS[name](folder, matrix, json.loads(options), clock)
    np.save(folder / "field.npy", np.asarray(field, dtype=np.float32))
    if inverse is not None:
        np.save(folder / "inverse.npy", np.asarray(inverse, dtype=np.float32))
    (folder / "cost.json").write_text(json.dumps(clock.cost))


if __name__ == "__main__":
    main(*sys.argv[1:])
