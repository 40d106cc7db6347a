"""The command line."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import sagittal.workbench.store_commands  # noqa: F401  (adds its commands to those on cases)
from sagittal import __version__
from sagittal.core.errors import InputError
from sagittal.core.progress import Report, status
from sagittal.workbench import (
    annotate,
    assets_commands,
    atlas,
    batch_command,
    case_commands,
    ct,
    dicom_commands,
    field,
    language,
    registration,
    segment,
)
from sagittal.workbench.doctor import diagnose
from sagittal.workbench.output import JsonOption, emit, speaks, table
from sagittal.workbench.register import register
from sagittal.workbench.serve import serve

if TYPE_CHECKING:
    from sagittal.workflow.pipeline import Sources
    from sagittal.workflow.steps import RegisterToAtlas

__all__ = ["app", "main"]

app = typer.Typer(
    help="Medical-imaging AI that runs, whole, on the machine you have. Not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(case_commands.app, name="case", help="Cases in the store.")
app.add_typer(dicom_commands.app, name="dicomweb", help="Image archives that speak DICOMweb.")
app.add_typer(assets_commands.app, name="assets", help="Pinned models and images.")
app.add_typer(
    annotate.app, name="annotate", help="What people draw: what to draw next, and taking it into a case."
)
app.add_typer(atlas.app, name="atlas", help="Atlases: mean pose, size, shape and image of many subjects.")
app.add_typer(ct.app, name="ct", help="Low-dose CT: simulate, reconstruct, compare.")
app.add_typer(field.app, name="field", help="Displacement fields: volume change, rotation, inverse, average.")
app.add_typer(registration.app, name="registration", help="Networks that register: train one.")
app.add_typer(segment.app, name="segment", help="Networks that segment: train, use and judge one.")
app.add_typer(language.app, name="language", help="Language models with a low-bit cache.")

app.command()(register)
app.command()(serve)

StoreOption = case_commands.StoreOption
OutOption = Annotated[Path, typer.Option(help="Folder for the report and everything that belongs to it.")]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Fetch nothing; say what is missing.")]
ModelOption = Annotated[
    str | None, typer.Option(help="Language model: an asset's name or a folder; 'none' for no model.")
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
@speaks
def demo(
    out: OutOption = Path("demo-out"),
    store: StoreOption = None,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run one case of real images and a simulated record, end to end, and print where the report is."""
    from sagittal.workflow.pipeline import DEMO_STAGES, demo_sources

    with tempfile.TemporaryDirectory(prefix="sagittal-demo-") as folder, status(quiet=as_json) as report:
        sources = demo_sources(Path(folder), offline=_offline(offline), report=report)
        label = "demonstration, record simulated"
        summary = _run(sources, out, store, offline, label, None, report, DEMO_STAGES)
    _print(summary, as_json)


@app.command()
@speaks
def run(
    out: OutOption,
    t1: Annotated[
        list[Path] | None, typer.Option(help="Brain-masked T1 image: a file, or a folder of DICOM.")
    ] = None,
    ct: Annotated[Path | None, typer.Option(help="One CT slice: a DICOM, NIfTI, NRRD or MHA file.")] = None,
    record: Annotated[Path | None, typer.Option(help="Patient record, a text file.")] = None,
    encoding: Annotated[str, typer.Option(help="Encoding of the record; nothing is guessed.")] = "utf-8",
    model: ModelOption = None,
    atlas: batch_command.AtlasOption = "",
    atlas_labels: batch_command.AtlasLabelsOption = None,
    label: Annotated[str, typer.Option(help="What to call the case; should identify nobody.")] = "case",
    store: StoreOption = None,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a case of your own files and print where the report is."""
    from sagittal.workflow.pipeline import USUAL_STAGES, Sources

    sources = Sources(
        t1=[file for path in t1 or [] for file in _files(path)],
        ct=_files(ct) if ct else [],
        record=[record] if record else [],
        encoding=encoding,
    )
    registers = batch_command.chosen_atlas(atlas, atlas_labels)
    if registers and not sources.t1:
        raise InputError("there is no head to register", source="--atlas", expected="an image with --t1")
    names = [*USUAL_STAGES, *(["atlas"] if registers else [])]
    with status(quiet=as_json) as report:
        summary = _run(sources, out, store, offline, label, model, report, names, registers)
    _print(summary, as_json)


app.command()(batch_command.batch)


@app.command()
@speaks
def doctor(as_json: JsonOption = False) -> None:
    """Say what is installed, which assets are here, what the processor can do, and how much disk is free."""
    found = diagnose()

    def text() -> None:
        for title, rows in found.items():
            typer.secho(title, bold=True)
            table(["", ""], list(rows.items()))
            typer.echo()

    emit(found, as_json=as_json, text=text)


def _run(
    sources: Sources,
    out: Path,
    store: str | None,
    offline: bool,
    label: str,
    model: str | None,
    report: Report,
    stages: Sequence[str],
    atlas: RegisterToAtlas | None = None,
) -> dict[str, Any]:
    from sagittal.case.location import open_store
    from sagittal.workflow.export import export_case, require_libraries
    from sagittal.workflow.models import DEFAULT_MODEL, ModelShelf
    from sagittal.workflow.pipeline import run_case
    from sagittal.workflow.runner import Runner

    require_libraries()
    name = "" if model == "none" else model or DEFAULT_MODEL
    with open_store(store) as cases:
        runner = Runner(store=cases, shelf=ModelShelf(offline=_offline(offline)), report=report)
        case_id = run_case(runner, sources, label=label, model=name, names=stages, atlas=atlas)
        exported = export_case(cases, case_id, out, report=report)
        return case_commands.summary(cases, case_id, exported.report)


def _print(summary: dict[str, Any], as_json: bool) -> None:
    def text() -> None:
        for tissue, amount in summary["tissue_ml"].items():
            typer.echo(f"{tissue}: {amount['value']:.0f} ml ({amount['low']:.0f} to {amount['high']:.0f})")
        typer.echo(f"case:   {summary['case']} with {summary['findings']} findings")
        typer.echo(f"report: {summary['report']}")

    emit(summary, as_json=as_json, text=text)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    if not files:
        raise InputError("the folder holds no files", source=path, expected="the files of one series")
    return files


def _offline(flag: bool) -> bool | None:
    return True if flag else None


def main() -> None:
    """Entry point of the ``sagittal`` command."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    app()
