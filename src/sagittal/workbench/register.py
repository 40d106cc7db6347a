"""The command that brings one image to another."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from sagittal.core.errors import InputError, SagittalError
from sagittal.core.files import write_text
from sagittal.core.progress import status
from sagittal.workbench.output import emit, speaks

if TYPE_CHECKING:
    from sagittal.volume import Volume

__all__ = ["register"]

_METHODS = ("affine", "diffeomorphic", "network")
_PARTS = ("moving image", "fixed image", "labels", "moving mask", "fixed mask")
"""What the files are, as the methods call them."""


@speaks
def register(
    moving: Annotated[Path, typer.Argument(help="The image that is brought to the other.")],
    fixed: Annotated[Path, typer.Argument(help="The image that stays as it is.")],
    out: Annotated[Path, typer.Option(help="Folder of what is found.")],
    method: Annotated[str, typer.Option(help="diffeomorphic, network, or affine alone.")] = "diffeomorphic",
    measure: Annotated[
        str, typer.Option(help="local-correlation, mean-square or mutual-information.")
    ] = "local-correlation",
    moving_mask: Annotated[
        Path | None, typer.Option(help="Where the moving image counts: 1, and 0 elsewhere.")
    ] = None,
    fixed_mask: Annotated[Path | None, typer.Option(help="Where the fixed image counts.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Labels of the moving image, to carry over.")] = None,
    finest: Annotated[float | None, typer.Option(help="Voxel width of the last level, mm.")] = None,
    smoothing: Annotated[
        float | None, typer.Option(help="What smooths each update, voxels: more for smoother maps.")
    ] = None,
    field_smoothing: Annotated[
        float | None, typer.Option(help="What smooths the whole velocity each time, voxels.")
    ] = None,
    iterations: Annotated[
        str | None, typer.Option(help="At most so many for each level, the coarsest first, such as 60,40,20.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="What 'sagittal registration train' has written, for the network.")
    ] = None,
    refine: Annotated[
        int, typer.Option(min=0, help="Iterations that go on from what the network found.")
    ] = 0,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write the result; '-' prints it as one line."),
    ] = None,
) -> None:
    """Bring an image to another: image, field, inverse, local volume change, and expected error."""
    from sagittal.registration import displacement_error, network_from_bytes, register_by_network
    from sagittal.registration import register as registered
    from sagittal.volume import Volume, read_volume, write_field, write_nifti

    if method not in _METHODS:
        raise InputError(
            "there is no such method", source="--method", value=method, expected=", ".join(_METHODS)
        )
    chosen: dict[str, Any] = {
        "update_smoothing": smoothing,
        "field_smoothing": field_smoothing,
        "iterations": None if iterations is None else _counts(iterations),
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if method == "affine":
        if chosen:
            raise InputError(
                "an affine map takes no smoothing and no iterations", source="--method", value=method
            )
        chosen = {"iterations": (0,)}
    network = None
    if (method == "network") != (model is not None) or (refine and model is None):
        raise InputError(
            "--model and --refine belong to the method 'network', which needs a model",
            source="--method",
            value=method,
        )
    if model is not None:
        if chosen or any(given is not None for given in (moving_mask, fixed_mask, finest)):
            raise InputError(
                "a network takes no masks, no voxel width, no smoothing and no iterations",
                source="--method",
                value=method,
            )
        if not model.is_file():
            raise InputError("there is no such file", source=model, expected="a network")
        network = network_from_bytes(model.read_bytes(), model)
        measure = network.measure
    started, cpu = time.perf_counter(), time.process_time()
    parts = (moving, fixed, labels, moving_mask, fixed_mask)
    named = {name: path for name, path in zip(_PARTS, parts, strict=True) if path is not None}
    read: dict[str, Volume] = {}
    for name, path in named.items():
        with _naming({name: path}):
            read[name] = read_volume(path)
    images = read["moving image"], read["fixed image"]
    with _naming(named), status(quiet=json_file == "-") as report:
        if network is not None:
            found = register_by_network(*images, network, refine=(refine,) if refine else (), report=report)
        else:
            found = registered(
                *images,
                measure=measure,
                moving_mask=read.get("moving mask"),
                fixed_mask=read.get("fixed mask"),
                finest_mm=finest,
                report=report,
                **chosen,
            )
        error = displacement_error(*images, found, measure=measure, finest_mm=finest)
        names = ("warped", "field", "inverse", "log_jacobian", "error")
        files = {name: out / f"{name}.nii.gz" for name in names}
        if labels is not None:
            files["labels"] = out / "labels.nii.gz"
            with _naming({"labels": labels}):
                carried = found.field.warp(read["labels"], "label")
            write_nifti(carried, files["labels"])
        write_nifti(found.field.warp(images[0]), files["warped"])
        write_nifti(found.field.log_jacobian(), files["log_jacobian"])
        write_nifti(Volume(error, found.field.geometry, unit="mm"), files["error"])
        write_field(found.field, files["field"])
        write_field(found.inverse, files["inverse"])
    result: dict[str, Any] = {
        "method": method,
        "measure": measure,
        **{name: str(path.absolute()) for name, path in files.items()},
        "affine": found.affine.tolist(),
        "similarity": [[level[0], min(level)] for level in found.energies],
        **found.field.summary(),
        "inverse_consistency_mm": found.inverse_consistency_mm,
        "expected_error_mm": float(np.median(error)),
        "problems": list(found.problems),
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
    }
    if json_file not in (None, "-"):
        write_text(Path(str(json_file)), json.dumps(result, indent=1) + "\n")
    emit(result, as_json=json_file == "-", text=lambda: _say(result))


def _counts(text: str) -> tuple[int, ...]:
    """Return the iterations of each level from words such as 60,40,20."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise InputError(
            "not a number of iterations for each level",
            source="--iterations",
            value=text,
            expected="such as 60,40,20",
        )
    return tuple(int(word) for word in words)


@contextmanager
def _naming(files: Mapping[str, Path]) -> Iterator[None]:
    """Let an error name the file that it is about, and what part that plays; one file is what it is about."""
    try:
        yield
    except SagittalError as error:
        said = (error.source or "").split(", ")
        if len(files) == 1 and said[0] not in files:
            part, path = next(iter(files.items()))
            source = f"{part} {error.source or path}"
        else:
            source = ", ".join(f"{part} {files[part]}" if part in files else part for part in said)
        raise type(error)(
            error.problem, source=source or None, value=error.value, expected=error.expected
        ) from error


def _say(result: dict[str, Any]) -> None:
    typer.echo(f"{result['warped']}: {result['seconds']:.1f} s")
    typer.echo(
        f"moved {result['mean_mm']:.3g} mm on average, Jacobian determinant {result['jacobian_min']:.3g} to "
        f"{result['jacobian_max']:.3g}, {result['folds']} voxels fold, inverse within "
        f"{result['inverse_consistency_mm']:.2g} mm, expected error {result['expected_error_mm']:.2g} mm"
    )
    for problem in result["problems"]:
        typer.echo(f"do not trust this: {problem}", err=True)
