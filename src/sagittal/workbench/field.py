"""Commands on displacement fields."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from sagittal.core.progress import status
from sagittal.workbench.output import JsonOption, emit, speaks

if TYPE_CHECKING:
    from sagittal.registration import Construction

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

FieldArgument = Annotated[
    Path, typer.Argument(help="Displacement field: NIfTI of vectors, as ITK, ANTs or this program write it.")
]
FieldOut = Annotated[Path, typer.Option(help="The field, .nii.gz.")]
ImageOut = Annotated[Path, typer.Option(help="The image, .nii.gz.")]
IterationsOption = Annotated[int, typer.Option(help="At most so many steps.")]


@app.command()
@speaks
def measure(field: FieldArgument, as_json: JsonOption = False) -> None:
    """Say how far a field moves, how much it enlarges and turns, and whether it folds."""
    from sagittal.volume import read_field

    result: dict[str, Any] = {"field": str(field.absolute()), **read_field(field).summary()}
    emit(result, as_json=as_json, text=lambda: _say_summary(result))


@app.command()
@speaks
def jacobian(
    field: FieldArgument,
    out: ImageOut,
    log: Annotated[bool, typer.Option("--log", help="Its natural logarithm, of 0.001 in folds.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write how much each place grows (above 1) or shrinks; 0 and below is a fold."""
    from sagittal.volume import read_field, write_nifti

    given = read_field(field)
    write_nifti(given.log_jacobian() if log else given.jacobian(), out)
    result: dict[str, Any] = {"image": str(out.absolute()), **given.summary()}
    emit(result, as_json=as_json, text=lambda: _say_summary(result))


@app.command()
@speaks
def curl(field: FieldArgument, out: FieldOut, as_json: JsonOption = False) -> None:
    """Write how each place turns: vectors along the axis, twice as long as a small angle in radians."""
    from sagittal.volume import read_field, write_vectors

    given = read_field(field)
    turned = given.curl()
    write_vectors(turned, given.geometry, out)
    result = {"vectors": str(out.absolute()), "curl_max": float(np.linalg.norm(turned, axis=0).max())}
    emit(
        result,
        as_json=as_json,
        text=lambda: typer.echo(f"{result['vectors']}: at most {result['curl_max']:.4g}"),
    )


@app.command()
@speaks
def invert(
    field: FieldArgument,
    out: FieldOut,
    failed: Annotated[
        Path | None, typer.Option(help="Write where there is no inverse, or it is not known: .nii.gz.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="How far it may lead past its start, mm.")] = 1e-3,
    as_json: JsonOption = False,
) -> None:
    """Write the inverse map, and say where it could not be found."""
    from sagittal.volume import Volume, read_field, write_field, write_nifti

    found = read_field(field).invert(tolerance_mm=tolerance)
    write_field(found.field, out)
    if failed is not None:
        kinds = np.where(found.failed, 1, np.where(found.beyond, 2, 0)).astype(np.uint8)
        write_nifti(Volume(kinds, found.field.geometry), failed)
    result = {
        "field": str(out.absolute()),
        "failed": int(np.count_nonzero(found.failed)),
        "beyond": int(np.count_nonzero(found.beyond)),
        "voxels": found.failed.size,
        "residual_max_mm": float(found.residual_mm.max()),
    }

    def text() -> None:
        typer.echo(f"{result['field']}: {result['voxels']} voxels")
        if result["failed"]:
            typer.echo(f"{result['failed']} voxels may have no inverse or several", err=True)
        if result["beyond"]:
            typer.echo(f"{result['beyond']} voxels come from beyond the field: not known", err=True)

    emit(result, as_json=as_json, text=text)


@app.command()
@speaks
def compose(
    outer: FieldArgument,
    inner: Annotated[Path, typer.Argument(help="The field that is applied first; its grid is the result's.")],
    out: FieldOut,
    as_json: JsonOption = False,
) -> None:
    """Write the map that applies INNER first, and OUTER to where it leads."""
    from sagittal.volume import read_field, write_field

    found = read_field(outer).compose(read_field(inner))
    write_field(found, out)
    result: dict[str, Any] = {"field": str(out.absolute()), **found.summary()}
    emit(result, as_json=as_json, text=lambda: _say_summary(result))


@app.command()
@speaks
def warp(
    image: Annotated[Path, typer.Argument(help="An image of the space that the field leads to.")],
    field: FieldArgument,
    out: ImageOut,
    interpolation: Annotated[str, typer.Option(help="linear, cubic, nearest, or label.")] = "linear",
    outside: Annotated[
        float | None, typer.Option(help="Value of what the image does not show; -1024 in HU, else 0.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Bring an image to the grid of a field, where the image that was held fixed lies."""
    from sagittal.volume import read_field, read_volume, write_nifti
    from sagittal.volume import warp as warped

    found = warped(read_volume(image), read_field(field), interpolation, outside=outside)  # type: ignore[arg-type]
    write_nifti(found, out)
    result = {"image": str(out.absolute()), "shape": list(found.shape)}
    emit(result, as_json=as_json, text=lambda: typer.echo(f"{result['image']}: {found.shape} voxels"))


@app.command()
@speaks
def construct(
    jacobian: Annotated[Path, typer.Option(help="Image of the Jacobian determinant.")],
    out: FieldOut,
    curl: Annotated[Path | None, typer.Option(help="Vectors of the curl; without, one map of many.")] = None,
    iterations: IterationsOption = 30,
    as_json: JsonOption = False,
) -> None:
    """Write the map that grows and turns as prescribed, and keeps the boundary."""
    from sagittal.registration import construct as constructed
    from sagittal.volume import read_vectors, read_volume, require_same_space

    wanted = read_volume(jacobian)
    turned = None
    if curl is not None:
        turned, place = read_vectors(curl)
        require_same_space(wanted, place, source=curl)
    with status(quiet=as_json) as report:
        found = constructed(wanted.array, turned, wanted.geometry, iterations=iterations, report=report)
    _keep(found, out, as_json)


@app.command()
@speaks
def average(
    fields: Annotated[list[Path], typer.Argument(help="Displacement fields on one grid.")],
    out: FieldOut,
    iterations: IterationsOption = 30,
    as_json: JsonOption = False,
) -> None:
    """Write the map whose volume change and rotation are the averages of those given."""
    from sagittal.registration import average_transformation
    from sagittal.volume import read_field

    given = [read_field(path) for path in fields]
    with status(quiet=as_json) as report:
        found = average_transformation(given, iterations=iterations, report=report)
    _keep(found, out, as_json)


def _keep(found: Construction, out: Path, as_json: bool) -> None:
    from sagittal.volume import write_field

    write_field(found.field, out)
    result: dict[str, Any] = {
        "field": str(out.absolute()),
        **found.field.summary(),
        "steps": len(found.energies) - 1,
        "stopped": found.stopped,
        "jacobian_error": found.jacobian_error,
        "curl_error": found.curl_error,
    }

    def text() -> None:
        _say_summary(result)
        typer.echo(
            f"{result['steps']} steps, {result['stopped']}; determinant within {found.jacobian_error:.3g}, "
            f"curl within {found.curl_error:.3g} of what was asked for"
        )

    emit(result, as_json=as_json, text=text)


def _say_summary(result: dict[str, Any]) -> None:
    typer.echo(f"{result.get('field', result.get('image'))}")
    typer.echo(f"moves {result['mean_mm']:.4g} mm on average, {result['max_mm']:.4g} mm at most")
    typer.echo(
        f"Jacobian determinant {result['jacobian_min']:.4g} to {result['jacobian_max']:.4g}, "
        f"{result['folds']} voxels fold"
    )
