"""Commands on CT scans."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from sagittal.core.errors import InputError
from sagittal.core.files import atomic_path, storage_errors, write_text
from sagittal.core.optional import optional_import
from sagittal.core.progress import status
from sagittal.workbench.case_commands import StoreOption
from sagittal.workbench.output import JsonOption, emit, speaks, table

if TYPE_CHECKING:
    from sagittal.reconstruction import StoredScan
    from sagittal.volume import Geometry, Volume

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

ScanArgument = Annotated[Path, typer.Argument(help="Scan file, .npz.")]
RoughnessOption = Annotated[
    float | None, typer.Option(help="Expected step between neighbouring voxels, HU; smaller is smoother.")
]
DeltaOption = Annotated[float | None, typer.Option(help="Step that counts as an edge, HU.")]
IterationsOption = Annotated[int | None, typer.Option(help="At most so many.")]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="Where torch is to project, such as cuda; not for fbp. By default our own code."),
]


@app.command()
@speaks
def simulate(
    volume: Annotated[Path, typer.Option(help="Image in HU: a file, or a folder of DICOM.")],
    out: Annotated[Path, typer.Option(help="The scan, .npz.")],
    geometry: Annotated[str, typer.Option(help="parallel, fan or cone.")] = "fan",
    views: Annotated[int, typer.Option(help="How many, over half a turn (parallel) or a whole one.")] = 60,
    photons: Annotated[float, typer.Option(help="Photons per ray with nothing in the way.")] = 1e5,
    electronic: Annotated[
        float, typer.Option(help="Standard deviation of the detector's noise, photons.")
    ] = 0.0,
    curved: Annotated[bool, typer.Option(help="A detector that is an arc.")] = False,
    slice_: Annotated[int | None, typer.Option("--slice", help="Only this slice, counted from 0.")] = None,
    seed: Annotated[int, typer.Option(help="The noise follows from it.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Scan an image at a dose, by another projector than reconstructs it."""
    from sagittal.reconstruction import StoredScan, fitted_geometry, simulate_scan, write_scan

    _require_file(out, "--out")
    with status(quiet=as_json) as report:
        report(f"reading {volume.name}")
        image = _image(volume, slice_)
        scanner = fitted_geometry(image.geometry, geometry, views, curved=curved)
        report("scanning")
        scan = simulate_scan(image, scanner, photons=photons, seed=seed, electronic=electronic)
        write_scan(StoredScan(scan, image.geometry, image), out)
    result = {
        "scan": str(out.absolute()),
        "geometry": scanner.kind,
        "shape": list(scanner.shape),
        "photons": photons,
        "starved": scan.starved,
    }
    emit(result, as_json=as_json, text=lambda: _say_scan(result))


@app.command()
@speaks
def reconstruct(
    scan: ScanArgument,
    out: Annotated[Path | None, typer.Option(help="The image, .nii.gz.")] = None,
    unseen: Annotated[
        Path | None, typer.Option(help="Mask of the voxels not seen from every side, .nii.gz.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="fbp, sirt, cgls, tv, edge-preserving-tv, ...")
    ] = "edge-preserving-tv",
    variance: Annotated[bool, typer.Option(help="Also each voxel's variance.")] = False,
    doubt: Annotated[str, typer.Option(help="How the variance is estimated: quick or bootstrap.")] = "quick",
    draws: Annotated[int | None, typer.Option(help="How often the variance draws counts again.")] = None,
    roughness: RoughnessOption = None,
    delta: DeltaOption = None,
    edge_gradient: Annotated[
        bool,
        typer.Option(
            "--edge-gradient", help="Correct rays for edges within bins, as a detector measures them."
        ),
    ] = False,
    iterations: IterationsOption = None,
    device: DeviceOption = None,
    case: Annotated[str | None, typer.Option(help="Id of a case that the image is to belong to.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Reconstruct a scan, in HU. Rays that were not measured are left out, and counted.

    What does not fit into memory is refused. Where the object reaches beyond the detector, or rays along one
    line disagree as if the gantry had turned the other way, that is said.
    """
    from sagittal.reconstruction import reconstruct as by_method
    from sagittal.volume import write_nifti

    if out is None and case is None:
        raise InputError("the image has nowhere to go", source="--out", expected="a file, or --case")
    for option, path in (("--out", out), ("--unseen", unseen)):
        _require_file(path, option, (".nii", ".nii.gz"))
    for option, given in (("--doubt", doubt != "quick"), ("--draws", draws is not None)):
        if given and not variance:
            raise InputError("no variance is asked for", source=option, expected="--variance beside it")
    stored = _scan(scan)
    if device is not None and case is not None:
        raise InputError(
            "a case's image is one that any machine makes again", source="--device", value=device
        )
    options = _options(method, roughness, delta, iterations, device)
    if edge_gradient:
        options["edge_gradient"] = True
    if variance:
        options |= {"doubt": doubt} | ({} if draws is None else {"draws": draws})
    started = time.perf_counter()
    result: dict[str, Any] = {"method": method, **_facts(stored)}
    with status(quiet=as_json) as report:
        if case is not None:
            result |= _into_case(case, store, scan, method, variance, options, out)
        else:
            assert out is not None
            found = by_method(stored.scan, _grid(stored), method, variance=variance, report=report, **options)
            write_nifti(found.volume, out)
            result |= {
                "image": str(out.absolute()),
                "iterations": len(found.energies),
                "stopped": found.stopped,
                "discrepancy": found.discrepancy,
            }
            if found.doubt is not None:
                result["doubt"] = found.doubt.facts
        if unseen is not None:
            write_nifti(_unseen(stored), unseen)
    result["seconds"] = time.perf_counter() - started

    def text() -> None:
        for line in _warnings(result):
            typer.echo(line, err=True)
        typer.echo(f"{result.get('image', 'case ' + str(case))}: {method}, {result['seconds']:.1f} s")

    emit(result, as_json=as_json, text=text)


@app.command()
@speaks
def compare(
    scan: ScanArgument,
    methods: Annotated[
        str, typer.Option(help="Names, with commas between.")
    ] = "fbp,sirt,tv,edge-preserving-tv",
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write the result; '-' prints it as one line."),
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the images, a PNG file.")] = None,
) -> None:
    """Reconstruct a simulated scan by several methods, and measure them against what was scanned."""
    from sagittal.reconstruction import METHODS, quality
    from sagittal.reconstruction import reconstruct as by_method

    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise InputError(
            "there is nothing to compare", source="--methods", value=methods, expected=", ".join(METHODS)
        )
    for name in names:
        if name not in METHODS:
            raise InputError(
                "there is no such method", source="--methods", value=name, expected=", ".join(METHODS)
            )
    if json_file not in (None, "-"):
        _require_file(Path(str(json_file)), "--json")
    if figure is not None:
        _require_file(figure, "--figure")
        optional_import("matplotlib", "figures")
    stored = _scan(scan)
    if stored.truth is None:
        raise InputError("the scan was not simulated: there is nothing to compare with", source=scan)
    rows: list[dict[str, Any]] = []
    images: dict[str, Volume] = {}
    with status(quiet=json_file == "-") as report:
        for name in names:
            started = time.perf_counter()
            found = by_method(stored.scan, stored.truth.geometry, name, report=report)
            seconds = time.perf_counter() - started
            measured = quality(found.volume, stored.truth)
            rows.append({"method": name, **measured, "iterations": len(found.energies), "seconds": seconds})
            images[name] = found.volume
    result = {
        "rows": rows,
        "geometry": stored.scan.geometry.kind,
        "shape": list(stored.scan.geometry.shape),
        "photons": stored.scan.mean_photons,
        **_facts(stored),
    }
    if figure is not None:
        _draw(stored.truth, images, figure)
    if json_file not in (None, "-"):
        write_text(Path(str(json_file)), json.dumps(result, indent=1) + "\n")

    def text() -> None:
        for line in _warnings(result):
            typer.echo(line, err=True)
        _say_rows(rows)

    emit(result, as_json=json_file == "-", text=text)


def _require_file(path: Path | None, option: str, endings: tuple[str, ...] = ("",)) -> None:
    """Refuse, before anything is computed, a place where no file of such a name can be written."""
    if path is None:
        return
    with storage_errors(path):  # where one may not look
        folder = path.is_dir()
        above = next(folder for folder in path.absolute().parents if folder.exists())
    if folder:
        raise InputError("this is a folder", source=option, value=path, expected="a file")
    if not above.is_dir():
        raise InputError("it would lie in a file", source=option, value=path, expected="a folder above it")
    if not path.name.endswith(endings):
        ends = " or ".join(endings)
        raise InputError("the name has another ending", source=option, value=path.name, expected=ends)


def _image(path: Path, number: int | None) -> Volume:
    from sagittal.volume import crop, read_volume, reorient

    image = read_volume(path)
    if image.unit == "1":  # NIfTI states no unit
        if image.array.min() >= 0:
            raise InputError(
                "the image does not look like CT", source=path, value="nothing below 0", expected="HU"
            )
        image = image.replace(unit="HU")
    if image.unit == "HU":  # what scanners write outside their circle is below that of no attenuation
        image = image.replace(array=np.maximum(image.array, -1000))
    image = reorient(image, "RAS")
    if number is None:
        return _upright(image)
    if not 0 <= number < image.shape[2]:
        raise InputError(
            "there is no such slice", source="--slice", value=number, expected=f"0 to {image.shape[2] - 1}"
        )
    return _upright(crop(image, (slice(None), slice(None), slice(number, number + 1))))


def _upright(image: Volume) -> Volume:
    from sagittal.reconstruction import upright

    lying = upright(image)
    if lying is not image:
        typer.echo(
            "the slice is tilted: it is scanned in its own plane, and its place in the patient is lost",
            err=True,
        )
    return lying


def _scan(path: Path) -> StoredScan:
    """Read a scan; rays that cannot have been measured are marked."""
    from sagittal.reconstruction import read_scan

    return read_scan(path, missing="mark")


def _unseen(stored: StoredScan) -> Volume:
    """Return the voxels that are not seen from every side, as 1; of no voxel where all are."""
    from sagittal.reconstruction import unseen
    from sagittal.volume import Volume

    grid = _grid(stored)
    hidden = unseen(stored.scan.geometry, grid)
    return Volume(np.zeros(grid.shape, np.uint8) if hidden is None else hidden.astype(np.uint8), grid)


def _facts(stored: StoredScan) -> dict[str, Any]:
    """Return what is wrong with a scan: rays and views that are missing, what is not seen, how it turns."""
    from sagittal.reconstruction import truncated_share, turns_the_other_way

    missing = stored.scan.missing
    return {
        "missing_rays": 0 if missing is None else int(missing.sum()),
        "missing_views": 0 if missing is None else int(missing.all(axis=(1, 2)).sum()),
        "truncated": truncated_share(stored.scan),
        "unseen": float(_unseen(stored).array.mean()),
        "turns_the_other_way": turns_the_other_way(stored.scan),
    }


def _warnings(facts: dict[str, Any]) -> list[str]:
    said = []
    if facts["missing_rays"]:
        views = facts["missing_views"]
        whole = f", {views} whole view{'s' * (views != 1)} among them" if views else ""
        said.append(f"{facts['missing_rays']} rays were not measured{whole}: they are left out")
    if facts["truncated"]:
        said.append(
            f"the object reaches beyond the detector in {facts['truncated']:.0%} of the views; "
            f"{facts['unseen']:.0%} of the voxels are not seen from every side (--unseen writes which)"
        )
    if facts["turns_the_other_way"]:
        said.append(
            "opposite rays agree far better if the gantry turned the other way: the image may be wrong"
        )
    return said


def _grid(stored: StoredScan) -> Geometry:
    if stored.grid is None:
        raise InputError("the scan does not say where its image lies", expected="a scan file with a grid")
    return stored.grid


def _options(
    method: str,
    roughness: float | None,
    delta: float | None,
    iterations: int | None,
    device: str | None = None,
) -> dict[str, Any]:
    def given(**options: Any) -> dict[str, Any]:
        return {name: value for name, value in options.items() if value is not None}

    found, how = given(roughness=roughness, delta=delta), given(iterations=iterations, device=device)
    if not method.endswith("tv"):
        return found | how
    from sagittal.reconstruction import Solver

    return found | ({"solver": Solver(**how)} if how else {})


def _into_case(
    case_id: str,
    store: str | None,
    scan: Path,
    method: str,
    variance: bool,
    options: dict[str, Any],
    out: Path | None,
) -> dict[str, Any]:
    from sagittal.case.location import open_store
    from sagittal.volume import write_nifti
    from sagittal.workflow import artifacts
    from sagittal.workflow.models import ModelShelf
    from sagittal.workflow.runner import Runner
    from sagittal.workflow.steps import ReconstructCT

    if "solver" in options:
        solver = options["solver"]
        raise InputError(
            "a case keeps the solver's own iterations", source="--iterations", value=solver.iterations
        )
    with open_store(store) as cases:
        runner = Runner(store=cases, shelf=ModelShelf())
        cases.case(case_id)
        runner.receive(case_id, "scan.files", [scan])
        run = runner.run(case_id, ReconstructCT(method=method, variance=variance, options=options))
        if out is not None:
            write_nifti(artifacts.load(cases.objects, run.outputs[0]), out)
    result: dict[str, Any] = {"case": case_id, "run": run.number}
    return result | ({"image": str(out.absolute())} if out is not None else {})


def _draw(truth: Volume, images: dict[str, Volume], path: Path) -> None:
    figures = optional_import("matplotlib.figure", "figures")
    shown = {"truth": truth, **images}
    figure = figures.Figure(figsize=(3 * len(shown), 3.3), dpi=130, layout="constrained")
    low, high = truth.array.min(), truth.array.max()
    for panel, (name, volume) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
    ):
        middle = volume.array[:, :, volume.shape[2] // 2]
        panel.imshow(middle.T, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="nearest")
        panel.set_title(name, fontsize=9)
        panel.set_axis_off()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _say_scan(result: dict[str, Any]) -> None:
    views, rows, bins = result["shape"]
    typer.echo(f"{result['scan']}: {views} {result['geometry']}-beam views of {rows} x {bins} bins")
    if result["starved"]:
        typer.echo(f"{result['starved']} rays counted no photon; half a photon stands for each")


def _say_rows(rows: list[dict[str, Any]]) -> None:
    columns = ["method", "rmse", "ssim", "edge_rmse", "flat_noise", "seconds"]
    shown = [
        [row[c] if isinstance(row[c], str) else "" if row[c] is None else f"{row[c]:.4g}" for c in columns]
        for row in rows
    ]
    table(columns, shown)
